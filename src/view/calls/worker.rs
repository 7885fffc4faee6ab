//! One partition of calls: which rows need one, evaluating them, and what becomes of those that fail.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, UInt32Array, new_null_array,
};
use datafusion::arrow::compute::{concat, interleave, take, take_record_batch};
use datafusion::arrow::datatypes::{DataType, SchemaRef, UInt64Type};
use datafusion::common::Result as DataFusionResult;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::{EmptyRelation, LogicalPlan};
use datafusion::optimizer::common_subexpr_eliminate::CommonSubexprEliminate;
use datafusion::optimizer::{Optimizer, OptimizerContext};
use datafusion::physical_expr::PhysicalExpr;
use futures::StreamExt;

use super::{CallLayout, Calls, Value, value_name};
use crate::function::metered;
use crate::job::counters::Count;
use crate::job::driver::stop_error;
use crate::job::record::RowError;
use crate::job::signal::{Signal, Stop};
use crate::storage::keys::RowEncoder;
use crate::view::checkpoint::{Place, Results, StagedReader};
use crate::view::failed::OnError;
use crate::view::relation::project;
use crate::{Error, ErrorKind, Result};

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
    /// The first row that is left.
    next: usize,
}

/// Layers of expressions, each over what the one before gives.
type Layers = Vec<(Vec<Arc<dyn PhysicalExpr>>, Vec<String>)>;

/// One partition.
pub(super) struct Worker {
    input: SendableRecordBatchStream,
    calls: Arc<Calls>,
    layout: Arc<CallLayout>,
    schema: SchemaRef,
    encoder: RowEncoder,
    /// Expressions that are evaluated together, by the places of their columns.
    compiled: HashMap<Vec<usize>, Arc<Layers>>,
    reader: StagedReader,
    rows: Option<Taken>,
}

impl Worker {
    /// Calls for the rows of `input`, and gives columns of `schema`.
    pub(super) fn new(
        input: SendableRecordBatchStream,
        calls: Arc<Calls>,
        layout: Arc<CallLayout>,
        schema: SchemaRef,
    ) -> Result<Self> {
        let encoder = RowEncoder::new(calls.keys.iter().map(|(data_type, _)| data_type))?
            .ok_or_else(|| Error::internal("the key of a view can't be compared"))?;
        Ok(Self {
            input,
            calls,
            layout,
            schema,
            encoder,
            compiled: HashMap::new(),
            reader: StagedReader::default(),
            rows: None,
        })
    }

    /// The next rows, with all columns.
    pub(super) async fn next(&mut self) -> Result<Option<RecordBatch>> {
        let mut taken = loop {
            match self.rows.take() {
                Some(taken) if taken.next < taken.batch.num_rows() => break taken,
                _ => match self.input.next().await {
                    None => return Ok(None),
                    Some(batch) => self.rows = Some(self.look_at(batch?)?),
                },
            }
        };
        // Only calls take time: rows without one come along.
        let most = self.calls.pace.rows();
        let (start, mut end, mut calls) = (taken.next, taken.next, 0);
        while end < taken.batch.num_rows() {
            calls += usize::from(taken.from.iter().any(|from| from[end] == From::Call));
            if calls > most {
                break;
            }
            end += 1;
        }
        taken.next = end;
        self.obey().await?;
        let batch = self.compute(&taken, start..end).await;
        self.rows = Some(taken);
        batch.map(Some)
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
        Ok(Taken {
            batch,
            from,
            next: 0,
        })
    }

    /// Hears what the job is told; before it waits or ends, what is computed is written down.
    async fn obey(&mut self) -> Result<()> {
        let signal = &self.calls.signal;
        if signal.now() == Signal::Run {
            return Ok(());
        }
        if signal.now() != Signal::Stop(Stop::Superseded) {
            self.calls.checkpoints.keep().await?;
        }
        match signal.proceed().await {
            None => Ok(()),
            Some(stop) => Err(stop_error(stop, &self.calls.job)),
        }
    }

