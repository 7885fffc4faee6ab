//! How plans are written for other processes of a cluster, and read.
//!
//! Nodes of ours are [`DeferredExec`]; what is DataFusion's or Ballista's own is written by these. Reading neither
//! waits nor fails for anything of ours: the scheduler would send a task that can't be read again and again.

use std::sync::Arc;

use ballista_core::serde::BallistaPhysicalExtensionCodec;
use datafusion::common::Result as DataFusionResult;
use datafusion::execution::TaskContext;
use datafusion::logical_expr::ScalarUDF;
use datafusion::physical_plan::ExecutionPlan;
use datafusion_proto::physical_plan::PhysicalExtensionCodec;

use crate::engine::deferred::{Codecs, DeferredExec};
use crate::engine::function::{read_function, write_function};
use crate::engine::wire;

/// Writes and reads physical plans.
#[derive(Debug, Default)]
pub struct PhysicalCodec {
    codecs: Codecs,
    others: BallistaPhysicalExtensionCodec,
}

impl PhysicalCodec {
    /// With the nodes and functions that `codecs` knows.
    pub fn new(codecs: Codecs) -> Self {
        Self {
            codecs,
            others: BallistaPhysicalExtensionCodec::default(),
        }
    }
}

impl PhysicalExtensionCodec for PhysicalCodec {
    fn try_decode(
        &self,
        bytes: &[u8],
        inputs: &[Arc<dyn ExecutionPlan>],
        context: &TaskContext,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        if wire::is_ours(bytes) {
            return Ok(Arc::new(wire::read_node(bytes)?));
        }
        self.others.try_decode(bytes, inputs, context)
    }

    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        bytes: &mut Vec<u8>,
    ) -> DataFusionResult<()> {
        match node.downcast_ref::<DeferredExec>() {
            Some(node) => Ok(wire::write_node(node, bytes)?),
            None => self.others.try_encode(node, bytes),
        }
    }

    fn try_decode_udf(&self, name: &str, bytes: &[u8]) -> DataFusionResult<Arc<ScalarUDF>> {
        Ok(read_function(&self.codecs, name, bytes))
    }

    fn try_encode_udf(&self, function: &ScalarUDF, bytes: &mut Vec<u8>) -> DataFusionResult<()> {
        Ok(write_function(&self.codecs, function, bytes)?)
    }
}
