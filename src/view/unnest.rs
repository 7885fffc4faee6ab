//! Unnesting: rows from the elements of a list.
//!
//! Key: that of the input, and the place of the element in its list. Every relation is the unnesting of the same
//! relation of the input.

use std::sync::Arc;

use datafusion::arrow::datatypes::DataType;
use datafusion::common::Column;
use datafusion::functions::expr_fn::greatest;
use datafusion::functions_nested::expr_fn::{array_length, range};
use datafusion::logical_expr::{Expr, LogicalPlan, Unnest, cast, lit, when};

use super::operator::{Node, Operator, Planned};
use super::pass::Pass;
use super::relation::{KeyColumn, Side, columns, key_columns, project};
use crate::Error;

/// Rows from the elements of lists.
#[derive(Debug)]
pub(super) struct Unnested {
    /// Where the lists come from.
    pub(super) input: Node,
    /// How they are unnested; its own input is not looked at.
    pub(super) unnest: Unnest,
}

impl Unnested {
    /// The columns of the input that hold the lists.
    fn lists(&self) -> Vec<Expr> {
        let columns = self.input.schema.columns();
        self.unnest
            .list_type_columns
            .iter()
            .filter_map(|(place, _)| columns.get(*place).cloned())
            .map(Expr::Column)
            .collect()
    }
}

impl Operator for Unnested {
    fn class(&self) -> &'static str {
        "unnest"
    }

    fn inputs(&self) -> Vec<&Node> {
        vec![&self.input]
    }

    fn is_by_row(&self) -> bool {
        true
    }

    fn relation<'a>(&'a self, node: &'a Node, pass: &'a Pass, side: Side) -> Planned<'a> {
        Box::pin(async move {
            let Some(rows) = self.input.relation(pass, side).await? else {
                return Ok(None);
            };
            let mut exec_columns = self.unnest.exec_columns.clone();
            let mut all = columns(&self.input.schema);
            all.extend(key_columns(&self.input.keys));
            // The places are unnested side by side with the elements.
            if let Some(KeyColumn { name, .. }) = node.keys.get(self.input.keys.len()) {
                let lengths: Vec<Expr> = self
                    .lists()
                    .into_iter()
                    .map(|list| cast(array_length(list), DataType::Int64))
                    .collect();
                let length = match lengths.len() {
                    1 => lengths.into_iter().next(),
                    _ => Some(greatest(lengths)),
                };
                let length = length.ok_or_else(|| Error::internal("nothing is unnested"))?;
                let places = range(lit(0_i64), length.clone(), lit(1_i64));
                let places = when(length.is_not_null(), places).end()?;
                all.push(places.alias(name));
                exec_columns.push(Column::new_unqualified(name));
            }
            let rows = project(rows, all)?;
            let unnested =
                Unnest::try_new(Arc::new(rows), exec_columns, self.unnest.options.clone())?;
            node.arrange(LogicalPlan::Unnest(unnested)).map(Some)
        })
    }
}
