//! Inner joins, cross joins among them.
//!
//! Key: the keys of both sides. With *A* and *B* the inputs, ᵘ what is unchanged of them, ⁻ removed and ⁺ added:
//!
//! - unchanged = Aᵘ ⋈ Bᵘ,
//! - removed = A⁻ ⋈ B₀ ∪ Aᵘ ⋈ B⁻, added = A⁺ ⋈ B₁ ∪ Aᵘ ⋈ B⁺,
//!
//! where B₀ and B₁ are the whole of B at the old and the new versions. No row is in both parts of a union. Joins of
//! more tables, and of a table with itself, are joins of joins.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::common::Column;
use datafusion::logical_expr::{Join, LogicalPlan};

use super::operator::{Node, Operator, Origins, Pass};
use super::relation::{Side, union};
use crate::Result;

/// An inner join.
#[derive(Debug)]
pub(super) struct InnerJoin {
    /// The left input.
    pub(super) left: Node,
    /// The right input.
    pub(super) right: Node,
    /// How they are joined; its own inputs are not looked at.
    pub(super) join: Join,
}

impl InnerJoin {
    async fn part(
        &self,
        node: &Node,
        pass: &Pass,
        left: Side,
        right: Side,
    ) -> Result<Option<LogicalPlan>> {
        let Some(left) = self.left.relation(pass, left).await? else {
            return Ok(None);
        };
        let Some(right) = self.right.relation(pass, right).await? else {
            return Ok(None);
        };
        let joined = join_as(&self.join, left, right)?;
        node.arrange(joined).map(Some)
    }
}

/// Joins two relations as `join` does its inputs.
pub(super) fn join_as(join: &Join, left: LogicalPlan, right: LogicalPlan) -> Result<LogicalPlan> {
    Ok(LogicalPlan::Join(Join::try_new(
        Arc::new(left),
        Arc::new(right),
        join.on.clone(),
        join.filter.clone(),
        join.join_type,
        join.join_constraint,
        join.null_equality,
        join.null_aware,
    )?))
}

#[async_trait]
impl Operator for InnerJoin {
    fn class(&self) -> &'static str {
        "join"
    }

    fn is_costly(&self) -> bool {
        true
    }

    fn inputs(&self) -> Vec<&Node> {
        vec![&self.left, &self.right]
    }

    fn is_by_row(&self) -> bool {
        true
    }

    fn origins(&self, column: &Column) -> Option<Origins> {
        match self.left.schema.has_column(column) {
            true => self.left.origins(column),
            false => self.right.origins(column),
        }
    }

    async fn relation(&self, node: &Node, pass: &Pass, side: Side) -> Result<Option<LogicalPlan>> {
        match side {
            Side::Old | Side::New | Side::Unchanged => self.part(node, pass, side, side).await,
            Side::Removed | Side::Added => {
                let first = self.part(node, pass, side, side.whole()).await?;
                let second = self.part(node, pass, Side::Unchanged, side).await?;
                Ok(union([first, second])?)
            }
        }
    }
}
