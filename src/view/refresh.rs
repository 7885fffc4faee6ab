//! Runs a refresh of a view: as a job, with one commit at its end.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::common::Column;
use datafusion::datasource::provider_as_source;
use datafusion::execution::{SendableRecordBatchStream, SessionState};
use datafusion::logical_expr::{Expr, Filter, LogicalPlan, LogicalPlanBuilder, cast};
use datafusion::sql::TableReference;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::apply::{Layout, StoredRows, changes};
use super::assess::{Assessment, Scope, SourceChange, Wanted, assess};
use super::keys::{in_keys, in_rows};
use super::operator::Node;
use super::options::ViewOptions;
use super::paid;
use super::pass::Pass;
use super::progress::{Progress, counted};
use super::relation::{Side, hidden_names, project};
use crate::database::materialized_view::ViewDefinition;
use crate::database::{Database, LanceTable, Table};
use crate::job::counters::{Count, Phase};
use crate::job::driver::{Driver, Ending, JobRequest, end_interrupted, stop_error};
use crate::job::environment::Environment;
use crate::job::jobs::Begun;
use crate::job::signal::{Signaller, Stop};
use crate::storage::change::{commit_change, discard_change, write_change};
use crate::storage::properties::JOB;
use crate::storage::scan::RowFilter;
use crate::storage::{RowSet, pin};
use crate::{Error, ErrorKind, Result};

/// How often a refresh is planned anew because the view was changed meanwhile.
const ATTEMPTS: usize = 5;
/// How often it is counted how far a refresh is.
const COUNTING: Duration = Duration::from_millis(200);

/// What to refresh.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ViewRefresh {
    /// The view.
    pub view: String,
    /// Which rows.
    pub scope: Scope,
    /// Versions of sources to read; of others the newest.
    #[serde(default)]
    pub as_of: BTreeMap<String, u64>,
    /// Write only the difference to what is stored, though all is computed.
    pub concurrently: bool,
    /// Cancels the job after so long.
    pub timeout: Option<Duration>,
    /// The statement, in one form whatever was typed.
    pub statement: String,
}

impl ViewRefresh {
    /// What it asks of the view.
    pub fn wanted(&self) -> Wanted {
        Wanted {
            scope: self.scope,
            as_of: self.as_of.clone(),
        }
    }
}

/// What a refresh came to.
#[derive(Debug, Clone)]
pub struct ViewReport {
    /// The view.
    pub view: String,
    /// `none`, `incremental` or `full`.
    pub mode: &'static str,
    /// The reason code of a full refresh; empty otherwise.
    pub reason: String,
    /// Rows that are new.
    pub rows_inserted: u64,
    /// Rows that were replaced.
    pub rows_updated: u64,
    /// Rows that are gone.
    pub rows_deleted: u64,
    /// The version of the view after it.
    pub version: u64,
    /// What changed in the sources.
    pub sources: Vec<SourceChange>,
    /// The job; `None` if there was nothing to do.
    pub job: Option<String>,
    /// How long it took.
    pub elapsed: Duration,
    /// What a user should know although it worked.
    pub notices: Vec<String>,
}

/// Opens a view, and reads its definition.
///
/// # Errors
///
/// [`ErrorKind::NotFound`] if there is no such table; [`ErrorKind::InvalidInput`] if it is no materialized view.
pub async fn open_view(database: &Database, name: &str) -> Result<(Table, ViewDefinition)> {
    let table = database.table(name).await?;
    match ViewDefinition::of(&table)? {
        Some(definition) => Ok((table, definition)),
        None if database.materialized_view(name).await?.is_some() => Err(Error::invalid(format!(
            "DEFINITION_LOST: another program has overwritten materialized view '{name}'"
        ))
        .with_hint(format!(
            "DROP MATERIALIZED VIEW {name} removes what is there"
        ))),
        None => Err(Error::invalid(format!("'{name}' is no materialized view"))
            .with_hint("SHOW MATERIALIZED VIEWS lists them")),
    }
}

