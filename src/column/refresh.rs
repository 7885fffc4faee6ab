//! What REFRESH COLUMN is asked, in which order its columns are refreshed, and what it says was done.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use datafusion::execution::SessionState;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use serde::{Deserialize, Serialize};

use super::assess::{Assessment, Column, assess, assess_as_of};
use super::plan::{BatchSize, Limits, Pass, Wanted, passes};
use crate::database::definition::ComputedColumn;
use crate::database::name::TableName;
use crate::database::{Database, Table};
use crate::job::admission::Placement;
use crate::storage::RowSet;
use crate::{Error, Result};

/// Fragments that are committed together, if nobody says otherwise: so many, or this part of those of a pass if it is
/// more, since every commit writes down all fragments of the table.
pub const COMMIT_EVERY: (usize, usize) = (64, 32);
/// How long a fragment that is written waits for its commit.
pub const COMMIT_INTERVAL: Duration = Duration::from_secs(30);
/// How much computing a job that is killed may lose, of each worker.
pub const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(10);

/// What to refresh.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Refresh {
    /// The table.
    pub table: String,
    /// The columns.
    pub columns: Vec<String>,
    /// SQL text of WHERE.
    pub filter: Option<String>,
    /// Which rows: see [`Scope`].
    pub scope: Scope,
    /// Refresh stale computed inputs first.
    pub cascade: bool,
    /// How to go about it.
    pub settings: Settings,
    /// The statement, in one form whatever was typed.
    pub statement: String,
}

/// How a refresh goes about its work.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Work units that are computed at once; `None` for the number of cores.
    pub concurrency: Option<usize>,
    /// How large batches are.
    pub batches: BatchSize,
    /// Whether every evaluation has as many rows as `batches` say, instead of as many as are quick.
    pub fixed_batches: bool,
    /// Fragments that are committed together, 0 for all; `None` for as many as [`COMMIT_EVERY`]
    /// says.
    pub commit_every: Option<usize>,
    /// How long a written fragment waits for its commit; `None` for [`COMMIT_INTERVAL`], or for
    /// the end if all are committed together.
    pub commit_interval: Option<Duration>,
    /// How much computing may be lost; `None` for [`CHECKPOINT_INTERVAL`].
    pub checkpoint_interval: Option<Duration>,
    /// Fragments at the beginning to leave out.
    pub skip_fragments: Option<usize>,
    /// Fragments to write at most.
    pub max_fragments: Option<usize>,
    /// Rows to compute at most, of all columns together.
    pub max_calls: Option<u64>,
    /// Stops cleanly after so long.
    pub max_time: Option<Duration>,
    /// Cancels the job after so long.
    pub timeout: Option<Duration>,
    /// The version of the table to read; `None` for the newest.
    pub version: Option<u64>,
    /// Executors that it wants.
    #[serde(flatten)]
    pub placement: Placement,
}

impl Settings {
    /// What of a pass is left to others.
    pub fn limits(&self) -> Limits {
        Limits {
            skip_fragments: self.skip_fragments,
            max_fragments: self.max_fragments,
            max_calls: self.max_calls,
        }
    }
}

impl Refresh {
    /// Whether rows are computed whatever they have.
    pub fn is_forced(&self) -> bool {
        match self.scope {
            Scope::Full => true,
            Scope::StaleOnly => false,
            Scope::Changed => self.filter.is_some(),
        }
    }
}

/// Which rows to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// Rows that lack a value or have a stale one; with a filter, every row that matches.
    Changed,
    /// Of the rows that lack a value or have a stale one, those that match the filter.
    StaleOnly,
    /// Every row.
    Full,
}

