//! The statements about jobs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::arrow::array::RecordBatch;
use datafusion::prelude::DataFrame;

use super::Executor;
use super::report::Rows;
use crate::column::refresh::Refresh;
use crate::column::run::begin;
use crate::job::environment::Environment;
use crate::job::ledger::Ledger;
use crate::job::record::{Control, JobState, JobSummary};
use crate::job::signal::{Signal, Stop};
use crate::job::system::{error_rows, event_rows, job_rows};
use crate::sql::statement::{JobObject, JobStatement};
use crate::view::cascade;
use crate::view::refresh::{self, ViewRefresh};
use crate::{Error, ErrorKind, Result};

/// The columns of SHOW JOBS.
const SHOWN: [&str; 13] = [
    "job_id",
    "table_name",
    "columns",
    "state",
    "mode",
    "reason",
    "rows_computed",
    "rows_reused",
    "rows_failed",
    "rows_pending",
    "submitted_at",
    "elapsed_seconds",
    "message",
];

/// How often a job of another process is looked at.
const POLL: Duration = Duration::from_millis(200);
/// How long a driver has to hear what it is told, and to do it.
const HEARING: Duration = Duration::from_secs(10);

impl Executor {
    pub(super) async fn job_statement(&self, statement: JobStatement) -> Result<DataFrame> {
        let ledger = self.jobs.ledger();
        match statement {
            JobStatement::Jobs { of, limit } => {
                let mut jobs = self.jobs_of(of.as_ref()).await?;
                jobs.truncate(limit.unwrap_or(usize::MAX));
                let rows = job_rows(&jobs, ledger.now())?;
                // What fits a screen; DESCRIBE JOB and system.jobs have the rest.
                Ok(self.listing(rows)?.select_columns(&SHOWN)?)
            }
            JobStatement::Events(id) => {
                ledger.job(&id).await?;
                let events = ledger.events(&id).await?;
                let events: Vec<_> = events.into_iter().map(|e| (id.clone(), e)).collect();
                self.listing(event_rows(&events)?)
            }
            JobStatement::Errors { job, of } => self.show_errors(job, of).await,
            JobStatement::Describe(id) => {
                let job = ledger.job(&id).await?;
                self.described(&job_rows(&[job], ledger.now())?)
            }
            JobStatement::Pause(id) => self.pause_job(&id).await,
            JobStatement::Resume(id) => self.resume_job(&id).await,
            JobStatement::Cancel(id) => self.cancel_job(&id).await,
            JobStatement::Wait { id, timeout } => self.wait_job(&id, timeout).await,
        }
    }

    /// The jobs of a table or of a column, newest first.
    async fn jobs_of(&self, of: Option<&JobObject>) -> Result<Vec<JobSummary>> {
        let mut jobs = self.jobs.ledger().jobs().await?;
        if let Some(of) = of {
            let name = self.name_of(&of.table)?;
            if of.is_view {
                self.view_named(&name).await?;
            }
            jobs.retain(|job| {
                job.record.table == name
                    && (!of.is_view || job.record.columns.is_empty())
                    && of
                        .column
                        .as_ref()
                        .is_none_or(|column| job.record.columns.contains(column))
            });
            // A table that was dropped may have jobs still; but a slip should be told.
            if jobs.is_empty() {
                let table = self.database.table(&name).await?;
                if let Some(column) = &of.column {
                    table.check_column(column)?;
                }
            }
        }
        Ok(jobs)
    }

    async fn show_errors(&self, job: Option<String>, of: Option<JobObject>) -> Result<DataFrame> {
        let ledger = self.jobs.ledger();
        let jobs = match &job {
            Some(id) => vec![ledger.job(id).await?],
            None => self.jobs_of(of.as_ref()).await?,
        };
        let mut errors = Vec::new();
        for job in jobs {
            let id = &job.record.id;
            let of_job = ledger.errors(id).await?;
            errors.extend(of_job.into_iter().map(|error| (id.clone(), error)));
        }
        if let Some(column) = of.and_then(|of| of.column) {
            errors.retain(|(_, error)| error.column == column);
        }
        self.listing(error_rows(&errors)?)
    }

    pub(super) fn listing(&self, batch: RecordBatch) -> Result<DataFrame> {
        Ok(self.context.read_batch(batch)?)
    }

    /// One row, as items and values.
    pub(super) fn described(&self, row: &RecordBatch) -> Result<DataFrame> {
        use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
        let options = FormatOptions::default();
        let schema = row.schema();
        let values = row
            .columns()
            .iter()
            .map(|column| {
                let value = ArrayFormatter::try_new(column.as_ref(), &options)?;
                Ok(value.value(0).to_string())
            })
            .collect::<Result<Vec<_>>>()?;
        Rows::default()
            .text("item", schema.fields().iter().map(|f| f.name().clone()))
            .text("value", values)
            .frame(self)
    }

