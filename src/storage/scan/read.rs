//! Reads one partition of a scan.
//!
//! Batches leave here with the schema that the node promised, and bounded: in
//! rows, and in bytes unless a single row is larger. What is read ahead of them
//! is bounded too, so that memory does not grow with the table.

use std::collections::VecDeque;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::Poll;

use datafusion::arrow::array::{RecordBatch, RecordBatchOptions};
use datafusion::arrow::compute::BatchCoalescer;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::metrics::{BaselineMetrics, Count, MetricBuilder};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt, future};
use lance::Dataset;
use lance::dataset::scanner::{MaterializationStyle, Scanner};
use lance_core::ROW_ADDR;
use lance_core::datatypes::{Field, Schema};
use lance_table::format::Fragment;

use super::explain::explain;
use super::late::{self, Order};
use super::look_up;
use super::rows::{Selection, Sieve, selection, without_deletions};
use super::schema::{blob_handling, row_field, stored_blob};
use super::width::slice_bytes;
use super::{Blobs, LanceScanExec, ScanDescription, ScanPartition};
use crate::storage::blob::{Describer, described_bytes};
use crate::storage::open::{panicked, storage_error};
use crate::{Error, Result};

/// Bytes that all partitions of a scan together may have read, but not decoded
/// yet, from local files, and from an object store, whose latency needs more.
const LOCAL_READ_AHEAD: u64 = 32 * 1024 * 1024;
const REMOTE_READ_AHEAD: u64 = 512 * 1024 * 1024;
/// What a partition has at least: a few pages.
const MIN_READ_AHEAD: u64 = 16 * 1024 * 1024;

/// How many fragments a partition reads at once. What of them is read ahead is not
/// all counted above, so on local files, where it gains nothing, there are few.
const LOCAL_FRAGMENTS_AHEAD: usize = 2;
const REMOTE_FRAGMENTS_AHEAD: usize = 4;

/// The rows of `partition`, which is one of `scan`'s.
pub(super) fn read(
    scan: &LanceScanExec,
    partition: usize,
    context: &TaskContext,
) -> SendableRecordBatchStream {
    let metrics = BaselineMetrics::new(&scan.metrics, partition);
    let bytes_read = MetricBuilder::new(&scan.metrics).counter("bytes_scanned", partition);
    let schema = scan.schema();
    let job = Job {
        dataset: scan.dataset.clone(),
        description: scan.description.clone(),
        schema: schema.clone(),
        partitions: scan.partitions.clone(),
        places: 0..scan.partitions[partition].fragments.len(),
        partition,
        parallelism: context.session_config().target_partitions(),
    };
    let batches = match job.rows_without_reading() {
        Some(rows) => job.counted(schema.clone(), rows),
        None => job.scanned(bytes_read),
    };
    let shaper = Shaper::new(schema.clone(), &scan.dataset, &scan.description);
    Box::pin(RecordBatchStreamAdapter::new(
        schema,
        shape(batches, shaper, metrics),
    ))
}

/// How Lance is asked for rows.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Reading {
    /// Columns that the filter does not look at are read when Lance thinks best.
    Plain,
    /// They are read with the others.
    Early,
    /// What the filter finds is known.
    Found(Selection),
}

/// One partition of a scan on its way, or a part of one.
#[derive(Clone)]
pub(super) struct Job {
    pub(super) dataset: Arc<Dataset>,
    pub(super) description: Arc<ScanDescription>,
    pub(super) schema: SchemaRef,
    pub(super) partitions: Arc<Vec<ScanPartition>>,
    pub(super) partition: usize,
    /// Which of its fragments.
    pub(super) places: Range<usize>,
    /// How many partitions the session would like to run at once.
    pub(super) parallelism: usize,
}

impl Job {
    fn this(&self) -> &ScanPartition {
        &self.partitions[self.partition]
    }

    /// The fragments that this partition reads, each with its place in the manifest.
    pub(super) fn fragments(&self) -> impl Iterator<Item = (usize, &Fragment)> {
        let all = self.dataset.fragments();
        self.this().fragments[self.places.clone()]
            .iter()
            .map(|place| (*place, &all[*place]))
    }

    /// How many rows there are, if that is all that is asked for and the manifest
    /// knows it, or if there are none.
    fn rows_without_reading(&self) -> Option<usize> {
        let limit = self.description.limit.unwrap_or(usize::MAX);
        if limit == 0 || self.this().rows == Some(0) {
            return Some(0);
        }
        if self.description.columns.is_empty() && self.description.filter.is_none() {
            return self.this().rows.map(|rows| rows.min(limit));
        }
        None
    }

