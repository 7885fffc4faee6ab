//! A refresh after some rows were appended, against the refresh of all of them.

use super::refresh::{FRAGMENTS, ROWS};
use crate::kit::{Best, Database, Report, Result, Settings, best, grouped, milliseconds};

/// What a refresh may cost whatever it computes.
const CONSTANT: std::time::Duration = std::time::Duration::from_millis(60);

pub async fn run(settings: &Settings) -> Result<Report> {
    let rows = settings.rows.unwrap_or(ROWS);
    let appended = (rows / 100).max(1);
    let database = Database::new().await?;
    database.make("t", rows, FRAGMENTS).await?;
    database.declare_area("t").await?;
    let full = best(settings.runs, async || {
        let sql = "REFRESH COLUMN area ON t FULL";
        database.timed_refresh(sql, rows).await
    })
    .await?;
    let mut end = rows;
    let incremental = best(settings.runs, async || {
        database.append("t", end..end + appended).await?;
        end += appended;
        let sql = "REFRESH COLUMN area ON t";
        database.timed_refresh(sql, appended).await
    })
    .await?;
    database.check_area("t").await?;
    let mut report = Report::new(
        "append",
        "`REFRESH COLUMN area ON t` after 1 % of the rows were appended, each time anew. Floor: \
         `REFRESH COLUMN area ON t FULL` of the table before that.",
    );
    report.time(
        format!("{} rows after {}", grouped(appended), grouped(rows)),
        Best {
            floor: full,
            ours: incremental,
        },
        format!("≤ 5 % + 60 ms = {}", milliseconds(full / 20 + CONSTANT)),
    );
    Ok(report)
}
