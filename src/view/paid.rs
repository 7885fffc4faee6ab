//! Function calls that are paid for: those of functions of the user's own. Their results are not computed twice for a
//! row whose arguments have not changed.
//!
//! In the last projection of a by-row query, a column that calls such a function keeps its stored value in a row that was
//! there before, if what it reads of the sources is the same at both versions.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, LazyLock};

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, JoinType, NullEquality};
use datafusion::execution::SessionStateDefaults;
use datafusion::logical_expr::{
    Expr, ExprSchemable, Join, JoinConstraint, LogicalPlan, cast, when,
};
use lance::Dataset;

use super::keys::in_rows;
use super::operator::Node;
use super::pass::Pass;
use super::relation::{KeyColumn, Side, hidden_names, key_columns, project};
use super::source::SourceVersions;
use crate::delta::{self, Delta, FieldIdentity, VersionStamp};
use crate::storage::RowSet;
use crate::{Error, Result};

/// Functions that cost next to nothing.
static BUILT_IN: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let functions = SessionStateDefaults::default_scalar_functions();
    let names = functions.iter().flat_map(|function| {
        let aliases = function.aliases().iter().cloned();
        aliases.chain([function.name().to_string()])
    });
    let own = [
        "blob_size",
        "blob_read",
        "in_keys",
        "in_rows",
        "one_zero",
        "decimal_mean",
    ];
    names.chain(own.map(str::to_string)).collect()
});

/// Whether an expression calls a function of the user's own.
pub(super) fn is_paid(expression: &Expr) -> bool {
    let mut found = false;
    // The closure never fails.
    let _ = expression.apply(|node| {
        if let Expr::ScalarFunction(call) = node
            && !BUILT_IN.contains(call.func.name())
        {
            found = true;
            return Ok(TreeNodeRecursion::Stop);
        }
        Ok(TreeNodeRecursion::Continue)
    });
    found
}

/// The added rows of the last operator, with the stored values of paid columns where these are still right. `stored`
/// gives the rows of the view that may change, `names` are those of its columns.
pub(super) async fn added(
    pass: &Pass,
    root: &Node,
    stored: LogicalPlan,
    names: &[String],
) -> Result<Option<LogicalPlan>> {
    let Some((input, values)) = root.projection().filter(|_| root.is_by_row()) else {
        return root.stream(pass, Side::Added).await;
    };
    let mut kept: BTreeMap<usize, Expr> = BTreeMap::new();
    for (place, value) in values.iter().enumerate() {
        if is_paid(value)
            && let Some(unchanged) = unchanged(pass, input, value).await?
        {
            kept.insert(place, unchanged);
        }
    }
    if kept.is_empty() {
        return root.stream(pass, Side::Added).await;
    }
    let Some(rows) = input.relation(pass, Side::Added).await? else {
        return Ok(None);
    };
    let old = old_values(&root.keys, stored, names, kept.keys().copied())?;
    let on = root.keys.iter().enumerate().map(|(place, key)| {
        let old = Expr::Column(Column::new_unqualified(old_key(place)));
        (key.column(), old)
    });
    let joined = Join::try_new(
        Arc::new(rows.clone()),
        Arc::new(old),
        on.collect(),
        None,
        JoinType::Left,
        JoinConstraint::On,
        NullEquality::NullEqualsNull,
        false,
    )?;
    let mut all = Vec::with_capacity(values.len() + root.keys.len());
    for (place, (value, (qualifier, field))) in values.iter().zip(root.schema.iter()).enumerate() {
        let Some(unchanged) = kept.remove(&place) else {
            all.push(value.clone());
            continue;
        };
        let data_type = value.get_type(rows.schema())?;
        let old = cast(
            Expr::Column(Column::new_unqualified(old_value(place))),
            data_type,
        );
        let there = Expr::Column(Column::new_unqualified(old_key(0))).is_not_null();
        let value = value.clone().unalias();
        let chosen = when(there.and(unchanged), old).otherwise(value)?;
        all.push(chosen.alias_qualified(qualifier.cloned(), field.name()));
    }
    all.extend(key_columns(&root.keys));
    Ok(Some(project(LogicalPlan::Join(joined), all)?))
}

fn old_key(place: usize) -> String {
    format!("__old_key_{place}")
}

fn old_value(place: usize) -> String {
    format!("__old_value_{place}")
}

/// The keys and some values of stored rows, under names of their own.
fn old_values(
    keys: &[KeyColumn],
    stored: LogicalPlan,
    names: &[String],
    places: impl Iterator<Item = usize>,
) -> Result<LogicalPlan> {
    let qualifier = stored.schema().qualified_field(0).0.cloned();
    let column = |name: &str| Expr::Column(Column::new(qualifier.clone(), name));
    let hidden = hidden_names(keys).into_iter().enumerate();
    let mut all: Vec<Expr> = hidden
        .map(|(place, name)| column(&name).alias(old_key(place)))
        .collect();
    for place in places {
        let name = names
            .get(place)
            .ok_or_else(|| Error::internal("a column has no name"))?;
        all.push(column(name).alias(old_value(place)));
    }
    Ok(project(stored, all)?)
}

/// Whether what `value` reads is the same in a row as it was, as an expression over the key of `input`; `None` if that
/// can't be told.
async fn unchanged(pass: &Pass, input: &Node, value: &Expr) -> Result<Option<Expr>> {
    let mut read: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
    for column in value.column_refs() {
        let Some(origins) = input.origins(column) else {
            return Ok(None);
        };
        for (source, column) in origins {
            read.entry(source).or_default().insert(column);
        }
    }
    let mut unchanged: Option<Expr> = None;
    for (source, columns) in read {
        let key = input.keys.iter().find(|key| key.source == Some(source));
        let (Some(key), Some(versions)) = (key, pass.sources.get(source)) else {
            return Ok(None);
        };
        let Some(changed) = changed_rows(versions, &columns).await? else {
            return Ok(None);
        };
        let same = !in_rows(&Arc::new(changed), key.column());
        unchanged = Some(match unchanged {
            Some(before) => before.and(same),
            None => same,
        });
    }
    Ok(unchanged)
}

/// Ids of the rows of the new version whose `columns` are not those of the old one; `None` if that can't be told.
async fn changed_rows(
    versions: &SourceVersions,
    columns: &BTreeSet<String>,
) -> Result<Option<RowSet>> {
    let Some(old) = &versions.old else {
        return Ok(None);
    };
    let dataset: &Dataset = &versions.new;
    let Some(fields) = columns
        .iter()
        .map(|column| FieldIdentity::of(dataset, column))
        .collect::<Option<Vec<_>>>()
    else {
        return Ok(None);
    };
    let since = VersionStamp::of(old).await?;
    Ok(match delta::changes(dataset, &since, &fields).await? {
        Delta::Everything(_) => None,
        Delta::Rows(changes) => {
            // A commit of others does not say what it changed: comparing values is cheaper than a call.
            let confirmed =
                delta::confirm(dataset, since.version, &changes.unconfirmed, &fields).await?;
            let certain = changes.updated.difference(&changes.unconfirmed);
            Some(certain.union(&confirmed).union(&changes.inserted))
        }
    })
}
