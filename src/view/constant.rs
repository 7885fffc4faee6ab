//! Rows that are in the query itself: VALUES, and SELECT without FROM.
//!
//! Key: the place of the row. All are unchanged.

use std::sync::Arc;

use datafusion::logical_expr::{LogicalPlan, Values, lit};

use super::cost::{Cost, Known};
use super::operator::{Node, Operator, Planned};
use super::pass::Pass;
use super::relation::{Side, columns, project, union};

/// Rows of the query itself.
#[derive(Debug)]
pub(super) struct Constant {
    /// The rows, each as a plan of its own.
    pub(super) rows: Vec<LogicalPlan>,
}

impl Constant {
    /// The rows of VALUES.
    pub(super) fn values(values: &Values) -> Self {
        let rows = values.values.iter().map(|row| {
            LogicalPlan::Values(Values {
                schema: Arc::clone(&values.schema),
                values: vec![row.clone()],
            })
        });
        Self {
            rows: rows.collect(),
        }
    }
}

impl Operator for Constant {
    fn class(&self) -> &'static str {
        "constant"
    }

    fn inputs(&self) -> Vec<&Node> {
        Vec::new()
    }

    fn cost(&self, _: &[Cost], _: &Known) -> Cost {
        Cost {
            rows: self.rows.len() as f64,
            ..Cost::default()
        }
    }

    fn is_by_row(&self) -> bool {
        true
    }

    fn relation<'a>(&'a self, node: &'a Node, _: &'a Pass, side: Side) -> Planned<'a> {
        Box::pin(async move {
            if matches!(side, Side::Removed | Side::Added) {
                return Ok(None);
            }
            let mut parts = Vec::with_capacity(self.rows.len());
            for (place, row) in self.rows.iter().enumerate() {
                let mut all = columns(&node.schema);
                all.extend(
                    node.keys
                        .iter()
                        .map(|key| lit(place as u64).alias(&key.name)),
                );
                parts.push(Some(project(row.clone(), all)?));
            }
            Ok(union(parts)?)
        })
    }
}
