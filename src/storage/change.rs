//! Changes of a table's rows that are written first and committed later, all at once: what a refresh of a
//! materialized view does.
//!
//! Of two changes that were prepared on one version only one is committed, whatever is in them. Lance
//! would let both of two appends through, and rows would be there twice. So each carries the claim to
//! have inserted one and the same key ([`sentinel`]), which Lance takes for a conflict. Who gets it
//! prepares the change again from the newest version; nothing is ever rebased.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, AsArray, BooleanArray, PrimitiveArray, RecordBatch, UInt8Array,
};
use datafusion::arrow::compute::{CastOptions, cast_with_options, filter_record_batch};
use datafusion::arrow::datatypes::{ArrowPrimitiveType, Schema, SchemaRef, UInt8Type, UInt64Type};
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{StreamExt, stream};
use lance::Dataset;
use lance::dataset::transaction::{Operation, UpdateMode};
use lance::dataset::{InsertBuilder, WriteMode, WriteParams};
use lance_table::format::Fragment;
use lance_table::format::key_existence::{FilterType, KeyExistenceFilter};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::blob::{BlobReader, is_blob, written_rows};
use super::commit::{Properties, commit};
use super::write::{KeptError, TableLayout, keep_row_ids, mark_deleted, write_params};
use super::{Root, RowSet, storage_error};
use crate::{Error, Result};

/// The last column of the rows of a change: what each row is.
pub const CHANGE: &str = "_change";
/// In [`CHANGE`]: a new row. It has no row id and no address.
pub const INSERT: u8 = 0;
/// In [`CHANGE`]: the row takes the place of the stored one at its address, and keeps its id.
pub const REPLACE: u8 = 1;
/// In [`CHANGE`]: the stored row at the address goes; nothing else of the row counts.
pub const DELETE: u8 = 2;

/// The last columns of the rows of a change, behind those that are stored.
const ROLES: [&str; 3] = ["_rowid", "_rowaddr", CHANGE];
/// New rows that are written by one writer, before there are others.
const ROWS_OF_ONE_WRITER: u64 = 1 << 18;
/// The key that every change claims to insert; any number will do.
const SENTINEL: u64 = 0x6865_6164_7761_7465;

/// Rows that were written for a table, and are not committed.
#[derive(Debug)]
pub struct Change {
    /// The version of the table that it is a change of.
    version: u64,
    /// New rows.
    inserted: Vec<Fragment>,
    /// Rows in the place of stored ones, with the ids of these.
    replaced: Vec<Fragment>,
    /// Addresses of the stored rows that go, those that are replaced among them.
    removed: RowSet,
    /// How many rows are new.
    pub rows_inserted: u64,
    /// How many rows replace a stored one.
    pub rows_replaced: u64,
    /// How many stored rows go without a replacement.
    pub rows_deleted: u64,
    /// Bytes that were written.
    pub bytes: u64,
}

impl Change {
    /// Whether no row is changed.
    pub fn is_empty(&self) -> bool {
        self.inserted.is_empty() && self.removed.is_empty()
    }

    /// The version of the table that it is a change of: it can be committed on a handle of this version
    /// only.
    pub fn version(&self) -> u64 {
        self.version
    }

    fn fragments(&self) -> impl Iterator<Item = &Fragment> {
        self.inserted.iter().chain(&self.replaced)
    }
}

