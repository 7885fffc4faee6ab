//! The row class: filters, projections and functions, which look at one row at a time.
//!
//! Key: that of the input. Every relation is the operator over the same relation of the input:
//! Δ(σ(S)) = σ(ΔS), Δ(π(S)) = π(ΔS).

use std::sync::Arc;

use datafusion::common::Column;
use datafusion::logical_expr::{Expr, Filter, LogicalPlan, SubqueryAlias};
use datafusion::sql::TableReference;
use futures::future::BoxFuture;

use super::cost::{Cost, Known};
use super::operator::{Node, Operator, Origins, Planned};
use super::pass::Pass;
use super::relation::{Restriction, Side, columns, key_columns, project};
use crate::Result;
use crate::function::has_call;
use crate::storage::key_set::KeySet;

/// What is done with each row.
#[derive(Debug)]
pub(super) enum RowStep {
    /// Computes columns.
    Project(Vec<Expr>),
    /// Keeps the rows for which this is true.
    Filter(Expr),
    /// Gives all columns a qualifier.
    Alias(TableReference),
}

/// An operator that looks at one row at a time.
#[derive(Debug)]
pub(super) struct ByRow {
    /// Where the rows come from.
    pub(super) input: Node,
    /// What is done with each.
    pub(super) step: RowStep,
}

impl Operator for ByRow {
    fn class(&self) -> &'static str {
        "row"
    }

    fn inputs(&self) -> Vec<&Node> {
        vec![&self.input]
    }

    fn is_by_row(&self) -> bool {
        true
    }

    /// Half of what changed is removed: only the rest is computed.
    fn cost(&self, inputs: &[Cost], known: &Known) -> Cost {
        let cost = Cost::of_rows(inputs);
        let calls: f64 = match &self.step {
            RowStep::Project(values) => values.iter().map(|value| known.calls(value)).sum(),
            RowStep::Filter(condition) => known.calls(condition),
            RowStep::Alias(_) => 0.0,
        };
        Cost {
            full: cost.full + cost.rows * calls,
            incremental: cost.incremental + cost.changed / 2.0 * calls,
            ..cost
        }
    }

    /// Calls that are paid for are made once.
    fn is_costly(&self) -> bool {
        matches!(&self.step, RowStep::Project(values) if values.iter().any(has_call))
    }

    fn projection(&self) -> Option<(&Node, &[Expr])> {
        match &self.step {
            RowStep::Project(values) => Some((&self.input, values)),
            RowStep::Filter(_) | RowStep::Alias(_) => None,
        }
    }

    fn origins(&self, column: &Column) -> Option<Origins> {
        match &self.step {
            RowStep::Filter(_) => self.input.origins(column),
            RowStep::Alias(_) => {
                let columns = self.input.schema.columns();
                let below = columns.iter().find(|below| below.name == column.name)?;
                self.input.origins(below)
            }
            RowStep::Project(values) => {
                let value = values.iter().find(|value| is_named(value, column))?;
                let origins = value.column_refs().into_iter();
                let origins = origins.map(|column| self.input.origins(column));
                Some(
                    origins
                        .collect::<Option<Vec<_>>>()?
                        .into_iter()
                        .flatten()
                        .collect(),
                )
            }
        }
    }

    fn touched_keys<'a>(
        &'a self,
        _: &'a Node,
        pass: &'a Pass,
    ) -> BoxFuture<'a, Result<Option<Arc<KeySet>>>> {
        Box::pin(self.input.touched_keys(pass))
    }

    fn restricted<'a>(
        &'a self,
        node: &'a Node,
        pass: &'a Pass,
        restriction: &'a Restriction,
    ) -> Planned<'a> {
        Box::pin(async move {
            let below = match &self.step {
                RowStep::Filter(_) => Some(restriction.clone()),
                RowStep::Alias(_) => {
                    let below = self.input.schema.columns();
                    restriction.over(|column| {
                        let below = below.iter().find(|below| below.name == column.name);
                        below.cloned().map(Expr::Column)
                    })?
                }
                RowStep::Project(values) => restriction.over(|column| {
                    let value = values.iter().find(|value| is_named(value, column))?;
                    (!has_call(value)).then(|| value.clone().unalias())
                })?,
            };
            let rows = match below {
                Some(below) => self.input.stream_restricted(pass, &below).await?,
                None => {
                    return node.filtered(pass, restriction).await;
                }
            };
            rows.map(|rows| self.over(node, rows)).transpose()
        })
    }

    fn relation<'a>(&'a self, node: &'a Node, pass: &'a Pass, side: Side) -> Planned<'a> {
        Box::pin(async move {
            let rows = self.input.relation(pass, side).await?;
            rows.map(|rows| self.over(node, rows)).transpose()
        })
    }
}

impl ByRow {
    /// The step over rows of the input.
    fn over(&self, node: &Node, rows: LogicalPlan) -> Result<LogicalPlan> {
        Ok(match &self.step {
            RowStep::Project(values) => {
                let mut all = values.clone();
                all.extend(key_columns(&node.keys));
                project(rows, all)?
            }
            RowStep::Filter(condition) => {
                LogicalPlan::Filter(Filter::try_new(condition.clone(), Arc::new(rows))?)
            }
            RowStep::Alias(alias) => {
                let aliased = SubqueryAlias::try_new(Arc::new(rows), alias.clone())?;
                let mut all = columns(&node.schema);
                // Keys stay without a qualifier.
                all.extend(node.keys.iter().map(|key| {
                    Expr::Column(Column::new(Some(alias.clone()), &key.name)).alias(&key.name)
                }));
                project(LogicalPlan::SubqueryAlias(aliased), all)?
            }
        })
    }
}

/// Whether `value` is the column that is called so.
fn is_named(value: &Expr, column: &Column) -> bool {
    let (qualifier, name) = value.qualified_name();
    qualifier == column.relation && name == column.name
}
