//! Joins in which it matters whether a row finds a match: left, right and full ones, semi and anti joins, and those
//! that mark a row, as which IN, EXISTS and scalar subqueries come.
//!
//! Key: those of the inputs whose rows come out. With *K* the values of the join keys in the rows that are removed from
//! or added to either input, and ⋉, ▷ the rows with a key in *K* and without one:
//!
//! - removed = A₀ ⋉ K ⟕ B₀ ⋉ K, added = A₁ ⋉ K ⟕ B₁ ⋉ K, unchanged = A₁ ▷ K ⟕ B₁ ▷ K,
//!
//! since rows of different keys never meet. NULL is a key like others here: a row whose key is NULL matches
//! nothing, but may come out.
//!
//! As long as the input in which matches are looked for does not change, the join is an operator of one row at a
//! time over the other: Δ(A ⟕ B) = ΔA ⟕ B. Where there is no key to tell rows apart by (NOT IN, a join by an
//! inequality), a change of that input takes everything away and adds it anew.

use async_trait::async_trait;
use datafusion::common::JoinType;
use datafusion::logical_expr::{Expr, Filter, Join, LogicalPlan};

use super::join::join_as;
use super::keys::in_keys;
use super::operator::{Node, Operator, Pass};
use super::relation::Side;
use crate::Result;

/// A join other than an inner one.
#[derive(Debug)]
pub(super) struct MatchingJoin {
    /// The left input.
    pub(super) left: Node,
    /// The right input.
    pub(super) right: Node,
    /// How they are joined; its own inputs are not looked at.
    pub(super) join: Join,
}

/// Which input is only looked up in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LookedUp {
    Left,
    Right,
    /// Unmatched rows of both come out.
    Neither,
}

fn looked_up(join: JoinType) -> LookedUp {
    match join {
        JoinType::Left | JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => {
            LookedUp::Right
        }
        JoinType::Right | JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => {
            LookedUp::Left
        }
        JoinType::Inner | JoinType::Full => LookedUp::Neither,
    }
}

impl MatchingJoin {
    async fn part(
        &self,
        node: &Node,
        pass: &Pass,
        left: Side,
        right: Side,
        restrict: Option<&Restriction>,
    ) -> Result<Option<LogicalPlan>> {
        let mut sides = [
            (&self.left, self.left.relation(pass, left).await?),
            (&self.right, self.right.relation(pass, right).await?),
        ];
        if let Some(restrict) = restrict {
            for ((_, rows), key) in sides.iter_mut().zip([&restrict.left, &restrict.right]) {
                if let Some(plan) = rows.take() {
                    *rows = Some(LogicalPlan::Filter(Filter::try_new(
                        key.clone(),
                        plan.into(),
                    )?));
                }
            }
        }
        let [(left_node, left), (right_node, right)] = sides;
        let comes_out = match looked_up(self.join.join_type) {
            LookedUp::Right => left.is_some(),
            LookedUp::Left => right.is_some(),
            LookedUp::Neither => left.is_some() || right.is_some(),
        };
        if !comes_out {
            return Ok(None);
        }
        let left = or_empty(left_node, left)?;
        let right = or_empty(right_node, right)?;
        node.arrange(join_as(&self.join, left, right)?).map(Some)
    }

    fn keys(&self) -> (Vec<Expr>, Vec<Expr>) {
        self.join.on.iter().cloned().unzip()
    }
}

/// Only rows with some keys, of each input.
struct Restriction {
    left: Expr,
    right: Expr,
}

/// A plan without rows, where a node has none.
fn or_empty(node: &Node, plan: Option<LogicalPlan>) -> Result<LogicalPlan> {
    use datafusion::arrow::datatypes::Field;
    use datafusion::common::DFSchema;
    use datafusion::logical_expr::EmptyRelation;
    use std::sync::Arc;

    if let Some(plan) = plan {
        return Ok(plan);
    }
    let mut fields: Vec<_> = node
        .schema
        .iter()
        .map(|(qualifier, field)| (qualifier.cloned(), Arc::clone(field)))
        .collect();
    for key in &node.keys {
        let field = Field::new(&key.name, key.data_type.clone(), true);
        fields.push((None, Arc::new(field)));
    }
    let schema = DFSchema::new_with_metadata(fields, Default::default())?;
    Ok(LogicalPlan::EmptyRelation(EmptyRelation {
        produce_one_row: false,
        schema: Arc::new(schema),
    }))
}

#[async_trait]
impl Operator for MatchingJoin {
    fn class(&self) -> &'static str {
        "matching join"
    }

    fn is_costly(&self) -> bool {
        true
    }

    fn inputs(&self) -> Vec<&Node> {
        vec![&self.left, &self.right]
    }

    async fn relation(&self, node: &Node, pass: &Pass, side: Side) -> Result<Option<LogicalPlan>> {
        if matches!(side, Side::Old | Side::New) {
            return self.part(node, pass, side, side, None).await;
        }
        let whole = side.whole();
        match looked_up(self.join.join_type) {
            LookedUp::Right if pass.is_unchanged(3 * node.id + 1, &self.right).await? => {
                return self.part(node, pass, side, whole, None).await;
            }
            LookedUp::Left if pass.is_unchanged(3 * node.id + 1, &self.left).await? => {
                return self.part(node, pass, whole, side, None).await;
            }
            _ => {}
        }
        if self.join.on.is_empty() || self.join.null_aware {
            // Everything, unless nothing changed at all.
            let is_unchanged = pass.is_unchanged(3 * node.id + 1, &self.right).await?
                && pass.is_unchanged(3 * node.id + 2, &self.left).await?;
            return match (is_unchanged, side) {
                (true, Side::Unchanged) => self.part(node, pass, whole, whole, None).await,
                (false, Side::Removed | Side::Added) => {
                    self.part(node, pass, whole, whole, None).await
                }
                _ => Ok(None),
            };
        }
        let (left, right) = self.keys();
        let touched = pass
            .touched(
                3 * node.id,
                &[(&self.left, &left[..]), (&self.right, &right[..])],
            )
            .await?;
        if touched.is_empty() {
            return match side {
                Side::Unchanged => self.part(node, pass, whole, whole, None).await,
                _ => Ok(None),
            };
        }
        let (mut left, mut right) = (in_keys(&touched, left), in_keys(&touched, right));
        if side == Side::Unchanged {
            (left, right) = (!left, !right);
        }
        self.part(node, pass, whole, whole, Some(&Restriction { left, right }))
            .await
    }
}
