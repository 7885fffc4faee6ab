//! Writing rows: new tables, appended rows, rows that are rewritten or deleted.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use datafusion::arrow::array::{AsArray, RecordBatchIterator};
use datafusion::arrow::datatypes::{SchemaRef, UInt64Type};
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;
use lance::Dataset;
use lance::dataset::transaction::{Operation, UpdateMode};
use lance::dataset::{InsertBuilder, WriteMode, WriteParams};
use lance_select::RowAddrTreeMap;
use lance_table::format::{Fragment, RowIdMeta};
use lance_table::rowids::{RowIdSequence, write_row_ids};

use super::commit::{Properties, commit, commit_error};
use super::{Root, RowSet, storage_error};
use crate::{Error, Result};

/// How a new table is laid out.
#[derive(Debug, Clone, Default)]
pub struct TableLayout {
    /// Rows a fragment holds at most; `None` for Lance's default (1,048,576).
    pub max_rows_per_fragment: Option<usize>,
    /// Bytes a data file has about at most; `None` for Lance's default (90 GB).
    pub max_bytes_per_file: Option<u64>,
}

impl TableLayout {
    pub(super) fn apply(&self, mut params: WriteParams) -> WriteParams {
        if let Some(rows) = self.max_rows_per_fragment {
            params.max_rows_per_file = rows;
        }
        if let Some(bytes) = self.max_bytes_per_file {
            params.max_bytes_per_file = usize::try_from(bytes).unwrap_or(usize::MAX);
        }
        params
    }
}

pub(super) fn write_params(root: &Root, mode: WriteMode, properties: Properties) -> WriteParams {
    WriteParams {
        mode,
        // Everything that is maintained incrementally needs ids that survive a rewrite.
        enable_stable_row_ids: true,
        // Versions that a state refers to must stay until VACUUM takes them.
        auto_cleanup: None,
        skip_auto_cleanup: true,
        session: Some(root.session()),
        store_params: Some(root.settings().params(root.url())),
        transaction_properties: (!properties.is_empty()).then(|| Arc::new(properties)),
        ..Default::default()
    }
}

/// Makes the table `name` with the rows of `rows`, or overwrites it with them.
///
/// The stream's schema becomes the table's, with the metadata of its fields. An error
/// of the stream itself comes back as it was.
pub async fn create_table(
    root: &Root,
    name: &str,
    schema: SchemaRef,
    rows: Option<SendableRecordBatchStream>,
    overwrite: bool,
    layout: &TableLayout,
) -> Result<Dataset> {
    let mode = if overwrite {
        WriteMode::Overwrite
    } else {
        WriteMode::Create
    };
    let params = layout.apply(write_params(root, mode, Properties::new()));
    let uri = root.table_uri(name);
    let builder = InsertBuilder::new(uri.as_str()).with_params(&params);
    let written = match rows {
        Some(rows) => {
            let (rows, failure) = keep_error(rows);
            let written = builder.execute_stream(rows).await;
            failure.take()?;
            written
        }
        None => {
            let empty = RecordBatchIterator::new(Vec::new(), schema);
            builder
                .execute_stream(Box::new(empty)
                    as Box<dyn datafusion::arrow::record_batch::RecordBatchReader + Send>)
                .await
        }
    };
    written.map_err(|error| commit_error(name, error))
}

/// Appends `rows`, whose schema names a subset of the table's columns; the others are NULL.
pub async fn append(
    root: &Root,
    table: &str,
    dataset: &Dataset,
    rows: SendableRecordBatchStream,
) -> Result<Dataset> {
    let params = write_params(root, WriteMode::Append, Properties::new());
    let (rows, failure) = keep_error(rows);
    let written = InsertBuilder::new(Arc::new(dataset.clone()))
        .with_params(&params)
        .execute_stream(rows)
        .await;
    failure.take()?;
    written.map_err(|error| commit_error(table, error))
}

/// Deletes the rows at `addresses`.
pub async fn delete_rows(table: &str, dataset: &Dataset, addresses: &RowSet) -> Result<Dataset> {
    let (updated_fragments, deleted_fragment_ids) = mark_deleted(table, dataset, addresses).await?;
    let operation = Operation::Delete {
        updated_fragments,
        deleted_fragment_ids,
        predicate: "headwater".to_string(),
    };
    let affected = addresses.iter().collect::<RowAddrTreeMap>();
    commit(table, dataset, operation, Properties::new(), Some(affected)).await
}

/// Removes all rows, keeping the schema and the definitions.
pub async fn delete_all_rows(table: &str, dataset: &Dataset) -> Result<Dataset> {
    let operation = Operation::Delete {
        updated_fragments: Vec::new(),
        deleted_fragment_ids: dataset.fragments().iter().map(|f| f.id).collect(),
        predicate: "true".to_string(),
    };
    commit(table, dataset, operation, Properties::new(), None).await
}

/// Rows on their way to new fragments, with the ids and addresses they had.
#[derive(Debug, Default)]
struct MovedRows {
    ids: Vec<u64>,
    addresses: RowSet,
}

