//! One partition of calls: which rows need one, and what becomes of those that fail.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, UInt32Array, new_null_array,
};
use datafusion::arrow::compute::{interleave, take, take_record_batch};
use datafusion::arrow::datatypes::{DataType, SchemaRef, UInt64Type};
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;
use tokio::sync::{Mutex, OwnedSemaphorePermit};
use tokio::time::timeout;

use super::evaluate::{Evaluated, Failure};
use super::{CallLayout, Calls, Value};
use crate::job::counters::Count;
use crate::job::driver::stop_error;
use crate::job::record::RowError;
use crate::job::signal::{Signal, Stop};
use crate::storage::keys::RowEncoder;
use crate::view::checkpoint::{Place, Results, StagedReader};
use crate::view::failed::OnError;
use crate::{Error, ErrorKind, Result};

/// How often it is looked whether there are more executors.
const GROWTH: Duration = Duration::from_secs(1);

/// Where the value of a row comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Call,
    Kept,
    Staged(Place),
}

/// A batch of the input on its way.
struct Taken {
    batch: RecordBatch,
    /// By column and row.
    from: Vec<Vec<From>>,
}

/// Rows of a batch that are computed together.
pub(super) struct Piece {
    taken: Arc<Taken>,
    rows: Range<usize>,
    /// If calls are made for it: held until they are.
    permit: Option<OwnedSemaphorePermit>,
}

/// Takes rows of one partition a few at a time.
pub(super) struct Pieces {
    input: SendableRecordBatchStream,
    rows: Arc<Rows>,
    taken: Option<Arc<Taken>>,
    /// The first row of it that is left.
    next: usize,
}

/// What computes the rows of one partition.
pub(super) struct Rows {
    calls: Arc<Calls>,
    layout: Arc<CallLayout>,
    schema: SchemaRef,
    encoder: RowEncoder,
    reader: Mutex<StagedReader>,
}

impl Pieces {
    /// The rows of `input`, for `rows`.
    pub(super) fn new(input: SendableRecordBatchStream, rows: Arc<Rows>) -> Self {
        Self {
            input,
            rows,
            taken: None,
            next: 0,
        }
    }

    /// The next rows, as many as are soon computed. Hears what the job is told before.
    pub(super) async fn next(&mut self) -> Result<Option<Piece>> {
        let taken = loop {
            match &self.taken {
                Some(taken) if self.next < taken.batch.num_rows() => break Arc::clone(taken),
                _ => match self.input.next().await {
                    None => return Ok(None),
                    Some(batch) => {
                        self.taken = Some(Arc::new(self.rows.look_at(batch?)?));
                        self.next = 0;
                    }
                },
            }
        };
        let needs_call = |row: usize| taken.from.iter().any(|from| from[row] == From::Call);
        let left = self.next..taken.batch.num_rows();
        let permit = match left.clone().any(needs_call) {
            true => Some(self.rows.permit().await?),
            false => {
                self.rows.obey().await?;
                None
            }
        };
        // By now it is known how long calls take. Only they do: rows without one come along.
        let most = self.rows.calls.pace.rows();
        let mut calls = 0;
        let rows = left.clone().take_while(|row| {
            calls += usize::from(needs_call(*row));
            calls <= most
        });
        let end = left.start + rows.count();
        self.next = end;
        Ok(Some(Piece {
            taken,
            rows: left.start..end,
            permit,
        }))
    }
}

impl Rows {
    /// Calls that give columns of `schema`.
    pub(super) fn new(
        calls: Arc<Calls>,
        layout: Arc<CallLayout>,
        schema: SchemaRef,
    ) -> Result<Self> {
        let encoder = RowEncoder::new(calls.keys.iter().map(|(data_type, _)| data_type))?
            .ok_or_else(|| Error::internal("the key of a view can't be compared"))?;
        Ok(Self {
            calls,
            layout,
            schema,
            encoder,
            reader: Mutex::default(),
        })
    }

