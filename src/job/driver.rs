//! The driver of a job: begins it, shows that it lives, hears what it is told, ends it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::task::JoinHandle;

use super::claim::{Claim, Claimed};
use super::counters::Counters;
use super::driven::Driven;
use super::ledger::{JobFiles, Ledger, last_state};
use super::process::Process;
use super::record::{Control, Ended, Event, Heartbeat, JobRecord, JobState};
use super::signal::{Signal, Signaller, Stop};
use crate::function;
use crate::{Error, ErrorKind, Result};

/// How often a driver looks whether it is told something.
const CONTROL_INTERVAL: Duration = Duration::from_secs(1);
/// A look that comes so long after the one before is late.
const LATE: Duration = Duration::from_secs(5);
/// It shows that it lives at every so many looks.
const LOOKS_PER_BEAT: u64 = 5;

/// A job to begin.
#[derive(Debug, Clone)]
pub struct JobRequest {
    /// The statement, in one form.
    pub statement: String,
    /// The table.
    pub table: String,
    /// Its columns.
    pub columns: Vec<String>,
    /// `full`, `incremental` or `filtered`.
    pub mode: String,
    /// The reason code of a full refresh; empty otherwise.
    pub reason: String,
    /// What no other job may work on meanwhile.
    pub objects: Vec<String>,
    /// What is needed to run it again.
    pub request: Value,
    /// The newest version of the table.
    pub version: u64,
    /// Ends the job when it has run for so long.
    pub timeout: Option<Duration>,
    /// Lets the job stop cleanly when it has run for so long.
    pub max_time: Option<Duration>,
}

/// Drives one job.
#[derive(Debug)]
pub struct Driver {
    ledger: Ledger,
    record: JobRecord,
    process: Process,
    claims: Vec<Claim>,
    /// Jobs whose processes were gone and whose objects it has now.
    replaced: Vec<String>,
    resumed: bool,
    driven: Driven,
    counters: Arc<Counters>,
    signal: Signaller,
    keeper: Option<JoinHandle<()>>,
}

/// How a job came to its end.
#[derive(Debug)]
pub enum Ending<'a> {
    /// All is done, or what its limits allow; with what to say of it.
    Done(String),
    /// It was told to stop.
    Stopped(Stop),
    /// An error.
    Failed(&'a Error),
}

impl Driver {
    /// Begins a job, or goes on with one that had the same statement and whose process is gone.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Busy`] if another job that is at work has one of the objects.
    pub async fn begin(ledger: &Ledger, request: JobRequest, signal: Signaller) -> Result<Self> {
        let process = Process::current();
        let interrupted = find_interrupted(ledger, &request.statement, &request.table).await?;
        let resumed = interrupted.is_some();
        let (record, driven) = match interrupted {
            Some(files) => {
                let driven = Driven::new(&files.record.id);
                (files.record, driven)
            }
            None => {
                let record = JobRecord {
                    id: ledger.new_id(),
                    statement: request.statement.clone(),
                    table: request.table.clone(),
                    columns: request.columns,
                    mode: request.mode,
                    reason: request.reason,
                    objects: request.objects.clone(),
                    request: request.request,
                    version: request.version,
                    submitted_at: ledger.now(),
                    submitted_by: process.clone(),
                    engine: ledger.engine().to_string(),
                    served: ledger.is_served(),
                };
                // Before it claims anything: a claim of a job that is not there counts for nothing.
                let driven = Driven::new(&record.id);
                ledger.create(&record).await?;
                (record, driven)
            }
        };
        let claimed = ledger
            .claim(&request.objects, &record.id, &process, driven.token())
            .await;
        let (claims, before) = match claimed {
            Ok(Claimed::Held(claims, before)) => (claims, before),
            Ok(Claimed::Busy(files)) => {
                if !resumed {
                    ledger.remove(&record.id).await?;
                }
                return Err(busy(&request.statement, &files));
            }
            Err(error) => {
                if !resumed {
                    // The error itself matters more.
                    let _ = ledger.remove(&record.id).await;
                }
                return Err(error);
            }
        };
        let mut replaced = Vec::with_capacity(before.len());
        for files in before {
            replaced.push(files.record.id.clone());
            let ending = Ended {
                event: "failed",
                message: format!(
                    "its process is gone, and job '{}' works on it now",
                    record.id
                ),
                state: JobState::Failed,
            };
            let figures = ledger.summary(&files).figures;
            ledger.end(&files.record, &process, ending, figures).await?;
        }
        let driver = Self {
            ledger: ledger.clone(),
            record,
            process,
            claims,
            replaced,
            resumed,
            driven,
            counters: Arc::default(),
            signal,
            keeper: None,
        };
        if resumed {
            driver.ledger.clear_controls(driver.id()).await?;
            driver.beat().await?;
            driver
                .event(
                    "resumed",
                    "another process goes on",
                    Some(JobState::Running),
                )
                .await?;
        }
        Ok(driver.kept(request.timeout, request.max_time))
    }

