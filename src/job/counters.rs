//! What a job has done so far, counted while it runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::function::Meter;

/// The figures of a job at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// Rows of its sources that the refresh of a view reads, as far as they are known.
    pub source_rows: u64,
    /// Rows of these that it has read.
    pub source_rows_read: u64,
    /// Rows to compute, of all columns together, as far as they are planned.
    pub rows_planned: u64,
    /// Rows that were computed.
    pub rows_computed: u64,
    /// Rows whose values an earlier run had computed.
    pub rows_reused: u64,
    /// Rows that were left alone: fresh, or not asked for.
    pub rows_skipped: u64,
    /// Rows on which the expression failed.
    pub rows_failed: u64,
    /// Rows that lack a value or have a stale one after it.
    pub rows_pending: u64,
    /// Fragments to write, as far as they are planned.
    pub fragments_planned: u64,
    /// Fragments that are written.
    pub fragments_written: u64,
    /// Fragments that are committed.
    pub fragments_committed: u64,
    /// Bytes of the files written.
    pub bytes_written: u64,
    /// Commits.
    pub commits: u64,
    /// What was planned and tried again, because others had committed or executors were lost.
    pub retries: u64,
    /// Files of results written before their fragment was whole.
    pub checkpoints: u64,
    /// Seconds of waiting for inputs, of all workers together.
    pub reading_seconds: f64,
    /// Seconds of evaluating expressions.
    pub computing_seconds: f64,
    /// Seconds of writing checkpoints.
    pub checkpointing_seconds: f64,
    /// Seconds of encoding and writing column files.
    pub writing_seconds: f64,
    /// Seconds of committing.
    pub committing_seconds: f64,
}

impl Figures {
    /// Rows that there are to do: those of the columns, or those of the sources that a view reads.
    pub fn planned(&self) -> u64 {
        match self.are_of_view() {
            true => self.source_rows,
            false => self.rows_planned,
        }
    }

    /// Rows of these that are done.
    pub fn done(&self) -> u64 {
        match self.are_of_view() {
            true => self.source_rows_read,
            false => self.rows_computed + self.rows_reused,
        }
    }

    /// How much of it is done, from 0 to 1; `None` as long as nothing is planned.
    pub fn fraction(&self) -> Option<f64> {
        let planned = self.planned();
        (planned > 0).then(|| (self.done() as f64 / planned as f64).min(1.0))
    }

    /// Only columns are planned by rows.
    pub fn are_of_view(&self) -> bool {
        self.rows_planned == 0
    }
}

/// Where the time of a job goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for inputs.
    Reading,
    /// Evaluating expressions.
    Computing,
    /// Writing checkpoints.
    Checkpointing,
    /// Encoding and writing column files.
    Writing,
    /// Committing.
    Committing,
}

/// Counts of rows, fragments and the like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// [`Figures::source_rows`].
    SourceRows,
    /// [`Figures::source_rows_read`].
    SourceRowsRead,
    /// [`Figures::rows_planned`].
    RowsPlanned,
    /// [`Figures::rows_computed`].
    RowsComputed,
    /// [`Figures::rows_reused`].
    RowsReused,
    /// [`Figures::rows_skipped`].
    RowsSkipped,
    /// [`Figures::rows_failed`].
    RowsFailed,
    /// [`Figures::rows_pending`].
    RowsPending,
    /// [`Figures::fragments_planned`].
    FragmentsPlanned,
    /// [`Figures::fragments_written`].
    FragmentsWritten,
    /// [`Figures::fragments_committed`].
    FragmentsCommitted,
    /// [`Figures::bytes_written`].
    BytesWritten,
    /// [`Figures::commits`].
    Commits,
    /// [`Figures::retries`].
    Retries,
    /// [`Figures::checkpoints`].
    Checkpoints,
}

const COUNTS: usize = Count::Checkpoints as usize + 1;
const PHASES: usize = Phase::Committing as usize + 1;

/// What was counted by a moment, in whatever process.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    counts: Vec<u64>,
    nanoseconds: Vec<u64>,
    /// Calls of users' functions, and their nanoseconds, by function.
    calls: BTreeMap<String, (u64, u64)>,
}

/// Counts while a job runs; shared by all that work for it.
#[derive(Debug, Default)]
pub struct Counters {
    counts: [AtomicU64; COUNTS],
    nanoseconds: [AtomicU64; PHASES],
    meter: Arc<Meter>,
}

impl Counters {
    /// What calls of users' functions take.
    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// Adds to a count.
    pub fn add(&self, count: Count, more: u64) {
        self.counts[count as usize].fetch_add(more, Ordering::Relaxed);
    }

