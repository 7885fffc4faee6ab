//! Functions whose result depends on the order of rows get one in which no two rows tie: else a refresh could give
//! another result than the one before it, from the same rows.

use std::sync::Arc;

use datafusion::logical_expr::expr::{
    AggregateFunction, AggregateFunctionParams, Alias, WindowFunction,
};
use datafusion::logical_expr::{Expr, SortExpr, WindowFrameUnits};

use super::relation::{KeyColumn, key_columns};

/// Aggregates whose result depends on the order of the rows.
const ORDERED_AGGREGATES: [&str; 5] = [
    "array_agg",
    "string_agg",
    "first_value",
    "last_value",
    "nth_value",
];

/// An aggregate with ties in its order broken by `keys`, if its result depends on it.
pub(super) fn ordered_aggregate(function: &Expr, keys: &[KeyColumn]) -> Expr {
    match function {
        Expr::Alias(alias) => Expr::Alias(Alias {
            expr: Box::new(ordered_aggregate(&alias.expr, keys)),
            ..alias.clone()
        }),
        Expr::AggregateFunction(AggregateFunction { func, params })
            if ORDERED_AGGREGATES.contains(&func.name()) =>
        {
            let mut order = params.order_by.clone();
            match params.distinct {
                true if order.is_empty() => {
                    order.extend(params.args.first().map(|arg| arg.clone().sort(true, true)));
                }
                true => {}
                false => order.extend(by_keys(keys)),
            }
            // The output keeps the name that the query gave it.
            let name = function.schema_name().to_string();
            Expr::AggregateFunction(AggregateFunction {
                func: Arc::clone(func),
                params: AggregateFunctionParams {
                    order_by: order,
                    ..params.clone()
                },
            })
            .alias(name)
        }
        other => other.clone(),
    }
}

/// A window function with ties in its order broken by `keys`, where that leaves its meaning as it is.
pub(super) fn ordered_window(function: &Expr, keys: &[KeyColumn]) -> Expr {
    match function {
        Expr::Alias(alias) => Expr::Alias(Alias {
            expr: Box::new(ordered_window(&alias.expr, keys)),
            ..alias.clone()
        }),
        Expr::WindowFunction(window) => {
            let WindowFunction { fun, params } = window.as_ref();
            // With RANGE and GROUPS, rows that tie are peers.
            let by_place = ["row_number", "ntile", "lag", "lead"].contains(&fun.name());
            let in_rows = params.window_frame.units == WindowFrameUnits::Rows;
            if !by_place && !in_rows {
                return function.clone();
            }
            let name = function.schema_name().to_string();
            let mut params = params.clone();
            params.order_by.extend(by_keys(keys));
            Expr::WindowFunction(Box::new(WindowFunction {
                fun: fun.clone(),
                params,
            }))
            .alias(name)
        }
        other => other.clone(),
    }
}

fn by_keys(keys: &[KeyColumn]) -> impl Iterator<Item = SortExpr> {
    key_columns(keys)
        .into_iter()
        .map(|key| key.sort(true, true))
}
