//! Parts of plans that are made where they run.
//!
//! A plan that goes to another process holds no handles: each node of ours is a [`DeferredExec`] in it, a description
//! that the [codec](NodeCodec) of its room has written and reads again when a partition is executed. Reading can't
//! fail before: a description that nobody there understands is an error of the task, not of the process that it came to.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, Result as DataFusionResult, Statistics};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::ScalarUDF;
use datafusion::physical_expr::EquivalenceProperties;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
};

use crate::{Error, ErrorKind, Result};

/// The release that writes descriptions. Only the same release reads them.
pub const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// Writes nodes of one kind as descriptions, and runs what they describe.
pub trait NodeCodec: fmt::Debug + Send + Sync {
    /// The name of the kind: the same in every process of a cluster.
    fn kind(&self) -> &'static str;

    /// The description of `node`; `None` if it is of another kind, or has to stay in this process. Never one where who
    /// sends such nodes describes them.
    fn encode(&self, node: &dyn ExecutionPlan, codecs: &Codecs) -> Option<Result<Vec<u8>>> {
        let _ = (node, codecs);
        None
    }

    /// Runs a partition of what `description` describes.
    fn execute(
        self: Arc<Self>,
        description: &[u8],
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream>;
}

/// Writes functions of one kind as descriptions, and makes them again.
pub trait FunctionCodec: fmt::Debug + Send + Sync {
    /// The name of the kind: the same in every process of a cluster.
    fn kind(&self) -> &'static str;

    /// The description of `function`; `None` if it is of another kind.
    fn encode(&self, function: &ScalarUDF) -> Option<Result<Vec<u8>>>;

    /// The function that `description` describes.
    fn decode(&self, description: &[u8]) -> Result<ScalarUDF>;
}

/// All that a process can send to others, and run for them. In a session's configuration it is an extension.
#[derive(Debug, Clone, Default)]
pub struct Codecs {
    nodes: Vec<Arc<dyn NodeCodec>>,
    functions: Vec<Arc<dyn FunctionCodec>>,
    /// Functions of the program, which every process of a cluster brings itself.
    named: HashMap<String, Arc<ScalarUDF>>,
}

impl Codecs {
    /// Adds nodes of a room.
    pub fn with_nodes(mut self, codec: Arc<dyn NodeCodec>) -> Self {
        self.nodes.push(codec);
        self
    }

    /// Adds functions of a room.
    pub fn with_functions(mut self, codec: Arc<dyn FunctionCodec>) -> Self {
        self.functions.push(codec);
        self
    }

    /// Adds a function that other processes know by its name.
    pub fn with_named(mut self, function: ScalarUDF) -> Self {
        self.named
            .insert(function.name().to_string(), Arc::new(function));
        self
    }

    /// The functions that other processes know by their names.
    pub fn named(&self) -> impl Iterator<Item = &Arc<ScalarUDF>> {
        self.named.values()
    }

    /// A function that every process brings itself.
    pub fn named_function(&self, name: &str) -> Option<&Arc<ScalarUDF>> {
        self.named.get(name)
    }

    /// `node` as a description; `None` if it has to stay in this process.
    pub fn defer(&self, node: &Arc<dyn ExecutionPlan>) -> Option<Result<DeferredExec>> {
        self.nodes.iter().find_map(|codec| {
            let description = codec.encode(node.as_ref(), self)?;
            Some(description.map(|description| DeferredExec::of(codec.kind(), description, node)))
        })
    }

    /// The kind and the description of `function`; `None` if no room knows it.
    pub fn describe(&self, function: &ScalarUDF) -> Option<Result<(&'static str, Vec<u8>)>> {
        self.functions.iter().find_map(|codec| {
            let description = codec.encode(function)?;
            Some(description.map(|description| (codec.kind(), description)))
        })
    }

    /// Makes a function of its description.
    pub fn function(&self, kind: &str, description: &[u8]) -> Result<ScalarUDF> {
        let mut codecs = self.functions.iter();
        match codecs.find(|codec| codec.kind() == kind) {
            Some(codec) => codec.decode(description),
            None => Err(unknown_kind(kind)),
        }
    }

