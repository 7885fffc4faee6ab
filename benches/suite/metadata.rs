//! What statements cost that touch no data.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use headwater::session::Headwater;
use lance::Dataset;

use crate::kit::{Database, Report, Result, Settings, alternate, grouped, timed};

/// A refresh that has nothing to do.
pub async fn nothing(settings: &Settings) -> Result<Report> {
    let rows = settings.rows.unwrap_or(1_000_000);
    let mut report = Report::new(
        "nothing",
        "`REFRESH COLUMN area ON t` when every row is fresh. Floor: Lance opens the table, with \
         empty caches, and does nothing. Ours in a session that has just been opened (opening it \
         is counted), and in one that has refreshed before.",
    );
    let database = Database::new().await?;
    for (fragments, goal) in [(1, "≤ 50 ms"), (1000.min(rows), "≤ 100 ms")] {
        let table = format!("t{fragments}");
        database.make(&table, rows, fragments).await?;
        database.declare_area(&table).await?;
        let sql = format!("REFRESH COLUMN area ON {table}");
        database.timed_refresh(&sql, rows).await?;
        let what = format!("fragments: {}, rows: {}", grouped(fragments), grouped(rows));
        let new = alternate(
            settings.runs,
            async || open(&database, &table).await,
            async || in_new_session(&database, &sql).await,
        )
        .await?;
        report.time(format!("{what}, new session"), new, goal);
        let same = alternate(
            settings.runs,
            async || open(&database, &table).await,
            async || database.timed_refresh(&sql, 0).await,
        )
        .await?;
        report.time(format!("{what}, same session"), same, goal);
    }
    Ok(report)
}

/// DESCRIBE of a table with many fragments.
pub async fn describe(settings: &Settings) -> Result<Report> {
    let rows = settings.rows.unwrap_or(100_000);
    let fragments = 10_000.min(rows);
    let database = Database::new().await?;
    database.make("t", rows, fragments).await?;
    let best = alternate(
        settings.runs,
        async || open(&database, "t").await,
        async || in_new_session(&database, "DESCRIBE t").await,
    )
    .await?;
    let mut report = Report::new(
        "describe",
        "`DESCRIBE t` in a session that has just been opened; opening it is counted. Floor: Lance \
         opens the table, with empty caches, and does nothing.",
    );
    report.time(
        format!("fragments: {}", grouped(fragments)),
        best,
        "≤ 300 ms",
    );
    Ok(report)
}

/// The whole life of a process that answers one query.
pub async fn start(settings: &Settings) -> Result<Report> {
    let database = Database::new().await?;
    let url = database.url();
    let best = alternate(
        settings.runs.max(20),
        async || command(&["--version"]),
        async || command(&[&url, "-c", "SELECT 1"]),
    )
    .await?;
    let mut report = Report::new(
        "start",
        "`headwater DATABASE -c \"SELECT 1\"`, from the start of the process to its end. Floor: \
         `headwater --version`, which opens nothing.",
    );
    report.time("SELECT 1", best, "≤ 150 ms");
    Ok(report)
}

/// How long Lance takes to open a table that it knows nothing of.
async fn open(database: &Database, table: &str) -> Result<Duration> {
    let uri = database.table_uri(table);
    timed(async { Ok(Dataset::open(&uri).await?) }).await
}

/// How long a statement takes in a session of its own.
async fn in_new_session(database: &Database, sql: &str) -> Result<Duration> {
    let url = database.url();
    timed(async {
        let headwater = Headwater::open(&url).await?;
        Ok(headwater.sql(sql).await?.collect().await?)
    })
    .await
}

/// How long the command takes with these arguments.
fn command(arguments: &[&str]) -> Result<Duration> {
    let started = Instant::now();
    let status = Command::new(env!("CARGO_BIN_EXE_headwater"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    let elapsed = started.elapsed();
    match status.success() {
        true => Ok(elapsed),
        false => Err(format!("headwater {arguments:?} failed: {status}").into()),
    }
}
