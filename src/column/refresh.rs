//! REFRESH COLUMN: assess, plan, compute, commit.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::execution::SessionState;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use futures::StreamExt;
use lance::Dataset;

use super::assess::{Assessment, Column, Rows, assess};
use super::plan::{Pass, Wanted, passes};
use super::state::{ColumnState, Pending};
use super::write::written_fragments;
use crate::database::definition::ComputedColumn;
use crate::database::name::TableName;
use crate::database::{Database, Table};
use crate::delta::VersionStamp;
use crate::engine::run_partitions;
use crate::storage::column_file::{commit_column_files, files_that_fit};
use crate::storage::fragments::{all_live_ids, live_ids};
use crate::storage::properties::COMPUTED_ROWS;
use crate::storage::{Properties, RowSet, with_retries};
use crate::{Error, ErrorKind, Result};

/// Bytes of an encoded set of rows up to which it is written with the commit itself.
const INLINE_BYTES: usize = 64 << 10;

/// What to refresh.
#[derive(Debug, Clone)]
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
    /// Fragments that are computed at once; `None` for the number of cores.
    pub concurrency: Option<usize>,
    /// Rows of a batch; `None` for the session's.
    pub batch_rows: Option<usize>,
    /// Bytes of a batch; `None` for the scan's default.
    pub batch_bytes: Option<u64>,
}

/// Which rows to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

/// Runs a refresh.
pub async fn refresh(
    database: &Database,
    state: &SessionState,
    request: &Refresh,
) -> Result<Vec<RanPass>> {
    let table = database.table(&request.table).await?;
    let order = order(database, state, &table, request).await?;
    let mut ran = Vec::with_capacity(order.len());
    for columns in order {
        let started = Instant::now();
        let pass = plan_pass(database, state, request, &columns).await?;
        ran.push(run_pass(database, state, request, pass, started).await?);
    }
    Ok(ran)
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

/// Assesses and plans one pass at the newest version.
pub async fn plan_pass(
    database: &Database,
    state: &SessionState,
    request: &Refresh,
    columns: &[String],
) -> Result<Pass> {
    let table = database.table(&request.table).await?;
    let columns = columns
        .iter()
        .map(|name| Column::load(state, &table, name))
        .collect::<Result<Vec<_>>>()?;
    let assessments = assess(database, &table, &columns).await?;
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
    Pass::plan(table, columns, assessments, wanted).await
}

/// Whether a refresh names a column, or one that is computed together with it.
fn is_asked_for(table: &Table, request: &Refresh, column: &Column) -> bool {
    let together = same_call(table, &column.definition);
    request
        .columns
        .iter()
        .any(|name| name == column.name() || together.contains(name))
}

/// Ids of the rows of `table`, at its version, for which `filter` is true.
async fn matching_rows(state: &SessionState, table: &Table, filter: &str) -> Result<RowSet> {
    let name = TableName {
        name: &table.name,
        version: Some(table.version()),
        row_ids: true,
    };
    let quote = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    let query = format!(
        "SELECT _rowid FROM {} AS {} WHERE {filter}",
        quote(&name.to_string()),
        quote(&table.name)
    );
    let plan = state.create_logical_plan(&query).await?;
    let plan = state.create_physical_plan(&plan).await?;
    RowSet::collect(execute_stream(plan, state.task_ctx())?).await
}

async fn run_pass(
    database: &Database,
    state: &SessionState,
    request: &Refresh,
    pass: Pass,
    started: Instant,
) -> Result<RanPass> {
    if pass.is_empty() {
        let version = pass.table.version();
        let reports = reports(&pass, &Landed::none(&pass), version, started.elapsed());
        return Ok(RanPass {
            pass,
            plan: None,
            reports,
        });
    }
    let plan = pass.physical_plan(state, request.batch_rows, request.batch_bytes)?;
    let concurrency = request
        .concurrency
        .unwrap_or_else(|| state.config().target_partitions());
    let mut files = HashMap::with_capacity(pass.fragments.len());
    let mut results = run_partitions(Arc::clone(&plan), state.task_ctx(), concurrency);
    while let Some(batches) = results.next().await {
        for batch in batches? {
            for written in written_fragments(&batch)? {
                files.insert(written.fragment, written.file);
            }
        }
    }
    drop(results);
    let (version, landed) = commit_pass(database, &pass, files).await?;
    let reports = reports(&pass, &landed, version, started.elapsed());
    Ok(RanPass {
        pass,
        plan: Some(plan),
        reports,
    })
}

/// What of a pass a commit made durable.
struct Landed {
    /// Rows that have their value, by column.
    computed: Vec<u64>,
    /// Rows that lack it still, by column.
    pending: Vec<u64>,
    fragments: u64,
}

impl Landed {
    fn none(pass: &Pass) -> Self {
        Self {
            computed: vec![0; pass.tasks.len()],
            pending: pass
                .tasks
                .iter()
                .map(|task| match task.assessment.todo() {
                    Rows::All => pass.table_rows,
                    Rows::Some(rows) => rows.len(),
                })
                .collect(),
            fragments: 0,
        }
    }
}

/// Commits what still fits the newest version, with the state, and tries again while others commit.
///
/// A file whose fragment is gone (compacted away) or whose column others wrote meanwhile is left out;
/// its rows stay pending, and the next refresh computes them. A change of an input in between does no
/// harm: the state says that the values reflect the version that was read, so the next refresh
/// finds the change.
async fn commit_pass(
    database: &Database,
    pass: &Pass,
    files: HashMap<u64, String>,
) -> Result<(u64, Landed)> {
    with_retries(|| async {
        let mut latest = pass.table.dataset.as_ref().clone();
        latest.checkout_latest().await?;
        check_definitions(pass, &latest)?;
        let names = pass.column_names();
        let fitting = files_that_fit(&pass.table.dataset, &latest, &names, &files)?;
        if fitting.is_empty() {
            return Ok((latest.version().version, Landed::none(pass)));
        }
        let files: HashMap<u64, String> = files
            .iter()
            .filter(|(fragment, _)| fitting.contains(fragment))
            .map(|(fragment, file)| (*fragment, file.clone()))
            .collect();
        let (properties, landed) = states(database, pass, &latest, &files).await?;
        let committed = commit_column_files(&pass.table.name, &latest, &files, properties).await?;
        Ok((committed.version().version, landed))
    })
    .await
}

/// Fails if a column was dropped or got another definition since the pass was planned: its values
/// must not be mixed.
fn check_definitions(pass: &Pass, latest: &Dataset) -> Result<()> {
    use datafusion::arrow::datatypes::Schema;

    let schema = Schema::from(latest.schema());
    for task in &pass.tasks {
        let name = task.column.name();
        let now = match schema.field_with_name(name) {
            Ok(field) => ComputedColumn::of_field(field)?,
            Err(_) => None,
        };
        let same_field = latest.schema().field(name).map(|f| f.id) == Some(task.column.field_id);
        let same =
            same_field && now.is_some_and(|now| now.digest() == task.column.definition.digest());
        if !same {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "column '{name}' of table '{}' was dropped or got another definition while it was refreshed; nothing was written",
                    pass.table.name
                ),
            )
            .with_hint("run the statement again"));
        }
    }
    Ok(())
}

