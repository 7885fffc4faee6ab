//! The plan node that writes the values of columns: one file a fragment.
//!
//! A partition of its input is a fragment. The file has a row for every physical row of the
//! fragment, NULL where the row is deleted. Nothing is committed: the node gives one row a
//! fragment that names the file, and a file that no commit names is never read. So a
//! fragment may be written twice, or twice at once, without harm.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::{
    ArrayRef, AsArray, RecordBatch, StringArray, UInt32Array, UInt64Array, new_null_array,
};
use datafusion::arrow::compute::take;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt64Type};
use datafusion::common::{DataFusionError, Result as DataFusionResult};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::EquivalenceProperties;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, MetricBuilder, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
};
use futures::{Stream, StreamExt, stream};
use lance::Dataset;

use crate::storage::column_file::write_column_file;
use crate::storage::write::KeptError;
use crate::{Error, Result};

/// Writes the columns of its input to files of their own.
#[derive(Debug)]
pub struct ColumnWriteExec {
    input: Arc<dyn ExecutionPlan>,
    table: String,
    dataset: Arc<Dataset>,
    /// The fragment of each partition.
    fragments: Arc<[u64]>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

/// What the node gives: the fragment, and the file as JSON of Lance's `DataFile`.
pub fn output_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("fragment", DataType::UInt64, false),
        Field::new("file", DataType::Utf8, false),
    ]))
}

impl ColumnWriteExec {
    /// Writes what `input` gives: all columns but the last, which is the row address. Partition
    /// `i` of the input has the live rows of `fragments[i]`, in order.
    pub fn new(
        input: Arc<dyn ExecutionPlan>,
        table: String,
        dataset: Arc<Dataset>,
        fragments: Arc<[u64]>,
    ) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(output_schema()),
            Partitioning::UnknownPartitioning(fragments.len()),
            EmissionType::Final,
            Boundedness::Bounded,
        );
        Self {
            input,
            table,
            dataset,
            fragments,
            properties: Arc::new(properties),
            metrics: ExecutionPlanMetricsSet::new(),
        }
    }
}

impl DisplayAs for ColumnWriteExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let schema = self.input.schema();
        let columns: Vec<&str> = schema
            .fields()
            .iter()
            .take(schema.fields().len().saturating_sub(1))
            .map(|field| field.name().as_str())
            .collect();
        write!(
            f,
            "ColumnWriteExec: table={}, columns=[{}], fragments={}",
            self.table,
            columns.join(", "),
            self.fragments.len()
        )
    }
}

