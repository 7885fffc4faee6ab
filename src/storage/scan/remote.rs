//! Scans that other processes run.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{TryStreamExt, stream};
use lance::Dataset;
use lance::session::Session;
use lance_io::object_store::WrappingObjectStore;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

use super::{Blobs, LanceScanExec, RowFilter, ScanDescription, Window};
use crate::engine::deferred::{Codecs, NodeCodec};
use crate::engine::function::{read_expression, write_expression};
use crate::storage::{RowSet, StoreSettings, open};
use crate::{Error, ErrorKind, Result};

/// Tables at one version that a process keeps open for others.
const OPEN_TABLES: usize = 32;

/// A [`ScanDescription`] as it is sent.
#[derive(Debug, Serialize, Deserialize)]
struct Written {
    uri: String,
    version: u64,
    /// When the version was made: a table that is made anew counts from 1 again.
    made: u128,
    storage_options: HashMap<String, String>,
    columns: Vec<String>,
    filter: Option<String>,
    limit: Option<usize>,
    fragments: Vec<Vec<u64>>,
    windows: Vec<Option<Window>>,
    rows: Rows,
    counts: Vec<u64>,
    batch_rows: usize,
    batch_bytes: u64,
    blobs: Blobs,
    in_order: bool,
    /// The columns that the node promised.
    schema: String,
}

#[derive(Debug, Serialize, Deserialize)]
enum Rows {
    All,
    Only(String),
    Except(String),
}

/// Tables are opened once for all scans of a version.
type OpenTable = Arc<OnceCell<Arc<Dataset>>>;

/// Writes [`LanceScanExec`] for other processes, and runs it for them.
pub struct ScanCodec {
    wrapper: Option<Arc<dyn WrappingObjectStore>>,
    /// What is cached of tables.
    session: Mutex<Arc<Session>>,
    /// The newest last.
    tables: Mutex<VecDeque<(String, OpenTable)>>,
}

impl fmt::Debug for ScanCodec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScanCodec").finish_non_exhaustive()
    }
}

impl ScanCodec {
    /// With `wrapper` around each store that it opens.
    pub fn new(wrapper: Option<Arc<dyn WrappingObjectStore>>) -> Self {
        Self {
            wrapper,
            session: Mutex::new(crate::storage::new_session()),
            tables: Mutex::default(),
        }
    }

    /// The table that `description` reads, whose version was made then.
    async fn table(&self, description: &ScanDescription, made: u128) -> Result<Arc<Dataset>> {
        let options = &description.storage_options;
        let mut sorted: Vec<_> = options.iter().collect();
        sorted.sort();
        let key = format!(
            "{}@{}@{made}{sorted:?}",
            description.uri, description.version
        );
        let table = {
            let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
            match tables.iter().find(|(known, _)| *known == key) {
                Some((_, table)) => Arc::clone(table),
                None => {
                    let table = OpenTable::default();
                    tables.push_back((key, Arc::clone(&table)));
                    if tables.len() > OPEN_TABLES {
                        tables.pop_front();
                    }
                    table
                }
            }
        };
        let opened = table.get_or_try_init(|| async {
            let table = self.open(description).await?;
            if table.manifest().timestamp_nanos == made {
                return Ok(table);
            }
            // What is cached is of a table that was there before: Lance knows a version by its number alone.
            *self.lock_session() = crate::storage::new_session();
            let table = self.open(description).await?;
            match table.manifest().timestamp_nanos == made {
                true => Ok(table),
                false => Err(Error::new(
                    ErrorKind::Conflict,
                    format!("table '{}' was made anew meanwhile", description.table()),
                )
                .with_hint("run the statement again")),
            }
        });
        opened.await.map(Arc::clone)
    }

    async fn open(&self, description: &ScanDescription) -> Result<Arc<Dataset>> {
        let options = description.storage_options.clone();
        let settings = StoreSettings::new(options, self.wrapper.clone());
        let (uri, version) = (&description.uri, Some(description.version));
        let session = Arc::clone(&self.lock_session());
        Ok(Arc::new(
            open(uri, version, &settings, Some(session)).await?,
        ))
    }

    fn lock_session(&self) -> MutexGuard<'_, Arc<Session>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NodeCodec for ScanCodec {
    fn kind(&self) -> &'static str {
        "scan"
    }

    fn encode(&self, node: &dyn ExecutionPlan, codecs: &Codecs) -> Option<Result<Vec<u8>>> {
        let scan: &LanceScanExec = node.downcast_ref()?;
        Some(write(scan, codecs))
    }

    fn execute(
        self: Arc<Self>,
        description: &[u8],
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let written: Written = serde_json::from_slice(description)
            .map_err(|error| Error::internal(format!("a scan can't be read: {error}")))?;
        let schema = crate::engine::wire::read_schema(&written.schema)?;
        let made = written.made;
        let description = read(written, &context)?;
        let rows = async move {
            let table = self.table(&description, made).await?;
            let scan = LanceScanExec::try_new(table, description)?;
            scan.execute(partition, context)
        };
        let rows = stream::once(rows).try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }
}

fn write(scan: &LanceScanExec, codecs: &Codecs) -> Result<Vec<u8>> {
    let description = scan.description().clone();
    let filter = description.filter.as_ref();
    let filter = filter.map(|filter| write_expression(filter, codecs));
    let written = Written {
        uri: description.uri,
        version: description.version,
        made: scan.dataset().manifest().timestamp_nanos,
        storage_options: description.storage_options,
        columns: description.columns,
        filter: filter.transpose()?.map(|bytes| BASE64.encode(bytes)),
        limit: description.limit,
        fragments: description.fragments,
        windows: description.windows,
        rows: match &description.rows {
            RowFilter::All => Rows::All,
            RowFilter::Only(rows) => Rows::Only(rows.encode()),
            RowFilter::Except(rows) => Rows::Except(rows.encode()),
        },
        counts: description.counts,
        batch_rows: description.batch_rows,
        batch_bytes: description.batch_bytes,
        blobs: description.blobs,
        in_order: description.in_order,
        schema: crate::engine::wire::write_schema(&scan.schema())?,
    };
    serde_json::to_vec(&written)
        .map_err(|error| Error::internal(format!("a scan can't be written: {error}")))
}

fn read(written: Written, context: &TaskContext) -> Result<ScanDescription> {
    let filter = match &written.filter {
        Some(text) => {
            let bytes = BASE64
                .decode(text)
                .map_err(|error| Error::internal(format!("a filter can't be read: {error}")))?;
            let codecs = context.session_config().get_extension::<Codecs>();
            let codecs = codecs.unwrap_or_default();
            Some(read_expression(&bytes, &codecs, context)?)
        }
        None => None,
    };
    Ok(ScanDescription {
        uri: written.uri,
        version: written.version,
        storage_options: written.storage_options,
        columns: written.columns,
        filter,
        limit: written.limit,
        fragments: written.fragments,
        windows: written.windows,
        rows: match &written.rows {
            Rows::All => RowFilter::All,
            Rows::Only(rows) => RowFilter::Only(Arc::new(RowSet::decode(rows)?)),
            Rows::Except(rows) => RowFilter::Except(Arc::new(RowSet::decode(rows)?)),
        },
        counts: written.counts,
        batch_rows: written.batch_rows,
        batch_bytes: written.batch_bytes,
        blobs: written.blobs,
        in_order: written.in_order,
    })
}