    /// Finds out where the values of a batch come from.
    fn look_at(&self, batch: RecordBatch) -> Result<Taken> {
        let keys = self.layout.keys.iter();
        let keys: Vec<ArrayRef> = keys.map(|at| Arc::clone(batch.column(*at))).collect();
        let keys = self.encoder.encode(&keys)?;
        let mut from = Vec::with_capacity(self.calls.columns.len());
        for (column, kept) in self.layout.kept.iter().enumerate() {
            let kept = kept.map(|(at, _)| batch.column(at).as_boolean());
            let failed = &self.calls.failed_before[column];
            let mut still_failed = Vec::new();
            let of_row = |row: usize| {
                let key = keys.row(row);
                let has_failed = failed.contains(key.as_ref());
                let is_kept = kept.is_some_and(|kept| kept.is_valid(row) && kept.value(row));
                if is_kept && !(self.calls.failed_only && has_failed) {
                    if has_failed {
                        still_failed.push(row as u32);
                    }
                    return From::Kept;
                }
                match self.calls.staged.place(column, key.as_ref()) {
                    Some(place) => From::Staged(place),
                    None => From::Call,
                }
            };
            from.push((0..batch.num_rows()).map(of_row).collect());
            self.note_failed(
                column,
                &self.keys_of(&batch, &UInt32Array::from(still_failed))?,
            );
        }
        Ok(Taken { batch, from })
    }

    /// Hears what the job is told; before it waits or ends, what is computed is written down.
    async fn obey(&self) -> Result<()> {
        let signal = &self.calls.signal;
        if signal.now() == Signal::Run {
            return Ok(());
        }
        if signal.now() != Signal::Stop(Stop::Superseded) {
            self.calls.checkpoints.keep().await?;
        }
        match signal.proceed().await {
            None => Ok(()),
            Some(stop) => {
                // The error ends all partitions; calls that others have under way are paid for.
                self.calls.in_flight.settled().await;
                Err(stop_error(stop, &self.calls.job))
            }
        }
    }

    /// Waits until more calls may be made at once, also because there are more executors. A job may be told something
    /// meanwhile.
    async fn permit(&self) -> Result<OwnedSemaphorePermit> {
        let in_flight = &self.calls.in_flight;
        loop {
            let permit = match &self.calls.remote {
                None => in_flight.permit().await?,
                Some(remote) => {
                    in_flight.grow(remote.slots().await);
                    match timeout(GROWTH, in_flight.permit()).await {
                        Ok(permit) => permit?,
                        Err(_) => continue,
                    }
                }
            };
            if self.calls.signal.now() == Signal::Run {
                return Ok(permit);
            }
            drop(permit);
            self.obey().await?;
        }
    }

