//! Peak memory of REFRESH COLUMN, which must not grow with the table.
//!
//! Each refresh runs in a process of its own: this program, started again, which opens the
//! database, refreshes, and prints its peak resident memory as Linux counts it (`VmHWM`).

use std::process::{Command, Stdio};

use headwater::session::Headwater;

use super::refresh::{FRAGMENTS, ROWS};
use crate::kit::{Database, Report, Result, Settings, grouped};

/// The argument that makes this program the child.
pub const CHILD: &str = "--refresh-and-tell-memory";

pub async fn run(settings: &Settings) -> Result<Report> {
    let rows = settings.rows.unwrap_or(ROWS);
    let mut report = Report::new(
        "memory",
        "Peak resident memory of a process that opens the database and runs `REFRESH COLUMN area \
         ON t FULL`: the largest of the runs. Floor of the second row: the first row.",
    );
    let database = Database::new().await?;
    let small = peak(&database, "small", rows, settings.runs).await?;
    report.row(
        format!("{} rows", grouped(rows)),
        "-",
        mebibytes(small),
        "-",
        "≤ 400 MiB",
    );
    let large = peak(&database, "large", 4 * rows, settings.runs).await?;
    report.row(
        format!("{} rows", grouped(4 * rows)),
        mebibytes(small),
        mebibytes(large),
        format!("{:.2}", large as f64 / small as f64),
        "ratio ≤ 1.1, ≤ 400 MiB",
    );
    Ok(report)
}

/// The largest peak of several runs, in KiB.
async fn peak(database: &Database, table: &str, rows: u64, runs: usize) -> Result<u64> {
    database.make(table, rows, FRAGMENTS).await?;
    database.declare_area(table).await?;
    let mut largest = 0;
    for _ in 0..runs {
        let output = Command::new(std::env::current_exe()?)
            .args([CHILD, &database.url(), table])
            .stderr(Stdio::inherit())
            .output()?;
        if !output.status.success() {
            return Err(format!("the refresh failed: {}", output.status).into());
        }
        let kibibytes: u64 = String::from_utf8(output.stdout)?.trim().parse()?;
        largest = largest.max(kibibytes);
    }
    database.check_area(table).await?;
    Ok(largest)
}

/// What the child does: `arguments` are the database and the table.
pub async fn child(arguments: &[String]) -> Result<()> {
    let [url, table] = arguments else {
        return Err("a database and a table are needed".into());
    };
    let headwater = Headwater::open(url).await?;
    let sql = format!("REFRESH COLUMN area ON {table} FULL");
    headwater.sql(&sql).await?.collect().await?;
    println!("{}", peak_of_this()?);
    Ok(())
}

/// The peak of this process, in KiB.
pub fn peak_of_this() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.split_whitespace().next())
        .ok_or("this system does not tell the peak memory of a process")?;
    Ok(peak.parse()?)
}

/// KiB, written as MiB.
pub fn mebibytes(kibibytes: u64) -> String {
    format!("{:.0} MiB", kibibytes as f64 / 1024.0)
}
