//! LIMIT, with ORDER BY or without.
//!
//! Key: that of the input, which also breaks ties, so that a refresh gives the same rows each time. If anything
//! changed in the input, removed = all of the old rows and added = all of the new ones; they are few.

use datafusion::logical_expr::{Expr, Limit, LogicalPlan, LogicalPlanBuilder, SortExpr};

use super::cost::{Cost, Known};
use super::operator::{Node, Operator, Planned};
use super::pass::Pass;
use super::relation::{Side, key_columns};

/// The first rows of an order.
#[derive(Debug)]
pub(super) struct Top {
    /// Where the rows come from.
    pub(super) input: Node,
    /// Their order.
    pub(super) order: Vec<SortExpr>,
    /// How many to leave out.
    pub(super) skip: Option<Box<Expr>>,
    /// How many to take.
    pub(super) fetch: Option<Box<Expr>>,
}

impl Operator for Top {
    fn class(&self) -> &'static str {
        "top"
    }

    fn is_costly(&self) -> bool {
        true
    }

    fn replaces_all(&self) -> bool {
        true
    }

    fn inputs(&self) -> Vec<&Node> {
        vec![&self.input]
    }

    fn cost(&self, inputs: &[Cost], known: &Known) -> Cost {
        let input = Cost::of_rows(inputs);
        Cost {
            rows: known.stored,
            changed: 2.0 * known.stored,
            incremental: input.full,
            ..input
        }
    }

    fn relation<'a>(&'a self, node: &'a Node, pass: &'a Pass, side: Side) -> Planned<'a> {
        Box::pin(async move {
            if !matches!(side, Side::Old | Side::New) {
                let is_unchanged = pass.is_unchanged(3 * node.id, &self.input).await?;
                if is_unchanged != (side == Side::Unchanged) {
                    return Ok(None);
                }
            }
            let Some(rows) = self.input.relation(pass, side.whole()).await? else {
                return Ok(None);
            };
            let mut order = self.order.clone();
            order.extend(
                key_columns(&node.keys)
                    .into_iter()
                    .map(|key| key.sort(true, true)),
            );
            let rows = LogicalPlanBuilder::from(rows).sort(order)?.build()?;
            Ok(Some(LogicalPlan::Limit(Limit {
                skip: self.skip.clone(),
                fetch: self.fetch.clone(),
                input: rows.into(),
            })))
        })
    }
}
