//! Results of users' functions that are not committed: what a refresh that ends early leaves to the next.
//!
//! A checkpoint holds values of some columns of a view by the key of their rows, and says of which definition they are and
//! which versions of the sources they were computed from. It is good for every later refresh for which that is
//! still the same, whatever statement asked for it. Checkpoints lie in `_headwater/staged/<view>/`, beside those of
//! computed columns of the view (`column::staged`), and as there the record (`.json`) is written after the file that
//! it names. A refresh that has committed removes those of its view.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use datafusion::arrow::compute::{concat, interleave};
use datafusion::arrow::datatypes::{DataType, UInt64Type};
use serde::{Deserialize, Serialize};

use super::paid::{PaidColumn, changed_since};
use super::source::SourceVersions;
use super::state::SourceState;
use crate::column::refresh::CHECKPOINT_INTERVAL;
use crate::database::Database;
use crate::delta::VersionStamp;
use crate::job::counters::{Count, Counters, Phase};
use crate::job::staged::{
    discard_all, from_ipc, new_name, records, remove_records, write_file, write_record,
};
use crate::storage::RowSet;
use crate::storage::keys::RowEncoder;
use crate::storage::scan::slice_bytes;
use crate::{Error, ErrorKind, Result};

/// Bytes of results that wait for a checkpoint.
const BUFFER_BYTES: usize = 8 << 20;
/// What took less is not worth a file.
const CHEAP: Duration = Duration::from_millis(100);
/// What a stop throws away rather than writes down.
const NEGLIGIBLE: Duration = Duration::from_millis(20);

/// What one file holds. Written once, after the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    /// The job that computed it.
    job: String,
    /// Digest of the view's definition.
    definition: String,
    /// The sources, in the order of the query, at the versions that were read.
    sources: Vec<SourceState>,
    /// The columns of the view whose values are in the file, behind the key.
    values: Vec<String>,
    /// The file: Arrow IPC below `_headwater/`.
    file: String,
}

/// Values that were computed together.
#[derive(Debug)]
pub(super) struct Results {
    /// Places of the columns among those that call functions.
    pub(super) columns: Vec<usize>,
    /// The keys of the rows.
    pub(super) keys: Vec<ArrayRef>,
    /// The values, by column.
    pub(super) values: Vec<ArrayRef>,
}

/// Where the results of a refresh are kept until they are committed. Shared by all that compute.
///
/// Invariant: what is computed and neither committed nor in a file took each worker less than the interval.
#[derive(Debug)]
pub(super) struct Checkpoints {
    database: Arc<Database>,
    view: String,
    job: String,
    definition: String,
    sources: Vec<SourceState>,
    columns: Vec<String>,
    interval: Duration,
    /// How long one evaluation takes.
    evaluation: Duration,
    counters: Arc<Counters>,
    buffer: Mutex<Buffer>,
}

#[derive(Debug, Default)]
struct Buffer {
    results: Vec<Results>,
    bytes: usize,
    /// Time that these took, of all workers together.
    spent: Duration,
    /// When the first of them was there.
    since: Option<Instant>,
    /// Time that results took which were let go, because they were many and cheap.
    let_go: Duration,
}

impl Buffer {
    fn take(&mut self) -> Vec<Results> {
        self.bytes = 0;
        self.spent = Duration::ZERO;
        self.since = None;
        std::mem::take(&mut self.results)
    }
}

impl Checkpoints {
    /// For values of `columns` of `view`, computed by `job` from `sources` by the definition with this digest.
    pub(super) fn new(
        database: Arc<Database>,
        view: &str,
        job: &str,
        (definition, sources): (&str, &[SourceState]),
        columns: &[PaidColumn],
        (interval, evaluation, counters): (Option<Duration>, Duration, Arc<Counters>),
    ) -> Self {
        let interval = interval.unwrap_or(CHECKPOINT_INTERVAL);
        Self {
            database,
            view: view.to_string(),
            job: job.to_string(),
            definition: definition.to_string(),
            sources: sources.to_vec(),
            columns: columns.iter().map(|column| column.name.clone()).collect(),
            interval,
            evaluation: evaluation.min(interval / 4),
            counters,
            buffer: Mutex::default(),
        }
    }

