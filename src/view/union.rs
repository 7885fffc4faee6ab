//! UNION ALL.
//!
//! Key: which branch a row comes from, and its key there; the columns for the keys of the other branches are NULL. Every
//! relation is the union of the same relation of the branches.

use datafusion::common::{Column, ScalarValue};
use datafusion::logical_expr::{Expr, LogicalPlan, lit};

use super::operator::{Node, Operator, Planned};
use super::pass::Pass;
use super::relation::{Restriction, Side, project, union};
use crate::{Error, Result};

/// All rows of all branches.
#[derive(Debug)]
pub(super) struct UnionAll {
    /// The branches. Their columns are those of the union, by position; their keys are all different.
    pub(super) branches: Vec<Node>,
}

impl Operator for UnionAll {
    fn class(&self) -> &'static str {
        "union"
    }

    fn inputs(&self) -> Vec<&Node> {
        self.branches.iter().collect()
    }

    fn is_by_row(&self) -> bool {
        true
    }

    fn restricted<'a>(
        &'a self,
        node: &'a Node,
        pass: &'a Pass,
        restriction: &'a Restriction,
    ) -> Planned<'a> {
        Box::pin(async move {
            let mut parts = Vec::with_capacity(self.branches.len());
            for branch in &self.branches {
                let (own, below) = (node.schema.columns(), branch.schema.columns());
                let below = restriction.over(|column| {
                    let place = own.iter().position(|other| other == column)?;
                    below.get(place).cloned().map(Expr::Column)
                })?;
                let below = below.ok_or_else(|| Error::internal("a branch has too few columns"))?;
                parts.push(branch.stream_restricted(pass, &below).await?);
            }
            self.of_parts(node, parts)
        })
    }

    fn relation<'a>(&'a self, node: &'a Node, pass: &'a Pass, side: Side) -> Planned<'a> {
        Box::pin(async move {
            let mut parts = Vec::with_capacity(self.branches.len());
            for branch in &self.branches {
                parts.push(branch.relation(pass, side).await?);
            }
            self.of_parts(node, parts)
        })
    }
}

impl UnionAll {
    /// The union of rows of each branch.
    fn of_parts(&self, node: &Node, rows: Vec<Option<LogicalPlan>>) -> Result<Option<LogicalPlan>> {
        let mut parts = Vec::with_capacity(self.branches.len());
        for (number, (branch, rows)) in self.branches.iter().zip(rows).enumerate() {
            let Some(rows) = rows else {
                continue;
            };
            let mut all: Vec<Expr> = branch
                .schema
                .columns()
                .into_iter()
                .zip(node.schema.iter())
                .map(|(column, (qualifier, field))| {
                    Expr::Column(column).alias_qualified(qualifier.cloned(), field.name())
                })
                .collect();
            for (place, key) in node.keys.iter().enumerate() {
                let value = if place == 0 {
                    lit(number as u64)
                } else if branch.keys.contains(key) {
                    Expr::Column(Column::new_unqualified(&key.name))
                } else {
                    lit(ScalarValue::try_from(&key.data_type)?)
                };
                all.push(value.alias(&key.name));
            }
            parts.push(Some(project(rows, all)?));
        }
        Ok(union(parts)?)
    }
}
