//! The relations that maintenance is made of, and how plans for them are put together.
//!
//! For every operator of a view's query there are five relations over its output. Each is a logical plan
//! with the columns of the operator, and behind them its key: columns that tell any two rows of the
//! operator apart, and that a row keeps from one version of the sources to the next.

use std::sync::Arc;

use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, Result};
use datafusion::logical_expr::{Expr, Filter, LogicalPlan, Projection, Union};

use crate::storage::key_set::KeySet;
use crate::storage::keys::in_keys;

/// Which rows of an operator's output: old is at the versions that the view reflects, new at those that the refresh reads.
///
/// As multisets, old = unchanged + removed and new = unchanged + added. A row may be both removed and added
/// and still be the same: that costs something, but is not wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Side {
    /// All rows at the old versions.
    Old,
    /// All rows at the new versions.
    New,
    /// Rows that are the same at both.
    Unchanged,
    /// Rows of the old versions to take away.
    Removed,
    /// Rows of the new versions to add.
    Added,
}

impl Side {
    /// Whether the rows are those of the old versions.
    pub(super) fn is_old(self) -> bool {
        matches!(self, Self::Old | Self::Removed)
    }

    /// All rows at the versions of this side.
    pub(super) fn whole(self) -> Self {
        match self.is_old() {
            true => Self::Old,
            false => Self::New,
        }
    }
}

/// A column of a key, or of the state behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeyColumn {
    /// Its name in plans: unqualified, and one in the whole query.
    pub(super) name: String,
    /// Its type.
    pub(super) data_type: DataType,
    /// The source whose row ids it holds, as its place among the sources of the query.
    pub(super) source: Option<usize>,
    /// Whether it is no part of the key, but of the state that is stored with a row.
    pub(super) is_state: bool,
}

impl KeyColumn {
    /// A reference to it.
    pub(super) fn column(&self) -> Expr {
        Expr::Column(Column::new_unqualified(&self.name))
    }
}

/// The names that the columns of a key, and of the state behind it, have in the table that stores a view.
pub(super) fn hidden_names(keys: &[KeyColumn]) -> Vec<String> {
    let (mut of_key, mut of_state) = (0, 0);
    let names = keys.iter().map(|key| match key.is_state {
        true => {
            of_state += 1;
            format!("_state_{of_state}")
        }
        false => {
            of_key += 1;
            format!("_key_{of_key}")
        }
    });
    names.collect()
}

/// Only rows whose key is one of a set.
#[derive(Debug, Clone)]
pub(super) struct Restriction {
    /// The key of a row, over the columns of a node.
    pub(super) key: Vec<Expr>,
    /// The keys.
    pub(super) keys: Arc<KeySet>,
}

impl Restriction {
    /// Only rows whose `key` is one of `keys`.
    pub(super) fn new(key: Vec<Expr>, keys: Arc<KeySet>) -> Self {
        Self { key, keys }
    }

    /// The rows of `plan` that meet it.
    pub(super) fn filter(&self, plan: LogicalPlan) -> Result<LogicalPlan> {
        let condition = in_keys(&self.keys, self.key.clone());
        Filter::try_new(condition, Arc::new(plan)).map(LogicalPlan::Filter)
    }

    /// The rows of `plan` that don't meet it.
    pub(super) fn filter_others(&self, plan: LogicalPlan) -> Result<LogicalPlan> {
        if self.keys.is_empty() {
            return Ok(plan);
        }
        let condition = !in_keys(&self.keys, self.key.clone());
        Filter::try_new(condition, Arc::new(plan)).map(LogicalPlan::Filter)
    }

    /// The same one over other columns: each column of the key is replaced by what `replacement` gives for it; `None` if it
    /// gives nothing for one.
    pub(super) fn over(
        &self,
        mut replacement: impl FnMut(&Column) -> Option<Expr>,
    ) -> Result<Option<Self>> {
        let mut is_known = true;
        let key = self.key.iter().cloned().map(|part| {
            let replaced = part.transform(|part| match &part {
                Expr::Column(column) => Ok(match replacement(column) {
                    Some(other) => Transformed::yes(other),
                    None => {
                        is_known = false;
                        Transformed::no(part)
                    }
                }),
                _ => Ok(Transformed::no(part)),
            })?;
            Ok(replaced.data)
        });
        let key = key.collect::<Result<_>>()?;
        let keys = Arc::clone(&self.keys);
        Ok(is_known.then_some(Self { key, keys }))
    }

    /// Whether it looks only at columns of `schema`.
    pub(super) fn is_over(&self, schema: &DFSchema) -> bool {
        let mut columns = self.key.iter().flat_map(Expr::column_refs);
        columns.all(|column| schema.has_column(column))
    }
}

/// References to all columns of `schema`.
pub(super) fn columns(schema: &DFSchema) -> Vec<Expr> {
    schema.columns().into_iter().map(Expr::Column).collect()
}

/// References to the columns of `keys`.
pub(super) fn key_columns(keys: &[KeyColumn]) -> Vec<Expr> {
    keys.iter().map(KeyColumn::column).collect()
}

/// `plan` with these columns, in this order.
pub(super) fn project(plan: LogicalPlan, columns: Vec<Expr>) -> Result<LogicalPlan> {
    Projection::try_new(columns, Arc::new(plan)).map(LogicalPlan::Projection)
}

/// The columns of `schema`, and those of `keys` behind them.
pub(super) fn arrange(
    plan: LogicalPlan,
    schema: &DFSchema,
    keys: &[KeyColumn],
) -> Result<LogicalPlan> {
    let mut all = columns(schema);
    all.extend(key_columns(keys));
    project(plan, all)
}

/// All rows of all `parts`, which have the same columns; `None` if there is no part.
pub(super) fn union(
    parts: impl IntoIterator<Item = Option<LogicalPlan>>,
) -> Result<Option<LogicalPlan>> {
    let mut parts: Vec<LogicalPlan> = parts.into_iter().flatten().collect();
    if parts.len() < 2 {
        return Ok(parts.pop());
    }
    let schema = Arc::clone(parts[0].schema());
    // A union forgets qualifiers: its columns have other names, and get their own back behind it.
    let inputs = parts.into_iter().map(|part| {
        let columns = part.schema().columns().into_iter().enumerate();
        let renamed = columns.map(|(place, column)| Expr::Column(column).alias(in_union(place)));
        let renamed = renamed.collect();
        project(part, renamed).map(Arc::new)
    });
    let union = Union::try_new(inputs.collect::<Result<_>>()?)?;
    let columns = schema
        .iter()
        .enumerate()
        .map(|(place, (qualifier, field))| {
            Expr::Column(Column::new_unqualified(in_union(place)))
                .alias_qualified(qualifier.cloned(), field.name())
        });
    project(LogicalPlan::Union(union), columns.collect()).map(Some)
}

fn in_union(place: usize) -> String {
    format!("__column_{place}")
}
