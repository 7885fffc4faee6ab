//! `system.jobs`, `system.job_events` and `system.errors`.

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use futures::future::BoxFuture;

use super::clock::Clock;
use super::ledger::Ledger;
use super::record::{Event, JobSummary, RowError};
use crate::Result;
use crate::database::Database;
use crate::database::system::{
    SystemTable, batch, number, optional_text, optional_timestamp, seconds, text, timestamp,
};

/// The system tables of this room, which tell the time by `clock`.
pub fn system_tables(clock: &Arc<dyn Clock>) -> Vec<Arc<dyn SystemTable>> {
    [Kind::Jobs, Kind::Events, Kind::Errors]
        .into_iter()
        .map(|kind| {
            let clock = Arc::clone(clock);
            Arc::new(JobTable { kind, clock }) as Arc<dyn SystemTable>
        })
        .collect()
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Jobs,
    Events,
    Errors,
}

#[derive(Debug)]
struct JobTable {
    kind: Kind,
    clock: Arc<dyn Clock>,
}

impl SystemTable for JobTable {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Jobs => "jobs",
            Kind::Events => "job_events",
            Kind::Errors => "errors",
        }
    }

    fn rows<'a>(&'a self, database: &'a Arc<Database>) -> BoxFuture<'a, Result<RecordBatch>> {
        Box::pin(async move {
            let ledger = Ledger::new(Arc::clone(database), Arc::clone(&self.clock));
            let jobs = ledger.jobs().await?;
            match self.kind {
                Kind::Jobs => job_rows(&jobs, ledger.now()),
                Kind::Events => {
                    let mut events = Vec::new();
                    for job in &jobs {
                        let of_job = ledger.events(&job.record.id).await?;
                        events.extend(
                            of_job
                                .into_iter()
                                .map(|event| (job.record.id.clone(), event)),
                        );
                    }
                    event_rows(&events)
                }
                Kind::Errors => {
                    let mut errors = Vec::new();
                    for job in &jobs {
                        let of_job = ledger.errors(&job.record.id).await?;
                        errors.extend(
                            of_job
                                .into_iter()
                                .map(|error| (job.record.id.clone(), error)),
                        );
                    }
                    error_rows(&errors)
                }
            }
        })
    }
}

/// Jobs as the rows of a listing; `now` in milliseconds since 1970, UTC.
pub fn job_rows(jobs: &[JobSummary], now: i64) -> Result<RecordBatch> {
    let count = |get: fn(&JobSummary) -> u64| jobs.iter().map(move |job| Some(get(job)));
    let time = |get: fn(&JobSummary) -> f64| jobs.iter().map(move |job| Some(get(job)));
    batch(vec![
        text("job_id", jobs.iter().map(|j| j.record.id.clone())),
        text("table_name", jobs.iter().map(|j| j.record.table.clone())),
        text("columns", jobs.iter().map(|j| j.record.columns.join(", "))),
        text("state", jobs.iter().map(|j| j.state.name())),
        text("mode", jobs.iter().map(|j| j.record.mode.clone())),
        text("reason", jobs.iter().map(|j| j.record.reason.clone())),
        number("source_rows", count(|j| j.figures.source_rows)),
        number("source_rows_read", count(|j| j.figures.source_rows_read)),
        number("rows_planned", count(|j| j.figures.rows_planned)),
        number("rows_computed", count(|j| j.figures.rows_computed)),
        number("rows_reused", count(|j| j.figures.rows_reused)),
        number("rows_skipped", count(|j| j.figures.rows_skipped)),
        number("rows_failed", count(|j| j.figures.rows_failed)),
        number("rows_pending", count(|j| j.figures.rows_pending)),
        number("fragments_planned", count(|j| j.figures.fragments_planned)),
        number("fragments_written", count(|j| j.figures.fragments_written)),
        number(
            "fragments_committed",
            count(|j| j.figures.fragments_committed),
        ),
        number("bytes_written", count(|j| j.figures.bytes_written)),
        number("commits", count(|j| j.figures.commits)),
        number("retries", count(|j| j.figures.retries)),
        number("checkpoints", count(|j| j.figures.checkpoints)),
        seconds("reading_seconds", time(|j| j.figures.reading_seconds)),
        seconds("computing_seconds", time(|j| j.figures.computing_seconds)),
        seconds(
            "checkpointing_seconds",
            time(|j| j.figures.checkpointing_seconds),
        ),
        seconds("writing_seconds", time(|j| j.figures.writing_seconds)),
        seconds("committing_seconds", time(|j| j.figures.committing_seconds)),
        timestamp("submitted_at", jobs.iter().map(|j| j.record.submitted_at)),
        optional_timestamp("finished_at", jobs.iter().map(|j| j.finished_at)),
        seconds(
            "elapsed_seconds",
            jobs.iter().map(|job| {
                let end = job.finished_at.unwrap_or(now);
                Some((end - job.record.submitted_at).max(0) as f64 / 1e3)
            }),
        ),
        text(
            "submitted_by",
            jobs.iter().map(|j| j.record.submitted_by.to_string()),
        ),
        text("driver", jobs.iter().map(|j| j.driver.to_string())),
        text("engine", jobs.iter().map(|j| j.record.engine.clone())),
        text("statement", jobs.iter().map(|j| j.record.statement.clone())),
        text("message", jobs.iter().map(|j| j.message.clone())),
    ])
}

/// Events, each with its job, as the rows of a listing.
pub fn event_rows(events: &[(String, Event)]) -> Result<RecordBatch> {
    let count = |get: fn(&Event) -> u64| events.iter().map(move |(_, event)| Some(get(event)));
    batch(vec![
        text("job_id", events.iter().map(|(id, _)| id.clone())),
        timestamp("at", events.iter().map(|(_, e)| e.at)),
        text("event", events.iter().map(|(_, e)| e.event.clone())),
        optional_text(
            "state",
            events
                .iter()
                .map(|(_, e)| e.state.map(|state| state.to_string())),
        ),
        text("message", events.iter().map(|(_, e)| e.message.clone())),
        number("rows_computed", count(|e| e.figures.rows_computed)),
        number("rows_reused", count(|e| e.figures.rows_reused)),
        number(
            "fragments_committed",
            count(|e| e.figures.fragments_committed),
        ),
        text("driver", events.iter().map(|(_, e)| e.driver.to_string())),
    ])
}

/// Rows that failed, each with its job, as the rows of a listing.
pub fn error_rows(errors: &[(String, RowError)]) -> Result<RecordBatch> {
    batch(vec![
        text("job_id", errors.iter().map(|(id, _)| id.clone())),
        timestamp("at", errors.iter().map(|(_, e)| e.at)),
        text("table_name", errors.iter().map(|(_, e)| e.table.clone())),
        text("column_name", errors.iter().map(|(_, e)| e.column.clone())),
        number("row_id", errors.iter().map(|(_, e)| e.row_id)),
        text(
            "expression",
            errors.iter().map(|(_, e)| e.expression.clone()),
        ),
        text("message", errors.iter().map(|(_, e)| e.message.clone())),
    ])
}
