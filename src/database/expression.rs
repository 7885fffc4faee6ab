//! Expressions over the columns of one table: planned, typed and checked.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema};
use datafusion::execution::SessionState;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Expr, ExprSchemable, Volatility};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::sql::sqlparser::ast;

use crate::storage::blob::{is_descriptor, shown_schema};
use crate::{Error, ErrorKind, Result};

/// An expression over the columns of a table, planned.
#[derive(Debug, Clone)]
pub struct TableExpression {
    /// As a logical expression, over unqualified columns.
    pub logical: Expr,
    /// The type of its result; strings and binaries in the form that is stored.
    pub data_type: DataType,
    /// Names of the columns that it reads.
    pub inputs: BTreeSet<String>,
}

/// Plans `text`, an SQL expression, over the columns of `schema`, and refuses what can't
/// be computed from one row alone. `purpose` (such as "computed column 'c'") begins the errors.
///
/// # Errors
///
/// For an unknown column, a type error, an aggregate, a window function or a subquery.
pub fn plan_expression(
    state: &SessionState,
    schema: &Schema,
    text: &str,
    purpose: &str,
) -> Result<TableExpression> {
    let context = |error: Error| error.context(purpose);
    check_no_subquery(state, text).map_err(context)?;
    // Expressions run over what a scan shows.
    let schema = &shown_schema(schema);
    let df_schema = DFSchema::try_from(schema.clone()).map_err(|e| context(e.into()))?;
    let logical = state
        .create_logical_expr(text, &df_schema)
        .map_err(|error| context(unknown_column(error.into(), schema)))?
        .unalias();
    check_row_expression(&logical).map_err(context)?;
    let inputs: BTreeSet<String> = logical
        .column_refs()
        .into_iter()
        .map(|column| column.name.clone())
        .collect();
    let logical = unqualified(logical).map_err(context)?;
    let physical = simplified(state, logical.clone(), &df_schema)
        .and_then(|simple| state.create_physical_expr(simple, &df_schema))
        .map_err(|error| context(error.into()))?;
    let data_type = physical
        .data_type(schema)
        .map_err(|error| context(error.into()))?;
    Ok(TableExpression {
        logical,
        data_type: stored_type(&data_type),
        inputs,
    })
}

/// Turns a planned expression into one that runs over batches of `schema` and gives `data_type`.
/// Integer overflow is an error instead of wrapping.
pub fn physical_expression(
    state: &SessionState,
    schema: &SchemaRef,
    expression: &Expr,
    data_type: &DataType,
) -> Result<Arc<dyn PhysicalExpr>> {
    let df_schema = DFSchema::try_from(schema.as_ref().clone()).map_err(Error::from)?;
    let own = expression.get_type(&df_schema).ok();
    let expression = match own {
        Some(own) if own == *data_type => expression.clone(),
        _ => Expr::Cast(datafusion::logical_expr::Cast::new(
            Box::new(expression.clone()),
            data_type.clone(),
        )),
    };
    let expression = simplified(state, expression, &df_schema)?;
    let physical = state.create_physical_expr(expression, &df_schema)?;
    Ok(fail_on_overflow(physical)?)
}

/// An expression as the optimizer would leave it: some functions (`coalesce`) exist only to be
/// replaced there.
fn simplified(
    state: &SessionState,
    expression: Expr,
    schema: &DFSchema,
) -> datafusion::common::Result<Expr> {
    let context = SimplifyContext::builder()
        .with_schema(Arc::new(schema.clone()))
        .with_config_options(Arc::clone(state.config_options()))
        .with_query_execution_start_time(state.execution_props().query_execution_start_time)
        .build();
    let simplifier = ExprSimplifier::new(context);
    let expression = simplifier.coerce(expression, schema)?;
    simplifier.simplify(expression)
}

/// Makes integer arithmetic fail where it would wrap around.
fn fail_on_overflow(
    expression: Arc<dyn PhysicalExpr>,
) -> datafusion::common::Result<Arc<dyn PhysicalExpr>> {
    use datafusion::physical_expr::expressions::BinaryExpr;
    expression
        .transform_up(|node| {
            let Some(binary) = node.downcast_ref::<BinaryExpr>() else {
                return Ok(Transformed::no(node));
            };
            let checked = BinaryExpr::new(
                Arc::clone(binary.left()),
                *binary.op(),
                Arc::clone(binary.right()),
            )
            .with_fail_on_overflow(true);
            Ok(Transformed::yes(Arc::new(checked)))
        })
        .map(|transformed| transformed.data)
}