    /// Begins to listen and to show that it lives.
    fn kept(mut self, timeout: Option<Duration>, max_time: Option<Duration>) -> Self {
        let keeper = Keeper {
            ledger: self.ledger.clone(),
            id: self.record.id.clone(),
            process: self.process.clone(),
            claims: self.claims.clone(),
            counters: Arc::clone(&self.counters),
            signal: self.signal.clone(),
            deadlines: [
                timeout.map(|time| (Instant::now() + time, Stop::TimedOut)),
                max_time.map(|time| (Instant::now() + time, Stop::OutOfTime)),
            ],
        };
        self.keeper = Some(tokio::spawn(keeper.keep()));
        self
    }

    /// The name of the job.
    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// Names of the jobs whose processes were gone and whose objects it has now.
    pub fn replaced(&self) -> &[String] {
        &self.replaced
    }

    /// What its commits are marked with: the job and this driver of it.
    pub fn mark(&self) -> String {
        format!("{}/{}", self.record.id, self.driven.token())
    }

    /// What was asked.
    pub fn record(&self) -> &JobRecord {
        &self.record
    }

    /// Whether another process had begun it.
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// Where it is written down.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Its figures.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// What it is told.
    pub fn signal(&self) -> &Signaller {
        &self.signal
    }

    /// Writes down what happened.
    pub async fn event(
        &self,
        event: &str,
        message: impl Into<String>,
        state: Option<JobState>,
    ) -> Result<Event> {
        let figures = self.counters.figures();
        self.ledger
            .event(self.id(), &self.process, event, message, state, figures)
            .await
    }

    async fn beat(&self) -> Result<()> {
        let heartbeat = Heartbeat {
            at: self.ledger.now(),
            beat: 0,
            driver: self.process.clone(),
            state: JobState::Running,
            figures: self.counters.figures(),
        };
        self.ledger.beat(self.id(), &heartbeat).await
    }

    /// Fails if another driver has taken over: for use before each commit.
    pub async fn check_claims(&self) -> Result<()> {
        if self.ledger.holds(&self.claims).await? {
            return Ok(());
        }
        self.signal.tell(Signal::Stop(Stop::Superseded));
        Err(stop_error(Stop::Superseded, self.id()))
    }

    /// Ends the job.
    pub async fn finish(mut self, ending: Ending<'_>) -> Result<()> {
        if let Some(keeper) = self.keeper.take() {
            keeper.abort();
        }
        // Whoever took over writes down the end. If that can't be found out, neither can anything be written.
        if !self.ledger.holds(&self.claims).await? {
            return Ok(());
        }
        let (event, message, state) = match ending {
            Ending::Stopped(Stop::Interrupted) => {
                // It stays on the list of those at work, without a driver: whoever looks finds it interrupted.
                self.event("interrupted", "its process ends", None).await?;
                return Ok(());
            }
            Ending::Done(message) => ("done", message, JobState::Done),
            Ending::Stopped(Stop::OutOfTime) => {
                ("done", "max_seconds are over".to_string(), JobState::Done)
            }
            Ending::Stopped(stop) => {
                let error = stop_error(stop, self.id());
                (
                    "cancelled",
                    error.message().to_string(),
                    JobState::Cancelled,
                )
            }
            Ending::Failed(error) => ("failed", error.to_string(), JobState::Failed),
        };
        let ending = Ended {
            event,
            message,
            state,
        };
        let (database, meter) = (self.ledger.database(), self.counters.meter());
        if let Err(error) = function::record(database, self.id(), meter).await {
            log::warn!("job '{}': {error}", self.id());
        }
        let figures = self.counters.figures();
        self.ledger
            .end(&self.record, &self.process, ending, figures)
            .await
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(keeper) = &self.keeper {
            keeper.abort();
        }
    }
}

/// Why a job that was told to stop did so, as an error.
pub fn stop_error(stop: Stop, id: &str) -> Error {
    let (message, hint) = match stop {
        Stop::Interrupted => (
            format!("job '{id}' was interrupted: its process ends"),
            "what was finished is kept; RESUME JOB goes on from there, and so does a server when it is started again",
        ),
        Stop::Cancelled => (
            format!("job '{id}' was cancelled"),
            "what was finished is kept; the statement goes on from there when it is run again",
        ),
        Stop::TimedOut => (
            format!("job '{id}' was cancelled: its timeout is over"),
            "what was finished is kept; the statement goes on from there when it is run again",
        ),
        Stop::OutOfTime => (
            format!("job '{id}' stopped: max_seconds are over"),
            "the statement goes on from there when it is run again",
        ),
        Stop::Failed => (
            format!("job '{id}' failed"),
            "what was finished is kept; the statement goes on from there when it is run again",
        ),
        Stop::Superseded => (
            format!("another process has taken over job '{id}'"),
            "SHOW JOBS says which",
        ),
    };
    Error::new(ErrorKind::Cancelled, message).with_hint(hint)
}

