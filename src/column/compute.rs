//! The plan node that computes the values of columns, row by row.
//!
//! Its input gives the inputs of the expressions, the old values of the columns where some rows
//! keep them, and the address of each row; its output is the columns' values and the address.
//! An expression sees only the rows that are to be computed, so a row that keeps its value can't
//! make it fail, and a paid call is made for no other row.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, RecordBatch, StructArray, UInt64Array,
};
use datafusion::arrow::compute::kernels::zip::zip;
use datafusion::arrow::compute::{cast_with_options, filter_record_batch};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, UInt64Type};
use datafusion::common::Result as DataFusionResult;
use datafusion::common::cast::as_struct_array;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_expr_common::utils::scatter;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
};
use futures::StreamExt;
use lance::Dataset;

use super::assess::Rows;
use crate::storage::RowSet;
use crate::storage::fragments::id_at;
use crate::{Error, ErrorKind};

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
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl ColumnComputeExec {
    /// Computes `columns` of `table` from the batches of `input`.
    pub fn new(
        input: Arc<dyn ExecutionPlan>,
        table: String,
        dataset: Arc<Dataset>,
        columns: Arc<[ColumnValue]>,
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
        let input = self.input.execute(partition, context)?;
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let schema = self.schema();
        let computer = Arc::new(Computer {
            table: self.table.clone(),
            dataset: Arc::clone(&self.dataset),
            columns: Arc::clone(&self.columns),
            schema: Arc::clone(&schema),
        });
        let stream = input.then(move |batch| {
            let computer = Arc::clone(&computer);
            let timer = metrics.elapsed_compute().timer();
            let done = batch
                .map_err(Failure::Input)
                .and_then(|batch| computer.compute(&batch));
            drop(timer);
            if let Ok(batch) = &done {
                metrics.record_output(batch.num_rows());
            }
            async move {
                match done {
                    Ok(batch) => Ok(batch),
                    Err(Failure::Input(error)) => Err(error),
                    Err(Failure::Row(failure)) => Err(computer.explain(failure).await.into()),
                }
            }
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, stream)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

/// Why a batch could not be computed.
enum Failure {
    Input(datafusion::common::DataFusionError),
    Row(RowFailure),
}

/// An expression failed on a row.
struct RowFailure {
    column: String,
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
    fn compute(&self, batch: &RecordBatch) -> Result<RecordBatch, Failure> {
        let addresses = batch
            .column_by_name(ROW_ADDRESS)
            .map(|column| column.as_primitive::<UInt64Type>().clone())
            .ok_or_else(|| Failure::Input(Error::internal("the scan gives no addresses").into()))?;
        let mut results: Vec<ArrayRef> = Vec::with_capacity(self.columns.len() + 1);
        let mut shared: Vec<(usize, ArrayRef)> = Vec::new();
        for (index, column) in self.columns.iter().enumerate() {
            let mask = selected(&column.rows, &addresses);
            let old = || {
                if let Some(value) = &column.old_value {
                    let value = value.evaluate(batch).map_err(Failure::Input)?;
                    return value.into_array(batch.num_rows()).map_err(Failure::Input);
                }
                batch
                    .column_by_name(column.field.name())
                    .cloned()
                    .ok_or_else(|| {
                        Failure::Input(Error::internal("the scan gives no old values").into())
                    })
            };
            if mask.as_ref().is_some_and(|mask| mask.true_count() == 0) {
                results.push(old()?);
                continue;
            }
            let same = shared.iter().find(|(other, _)| {
                let other = &self.columns[*other];
                other.text == column.text
                    && column.struct_field.is_some()
                    && other.rows == column.rows
            });
            let value = match same {
                Some((_, value)) => Arc::clone(value),
                None => {
                    let value = match &mask {
                        None => evaluate(column, batch, &addresses)?,
                        Some(mask) => {
                            let chosen = filter_record_batch(batch, mask).map_err(input)?;
                            let chosen_addresses = chosen
                                .column_by_name(ROW_ADDRESS)
                                .map(|column| column.as_primitive::<UInt64Type>().clone())
                                .unwrap_or_else(|| UInt64Array::from(Vec::<u64>::new()));
                            let value = evaluate(column, &chosen, &chosen_addresses)?;
                            scatter(mask, value.as_ref()).map_err(Failure::Input)?
                        }
                    };
                    if column.struct_field.is_some() {
                        shared.push((index, Arc::clone(&value)));
                    }
                    value
                }
            };
            let value = match &column.struct_field {
                None => value,
                Some(name) => field_of(&value, name).map_err(Failure::Input)?,
            };
            let value = stored_as(&value, column.field.data_type()).map_err(Failure::Input)?;
            results.push(match &mask {
                None => value,
                Some(mask) => zip(mask, &value, &old()?).map_err(input)?,
            });
        }
        results.push(Arc::new(addresses));
        RecordBatch::try_new(Arc::clone(&self.schema), results).map_err(input)
    }

    /// Turns a failure into an error that names column, row and cause.
    async fn explain(&self, failure: RowFailure) -> Error {
        let id = id_at(&self.table, &self.dataset, failure.address)
            .await
            .unwrap_or(failure.address);
        let cause = Error::from(failure.error);
        Error::new(
            ErrorKind::Computation,
            format!(
                "column '{}' of table '{}', row id {id}: {}",
                failure.column,
                self.table,
                cause.message()
            ),
        )
        .with_hint(format!(
            "SELECT * FROM {} WHERE _rowid = {id} shows the row; nothing was written",
            self.table
        ))
        .with_source(cause)
    }
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