/// Writes `rows` as a change of `dataset`, which is `table` at some version; nobody sees it before it is
/// [committed](commit_change).
///
/// `rows` has the stored columns of the table in their order, hidden ones too; then `_rowid` and `_rowaddr`,
/// which say which stored row is meant; then [`CHANGE`]. Blobs are bytes or descriptors. New rows and rows that
/// replace others go to files of their own. Up to `writers` files of new rows are written at once; with one, rows are stored
/// in the order in which they come. An error of the stream comes back as it was, and leaves no file.
///
/// # Errors
///
/// Of the kind internal if the columns are others, or two rows mean the same stored row.
pub async fn write_change(
    root: &Root,
    table: &str,
    dataset: &Dataset,
    rows: SendableRecordBatchStream,
    layout: &TableLayout,
    writers: usize,
) -> Result<Change> {
    if !dataset.manifest().uses_stable_row_ids() {
        return Err(Error::internal(format!(
            "table '{table}' has no row ids that survive a rewrite: changes of it can't keep them"
        )));
    }
    let mut sorter = Sorter::new(table, dataset, &rows.schema())?;
    let (stored, given) = (Arc::clone(&sorter.stored), Arc::clone(&sorter.given));
    let failure = KeptError::default();
    let channels = (0..writers.max(1)).map(|_| mpsc::channel(1));
    let (to_inserted, inserted): (Vec<_>, Vec<_>) = channels.unzip();
    let (to_replaced, replaced) = mpsc::channel(1);
    let writers = Writers {
        inserted: to_inserted,
        replaced: to_replaced,
    };
    let writer = FragmentWriter {
        blobs: Arc::clone(root.blobs()),
        table: table.to_string(),
        dataset: Arc::new(dataset.clone()),
        stored,
        params: layout.apply(write_params(root, WriteMode::Append, Properties::new())),
    };
    // On tasks of their own, since encoding is work.
    let mut writing = JoinSet::new();
    for (place, rows) in inserted.into_iter().enumerate() {
        let (writer, rows) = (writer.clone(), received(&given, rows));
        writing.spawn(async move { (place, writer.write(rows).await) });
    }
    let inserted = async {
        let mut written = BTreeMap::new();
        while let Some(done) = writing.join_next().await {
            let (place, fragments) = done.map_err(|error| {
                Error::internal(format!("a task that writes rows failed: {error}"))
            })?;
            written.insert(place, fragments);
        }
        Ok::<_, Error>(written)
    };
    let replaced = writer.write(received(&given, replaced));
    let sort = sort_rows(&mut sorter, rows, writers, &failure);
    let ((), inserted, replaced) = tokio::join!(sort, inserted, replaced);
    let failed = failure.take();
    let mut written: Vec<Result<Vec<Fragment>>> = match inserted {
        Ok(inserted) => inserted.into_values().collect(),
        Err(error) => vec![Err(error)],
    };
    written.push(replaced);
    if failed.is_err() || written.iter().any(Result::is_err) {
        // One failed; what the others have written nobody will commit.
        for written in written.iter().flatten() {
            remove_files(dataset, written).await;
        }
    }
    failed?;
    let mut written: Vec<Vec<Fragment>> = written.into_iter().collect::<Result<_>>()?;
    let mut replaced = written.pop().unwrap_or_default();
    let inserted: Vec<Fragment> = written.into_iter().flatten().collect();
    keep_row_ids(&mut replaced, &sorter.ids)?;
    let rows_replaced = sorter.ids.len() as u64;
    let mut change = Change {
        version: dataset.version().version,
        inserted,
        replaced,
        rows_inserted: sorter.inserted,
        rows_replaced,
        rows_deleted: sorter.removed.len() - rows_replaced,
        removed: sorter.removed,
        bytes: 0,
    };
    let files = change.fragments().flat_map(|fragment| &fragment.files);
    change.bytes = files
        .filter_map(|file| file.file_size_bytes.get())
        .map(|bytes| bytes.get())
        .sum();
    Ok(change)
}

/// Commits `change` and `properties` to `dataset`, which is at the version that the change was written for.
/// With `replace_all` the rows of the change are the whole table then; stored ones that it does not name go
/// too. A change without rows is committed all the same: its properties count.
///
/// # Errors
///
/// [`ErrorKind::Conflict`](crate::ErrorKind::Conflict) if another change, or what others did to the rows, was
/// committed since. Deletions that others made in other fragments are let through; so is what does not
/// touch rows. Nothing of the change is committed then, and it never can be: [discard](discard_change) it. After any
/// other error it may have been committed.
pub async fn commit_change(
    table: &str,
    dataset: &Dataset,
    change: &Change,
    properties: Properties,
    replace_all: bool,
) -> Result<Dataset> {
    let version = dataset.version().version;
    if version != change.version {
        return Err(Error::internal(format!(
            "a change of version {} of table '{table}' can't be committed on version {version}",
            change.version
        )));
    }
    let (updated_fragments, removed_fragment_ids) = match replace_all {
        true => {
            let all = dataset.fragments().iter().map(|fragment| fragment.id);
            (Vec::new(), all.collect())
        }
        false => mark_deleted(table, dataset, &change.removed).await?,
    };
    let operation = Operation::Update {
        removed_fragment_ids,
        updated_fragments,
        new_fragments: change.fragments().cloned().collect(),
        fields_modified: Vec::new(),
        compacted_sstables: Vec::new(),
        fields_for_preserving_frag_bitmap: all_field_ids(dataset),
        update_mode: Some(UpdateMode::RewriteRows),
        inserted_rows_filter: Some(sentinel(dataset)),
        updated_fragment_offsets: None,
    };
    // Without the rows that it affects, Lance can't merge it with deletions in the same fragments.
    commit(table, dataset, operation, properties, None).await
}

/// Removes the files of a change that will not be committed. What can't be removed is left to clean-ups.
pub async fn discard_change(dataset: &Dataset, change: Change) {
    remove_files(dataset, &change.inserted).await;
    remove_files(dataset, &change.replaced).await;
}

