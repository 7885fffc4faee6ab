//! Scans of Lance tables as a leaf of a DataFusion plan.
//!
//! A scan is a plain [`ScanDescription`]: which columns of which version of which
//! table, filtered how, and which fragments each partition reads. Any process
//! that can reach the store can run it; the open table that the node carries only
//! saves opening it again. A description always yields the same rows, whatever
//! has been committed since.

mod explain;
mod filter;
mod late;
mod look_up;
mod partition;
mod read;
mod remote;
mod rows;
mod schema;
#[cfg(test)]
mod tests;
mod width;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::stats::Precision;
use datafusion::common::{DataFusionError, Statistics};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::Expr;
use datafusion::physical_expr::EquivalenceProperties;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
};
use lance::Dataset;
use serde::{Deserialize, Serialize};

use self::rows::Shown;
use crate::storage::open::table_name;
use crate::{Error, ErrorKind, Result};

pub use filter::can_push_down;
pub use partition::{fragment_rows, partition_fragments};
pub use remote::ScanCodec;
pub use rows::{RowFilter, selected_rows};
pub use schema::{row_field, table_schema};
pub use width::{slice_bytes, type_width};

/// Rows a batch has at most, unless the session says otherwise.
pub const DEFAULT_BATCH_ROWS: usize = 8192;

/// Bytes a batch has at most, but for a single row that is larger.
pub const DEFAULT_BATCH_BYTES: u64 = 16 * 1024 * 1024;

/// What a scan shows of a blob column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Blobs {
    /// Where the bytes are and how many, read without touching them.
    #[default]
    Descriptors,
    /// The bytes.
    Binary,
}

/// Some of the rows of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Live rows before the first.
    pub skip: usize,
    /// Live rows.
    pub rows: usize,
}

/// What a scan reads. It holds no handles, only values, so that it can be sent
/// to another process.
#[derive(Debug, Clone, PartialEq)]
pub struct ScanDescription {
    /// Where the table is.
    pub uri: String,
    /// The version of the table.
    pub version: u64,
    /// Options of the object store, as Lance names them.
    pub storage_options: HashMap<String, String>,
    /// Top-level columns in the order of the output; `_rowid` and `_rowaddr` may
    /// stand anywhere among them. Empty to get only the number of rows.
    pub columns: Vec<String>,
    /// Only rows for which this is true, over unqualified columns, which need not
    /// be among `columns`.
    pub filter: Option<Expr>,
    /// At most so many rows **from each partition**.
    pub limit: Option<usize>,
    /// The fragments that each partition reads, by their ids, in this order. A
    /// fragment that stands twice is read twice.
    pub fragments: Vec<Vec<u64>>,
    /// The rows that each partition reads; empty if all read all rows. Only without a filter, a limit,
    /// and other rows than all.
    pub windows: Vec<Option<Window>>,
    /// Which rows are read, by their ids.
    pub rows: RowFilter,
    /// How many live rows of each partition are among these, from [`selected_rows`]; empty if they were
    /// not counted, and for all rows.
    pub counts: Vec<u64>,
    /// Rows a batch has at most; not 0.
    pub batch_rows: usize,
    /// Bytes a batch has at most, but for a single row that is larger; not 0.
    pub batch_bytes: u64,
    /// What to show of blob columns.
    pub blobs: Blobs,
    /// Whether the rows of a partition come in the order of its fragments and, in
    /// these, of the row addresses.
    pub in_order: bool,
}

impl ScanDescription {
    /// A scan of every row and no column of `dataset` at its version, in one
    /// partition.
    pub fn new(dataset: &Dataset) -> Self {
        Self {
            uri: dataset.uri().to_string(),
            version: dataset.manifest().version,
            storage_options: dataset
                .initial_storage_options()
                .cloned()
                .unwrap_or_default(),
            columns: Vec::new(),
            filter: None,
            limit: None,
            fragments: vec![dataset.fragments().iter().map(|f| f.id).collect()],
            windows: Vec::new(),
            rows: RowFilter::default(),
            counts: Vec::new(),
            batch_rows: DEFAULT_BATCH_ROWS,
            batch_bytes: DEFAULT_BATCH_BYTES,
            blobs: Blobs::default(),
            in_order: true,
        }
    }