/// Replaces rows: `rows` has every stored column of the table and, as its last two columns,
/// `_rowid` and `_rowaddr` of the row that it replaces. The rows keep their ids.
///
/// Returns the new version and the number of rows, or `None` if `rows` was empty.
///
/// # Errors
///
/// If two rows replace the same one.
pub async fn rewrite_rows(
    root: &Root,
    table: &str,
    dataset: &Dataset,
    rows: SendableRecordBatchStream,
    properties: Properties,
) -> Result<Option<(Dataset, u64)>> {
    let schema = rows.schema();
    let width = schema.fields().len().saturating_sub(2);
    let stored: Vec<usize> = (0..width).collect();
    let stored_schema = Arc::new(schema.project(&stored)?);
    let moved = Arc::new(Mutex::new(MovedRows::default()));
    let seen = Arc::clone(&moved);
    let rows = rows.map(move |batch| {
        let batch = batch?;
        let mut moved = seen.lock().unwrap_or_else(PoisonError::into_inner);
        moved
            .ids
            .extend_from_slice(batch.column(width).as_primitive::<UInt64Type>().values());
        for address in batch
            .column(width + 1)
            .as_primitive::<UInt64Type>()
            .values()
        {
            if !moved.addresses.insert(*address) {
                return Err(DataFusionError::from(
                    Error::invalid("more than one row of FROM matches the same row of the table")
                        .with_hint(
                            "make the join match at most one row, for example by grouping FROM",
                        ),
                ));
            }
        }
        Ok(batch.project(&stored)?)
    });
    let rows = Box::pin(RecordBatchStreamAdapter::new(stored_schema, rows));
    let (rows, failure) = keep_error(rows);
    let params = write_params(root, WriteMode::Append, Properties::new());
    let written = InsertBuilder::new(Arc::new(dataset.clone()))
        .with_params(&params)
        .execute_uncommitted_stream(rows)
        .await;
    failure.take()?;
    let transaction = written.map_err(|error| storage_error(table, error))?;
    let Operation::Append {
        fragments: mut new_fragments,
    } = transaction.operation
    else {
        return Err(Error::internal("writing rows did not prepare an append"));
    };
    let moved = std::mem::take(&mut *moved.lock().unwrap_or_else(PoisonError::into_inner));
    if moved.ids.is_empty() {
        return Ok(None);
    }
    if dataset.manifest().uses_stable_row_ids() {
        keep_row_ids(&mut new_fragments, &moved.ids)?;
    }
    let (updated_fragments, removed_fragment_ids) =
        mark_deleted(table, dataset, &moved.addresses).await?;
    let operation = Operation::Update {
        removed_fragment_ids,
        updated_fragments,
        new_fragments,
        fields_modified: Vec::new(),
        compacted_sstables: Vec::new(),
        fields_for_preserving_frag_bitmap: Vec::new(),
        update_mode: Some(UpdateMode::RewriteRows),
        inserted_rows_filter: None,
        updated_fragment_offsets: None,
    };
    let affected = moved.addresses.iter().collect::<RowAddrTreeMap>();
    let committed = commit(table, dataset, operation, properties, Some(affected)).await?;
    Ok(Some((committed, moved.ids.len() as u64)))
}

/// Gives the rows of fragments that were just written the ids in `ids`, which are in the
/// order in which the rows were written.
pub(super) fn keep_row_ids(fragments: &mut [Fragment], ids: &[u64]) -> Result<()> {
    let mut rest = ids;
    for fragment in fragments {
        let rows = fragment
            .physical_rows
            .filter(|rows| *rows <= rest.len())
            .ok_or_else(|| {
                Error::internal("a written fragment has an unexpected number of rows")
            })?;
        let (head, tail) = rest.split_at(rows);
        fragment.row_id_meta = Some(RowIdMeta::Inline(
            write_row_ids(&RowIdSequence::from(head)).into(),
        ));
        rest = tail;
    }
    match rest.len() {
        0 => Ok(()),
        left => Err(Error::internal(format!("{left} rows were not written"))),
    }
}

/// Writes deletion files for `addresses`: the fragments as they are then, and the ids of those
/// that have no row left.
pub(super) async fn mark_deleted(
    table: &str,
    dataset: &Dataset,
    addresses: &RowSet,
) -> Result<(Vec<Fragment>, Vec<u64>)> {
    let mut offsets: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    for address in addresses.iter() {
        offsets
            .entry(address >> 32)
            .or_default()
            .push(address as u32);
    }
    let by_id: HashMap<u64, _> = dataset
        .get_fragments()
        .into_iter()
        .map(|fragment| (fragment.id() as u64, fragment))
        .collect();
    let mut updated = Vec::new();
    let mut removed = Vec::new();
    for (id, offsets) in offsets {
        let fragment = by_id
            .get(&id)
            .ok_or_else(|| Error::internal(format!("fragment {id} is not in table '{table}'")))?
            .clone();
        match fragment
            .extend_deletions(offsets)
            .await
            .map_err(|error| storage_error(table, error))?
        {
            Some(fragment) => updated.push(fragment.metadata().clone()),
            None => removed.push(id),
        }
    }
    Ok((updated, removed))
}

/// The error that a stream ended with, kept on the way through a writer that would
/// otherwise turn it into text.
#[derive(Debug, Clone, Default)]
pub struct KeptError(Arc<Mutex<Option<DataFusionError>>>);

impl KeptError {
    /// The error, if there was one.
    pub fn take(&self) -> Result<()> {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(error) => Err(Error::from(error)),
            None => Ok(()),
        }
    }

    /// Keeps `error`, and gives a stand-in for it.
    pub fn put(&self, error: DataFusionError) -> DataFusionError {
        let stand_in = DataFusionError::Execution(error.to_string());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        stand_in
    }
}

/// Passes `stream` on and keeps the error that it ends with.
fn keep_error(stream: SendableRecordBatchStream) -> (SendableRecordBatchStream, KeptError) {
    let kept = KeptError::default();
    let keeper = kept.clone();
    let schema = stream.schema();
    let stream = stream.map(move |batch| batch.map_err(|error| keeper.put(error)));
    (
        Box::pin(RecordBatchStreamAdapter::new(schema, stream)),
        kept,
    )
}
