//! Finds the file that is to blame when a scan fails.
//!
//! Lance's errors often say what is wrong with some bytes, but not of which file.
//! So after a failure, and only then, the files of the partition are looked at one
//! by one.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use datafusion::common::DataFusionError;
use datafusion::physical_plan::metrics::Count;
use futures::TryStreamExt;
use lance_core::datatypes::Field;
use lance_table::format::DataFile;

use super::read::{Job, Reading, raw};
use super::{ScanDescription, ScanPartition};
use crate::storage::open::{LOST_FILE, query_error, without_table};
use crate::{Error, ErrorKind};

/// How long to look for the file.
const PATIENCE: Duration = Duration::from_secs(30);

/// Says of the failure of `job` which table it is about and, if reading failed,
/// which file.
pub(super) async fn explain(job: &Job, error: DataFusionError) -> Error {
    let table = job.description.table();
    let error = query_error(table, error);
    if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Cancelled) {
        return error;
    }
    match tokio::time::timeout(PATIENCE, find(job)).await {
        Ok(Some((file, why))) => {
            let uri = job.description.uri.trim_end_matches('/');
            let message = format!("table '{table}': the file '{uri}/data/{}' {why}", file.path);
            Error::new(ErrorKind::Storage, message)
                .with_hint(LOST_FILE)
                .with_source(error)
        }
        _ => error,
    }
}

/// The first file that can't be read, and why.
async fn find(job: &Job) -> Option<(&DataFile, String)> {
    for (place, fragment) in job.fragments() {
        for file in &fragment.files {
            if let Some(why) = missing_or_resized(job, file).await {
                return Some((file, why));
            }
            let columns = columns_in(job, file);
            if !columns.is_empty()
                && let Err(error) = read(job, place, columns).await
            {
                let table = job.description.table();
                let error = query_error(table, error);
                let why = without_table(table, &error);
                return Some((file, format!("can't be read: {why}")));
            }
        }
    }
    None
}

/// Whether `file` is gone, or has another size than when it was written.
async fn missing_or_resized(job: &Job, file: &DataFile) -> Option<String> {
    if file.base_id.is_some() {
        // It is not in the folder of this table.
        return None;
    }
    let store = job.dataset.object_store(None).await.ok()?;
    let path = job.dataset.data_dir().join(file.path.as_str());
    match store.size(&path).await {
        Ok(size) => {
            let written = file.file_size_bytes.get()?.get();
            (size != written).then(|| format!("has {size} bytes, but {written} were written"))
        }
        Err(error) if error.is_not_found() => Some("is missing".to_string()),
        Err(_) => None,
    }
}

/// The columns of the scan that `file` holds.
fn columns_in(job: &Job, file: &DataFile) -> Vec<String> {
    fn ids(field: &Field, into: &mut HashSet<i32>) {
        into.insert(field.id);
        field.children.iter().for_each(|child| ids(child, into));
    }
    let description = &job.description;
    let mut wanted: HashSet<&str> = description.columns.iter().map(String::as_str).collect();
    if let Some(filter) = &description.filter {
        wanted.extend(filter.column_refs().iter().map(|column| column.name()));
    }
    let fields = job.dataset.schema().fields.iter();
    fields
        .filter(|field| wanted.contains(field.name.as_str()))
        .filter(|field| {
            let mut stored = HashSet::new();
            ids(field, &mut stored);
            file.fields.iter().any(|id| stored.contains(id))
        })
        .map(|field| field.name.clone())
        .collect()
}

/// Reads `columns` of the fragment at `place` in the manifest and forgets them.
async fn read(job: &Job, place: usize, columns: Vec<String>) -> Result<(), DataFusionError> {
    let alone = Job {
        dataset: job.dataset.clone(),
        schema: job.schema.clone(),
        description: Arc::new(ScanDescription {
            columns,
            filter: None,
            limit: None,
            ..job.description.as_ref().clone()
        }),
        partitions: Arc::new(vec![ScanPartition {
            fragments: vec![place],
            rows: None,
        }]),
        partition: 0,
        places: 0..1,
        parallelism: 1,
    };
    let (scanner, _) = alone.scanner(Count::new(), Reading::Plain).await?;
    raw(job.description.table(), scanner)
        .try_for_each(|_| async { Ok(()) })
        .await
}
