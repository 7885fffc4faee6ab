//! The plan node that writes the values of columns: a file a fragment, or a part of one.
//!
//! A partition of its input is a work unit: a fragment, or some of its rows where there are fewer
//! fragments than workers. The file has a row for every physical row of the unit, NULL where the
//! row is deleted. Nothing is committed: the node gives one row a unit that names the file, and a
//! file that no commit names is never read. So a unit may run twice, or twice at once, without harm.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

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

use super::plan::Unit;
use super::work::Work;
use crate::job::counters::{Count, Phase};
use crate::storage::column_file::{SplitFile, write_column_file};
use crate::storage::storage_error;
use crate::storage::write::KeptError;
use crate::{Error, Result};

/// Writes the columns of its input to files of their own.
#[derive(Debug)]
pub struct ColumnWriteExec {
    input: Arc<dyn ExecutionPlan>,
    table: String,
    dataset: Arc<Dataset>,
    /// The unit of each partition.
    units: Arc<[Unit]>,
    /// The files of fragments that several units write.
    split: Arc<HashMap<u64, SplitFile>>,
    /// The job that it works for; `None` in a plan that is only shown.
    work: Option<Arc<Work>>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

/// What the node gives: the number of the unit; the file as JSON of Lance's `DataFile`, or of its
/// `DataFilePart` if the unit is a part of a fragment.
pub fn output_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("unit", DataType::UInt64, false),
        Field::new("file", DataType::Utf8, false),
    ]))
}

impl ColumnWriteExec {
    /// Writes what `input` gives: all columns but the last, which is the row address. Partition
    /// `i` of the input has the live rows of `units[i]`, in order. `split` has the file of each
    /// fragment that is divided.
    pub fn new(
        input: Arc<dyn ExecutionPlan>,
        table: String,
        dataset: Arc<Dataset>,
        units: Arc<[Unit]>,
        split: Arc<HashMap<u64, SplitFile>>,
        work: Option<Arc<Work>>,
    ) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(output_schema()),
            Partitioning::UnknownPartitioning(units.len()),
            EmissionType::Final,
            Boundedness::Bounded,
        );
        Self {
            input,
            table,
            dataset,
            units,
            split,
            work,
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
            "ColumnWriteExec: table={}, columns=[{}], units={}",
            self.table,
            columns.join(", "),
            self.units.len()
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
            Arc::clone(&self.units),
            Arc::clone(&self.split),
            self.work.clone(),
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
        let unit = self
            .units
            .get(partition)
            .cloned()
            .ok_or_else(|| Error::internal(format!("there is no partition {partition}")))?;
        let split = self.split.get(&unit.fragment).cloned();
        let table = self.table.clone();
        let dataset = Arc::clone(&self.dataset);
        let work = self.work.clone();
        let rows = MetricBuilder::new(&self.metrics).counter("rows_written", partition);
        let bytes = MetricBuilder::new(&self.metrics).counter("bytes_written", partition);
        let written = async move {
            let started = Instant::now();
            let fragment = unit.fragment;
            let file = dataset.get_fragment(fragment as usize).ok_or_else(|| {
                Error::internal(format!("fragment {fragment} is not in table '{table}'"))
            })?;
            let physical = match &unit.rows {
                Some(rows) => rows.clone(),
                None => {
                    let rows = file.physical_rows().await;
                    0..rows.map_err(|error| storage_error(&table, error))? as u32
                }
            };
            rows.add((physical.end - physical.start) as usize);
            let schema = input.schema();
            let width = schema.fields().len().saturating_sub(1);
            let columns: Vec<usize> = (0..width).collect();
            let columns = Arc::new(schema.project(&columns)?);
            let kept = KeptError::default();
            let keeper = kept.clone();
            let waited = Arc::new(AtomicU64::new(0));
            let filled = fill_gaps(timed(input, Arc::clone(&waited)), columns, physical)
                .map(move |batch| batch.map_err(|error| keeper.put(error)));
            let names: Vec<&str> = schema.fields()[..width]
                .iter()
                .map(|field| field.name().as_str())
                .collect();
            let data_file = match split {
                Some(split) => split.write_part(filled).await,
                None => write_column_file(&table, &file, filled, &names).await,
            };
            kept.take()?;
            let data_file = data_file?;
            bytes.add(data_file.bytes as usize);
            if let Some(work) = work {
                let waited = Duration::from_nanos(waited.load(Ordering::Relaxed));
                let writing = started.elapsed().saturating_sub(waited);
                work.counters.spent(Phase::Writing, writing);
                work.counters.add(Count::BytesWritten, data_file.bytes);
            }
            Ok(RecordBatch::try_new(
                output_schema(),
                vec![
                    Arc::new(UInt64Array::from(vec![partition as u64])) as ArrayRef,
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

/// Adds up, in nanoseconds, how long a reader of `input` waits for it.
fn timed(
    input: SendableRecordBatchStream,
    waited: Arc<AtomicU64>,
) -> impl Stream<Item = DataFusionResult<RecordBatch>> + Send {
    stream::unfold((input, waited), |(mut input, waited)| async move {
        let started = Instant::now();
        let batch = input.next().await?;
        let nanoseconds = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        waited.fetch_add(nanoseconds, Ordering::Relaxed);
        Some((batch, (input, waited)))
    })
}

/// Puts NULLs where rows are missing, so that row `i` of what comes out is row `i` of the physical rows
/// `rows` of the fragment.
fn fill_gaps(
    input: impl Stream<Item = DataFusionResult<RecordBatch>> + Send,
    columns: SchemaRef,
    rows: Range<u32>,
) -> impl Stream<Item = DataFusionResult<RecordBatch>> + Send {
    // The end of the input is a step too: rows may be missing after the last one.
    let steps = input.map(Some).chain(stream::once(async { None }));
    steps
        .scan((rows.start, columns), move |(next, columns), step| {
            let filled = match step {
                None => Ok(missing_rows(columns, rows.end.saturating_sub(*next))),
                Some(Err(error)) => Err(error),
                Some(Ok(batch)) => spread(&batch, columns, next, rows.end).map(Some),
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
    last_row: u32,
) -> DataFusionResult<RecordBatch> {
    let width = columns.fields().len();
    let addresses = batch.column(width).as_primitive::<UInt64Type>().values();
    let (Some(first), Some(last)) = (addresses.first(), addresses.last()) else {
        return Ok(RecordBatch::new_empty(Arc::clone(columns)));
    };
    let (start, first, end) = (*next, *first as u32, *last as u32 + 1);
    if first < start || end > last_row || ((end - first) as usize) < addresses.len() {
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

/// A unit that is written.
#[derive(Debug, Clone)]
pub struct WrittenUnit {
    /// The number of the unit in its pass.
    pub unit: usize,
    /// The file with its columns, as JSON: see [`output_schema`].
    pub file: String,
}

/// Reads the rows that [`ColumnWriteExec`] gives.
pub fn written_units(batch: &RecordBatch) -> Result<Vec<WrittenUnit>> {
    if batch.schema() != output_schema() {
        return Err(Error::internal("the column writer gave other columns"));
    }
    let units = batch.column(0).as_primitive::<UInt64Type>();
    let files = batch.column(1).as_string::<i32>();
    Ok((0..batch.num_rows())
        .map(|row| WrittenUnit {
            unit: units.value(row) as usize,
            file: files.value(row).to_string(),
        })
        .collect())
}