/// Begins a refresh. If there is nothing to do, nothing is written, not even a job.
pub async fn begin(environment: &Environment, request: &ViewRefresh) -> Result<Begun<ViewReport>> {
    let Environment {
        database, state, ..
    } = environment;
    let started = Instant::now();
    let (view, definition) = open_view(database, &request.view).await?;
    let assessment = assess(database, state, &view, &definition, &request.wanted()).await?;
    if assessment.mode == "none" {
        // One that was killed behind its commit has nothing left to do.
        let ledger = environment.jobs.ledger();
        end_interrupted(ledger, &request.statement, &view.name, 0).await?;
        return Ok(Begun::Nothing(nothing(&view, assessment, started)));
    }
    let job = JobRequest {
        statement: request.statement.clone(),
        table: view.name.clone(),
        columns: Vec::new(),
        mode: assessment.mode.to_string(),
        reason: assessment.reason.clone(),
        objects: vec![format!("{}/view", view.name)],
        request: serde_json::to_value(request)
            .map_err(|error| Error::internal(format!("a request can't be written: {error}")))?,
        version: view.version(),
        timeout: request.timeout,
        max_time: None,
    };
    let ledger = environment.jobs.ledger().clone();
    let (environment, request) = (environment.clone(), request.clone());
    let jobs = Arc::clone(&environment.jobs);
    let attached = jobs
        .start(
            move |signal| async move { Driver::begin(&ledger, job, signal).await },
            move |driver| Box::pin(drive(environment, request, driver, started)),
        )
        .await?;
    Ok(Begun::Job(attached))
}

fn nothing(view: &Table, assessment: Assessment, started: Instant) -> ViewReport {
    ViewReport {
        view: view.name.clone(),
        mode: "none",
        reason: String::new(),
        rows_inserted: 0,
        rows_updated: 0,
        rows_deleted: 0,
        version: view.version(),
        sources: assessment.changes,
        job: None,
        elapsed: started.elapsed(),
        notices: Vec::new(),
    }
}

/// Does the work of a job.
async fn drive(
    environment: Environment,
    request: ViewRefresh,
    driver: Driver,
    started: Instant,
) -> Result<ViewReport> {
    let work = attempts(&environment, &request, &driver, started);
    let result = until_stopped(driver.signal(), work).await;
    conclude(driver, result).await
}

/// The result of a job's work, or why it was told to stop; then what is on its way stops here.
pub(super) async fn until_stopped<T>(
    signal: &Signaller,
    work: impl Future<Output = T>,
) -> Result<T, Stop> {
    let mut work = Box::pin(work);
    tokio::select! {
        stop = signal.stopped() => Err(stop),
        result = &mut work => Ok(result),
    }
}

/// Ends a job with the result of its work.
pub(super) async fn conclude(
    driver: Driver,
    result: Result<Result<ViewReport>, Stop>,
) -> Result<ViewReport> {
    let id = driver.id().to_string();
    let ending = match &result {
        Ok(Ok(report)) => Ending::Done(format!(
            "{} rows inserted, {} updated, {} deleted",
            report.rows_inserted, report.rows_updated, report.rows_deleted
        )),
        Ok(Err(error)) => Ending::Failed(error),
        Err(stop) => Ending::Stopped(*stop),
    };
    let finished = driver.finish(ending).await;
    match result {
        Ok(Ok(mut report)) => {
            finished?;
            report.job = Some(id);
            Ok(report)
        }
        Ok(Err(error)) => Err(error),
        Err(Stop::OutOfTime) => Err(stop_error(Stop::OutOfTime, &id)),
        Err(stop) => {
            finished?;
            Err(stop_error(stop, &id))
        }
    }
}

/// Tries until no other writer was quicker: what a commit of theirs means for ours is found out by planning anew.
pub(super) async fn attempts(
    environment: &Environment,
    request: &ViewRefresh,
    driver: &Driver,
    started: Instant,
) -> Result<ViewReport> {
    let mut attempt = 1;
    loop {
        match attempt_once(environment, request, driver, started).await {
            Err(error) if error.kind() == ErrorKind::Conflict && attempt < ATTEMPTS => {
                attempt += 1;
                driver.counters().add(Count::Retries, 1);
                driver
                    .event("replanned", error.message().to_string(), None)
                    .await?;
            }
            result => return result,
        }
    }
}

