//! Which rows of a computed column lack a value or have a stale one, and why.
//!
//! todo = (inserted ∪ updated in the inputs since the watermark ∪ pending) ∩ live,
//! or all rows, with a reason code, when that can't be told.

use std::collections::BTreeSet;
use std::sync::Arc;

use datafusion::arrow::datatypes::{Field, Schema};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::execution::SessionState;
use datafusion::logical_expr::Expr;

use super::state::{ColumnState, FoundState, Pending, find_states};
use crate::database::definition::{ComputedColumn, Definitions};
use crate::database::expression::plan_expression;
use crate::database::{Database, Table};
use crate::delta::{self, Delta, FieldIdentity, RowChanges, VersionStamp};
use crate::storage::RowSet;
use crate::{Error, ErrorKind, Result};

/// Reason code: the column has never been refreshed.
pub const FIRST_REFRESH: &str = "FIRST_REFRESH";
/// Reason code: FULL was asked for.
pub const REQUESTED_FULL: &str = "REQUESTED_FULL";
/// Reason code: the values are of another definition.
pub const DEFINITION_CHANGED: &str = "DEFINITION_CHANGED";
/// Reason code: the record of what is computed is gone or can't be read.
pub const STATE_LOST: &str = "STATE_LOST";

/// A stored computed column of a table, with all that a refresh needs to know of it.
#[derive(Debug, Clone)]
pub struct Column {
    /// Its definition.
    pub definition: ComputedColumn,
    /// The stored column.
    pub field: Field,
    /// The id of its field.
    pub field_id: i32,
    /// The expression over stored columns only: virtual ones are replaced by theirs.
    pub expression: Expr,
    /// The stored columns that the expression reads, as they are now.
    pub inputs: Vec<FieldIdentity>,
}

