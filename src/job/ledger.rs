//! The ledger of jobs: files below `_headwater/`, written once each, whole or not at all.
//!
//! ```text
//! active-jobs/<id>            there as long as the job has not ended
//! jobs/<id>/job.json          what was asked
//! jobs/<id>/events/<n>.json   what happened, in order; the last state in them is the job's
//! jobs/<id>/heartbeat.json    the one file that is replaced, every few seconds
//! jobs/<id>/control/<n>-pause | <n>-resume | <n>-cancel
//! jobs/<id>/errors/<n>.json   rows that failed
//! claims/<object>/<n>         who works on an object: see `claim`
//! job-history/…               summaries of jobs that ended: see `history`
//! staged/<table>/…            results that are not committed yet: see `column::staged`
//! ```
//!
//! Only creating a file that is not there is relied upon, which every store can do. Nothing here
//! makes a commit safe: that is the commit's own business. The ledger saves work, and says what is
//! going on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::clock::Clock;
use super::counters::Figures;
use super::driven::is_driven;
use super::process::Process;
use super::record::{Control, Ended, Event, Heartbeat, JobRecord, JobState, JobSummary, RowError};
use crate::database::Database;
use crate::storage::Root;
use crate::{Error, ErrorKind, Result};

/// How old a heartbeat is when its driver is taken for dead.
pub const DEAD_AFTER_MILLIS: i64 = 30_000;

/// How long a job is watched whose heartbeat is old: somewhat longer than from one beat to the next.
const WATCH: Duration = Duration::from_millis(6500);
const WATCH_INTERVAL: Duration = Duration::from_millis(250);

/// How often one of several writers tries to get the next number before it gives up.
const NUMBERING_ATTEMPTS: usize = 100;

pub(super) const ACTIVE: &str = "active-jobs";

/// Plans run in the process that drives a job.
const LOCAL: &str = "local";
/// Plans run on a cluster.
const CLUSTER: &str = "ballista";

/// The jobs of a database.
#[derive(Debug, Clone)]
pub struct Ledger {
    database: Arc<Database>,
    clock: Arc<dyn Clock>,
    served: bool,
    /// Where the plans of its jobs run.
    engine: &'static str,
}

/// What the ledger knows of one job.
#[derive(Debug, Clone)]
pub struct JobFiles {
    /// What was asked.
    pub record: JobRecord,
    /// What happened, in order.
    pub events: Vec<Event>,
    /// The last sign of life.
    pub heartbeat: Option<Heartbeat>,
}

impl Ledger {
    /// The ledger of `database`; times are told by `clock`.
    pub fn new(database: Arc<Database>, clock: Arc<dyn Clock>) -> Self {
        Self {
            database,
            clock,
            served: false,
            engine: LOCAL,
        }
    }

    /// The same, for a server: jobs that begin here are marked as its own.
    pub fn served(self) -> Self {
        Self {
            served: true,
            ..self
        }
    }

    /// The same for jobs whose plans run on a cluster.
    pub fn on_cluster(self) -> Self {
        Self {
            engine: CLUSTER,
            ..self
        }
    }

