//! The plan node that computes the values of columns, row by row.
//!
//! Its input gives the inputs of the expressions, the old values of the columns where some rows
//! keep them, and the address of each row; its output is the columns' values and the address.
//! An expression sees only the rows that are to be computed, so a row that keeps its value can't
//! make it fail, and a paid call is made for no other row.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, RecordBatch, StructArray, UInt64Array,
};
use datafusion::arrow::compute::kernels::zip::zip;
use datafusion::arrow::compute::{cast_with_options, filter_record_batch, interleave};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, UInt64Type};
use datafusion::common::Result as DataFusionResult;
use datafusion::common::cast::as_struct_array;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
};
use futures::{StreamExt, stream};
use lance::Dataset;

use super::assess::Rows;
use super::staged::FragmentValues;
use super::work::{Checkpointer, Work};
use crate::function::metered;
use crate::job::counters::{Count, Phase};
use crate::job::record::RowError;
use crate::storage::RowSet;
use crate::storage::fragments::id_at;
use crate::{Error, ErrorKind, Result};

/// The name of the column of row addresses.
pub const ROW_ADDRESS: &str = "_rowaddr";

/// One column to compute.
#[derive(Debug, Clone)]
pub struct ColumnValue {
    /// The column, as it is stored.
    pub field: FieldRef,
    /// Computes it from a batch of the input.
    pub expression: Arc<dyn PhysicalExpr>,
    /// Gives the value that the column has, if the scan shows something else.
    pub old_value: Option<Arc<dyn PhysicalExpr>>,
    /// The text of the expression; columns with the same text share one evaluation.
    pub text: String,
    /// The field of the expression's struct to take.
    pub struct_field: Option<String>,
    /// Addresses of the rows to compute; the others keep their values.
    pub rows: Rows,
}

/// Computes columns. Its partitions are those of its input.
#[derive(Debug)]
pub struct ColumnComputeExec {
    input: Arc<dyn ExecutionPlan>,
    table: String,
    dataset: Arc<Dataset>,
    columns: Arc<[ColumnValue]>,
    /// The job that it works for; `None` in a plan that is only shown.
    work: Option<Arc<Work>>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl ColumnComputeExec {
    /// The columns, which count for `work` what their calls of users' functions take.
    fn metered(&self, work: &Work) -> DataFusionResult<Arc<[ColumnValue]>> {
        let columns = self.columns.iter().map(|column| {
            let expression = Arc::clone(&column.expression);
            Ok(ColumnValue {
                expression: metered(expression, work.counters.meter())?,
                ..column.clone()
            })
        });
        columns.collect()
    }

    /// Computes `columns` of `table` from the batches of `input`, for a job if it is run.
    pub fn new(
        input: Arc<dyn ExecutionPlan>,
        table: String,
        dataset: Arc<Dataset>,
        columns: Arc<[ColumnValue]>,
        work: Option<Arc<Work>>,
    ) -> Self {
        let mut fields: Vec<FieldRef> = columns
            .iter()
            .map(|column| Arc::clone(&column.field))
            .collect();
        fields.push(Arc::new(Field::new(ROW_ADDRESS, DataType::UInt64, false)));
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::new(Schema::new(fields))),
            Partitioning::UnknownPartitioning(
                input.properties().output_partitioning().partition_count(),
            ),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self {
            input,
            table,
            dataset,
            columns,
            work,
            properties: Arc::new(properties),
            metrics: ExecutionPlanMetricsSet::new(),
        }
    }
}

impl DisplayAs for ColumnComputeExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ColumnComputeExec: ")?;
        for (i, column) in self.columns.iter().enumerate() {
            let comma = if i > 0 { ", " } else { "" };
            let field = match &column.struct_field {
                Some(field) => format!(".{field}"),
                None => String::new(),
            };
            let rows = match &column.rows {
                Rows::All => "all rows".to_string(),
                Rows::Some(rows) => format!("{} rows", rows.len()),
            };
            write!(
                f,
                "{comma}{}={}{field} [{rows}]",
                column.field.name(),
                column.text
            )?;
        }
        Ok(())
    }
}