impl Column {
    /// Reads the definition of `name` and plans its expression.
    ///
    /// # Errors
    ///
    /// If there is no such column, it is not a stored computed one, or an input is gone.
    pub fn load(state: &SessionState, table: &Table, name: &str) -> Result<Self> {
        table.check_column(name)?;
        if table.definitions.virtual_column(name).is_some() {
            return Err(Error::invalid(format!(
                "column '{name}' of table '{}' is VIRTUAL: it is computed when read, never refreshed",
                table.name
            )));
        }
        if let Some(why) = table.definitions.unusable.get(name) {
            return Err(Error::new(
                ErrorKind::NotAvailable,
                format!("table '{}': {why}", table.name),
            ));
        }
        let Some(definition) = table.definitions.stored.get(name) else {
            return Err(Error::invalid(format!(
                "column '{name}' of table '{}' is not a computed column",
                table.name
            ))
            .with_hint(format!(
                "ALTER TABLE {} ADD COLUMN … GENERATED ALWAYS AS (…) declares one",
                table.name
            )));
        };
        let schema = table.stored_schema();
        let field = schema
            .field_with_name(name)
            .map_err(|error| Error::internal(error.to_string()))?
            .clone();
        let field_id = table.dataset.schema().field(name).map_or(-1, |f| f.id);
        let expression = expand(
            state,
            &schema,
            &table.definitions,
            &definition.expression,
            &format!("computed column '{name}' of table '{}'", table.name),
        )?;
        let names: BTreeSet<String> = expression
            .column_refs()
            .into_iter()
            .map(|column| column.name.clone())
            .collect();
        let inputs = names
            .iter()
            .map(|input| {
                FieldIdentity::of(&table.dataset, input).ok_or_else(|| {
                    Error::not_found("column", input, table.column_names()).context(format!(
                        "computed column '{name}' of table '{}'",
                        table.name
                    ))
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            definition: definition.clone(),
            field,
            field_id,
            expression,
            inputs,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.definition.name
    }
}

/// Plans the text of an expression and puts the expressions of virtual columns in their place.
fn expand(
    state: &SessionState,
    stored: &Schema,
    definitions: &Definitions,
    text: &str,
    purpose: &str,
) -> Result<Expr> {
    // Virtual columns are typed by planning them first; they can't be circular.
    let mut fields: Vec<Arc<Field>> = stored.fields().iter().cloned().collect();
    let mut expanded: Vec<(String, Expr)> = Vec::new();
    let mut left: Vec<_> = definitions.virtuals.iter().collect();
    loop {
        let schema = Schema::new(fields.clone());
        let (ready, waiting): (Vec<_>, Vec<_>) = left.into_iter().partition(|column| {
            column
                .input_names
                .iter()
                .all(|input| schema.field_with_name(input).is_ok())
        });
        if ready.is_empty() {
            break;
        }
        for column in ready {
            let planned = plan_expression(state, &schema, &column.expression, purpose)?;
            let data_type = match &column.data_type {
                Some(declared) => declared.parse().map_err(|_| {
                    Error::new(
                        ErrorKind::Storage,
                        format!("the type of virtual column '{}' can't be read", column.name),
                    )
                })?,
                None => planned.data_type.clone(),
            };
            let value = match column.data_type {
                Some(_) => datafusion::logical_expr::cast(planned.logical, data_type.clone()),
                None => planned.logical,
            };
            let value = replace_columns(value, &expanded)?;
            expanded.push((column.name.clone(), value));
            fields.push(Arc::new(Field::new(&column.name, data_type, true)));
        }
        left = waiting;
    }
    let planned = plan_expression(state, &Schema::new(fields), text, purpose)?;
    replace_columns(planned.logical, &expanded)
}

fn replace_columns(expression: Expr, by: &[(String, Expr)]) -> Result<Expr> {
    Ok(expression
        .transform(|node| {
            if let Expr::Column(column) = &node
                && let Some((_, value)) = by.iter().find(|(name, _)| *name == column.name)
            {
                return Ok(Transformed::yes(value.clone()));
            }
            Ok(Transformed::no(node))
        })
        .map(|transformed| transformed.data)?)
}

/// Rows of a table: all of them, or some.
#[derive(Debug, Clone, PartialEq)]
pub enum Rows {
    /// All rows that are live.
    All,
    /// The rows with these ids.
    Some(RowSet),
}

/// What a column needs.
#[derive(Debug, Clone)]
pub struct Assessment {
    /// The version that its values reflect; `None` if nothing is known.
    pub watermark: Option<u64>,
    /// Why all rows are to be computed; `None` if only some are.
    pub full_reason: Option<String>,
    /// Rows that were never computed or left out; all rows if nothing is computed.
    pub pending: Rows,
    /// Rows with a value of which an input changed since; without those that are pending.
    pub stale: RowSet,
    /// Commits that were looked at.
    pub commits: u64,
}

impl Assessment {
    fn full(watermark: Option<u64>, reason: impl Into<String>) -> Self {
        Self {
            watermark,
            full_reason: Some(reason.into()),
            pending: Rows::All,
            stale: RowSet::default(),
            commits: 0,
        }
    }

    /// Rows to compute.
    pub fn todo(&self) -> Rows {
        match &self.pending {
            Rows::All => Rows::All,
            Rows::Some(pending) => Rows::Some(pending.clone().union(&self.stale)),
        }
    }

    /// Whether every row has the value that its inputs give. `rows`: live rows of the table.
    pub fn is_fresh(&self, rows: u64) -> bool {
        match self.todo() {
            Rows::All => rows == 0 && self.full_reason.as_deref() != Some(DEFINITION_CHANGED),
            Rows::Some(todo) => todo.is_empty(),
        }
    }
}

/// Finds out what `columns` of `table` need, in their order.
pub async fn assess(
    database: &Database,
    table: &Table,
    columns: &[Column],
) -> Result<Vec<Assessment>> {
    assess_as_of(database, table, table, columns).await
}

/// As [`assess`], for an older version of the table; the states are those of `newest`.
pub(super) async fn assess_as_of(
    database: &Database,
    table: &Table,
    newest: &Table,
    columns: &[Column],
) -> Result<Vec<Assessment>> {
    let ids: Vec<i32> = columns.iter().map(|column| column.field_id).collect();
    let states = find_states(&newest.name, &newest.dataset, &ids).await?;
    let mut assessed = Vec::with_capacity(columns.len());
    for (column, state) in columns.iter().zip(states) {
        assessed.push(match state {
            FoundState::Never => Assessment::full(None, FIRST_REFRESH),
            FoundState::Lost => Assessment::full(None, STATE_LOST),
            FoundState::State(state) => assess_one(database, table, column, *state).await?,
        });
    }
    Ok(assessed)
}

async fn assess_one(
    database: &Database,
    table: &Table,
    column: &Column,
    state: ColumnState,
) -> Result<Assessment> {
    let watermark = Some(state.watermark.version);
    if state.definition != column.definition.digest() {
        return Ok(Assessment::full(watermark, DEFINITION_CHANGED));
    }
    let pending = match state.pending {
        Pending::All(reason) => return Ok(Assessment::full(watermark, reason)),
        Pending::Rows(rows) => rows,
        Pending::File(path) => match load_pending(database, &path).await? {
            Some(rows) => rows,
            None => return Ok(Assessment::full(watermark, STATE_LOST)),
        },
    };
    if !same_fields(&state.inputs, &column.inputs) {
        return Ok(Assessment::full(
            watermark,
            delta::FullReason::InputReplaced.code(),
        ));
    }
    let changes = match delta::changes(&table.dataset, &state.watermark, &column.inputs).await? {
        Delta::Everything(reason) => return Ok(Assessment::full(watermark, reason.code())),
        Delta::Rows(changes) => changes,
    };
    let pending = pending.difference(&changes.deleted);
    // Pending rows are computed in any case: no need to look at them.
    let stale = updated_rows(table, column, &state.watermark, &changes, &pending).await?;
    Ok(Assessment {
        watermark,
        full_reason: None,
        stale: stale.difference(&pending),
        pending: Rows::Some(pending.union(&changes.inserted)),
        commits: changes.commits,
    })
}

/// The rows whose inputs changed between `since` and the version of `table`, of all that live at both;
/// `None` if that can't be told.
pub(super) async fn rows_changed(
    table: &Table,
    column: &Column,
    since: &VersionStamp,
) -> Result<Option<RowSet>> {
    match delta::changes(&table.dataset, since, &column.inputs).await? {
        Delta::Everything(_) => Ok(None),
        Delta::Rows(changes) => {
            let besides = RowSet::default();
            let changed = updated_rows(table, column, since, &changes, &besides).await?;
            Ok(Some(changed))
        }
    }
}

/// The updated rows of a delta since `since`. Where the commits don't tell whether a row's inputs
/// changed, their values are compared, but not for the rows of `besides`, which may be left out.
async fn updated_rows(
    table: &Table,
    column: &Column,
    since: &VersionStamp,
    changes: &RowChanges,
    besides: &RowSet,
) -> Result<RowSet> {
    if changes.unconfirmed.is_empty() {
        return Ok(changes.updated.clone());
    }
    let candidates = changes.unconfirmed.clone().difference(besides);
    let confirmed =
        delta::confirm(&table.dataset, since.version, &candidates, &column.inputs).await?;
    let certain = changes.updated.clone().difference(&changes.unconfirmed);
    Ok(certain.union(&confirmed))
}

/// Whether inputs are the columns they were. A rename changes the expression with it, so the
/// name does not matter, only which field it is.
pub(super) fn same_fields(then: &[FieldIdentity], now: &[FieldIdentity]) -> bool {
    let identities = |fields: &[FieldIdentity]| -> BTreeSet<(i32, String)> {
        fields
            .iter()
            .map(|field| (field.id, field.data_type.clone()))
            .collect()
    };
    identities(then) == identities(now)
}

async fn load_pending(database: &Database, path: &str) -> Result<Option<RowSet>> {
    let Some(bytes) = database.root().read_own(path).await? else {
        return Ok(None);
    };
    Ok(std::str::from_utf8(&bytes)
        .ok()
        .and_then(|text| RowSet::decode(text).ok()))
}