    /// Where the plans of its jobs run.
    pub fn engine(&self) -> &'static str {
        self.engine
    }

    /// The ledger of the same database for another session on it.
    pub(crate) fn for_session(&self, database: Arc<Database>) -> Self {
        Self {
            database,
            ..self.clone()
        }
    }

    /// Whether jobs that begin here are marked as a server's.
    pub fn is_served(&self) -> bool {
        self.served
    }

    /// What tells the time of day.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// The database.
    pub fn database(&self) -> &Arc<Database> {
        &self.database
    }

    pub(super) fn root(&self) -> &Root {
        self.database.root()
    }

    /// Milliseconds since 1970, UTC.
    pub fn now(&self) -> i64 {
        self.clock.now_millis()
    }

    /// A name for a new job: the time, and what tells it from others of the same moment.
    pub fn new_id(&self) -> String {
        let (date, time) = utc(self.now());
        let random = uuid::Uuid::new_v4().simple().to_string();
        format!("{date}-{time}-{}", &random[..8])
    }

    /// Writes down a new job.
    pub async fn create(&self, record: &JobRecord) -> Result<()> {
        let root = self.root();
        // First, so that no job is there that a listing does not find.
        root.create_own(&format!("{ACTIVE}/{}", record.id), "")
            .await?;
        let made = root
            .create_own(&file(&record.id, "job.json"), json(record)?)
            .await;
        match made {
            Ok(true) => Ok(()),
            Err(error) => {
                // The error itself matters more.
                let _ = self.retire(&record.id).await;
                Err(error)
            }
            Ok(false) => Err(Error::internal(format!("job '{}' is there", record.id))),
        }
    }

    /// Takes a job off the list of those that have not ended.
    pub async fn retire(&self, id: &str) -> Result<()> {
        self.root().remove_own(&format!("{ACTIVE}/{id}")).await
    }

    /// Names of the jobs that have not ended, oldest first.
    pub async fn active(&self) -> Result<Vec<String>> {
        self.root().list_own(ACTIVE).await
    }

    /// Reads what is known of a job; `None` if there is no such job.
    pub async fn read(&self, id: &str) -> Result<Option<JobFiles>> {
        if id.is_empty() || id.contains(['/', '\\']) {
            return Ok(None);
        }
        let Some(record) = self.read_json(&file(id, "job.json")).await? else {
            return Ok(None);
        };
        Ok(Some(JobFiles {
            record,
            events: self.events(id).await?,
            heartbeat: self.heartbeat(id).await?,
        }))
    }

    /// What happened to a job, in order.
    pub async fn events(&self, id: &str) -> Result<Vec<Event>> {
        self.read_folder(&file(id, "events")).await
    }

    /// Rows that failed in a job, in order.
    pub async fn errors(&self, id: &str) -> Result<Vec<RowError>> {
        let batches: Vec<Vec<RowError>> = self.read_folder(&file(id, "errors")).await?;
        Ok(batches.into_iter().flatten().collect())
    }

    /// The last sign of life of a job.
    pub async fn heartbeat(&self, id: &str) -> Result<Option<Heartbeat>> {
        self.read_json(&file(id, "heartbeat.json")).await
    }

    /// Writes a sign of life.
    pub async fn beat(&self, id: &str, heartbeat: &Heartbeat) -> Result<()> {
        let path = file(id, "heartbeat.json");
        self.root().replace_own(&path, json(heartbeat)?).await
    }

    /// Writes down what happened.
    pub async fn event(
        &self,
        id: &str,
        driver: &Process,
        event: &str,
        message: impl Into<String>,
        state: Option<JobState>,
        figures: Figures,
    ) -> Result<Event> {
        let event = Event {
            at: self.now(),
            event: event.to_string(),
            message: message.into(),
            state,
            figures,
            driver: driver.clone(),
        };
        self.append(&file(id, "events"), &event).await?;
        Ok(event)
    }

    /// Writes down rows that failed.
    pub async fn failed_rows(&self, id: &str, rows: &[RowError]) -> Result<()> {
        match rows.is_empty() {
            true => Ok(()),
            false => self.append(&file(id, "errors"), &rows).await,
        }
    }

    /// Asks something of a job.
    pub async fn control(&self, id: &str, control: Control) -> Result<()> {
        let folder = file(id, "control");
        for _ in 0..NUMBERING_ATTEMPTS {
            let next = next_number(&self.root().list_own(&folder).await?);
            let path = format!("{folder}/{next:08}-{}", control.name());
            if self.root().create_own(&path, "").await? {
                return Ok(());
            }
        }
        Err(contention(&folder))
    }

    /// What was asked of a job, in order.
    pub async fn controls(&self, id: &str) -> Result<Vec<Control>> {
        let names = self.root().list_own(&file(id, "control")).await?;
        let controls = names
            .iter()
            .filter_map(|name| name.split_once('-'))
            .filter_map(|(_, control)| control.parse().ok());
        Ok(controls.collect())
    }

    /// Removes what was asked of a job, so that a new driver is not told what was meant for the one before.
    pub async fn clear_controls(&self, id: &str) -> Result<()> {
        self.root().remove_own_folder(&file(id, "control")).await
    }

    /// Ends a job whose driver is gone.
    pub async fn cancel_interrupted(&self, job: &JobSummary) -> Result<()> {
        let process = Process::current();
        let message = format!("cancelled by {process}; its own process was gone");
        let ending = Ended {
            event: "cancelled",
            message,
            state: JobState::Cancelled,
        };
        self.end(&job.record, &process, ending, job.figures).await
    }

    /// Removes all that is known of a job.
    pub async fn remove(&self, id: &str) -> Result<()> {
        self.root().remove_own_folder(&format!("jobs/{id}")).await?;
        self.retire(id).await
    }

    /// Whether a job is at work, as far as can be told.
    pub fn is_alive(&self, files: &JobFiles) -> bool {
        let state = last_state(&files.events);
        if state.is_final() {
            return false;
        }
        let (at, driver) = match &files.heartbeat {
            Some(heartbeat) => (heartbeat.at, &heartbeat.driver),
            None => (files.record.submitted_at, &files.record.submitted_by),
        };
        match driver.is_this() {
            true => is_driven(&files.record.id),
            false => !driver.is_gone() && self.is_recent(at),
        }
    }

    /// Whether a sign of life is not old. One from the future is: a clock was set back, or is another
    /// machine's, and nobody may seem alive for ever because of that.
    pub(crate) fn is_recent(&self, at: i64) -> bool {
        (self.now() - at).abs() < DEAD_AFTER_MILLIS
    }

    /// Watches a job whose last sign of life is old for as long as it takes to see a live driver beat:
    /// clocks differ.
    pub(super) async fn beats(&self, id: &str) -> Result<bool> {
        let before = self.heartbeat(id).await?;
        let started = Instant::now();
        while started.elapsed() < WATCH {
            tokio::time::sleep(WATCH_INTERVAL).await;
            if self.heartbeat(id).await? != before {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// All that a listing says of a job.
    pub fn summary(&self, files: &JobFiles) -> JobSummary {
        let state = last_state(&files.events);
        let alive = self.is_alive(files);
        let last = files.events.last();
        let mut figures = last.map(|event| event.figures).unwrap_or_default();
        let mut driver = last.map_or(&files.record.submitted_by, |event| &event.driver);
        if let Some(heartbeat) = &files.heartbeat
            && !state.is_final()
        {
            if last.is_none_or(|event| heartbeat.at >= event.at) {
                figures = heartbeat.figures;
            }
            driver = &heartbeat.driver;
        }
        JobSummary {
            record: files.record.clone(),
            state: match state.is_final() || alive {
                true => state,
                false => JobState::Interrupted,
            },
            finished_at: last.filter(|_| state.is_final()).map(|event| event.at),
            driver: driver.clone(),
            figures,
            message: last.map(|event| event.message.clone()).unwrap_or_default(),
        }
    }

    /// The oldest version of `table` that a job which has not ended began at, but for the job `besides`.
    pub async fn first_version_read(
        &self,
        table: &str,
        besides: Option<&str>,
    ) -> Result<Option<u64>> {
        let mut first: Option<u64> = None;
        for id in self.active().await? {
            if besides == Some(id.as_str()) {
                continue;
            }
            let record: Option<JobRecord> = self.read_json(&file(&id, "job.json")).await?;
            if let Some(record) = record.filter(|record| record.table == table) {
                first = Some(first.map_or(record.version, |first| first.min(record.version)));
            }
        }
        Ok(first)
    }

    pub(super) async fn read_json<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>> {
        let Some(bytes) = self.root().read_own(path).await? else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            Error::new(
                ErrorKind::Storage,
                format!("'_headwater/{path}' can't be read: {error}"),
            )
            .with_hint("it was damaged, or another release wrote it")
            .with_source(error)
        })
    }

    /// Reads the files of a folder, in the order of their names.
    async fn read_folder<T: DeserializeOwned>(&self, folder: &str) -> Result<Vec<T>> {
        let mut all = Vec::new();
        for name in self.root().list_own(folder).await? {
            // One may have been removed meanwhile.
            all.extend(self.read_json(&format!("{folder}/{name}")).await?);
        }
        Ok(all)
    }

    /// Writes `value` as the next file of a folder.
    async fn append<T: Serialize>(&self, folder: &str, value: &T) -> Result<()> {
        let content = json(value)?;
        for _ in 0..NUMBERING_ATTEMPTS {
            let next = next_number(&self.root().list_own(folder).await?);
            let path = format!("{folder}/{next:08}.json");
            if self.root().create_own(&path, content.clone()).await? {
                return Ok(());
            }
        }
        Err(contention(folder))
    }
}