    /// The name of the table.
    pub fn table(&self) -> &str {
        table_name(&self.uri)
    }

    /// The rows that a partition reads, if not all.
    fn window(&self, partition: usize) -> Option<Window> {
        self.windows.get(partition).copied().flatten()
    }
}

/// Reads a [`ScanDescription`], one partition for each of its groups of fragments.
#[derive(Debug)]
pub struct LanceScanExec {
    description: Arc<ScanDescription>,
    dataset: Arc<Dataset>,
    /// One for each of the description's groups; one without fragments if it has none.
    partitions: Arc<Vec<ScanPartition>>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

/// What one partition reads.
#[derive(Debug)]
struct ScanPartition {
    /// Where its fragments stand in the manifest.
    fragments: Vec<usize>,
    /// Rows that are not deleted; `None` if the manifest does not say.
    rows: Option<usize>,
}

impl LanceScanExec {
    /// A node that reads `description` from `dataset`, which is the table at the
    /// description's version.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] for a column or a fragment that this version does not
    /// have; [`ErrorKind::Internal`] if `dataset` is at another version.
    pub fn try_new(dataset: Arc<Dataset>, description: ScanDescription) -> Result<Self> {
        let table = description.table();
        let version = dataset.manifest().version;
        if version != description.version {
            return Err(Error::internal(format!(
                "a scan of version {} of table '{table}' was given version {version}",
                description.version
            )));
        }
        if description.batch_rows == 0 || description.batch_bytes == 0 {
            return Err(Error::invalid(
                "a batch must have room for at least one row",
            ));
        }
        description.rows.check(table, &dataset)?;
        if !description.rows.is_all() && !description.windows.is_empty() {
            return Err(Error::internal("a window of selected rows can't be read"));
        }
        let all = table_schema(&dataset, description.blobs);
        let schema = schema::project(&all, &description.columns).map_err(|missing| {
            let names = all.fields().iter().map(|f| f.name().as_str());
            Error::not_found("column", &missing, names).context(format!("table '{table}'"))
        })?;
        let partitions = Arc::new(resolve(&dataset, &description)?);
        let properties = properties(schema, partitions.len());
        Ok(Self {
            description: Arc::new(description),
            dataset,
            partitions,
            properties,
            metrics: ExecutionPlanMetricsSet::new(),
        })
    }

    /// What this node reads.
    pub fn description(&self) -> &ScanDescription {
        &self.description
    }

    /// The table at the version that is read.
    pub fn dataset(&self) -> &Arc<Dataset> {
        &self.dataset
    }

    /// The same scan with other metrics and another limit.
    fn again(&self, limit: Option<usize>) -> Self {
        let description = if limit == self.description.limit {
            self.description.clone()
        } else {
            Arc::new(ScanDescription {
                limit,
                ..self.description.as_ref().clone()
            })
        };
        Self {
            description,
            dataset: self.dataset.clone(),
            partitions: self.partitions.clone(),
            properties: self.properties.clone(),
            metrics: ExecutionPlanMetricsSet::new(),
        }
    }

