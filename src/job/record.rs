//! What the ledger says of a job: who wanted what, and what became of it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::counters::Figures;
use super::process::Process;

/// What a job was asked to do. Written once, when it begins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Its name; names sort by the time at which jobs began.
    pub id: String,
    /// The statement, in one form whatever was typed.
    pub statement: String,
    /// The table.
    pub table: String,
    /// Its columns that are refreshed.
    pub columns: Vec<String>,
    /// `full`, `incremental` or `filtered`.
    #[serde(default)]
    pub mode: String,
    /// The reason code of a full refresh; empty otherwise.
    #[serde(default)]
    pub reason: String,
    /// What no other job may work on meanwhile, as claims name it.
    pub objects: Vec<String>,
    /// The request, as the room that runs it reads it.
    pub request: Value,
    /// The version of the table that was the newest when it began.
    pub version: u64,
    /// When it was submitted, in milliseconds since 1970, UTC.
    pub submitted_at: i64,
    /// By whom.
    pub submitted_by: Process,
    /// Where its plans run.
    pub engine: String,
    /// Whether a server took the statement. A server goes on with such a job by itself when it was interrupted.
    #[serde(default)]
    pub served: bool,
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// At work.
    Running,
    /// Told to wait.
    Paused,
    /// All that it was asked to do is done, or what its limits allow.
    Done,
    /// An error ended it; what was finished is kept.
    Failed,
    /// Someone ended it; what was finished is kept.
    Cancelled,
    /// Its process is gone. Never written: it is what a reader finds.
    Interrupted,
}

impl JobState {
    /// Whether nothing more comes.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }

    /// The name that users see.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Something that happened to a job. Written once each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When, in milliseconds since 1970, UTC.
    pub at: i64,
    /// What, in a word: submitted, started, committed, …
    pub event: String,
    /// What, in a sentence.
    pub message: String,
    /// Where the job stands from now on, if that changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<JobState>,
    /// The figures at that moment.
    #[serde(default)]
    pub figures: Figures,
    /// The process that drove the job then.
    pub driver: Process,
}

/// A sign of life. Written over and over by the driver of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// When, in milliseconds since 1970, UTC, by the driver's clock.
    pub at: i64,
    /// Counts up, so that a reader can see it beat whatever the clocks say.
    pub beat: u64,
    /// Who drives the job.
    pub driver: Process,
    /// Where the job stands.
    pub state: JobState,
    /// The figures at that moment.
    pub figures: Figures,
}

/// A row, or a batch of them, for which an expression failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RowError {
    /// When, in milliseconds since 1970, UTC.
    pub at: i64,
    /// The table.
    pub table: String,
    /// The column.
    pub column: String,
    /// The row, if it is known.
    pub row_id: Option<u64>,
    /// The expression.
    pub expression: String,
    /// What it said.
    pub message: String,
}

/// All that a listing says of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobSummary {
    /// What it was asked.
    pub record: JobRecord,
    /// Where it stands.
    pub state: JobState,
    /// When it ended, in milliseconds since 1970, UTC.
    pub finished_at: Option<i64>,
    /// The process that drives it, or did last.
    pub driver: Process,
    /// The newest figures.
    pub figures: Figures,
    /// What the last event said: the error of a failed job.
    pub message: String,
}

/// How a job came to its end, for its last event.
#[derive(Debug, Clone)]
pub struct Ended {
    /// `done`, `failed` or `cancelled`.
    pub event: &'static str,
    /// The error of a failed job, or what was done.
    pub message: String,
    /// A final state.
    pub state: JobState,
}

/// What may be asked of a job from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Wait.
    Pause,
    /// Go on.
    Resume,
    /// End; keep what is finished.
    Cancel,
}

impl Control {
    /// Its name in the ledger.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Cancel => "cancel",
        }
    }
}

impl FromStr for Control {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        [Self::Pause, Self::Resume, Self::Cancel]
            .into_iter()
            .find(|control| control.name() == name)
            .ok_or(())
    }
}
