//! Functions of users: which calls are of theirs, and what these take.

mod meter;

use std::collections::{BTreeSet, HashSet};
use std::sync::LazyLock;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::execution::SessionStateDefaults;
use datafusion::logical_expr::{Expr, LogicalPlan};

use crate::Result;

pub use meter::{Measured, Meter, measured, metered, record};

/// Functions that cost next to nothing.
static BUILT_IN: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let functions = SessionStateDefaults::default_scalar_functions();
    let names = functions.iter().flat_map(|function| {
        let aliases = function.aliases().iter().cloned();
        aliases.chain([function.name().to_string()])
    });
    let own = [
        "blob_size",
        "blob_read",
        "in_keys",
        "in_rows",
        "one_zero",
        "decimal_mean",
    ];
    names.chain(own.map(str::to_string)).collect()
});

/// Whether a function is one of a user's own, by its name.
pub fn is_users(name: &str) -> bool {
    !BUILT_IN.contains(name)
}

/// Whether an expression is a call of a user's function.
pub fn is_call(expression: &Expr) -> bool {
    matches!(expression, Expr::ScalarFunction(call) if is_users(call.func.name()))
}

/// Whether an expression calls a user's function.
pub fn has_call(expression: &Expr) -> bool {
    // Looking never fails.
    expression.exists(|node| Ok(is_call(node))).unwrap_or(false)
}

/// Names of the users' functions that a query calls.
///
/// # Errors
///
/// None in practice: looking never fails.
pub fn functions_called(plan: &LogicalPlan) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expression| {
            expression.apply(|part| {
                if let Expr::ScalarFunction(call) = part
                    && is_users(call.func.name())
                {
                    names.insert(call.func.name().to_string());
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(names)
}