/// The state that the events of a job leave it in. It begins at once.
pub fn last_state(events: &[Event]) -> JobState {
    events
        .iter()
        .rev()
        .find_map(|event| event.state)
        .unwrap_or(JobState::Running)
}

pub(super) fn json<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value)
        .map_err(|error| Error::internal(format!("a record can't be written: {error}")))
}

/// The number after the largest that a name of `names` begins with.
pub(super) fn next_number(names: &[String]) -> u64 {
    let numbers = names.iter().filter_map(|name| {
        let digits = name.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse::<u64>().ok()
    });
    numbers.max().map_or(1, |largest| largest.saturating_add(1))
}

fn file(id: &str, name: &str) -> String {
    format!("jobs/{id}/{name}")
}

fn contention(folder: &str) -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!("too many processes write to '_headwater/{folder}' at once"),
    )
    .with_hint("run the statement again")
}

/// Date and time of day, to the millisecond, as digits.
fn utc(millis: i64) -> (String, String) {
    use datafusion::arrow::temporal_conversions::timestamp_ms_to_datetime;
    match timestamp_ms_to_datetime(millis) {
        Some(time) => {
            let text = time.format("%Y%m%d %H%M%S%3f").to_string();
            let (date, time) = text.split_once(' ').unwrap_or((&text, ""));
            (date.to_string(), time.to_string())
        }
        None => ("00000000".to_string(), "000000000".to_string()),
    }
}