impl ExecutionPlan for ColumnComputeExec {
    fn name(&self) -> &str {
        "ColumnComputeExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let input = children
            .pop()
            .ok_or_else(|| Error::internal("ColumnComputeExec has one child"))?;
        Ok(Arc::new(Self::new(
            input,
            self.table.clone(),
            Arc::clone(&self.dataset),
            Arc::clone(&self.columns),
            self.work.clone(),
        )))
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        // A partition is a fragment: its rows stay together and in order.
        vec![false]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> DataFusionResult<SendableRecordBatchStream> {
        let schema = self.schema();
        let columns = match &self.work {
            Some(work) => self.metered(work)?,
            None => Arc::clone(&self.columns),
        };
        let unit = Unit {
            input: self.input.execute(partition, context)?,
            computer: Computer {
                table: self.table.clone(),
                dataset: Arc::clone(&self.dataset),
                columns,
                schema: Arc::clone(&schema),
            },
            metrics: BaselineMetrics::new(&self.metrics, partition),
            checkpointer: self.work.clone().map(|work| {
                let (table, dataset) = (self.table.clone(), Arc::clone(&self.dataset));
                Checkpointer::new(work, table, dataset)
            }),
            work: self.work.clone(),
            staged: None,
            batch: None,
            next: 0,
        };
        let stream = stream::try_unfold(unit, |mut unit| async move {
            let batch = unit.next().await?;
            Ok(batch.map(|batch| (batch, unit)))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, stream)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

/// One partition on its way: the rows of one fragment, or of a part of it.
struct Unit {
    input: SendableRecordBatchStream,
    computer: Computer,
    metrics: BaselineMetrics,
    work: Option<Arc<Work>>,
    checkpointer: Option<Checkpointer>,
    /// What earlier runs have computed of the fragment.
    staged: Option<FragmentValues>,
    /// The batch of the input that is being computed, and the first row that is left of it.
    batch: Option<RecordBatch>,
    next: usize,
}

impl Unit {
    /// The next rows, computed.
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        let waited = Instant::now();
        let batch = loop {
            if let Some(batch) = self
                .batch
                .take()
                .filter(|batch| self.next < batch.num_rows())
            {
                break batch;
            }
            self.next = 0;
            match self.input.next().await {
                None => return Ok(None),
                Some(batch) => self.batch = Some(batch?),
            }
        };
        let rows = self
            .work
            .as_ref()
            .map_or(usize::MAX, |work| work.pace.rows());
        let rows = rows.min(batch.num_rows() - self.next);
        let chosen = batch.slice(self.next, rows);
        self.next += rows;
        self.batch = Some(batch);
        let addresses = addresses_of(&chosen)?;
        let fragment = addresses.values().first().map_or(0, |first| first >> 32);
        if let Some(work) = &self.work {
            work.counters.spent_since(Phase::Reading, waited);
            if self.staged.is_none() && !work.staged.is_empty() {
                let values = FragmentValues::new(
                    Arc::clone(&work.database),
                    &self.computer.table,
                    Arc::clone(&self.computer.dataset),
                    Arc::clone(&work.staged),
                    fragment,
                );
                self.staged = Some(values.await?);
            }
        }
        if let Some(checkpointer) = &mut self.checkpointer {
            checkpointer.obey(fragment).await?;
        }
        let staged = self.staged_values(&addresses).await?;
        let started = Instant::now();
        let computed = {
            let _timer = self.metrics.elapsed_compute().timer();
            self.computer.compute(&chosen, &addresses, &staged)
        };
        let took = started.elapsed();
        let Computed { batch, evaluated } = match computed {
            Ok(computed) => computed,
            Err(Failure::Input(error)) => return Err(error.into()),
            Err(Failure::Row(failure)) => {
                let work = self.work.as_deref();
                return Err(Self::fail(&self.computer, work, failure).await);
            }
        };
        self.metrics.record_output(batch.num_rows());
        self.count(rows, took, &evaluated, &staged);
        if let Some(checkpointer) = &mut self.checkpointer
            && evaluated
                .iter()
                .any(|mask| mask.as_ref().is_none_or(|m| m.true_count() > 0))
        {
            let columns: Vec<usize> = (0..evaluated.len()).collect();
            let values = batch.project(&columns)?;
            checkpointer
                .add(fragment, addresses, values, evaluated, took)
                .await?;
        }
        Ok(Some(batch))
    }

    /// By column: the rows that an earlier run has computed, and their values.
    async fn staged_values(
        &mut self,
        addresses: &UInt64Array,
    ) -> Result<Vec<Option<(BooleanArray, ArrayRef)>>> {
        let columns = Arc::clone(&self.computer.columns);
        let mut found = vec![None; columns.len()];
        let Some(staged) = &mut self.staged else {
            return Ok(found);
        };
        for (place, (column, found)) in columns.iter().zip(&mut found).enumerate() {
            let known = staged.offsets(place);
            if known.is_empty() {
                continue;
            }
            let wanted = selected(&column.rows, addresses);
            let mask: BooleanArray = addresses
                .values()
                .iter()
                .enumerate()
                .map(|(row, address)| {
                    let wanted = wanted.as_ref().is_none_or(|mask| mask.value(row));
                    Some(wanted && known.contains(*address as u32))
                })
                .collect();
            let offsets: Vec<u32> = addresses
                .values()
                .iter()
                .zip(&mask)
                .filter(|(_, known)| *known == Some(true))
                .map(|(address, _)| *address as u32)
                .collect();
            if !offsets.is_empty() {
                *found = Some((mask, staged.values(place, &offsets).await?));
            }
        }
        Ok(found)
    }

    fn count(
        &self,
        rows: usize,
        took: Duration,
        evaluated: &[Option<BooleanArray>],
        staged: &[Option<(BooleanArray, ArrayRef)>],
    ) {
        let Some(work) = &self.work else { return };
        let evaluated: usize = evaluated
            .iter()
            .map(|mask| mask.as_ref().map_or(rows, BooleanArray::true_count))
            .sum();
        let reused: usize = staged
            .iter()
            .flatten()
            .map(|(_, values)| values.len())
            .sum();
        work.counters.spent(Phase::Computing, took);
        work.counters.add(Count::RowsComputed, evaluated as u64);
        if work.counts_reused {
            work.counters.add(Count::RowsReused, reused as u64);
        }
        work.pace
            .learn(evaluated / self.computer.columns.len().max(1), took);
    }

    /// The error of a row that failed, which is written down too.
    async fn fail(computer: &Computer, work: Option<&Work>, failure: RowFailure) -> Error {
        let (error, row) = computer.explain(failure).await;
        if let Some(work) = work {
            work.counters.add(Count::RowsFailed, 1);
            let ledger = &work.ledger;
            // The error itself matters more than its record.
            let _ = ledger
                .failed_rows(
                    &work.job,
                    &[RowError {
                        at: ledger.now(),
                        ..row
                    }],
                )
                .await;
        }
        error
    }
}

/// A batch that is computed.
struct Computed {
    batch: RecordBatch,
    /// The rows for which the expression was evaluated, by column; `None` for all.
    evaluated: Vec<Option<BooleanArray>>,
}

/// Why a batch could not be computed.
enum Failure {
    Input(datafusion::common::DataFusionError),
    Row(RowFailure),
}

/// An expression failed on a row.
struct RowFailure {
    column: String,
    expression: String,
    address: u64,
    error: datafusion::common::DataFusionError,
}

struct Computer {
    table: String,
    dataset: Arc<Dataset>,
    columns: Arc<[ColumnValue]>,
    schema: SchemaRef,
}

impl Computer {
    /// Computes the columns for the rows of `batch`. `staged` has, by column, the rows whose values
    /// are known, and these.
    fn compute(
        &self,
        batch: &RecordBatch,
        addresses: &UInt64Array,
        staged: &[Option<(BooleanArray, ArrayRef)>],
    ) -> Result<Computed, Failure> {
        let rows = batch.num_rows();
        let mut results: Vec<ArrayRef> = Vec::with_capacity(self.columns.len() + 1);
        let mut masks: Vec<Option<BooleanArray>> = Vec::with_capacity(self.columns.len());
        // Columns of one struct call are evaluated once.
        let mut shared: Vec<(usize, ArrayRef)> = Vec::new();
        for (index, (column, staged)) in self.columns.iter().zip(staged).enumerate() {
            let wanted = selected(&column.rows, addresses);
            let mask = match staged {
                None => wanted.clone(),
                Some((known, _)) => Some(without(wanted.as_ref(), known)),
            };
            let count = mask.as_ref().map_or(rows, BooleanArray::true_count);
            let same = shared.iter().find(|(other, _)| {
                self.columns[*other].text == column.text && masks[*other] == mask
            });
            let value = match (same, count) {
                (_, 0) => None,
                (Some((_, value)), _) => Some(Arc::clone(value)),
                (None, _) => {
                    let value = match &mask {
                        None => evaluate(column, batch, addresses)?,
                        Some(mask) => {
                            let chosen = filter_record_batch(batch, mask).map_err(input)?;
                            let addresses = addresses_of(&chosen)
                                .map_err(|error| Failure::Input(error.into()))?;
                            evaluate(column, &chosen, &addresses)?
                        }
                    };
                    if column.struct_field.is_some() {
                        shared.push((index, Arc::clone(&value)));
                    }
                    Some(value)
                }
            };
            let value = match (value, &column.struct_field) {
                (Some(value), Some(name)) => Some(field_of(&value, name).map_err(Failure::Input)?),
                (value, _) => value,
            };
            let value = value
                .map(|value| stored_as(&value, column.field.data_type()))
                .transpose()
                .map_err(Failure::Input)?;
            results.push(match (&mask, value) {
                (None, Some(value)) => value,
                (mask, value) => {
                    let old = match &wanted {
                        None => None,
                        Some(_) => Some(self.old_values(column, batch)?),
                    };
                    put_together(
                        rows,
                        mask.as_ref().zip(value.as_ref()),
                        staged.as_ref(),
                        old,
                    )
                    .map_err(Failure::Input)?
                }
            });
            masks.push(mask);
        }
        results.push(Arc::new(addresses.clone()));
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), results).map_err(input)?;
        Ok(Computed {
            batch,
            evaluated: masks,
        })
    }

    fn old_values(&self, column: &ColumnValue, batch: &RecordBatch) -> Result<ArrayRef, Failure> {
        if let Some(value) = &column.old_value {
            let value = value.evaluate(batch).map_err(Failure::Input)?;
            return value.into_array(batch.num_rows()).map_err(Failure::Input);
        }
        batch
            .column_by_name(column.field.name())
            .cloned()
            .ok_or_else(|| Failure::Input(Error::internal("the scan gives no old values").into()))
    }

    /// Turns a failure into an error that names column, row and cause.
    async fn explain(&self, failure: RowFailure) -> (Error, RowError) {
        let id = id_at(&self.table, &self.dataset, failure.address)
            .await
            .unwrap_or(failure.address);
        let cause = Error::from(failure.error);
        let record = RowError {
            at: 0,
            table: self.table.clone(),
            column: failure.column.clone(),
            row_id: Some(id),
            expression: failure.expression,
            message: cause.message().to_string(),
        };
        let error = Error::new(
            ErrorKind::Computation,
            format!(
                "column '{}' of table '{}', row id {id}: {}",
                failure.column,
                self.table,
                cause.message()
            ),
        )
        .with_hint(format!(
            "SELECT * FROM {} WHERE _rowid = {id} shows the row; what was finished is kept",
            self.table
        ))
        .with_source(cause);
        (error, record)
    }
}

/// Puts the values of a column in the places of their rows: those that were evaluated and those that are
/// known, each given densely with the mask of its rows, and `old` ones for the rest.
fn put_together(
    rows: usize,
    evaluated: Option<(&BooleanArray, &ArrayRef)>,
    known: Option<&(BooleanArray, ArrayRef)>,
    old: Option<ArrayRef>,
) -> DataFusionResult<ArrayRef> {
    let mut arrays: Vec<&dyn Array> = Vec::with_capacity(3);
    let mut places: Vec<Option<(usize, usize)>> = vec![None; rows];
    let known = known.map(|(mask, values)| (mask, values));
    for (mask, values) in evaluated.into_iter().chain(known) {
        let mut next = 0;
        for (place, marked) in places.iter_mut().zip(mask) {
            if marked == Some(true) {
                *place = Some((arrays.len(), next));
                next += 1;
            }
        }
        arrays.push(values.as_ref());
    }
    let rest = arrays.len();
    if let Some(old) = &old {
        arrays.push(old.as_ref());
    }
    let places = places
        .into_iter()
        .enumerate()
        .map(|(row, place)| place.unwrap_or((rest, row)))
        .collect::<Vec<_>>();
    Ok(interleave(&arrays, &places)?)
}

/// The rows that are marked in `wanted` (`None` for all), but not in `known`.
fn without(wanted: Option<&BooleanArray>, known: &BooleanArray) -> BooleanArray {
    known
        .iter()
        .enumerate()
        .map(|(row, known)| {
            let wanted = wanted.is_none_or(|mask| mask.value(row));
            Some(wanted && known != Some(true))
        })
        .collect()
}

fn addresses_of(batch: &RecordBatch) -> Result<UInt64Array> {
    batch
        .column_by_name(ROW_ADDRESS)
        .map(|column| column.as_primitive::<UInt64Type>().clone())
        .ok_or_else(|| Error::internal("the scan gives no addresses"))
}

fn input(error: datafusion::arrow::error::ArrowError) -> Failure {
    Failure::Input(error.into())
}

/// Which rows of a batch are to be computed; `None` for all.
fn selected(rows: &Rows, addresses: &UInt64Array) -> Option<BooleanArray> {
    let Rows::Some(rows) = rows else {
        return None;
    };
    let mask: BooleanArray = mask_of(rows, addresses.values());
    (mask.true_count() < mask.len()).then_some(mask)
}

/// Marks the addresses that are in `rows`. Addresses of a batch ascend, so one walk over the part of
/// the set that they span does.
fn mask_of(rows: &RowSet, addresses: &[u64]) -> BooleanArray {
    let (Some(first), Some(last)) = (addresses.first(), addresses.last()) else {
        return BooleanArray::from(Vec::<bool>::new());
    };
    let mut wanted = rows.range(*first..last.saturating_add(1)).peekable();
    addresses
        .iter()
        .map(|address| {
            while wanted.next_if(|next| next < address).is_some() {}
            Some(wanted.peek() == Some(address))
        })
        .collect()
}

/// Evaluates a column's expression; on failure finds the first row that it fails on.
fn evaluate(
    column: &ColumnValue,
    batch: &RecordBatch,
    addresses: &UInt64Array,
) -> Result<ArrayRef, Failure> {
    let rows = batch.num_rows();
    let run = |batch: &RecordBatch| {
        column
            .expression
            .evaluate(batch)
            .and_then(|value| value.into_array(batch.num_rows()))
    };
    let error = match run(batch) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    // Some row in start..end fails: halve the range until it is one row.
    let (mut start, mut end, mut cause) = (0, rows, error);
    while end - start > 1 {
        let middle = start + (end - start) / 2;
        match run(&batch.slice(start, middle - start)) {
            Err(error) => (end, cause) = (middle, error),
            Ok(_) => match run(&batch.slice(middle, end - middle)) {
                Err(error) => (start, cause) = (middle, error),
                // Fails only on the rows together: name the first of them.
                Ok(_) => break,
            },
        }
    }
    Err(Failure::Row(RowFailure {
        column: column.field.name().clone(),
        expression: column.text.clone(),
        address: addresses.values().get(start).copied().unwrap_or_default(),
        error: cause,
    }))
}

/// One field of a struct array, NULL where the struct is.
fn field_of(value: &ArrayRef, name: &str) -> DataFusionResult<ArrayRef> {
    let array: &StructArray = as_struct_array(value)?;
    let field = array
        .column_by_name(name)
        .ok_or_else(|| Error::internal(format!("the struct has no field '{name}'")))?;
    match array.nulls() {
        None => Ok(Arc::clone(field)),
        Some(nulls) => {
            let valid = BooleanArray::new(nulls.inner().clone(), None);
            let null = datafusion::arrow::array::new_null_array(field.data_type(), field.len());
            Ok(zip(&valid, field, &null)?)
        }
    }
}

/// Casts what an expression gives to the type that is stored; a value that does not fit is an error.
fn stored_as(value: &ArrayRef, data_type: &DataType) -> DataFusionResult<ArrayRef> {
    if value.data_type() == data_type {
        return Ok(Arc::clone(value));
    }
    let options = datafusion::arrow::compute::CastOptions {
        safe: false,
        ..Default::default()
    };
    Ok(cast_with_options(value, data_type, &options)?)
}