/// The claim of a change to have inserted a key that all others insert too.
fn sentinel(dataset: &Dataset) -> KeyExistenceFilter {
    // If others drop the column meanwhile, that is a conflict as well.
    let field = dataset.schema().fields.first().map_or(0, |field| field.id);
    KeyExistenceFilter {
        field_ids: vec![field],
        filter: FilterType::ExactSet(HashSet::from([SENTINEL])),
    }
}

/// The ids of all fields, nested ones too. A commit that moves rows with their ids has to name those whose
/// values it changed, or indexes go on as if they knew the new values.
fn all_field_ids(dataset: &Dataset) -> Vec<u32> {
    let fields = dataset.schema().fields_pre_order();
    fields
        .filter_map(|field| field.id.try_into().ok())
        .collect()
}

type Sender = mpsc::Sender<Result<RecordBatch, DataFusionError>>;
type Receiver = mpsc::Receiver<Result<RecordBatch, DataFusionError>>;

/// What is sent to a writer, as the stream that it reads.
fn received(schema: &SchemaRef, rows: Receiver) -> SendableRecordBatchStream {
    let rows = stream::unfold(rows, |mut rows| async move {
        rows.recv().await.map(|batch| (batch, rows))
    });
    Box::pin(RecordBatchStreamAdapter::new(Arc::clone(schema), rows))
}

/// Where rows are sent to be written.
struct Writers {
    /// Those of new rows; there is at least one.
    inserted: Vec<Sender>,
    /// The one of rows that replace others.
    replaced: Sender,
}

impl Writers {
    /// Sends all of them an error, so that they remove what they have written.
    async fn stop(&self, text: &str) {
        for writer in &self.inserted {
            stop_writer(writer, text).await;
        }
        stop_writer(&self.replaced, text).await;
    }
}

async fn stop_writer(writer: &Sender, text: &str) {
    // A writer that is gone has failed, and has nothing to be told.
    let error = DataFusionError::Execution(text.to_string());
    let _ = writer.send(Err(error)).await;
}

/// Sends each row to the writer that it is for. If that fails, all writers get an error; the error itself is in
/// `failure`, unless it is that of a writer.
async fn sort_rows(
    sorter: &mut Sorter,
    mut rows: SendableRecordBatchStream,
    writers: Writers,
    failure: &KeptError,
) {
    let mut batches = 0;
    while let Some(batch) = rows.next().await {
        // Few rows are not worth several files.
        let place = match sorter.inserted < ROWS_OF_ONE_WRITER {
            true => 0,
            false => batches % writers.inserted.len(),
        };
        batches += 1;
        let [inserted, replaced] = match batch.and_then(|batch| sorter.sort(&batch)) {
            Ok(sorted) => sorted,
            Err(error) => {
                let error = failure.put(error).to_string();
                return writers.stop(&error).await;
            }
        };
        let is_gone = (inserted.num_rows() > 0
            && writers.inserted[place].send(Ok(inserted)).await.is_err())
            || (replaced.num_rows() > 0 && writers.replaced.send(Ok(replaced)).await.is_err());
        if is_gone {
            return writers.stop("another writer failed").await;
        }
    }
}

/// Writes rows to new fragments.
#[derive(Clone)]
struct FragmentWriter {
    blobs: Arc<BlobReader>,
    table: String,
    dataset: Arc<Dataset>,
    /// The columns as the table stores them.
    stored: SchemaRef,
    params: WriteParams,
}

impl FragmentWriter {
    async fn write(&self, rows: SendableRecordBatchStream) -> Result<Vec<Fragment>> {
        let rows = written_rows(Arc::clone(&self.blobs), rows, &self.stored);
        // The writer would begin a file for no rows.
        let mut rows = rows.peekable();
        let schema = rows.get_ref().schema();
        if std::pin::Pin::new(&mut rows).peek().await.is_none() {
            return Ok(Vec::new());
        }
        let rows: SendableRecordBatchStream = Box::pin(RecordBatchStreamAdapter::new(schema, rows));
        let transaction = InsertBuilder::new(Arc::clone(&self.dataset))
            .with_params(&self.params)
            .execute_uncommitted_stream(rows)
            .await
            .map_err(|error| storage_error(&self.table, error))?;
        match transaction.operation {
            Operation::Append { fragments } => Ok(fragments),
            _ => Err(Error::internal("writing rows did not prepare an append")),
        }
    }
}

/// Tells the rows of a change from each other, and remembers which stored rows they mean.
struct Sorter {
    /// The columns as the table stores them.
    stored: SchemaRef,
    /// The same as they are given to the writers, which know what to do with blobs.
    given: SchemaRef,
    /// How many rows were new.
    inserted: u64,
    /// Ids of the rows that were replaced, in their order.
    ids: Vec<u64>,
    /// Addresses of the rows that go.
    removed: RowSet,
}