    /// Sets a count.
    pub fn set(&self, count: Count, value: u64) {
        self.counts[count as usize].store(value, Ordering::Relaxed);
    }

    /// A count as it is now.
    pub fn get(&self, count: Count) -> u64 {
        self.counts[count as usize].load(Ordering::Relaxed)
    }

    /// Adds to the time of a phase.
    pub fn spent(&self, phase: Phase, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds[phase as usize].fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// Adds the time since `started` to a phase.
    pub fn spent_since(&self, phase: Phase, started: Instant) {
        self.spent(phase, started.elapsed());
    }

    /// What was counted by now.
    pub fn reading(&self) -> Reading {
        let read = |all: &[AtomicU64]| all.iter().map(|one| one.load(Ordering::Relaxed)).collect();
        Reading {
            counts: read(&self.counts),
            nanoseconds: read(&self.nanoseconds),
            calls: self.meter.reading(),
        }
    }

    /// Adds what another process counted between two moments. The second may be the earlier one: then it is taken back.
    pub fn absorb(&self, before: &Reading, now: &Reading) {
        let add = |all: &[AtomicU64], before: &[u64], now: &[u64]| {
            for (place, one) in all.iter().enumerate() {
                let at = |reading: &[u64]| reading.get(place).copied().unwrap_or(0);
                one.fetch_add(at(now).wrapping_sub(at(before)), Ordering::Relaxed);
            }
        };
        add(&self.counts, &before.counts, &now.counts);
        add(&self.nanoseconds, &before.nanoseconds, &now.nanoseconds);
        self.meter.absorb(&before.calls, &now.calls);
    }

    /// The figures as they are now.
    pub fn figures(&self) -> Figures {
        let seconds = |phase: Phase| {
            let nanoseconds = self.nanoseconds[phase as usize].load(Ordering::Relaxed);
            // To the millisecond: more is noise.
            (Duration::from_nanos(nanoseconds).as_secs_f64() * 1e3).round() / 1e3
        };
        Figures {
            source_rows: self.get(Count::SourceRows),
            source_rows_read: self.get(Count::SourceRowsRead),
            rows_planned: self.get(Count::RowsPlanned),
            rows_computed: self.get(Count::RowsComputed),
            rows_reused: self.get(Count::RowsReused),
            rows_skipped: self.get(Count::RowsSkipped),
            rows_failed: self.get(Count::RowsFailed),
            rows_pending: self.get(Count::RowsPending),
            fragments_planned: self.get(Count::FragmentsPlanned),
            fragments_written: self.get(Count::FragmentsWritten),
            fragments_committed: self.get(Count::FragmentsCommitted),
            bytes_written: self.get(Count::BytesWritten),
            commits: self.get(Count::Commits),
            retries: self.get(Count::Retries),
            checkpoints: self.get(Count::Checkpoints),
            reading_seconds: seconds(Phase::Reading),
            computing_seconds: seconds(Phase::Computing),
            checkpointing_seconds: seconds(Phase::Checkpointing),
            writing_seconds: seconds(Phase::Writing),
            committing_seconds: seconds(Phase::Committing),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_what_was_counted() {
        let counters = Counters::default();
        counters.add(Count::RowsComputed, 3);
        counters.add(Count::RowsComputed, 4);
        counters.set(Count::RowsPending, 5);
        counters.spent(Phase::Committing, Duration::from_micros(1_500));
        let figures = counters.figures();
        assert_eq!((figures.rows_computed, figures.rows_pending), (7, 5));
        assert_eq!(figures.committing_seconds, 0.002);
        assert_eq!(figures.checkpoints, 0);
    }

    #[test]
    fn what_others_count_is_added_as_it_grows() {
        let (here, there) = (Counters::default(), Counters::default());
        here.add(Count::RowsComputed, 10);
        let mut before = Reading::default();
        for _ in 0..3 {
            there.add(Count::RowsComputed, 2);
            let now = there.reading();
            here.absorb(&before, &now);
            before = now;
        }
        assert_eq!(here.get(Count::RowsComputed), 16);
        here.absorb(&before, &Reading::default());
        assert_eq!(here.get(Count::RowsComputed), 10);
    }

    #[test]
    fn figures_of_another_release_can_be_read() {
        let figures: Figures = serde_json::from_str(r#"{"rows_computed": 2, "new": 1}"#).unwrap();
        assert_eq!(figures.rows_computed, 2);
    }
}
