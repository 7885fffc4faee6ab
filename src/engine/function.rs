//! How functions are written for other processes, by themselves and in expressions.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::common::{DataFusionError, Result as DataFusionResult, TableReference};
use datafusion::execution::TaskContext;
use datafusion::logical_expr::{
    ColumnarValue, Expr, Extension, LogicalPlan, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl,
    Signature, Volatility,
};
use datafusion_proto::logical_plan::LogicalExtensionCodec;
use datafusion_proto::logical_plan::from_proto::parse_expr;
use datafusion_proto::logical_plan::to_proto::serialize_expr;
use datafusion_proto::protobuf::LogicalExprNode;
use prost::Message;

use super::deferred::Codecs;
use super::wire;
use crate::{Error, ErrorKind, Result};

/// The kind of functions that every process brings itself.
const NAMED: &str = "named";

/// Writes an expression.
///
/// # Errors
///
/// If it holds what can't be written, such as a subquery.
pub fn write_expression(expression: &Expr, codecs: &Codecs) -> Result<Vec<u8>> {
    let node = serialize_expr(expression, &Functions(codecs.clone()))
        .map_err(|error| Error::internal(format!("an expression can't be written: {error}")))?;
    Ok(node.encode_to_vec())
}

/// Reads what [`write_expression`] wrote.
///
/// # Errors
///
/// If it is something else.
pub fn read_expression(bytes: &[u8], codecs: &Codecs, context: &TaskContext) -> Result<Expr> {
    let unreadable = |error: String| {
        Error::internal(format!(
            "an expression of another process can't be read: {error}"
        ))
    };
    let node = LogicalExprNode::decode(bytes).map_err(|error| unreadable(error.to_string()))?;
    parse_expr(&node, context, &Functions(codecs.clone()))
        .map_err(|error| unreadable(error.to_string()))
}

/// Writes and reads the functions of expressions.
#[derive(Debug)]
struct Functions(Codecs);

impl LogicalExtensionCodec for Functions {
    fn try_decode(
        &self,
        _: &[u8],
        _: &[LogicalPlan],
        _: &TaskContext,
    ) -> DataFusionResult<Extension> {
        Err(no_plans())
    }

    fn try_encode(&self, _: &Extension, _: &mut Vec<u8>) -> DataFusionResult<()> {
        Err(no_plans())
    }

    fn try_decode_table_provider(
        &self,
        _: &[u8],
        _: &TableReference,
        _: SchemaRef,
        _: &TaskContext,
    ) -> DataFusionResult<Arc<dyn TableProvider>> {
        Err(no_plans())
    }

    fn try_encode_table_provider(
        &self,
        _: &TableReference,
        _: Arc<dyn TableProvider>,
        _: &mut Vec<u8>,
    ) -> DataFusionResult<()> {
        Err(no_plans())
    }

    fn try_decode_udf(&self, name: &str, bytes: &[u8]) -> DataFusionResult<Arc<ScalarUDF>> {
        Ok(read_function(&self.0, name, bytes))
    }

    fn try_encode_udf(&self, function: &ScalarUDF, bytes: &mut Vec<u8>) -> DataFusionResult<()> {
        Ok(write_function(&self.0, function, bytes)?)
    }
}

fn no_plans() -> DataFusionError {
    Error::internal("plans in expressions are not sent").into()
}

/// Writes a function; nothing if DataFusion knows it by its name.
///
/// # Errors
///
/// If its codec can't describe it.
pub fn write_function(codecs: &Codecs, function: &ScalarUDF, bytes: &mut Vec<u8>) -> Result<()> {
    if let Some(missing) = function.inner().downcast_ref::<MissingFunction>() {
        bytes.extend_from_slice(&missing.bytes);
        return Ok(());
    }
    match codecs.describe(function) {
        Some(described) => {
            let (kind, description) = described?;
            wire::write_function(kind, &description, bytes)
        }
        None if codecs.named_function(function.name()).is_some() => {
            wire::write_function(NAMED, function.name().as_bytes(), bytes)
        }
        None => Ok(()),
    }
}

/// A function of another process. One that can't be had here fails when it is called.
pub fn read_function(codecs: &Codecs, name: &str, bytes: &[u8]) -> Arc<ScalarUDF> {
    let found = match wire::is_ours(bytes) {
        true => wire::read_function(bytes).and_then(|(kind, description)| match kind.as_str() {
            NAMED => named(codecs, name),
            _ => codecs.function(&kind, description).map(Arc::new),
        }),
        false => named(codecs, name),
    };
    found.unwrap_or_else(|error| {
        Arc::new(ScalarUDF::new_from_impl(MissingFunction {
            name: name.to_string(),
            bytes: bytes.to_vec(),
            why: error.to_string(),
            signature: Signature::variadic_any(Volatility::Volatile),
        }))
    })
}

fn named(codecs: &Codecs, name: &str) -> Result<Arc<ScalarUDF>> {
    codecs.named_function(name).cloned().ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            format!("this process has no function '{name}'"),
        )
        .with_hint("build server and executors from one program, which registers the function")
    })
}

/// Stands for a function that can't be had in this process.
#[derive(Debug, PartialEq, Eq, Hash)]
struct MissingFunction {
    name: String,
    /// As it was written, for the next process.
    bytes: Vec<u8>,
    why: String,
    signature: Signature,
}

impl MissingFunction {
    fn error(&self) -> DataFusionError {
        Error::new(
            ErrorKind::NotFound,
            format!("function '{}': {}", self.name, self.why),
        )
        .into()
    }
}

impl ScalarUDFImpl for MissingFunction {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> DataFusionResult<DataType> {
        Err(self.error())
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> DataFusionResult<ColumnarValue> {
        Err(self.error())
    }
}
