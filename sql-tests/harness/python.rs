//! A Python that has release pylance, for tests of what other programs do with our tables.
//!
//! The virtual environment lies below `target/` and is filled from PyPI once.

use std::error::Error;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

const PYLANCE: &str = "pylance==14.0.2";

/// The interpreter of an environment that has pylance. Trials that ask at once, of this process or
/// another, wait for the one that makes it.
pub fn python() -> Result<PathBuf, Box<dyn Error + Send + Sync>> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
    let folder = target.join("pylance");
    let python = folder.join("bin/python");
    let ready = folder.join(PYLANCE);
    fs::create_dir_all(&target)?;
    let lock = File::create(target.join("pylance.lock"))?;
    lock.lock()?;
    if ready.exists() {
        return Ok(python);
    }
    // What an earlier attempt left half made is made anew.
    run(Command::new("python3")
        .args(["-m", "venv", "--clear"])
        .arg(&folder))?;
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet", PYLANCE]))?;
    fs::write(ready, "")?;
    Ok(python)
}

/// Runs a command and gives what it prints.
pub fn run(command: &mut Command) -> Result<String, Box<dyn Error + Send + Sync>> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(format!("{command:?} failed: {errors}").into())
}