    /// How long one evaluation should take, so that no more computing is lost than may be.
    pub(super) fn evaluation(&self) -> Duration {
        self.evaluation
    }

    fn buffer(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps results that took `time`. Whether it is time to write them down.
    pub(super) fn add(&self, results: Results, time: Duration) -> bool {
        let mut buffer = self.buffer();
        let arrays = results.keys.iter().chain(&results.values);
        buffer.bytes += arrays.map(slice_bytes).sum::<usize>();
        buffer.spent += time;
        buffer.results.push(results);
        let since = *buffer.since.get_or_insert_with(|| {
            let now = Instant::now();
            now.checked_sub(time).unwrap_or(now)
        });
        if buffer.bytes > BUFFER_BYTES {
            let time = buffer.let_go + buffer.spent;
            if time >= self.interval / 2 {
                return true;
            }
            buffer.take();
            buffer.let_go = time;
            return false;
        }
        let is_late = since.elapsed() + self.evaluation >= self.interval;
        is_late && buffer.spent >= CHEAP.min(self.interval / 2)
    }

    /// Writes down what is kept if computing it again would take its time: for the end of a refresh that has not
    /// committed.
    pub(super) async fn keep(&self) -> Result<()> {
        if self.buffer().spent < NEGLIGIBLE {
            return Ok(());
        }
        self.write().await
    }

    /// Writes down what is kept.
    pub(super) async fn write(&self) -> Result<()> {
        let started = Instant::now();
        let mut by_columns: HashMap<Vec<usize>, Vec<Results>> = HashMap::new();
        for results in self.buffer().take() {
            let columns = results.columns.clone();
            by_columns.entry(columns).or_default().push(results);
        }
        for (columns, results) in by_columns {
            self.write_file(&columns, &results).await?;
        }
        self.counters.spent_since(Phase::Checkpointing, started);
        Ok(())
    }

    async fn write_file(&self, columns: &[usize], results: &[Results]) -> Result<()> {
        let put_together = |get: fn(&Results) -> &Vec<ArrayRef>| -> Result<Vec<ArrayRef>> {
            let width = results.first().map_or(0, |first| get(first).len());
            let arrays = (0..width).map(|place| {
                let parts: Vec<&dyn Array> = results
                    .iter()
                    .map(|part| get(part)[place].as_ref())
                    .collect();
                Ok(concat(&parts)?)
            });
            arrays.collect()
        };
        let keys = put_together(|part| &part.keys)?;
        let values = put_together(|part| &part.values)?;
        let keys = keys.into_iter().enumerate();
        let keys = keys.map(|(place, key)| (format!("_key_{}", place + 1), key, true));
        let values = values.into_iter().enumerate();
        let values = values.map(|(place, value)| (format!("value_{}", place + 1), value, true));
        let batch = RecordBatch::try_from_iter_with_nullable(keys.chain(values))?;
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let (database, view, name) = (&self.database, &self.view, new_name(&self.job));
        let file = write_file(database, view, &name, &batch).await?;
        let record = Record {
            job: self.job.clone(),
            definition: self.definition.clone(),
            sources: self.sources.clone(),
            values: columns.iter().map(|c| self.columns[*c].clone()).collect(),
            file,
        };
        write_record(database, view, &name, &record).await?;
        self.counters.add(Count::Checkpoints, 1);
        Ok(())
    }
}

/// Removes what is staged of a view, and all that `jobs` left, which are at work no more or have committed what it holds.
pub(super) async fn discard(database: &Database, view: &str, jobs: &[&str]) -> Result<()> {
    let all = records::<Record>(database, view).await?.into_iter();
    let all = all.map(|(path, record)| (path, Some(record.file)));
    remove_records(database, all.collect::<Vec<_>>()).await?;
    // A file without a record, of one that was killed between the two.
    for job in jobs {
        discard_all(database, view, job).await?;
    }
    Ok(())
}

/// Where a value is: file, column in it, row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    file: usize,
    column: usize,
    row: usize,
}

