//! Inner joins, cross joins among them.
//!
//! Key: the keys of both sides. With *A* and *B* the inputs, ᵘ what is unchanged of them, ⁻ removed and ⁺ added:
//!
//! - unchanged = Aᵘ ⋈ Bᵘ,
//! - removed = A⁻ ⋈ (Bᵘ ∪ B⁻) ∪ Aᵘ ⋈ B⁻, added = A⁺ ⋈ (Bᵘ ∪ B⁺) ∪ Aᵘ ⋈ B⁺.
//!
//! No row is in both parts of a union. Of what is unchanged, only rows that meet a changed one are looked for, once for both
//! relations. Joins of more tables, and of a table with itself, are joins of joins.

use std::sync::Arc;

use datafusion::common::Column;
use datafusion::logical_expr::{Expr, Join, LogicalPlan};

use super::cost::{Cost, Known, TAKEN};
use super::operator::{Node, Operator, Origins, Planned};
use super::pass::Pass;
use super::relation::{Restriction, Side, union};
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
    /// Rows of the inputs, joined.
    fn joined(
        &self,
        node: &Node,
        left: Option<LogicalPlan>,
        right: Option<LogicalPlan>,
    ) -> Result<Option<LogicalPlan>> {
        let (Some(left), Some(right)) = (left, right) else {
            return Ok(None);
        };
        node.arrange(join_as(&self.join, left, right)?).map(Some)
    }

    /// The unchanged rows of each input that meet a row that changed in the other one.
    async fn met(&self, node: &Node, pass: &Pass) -> Result<[Option<LogicalPlan>; 2]> {
        let (left, right) = on(&self.join);
        if left.is_empty() {
            return Ok([
                self.left.relation(pass, Side::Unchanged).await?,
                self.right.relation(pass, Side::Unchanged).await?,
            ]);
        }
        let of_left = pass.touched(3 * node.id, &[(&self.left, &left)]).await?;
        let of_right = pass
            .touched(3 * node.id + 1, &[(&self.right, &right)])
            .await?;
        let in_left = Restriction::new(left, of_right);
        let in_right = Restriction::new(right, of_left);
        Ok([
            self.left
                .restricted(pass, Side::Unchanged, &in_left)
                .await?,
            (self.right.restricted(pass, Side::Unchanged, &in_right)).await?,
        ])
    }
}

/// The keys of both inputs of a join.
pub(super) fn on(join: &Join) -> (Vec<Expr>, Vec<Expr>) {
    join.on.iter().cloned().unzip()
}

/// Unchanged rows of both inputs of a join that may meet: those of the first that meet `restriction`, which is over its columns,
/// and those of the second that meet one of these. Each input comes with its key in the join.
async fn meeting(
    pass: &Pass,
    (first, first_key): (&Node, &[Expr]),
    (second, second_key): (&Node, Vec<Expr>),
    restriction: &Restriction,
) -> Result<(Option<LogicalPlan>, Option<LogicalPlan>)> {
    let few = pass.kept_restricted(first, restriction).await?;
    let Some(rows) = few.rows else {
        return Ok((None, None));
    };
    let others = match few.is_kept && !second_key.is_empty() {
        true => {
            let keys = pass.keys_of(Some(rows.clone()), first_key).await?;
            let restriction = Restriction::new(second_key, keys);
            second
                .restricted(pass, Side::Unchanged, &restriction)
                .await?
        }
        false => second.relation(pass, Side::Unchanged).await?,
    };
    Ok((Some(rows), others))
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

    /// As if one side had one row for each of the other.
    fn cost(&self, inputs: &[Cost], _: &Known) -> Cost {
        let [left, right] = inputs else {
            return Cost::default();
        };
        let both = Cost::of_rows(inputs);
        let rows = left.rows.max(right.rows);
        let meeting = |change: &Cost, other: &Cost| match change.changed > 0.0 {
            true => other.some(change.changed * (other.rows / change.rows.max(1.0)).max(1.0)),
            false => 0.0,
        };
        let changed = |side: &Cost| side.changed * rows / side.rows.max(1.0);
        Cost {
            rows,
            changed: (changed(left) + changed(right)).min(2.0 * rows),
            full: both.full + rows * TAKEN,
            incremental: both.incremental + meeting(left, right) + meeting(right, left),
            finding: both.finding,
        }
    }

    fn restricted<'a>(
        &'a self,
        node: &'a Node,
        pass: &'a Pass,
        restriction: &'a Restriction,
    ) -> Planned<'a> {
        Box::pin(async move {
            let (left_key, right_key) = on(&self.join);
            let (left, right) = if restriction.is_over(&self.left.schema) {
                let first = (&self.left, &left_key[..]);
                meeting(pass, first, (&self.right, right_key), restriction).await?
            } else if restriction.is_over(&self.right.schema) {
                let first = (&self.right, &right_key[..]);
                let (right, left) =
                    meeting(pass, first, (&self.left, left_key), restriction).await?;
                (left, right)
            } else {
                return node.filtered(pass, restriction).await;
            };
            self.joined(node, left, right)
        })
    }

    fn relation<'a>(&'a self, node: &'a Node, pass: &'a Pass, side: Side) -> Planned<'a> {
        Box::pin(async move {
            let left = self.left.relation(pass, side).await?;
            let right = self.right.relation(pass, side).await?;
            if matches!(side, Side::Old | Side::New | Side::Unchanged) {
                return self.joined(node, left, right);
            }
            if left.is_none() && right.is_none() {
                return Ok(None);
            }
            let [unchanged_left, unchanged_right] = self.met(node, pass).await?;
            let all_right = union([unchanged_right, right.clone()])?;
            let first = self.joined(node, left, all_right)?;
            let second = self.joined(node, unchanged_left, right)?;
            Ok(union([first, second])?)
        })
    }
}