/// What was done for one column.
#[derive(Debug, Clone)]
pub struct ColumnReport {
    /// Table and column, joined by a dot.
    pub object: String,
    /// `full`, `incremental`, `filtered` or `none`.
    pub mode: &'static str,
    /// The reason code of a full refresh; empty otherwise.
    pub reason: String,
    /// Rows that were computed and committed.
    pub rows_computed: u64,
    /// Rows that were committed with values that an earlier run had computed.
    pub rows_reused: u64,
    /// Live rows that were not computed because they are fresh, or were not asked for.
    pub rows_skipped: u64,
    /// Rows that lack a value or have a stale one after it.
    pub rows_pending: u64,
    /// Rows on which the expression failed.
    pub rows_failed: u64,
    /// Fragments that were written.
    pub fragments: u64,
    /// The version of the table after it.
    pub version: u64,
    /// How long its pass took.
    pub elapsed: Duration,
}

/// A pass that ran, for EXPLAIN ANALYZE.
#[derive(Debug)]
pub struct RanPass {
    /// The pass.
    pub pass: Pass,
    /// Its physical plan, with metrics; `None` if there was nothing to do.
    pub plan: Option<Arc<dyn ExecutionPlan>>,
    /// What was done, by column.
    pub reports: Vec<ColumnReport>,
}

