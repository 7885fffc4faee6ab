//! Files of results that are computed, but not committed, whatever they are results of.
//!
//! They lie in `_headwater/staged/<table>/`. A record (`.json`) is written after the file that it names, so what a
//! record says is there. The names of both begin with the job.

use std::io::Cursor;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::compute::concat_batches;
use datafusion::arrow::ipc::reader::FileReader;
use datafusion::arrow::ipc::writer::FileWriter;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::database::Database;
use crate::{Error, Result};

/// Where results for a table are staged, below `_headwater/`.
pub fn folder(table: &str) -> String {
    format!("staged/{table}")
}

/// A name for a file and its record.
pub fn new_name(job: &str) -> String {
    format!("{job}-{}", uuid::Uuid::new_v4().simple())
}

/// Writes the file `name` for `table`, and says where it is below `_headwater/`.
pub async fn write_file(
    database: &Database,
    table: &str,
    name: &str,
    batch: &RecordBatch,
) -> Result<String> {
    let path = format!("{}/{name}.arrow", folder(table));
    database.root().create_own(&path, ipc(batch)?).await?;
    Ok(path)
}

/// Writes the record `name` for `table`.
pub async fn write_record(
    database: &Database,
    table: &str,
    name: &str,
    record: &impl Serialize,
) -> Result<()> {
    let path = format!("{}/{name}.json", folder(table));
    let content = serde_json::to_vec(record)
        .map_err(|error| Error::internal(format!("a record can't be written: {error}")))?;
    database.root().create_own(&path, content).await?;
    Ok(())
}

/// All records of a table, by their paths. Those that can't be read are left out: they only save work.
pub async fn records<T: DeserializeOwned>(
    database: &Database,
    table: &str,
) -> Result<Vec<(String, T)>> {
    records_where(database, table, |_, _| true).await
}

/// As [`records`], but reads only those that are `wanted`: it is told the path of a record, and whether there is a file
/// beside it.
pub async fn records_where<T: DeserializeOwned>(
    database: &Database,
    table: &str,
    wanted: impl Fn(&str, bool) -> bool,
) -> Result<Vec<(String, T)>> {
    let folder = folder(table);
    let names = database.root().list_own(&folder).await?;
    let mut records = Vec::new();
    for name in &names {
        let Some(stem) = name.strip_suffix(".json") else {
            continue;
        };
        let has_file = names.binary_search(&format!("{stem}.arrow")).is_ok();
        let path = format!("{folder}/{name}");
        if wanted(&path, has_file)
            && let Some(bytes) = database.root().read_own(&path).await?
            && let Ok(record) = serde_json::from_slice(&bytes)
        {
            records.push((path, record));
        }
    }
    Ok(records)
}

/// Whether the record at `path` is of `job`.
pub fn is_of(path: &str, job: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.strip_prefix(job)
        .is_some_and(|rest| rest.starts_with('-'))
}

/// Removes all files that a job has staged for a table, those without a record, too.
pub async fn discard_all(database: &Database, table: &str, job: &str) -> Result<()> {
    database.root().remove_own_files(&folder(table), job).await
}

/// A batch as an Arrow IPC file.
pub fn ipc(batch: &RecordBatch) -> Result<Vec<u8>> {
    let mut writer = FileWriter::try_new(Vec::new(), &batch.schema())?;
    writer.write(batch)?;
    Ok(writer.into_inner()?)
}

/// The rows of an Arrow IPC file; only the columns at `places` if these are given.
pub fn from_ipc(bytes: impl AsRef<[u8]>, places: Option<Vec<usize>>) -> Result<RecordBatch> {
    let reader = FileReader::try_new(Cursor::new(bytes), places)?;
    let schema = reader.schema();
    let batches = reader.collect::<std::result::Result<Vec<_>, _>>()?;
    Ok(concat_batches(&schema, &batches)?)
}