/// What earlier runs have computed of a view and is still right.
#[derive(Debug, Default)]
pub(super) struct Staged {
    database: Option<Arc<Database>>,
    files: Vec<String>,
    /// By column: where the value of a row is, by the bytes of its key.
    places: Vec<HashMap<Box<[u8]>, Place>>,
    /// Whether anything is staged at all, right or not.
    pub(super) is_there: bool,
}

impl Staged {
    /// Finds what is staged of the view `view`, whose rows have keys of the types `keys`. `only` a job's own results, if it
    /// computes rows again whatever they have.
    pub(super) async fn find(
        database: &Arc<Database>,
        view: &str,
        (definition, now): (&str, &[SourceState]),
        (keys, columns): (&[DataType], &[PaidColumn]),
        versions: &[SourceVersions],
        only: Option<&str>,
    ) -> Result<Self> {
        let mut found = Self {
            database: Some(Arc::clone(database)),
            files: Vec::new(),
            places: vec![HashMap::new(); columns.len()],
            is_there: false,
        };
        let Some(encoder) = RowEncoder::new(keys)? else {
            return Ok(found);
        };
        let mut changed = Changed::default();
        for (_, record) in records::<Record>(database, view).await? {
            found.is_there = true;
            let is_same = record.definition == definition && record.sources.len() == now.len();
            if !is_same || only.is_some_and(|job| record.job != job) {
                continue;
            }
            let mut right = Vec::with_capacity(columns.len());
            for (place, column) in columns.iter().enumerate() {
                let at = record.values.iter().position(|name| *name == column.name);
                let changed = match at {
                    Some(_) => changed.since(place, column, &record, now, versions).await?,
                    None => None,
                };
                right.push(at.zip(changed));
            }
            if right.iter().any(Option::is_some) {
                found.add(&encoder, keys, columns, &record, &right).await?;
            }
        }
        Ok(found)
    }

    /// Adds the rows of a file. `right` says by column where it is among the values, and which rows of the sources have
    /// changed since.
    async fn add(
        &mut self,
        encoder: &RowEncoder,
        keys: &[DataType],
        columns: &[PaidColumn],
        record: &Record,
        right: &[Option<(usize, ChangedRows)>],
    ) -> Result<()> {
        let Some(bytes) = self.read(&record.file).await? else {
            return Ok(());
        };
        let batch = from_ipc(&bytes, None)?;
        let types = batch.columns().iter().map(|column| column.data_type());
        if !types.take(keys.len()).eq(keys) {
            return Ok(());
        }
        let file = self.files.len();
        self.files.push(record.file.clone());
        let rows = encoder.encode(&batch.columns()[..keys.len()])?;
        for ((column, right), places) in columns.iter().zip(right).zip(&mut self.places) {
            let Some((at, changed)) = right else { continue };
            let at = keys.len() + at;
            if batch.columns().get(at).map(|array| array.data_type()) != Some(&column.data_type) {
                continue;
            }
            for (row, key) in rows.iter().enumerate() {
                let is_changed = changed.iter().any(|(key, changed)| {
                    let ids = batch.column(*key).as_primitive::<UInt64Type>();
                    ids.is_valid(row) && changed.contains(ids.value(row))
                });
                if !is_changed {
                    let place = Place {
                        file,
                        column: at,
                        row,
                    };
                    places.insert(key.as_ref().into(), place);
                }
            }
        }
        Ok(())
    }

    async fn read(&self, file: &str) -> Result<Option<bytes::Bytes>> {
        match &self.database {
            Some(database) => database.root().read_own(file).await,
            None => Ok(None),
        }
    }

    /// Where the value of the column at place `column` is for the row with this key.
    pub(super) fn place(&self, column: usize, key: &[u8]) -> Option<Place> {
        self.places.get(column)?.get(key).copied()
    }
}