    /// Batches of `rows` rows and no columns.
    fn counted(
        &self,
        schema: SchemaRef,
        rows: usize,
    ) -> BoxStream<'static, Result<RecordBatch, DataFusionError>> {
        let step = self.description.batch_rows;
        stream::iter((0..rows).step_by(step))
            .map(move |start| {
                let options =
                    RecordBatchOptions::new().with_row_count(Some(step.min(rows - start)));
                Ok(RecordBatch::try_new_with_options(
                    schema.clone(),
                    Vec::new(),
                    &options,
                )?)
            })
            .boxed()
    }

    /// What Lance's scanner yields, in its own schema and batches.
    fn scanned(
        self,
        bytes_read: Count,
    ) -> BoxStream<'static, Result<RecordBatch, DataFusionError>> {
        let opening = async move {
            let mut job = self;
            let order = match look_up::filter(&job).await? {
                Some(filter) => {
                    job.description = Arc::new(ScanDescription {
                        filter: Some(filter),
                        ..job.description.as_ref().clone()
                    });
                    Order::AtOnce(Reading::Plain)
                }
                None => Order::of(&job).await?,
            };
            let job = Arc::new(job);
            let batches = match order {
                Order::AtOnce(reading) => job.batches(bytes_read, reading).await?,
                Order::ByFound => late::batches(Arc::clone(&job), bytes_read),
            };
            Ok::<_, DataFusionError>(batches.or_else(move |error| {
                let job = job.clone();
                async move { Err(explain(&job, error).await.into()) }
            }))
        };
        stream::once(opening).try_flatten().boxed()
    }

    /// What Lance's scanner yields of the rows that are selected.
    pub(super) async fn batches(
        &self,
        bytes_read: Count,
        reading: Reading,
    ) -> Result<BoxStream<'static, Result<RecordBatch, DataFusionError>>> {
        let (scanner, sieve) = self.scanner(bytes_read, reading).await?;
        let batches = raw(self.description.table(), scanner);
        Ok(match sieve {
            Some(sieve) => sifted(batches, sieve, &self.description),
            None => batches,
        })
    }

    /// The same for some of the fragments.
    pub(super) fn part(&self, places: Range<usize>) -> Self {
        Self {
            places,
            ..self.clone()
        }
    }

    /// Lance's scanner of these fragments; what it reads is counted in `bytes_read`. If there is a
    /// sieve, what comes has to go through it, and the limit holds behind it.
    pub(super) async fn scanner(
        &self,
        bytes_read: Count,
        reading: Reading,
    ) -> Result<(Scanner, Option<Sieve>)> {
        let description = &self.description;
        let fail = |error| storage_error(description.table(), error);
        let store = self.dataset.object_store(None).await.map_err(fail)?;
        let partitions = self.partitions.len();
        let (read_ahead, fragments_ahead) = if store.is_cloud() {
            (REMOTE_READ_AHEAD, REMOTE_FRAGMENTS_AHEAD)
        } else {
            (LOCAL_READ_AHEAD, LOCAL_FRAGMENTS_AHEAD)
        };

        let mut filter = description.filter.as_ref();
        let is_early = reading == Reading::Early;
        let mut selection = match reading {
            Reading::Found(found) => {
                filter = None;
                Some(found)
            }
            Reading::Plain | Reading::Early => {
                let fragments = self.fragments().map(|(_, fragment)| fragment);
                selection(&self.dataset, description, &self.schema, fragments).await?
            }
        };
        let mut sieve = selection.as_mut().and_then(|found| found.sieve.take());
        let mut fragments: Vec<_> = self.fragments().map(|(_, f)| f.clone()).collect();
        // An index knows of deleted rows, and a window counts live ones.
        let is_plain = filter.is_some() && !is_early;
        if !is_plain && description.window(self.partition).is_none() {
            let (table, dataset) = (description.table(), &self.dataset);
            let selection = selection.as_ref();
            without_deletions(table, dataset, &mut fragments, selection, &mut sieve).await?;
        }
        let addresses = selection.map(|selection| selection.addresses);

        let mut scanner = self.dataset.scan();
        scanner
            .with_fragments(fragments)
            .project_with_schema(&self.columns(sieve.is_some())?)
            .map_err(fail)?
            .blob_handling(blob_handling(description.blobs))
            .batch_size(description.batch_rows.min(u32::MAX as usize))
            .batch_size_bytes(description.batch_bytes)
            .scan_in_order(description.in_order)
            // The partitions are the parallelism; what decodes within one only has to
            // keep the cores busy that have no partition of their own.
            .target_parallelism(1)
            .batch_readahead(self.parallelism.div_ceil(partitions).max(1) + 1)
            .fragment_readahead(fragments_ahead)
            .io_buffer_size(MIN_READ_AHEAD.max(read_ahead / partitions as u64))
            .scan_stats_callback(Arc::new(move |counts| bytes_read.add(counts.bytes_read)));
        if let Some(addresses) = addresses {
            scanner.with_physical_row_addr_prefilter(addresses);
        }
        if let Some(filter) = filter {
            scanner.filter_expr(filter.clone());
        }
        if is_early {
            scanner.materialization_style(MaterializationStyle::AllEarly);
        }
        if let Some(window) = description.window(self.partition) {
            let count = |rows: usize| Some(i64::try_from(rows).unwrap_or(i64::MAX));
            let (rows, skip) = (count(window.rows), count(window.skip));
            scanner.limit(rows, skip).map_err(fail)?;
        } else if let (Some(limit), None) = (description.limit, &sieve) {
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            scanner.limit(Some(limit), None).map_err(fail)?;
        }
        Ok((scanner, sieve))
    }

    /// The columns as Lance's fields: by names alone, one with a dot or a quote in it
    /// would be taken for a path. With the addresses of the rows, at least behind the others.
    fn columns(&self, addresses: bool) -> Result<Schema> {
        let stored = self.dataset.schema();
        let mut names: Vec<&str> = self
            .description
            .columns
            .iter()
            .map(String::as_str)
            .collect();
        let addresses = addresses || !describers(&self.dataset, &self.description).is_empty();
        if addresses && !names.contains(&ROW_ADDR) {
            names.push(ROW_ADDR);
        }
        let fields = names
            .into_iter()
            .map(|name| match row_field(name) {
                Some(field) => Field::try_from(&field)
                    .map_err(|error| storage_error(self.description.table(), error)),
                None => stored
                    .fields
                    .iter()
                    .find(|field| field.name == name)
                    .cloned()
                    .ok_or_else(|| Error::internal(format!("no column '{name}' to scan"))),
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Schema {
            fields,
            metadata: stored.metadata.clone(),
        })
    }
}