impl Sorter {
    fn new(table: &str, dataset: &Dataset, schema: &Schema) -> Result<Self> {
        let stored = Schema::from(dataset.schema());
        let wanted = stored.fields().iter().map(|field| field.name().as_str());
        let names = schema.fields().iter().map(|field| field.name().as_str());
        if !names.eq(wanted.chain(ROLES)) {
            return Err(Error::internal(format!(
                "the rows of a change of table '{table}' have other columns than the table"
            )));
        }
        let given = stored.fields().iter().zip(schema.fields());
        let given = given.map(|(stored, given)| match is_blob(stored) {
            true => {
                let stored = stored.as_ref().clone();
                Arc::new(stored.with_data_type(given.data_type().clone()))
            }
            false => Arc::clone(stored),
        });
        Ok(Self {
            given: Arc::new(Schema::new(given.collect::<Vec<_>>())),
            stored: Arc::new(stored),
            inserted: 0,
            ids: Vec::new(),
            removed: RowSet::new(),
        })
    }

    /// The new rows of `batch`, and those that replace others.
    fn sort(&mut self, batch: &RecordBatch) -> Result<[RecordBatch; 2], DataFusionError> {
        let width = self.given.fields().len();
        let ids = role::<UInt64Type>(batch, width)?;
        let addresses = role::<UInt64Type>(batch, width + 1)?;
        let changes = role::<UInt8Type>(batch, width + 2)?;
        for row in 0..batch.num_rows() {
            match changes.is_valid(row).then(|| changes.value(row)) {
                Some(INSERT) => self.inserted += 1,
                Some(REPLACE) if ids.is_valid(row) => {
                    self.ids.push(ids.value(row));
                    self.remove(addresses, row)?;
                }
                Some(DELETE) => self.remove(addresses, row)?,
                _ => return Err(Error::internal("a row of a change says not what it is").into()),
            }
        }
        Ok([
            self.rows(batch, changes, INSERT)?,
            self.rows(batch, changes, REPLACE)?,
        ])
    }

    fn remove(
        &mut self,
        addresses: &PrimitiveArray<UInt64Type>,
        row: usize,
    ) -> Result<(), DataFusionError> {
        if addresses.is_null(row) {
            return Err(Error::internal("a row of a change says not which row it means").into());
        }
        if !self.removed.insert(addresses.value(row)) {
            let address = addresses.value(row);
            let error = format!("two rows of a change mean the row at address {address}");
            return Err(Error::internal(error).into());
        }
        Ok(())
    }

    /// The rows of one kind, as they are stored.
    fn rows(
        &self,
        batch: &RecordBatch,
        changes: &UInt8Array,
        kind: u8,
    ) -> Result<RecordBatch, DataFusionError> {
        let mask = BooleanArray::from_unary(changes, |change| change == kind);
        let rows = match mask.true_count() {
            0 => return Ok(RecordBatch::new_empty(Arc::clone(&self.given))),
            all if all == batch.num_rows() => batch.clone(),
            _ => filter_record_batch(batch, &mask)?,
        };
        // Values are stored in one form whatever the engine uses in memory.
        let options = CastOptions {
            safe: false,
            ..Default::default()
        };
        let columns = self.given.fields().iter().zip(rows.columns());
        let columns =
            columns.map(
                |(field, column)| match field.data_type() == column.data_type() {
                    true => Ok(Arc::clone(column)),
                    false => cast_with_options(column, field.data_type(), &options),
                },
            );
        let columns = columns.collect::<Result<_, _>>()?;
        Ok(RecordBatch::try_new(Arc::clone(&self.given), columns)?)
    }
}

/// The column at `place`, which says something about the rows.
fn role<T: ArrowPrimitiveType>(
    batch: &RecordBatch,
    place: usize,
) -> Result<&PrimitiveArray<T>, DataFusionError> {
    let column = batch.column(place).as_primitive_opt::<T>();
    column.ok_or_else(|| Error::internal("a column of a change has another type").into())
}

/// Removes the files of fragments that no version has.
async fn remove_files(dataset: &Dataset, fragments: &[Fragment]) {
    for file in fragments.iter().flat_map(|fragment| &fragment.files) {
        let path = dataset.data_dir().join(file.path.as_str());
        let removed = match dataset.object_store(file.base_id).await {
            Ok(store) => {
                if let Some(stem) = file.path.strip_suffix(".lance") {
                    // Large blobs are beside the file; mostly there are none.
                    let _ = store.remove_dir_all(dataset.data_dir().join(stem)).await;
                }
                store.delete(&path).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = removed {
            log::warn!("the file '{path}', which nobody needs, can't be removed: {error}");
        }
    }
}

#[cfg(test)]
mod tests;