    /// How many rows come out of a partition that holds `rows`.
    fn output_rows(&self, rows: Option<usize>) -> Precision<usize> {
        let Some(rows) = rows else {
            return Precision::Absent;
        };
        let rows = rows.min(self.description.limit.unwrap_or(usize::MAX));
        match self.description.filter {
            Some(_) => Precision::Inexact(rows),
            None => Precision::Exact(rows),
        }
    }
}

/// Finds the fragments that `description` names in the manifest.
fn resolve(dataset: &Dataset, description: &ScanDescription) -> Result<Vec<ScanPartition>> {
    let all = dataset.fragments();
    let places: HashMap<u64, usize> = all.iter().map(|f| f.id).zip(0..).collect();
    let place = |id: &u64| {
        places.get(id).copied().ok_or_else(|| {
            let (version, table) = (description.version, description.table());
            let message = format!("version {version} of table '{table}' has no fragment {id}");
            Error::new(ErrorKind::NotFound, message)
        })
    };
    let mut partitions = description
        .fragments
        .iter()
        .enumerate()
        .map(|(partition, group)| {
            let fragments = group.iter().map(place).collect::<Result<Vec<_>>>()?;
            let rows = match description.window(partition) {
                Some(window) => Some(window.rows),
                None if !description.rows.is_all() => {
                    let count = description.counts.get(partition);
                    count.and_then(|rows| usize::try_from(*rows).ok())
                }
                None => fragments.iter().map(|place| all[*place].num_rows()).sum(),
            };
            Ok(ScanPartition { fragments, rows })
        })
        .collect::<Result<Vec<_>>>()?;
    // A plan has at least one partition, also over an empty table.
    if partitions.is_empty() {
        partitions.push(ScanPartition {
            fragments: Vec::new(),
            rows: Some(0),
        });
    }
    Ok(partitions)
}

fn properties(schema: SchemaRef, partitions: usize) -> Arc<PlanProperties> {
    Arc::new(PlanProperties::new(
        EquivalenceProperties::new(schema),
        Partitioning::UnknownPartitioning(partitions),
        EmissionType::Incremental,
        Boundedness::Bounded,
    ))
}

/// Statistics that know the number of rows and, where every column has a fixed
/// width, their size.
fn statistics(schema: &Schema, rows: Precision<usize>) -> Arc<Statistics> {
    let mut statistics = Statistics::new_unknown(schema);
    statistics.num_rows = rows;
    statistics.calculate_total_byte_size(schema);
    Arc::new(statistics)
}

impl DisplayAs for LanceScanExec {
    fn fmt_as(&self, format: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        let description = &self.description;
        let fragments: usize = description.fragments.iter().map(Vec::len).sum();
        let separator = match format {
            DisplayFormatType::TreeRender => "\n",
            DisplayFormatType::Default | DisplayFormatType::Verbose => {
                f.write_str("LanceScanExec: ")?;
                ", "
            }
        };
        write!(
            f,
            "table={}{separator}version={}{separator}partitions={}{separator}\
             fragments={fragments}{separator}columns=[{}]",
            description.table(),
            description.version,
            self.partitions.len(),
            description.columns.join(", "),
        )?;
        if !description.rows.is_all() {
            let counts = &description.counts;
            let counted = counts.len() == description.fragments.len();
            let all = self.dataset.fragments().iter();
            let shown = Shown {
                filter: &description.rows,
                read: counted.then(|| counts.iter().sum()),
                all: all.map(|f| f.num_rows().map(|rows| rows as u64)).sum(),
            };
            write!(f, "{separator}rows={shown}")?;
        }
        if let Some(filter) = &description.filter {
            write!(f, "{separator}filter={filter}")?;
        }
        if let Some(limit) = description.limit {
            write!(f, "{separator}limit={limit}")?;
        }
        Ok(())
    }
}

impl ExecutionPlan for LanceScanExec {
    fn name(&self) -> &str {
        "LanceScanExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    /// A new node with metrics of its own: tasks that share one decoded plan would
    /// count each other's rows.
    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        if !children.is_empty() {
            return Err(Error::internal("a scan has no children").into());
        }
        Ok(Arc::new(self.again(self.description.limit)))
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream, DataFusionError> {
        if partition >= self.partitions.len() {
            return Err(Error::internal(format!(
                "a scan of {} partitions was asked for partition {partition}",
                self.partitions.len()
            ))
            .into());
        }
        Ok(read::read(self, partition, &context))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn partition_statistics(
        &self,
        partition: Option<usize>,
    ) -> Result<Arc<Statistics>, DataFusionError> {
        let rows = match partition {
            Some(partition) => match self.partitions.get(partition) {
                Some(partition) => self.output_rows(partition.rows),
                None => {
                    return Err(Error::internal(format!(
                        "a scan of {} partitions was asked for partition {partition}",
                        self.partitions.len()
                    ))
                    .into());
                }
            },
            None => self
                .partitions
                .iter()
                .map(|partition| self.output_rows(partition.rows))
                .reduce(|left, right| left.add(&right))
                .unwrap_or(Precision::Absent),
        };
        Ok(statistics(&self.schema(), rows))
    }

    fn fetch(&self) -> Option<usize> {
        self.description.limit
    }

    fn with_fetch(&self, limit: Option<usize>) -> Option<Arc<dyn ExecutionPlan>> {
        Some(Arc::new(self.again(limit)))
    }
}