    async fn pause_job(&self, id: &str) -> Result<DataFrame> {
        let started = Instant::now();
        let job = self.unfinished(id, "PAUSE JOB").await?;
        if job.state == JobState::Interrupted {
            return Err(Error::invalid(format!(
                "PAUSE JOB: job '{id}' is interrupted: its process is gone"
            ))
            .with_hint(format!(
                "RESUME JOB '{id}' goes on with it, CANCEL JOB '{id}' ends it"
            )));
        }
        self.jobs.ledger().control(id, Control::Pause).await?;
        let job = self
            .until(id, HEARING, |job| job.state == JobState::Paused)
            .await?;
        self.job_done("PAUSE JOB", &job, started)
    }

    async fn resume_job(&self, id: &str) -> Result<DataFrame> {
        let started = Instant::now();
        let job = self.unfinished(id, "RESUME JOB").await?;
        if job.state == JobState::Interrupted {
            let request = job.record.request.clone();
            let unreadable = |error: serde_json::Error| {
                Error::new(
                    ErrorKind::Storage,
                    format!("the request of job '{id}' can't be read: {error}"),
                )
                .with_hint(format!("run the statement again: {}", job.record.statement))
            };
            // Only that of a view names one.
            if request.get("view").is_some() {
                let is_cascade = cascade::is_submitted(&request);
                let request: ViewRefresh = serde_json::from_value(request).map_err(unreadable)?;
                if is_cascade {
                    let job = Box::pin(cascade::submit(&self.environment(), &request)).await?;
                    return self.view_refreshed(&job.wait().await?);
                }
                let begun = refresh::begin(&self.environment(), &request).await?;
                return self.view_refreshed(&begun.wait().await?);
            }
            let request: Refresh = serde_json::from_value(request).map_err(unreadable)?;
            let refreshed = begin(&self.environment(), &request).await?.wait().await?;
            return self.refreshed(&refreshed);
        }
        self.jobs.ledger().control(id, Control::Resume).await?;
        let job = self
            .until(id, HEARING, |job| job.state != JobState::Paused)
            .await?;
        self.job_done("RESUME JOB", &job, started)
    }

    async fn cancel_job(&self, id: &str) -> Result<DataFrame> {
        let started = Instant::now();
        let ledger = self.jobs.ledger();
        let job = self.unfinished(id, "CANCEL JOB").await?;
        if job.state == JobState::Interrupted {
            ledger.cancel_interrupted(&job).await?;
        } else {
            ledger.control(id, Control::Cancel).await?;
            // One of this process need not wait until it looks.
            self.jobs.tell(id, Signal::Stop(Stop::Cancelled));
        }
        let job = self.until(id, HEARING, |job| job.state.is_final()).await?;
        self.job_done("CANCEL JOB", &job, started)
    }

    async fn wait_job(&self, id: &str, timeout: Option<Duration>) -> Result<DataFrame> {
        let started = Instant::now();
        let ended = async {
            self.jobs.ledger().job(id).await?;
            self.jobs.wait(id).await;
            self.until(id, Duration::MAX, |job| {
                job.state.is_final() || job.state == JobState::Interrupted
            })
            .await
        };
        let job = match timeout {
            None => ended.await?,
            Some(timeout) => match tokio::time::timeout(timeout, ended).await {
                Ok(job) => job?,
                Err(_) => {
                    return Err(Error::new(
                        ErrorKind::Cancelled,
                        format!("job '{id}' has not ended within {timeout:?}"),
                    )
                    .with_hint("it goes on; WAIT JOB waits on"));
                }
            },
        };
        self.job_done("WAIT JOB", &job, started)
    }

    /// A job that has not ended.
    async fn unfinished(&self, id: &str, statement: &str) -> Result<JobSummary> {
        let job = self.jobs.ledger().job(id).await?;
        if job.state.is_final() {
            return Err(Error::invalid(format!(
                "{statement}: job '{id}' is {} already",
                job.state
            )));
        }
        Ok(job)
    }

    /// Waits until a job is in a state, at most for `patience`; gives it as it is then.
    async fn until(
        &self,
        id: &str,
        patience: Duration,
        is_there: impl Fn(&JobSummary) -> bool,
    ) -> Result<JobSummary> {
        let ledger: &Ledger = self.jobs.ledger();
        let started = Instant::now();
        loop {
            let job = ledger.job(id).await?;
            if is_there(&job) || job.state.is_final() || started.elapsed() >= patience {
                return Ok(job);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn job_done(
        &self,
        statement: &'static str,
        job: &JobSummary,
        started: Instant,
    ) -> Result<DataFrame> {
        let figures = &job.figures;
        Rows::default()
            .text("statement", [statement])
            .text("job_id", [job.record.id.clone()])
            .text("state", [job.state.name()])
            .number("rows_computed", [Some(figures.rows_computed)])
            .number("rows_reused", [Some(figures.rows_reused)])
            .number("rows_pending", [Some(figures.rows_pending)])
            .text("message", [job.message.clone()])
            .seconds("elapsed_seconds", [started.elapsed()])
            .frame(self)
    }

    /// What a refresh runs in.
    pub(super) fn environment(&self) -> Environment {
        Environment {
            database: Arc::clone(&self.database),
            state: self.context.state(),
            jobs: Arc::clone(&self.jobs),
            workers: tokio::runtime::Handle::current(),
        }
    }
}