    fn execute(
        &self,
        node: &DeferredExec,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let mut codecs = self.nodes.iter();
        match codecs.find(|codec| codec.kind() == node.kind) {
            Some(codec) => Arc::clone(codec).execute(&node.description, partition, context),
            None => Err(unknown_kind(&node.kind)),
        }
    }
}

fn unknown_kind(kind: &str) -> Error {
    Error::new(
        ErrorKind::Internal,
        format!("this process does not know what '{kind}' is in a plan"),
    )
}

/// A leaf of a plan that is made where it runs.
#[derive(Debug, Clone)]
pub struct DeferredExec {
    /// Which codec knows it.
    pub(super) kind: String,
    /// The release that wrote it.
    pub(super) release: String,
    pub(super) description: Bytes,
    /// What EXPLAIN shows.
    pub(super) text: String,
    /// Rows of each partition, where they are known: to choose between plans.
    pub(super) rows: Vec<Option<u64>>,
    properties: Arc<PlanProperties>,
}

impl DeferredExec {
    fn of(kind: &str, description: Vec<u8>, node: &Arc<dyn ExecutionPlan>) -> Self {
        let partitions = node.properties().output_partitioning().partition_count();
        let rows = |partition| {
            let statistics = node.partition_statistics(Some(partition)).ok()?;
            statistics.num_rows.get_value().map(|rows| *rows as u64)
        };
        let rows = (0..partitions).map(rows).collect();
        let text = Described(node.as_ref()).to_string();
        Self::new(kind, description, node.schema(), rows).with_text(text)
    }

    /// A node of `kind` with these columns; a partition for each of `rows`.
    pub fn new(
        kind: &str,
        description: impl Into<Bytes>,
        schema: SchemaRef,
        rows: Vec<Option<u64>>,
    ) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(rows.len()),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self {
            kind: kind.to_string(),
            release: RELEASE.to_string(),
            description: description.into(),
            text: kind.to_string(),
            rows,
            properties: Arc::new(properties),
        }
    }

    /// What EXPLAIN shows of it.
    pub fn with_text(mut self, text: String) -> Self {
        self.text = text;
        self
    }

    pub(super) fn of_release(mut self, release: String) -> Self {
        self.release = release;
        self
    }
}

/// One line about a node.
struct Described<'a>(&'a dyn ExecutionPlan);

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt_as(DisplayFormatType::Default, f)
    }
}

impl DisplayAs for DeferredExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl ExecutionPlan for DeferredExec {
    fn name(&self) -> &str {
        "DeferredExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn with_new_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(self.as_ref().clone()))
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> DataFusionResult<SendableRecordBatchStream> {
        if self.release != RELEASE {
            return Err(Error::invalid(format!(
                "a plan of headwater {} can't run in headwater {RELEASE}",
                self.release
            ))
            .with_hint("run the same release of headwater on the server and on every executor")
            .into());
        }
        let codecs = context.session_config().get_extension::<Codecs>();
        let codecs =
            codecs.ok_or_else(|| Error::internal("a deferred plan runs without its codecs"))?;
        Ok(codecs.execute(self, partition, context)?)
    }

    fn partition_statistics(&self, partition: Option<usize>) -> DataFusionResult<Arc<Statistics>> {
        let rows = match partition {
            Some(partition) => self.rows.get(partition).copied().flatten(),
            None => self.rows.iter().copied().sum(),
        };
        let schema = self.schema();
        let mut statistics = Statistics {
            num_rows: rows.map_or(Precision::Absent, |rows| Precision::Inexact(rows as usize)),
            total_byte_size: Precision::Absent,
            column_statistics: vec![ColumnStatistics::new_unknown(); schema.fields().len()],
        };
        statistics.calculate_total_byte_size(&schema);
        Ok(Arc::new(statistics))
    }
}
