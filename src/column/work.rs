//! What the nodes of a pass share with the job that they work for.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use datafusion::arrow::array::{Array, BooleanArray, RecordBatch, UInt64Array};
use datafusion::arrow::compute::{concat_batches, filter_record_batch};
use lance::Dataset;

use super::staged::{Staged, Staging};
use crate::database::Database;
use crate::job::counters::{Count, Counters, Phase};
use crate::job::driver::stop_error;
use crate::job::ledger::Ledger;
use crate::job::signal::{Signal, Signaller, Stop};
use crate::storage::RowSet;
use crate::storage::fragments::ids_of_addresses;
use crate::{Error, Result};

/// How long one evaluation should take: between two of them a job hears what it is told, and may
/// write a checkpoint.
pub const EVALUATION: Duration = Duration::from_millis(250);
/// Bytes of results that wait for a checkpoint.
const BUFFER_BYTES: usize = 8 << 20;
/// Computing a fragment is cheap if it takes less.
const CHEAP: Duration = Duration::from_millis(100);
/// What a stop throws away rather than writes down.
const NEGLIGIBLE: Duration = Duration::from_millis(20);

/// A job, as those see it that work for it.
pub struct Work {
    /// The name of the job.
    pub job: String,
    /// What it is told.
    pub signal: Signaller,
    /// What is counted.
    pub counters: Arc<Counters>,
    /// How much computing may be lost.
    pub checkpoint_interval: Duration,
    /// Where the job is written down.
    pub ledger: Ledger,
    /// The database.
    pub database: Arc<Database>,
    /// Where results are staged.
    pub staging: Staging,
    /// What earlier runs have computed.
    pub staged: Arc<Staged>,
    /// Whether what is taken from there counts as reused: later it is of this job itself.
    pub counts_reused: bool,
    /// How many rows to evaluate at once.
    pub pace: Pace,
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work")
            .field("job", &self.job)
            .finish_non_exhaustive()
    }
}

/// How many rows to evaluate at once: learned from how long it takes, unless it is given.
#[derive(Debug)]
pub struct Pace {
    rows: AtomicUsize,
    /// How long an evaluation should take; `None` if its rows are given.
    target: Option<Duration>,
}

impl Pace {
    /// Whole batches.
    pub fn fixed() -> Self {
        Self {
            rows: AtomicUsize::new(usize::MAX),
            target: None,
        }
    }

    /// As many as take a quarter of a second, or of `checkpoint_interval` if that is short. Begins with
    /// one row: nobody knows how long it takes.
    pub fn adaptive(checkpoint_interval: Duration) -> Self {
        Self::of(EVALUATION.min(checkpoint_interval / 4))
    }

    /// As many as take so long.
    pub fn of(target: Duration) -> Self {
        Self {
            rows: AtomicUsize::new(1),
            target: Some(target),
        }
    }

    /// Rows to evaluate next.
    pub fn rows(&self) -> usize {
        self.rows.load(Ordering::Relaxed)
    }

    /// Learns that `rows` rows took `time`.
    pub fn learn(&self, rows: usize, time: Duration) {
        /// Grows by steps, so that one lucky row does not make a batch that takes hours.
        const GROWTH: usize = 4;
        let Some(target) = self.target.filter(|_| rows > 0) else {
            return;
        };
        let each = time.as_secs_f64() / rows as f64;
        let fitting = target.as_secs_f64() / each.max(1e-9);
        let most = rows.saturating_mul(GROWTH);
        let next = (fitting as usize).clamp(1, most);
        // Other workers learn too; the last word counts.
        self.rows.store(next, Ordering::Relaxed);
    }
}

/// Keeps what a worker has computed of one fragment until it is worth a checkpoint.
///
/// Invariant: what is computed and neither committed nor in a checkpoint took less time than the
/// interval. A fragment that takes less than half of it is never written twice.
pub(super) struct Checkpointer {
    work: Arc<Work>,
    table: String,
    dataset: Arc<Dataset>,
    buffer: Vec<Buffered>,
    bytes: usize,
    /// Time that the buffered results took.
    time: Duration,
    /// Time that results took which were let go, because they were many and cheap.
    let_go: Duration,
}

struct Buffered {
    addresses: UInt64Array,
    /// The columns of the pass, without addresses.
    values: RecordBatch,
    /// Which rows were computed, by column; `None` for all.
    computed: Vec<Option<BooleanArray>>,
}

impl Checkpointer {
    /// For one fragment of `table`.
    pub(super) fn new(work: Arc<Work>, table: String, dataset: Arc<Dataset>) -> Self {
        Self {
            work,
            table,
            dataset,
            buffer: Vec::new(),
            bytes: 0,
            time: Duration::ZERO,
            let_go: Duration::ZERO,
        }
    }

    /// Adds results that took `time`. `addresses` are those of the rows of `values`, and `computed`
    /// says which of these were computed, by column.
    pub(super) async fn add(
        &mut self,
        fragment: u64,
        addresses: UInt64Array,
        values: RecordBatch,
        computed: Vec<Option<BooleanArray>>,
        time: Duration,
    ) -> Result<()> {
        if self.is_cheap(fragment, values.num_rows(), time) {
            self.let_go += time;
            return Ok(());
        }
        self.bytes += values.get_array_memory_size() + addresses.get_array_memory_size();
        self.time += time;
        self.buffer.push(Buffered {
            addresses,
            values,
            computed,
        });
        let interval = self.work.checkpoint_interval;
        if self.time + self.let_go + EVALUATION.min(interval / 4) >= interval {
            return self.write(fragment).await;
        }
        if self.bytes > BUFFER_BYTES {
            if self.let_go + self.time < interval / 2 {
                self.let_go += self.time;
                self.clear();
            } else {
                return self.write(fragment).await;
            }
        }
        Ok(())
    }