/// The states to write with the commit of `files`, and what it comes to.
async fn states(
    database: &Database,
    pass: &Pass,
    latest: &Dataset,
    files: &HashMap<u64, String>,
) -> Result<(Properties, Landed)> {
    let table = &pass.table.name;
    let mut landed_ids = RowSet::default();
    for fragment in latest.fragments().iter() {
        if files.contains_key(&fragment.id) {
            landed_ids.union_with(&live_ids(table, latest, fragment).await?);
        }
    }
    let needs_all = pass
        .tasks
        .iter()
        .any(|task| task.assessment.todo() == Rows::All);
    let live_before = match needs_all {
        true => all_live_ids(table, &pass.table.dataset).await?,
        false => RowSet::default(),
    };
    let watermark = VersionStamp::of(&pass.table.dataset).await?;
    let mut properties = Properties::new();
    let mut landed = Landed {
        computed: Vec::new(),
        pending: Vec::new(),
        fragments: files.len() as u64,
    };
    for task in &pass.tasks {
        let needed = match task.assessment.todo() {
            Rows::All => live_before.clone(),
            Rows::Some(rows) => rows,
        };
        let computed = match &task.todo {
            Rows::All => landed_ids.clone(),
            Rows::Some(rows) => rows.clone().intersection(&landed_ids),
        };
        let pending = needed.difference(&computed);
        landed.computed.push(computed.len());
        landed.pending.push(pending.len());
        let encoded = computed.encode();
        // Without it the next reader of this column compares values instead: slower, not wrong.
        if encoded.len() <= INLINE_BYTES {
            properties.insert(format!("{COMPUTED_ROWS}{}", task.column.field_id), encoded);
        }
        let state = ColumnState {
            definition: task.column.definition.digest(),
            watermark: watermark.clone(),
            inputs: task.column.inputs.clone(),
            pending: store_pending(database, pending).await?,
        };
        let (key, value) = state.property(task.column.field_id)?;
        properties.insert(key, value);
    }
    Ok((properties, landed))
}

/// A set of pending rows as a state holds it: in a file of its own if it is large.
async fn store_pending(database: &Database, rows: RowSet) -> Result<Pending> {
    let encoded = rows.encode();
    if encoded.len() <= INLINE_BYTES {
        return Ok(Pending::Rows(rows));
    }
    let path = format!("pending/{}", uuid::Uuid::new_v4());
    database.root().create_own(&path, encoded).await?;
    Ok(Pending::File(path))
}

fn reports(pass: &Pass, landed: &Landed, version: u64, elapsed: Duration) -> Vec<ColumnReport> {
    pass.tasks
        .iter()
        .zip(landed.computed.iter().zip(&landed.pending))
        .map(|(task, (computed, pending))| ColumnReport {
            object: format!("{}.{}", pass.table.name, task.column.name()),
            mode: task.mode,
            reason: match task.mode {
                "none" => String::new(),
                _ => task.reason.clone(),
            },
            rows_computed: *computed,
            rows_skipped: pass.table_rows.saturating_sub(task.rows),
            rows_pending: *pending,
            rows_failed: 0,
            fragments: landed.fragments,
            version,
            elapsed,
        })
        .collect()
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
