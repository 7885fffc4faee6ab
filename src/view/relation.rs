//! The relations that maintenance is made of, and how plans for them are put together.
//!
//! For every operator of a view's query there are five relations over its output. Each is a logical plan
//! with the columns of the operator, and behind them its key: columns that tell any two rows of the
//! operator apart, and that a row keeps from one version of the sources to the next.

use std::sync::Arc;

use datafusion::arrow::datatypes::DataType;
use datafusion::common::{Column, DFSchema, Result};
use datafusion::logical_expr::{Expr, LogicalPlan, Projection, Union};

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
