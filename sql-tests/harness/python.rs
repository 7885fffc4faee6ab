//! Python with what tests need of it: release pylance, for what other programs do with our tables,
//! moto, which answers as S3 does, and ADBC, for what other clients do with our server.
//!
//! A virtual environment for each lies below `target/` and is filled from PyPI once.

use std::error::Error;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The interpreter of an environment that has pylance.
pub fn python() -> Result<PathBuf, Box<dyn Error + Send + Sync>> {
    environment("pylance", &["pylance==14.0.2"])
}

/// The interpreter of an environment that has moto's server, and boto3, on which it is built.
pub fn python_with_moto() -> Result<PathBuf, Box<dyn Error + Send + Sync>> {
    // Its extra `server` has what all of Amazon's services need, which is a lot.
    environment(
        "moto",
        &["moto[s3]==5.2.5", "flask==3.1.3", "flask-cors==6.0.5"],
    )
}

/// The interpreter of an environment that has ADBC's driver for Flight SQL.
pub fn python_with_adbc() -> Result<PathBuf, Box<dyn Error + Send + Sync>> {
    environment(
        "adbc",
        &[
            "adbc-driver-flightsql==1.13.0",
            "adbc-driver-manager==1.13.0",
            "pyarrow==26.0.1",
        ],
    )
}

/// The interpreter of the environment `name`, which has `packages`. Trials that ask at once, of this
/// process or another, wait for the one that makes it.
fn environment(name: &str, packages: &[&str]) -> Result<PathBuf, Box<dyn Error + Send + Sync>> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
    let folder = target.join(name);
    let python = folder.join("bin/python");
    let ready = folder.join(packages.join(" "));
    fs::create_dir_all(&target)?;
    let lock = File::create(target.join(format!("{name}.lock")))?;
    lock.lock()?;
    if ready.exists() {
        return Ok(python);
    }
    // What an earlier attempt left half made is made anew.
    run(Command::new("python3")
        .args(["-m", "venv", "--clear"])
        .arg(&folder))?;
    run(Command::new(&python)
        .args(["-m", "pip", "install", "--quiet"])
        .args(packages))?;
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
