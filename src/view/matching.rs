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

use std::sync::Arc;

use datafusion::common::JoinType;
use datafusion::logical_expr::{Expr, Join, LogicalPlan};

use super::cost::{Cost, Known};
use super::join::{join_as, on};
use super::operator::{Node, Operator, Planned};
use super::pass::Pass;
use super::relation::{Restriction, Side};
use crate::{Error, Result};

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
    /// Rows of the inputs, joined.
    fn joined(
        &self,
        node: &Node,
        left: Option<LogicalPlan>,
        right: Option<LogicalPlan>,
    ) -> Result<Option<LogicalPlan>> {
        let comes_out = match looked_up(self.join.join_type) {
            LookedUp::Right => left.is_some(),
            LookedUp::Left => right.is_some(),
            LookedUp::Neither => left.is_some() || right.is_some(),
        };
        if !comes_out {
            return Ok(None);
        }
        let left = or_empty(&self.left, left)?;
        let right = or_empty(&self.right, right)?;
        node.arrange(join_as(&self.join, left, right)?).map(Some)
    }

    /// One relation of each input, joined.
    async fn sides(
        &self,
        node: &Node,
        pass: &Pass,
        left: Side,
        right: Side,
    ) -> Result<Option<LogicalPlan>> {
        let left = self.left.relation(pass, left).await?;
        let right = self.right.relation(pass, right).await?;
        self.joined(node, left, right)
    }

    /// What a change of the inputs means for the rows of the join.
    async fn change(&self, node: &Node, pass: &Pass) -> Result<Change> {
        let (left, right) = (&self.left, &self.right);
        match looked_up(self.join.join_type) {
            LookedUp::Right if pass.is_unchanged(3 * node.id + 1, right).await? => {
                return Ok(Change::OneByOne);
            }
            LookedUp::Left if pass.is_unchanged(3 * node.id + 1, left).await? => {
                return Ok(Change::OneByOne);
            }
            _ => {}
        }
        if self.join.on.is_empty() || self.join.null_aware {
            let is_unchanged = pass.is_unchanged(3 * node.id + 1, right).await?
                && pass.is_unchanged(3 * node.id + 2, left).await?;
            return Ok(match is_unchanged {
                true => Change::Nothing,
                false => Change::Everything,
            });
        }
        let (left_key, right_key) = on(&self.join);
        let inputs = [(left, &left_key[..]), (right, &right_key[..])];
        let keys = pass.touched(3 * node.id, &inputs).await?;
        Ok(match keys.is_empty() {
            true => Change::Nothing,
            false => Change::ByKey {
                left: Restriction::new(left_key, Arc::clone(&keys)),
                right: Restriction::new(right_key, keys),
            },
        })
    }

    /// The input whose rows come out one by one, and the one that is looked up in, each with its key; `None` if unmatched
    /// rows of both come out.
    fn outer_and_inner(&self) -> Option<[(&Node, Vec<Expr>); 2]> {
        let (left_key, right_key) = on(&self.join);
        let (left, right) = ((&self.left, left_key), (&self.right, right_key));
        match looked_up(self.join.join_type) {
            LookedUp::Right => Some([left, right]),
            LookedUp::Left => Some([right, left]),
            LookedUp::Neither => None,
        }
    }

    /// As [`Self::joined`], with rows of the outer input and of the inner one.
    fn matched(
        &self,
        node: &Node,
        outer: Option<LogicalPlan>,
        inner: Option<LogicalPlan>,
    ) -> Result<Option<LogicalPlan>> {
        match looked_up(self.join.join_type) {
            LookedUp::Left => self.joined(node, inner, outer),
            LookedUp::Right | LookedUp::Neither => self.joined(node, outer, inner),
        }
    }
}

/// What a change of the inputs means for the rows of a join.
enum Change {
    /// There is none.
    Nothing,
    /// Only the input changed whose rows come out, or nothing.
    OneByOne,
    /// Rows with some keys may have changed.
    ByKey {
        left: Restriction,
        right: Restriction,
    },
    /// All rows may have changed.
    Everything,
}