/// The first function in `expression` that may give another result for the same arguments: each time,
/// as `random()`, or in another statement, as `now()`.
pub fn volatile_function(expression: &Expr) -> Option<String> {
    let mut found = None;
    // The closure never fails.
    let _ = expression.apply(|node| {
        if let Expr::ScalarFunction(call) = node
            && call.func.signature().volatility != Volatility::Immutable
        {
            found = Some(call.func.name().to_string());
            return Ok(TreeNodeRecursion::Stop);
        }
        Ok(TreeNodeRecursion::Continue)
    });
    found
}

/// A subquery would be planned against the catalog before it could be refused.
fn check_no_subquery(state: &SessionState, text: &str) -> Result<()> {
    let dialect = state.config().options().sql_parser.dialect;
    let parsed = state.sql_to_expr(text, &dialect)?;
    let found = ast::visit_expressions(&parsed, |node| match node {
        ast::Expr::Subquery(_) | ast::Expr::Exists { .. } | ast::Expr::InSubquery { .. } => {
            ControlFlow::Break(())
        }
        _ => ControlFlow::Continue(()),
    });
    match found {
        ControlFlow::Break(()) => Err(not_row_by_row("a subquery")),
        ControlFlow::Continue(()) => Ok(()),
    }
}

fn not_row_by_row(what: &str) -> Error {
    Error::invalid(format!(
        "{what} can't stand in an expression that is computed row by row"
    ))
    .with_hint("only columns of the row, literals, operators and scalar functions can")
}

fn check_row_expression(expression: &Expr) -> Result<()> {
    let mut refused = None;
    let _ = expression.apply(|node| {
        refused = match node {
            Expr::AggregateFunction(call) => Some(format!("the aggregate {}()", call.func.name())),
            Expr::WindowFunction(call) => Some(format!("the window function {}", call.fun.name())),
            Expr::Placeholder(_) => Some("a parameter".to_string()),
            _ => None,
        };
        Ok(match refused {
            Some(_) => TreeNodeRecursion::Stop,
            None => TreeNodeRecursion::Continue,
        })
    });
    match refused {
        Some(what) => Err(not_row_by_row(&what)),
        None => Ok(()),
    }
}

fn unqualified(expression: Expr) -> Result<Expr> {
    Ok(expression
        .transform(|node| {
            Ok(match node {
                Expr::Column(column) => {
                    Transformed::yes(Expr::Column(Column::new_unqualified(column.name)))
                }
                other => Transformed::no(other),
            })
        })
        .map(|transformed| transformed.data)?)
}

/// DataFusion's own message for an unknown column lists all of them; ours names the nearest.
fn unknown_column(error: Error, schema: &Schema) -> Error {
    let message = error.message();
    let Some(name) = message
        .strip_prefix("No field named ")
        .and_then(|rest| rest.split(['.', ' ', '\n']).next())
        .map(|name| name.trim_matches('"').to_string())
    else {
        return error;
    };
    Error::not_found(
        "column",
        &name,
        schema.fields().iter().map(|field| field.name().as_str()),
    )
}

/// The type in which values of `data_type` are stored: strings and binaries without views.
pub fn stored_type(data_type: &DataType) -> DataType {
    match data_type {
        // What a blob is seen as is never stored.
        descriptor if is_descriptor(descriptor) => descriptor.clone(),
        DataType::Utf8View => DataType::Utf8,
        DataType::BinaryView => DataType::Binary,
        DataType::List(item) => DataType::List(stored_field(item)),
        DataType::LargeList(item) => DataType::LargeList(stored_field(item)),
        DataType::ListView(item) => DataType::List(stored_field(item)),
        DataType::LargeListView(item) => DataType::LargeList(stored_field(item)),
        DataType::FixedSizeList(item, size) => DataType::FixedSizeList(stored_field(item), *size),
        DataType::Struct(fields) => {
            DataType::Struct(fields.iter().map(stored_field).collect::<Fields>())
        }
        DataType::Map(entries, sorted) => DataType::Map(stored_field(entries), *sorted),
        DataType::Dictionary(key, value) => {
            DataType::Dictionary(key.clone(), Box::new(stored_type(value)))
        }
        other => other.clone(),
    }
}

fn stored_field(field: &FieldRef) -> FieldRef {
    Arc::new(
        Field::new(
            field.name(),
            stored_type(field.data_type()),
            field.is_nullable(),
        )
        .with_metadata(field.metadata().clone()),
    )
}

/// A field as it is stored: see [`stored_type`].
pub fn stored(field: &Field) -> Field {
    stored_field(&Arc::new(field.clone())).as_ref().clone()
}

/// The error for a value that has no place in a stored column.
pub fn type_error(column: &str, have: &DataType, want: &DataType) -> Error {
    Error::new(
        ErrorKind::InvalidInput,
        format!("column '{column}' is {want}, but the expression gives {have}"),
    )
    .with_hint("add a CAST, or declare the column with the type of the expression")
}
