//! GROUP BY, and aggregates of a whole relation.
//!
//! Key: the group. With *K* the groups of the rows that are removed from the input *S* or added to it:
//!
//! - removed = γ(S₀ ⋉ K), added = γ(S₁ ⋉ K), unchanged = γ(S₁ ▷ K).
//!
//! This holds for every aggregate function. Without GROUP BY there is one group, which is touched by any change.
//! 0.0 and -0.0 are one group: DataFusion may put them in one or in two, as its plan has it. Grouping sets are a union of groupings, and DISTINCT is a grouping by all columns.

use std::sync::Arc;

use datafusion::logical_expr::{Aggregate, Expr, LogicalPlan, lit};
use futures::future::BoxFuture;

use super::cost::{Cost, Known, TAKEN, touched};
use super::operator::{Node, Operator, Planned};
use super::pass::Pass;
use super::relation::{Restriction, Side, project};
use crate::Result;
use crate::storage::key_set::KeySet;
use crate::storage::keys::one_zero;

/// A grouping.
#[derive(Debug)]
pub(super) struct Group {
    /// Where the rows come from.
    pub(super) input: Node,
    /// What they are grouped by; empty for one group.
    pub(super) groups: Vec<Expr>,
    /// What is computed of each group.
    pub(super) aggregates: Vec<Expr>,
}

impl Group {
    /// The groups of the rows that are removed from the input or added to it.
    async fn touched(&self, node: &Node, pass: &Pass) -> Result<Restriction> {
        let inputs = [(&self.input, &self.groups[..])];
        let keys = pass.touched(3 * node.id, &inputs).await?;
        Ok(Restriction::new(self.groups.clone(), keys))
    }

    fn over(&self, node: &Node, rows: LogicalPlan) -> Result<LogicalPlan> {
        let groups = self
            .groups
            .iter()
            .cloned()
            .map(|group| one_zero(group, rows.schema()));
        let grouped = Aggregate::try_new(
            Arc::new(rows.clone()),
            groups.collect::<datafusion::common::Result<_>>()?,
            self.aggregates.clone(),
        )?;
        // By their places: the groups may have got other names.
        let computed = grouped.schema.columns().into_iter().zip(node.schema.iter());
        let mut all: Vec<Expr> = computed
            .map(|(column, (qualifier, field))| {
                Expr::Column(column).alias_qualified(qualifier.cloned(), field.name())
            })
            .collect();
        // The groups are its first columns. The only group has a number for a key.
        let groups = grouped.schema.columns().into_iter().map(Expr::Column);
        let groups: Vec<Expr> = match self.groups.is_empty() {
            true => vec![lit(0_u64)],
            false => groups.collect(),
        };
        let keys = node.keys.iter().zip(groups);
        all.extend(keys.map(|(key, group)| group.alias(&key.name)));
        Ok(project(LogicalPlan::Aggregate(grouped), all)?)
    }
}

impl Operator for Group {
    fn class(&self) -> &'static str {
        "group"
    }

    fn is_costly(&self) -> bool {
        true
    }

    fn inputs(&self) -> Vec<&Node> {
        vec![&self.input]
    }

    /// There are as many groups as rows are stored.
    fn cost(&self, inputs: &[Cost], known: &Known) -> Cost {
        let input = Cost::of_rows(inputs);
        let groups = match self.groups.is_empty() {
            true => 1.0,
            false => known.stored.clamp(1.0, input.rows.max(1.0)),
        };
        let share = match self.groups.is_empty() && input.changed > 0.0 {
            true => 1.0,
            false => touched(input.changed, groups),
        };
        let found = match share > 0.0 {
            true => input.some(share * input.rows) + share * input.rows * TAKEN,
            false => 0.0,
        };
        Cost {
            rows: groups,
            changed: 2.0 * share * groups,
            incremental: input.incremental + found,
            ..input
        }
    }

    fn touched_keys<'a>(
        &'a self,
        node: &'a Node,
        pass: &'a Pass,
    ) -> BoxFuture<'a, Result<Option<Arc<KeySet>>>> {
        Box::pin(async move {
            if self.groups.is_empty() {
                return Ok(None);
            }
            Ok(Some(self.touched(node, pass).await?.keys))
        })
    }

    fn restricted<'a>(
        &'a self,
        node: &'a Node,
        pass: &'a Pass,
        restriction: &'a Restriction,
    ) -> Planned<'a> {
        Box::pin(async move {
            let (own, groups) = (node.schema.columns(), &self.groups);
            let below = restriction.over(|column| {
                let place = own.iter().position(|other| other == column)?;
                groups.get(place).cloned().map(Expr::unalias)
            })?;
            let Some(below) = below else {
                return node.filtered(pass, restriction).await;
            };
            let touched = self.touched(node, pass).await?;
            let rows = self.input.restricted(pass, Side::New, &below).await?;
            let rows = rows.map(|rows| self.over(node, touched.filter_others(rows)?));
            rows.transpose()
        })
    }

    fn relation<'a>(&'a self, node: &'a Node, pass: &'a Pass, side: Side) -> Planned<'a> {
        Box::pin(async move {
            if matches!(side, Side::Old | Side::New) {
                let rows = self.input.relation(pass, side).await?;
                return rows.map(|rows| self.over(node, rows)).transpose();
            }
            let touched = self.touched(node, pass).await?;
            let rows = match (side == Side::Unchanged, self.groups.is_empty()) {
                (true, false) => {
                    let rows = self.input.relation(pass, Side::New).await?;
                    rows.map(|rows| touched.filter_others(rows)).transpose()?
                }
                (false, false) => self.input.restricted(pass, side, &touched).await?,
                // The only group.
                (is_unchanged, true) if is_unchanged == touched.keys.is_empty() => {
                    self.input.relation(pass, side.whole()).await?
                }
                (_, true) => None,
            };
            rows.map(|rows| self.over(node, rows)).transpose()
        })
    }
}