    /// All columns of some rows.
    pub(super) async fn compute(&self, piece: Piece) -> Result<RecordBatch> {
        let Piece {
            taken,
            rows,
            permit,
        } = piece;
        let count = rows.len();
        let calls = Arc::clone(&self.calls);
        let mut columns: Vec<Assembled> = Vec::with_capacity(calls.columns.len());
        let mut groups: BTreeMap<Vec<usize>, Vec<u32>> = BTreeMap::new();
        for (place, column) in calls.columns.iter().enumerate() {
            let mut values = Assembled::new(&column.data_type, count);
            if let Some((_, old)) = self.layout.kept[place] {
                let old = taken.batch.column(old).slice(rows.start, count);
                let is_kept = |row: &usize| taken.from[place][rows.start + row] == From::Kept;
                let kept: Vec<usize> = (0..count).filter(is_kept).collect();
                values.put(old, kept.into_iter().map(|row| (row, row)));
            }
            let staged: Vec<(usize, Place)> = (0..count)
                .filter_map(|row| match taken.from[place][rows.start + row] {
                    From::Staged(at) => Some((row, at)),
                    From::Call | From::Kept => None,
                })
                .collect();
            if !staged.is_empty() {
                let places: Vec<Place> = staged.iter().map(|(_, at)| *at).collect();
                let known = self
                    .reader
                    .lock()
                    .await
                    .values(&calls.staged, &places)
                    .await?;
                let staged = staged.iter().enumerate();
                values.put(known, staged.map(|(at, (row, _))| (*row, at)));
            }
            columns.push(values);
        }
        let mut reused = 0;
        for row in rows.clone() {
            let from = taken.from.iter().enumerate();
            let called: Vec<usize> = from
                .filter(|(_, from)| from[row] == From::Call)
                .map(|(place, _)| place)
                .collect();
            let is_staged = |from: &Vec<From>| matches!(from[row], From::Staged(_));
            match called.is_empty() {
                true => reused += u64::from(taken.from.iter().any(is_staged)),
                false => groups.entry(called).or_default().push(row as u32),
            }
        }
        calls.counters.add(Count::RowsReused, reused);
        let (mut spent, mut called, mut is_due) = (Duration::ZERO, 0, false);
        for (group, chosen) in groups {
            called += chosen.len();
            let chosen = UInt32Array::from(chosen);
            let inputs = self.inputs(&taken.batch, &chosen)?;
            let keys = self.keys_of(&taken.batch, &chosen)?;
            let (evaluated, time) = self.evaluate(&group, &inputs).await?;
            spent += time;
            self.note(&group, &keys, &evaluated.failed).await?;
            let good = UInt32Array::from(evaluated.good);
            let pick = |arrays: &[ArrayRef]| -> Result<Vec<ArrayRef>> {
                let picked = arrays.iter().map(|array| take(array, &good, None));
                Ok(picked.collect::<Result<_, _>>()?)
            };
            let results = Results {
                columns: group.clone(),
                keys: pick(&keys)?,
                values: pick(&evaluated.values)?,
            };
            is_due |= calls.checkpoints.add(results, time);
            for (place, values) in group.iter().zip(evaluated.values) {
                let chosen = chosen.values().iter().enumerate();
                let rows = chosen.map(|(at, row)| (*row as usize - rows.start, at));
                columns[*place].put(values, rows);
            }
        }
        drop(permit);
        calls.pace.learn(called, spent);
        calls.counters.add(Count::RowsComputed, called as u64);
        if is_due {
            calls.checkpoints.write().await?;
        }
        let called: Vec<ArrayRef> = columns
            .into_iter()
            .map(Assembled::finish)
            .collect::<Result<_>>()?;
        let given = |at: &usize| taken.batch.column(*at).slice(rows.start, count);
        let values = self.layout.values.iter().map(|value| match value {
            Value::Given(at) => given(at),
            Value::Called(at) => Arc::clone(&called[*at]),
        });
        let all: Vec<ArrayRef> = values.chain(self.layout.keys.iter().map(given)).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        let schema = Arc::clone(&self.schema);
        Ok(RecordBatch::try_new_with_options(schema, all, &options)?)
    }

    /// Evaluates some columns for some rows, here or on a cluster, and says how long that took.
    async fn evaluate(
        &self,
        columns: &[usize],
        inputs: &RecordBatch,
    ) -> Result<(Evaluated, Duration)> {
        let evaluator = &self.layout.evaluator;
        let goes_on = self.calls.on_error == OnError::Skip;
        if let Some(remote) = &self.calls.remote {
            let calls = self.calls.as_ref();
            return remote
                .evaluate(calls, evaluator, columns, inputs, goes_on)
                .await;
        }
        let began = Instant::now();
        let evaluated = evaluator.evaluate(columns, inputs, goes_on)?;
        Ok((evaluated, began.elapsed()))
    }

    /// What the expressions read, of some rows.
    fn inputs(&self, batch: &RecordBatch, rows: &UInt32Array) -> Result<RecordBatch> {
        let inputs = batch.project(&self.layout.inputs)?;
        let inputs = take_record_batch(&inputs, rows)?;
        let schema = Arc::clone(self.layout.evaluator.schema().inner());
        let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        let columns = inputs.columns().to_vec();
        Ok(RecordBatch::try_new_with_options(
            schema, columns, &options,
        )?)
    }

    fn keys_of(&self, batch: &RecordBatch, rows: &UInt32Array) -> Result<Vec<ArrayRef>> {
        let keys = self.layout.keys.iter();
        let keys = keys.map(|at| take(batch.column(*at), rows, None));
        Ok(keys.collect::<Result<_, _>>()?)
    }

