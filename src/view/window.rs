//! Window functions with PARTITION BY.
//!
//! Key: that of the input. With *K* the partitions of the rows that are removed from the input *S* or added to it:
//!
//! - removed = ω(S₀ ⋉ K), added = ω(S₁ ⋉ K), unchanged = ω(S₁ ▷ K).
//!
//! Functions over different partitions share those columns that all of them partition by.

use std::sync::Arc;

use datafusion::logical_expr::{Expr, LogicalPlan, Window};

use super::cost::{Cost, Known, TAKEN, touched};
use super::operator::{Node, Operator, Planned};
use super::pass::Pass;
use super::relation::{Restriction, Side};
use crate::Result;

/// Window functions.
#[derive(Debug)]
pub(super) struct Windows {
    /// Where the rows come from.
    pub(super) input: Node,
    /// The functions, with ties in their order broken by the input's key.
    pub(super) functions: Vec<Expr>,
    /// What all of them partition by; not empty.
    pub(super) partitions: Vec<Expr>,
}

impl Operator for Windows {
    fn class(&self) -> &'static str {
        "window"
    }

    fn is_costly(&self) -> bool {
        true
    }

    fn inputs(&self) -> Vec<&Node> {
        vec![&self.input]
    }

    /// As if there were as many partitions as rows in one.
    fn cost(&self, inputs: &[Cost], _: &Known) -> Cost {
        let input = Cost::of_rows(inputs);
        let rows = touched(input.changed, input.rows.sqrt()) * input.rows;
        let found = match rows > 0.0 {
            true => input.some(rows) + 2.0 * rows * TAKEN,
            false => 0.0,
        };
        Cost {
            changed: 2.0 * rows,
            incremental: input.incremental + found,
            ..input
        }
    }

    fn restricted<'a>(
        &'a self,
        node: &'a Node,
        pass: &'a Pass,
        restriction: &'a Restriction,
    ) -> Planned<'a> {
        Box::pin(async move {
            let touched = self.touched(node, pass).await?;
            let is_by_partition =
                (restriction.key.iter()).all(|part| self.partitions.contains(part));
            let rows = match is_by_partition {
                true => self.input.restricted(pass, Side::New, restriction).await?,
                false => self.input.relation(pass, Side::New).await?,
            };
            let Some(rows) = rows else {
                return Ok(None);
            };
            let rows = self.over(node, touched.filter_others(rows)?)?;
            Ok(Some(match is_by_partition {
                true => rows,
                false => restriction.filter(rows)?,
            }))
        })
    }

    fn relation<'a>(&'a self, node: &'a Node, pass: &'a Pass, side: Side) -> Planned<'a> {
        Box::pin(async move {
            let rows = match side {
                Side::Old | Side::New => self.input.relation(pass, side).await?,
                Side::Unchanged => {
                    let touched = self.touched(node, pass).await?;
                    let rows = self.input.relation(pass, Side::New).await?;
                    rows.map(|rows| touched.filter_others(rows)).transpose()?
                }
                Side::Removed | Side::Added => {
                    let touched = self.touched(node, pass).await?;
                    self.input.restricted(pass, side, &touched).await?
                }
            };
            rows.map(|rows| self.over(node, rows)).transpose()
        })
    }
}

impl Windows {
    /// The partitions of the rows that are removed from the input or added to it.
    async fn touched(&self, node: &Node, pass: &Pass) -> Result<Restriction> {
        let inputs = [(&self.input, &self.partitions[..])];
        let keys = pass.touched(3 * node.id, &inputs).await?;
        Ok(Restriction::new(self.partitions.clone(), keys))
    }

    /// The functions over rows of the input.
    fn over(&self, node: &Node, rows: LogicalPlan) -> Result<LogicalPlan> {
        let over = Window::try_new(self.functions.clone(), Arc::new(rows))?;
        node.arrange(LogicalPlan::Window(over))
    }
}
