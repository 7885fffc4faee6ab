//! Calls of users' functions in groupings and filters, taken out into projections below them: so their results can be
//! stored (see [`super::stage`]).

use std::collections::BTreeSet;
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, Result};
use datafusion::logical_expr::utils::{conjunction, split_conjunction_owned};
use datafusion::logical_expr::{Aggregate, Expr, Filter, LogicalPlan, Projection};

use super::relation::{columns, project};
use crate::function::is_call;

/// What the names of results begin with.
const PREFIX: &str = "__call_";

/// `plan`, with calls in its groupings and filters taken out.
pub(super) fn extract_calls(plan: LogicalPlan) -> Result<LogicalPlan> {
    let mut number = 0;
    plan.transform_up(|node| match node {
        LogicalPlan::Aggregate(aggregate) => of_grouping(aggregate, &mut number),
        LogicalPlan::Filter(filter) => of_filter(filter, &mut number),
        LogicalPlan::Projection(projection) => above_filter(projection),
        other => Ok(Transformed::no(other)),
    })
    .data()
}

/// Calls that were taken out, each with the name of its result.
#[derive(Debug, Default)]
struct Calls(Vec<(Expr, String)>);

impl Calls {
    /// Those in `expr` that are in no other.
    fn add(&mut self, expr: &Expr, number: &mut usize) -> Result<()> {
        expr.apply(|part| {
            if !is_call(part) {
                return Ok(TreeNodeRecursion::Continue);
            }
            if !self.0.iter().any(|(call, _)| call == part) {
                *number += 1;
                self.0.push((part.clone(), format!("{PREFIX}{number}")));
            }
            Ok(TreeNodeRecursion::Jump)
        })?;
        Ok(())
    }

    /// `expr` with results in the place of calls, under the name that it had.
    fn replace(&self, expr: &Expr) -> Result<Expr> {
        let replaced = expr.clone().transform_down(|part| {
            Ok(match self.0.iter().find(|(call, _)| *call == part) {
                Some((_, name)) => Transformed::new(
                    Expr::Column(Column::new_unqualified(name)),
                    true,
                    TreeNodeRecursion::Jump,
                ),
                None => Transformed::no(part),
            })
        })?;
        Ok(match (replaced.transformed, expr) {
            (false, _) | (true, Expr::Alias(_)) => replaced.data,
            (true, _) => replaced.data.alias(expr.schema_name().to_string()),
        })
    }

    /// The results, behind `kept` columns of `input`.
    fn over(&self, input: LogicalPlan, mut kept: Vec<Expr>) -> Result<LogicalPlan> {
        let calls = self.0.iter();
        kept.extend(calls.map(|(call, name)| call.clone().alias(name)));
        project(input, kept)
    }
}

fn of_grouping(aggregate: Aggregate, number: &mut usize) -> Result<Transformed<LogicalPlan>> {
    let mut calls = Calls::default();
    for expr in aggregate.group_expr.iter().chain(&aggregate.aggr_expr) {
        calls.add(expr, number)?;
    }
    if calls.0.is_empty() {
        return Ok(Transformed::no(LogicalPlan::Aggregate(aggregate)));
    }
    let replaced = |exprs: &[Expr]| {
        let replaced = exprs.iter().map(|expr| calls.replace(expr));
        replaced.collect::<Result<Vec<Expr>>>()
    };
    let groups = replaced(&aggregate.group_expr)?;
    let results = replaced(&aggregate.aggr_expr)?;
    let read: BTreeSet<&Column> = groups
        .iter()
        .chain(&results)
        .flat_map(Expr::column_refs)
        .collect();
    let kept = columns(aggregate.input.schema()).into_iter();
    let kept =
        kept.filter(|column| matches!(column, Expr::Column(column) if read.contains(column)));
    let input = calls.over(aggregate.input.as_ref().clone(), kept.collect())?;
    let aggregate = Aggregate::try_new(Arc::new(input), groups, results)?;
    Ok(Transformed::yes(LogicalPlan::Aggregate(aggregate)))
}

fn of_filter(filter: Filter, number: &mut usize) -> Result<Transformed<LogicalPlan>> {
    let mut calls = Calls::default();
    calls.add(&filter.predicate, number)?;
    if calls.0.is_empty() {
        return Ok(Transformed::no(LogicalPlan::Filter(filter)));
    }
    let shown = columns(filter.input.schema());
    let mut input = filter.input;
    // What can be told without a call is told before.
    let conditions = split_conjunction_owned(filter.predicate).into_iter();
    let (mut before, mut behind) = (Vec::new(), Vec::new());
    for condition in conditions {
        let replaced = calls.replace(&condition)?.unalias();
        match replaced == condition {
            true => before.push(condition),
            false => behind.push(replaced),
        }
    }
    if let Some(condition) = conjunction(before) {
        input = Arc::new(LogicalPlan::Filter(Filter::try_new(condition, input)?));
    }
    let mut plan = calls.over(input.as_ref().clone(), shown.clone())?;
    if let Some(condition) = conjunction(behind) {
        plan = LogicalPlan::Filter(Filter::try_new(condition, Arc::new(plan))?);
    }
    Ok(Transformed::yes(project(plan, shown)?))
}

/// A projection above a filter whose calls were taken out does not make them again.
fn above_filter(projection: Projection) -> Result<Transformed<LogicalPlan>> {
    let calls = match projection.input.as_ref() {
        LogicalPlan::Projection(shown) => match shown.input.as_ref() {
            LogicalPlan::Filter(filter) => match filter.input.as_ref() {
                LogicalPlan::Projection(results) => taken_out(results),
                _ => Calls::default(),
            },
            _ => Calls::default(),
        },
        _ => Calls::default(),
    };
    let inputs = projection.input.inputs();
    let (Some(filtered), false) = (inputs.first(), calls.0.is_empty()) else {
        return Ok(Transformed::no(LogicalPlan::Projection(projection)));
    };
    let values = projection.expr.iter().map(|value| calls.replace(value));
    let plan = project((*filtered).clone(), values.collect::<Result<_>>()?)?;
    Ok(Transformed::yes(plan))
}

/// The calls of a projection that [`Calls::over`] has made.
fn taken_out(projection: &Projection) -> Calls {
    let calls = projection.expr.iter().filter_map(|value| match value {
        Expr::Alias(alias) if alias.name.starts_with(PREFIX) => {
            Some((alias.expr.as_ref().clone(), alias.name.clone()))
        }
        _ => None,
    });
    Calls(calls.collect())
}