    /// Whether a fragment of which `rows` rows take `time` is through in no time: then nothing is kept of it
    /// until it is whole.
    fn is_cheap(&self, fragment: u64, rows: usize, time: Duration) -> bool {
        let all = self.dataset.get_fragment(fragment as usize);
        let all = all.and_then(|file| file.metadata().physical_rows);
        let most = CHEAP.min(self.work.checkpoint_interval / 2);
        let whole = time.as_secs_f64() * all.unwrap_or(rows) as f64 / rows.max(1) as f64;
        whole < most.as_secs_f64() && self.let_go + time < most && self.buffer.is_empty()
    }

    /// Hears what the job is told; before it waits or ends, what is computed is written down.
    ///
    /// # Errors
    ///
    /// If the job is told to stop.
    pub(super) async fn obey(&mut self, fragment: u64) -> Result<()> {
        if self.work.signal.now() == Signal::Run {
            return Ok(());
        }
        // Whoever has taken over does not look for it any more.
        let is_superseded = self.work.signal.now() == Signal::Stop(Stop::Superseded);
        if self.time > NEGLIGIBLE && !is_superseded {
            self.write(fragment).await?;
        }
        let work = Arc::clone(&self.work);
        match work.signal.proceed().await {
            None => Ok(()),
            Some(stop) => Err(stop_error(stop, &work.job)),
        }
    }

    fn clear(&mut self) {
        self.buffer.clear();
        self.bytes = 0;
        self.time = Duration::ZERO;
    }

    async fn write(&mut self, fragment: u64) -> Result<()> {
        let started = Instant::now();
        let Some(first) = self.buffer.first() else {
            return Ok(());
        };
        let schema = first.values.schema();
        let mut rows = vec![RowSet::default(); schema.fields().len()];
        let mut ids: Vec<u64> = Vec::new();
        let mut batches = Vec::with_capacity(self.buffer.len());
        for part in &self.buffer {
            let part_ids =
                ids_of_addresses(&self.table, &self.dataset, part.addresses.values()).await?;
            let kept = any(&part.computed, part_ids.len());
            for (rows, computed) in rows.iter_mut().zip(&part.computed) {
                match computed {
                    None => rows.extend(part_ids.iter().copied()),
                    Some(computed) => {
                        let marked = part_ids.iter().zip(computed);
                        rows.extend(marked.filter(|(_, m)| *m == Some(true)).map(|(id, _)| *id));
                    }
                }
            }
            let marked = part_ids.iter().zip(&kept);
            ids.extend(marked.filter(|(_, m)| *m == Some(true)).map(|(id, _)| *id));
            batches.push(filter_record_batch(&part.values, &kept)?);
        }
        let batch = concat_batches(&schema, &batches)?;
        if batch.num_rows() > 0 {
            let ids = UInt64Array::from(ids);
            let staging = &self.work.staging;
            staging.checkpoint(fragment, ids, &batch, rows).await?;
            self.work.counters.add(Count::Checkpoints, 1);
        }
        self.clear();
        // What was let go before is as safe as it was: the interval begins anew without it.
        self.work
            .counters
            .spent_since(Phase::Checkpointing, started);
        Ok(())
    }
}

/// Rows that are marked in any of `masks`, of which `None` marks all.
fn any(masks: &[Option<BooleanArray>], rows: usize) -> BooleanArray {
    let all = || BooleanArray::from(vec![true; rows]);
    let mut any: Option<BooleanArray> = None;
    for mask in masks {
        let Some(mask) = mask else { return all() };
        any = Some(match any {
            None => mask.clone(),
            Some(other) => other
                .iter()
                .zip(mask)
                .map(|(a, b)| Some(a == Some(true) || b == Some(true)))
                .collect(),
        });
    }
    any.unwrap_or_else(all)
}

/// A stop as the error of one worker: the driver knows better why.
pub fn is_stop(error: &Error) -> bool {
    error.kind() == crate::ErrorKind::Cancelled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_finds_what_takes_a_quarter_of_a_second() {
        let pace = Pace::adaptive(Duration::from_secs(10));
        assert_eq!(pace.rows(), 1);
        // A cheap expression: as fast as steps allow.
        pace.learn(1, Duration::from_micros(10));
        assert_eq!(pace.rows(), 4);
        pace.learn(4, Duration::from_micros(40));
        assert_eq!(pace.rows(), 16);
        // A dear one: a second each.
        pace.learn(1024, Duration::from_secs(1024));
        assert_eq!(pace.rows(), 1);
        pace.learn(16, Duration::from_millis(160));
        assert_eq!(pace.rows(), 25);
        let fixed = Pace::fixed();
        fixed.learn(64, Duration::from_secs(64));
        assert_eq!(fixed.rows(), usize::MAX);
    }
}