impl ExecutionPlan for ColumnWriteExec {
    fn name(&self) -> &str {
        "ColumnWriteExec"
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
            .ok_or_else(|| Error::internal("ColumnWriteExec has one child"))?;
        Ok(Arc::new(Self::new(
            input,
            self.table.clone(),
            Arc::clone(&self.dataset),
            Arc::clone(&self.fragments),
        )))
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> DataFusionResult<SendableRecordBatchStream> {
        let input = self.input.execute(partition, context)?;
        let fragment = *self
            .fragments
            .get(partition)
            .ok_or_else(|| Error::internal(format!("there is no partition {partition}")))?;
        let table = self.table.clone();
        let dataset = Arc::clone(&self.dataset);
        let rows = MetricBuilder::new(&self.metrics).counter("rows_written", partition);
        let bytes = MetricBuilder::new(&self.metrics).counter("bytes_written", partition);
        let written = async move {
            let file = dataset.get_fragment(fragment as usize).ok_or_else(|| {
                Error::internal(format!("fragment {fragment} is not in table '{table}'"))
            })?;
            let physical_rows = file
                .physical_rows()
                .await
                .map_err(|error| crate::storage::storage_error(&table, error))?;
            rows.add(physical_rows);
            let schema = input.schema();
            let width = schema.fields().len().saturating_sub(1);
            let columns: Vec<usize> = (0..width).collect();
            let columns = Arc::new(schema.project(&columns)?);
            let kept = KeptError::default();
            let keeper = kept.clone();
            let filled = fill_gaps(input, columns, physical_rows as u32)
                .map(move |batch| batch.map_err(|error| keeper.put(error)));
            let names: Vec<&str> = schema.fields()[..width]
                .iter()
                .map(|field| field.name().as_str())
                .collect();
            let data_file = write_column_file(&table, &file, filled, &names).await;
            kept.take()?;
            let data_file = data_file?;
            bytes.add(data_file.bytes as usize);
            Ok(RecordBatch::try_new(
                output_schema(),
                vec![
                    Arc::new(UInt64Array::from(vec![fragment])) as ArrayRef,
                    Arc::new(StringArray::from(vec![data_file.json])),
                ],
            )?)
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(
            output_schema(),
            stream::once(written),
        )))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

/// Puts NULLs where rows are missing, so that row `i` of what comes out is row `i` of the fragment.
fn fill_gaps(
    input: SendableRecordBatchStream,
    columns: SchemaRef,
    physical_rows: u32,
) -> impl Stream<Item = DataFusionResult<RecordBatch>> + Send {
    // The end of the input is a step too: rows may be missing after the last one.
    let steps = input.map(Some).chain(stream::once(async { None }));
    steps
        .scan((0u32, columns), move |(next, columns), step| {
            let filled = match step {
                None => Ok(missing_rows(columns, physical_rows.saturating_sub(*next))),
                Some(Err(error)) => Err(error),
                Some(Ok(batch)) => spread(&batch, columns, next, physical_rows).map(Some),
            };
            futures::future::ready(Some(filled))
        })
        .filter_map(|batch| futures::future::ready(batch.transpose()))
}

fn missing_rows(columns: &SchemaRef, rows: u32) -> Option<RecordBatch> {
    if rows == 0 {
        return None;
    }
    let arrays = columns
        .fields()
        .iter()
        .map(|field| new_null_array(field.data_type(), rows as usize))
        .collect();
    RecordBatch::try_new(Arc::clone(columns), arrays).ok()
}

/// One batch with NULLs for the rows that are missing between its rows and before the first.
fn spread(
    batch: &RecordBatch,
    columns: &SchemaRef,
    next: &mut u32,
    physical_rows: u32,
) -> DataFusionResult<RecordBatch> {
    let width = columns.fields().len();
    let addresses = batch.column(width).as_primitive::<UInt64Type>().values();
    let (Some(first), Some(last)) = (addresses.first(), addresses.last()) else {
        return Ok(RecordBatch::new_empty(Arc::clone(columns)));
    };
    let (start, first, end) = (*next, *first as u32, *last as u32 + 1);
    if first < start || end > physical_rows || ((end - first) as usize) < addresses.len() {
        return Err(DataFusionError::from(Error::internal(
            "rows of a fragment came out of order",
        )));
    }
    *next = end;
    let arrays = &batch.columns()[..width];
    let arrays: Vec<ArrayRef> = if (end - start) as usize == addresses.len() {
        arrays.to_vec()
    } else {
        let mut places: Vec<Option<u32>> = vec![None; (end - start) as usize];
        for (row, address) in addresses.iter().enumerate() {
            places[(*address as u32 - start) as usize] = Some(row as u32);
        }
        let places = UInt32Array::from(places);
        arrays
            .iter()
            .map(|array| take(array, &places, None))
            .collect::<std::result::Result<_, _>>()?
    };
    Ok(RecordBatch::try_new(Arc::clone(columns), arrays)?)
}

/// A fragment whose columns are written.
#[derive(Debug, Clone)]
pub struct WrittenFragment {
    /// The fragment.
    pub fragment: u64,
    /// The file with its columns, as JSON of Lance's `DataFile`.
    pub file: String,
}

/// Reads the rows that [`ColumnWriteExec`] gives.
pub fn written_fragments(batch: &RecordBatch) -> Result<Vec<WrittenFragment>> {
    if batch.schema() != output_schema() {
        return Err(Error::internal("the column writer gave other columns"));
    }
    let fragments = batch.column(0).as_primitive::<UInt64Type>();
    let files = batch.column(1).as_string::<i32>();
    Ok((0..batch.num_rows())
        .map(|row| WrittenFragment {
            fragment: fragments.value(row),
            file: files.value(row).to_string(),
        })
        .collect())
}