    fn note_failed(&self, column: usize, keys: &[ArrayRef]) {
        let failed = self.calls.failed_now.lock();
        let mut failed = failed.unwrap_or_else(PoisonError::into_inner);
        failed[column].push(keys);
    }

    /// Counts and writes down what failed; the first of it ends the refresh, unless it was asked to go on.
    async fn note(&self, columns: &[usize], keys: &[ArrayRef], failed: &[Failure]) -> Result<()> {
        let calls = &self.calls;
        let mut failures: Vec<RowError> = Vec::with_capacity(failed.len());
        for Failure { place, row, error } in failed {
            let (column, row) = (columns[*place], *row as usize);
            let failure = self.failure(column, keys, row, error);
            calls.counters.add(Count::RowsFailed, 1);
            if calls.on_error == OnError::Fail {
                // The error itself matters more than its record.
                let record = std::slice::from_ref(&failure);
                let _ = calls.ledger.failed_rows(&calls.job, record).await;
                return Err(self.explain(column, keys, row, error));
            }
            failures.push(failure);
            let key: Vec<ArrayRef> = keys.iter().map(|key| key.slice(row, 1)).collect();
            self.note_failed(column, &key);
        }
        calls.ledger.failed_rows(&calls.job, &failures).await
    }

    /// The rows of the sources that a row comes from, in words.
    fn origin(&self, keys: &[ArrayRef], row: usize) -> Vec<(u64, String)> {
        let keys = keys.iter().zip(&self.calls.keys);
        let ids = keys.filter_map(|(ids, (_, table))| {
            let ids = ids.as_primitive_opt::<UInt64Type>()?;
            ids.is_valid(row)
                .then_some((ids.value(row), table.clone()?))
        });
        ids.collect()
    }

    fn failure(&self, column: usize, keys: &[ArrayRef], row: usize, error: &Error) -> RowError {
        let column = &self.calls.columns[column];
        RowError {
            at: self.calls.ledger.now(),
            table: self.calls.view.clone(),
            column: column.name.clone(),
            row_id: None,
            expression: column.text.clone(),
            message: format!("{}{}", in_words(&self.origin(keys, row)), error.message()),
        }
    }

    fn explain(&self, column: usize, keys: &[ArrayRef], row: usize, error: &Error) -> Error {
        let origin = self.origin(keys, row);
        let explained = Error::new(
            ErrorKind::Computation,
            format!(
                "column '{}' of materialized view '{}', {}{}",
                self.calls.columns[column].name,
                self.calls.view,
                in_words(&origin),
                error.message()
            ),
        );
        match origin.first() {
            Some((id, table)) => explained.with_hint(format!(
                "SELECT * FROM {table} WHERE _rowid = {id} shows the row; what was computed is kept"
            )),
            None => explained,
        }
    }
}

fn in_words(origin: &[(u64, String)]) -> String {
    let rows = origin.iter();
    let rows = rows.map(|(id, table)| format!("row id {id} of '{table}'"));
    let rows = rows.collect::<Vec<_>>().join(", ");
    match rows.is_empty() {
        true => rows,
        false => format!("{rows}: "),
    }
}

/// A column that is put together from several arrays.
struct Assembled {
    arrays: Vec<ArrayRef>,
    /// By row: the array, and the place in it. At first NULL.
    places: Vec<(usize, usize)>,
}

impl Assembled {
    fn new(data_type: &DataType, rows: usize) -> Self {
        Self {
            arrays: vec![new_null_array(data_type, 1)],
            places: vec![(0, 0); rows],
        }
    }

    /// Takes values of `array`: rows, and where the value of each is in it.
    fn put(&mut self, array: ArrayRef, rows: impl Iterator<Item = (usize, usize)>) {
        for (row, at) in rows {
            self.places[row] = (self.arrays.len(), at);
        }
        self.arrays.push(array);
    }

    fn finish(self) -> Result<ArrayRef> {
        let arrays: Vec<&dyn Array> = self.arrays.iter().map(AsRef::as_ref).collect();
        Ok(interleave(&arrays, &self.places)?)
    }
}
