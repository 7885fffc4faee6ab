//! What it costs that a refresh is a job.

use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::UInt64Type;
use futures::future::try_join_all;
use headwater::job::clock::SystemClock;
use headwater::job::driver::{Driver, Ending, JobRequest};
use headwater::job::ledger::Ledger;
use headwater::job::signal::Signaller;
use headwater::session::Headwater;

use super::refresh::ROWS;
use crate::kit::{
    Best, Database, Report, Result, Settings, alternate, best, grouped, milliseconds, timed,
};

/// What is written down of a refresh, against the refresh.
pub async fn ledger(settings: &Settings) -> Result<Report> {
    let rows = settings.rows.unwrap_or(ROWS);
    let mut report = Report::new(
        "ledger",
        "What the ledger does for `REFRESH COLUMN area ON t FULL`, alone: the job is begun, claims \
         its column, writes down each commit, and ends. Floor: the whole statement, which does \
         that too.",
    );
    for (fragments, share) in [(16, 3), (1000, 10)] {
        let database = Database::new().await?;
        database.make("t", rows, fragments).await?;
        database.declare_area("t").await?;
        let sql = "REFRESH COLUMN area ON t FULL";
        database.timed_refresh(sql, rows).await?;
        let commits = database.run("SELECT max(commits) FROM system.jobs").await?;
        let commits = commits[0].column(0).as_primitive::<UInt64Type>().value(0);
        let ledger = Ledger::new(
            Arc::clone(database.headwater().database()),
            Arc::new(SystemClock),
        );
        let times = alternate(
            settings.runs,
            async || database.timed_refresh(sql, rows).await,
            async || timed(job(&ledger, commits)).await,
        )
        .await?;
        let goal = times.floor * share / 100;
        report.time(
            format!(
                "{} rows, {} fragments, {commits} commits",
                grouped(rows),
                grouped(fragments)
            ),
            times,
            format!("≤ {share} % = {}", milliseconds(goal)),
        );
    }
    Ok(report)
}

/// All that is written down of a job.
async fn job(ledger: &Ledger, commits: u64) -> Result<()> {
    let request = JobRequest {
        statement: "REFRESH COLUMN area ON t FULL".to_string(),
        table: "t".to_string(),
        columns: vec!["area".to_string()],
        mode: "full".to_string(),
        reason: "REQUESTED_FULL".to_string(),
        objects: vec!["t/0".to_string()],
        request: Default::default(),
        version: 1,
        timeout: None,
        max_time: None,
    };
    let driver = Driver::begin(ledger, request, Signaller::default()).await?;
    for _ in 0..commits {
        driver.check_claims().await?;
        driver.event("committed", "version 2: 1 row", None).await?;
    }
    driver.finish(Ending::Done(String::new())).await?;
    Ok(())
}

/// A list of many jobs.
pub async fn show(settings: &Settings) -> Result<Report> {
    const JOBS: u64 = 10_000;
    let database = Database::new().await?;
    let ledger = Ledger::new(
        Arc::clone(database.headwater().database()),
        Arc::new(SystemClock),
    );
    eprintln!("making {} jobs", grouped(JOBS));
    for _ in 0..JOBS {
        job(&ledger, 1).await?;
    }
    let url = database.url();
    let ours = best(settings.runs, async || {
        timed(async {
            let headwater = Headwater::open(&url).await?;
            let jobs = headwater.sql("SHOW JOBS").await?.collect().await?;
            let rows: usize = jobs.iter().map(|batch| batch.num_rows()).sum();
            match rows as u64 {
                JOBS => Ok(()),
                rows => Err(format!("{rows} jobs were listed").into()),
            }
        })
        .await
    })
    .await?;
    let mut report = Report::new(
        "jobs",
        "`SHOW JOBS` in a session that has just been opened; opening it is counted.",
    );
    report.row(
        format!("{} jobs", grouped(JOBS)),
        "-",
        milliseconds(ours),
        "-",
        "≤ 300 ms",
    );
    Ok(report)
}

/// Refreshes of several columns at once, against one after the other.
pub async fn at_once(settings: &Settings) -> Result<Report> {
    const COLUMNS: usize = 8;
    let rows = settings.rows.unwrap_or(ROWS);
    let database = Database::new().await?;
    database.make("t", rows, 16).await?;
    let mut statements = Vec::new();
    for column in 0..COLUMNS {
        let add = format!("ALTER TABLE t ADD COLUMN c{column} INT AS (x * y + {column})");
        database.run(&add).await?;
        statements.push(format!("REFRESH COLUMN c{column} ON t FULL"));
    }
    let in_turn = async || -> Result<Duration> {
        let mut total = Duration::ZERO;
        for statement in &statements {
            total += database.timed_refresh(statement, rows).await?;
        }
        Ok(total)
    };
    let at_once = async || -> Result<Duration> {
        let started = Instant::now();
        let refreshes = statements
            .iter()
            .map(|statement| database.timed_refresh(statement, rows));
        try_join_all(refreshes).await?;
        Ok(started.elapsed())
    };
    let Best { floor, ours } = alternate(settings.runs, in_turn, at_once).await?;
    let mut report = Report::new(
        "at_once",
        "`REFRESH COLUMN c ON t FULL` of 8 columns at once, in one session; all succeed. Floor: the \
         same statements one after the other.",
    );
    report.time(
        format!("{COLUMNS} columns, {} rows each", grouped(rows)),
        Best { floor, ours },
        "ratio ≤ 1.2",
    );
    Ok(report)
}