/// Divides columns so that in each fragment those of one group are all stored already, or none is:
/// Lance replaces the file of several columns only where that is so.
fn by_coverage(table: &Table, columns: Vec<String>) -> Vec<Vec<String>> {
    let schema = table.dataset.schema();
    let mut groups: Vec<(Vec<bool>, Vec<String>)> = Vec::new();
    for column in columns {
        let id = schema.field(&column).map_or(-1, |field| field.id);
        let covered: Vec<bool> = table
            .dataset
            .fragments()
            .iter()
            .map(|fragment| fragment.files.iter().any(|file| file.fields.contains(&id)))
            .collect();
        match groups.iter_mut().find(|(other, _)| *other == covered) {
            Some((_, group)) => group.push(column),
            None => groups.push((covered, vec![column])),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

/// The passes of a refresh: columns by name, in the order of their dependencies.
///
/// # Errors
///
/// If a computed input is stale and CASCADE was not asked for.
pub async fn order(
    database: &Database,
    state: &SessionState,
    table: &Table,
    request: &Refresh,
) -> Result<Vec<Vec<String>>> {
    table.check_row_tracking("REFRESH COLUMN")?;
    let mut columns: Vec<String> = Vec::new();
    let add = |columns: &mut Vec<String>, name: &String| {
        let together = table.definitions.stored.get(name);
        let together = together
            .map(|column| same_call(table, column))
            .unwrap_or_default();
        for name in std::iter::once(name.clone()).chain(together) {
            if !columns.contains(&name) {
                columns.push(name);
            }
        }
    };
    for name in &request.columns {
        Column::load(state, table, name)?;
        add(&mut columns, name);
    }
    // Computed columns that these read, directly or through others.
    let mut inputs: BTreeSet<String> = BTreeSet::new();
    let mut next: Vec<String> = columns.clone();
    while let Some(name) = next.pop() {
        for input in table.definitions.inputs_of(&name).into_iter().flatten() {
            if table.definitions.is_computed(input) && inputs.insert(input.clone()) {
                next.push(input.clone());
            }
        }
    }
    let inputs: Vec<String> = inputs
        .into_iter()
        .filter(|input| table.definitions.stored.contains_key(input) && !columns.contains(input))
        .collect();
    if request.cascade {
        for input in &inputs {
            add(&mut columns, input);
        }
    } else {
        check_fresh(database, state, table, &inputs, request).await?;
    }
    let ordered = passes(table, &columns)?;
    let divided = ordered
        .into_iter()
        .flat_map(|columns| by_coverage(table, columns));
    Ok(divided.collect())
}

/// The columns that take a field of the same struct call; none if it is not of one.
fn same_call(table: &Table, column: &ComputedColumn) -> Vec<String> {
    table
        .definitions
        .stored
        .values()
        .filter(|other| {
            column.struct_field.is_some()
                && other.struct_field.is_some()
                && other.expression == column.expression
        })
        .map(|other| other.name.clone())
        .collect()
}

async fn check_fresh(
    database: &Database,
    state: &SessionState,
    table: &Table,
    inputs: &[String],
    request: &Refresh,
) -> Result<()> {
    if inputs.is_empty() {
        return Ok(());
    }
    let columns = inputs
        .iter()
        .map(|name| Column::load(state, table, name))
        .collect::<Result<Vec<_>>>()?;
    let rows = table.dataset.count_rows(None).await? as u64;
    let assessed = assess(database, table, &columns).await?;
    let stale: Vec<&str> = columns
        .iter()
        .zip(&assessed)
        .filter(|(_, assessment)| !assessment.is_fresh(rows))
        .map(|(column, _)| column.name())
        .collect();
    if stale.is_empty() {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "column '{}' of table '{}' reads computed column '{}', which is stale",
        request.columns.join(", "),
        table.name,
        stale.join(", ")
    ))
    .with_hint(format!(
        "REFRESH COLUMN {} ON {} first, or add CASCADE",
        stale.join(", "),
        table.name
    )))
}

/// The columns of these names.
pub(super) fn load_columns(
    state: &SessionState,
    table: &Table,
    names: &[String],
) -> Result<Vec<Column>> {
    names
        .iter()
        .map(|name| Column::load(state, table, name))
        .collect()
}

/// Assesses and plans one pass, at the `newest` version or the one that is asked for.
pub async fn plan_pass(
    database: &Database,
    state: &SessionState,
    newest: Table,
    request: &Refresh,
    columns: &[String],
) -> Result<Pass> {
    let table = match request.settings.version {
        None => newest.clone(),
        version => database.table_at(&request.table, version).await?,
    };
    let columns = load_columns(state, &table, columns)?;
    let assessments = assess_as_of(database, &table, &newest, &columns).await?;
    let wanted = match (request.scope, &request.filter) {
        (Scope::Full, _) => Wanted::Full,
        (_, None) => Wanted::Changed,
        (scope, Some(filter)) => {
            let rows = matching_rows(state, &table, filter).await?;
            match scope {
                Scope::StaleOnly => Wanted::ChangedAmong(rows),
                _ => Wanted::Among(rows),
            }
        }
    };
    let wanted = columns
        .iter()
        .map(|column| match is_asked_for(&table, request, column) {
            true => wanted.clone(),
            // Inputs that CASCADE adds are refreshed incrementally, whatever was asked for.
            false => Wanted::Changed,
        })
        .collect();
    let mut pass = Pass::plan(table, columns, assessments, wanted).await?;
    pass.seen = newest.version();
    Ok(pass)
}

/// Whether a refresh names a column, or one that is computed together with it.
fn is_asked_for(table: &Table, request: &Refresh, column: &Column) -> bool {
    let together = same_call(table, &column.definition);
    request
        .columns
        .iter()
        .any(|name| name == column.name() || together.contains(name))
}

/// A name in quotes, whatever it holds.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Ids of the rows of `table`, at its version, for which `filter` is true.
async fn matching_rows(state: &SessionState, table: &Table, filter: &str) -> Result<RowSet> {
    let name = TableName {
        name: &table.name,
        version: Some(table.version()),
        row_ids: true,
    };
    let query = format!(
        "SELECT _rowid FROM {} AS {} WHERE {filter}",
        quoted(&name.to_string()),
        quoted(&table.name)
    );
    let plan = state.create_logical_plan(&query).await?;
    let plan = state.create_physical_plan(&plan).await?;
    RowSet::collect(execute_stream(plan, state.task_ctx())?).await
}

/// What one column lacks, for listings.
pub async fn assess_column(
    database: &Database,
    state: &SessionState,
    table: &Table,
    name: &str,
) -> Result<Assessment> {
    let column = Column::load(state, table, name)?;
    let assessed = assess(database, table, &[column]).await?;
    assessed
        .into_iter()
        .next()
        .ok_or_else(|| Error::internal("a column was not assessed"))
}