/// What `scanner` yields, or what it says of its failure.
pub(super) fn raw(
    table: &str,
    scanner: Scanner,
) -> BoxStream<'static, Result<RecordBatch, DataFusionError>> {
    let table = table.to_string();
    let opening = async move {
        let stream = scanner.try_into_stream().await?;
        Ok::<_, DataFusionError>(SendableRecordBatchStream::from(stream))
    };
    // Lance may panic over a damaged file; that must not take the process down.
    AssertUnwindSafe(stream::once(opening).try_flatten())
        .catch_unwind()
        .map(move |outcome| outcome.unwrap_or_else(|panic| Err(panicked(&table, panic).into())))
        .boxed()
}

/// The rows of `batches` that `sieve` lets through, up to the limit.
fn sifted(
    batches: BoxStream<'static, Result<RecordBatch, DataFusionError>>,
    sieve: Sieve,
    description: &ScanDescription,
) -> BoxStream<'static, Result<RecordBatch, DataFusionError>> {
    let place = address_place(description);
    let limit = description.limit.unwrap_or(usize::MAX);
    let batches = batches.and_then(move |batch| future::ready(sieve.sift(&batch, place)));
    stream::try_unfold((batches, limit), |(mut batches, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let Some(batch) = batches.try_next().await? else {
            return Ok(None);
        };
        let batch = batch.slice(0, left.min(batch.num_rows()));
        let left = left - batch.num_rows();
        Ok(Some((batch, (batches, left))))
    })
    .boxed()
}

/// Where the row addresses are in what Lance gives: behind all columns, unless they are asked for.
fn address_place(description: &ScanDescription) -> usize {
    let place = description.columns.iter().position(|name| name == ROW_ADDR);
    place.unwrap_or(description.columns.len())
}

/// Passes `batches` on in the shape that was promised, and keeps the metrics.
fn shape(
    mut batches: BoxStream<'static, Result<RecordBatch, DataFusionError>>,
    mut shaper: Shaper,
    metrics: BaselineMetrics,
) -> impl futures::Stream<Item = Result<RecordBatch, DataFusionError>> + Send + 'static {
    let mut ended = false;
    stream::poll_fn(move |cx| {
        let elapsed = metrics.elapsed_compute().clone();
        let _timer = elapsed.timer();
        let poll = loop {
            if let Some(batch) = shaper.ready.pop_front() {
                break Poll::Ready(Some(Ok(batch)));
            }
            if ended {
                break Poll::Ready(None);
            }
            let shaped = match batches.poll_next_unpin(cx) {
                Poll::Pending => break Poll::Pending,
                Poll::Ready(Some(Ok(batch))) => shaper.push(batch),
                Poll::Ready(Some(Err(error))) => Err(error),
                Poll::Ready(None) => {
                    ended = true;
                    shaper.finish()
                }
            };
            if let Err(error) = shaped {
                ended = true;
                break Poll::Ready(Some(Err(error)));
            }
        };
        metrics.record_poll(poll)
    })
}

