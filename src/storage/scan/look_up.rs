//! Filters by keys, where there is an index on these.
//!
//! Lance asks an index about comparisons with values, and knows nothing of sets of keys. So a condition that such a filter
//! implies is put in front of it: the index answers that, and the filter itself is evaluated for what it finds. What the
//! index has of rows that were updated since does no harm that way.

use std::collections::HashSet;

use datafusion::arrow::datatypes::Schema;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator};

use super::read::Job;
use crate::Result;
use crate::storage::fragments::physical_rows;
use crate::storage::index::{PAGE_ROWS, btree_columns};
use crate::storage::keys::keys_looked_for;

/// The filter of `job` with what it implies in front of it, if an index answers that.
pub(super) async fn filter(job: &Job) -> Result<Option<Expr>> {
    let Some(filter) = &job.description.filter else {
        return Ok(None);
    };
    if !filter.exists(|part| Ok(is_look_up(part)))? {
        return Ok(None);
    }
    let indexed = btree_columns(job.description.table(), &job.dataset).await?;
    if indexed.is_empty() {
        return Ok(None);
    }
    let most = physical_rows(&job.dataset) / PAGE_ROWS;
    let schema = Schema::from(job.dataset.schema());
    let implied = implied(filter, &schema, &indexed, most as usize);
    Ok(implied.map(|implied| implied.and(filter.clone())))
}

fn is_look_up(part: &Expr) -> bool {
    matches!(part, Expr::ScalarFunction(call) if keys_looked_for(&call.func).is_some())
}

/// A condition over indexed columns that is true wherever `filter` is; of at most `most` keys in a set.
fn implied(filter: &Expr, schema: &Schema, indexed: &HashSet<String>, most: usize) -> Option<Expr> {
    let inner = |part: &Expr| implied(part, schema, indexed, most);
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => match (op, inner(left), inner(right)) {
            (Operator::And, Some(left), Some(right)) => Some(left.and(right)),
            (Operator::And, left, right) => left.or(right),
            (Operator::Or, left, right) => Some(left?.or(right?)),
            _ => None,
        },
        Expr::ScalarFunction(call) => keys_in(call, schema, indexed, most),
        _ => None,
    }
}

/// `column IN (…)`, if that is what the call says.
fn keys_in(
    call: &ScalarFunction,
    schema: &Schema,
    indexed: &HashSet<String>,
    most: usize,
) -> Option<Expr> {
    let keys = keys_looked_for(&call.func)?;
    let [Expr::Column(column)] = call.args.as_slice() else {
        return None;
    };
    if !indexed.contains(column.name()) || keys.is_empty() {
        return None;
    }
    let field = schema.field_with_name(column.name()).ok()?;
    let (values, has_null) = keys.literals(field.data_type(), most)?;
    let column = Expr::Column(column.clone());
    let values = values.into_iter().map(|value| Expr::Literal(value, None));
    let found = column.clone().in_list(values.collect(), false);
    Some(match has_null {
        true => found.or(column.is_null()),
        false => found,
    })
}

/// Names of the columns that `filter` looks at, but for those of look-ups: of these an index knows nothing.
pub(super) fn compared(filter: &Expr) -> HashSet<&str> {
    let mut names = HashSet::new();
    // Looking never fails.
    let _ = filter.apply(|part| {
        if is_look_up(part) {
            return Ok(TreeNodeRecursion::Jump);
        }
        if let Expr::Column(column) = part {
            names.insert(column.name());
        }
        Ok(TreeNodeRecursion::Continue)
    });
    names
}