/// A plan without rows, where a node has none.
fn or_empty(node: &Node, plan: Option<LogicalPlan>) -> Result<LogicalPlan> {
    use datafusion::arrow::datatypes::Field;
    use datafusion::common::DFSchema;
    use datafusion::logical_expr::EmptyRelation;

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

    /// As if one side had one row for each of the other.
    fn cost(&self, inputs: &[Cost], _: &Known) -> Cost {
        let [left, right] = inputs else {
            return Cost::default();
        };
        let both = Cost::of_rows(inputs);
        let (outer, inner) = match looked_up(self.join.join_type) {
            LookedUp::Left => (right, left),
            LookedUp::Right | LookedUp::Neither => (left, right),
        };
        let met = (inner.changed * (outer.rows / inner.rows.max(1.0)).max(1.0)).min(outer.rows);
        let more = match (inner.changed > 0.0, self.join.on.is_empty()) {
            (false, _) if outer.changed == 0.0 => 0.0,
            // Each changed row is looked up.
            (false, _) => inner.full,
            (true, true) => both.full,
            (true, false) => outer.some(met) + inner.some(inner.changed + outer.changed),
        };
        Cost {
            rows: outer.rows,
            changed: (outer.changed + 2.0 * met).min(2.0 * outer.rows),
            full: both.full,
            incremental: both.incremental + more,
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
            let change = self.change(node, pass).await?;
            let inputs = self.outer_and_inner();
            let inputs = inputs.filter(|[outer, _]| restriction.is_over(&outer.0.schema));
            let (Some([(outer, outer_key), (inner, inner_key)]), false) =
                (inputs, self.join.on.is_empty() || self.join.null_aware)
            else {
                return node.filtered(pass, restriction).await;
            };
            let rows = match change {
                Change::Everything => return Ok(None),
                Change::Nothing | Change::OneByOne => {
                    outer.restricted(pass, Side::Unchanged, restriction).await?
                }
                Change::ByKey { left, .. } => {
                    let touched = Restriction::new(outer_key.clone(), left.keys);
                    let rows = outer.restricted(pass, Side::New, restriction).await?;
                    rows.map(|rows| touched.filter_others(rows)).transpose()?
                }
            };
            let Some(rows) = rows else {
                return Ok(None);
            };
            let keys = pass.keys_of(Some(rows.clone()), &outer_key).await?;
            let restriction = Restriction::new(inner_key, keys);
            let others = inner.restricted(pass, Side::New, &restriction).await?;
            self.matched(node, Some(rows), others)
        })
    }

    fn relation<'a>(&'a self, node: &'a Node, pass: &'a Pass, side: Side) -> Planned<'a> {
        Box::pin(async move {
            if matches!(side, Side::Old | Side::New) {
                return self.sides(node, pass, side, side).await;
            }
            let whole = side.whole();
            match (self.change(node, pass).await?, side) {
                (Change::Nothing, Side::Unchanged)
                | (Change::Everything, Side::Removed | Side::Added) => {
                    self.sides(node, pass, whole, whole).await
                }
                (Change::Nothing | Change::Everything, _) => Ok(None),
                (Change::OneByOne, _) => {
                    let Some([(outer, outer_key), (inner, inner_key)]) = self.outer_and_inner()
                    else {
                        return Err(Error::internal("both inputs of a join come out"));
                    };
                    let rows = outer.relation(pass, side).await?;
                    if side == Side::Unchanged || outer_key.is_empty() || self.join.null_aware {
                        let others = inner.relation(pass, whole).await?;
                        return self.matched(node, rows, others);
                    }
                    let inputs = [(outer, &outer_key[..])];
                    let keys = pass.touched(3 * node.id + 2, &inputs).await?;
                    let restriction = Restriction::new(inner_key, keys);
                    let others = inner.restricted(pass, whole, &restriction).await?;
                    self.matched(node, rows, others)
                }
                (Change::ByKey { left, right }, Side::Unchanged) => {
                    let others = self.left.relation(pass, whole).await?;
                    let of_left = others.map(|rows| left.filter_others(rows)).transpose()?;
                    let others = self.right.relation(pass, whole).await?;
                    let of_right = others.map(|rows| right.filter_others(rows)).transpose()?;
                    self.joined(node, of_left, of_right)
                }
                (Change::ByKey { left, right }, _) => {
                    let of_left = self.left.restricted(pass, side, &left).await?;
                    let of_right = self.right.restricted(pass, side, &right).await?;
                    self.joined(node, of_left, of_right)
                }
            }
        })
    }
}
