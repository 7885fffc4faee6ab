//! Window functions with PARTITION BY.
//!
//! Key: that of the input. With *K* the partitions of the rows that are removed from the input *S* or added to it:
//!
//! - removed = ω(S₀ ⋉ K), added = ω(S₁ ⋉ K), unchanged = ω(S₁ ▷ K).
//!
//! Functions over different partitions share those columns that all of them partition by.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::logical_expr::{Expr, Filter, LogicalPlan, Window};

use super::keys::in_keys;
use super::operator::{Node, Operator, Pass};
use super::relation::Side;
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

#[async_trait]
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

    async fn relation(&self, node: &Node, pass: &Pass, side: Side) -> Result<Option<LogicalPlan>> {
        let Some(mut rows) = self.input.relation(pass, side.whole()).await? else {
            return Ok(None);
        };
        if !matches!(side, Side::Old | Side::New) {
            let touched = pass
                .touched(3 * node.id, &[(&self.input, &self.partitions[..])])
                .await?;
            match (side == Side::Unchanged, touched.is_empty()) {
                (true, true) => {}
                (false, true) => return Ok(None),
                (is_unchanged, false) => {
                    let mut restriction = in_keys(&touched, self.partitions.clone());
                    if is_unchanged {
                        restriction = !restriction;
                    }
                    rows = LogicalPlan::Filter(Filter::try_new(restriction, Arc::new(rows))?);
                }
            }
        }
        let over = Window::try_new(self.functions.clone(), Arc::new(rows))?;
        node.arrange(LogicalPlan::Window(over)).map(Some)
    }
}