async fn attempt_once(
    environment: &Environment,
    request: &ViewRefresh,
    driver: &Driver,
    started: Instant,
) -> Result<ViewReport> {
    let Environment {
        database,
        state,
        workers,
        ..
    } = environment;
    let (view, definition) = open_view(database, &request.view).await?;
    let assessment = assess(database, state, &view, &definition, &request.wanted()).await?;
    if assessment.mode == "none" {
        // Of a cascade: that was not known when its job began.
        return Ok(nothing(&view, assessment, started));
    }
    let mut notices = Vec::new();
    for source in &assessment.query.sources {
        let version = source.dataset.version().version;
        if !pin::pin_for(&source.table, &source.dataset, version, &definition.id).await? {
            notices.push(format!(
                "SOURCE_NOT_PINNED: version {version} of table '{}' can't be kept from others' clean-up; if it is removed, the next refresh is full",
                source.table
            ));
        }
    }
    let (property, text) = assessment.state.property()?;
    let properties = HashMap::from([(property, text), (JOB.to_string(), driver.mark())]);
    let (mode, reason) = (assessment.mode, assessment.reason.clone());
    let changes = assessment.changes.clone();
    let states = assessment.state.sources.clone();
    // Rows without a key can't be told apart, so they are all written anew.
    let is_keyed = assessment.query.root.is_some();
    let replace_all = mode == "full" && !(request.concurrently && is_keyed);
    let session = definition.session(state)?;
    let options = ViewOptions::of(&definition)?;
    let table_layout = options.layout();
    let counters = driver.counters();
    // On the workers: this thread has to hear what the job is told.
    let written = {
        let (database, view) = (Arc::clone(database), view.clone());
        let concurrently = request.concurrently;
        let progress = Arc::new(Progress::new(&view.name));
        let shared = (Arc::clone(counters), Arc::clone(&progress));
        let mut task = JoinSet::new();
        task.spawn_on(
            async move {
                let (counters, progress) = shared;
                // Another attempt counts anew.
                counters.set(Count::RowsComputed, 0);
                let rows = changed_rows(
                    session,
                    &view,
                    &options,
                    assessment,
                    concurrently,
                    &progress,
                );
                let rows = counted(rows.await?, counters);
                write_change(
                    database.root(),
                    &view.name,
                    &view.dataset,
                    rows,
                    &table_layout,
                )
                .await
            },
            workers,
        );
        let computing = Instant::now();
        let ended = loop {
            let ended = tokio::time::timeout(COUNTING, task.join_next()).await;
            progress.count(counters);
            if let Ok(ended) = ended {
                break ended;
            }
        };
        let written = match ended {
            Some(Ok(written)) => written?,
            Some(Err(error)) => return Err(Error::internal(format!("a task failed: {error}"))),
            None => return Err(Error::internal("a task was lost")),
        };
        counters.spent_since(Phase::Computing, computing);
        counters.add(Count::BytesWritten, written.bytes);
        written
    };
    let (inserted, updated) = (written.rows_inserted, written.rows_replaced);
    let mut deleted = written.rows_deleted;
    if replace_all {
        deleted = view.dataset.count_rows(None).await? as u64;
    }
    if let Err(error) = driver.check_claims().await {
        discard_change(&view.dataset, written).await;
        return Err(error);
    }
    let committing = Instant::now();
    let committed =
        commit_change(&view.name, &view.dataset, &written, properties, replace_all).await;
    let committed = match committed {
        Ok(committed) => committed,
        Err(error) => {
            // After any other error it may have landed all the same.
            if error.kind() == ErrorKind::Conflict {
                discard_change(&view.dataset, written).await;
            }
            return Err(error);
        }
    };
    counters.spent_since(Phase::Committing, committing);
    counters.add(Count::Commits, 1);
    counters.set(Count::RowsComputed, inserted + updated);
    for source in &states {
        let table = database.table(&source.table).await?;
        let keep = [source.version.version].into();
        if let Err(error) =
            pin::release_owner(&source.table, &table.dataset, &definition.id, &keep).await
        {
            log::warn!("job '{}': {error}", driver.id());
        }
    }
    Ok(ViewReport {
        view: view.name.clone(),
        mode,
        reason,
        rows_inserted: inserted,
        rows_updated: updated,
        rows_deleted: deleted,
        version: committed.version().version,
        sources: changes,
        job: None,
        elapsed: started.elapsed(),
        notices,
    })
}