fn busy(statement: &str, files: &JobFiles) -> Error {
    let id = &files.record.id;
    let driver = files
        .heartbeat
        .as_ref()
        .map_or(&files.record.submitted_by, |heartbeat| &heartbeat.driver);
    Error::new(
        ErrorKind::Busy,
        format!(
            "{statement}: job '{id}' ({}) is at work on it, driven by {driver}",
            files.record.statement
        ),
    )
    .with_hint(format!(
        "WAIT JOB '{id}' waits for it, CANCEL JOB '{id}' ends it"
    ))
}

/// Ends the job with the same statement whose driver is gone: nothing is left for it to do, but for
/// `pending` rows that it was not asked for. Gives its name.
pub async fn end_interrupted(
    ledger: &Ledger,
    statement: &str,
    table: &str,
    pending: u64,
) -> Result<Option<String>> {
    let Some(files) = find_interrupted(ledger, statement, table).await? else {
        return Ok(None);
    };
    let id = files.record.id.clone();
    let mut figures = ledger.summary(&files).figures;
    figures.rows_pending = pending;
    let ending = Ended {
        event: "done",
        message: "its process was gone, and nothing was left to do".to_string(),
        state: JobState::Done,
    };
    ledger
        .end(&files.record, &Process::current(), ending, figures)
        .await?;
    Ok(Some(id))
}

/// The job with the same statement whose driver is gone.
async fn find_interrupted(
    ledger: &Ledger,
    statement: &str,
    table: &str,
) -> Result<Option<JobFiles>> {
    for id in ledger.active().await? {
        let Some(files) = ledger.read(&id).await? else {
            continue;
        };
        let same = files.record.statement == statement && files.record.table == table;
        if same && !ledger.is_alive(&files) && !last_state(&files.events).is_final() {
            return Ok(Some(files));
        }
    }
    Ok(None)
}

/// What runs beside a job.
struct Keeper {
    ledger: Ledger,
    id: String,
    process: Process,
    claims: Vec<Claim>,
    counters: Arc<Counters>,
    signal: Signaller,
    deadlines: [Option<(Instant, Stop)>; 2],
}

impl Keeper {
    async fn keep(self) {
        let mut looks: u64 = 0;
        let mut state = JobState::Running;
        let mut last_look = Instant::now();
        loop {
            tokio::time::sleep(self.until_next_look()).await;
            looks += 1;
            let now = Instant::now();
            // The process was stopped, or could not get on: another one may have taken over.
            let is_late = now.duration_since(last_look) > LATE;
            last_look = now;
            for (deadline, stop) in self.deadlines.iter().flatten() {
                if now >= *deadline {
                    self.signal.tell(Signal::Stop(*stop));
                }
            }
            // What can't be read or written now is tried again: a store may be away for a while.
            if let Ok(controls) = self.ledger.controls(&self.id).await {
                self.obey(&controls, &mut state).await;
            }
            if is_late || looks % LOOKS_PER_BEAT == 1 {
                if let Ok(false) = self.ledger.holds(&self.claims).await {
                    self.signal.tell(Signal::Stop(Stop::Superseded));
                    return;
                }
                let heartbeat = Heartbeat {
                    at: self.ledger.now(),
                    beat: looks,
                    driver: self.process.clone(),
                    state,
                    figures: self.counters.figures(),
                };
                let _ = self.ledger.beat(&self.id, &heartbeat).await;
            }
        }
    }

    fn until_next_look(&self) -> Duration {
        let now = Instant::now();
        let deadlines = self.deadlines.iter().flatten();
        deadlines
            .map(|(deadline, _)| deadline.saturating_duration_since(now))
            .filter(|left| !left.is_zero())
            .fold(CONTROL_INTERVAL, Duration::min)
    }

    async fn obey(&self, controls: &[Control], state: &mut JobState) {
        if controls.contains(&Control::Cancel) {
            self.signal.tell(Signal::Stop(Stop::Cancelled));
            return;
        }
        let (wanted, signal, event) = match controls.last() {
            Some(Control::Pause) => (JobState::Paused, Signal::Pause, "paused"),
            _ => (JobState::Running, Signal::Run, "continued"),
        };
        if *state != wanted {
            *state = wanted;
            self.signal.tell(signal);
            let figures = self.counters.figures();
            let _ = self
                .ledger
                .event(&self.id, &self.process, event, "", Some(wanted), figures)
                .await;
        }
    }
}
