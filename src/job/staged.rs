//! Files of results that are computed, but not committed, whatever they are results of.
//!
//! They lie in `_headwater/staged/<table>/`. A record (`.json`) is written after the file that it names, so what a
//! record says is there. The names of both begin with the job.

use std::io::Cursor;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::compute::concat_batches;
use datafusion::arrow::ipc::reader::FileReader;
use datafusion::arrow::ipc::writer::FileWriter;
use futures::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::database::Database;
use crate::{Error, Result};

/// Records that are read, or removed, at once: a store that is far away takes its time for each.
const AT_ONCE: usize = 16;

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
    let records = names.iter().filter_map(|name| {
        let stem = name.strip_suffix(".json")?;
        let has_file = names.binary_search(&format!("{stem}.arrow")).is_ok();
        Some(format!("{folder}/{name}")).filter(|path| wanted(path, has_file))
    });
    let paths: Vec<String> = records.collect();
    let read = stream::iter(paths).map(|path| async move {
        let bytes = database.root().read_own(&path).await?;
        let record = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Ok::<_, Error>(record.map(|record| (path, record)))
    });
    let read: Vec<Option<(String, T)>> = read.buffered(AT_ONCE).try_collect().await?;
    Ok(read.into_iter().flatten().collect())
}

/// Removes records, each before the file that it names: what a record says must be there.
pub async fn remove_records(
    database: &Database,
    records: Vec<(String, Option<String>)>,
) -> Result<()> {
    let removed = stream::iter(records).map(Ok);
    let remove = |(record, file): (String, Option<String>)| async move {
        database.root().remove_own(&record).await?;
        match file {
            Some(file) => database.root().remove_own(&file).await,
            None => Ok(()),
        }
    };
    removed.try_for_each_concurrent(AT_ONCE, remove).await
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