    /// All columns of some rows.
    async fn compute(
        &mut self,
        taken: &Taken,
        rows: std::ops::Range<usize>,
    ) -> Result<RecordBatch> {
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
                let known = self.reader.values(&calls.staged, &places).await?;
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
        let (started, mut called, mut is_due) = (Instant::now(), 0, false);
        for (group, chosen) in groups {
            let began = Instant::now();
            called += chosen.len();
            let chosen = UInt32Array::from(chosen);
            let inputs = self.inputs(&taken.batch, &chosen)?;
            let keys = self.keys_of(&taken.batch, &chosen)?;
            let evaluated = self.evaluate(&group, &inputs, &keys).await?;
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
            is_due |= calls.checkpoints.add(results, began.elapsed());
            for (place, values) in group.iter().zip(evaluated.values) {
                let chosen = chosen.values().iter().enumerate();
                let rows = chosen.map(|(at, row)| (*row as usize - rows.start, at));
                columns[*place].put(values, rows);
            }
        }
        calls.pace.learn(called, started.elapsed());
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

    /// What the expressions read, of some rows.
    fn inputs(&self, batch: &RecordBatch, rows: &UInt32Array) -> Result<RecordBatch> {
        let inputs = batch.project(&self.layout.inputs)?;
        let inputs = take_record_batch(&inputs, rows)?;
        let schema = Arc::clone(self.layout.input_schema.inner());
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

    /// The expressions of some columns, so that what they have in common is evaluated once.
    fn compile(&mut self, columns: &[usize]) -> Result<Arc<Layers>> {
        if let Some(layers) = self.compiled.get(columns) {
            return Ok(Arc::clone(layers));
        }
        let layout = &self.layout;
        let input = LogicalPlan::EmptyRelation(EmptyRelation {
            produce_one_row: false,
            schema: Arc::clone(&layout.input_schema),
        });
        let values = columns.iter();
        let values = values.map(|c| layout.expressions[*c].clone().alias(value_name(*c)));
        let plan = project(input, values.collect())?;
        let rule = CommonSubexprEliminate::new();
        let plan = Optimizer::with_rules(vec![Arc::new(rule)]).optimize(
            plan,
            &OptimizerContext::new(),
            |_, _| {},
        )?;
        let mut layers: Layers = Vec::new();
        let mut node = &plan;
        while let LogicalPlan::Projection(layer) = node {
            let expressions = layer.expr.iter().map(|expression| {
                let schema = layer.input.schema();
                let state = &layout.state;
                let expression = state.create_physical_expr(expression.clone(), schema)?;
                metered(expression, self.calls.counters.meter())
            });
            let expressions = expressions.collect::<DataFusionResult<Vec<_>>>()?;
            let names = layer.schema.fields().iter().map(|f| f.name().clone());
            layers.push((expressions, names.collect()));
            node = &layer.input;
        }
        layers.reverse();
        let layers = Arc::new(layers);
        self.compiled.insert(columns.to_vec(), Arc::clone(&layers));
        Ok(layers)
    }

    /// Evaluates some columns for some rows. Rows that fail end it, or are left out, as the refresh was asked.
    async fn evaluate(
        &mut self,
        columns: &[usize],
        inputs: &RecordBatch,
        keys: &[ArrayRef],
    ) -> Result<Evaluated> {
        let layers = self.compile(columns)?;
        let rows = inputs.num_rows();
        let error = match run(&layers, inputs) {
            Ok(values) => {
                return Ok(Evaluated {
                    values,
                    good: (0..rows as u32).collect(),
                });
            }
            Err(error) => error,
        };
        let mut failures: Vec<RowError> = Vec::new();
        let (mut parts, mut good) = (Vec::new(), Vec::new());
        // Parts that are left, the first of them last.
        let mut left = vec![(0..rows, Some(error))];
        while let Some((part, known)) = left.pop() {
            let error = match known {
                Some(error) => error,
                None => match run(&layers, &inputs.slice(part.start, part.len())) {
                    Ok(values) => {
                        good.extend(part.start as u32..part.end as u32);
                        parts.push(values);
                        continue;
                    }
                    Err(error) => error,
                },
            };
            if part.len() > 1 {
                let middle = part.start + part.len() / 2;
                left.push((middle..part.end, None));
                left.push((part.start..middle, None));
                continue;
            }
            let row = part.start;
            let (values, failed) = match columns {
                // It is known which one fails: that need not be paid for again.
                [column] => {
                    let data_type = &self.calls.columns[*column].data_type;
                    let failed = vec![(*column, Error::from(error))];
                    (vec![new_null_array(data_type, 1)], failed)
                }
                _ => self.one_row(columns, &inputs.slice(row, 1))?,
            };
            for (column, error) in &failed {
                let failure = self.failure(*column, keys, row, error);
                self.calls.counters.add(Count::RowsFailed, 1);
                if self.calls.on_error == OnError::Fail {
                    // The error itself matters more than its record.
                    let record = std::slice::from_ref(&failure);
                    let _ = self.calls.ledger.failed_rows(&self.calls.job, record).await;
                    return Err(self.explain(*column, keys, row, error));
                }
                failures.push(failure);
                let key: Vec<ArrayRef> = keys.iter().map(|key| key.slice(row, 1)).collect();
                self.note_failed(*column, &key);
            }
            if failed.is_empty() {
                // It failed only together with others, or by chance.
                good.push(row as u32);
            }
            parts.push(values);
        }
        self.calls
            .ledger
            .failed_rows(&self.calls.job, &failures)
            .await?;
        let values = (0..columns.len()).map(|place| {
            let parts: Vec<&dyn Array> = parts.iter().map(|part| part[place].as_ref()).collect();
            concat(&parts)
        });
        Ok(Evaluated {
            values: values.collect::<Result<_, _>>()?,
            good,
        })
    }

    /// The columns of one row, each by itself; NULL where it fails, with the error.
    fn one_row(&mut self, columns: &[usize], inputs: &RecordBatch) -> Result<OneRow> {
        let (mut values, mut failed) = (Vec::with_capacity(columns.len()), Vec::new());
        for column in columns {
            let layers = self.compile(&[*column])?;
            match run(&layers, inputs) {
                Ok(value) => values.extend(value),
                Err(error) => {
                    let data_type = &self.calls.columns[*column].data_type;
                    values.push(new_null_array(data_type, 1));
                    failed.push((*column, Error::from(error)));
                }
            }
        }
        Ok((values, failed))
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

/// The values of a row, and the columns that failed.
type OneRow = (Vec<ArrayRef>, Vec<(usize, Error)>);

fn in_words(origin: &[(u64, String)]) -> String {
    let rows = origin.iter();
    let rows = rows.map(|(id, table)| format!("row id {id} of '{table}'"));
    let rows = rows.collect::<Vec<_>>().join(", ");
    match rows.is_empty() {
        true => rows,
        false => format!("{rows}: "),
    }
}

/// Values of some rows.
struct Evaluated {
    /// By column; NULL where a row failed.
    values: Vec<ArrayRef>,
    /// The rows of which no column failed.
    good: Vec<u32>,
}

fn run(layers: &Layers, inputs: &RecordBatch) -> DataFusionResult<Vec<ArrayRef>> {
    let mut batch = inputs.clone();
    for (expressions, names) in layers {
        let mut columns = Vec::with_capacity(names.len());
        for (expression, name) in expressions.iter().zip(names) {
            let value = expression.evaluate(&batch)?;
            columns.push((name, value.into_array(batch.num_rows())?, true));
        }
        batch = RecordBatch::try_from_iter_with_nullable(columns)?;
    }
    Ok(batch.columns().to_vec())
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