/// Makes the descriptors of each column of a scan that shows blobs so, by the column's place.
fn describers(dataset: &Dataset, description: &ScanDescription) -> Vec<(usize, Describer)> {
    if description.blobs != Blobs::Descriptors {
        return Vec::new();
    }
    let columns = description.columns.iter().enumerate();
    columns
        .filter_map(|(place, name)| {
            let (id, _) = stored_blob(dataset, name)?;
            Some((place, Describer::new(dataset, id)))
        })
        .collect()
}

/// Gives batches the promised schema and size.
struct Shaper {
    schema: SchemaRef,
    describers: Vec<(usize, Describer)>,
    /// Where the row addresses are in what Lance gives; behind all columns if only
    /// descriptors need them.
    addresses: usize,
    rows: usize,
    bytes: usize,
    /// Gathers the small batches that a filter or a selection of rows leaves.
    gather: Option<BatchCoalescer>,
    gathered_bytes: usize,
    ready: VecDeque<RecordBatch>,
}

impl Shaper {
    fn new(schema: SchemaRef, dataset: &Dataset, description: &ScanDescription) -> Self {
        let rows = description.batch_rows;
        let leaves_little = description.filter.is_some() || !description.rows.is_all();
        let gather = leaves_little.then(|| {
            BatchCoalescer::new(schema.clone(), rows)
                .with_biggest_coalesce_batch_size(Some(rows / 2))
        });
        Self {
            describers: describers(dataset, description),
            addresses: address_place(description),
            schema,
            rows,
            bytes: usize::try_from(description.batch_bytes).unwrap_or(usize::MAX),
            gather,
            gathered_bytes: 0,
            ready: VecDeque::new(),
        }
    }

    fn push(&mut self, batch: RecordBatch) -> Result<(), DataFusionError> {
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let mut columns = batch.columns().to_vec();
        if !self.describers.is_empty() {
            let addresses = columns
                .get(self.addresses)
                .cloned()
                .ok_or_else(|| Error::internal("the scan gives no row addresses"))?;
            for (place, describer) in &self.describers {
                columns[*place] = describer.describe(&columns[*place], &addresses)?;
            }
        }
        columns.truncate(self.schema.fields().len());
        let batch = RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)?;
        let Some(gather) = &mut self.gather else {
            self.bound(batch);
            return Ok(());
        };
        let bytes = batch_bytes(&batch);
        if self.gathered_bytes.saturating_add(bytes) > self.bytes {
            gather.finish_buffered_batch()?;
            self.gathered_bytes = 0;
        }
        gather.push_batch(batch)?;
        self.gathered_bytes = self.gathered_bytes.saturating_add(bytes);
        self.take_gathered();
        Ok(())
    }

    fn finish(&mut self) -> Result<(), DataFusionError> {
        if let Some(gather) = &mut self.gather {
            gather.finish_buffered_batch()?;
            self.take_gathered();
        }
        Ok(())
    }

    fn take_gathered(&mut self) {
        while let Some(batch) = self.gather.as_mut().and_then(|g| g.next_completed_batch()) {
            self.gathered_bytes = 0;
            self.bound(batch);
        }
    }

    /// Cuts `batch` until its parts are as small as promised.
    fn bound(&mut self, batch: RecordBatch) {
        let rows = batch.num_rows();
        if rows > self.rows || (rows > 1 && batch_bytes(&batch) > self.bytes) {
            // Whole batches first, halves when it is the bytes.
            let cut = if rows > self.rows {
                self.rows
            } else {
                rows / 2
            };
            self.bound(batch.slice(0, cut));
            self.bound(batch.slice(cut, rows - cut));
        } else if rows > 0 {
            self.ready.push_back(batch);
        }
    }
}

/// The bytes of the rows of `batch`, though it may be a slice of larger arrays. Blobs that it only
/// describes count too: a function may read those of a whole batch at once.
fn batch_bytes(batch: &RecordBatch) -> usize {
    let described = usize::try_from(described_bytes(batch)).unwrap_or(usize::MAX);
    let columns: usize = batch.columns().iter().map(slice_bytes).sum();
    columns.saturating_add(described)
}
