//! Files that hold the values of some columns for one fragment, and committing them.

use std::collections::{BTreeSet, HashMap, HashSet};

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::Schema;
use datafusion::common::Result as DataFusionResult;
use futures::{Stream, StreamExt};
use lance::Dataset;
use lance::dataset::fragment::FileFragment;
use lance::dataset::transaction::{DataReplacementGroup, Operation};
use lance_table::format::{DataFile, Fragment};

use super::blob::written_batch;
use super::commit::{Properties, commit};
use super::storage_error;
use crate::{Error, ErrorKind, Result};

/// A column file that was written and is not committed yet.
#[derive(Debug, Clone)]
pub struct ColumnFile {
    /// Lance's `DataFile`, as JSON.
    pub json: String,
    /// Its size, as far as it is known.
    pub bytes: u64,
}

/// Writes `batches` as a file of `fragment`: they must have a row for each of its physical rows,
/// and only columns that the table has.
pub async fn write_column_file(
    table: &str,
    fragment: &FileFragment,
    batches: impl Stream<Item = DataFusionResult<RecordBatch>> + Send + 'static,
    columns: &[&str],
) -> Result<ColumnFile> {
    let schema = fragment
        .schema()
        .project(columns)
        .map_err(|error| storage_error(table, error))?;
    let stored = Schema::from(&schema);
    let batches = batches.map(move |batch| {
        batch
            .and_then(|batch| written_batch(&batch, &stored))
            .map_err(lance::Error::from)
    });
    let DataReplacementGroup(_, file) = fragment
        .write_columns(batches, &schema)
        .await
        .map_err(|error| storage_error(table, error))?;
    let bytes = file.file_size_bytes.get().map_or(0, |bytes| bytes.get());
    let json = serde_json::to_string(&file)
        .map_err(|error| Error::internal(format!("a data file can't be named: {error}")))?;
    Ok(ColumnFile { json, bytes })
}

/// Identifies the storage that some fields are read from in a fragment: another signature means
/// that the values may be others.
pub fn signature(fragment: &Fragment, field_ids: &BTreeSet<i32>) -> Vec<(String, i32, i32)> {
    let mut parts = Vec::new();
    for file in &fragment.files {
        for (index, id) in file.fields.iter().enumerate() {
            if field_ids.contains(id) {
                let column = file.column_indices.get(index).copied().unwrap_or(-1);
                parts.push((file.path.clone(), *id, column));
            }
        }
    }
    for overlay in &fragment.overlays {
        for id in overlay.data_file.fields.iter() {
            if field_ids.contains(id) {
                let version = overlay.committed_version as i32;
                parts.push((overlay.data_file.path.clone(), *id, version));
            }
        }
    }
    parts.sort();
    parts
}

/// The ids of columns and of what is nested in them.
pub fn field_ids(dataset: &Dataset, columns: &[&str]) -> Result<BTreeSet<i32>> {
    let schema = dataset.schema().project(columns).map_err(|error| {
        Error::new(ErrorKind::Conflict, format!("a column is gone: {error}")).with_source(error)
    })?;
    Ok(schema.fields_pre_order().map(|field| field.id).collect())
}

/// Of `files` (by fragment) those that still fit `latest`: their fragment is there, and its values of
/// `columns` are those that it had in `read_at`, where the files were made.
pub fn files_that_fit(
    read_at: &Dataset,
    latest: &Dataset,
    columns: &[&str],
    files: &HashMap<u64, String>,
) -> Result<HashSet<u64>> {
    let (then_ids, now_ids) = (field_ids(read_at, columns)?, field_ids(latest, columns)?);
    let by_id = |dataset: &Dataset| -> HashMap<u64, Fragment> {
        dataset
            .fragments()
            .iter()
            .filter(|fragment| files.contains_key(&fragment.id))
            .map(|fragment| (fragment.id, fragment.clone()))
            .collect()
    };
    let (then, now) = (by_id(read_at), by_id(latest));
    if then_ids != now_ids {
        return Ok(HashSet::new());
    }
    Ok(files
        .keys()
        .copied()
        .filter(|id| match (then.get(id), now.get(id)) {
            (Some(then), Some(now)) => {
                then.physical_rows == now.physical_rows
                    && signature(then, &then_ids) == signature(now, &now_ids)
            }
            _ => false,
        })
        .collect())
}

/// Commits column files (by fragment) to `latest`.
///
/// # Errors
///
/// [`ErrorKind::Conflict`] if others changed the same fragments meanwhile.
pub async fn commit_column_files(
    table: &str,
    latest: &Dataset,
    files: &HashMap<u64, String>,
    properties: Properties,
) -> Result<Dataset> {
    let mut replacements = Vec::with_capacity(files.len());
    for (fragment, json) in files {
        let file: DataFile = serde_json::from_str(json)
            .map_err(|error| Error::internal(format!("a data file can't be read: {error}")))?;
        replacements.push(DataReplacementGroup(*fragment, file));
    }
    replacements.sort_by_key(|group| group.0);
    let operation = Operation::DataReplacement { replacements };
    commit(table, latest, operation, properties, None).await
}