/// The rows to write, as [`write_change`] takes them.
async fn changed_rows(
    session: SessionState,
    view: &Table,
    options: &ViewOptions,
    assessment: Assessment,
    concurrently: bool,
    progress: &Progress,
) -> Result<SendableRecordBatchStream> {
    let Assessment {
        query,
        mode,
        versions,
        ..
    } = assessment;
    let schema = query.schema();
    let width = schema.fields().len();
    let hidden = query.root.iter().flat_map(|root| &root.keys).enumerate();
    let keys = hidden
        .filter(|(_, key)| !key.is_state)
        .map(|(place, _)| query.names.len() + place);
    let layout = Layout {
        stored: view.stored_schema(),
        width,
        keys: keys.collect(),
    };
    let stored = scan_stored(view, RowFilter::All)?.build()?;
    let pass = Pass::new(session, versions, stored);
    let mut stored = StoredRows::new(layout.clone())?;
    let added = match (&query.root, mode) {
        (Some(root), "full") => root.stream(&pass, Side::New).await?,
        (Some(root), _) => match by_row_condition(&pass, view, root) {
            Some(condition) => {
                let before = scan_stored(view, RowFilter::All)?
                    .filter(condition)?
                    .build()?;
                paid::added(&pass, root, before, &query.names).await?
            }
            None => root.stream(&pass, Side::Added).await?,
        },
        (None, _) => Some(query.plan.clone()),
    };
    let added = match added {
        Some(plan) => {
            let shown = query.plan.schema().columns().into_iter().map(Expr::Column);
            let keys = query.root.iter().flat_map(|root| &root.keys);
            let all = shown.chain(keys.map(|key| key.column()));
            let all = all
                .zip(schema.fields())
                .map(|(value, field)| cast(value, field.data_type().clone()).alias(field.name()));
            let plan = project(plan, all.collect())?;
            let ties: Vec<String> = (layout.keys.iter())
                .map(|key| schema.field(*key).name().clone())
                .collect();
            let plan = options.ordered(&pass.state, plan, &ties)?;
            Some(progress.execute(&pass, &plan).await?)
        }
        None => None,
    };
    match (&query.root, mode) {
        (Some(root), "incremental") => read_touched(&pass, view, root, &mut stored).await?,
        (Some(_), _) if concurrently => {
            let all = stored_rows(&pass, view, RowFilter::All).await?;
            stored.extend(all).await?;
        }
        _ => {}
    }
    Ok(changes(added, stored))
}

/// Reads the stored rows that are removed, or may be replaced.
async fn read_touched(
    pass: &Pass,
    view: &Table,
    root: &Node,
    stored: &mut StoredRows,
) -> Result<()> {
    let condition = if root.is_by_row() {
        by_row_condition(pass, view, root)
    } else {
        let removed = pass.removed_keys(root).await?;
        (!removed.is_empty()).then(|| in_keys(&removed, stored_key(view, root)))
    };
    let Some(condition) = condition else {
        return Ok(());
    };
    let ids = stored_ids(pass, view, condition).await?;
    if ids.is_empty() {
        return Ok(());
    }
    let rows = stored_rows(pass, view, RowFilter::Only(Arc::new(ids))).await?;
    stored.extend(rows).await
}

/// The columns of the view that hold its key.
fn stored_key(view: &Table, root: &Node) -> Vec<Expr> {
    let names = hidden_names(&root.keys).into_iter().zip(&root.keys);
    names
        .filter(|(_, key)| !key.is_state)
        .map(|(name, _)| Expr::Column(Column::new(Some(&*view.name), name)))
        .collect()
}

/// Which stored rows come from rows of the sources that were updated or deleted, if each comes from single ones.
fn by_row_condition(pass: &Pass, view: &Table, root: &Node) -> Option<Expr> {
    if !root.is_by_row() {
        return None;
    }
    let columns = stored_key(view, root);
    let by_source = root.keys.iter().zip(columns).filter_map(|(key, column)| {
        let removed = &pass.sources.get(key.source?)?.removed;
        (!removed.is_empty()).then(|| in_rows(removed, column))
    });
    by_source.reduce(Expr::or)
}

fn scan_stored(view: &Table, rows: RowFilter) -> Result<LogicalPlanBuilder> {
    let provider = LanceTable::new(&view.name, Arc::clone(&view.dataset), true)
        .with_hidden()
        .with_rows(rows);
    let source = provider_as_source(Arc::new(provider));
    Ok(LogicalPlanBuilder::scan(
        TableReference::bare(view.name.as_str()),
        source,
        None,
    )?)
}

/// Ids of the stored rows for which `condition` is true.
async fn stored_ids(pass: &Pass, view: &Table, condition: Expr) -> Result<RowSet> {
    let scan = scan_stored(view, RowFilter::All)?.build()?;
    let plan = LogicalPlan::Filter(Filter::try_new(condition, Arc::new(scan))?);
    let id = Expr::Column(Column::new(Some(&*view.name), "_rowid"));
    RowSet::collect(pass.execute(&project(plan, vec![id])?).await?).await
}

/// Stored rows: all columns, `_rowid` and `_rowaddr`.
async fn stored_rows(
    pass: &Pass,
    view: &Table,
    rows: RowFilter,
) -> Result<SendableRecordBatchStream> {
    pass.execute(&scan_stored(view, rows)?.build()?).await
}
