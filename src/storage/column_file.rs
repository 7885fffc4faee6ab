//! Files that hold the values of some columns for one fragment, and committing them.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch};
use datafusion::arrow::datatypes::Schema;
use datafusion::common::Result as DataFusionResult;
use futures::{Stream, StreamExt};
use lance::Dataset;
use lance::dataset::fragment::FileFragment;
use lance::dataset::transaction::{DataReplacementGroup, Operation};
use lance::dataset::{DataFilePart, DataFileTarget};
use lance_core::datatypes::Schema as LanceSchema;
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
    Ok(ColumnFile {
        json: to_json(&file)?,
        bytes,
    })
}

/// A column file that is written in parts, by several workers.
#[derive(Debug, Clone)]
pub struct SplitFile {
    table: String,
    dataset: Arc<Dataset>,
    target: DataFileTarget,
    stored: Arc<Schema>,
}

impl SplitFile {
    /// A file that is not there yet, for `columns` of `table`.
    pub fn new(table: &str, dataset: &Arc<Dataset>, columns: &[&str]) -> Result<Self> {
        let fail = |error| storage_error(table, error);
        let schema = dataset.schema().project(columns).map_err(fail)?;
        let stored = Arc::new(Schema::from(&schema));
        let format = dataset.manifest().data_storage_format.lance_file_format();
        let target = DataFileTarget::new(None, Arc::new(schema), format).map_err(fail)?;
        Ok(Self {
            table: table.to_string(),
            dataset: Arc::clone(dataset),
            target,
            stored,
        })
    }

    /// The file as text, for another process that writes a part of it.
    pub fn write(&self) -> Result<String> {
        to_json(&self.target)
    }

    /// Reads what [`write`](Self::write) wrote, for `columns` of `table`.
    pub fn read(text: &str, table: &str, dataset: &Arc<Dataset>, columns: &[&str]) -> Result<Self> {
        let mut file = Self::new(table, dataset, columns)?;
        file.target = from_json(text)?;
        Ok(file)
    }

    /// Writes some of its rows. Gives the part, as JSON of Lance's `DataFilePart`, and its bytes.
    pub async fn write_part(
        &self,
        batches: impl Stream<Item = DataFusionResult<RecordBatch>> + Send + 'static,
    ) -> Result<ColumnFile> {
        let stored = Arc::clone(&self.stored);
        let batches = batches.map(move |batch| {
            batch
                .and_then(|batch| written_batch(&batch, &stored))
                .map_err(lance::Error::from)
        });
        let part = self
            .dataset
            .write_data_file_part(&self.target, None, batches)
            .await
            .map_err(|error| storage_error(&self.table, error))?;
        let bytes = part.size_bytes();
        Ok(ColumnFile {
            json: to_json(&part)?,
            bytes,
        })
    }

    /// Puts the parts together, in their order; encoded pages are copied, not decoded.
    pub async fn join(&self, parts: &[String]) -> Result<ColumnFile> {
        let fail = |error| storage_error(&self.table, error);
        let parts = parts
            .iter()
            .map(|json| from_json::<DataFilePart>(json))
            .collect::<Result<Vec<_>>>()?;
        let file = self
            .dataset
            .concat_data_file_parts(&self.target, &parts)
            .await
            .map_err(fail)?;
        self.target.finish(&self.dataset).await.map_err(fail)?;
        let bytes = file.file_size_bytes.get().map_or(0, |bytes| bytes.get());
        Ok(ColumnFile {
            json: to_json(&file)?,
            bytes,
        })
    }

    /// Removes what was written of it.
    pub async fn discard(&self) -> Result<()> {
        self.target
            .cleanup(&self.dataset)
            .await
            .map_err(|error| storage_error(&self.table, error))
    }
}

/// Reads rows of a column file that no version of its table has.
#[derive(Debug)]
pub struct ColumnFileReader {
    table: String,
    fragment: FileFragment,
    schema: LanceSchema,
}

impl ColumnFileReader {
    /// Reads the fields `field_ids` of the file `json`, which was written for the fragment `fragment` of
    /// the table of `dataset`, at whatever version.
    pub fn new(
        table: &str,
        dataset: &Arc<Dataset>,
        fragment: u64,
        json: &str,
        field_ids: &[i32],
    ) -> Result<Self> {
        let file: DataFile = from_json(json)?;
        // Of its fragment only the file matters: rows are named by their place in it.
        let mut metadata = Fragment::new(fragment);
        metadata.files = vec![file];
        let all = dataset.schema();
        let fields = field_ids
            .iter()
            .map(|id| {
                let field = all.fields.iter().find(|field| field.id == *id);
                field.cloned().ok_or_else(|| {
                    Error::new(
                        ErrorKind::Conflict,
                        format!("a column of '{table}' is gone"),
                    )
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            table: table.to_string(),
            fragment: FileFragment::new(Arc::clone(dataset), metadata),
            schema: LanceSchema {
                fields,
                metadata: Default::default(),
            },
        })
    }

    /// The values of the field at place `field` at `offsets`, in their order.
    pub async fn take(&self, field: usize, offsets: &[u32]) -> Result<ArrayRef> {
        let schema = LanceSchema {
            fields: vec![self.schema.fields[field].clone()],
            metadata: Default::default(),
        };
        let batch = self
            .fragment
            .take(offsets, &schema)
            .await
            .map_err(|error| storage_error(&self.table, error))?;
        Ok(Arc::clone(batch.column(0)))
    }
}

fn to_json<T: serde::Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|error| Error::internal(format!("a data file can't be named: {error}")))
}

fn from_json<T: serde::de::DeserializeOwned>(json: &str) -> Result<T> {
    serde_json::from_str(json)
        .map_err(|error| Error::internal(format!("a data file can't be read: {error}")))
}

/// Whether `fragment` reads the column file `json`.
pub fn has_file(fragment: &Fragment, json: &str) -> Result<bool> {
    let file: DataFile = from_json(json)?;
    Ok(fragment.files.iter().any(|other| other.path == file.path))
}

/// Whether the column file `json` is in the store.
pub async fn file_exists(table: &str, dataset: &Dataset, json: &str) -> Result<bool> {
    let fail = |error| storage_error(table, error);
    let file: DataFile = from_json(json)?;
    let store = dataset.object_store(file.base_id).await.map_err(fail)?;
    let path = dataset.data_dir().join(file.path.as_str());
    store.exists(&path).await.map_err(fail)
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
        replacements.push(DataReplacementGroup(*fragment, from_json(json)?));
    }
    replacements.sort_by_key(|group| group.0);
    let operation = Operation::DataReplacement { replacements };
    commit(table, latest, operation, properties, None).await
}