/// Files that one worker keeps open at once: rows follow each other in a file mostly.
const OPEN_FILES: usize = 4;

/// Reads staged values, for one worker.
#[derive(Debug, Default)]
pub(super) struct StagedReader {
    /// The last ones used.
    open: Vec<(usize, RecordBatch)>,
}

impl StagedReader {
    /// The values at `places`, of which there is one at least.
    pub(super) async fn values(&mut self, staged: &Staged, places: &[Place]) -> Result<ArrayRef> {
        let mut arrays: Vec<((usize, usize), ArrayRef)> = Vec::new();
        let mut taken = Vec::with_capacity(places.len());
        for place in places {
            let wanted = (place.file, place.column);
            let known = arrays.iter().position(|(known, _)| *known == wanted);
            let at = match known {
                Some(at) => at,
                None => {
                    let batch = self.open(staged, place.file).await?;
                    arrays.push((wanted, Arc::clone(batch.column(place.column))));
                    arrays.len() - 1
                }
            };
            taken.push((at, place.row));
        }
        let arrays: Vec<&dyn Array> = arrays.iter().map(|(_, array)| array.as_ref()).collect();
        Ok(interleave(&arrays, &taken)?)
    }

    async fn open(&mut self, staged: &Staged, file: usize) -> Result<RecordBatch> {
        if let Some((_, batch)) = self.open.iter().find(|(open, _)| *open == file) {
            return Ok(batch.clone());
        }
        let path = &staged.files[file];
        let Some(bytes) = staged.read(path).await? else {
            return Err(Error::new(
                ErrorKind::Storage,
                format!("'_headwater/{path}' is gone while it is read"),
            )
            .with_hint("run the statement again: what it held is computed anew"));
        };
        let batch = from_ipc(&bytes, None)?;
        if self.open.len() == OPEN_FILES {
            self.open.remove(0);
        }
        self.open.push((file, batch.clone()));
        Ok(batch)
    }
}

/// Rows of sources that changed, each set with the place of its ids in the key.
type ChangedRows = Vec<(usize, Arc<RowSet>)>;

/// What changed since the versions that records were computed from: many come from the same.
#[derive(Default)]
struct Changed {
    known: HashMap<(usize, usize, u64, String), Option<Arc<RowSet>>>,
}

impl Changed {
    /// The rows of the sources that the column at `place` reads which changed in what it reads, each set with the place of
    /// its ids in the key; `None` if that can't be told.
    async fn since(
        &mut self,
        place: usize,
        column: &PaidColumn,
        record: &Record,
        now: &[SourceState],
        versions: &[SourceVersions],
    ) -> Result<Option<ChangedRows>> {
        let mut changed = Vec::with_capacity(column.reads.len());
        for read in &column.reads {
            let (Some(then), Some(now), Some(versions)) = (
                record.sources.get(read.source),
                now.get(read.source),
                versions.get(read.source),
            ) else {
                return Ok(None);
            };
            let identity = |state: &SourceState, name: &String| {
                let fields = state.columns.iter();
                let mut fields = fields.filter(|field| field.name == *name);
                fields
                    .next()
                    .map(|field| (field.id, field.data_type.clone()))
            };
            let mut columns = read.columns.iter();
            let is_same = columns.all(|name| {
                let then = identity(then, name);
                then.is_some() && then == identity(now, name)
            });
            if then.table != now.table || !is_same {
                return Ok(None);
            }
            let stamp: &VersionStamp = &then.version;
            let known = (place, read.source, stamp.version, stamp.transaction.clone());
            if !self.known.contains_key(&known) {
                let rows = changed_since(&versions.new, stamp, &read.columns).await?;
                self.known.insert(known.clone(), rows.map(Arc::new));
            }
            let Some(rows) = &self.known[&known] else {
                return Ok(None);
            };
            changed.push((read.key, Arc::clone(rows)));
        }
        Ok(Some(changed))
    }
}
