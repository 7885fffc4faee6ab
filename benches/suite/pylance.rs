//! REFRESH COLUMN against `add_columns` of pylance.
//!
//! pylance comes from PyPI, into a virtual environment in `target/bench-venv` that is made once.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::refresh::{FRAGMENTS, ROWS};
use crate::kit::{Database, Report, Result, Settings, alternate, grouped};

/// The release that is compared with: that of the Lance crates in Cargo.toml.
const VERSION: &str = "14.0.2";

/// Adds the column to the table that it is given, and prints how many seconds the call took.
const SCRIPT: &str = "
import sys, time, lance
table = lance.dataset(sys.argv[1])
if 'area' in table.schema.names:
    table.drop_columns(['area'])
started = time.perf_counter()
table.add_columns({'area': 'x * y'})
print(time.perf_counter() - started)
";

pub async fn run(settings: &Settings) -> Result<Report> {
    let python = python()?;
    let rows = settings.rows.unwrap_or(ROWS);
    let database = Database::new().await?;
    database.make("ours", rows, FRAGMENTS).await?;
    database.declare_area("ours").await?;
    database.make("theirs", rows, FRAGMENTS).await?;
    let theirs = database.table_uri("theirs");
    let best = alternate(
        settings.runs,
        async || add_columns(&python, &theirs),
        async || {
            let sql = "REFRESH COLUMN area ON ours FULL";
            database.timed_refresh(sql, rows).await
        },
    )
    .await?;
    database.check_area("ours").await?;
    database.check_area("theirs").await?;
    let mut report = Report::new(
        "pylance",
        format!(
            "The statement `REFRESH COLUMN area ON t FULL` on {FRAGMENTS} fragments. Floor: \
             `add_columns({{\"area\": \"x * y\"}})` of pylance {VERSION} from PyPI on a table of \
             the same rows; the time of the call alone, taken in Python."
        ),
    );
    report.time(
        format!("REFRESH COLUMN x * y, {} rows", grouped(rows)),
        best,
        "ratio ≤ 0.5",
    );
    Ok(report)
}

fn add_columns(python: &Path, uri: &str) -> Result<Duration> {
    let output = Command::new(python)
        .args(["-c", SCRIPT, uri])
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(format!("pylance failed: {}", output.status).into());
    }
    let seconds: f64 = String::from_utf8(output.stdout)?.trim().parse()?;
    Ok(Duration::from_secs_f64(seconds))
}

/// The interpreter of the virtual environment, which is made if it is not there.
fn python() -> Result<PathBuf> {
    let folder = Database::target().join("bench-venv");
    let python = folder.join("bin/python");
    let installed = Command::new(&python)
        .args(["-c", "import lance; print(lance.__version__)"])
        .stderr(Stdio::null())
        .output();
    if installed.is_ok_and(|output| output.stdout.trim_ascii() == VERSION.as_bytes()) {
        return Ok(python);
    }
    eprintln!("installing pylance {VERSION} into {}", folder.display());
    finish(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    finish(
        Command::new(&python)
            .args(["-m", "pip", "install", "--quiet"])
            .arg(format!("pylance=={VERSION}")),
    )?;
    Ok(python)
}

fn finish(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .map_err(|error| format!("{command:?} can't be run: {error}"))?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("{command:?} failed: {status}").into()),
    }
}
