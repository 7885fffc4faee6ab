//! Maintains the rows of a view, or of a stage: computes those that change, writes and commits them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::common::Column;
use datafusion::datasource::provider_as_source;
use datafusion::execution::{SendableRecordBatchStream, SessionState};
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, cast, lit};
use datafusion::sql::TableReference;
use lance::Dataset;
use tokio::task::JoinSet;

use super::apply::{Layout, StoredRows, changes};
use super::assess::Complete;
use super::calls::{Calls, Held};
use super::index::{LookUps, LookedUp, keep_indexes};
use super::operator::Node;
use super::options::ViewOptions;
use super::paid;
use super::pass::Pass;
use super::progress::{Progress, counted};
use super::refresh::ViewRefresh;
use super::relation::{Side, hidden_names, project};
use crate::database::{LanceTable, Table};
use crate::job::counters::{Count, Phase};
use crate::job::driver::Driver;
use crate::job::environment::Environment;
use crate::storage::RowSet;
use crate::storage::change::{Change, commit_change, discard_change, write_change};
use crate::storage::keys::{in_keys, in_rows};
use crate::storage::properties::JOB;
use crate::{Error, ErrorKind, Result};

/// How often it is counted how far a refresh is.
const COUNTING: Duration = Duration::from_millis(200);

/// What maintains rows.
pub(super) struct Maintenance<'a> {
    pub(super) environment: &'a Environment,
    /// The job.
    pub(super) driver: &'a Driver,
    /// What it was asked.
    pub(super) request: &'a ViewRefresh,
    /// The calls that are on their way.
    pub(super) held: &'a Held,
    /// A session with the settings of the view.
    pub(super) session: SessionState,
}

/// What was done.
pub(super) struct Maintained {
    /// The table as it was committed, whatever others have done since.
    pub(super) dataset: Arc<Dataset>,
    /// Rows that are new.
    pub(super) rows_inserted: u64,
    /// Rows that were replaced.
    pub(super) rows_updated: u64,
    /// Rows that are gone.
    pub(super) rows_deleted: u64,
    /// What a user should know.
    pub(super) notices: Vec<String>,
}

impl Maintenance<'_> {
    /// Brings the rows that `table` holds up to date, in one commit with their state. If all are computed anew, and
    /// `concurrently` is set, only the difference is written.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Conflict`] if others changed the table meanwhile: nothing was done then.
    pub(super) async fn maintain(
        &self,
        table: &Table,
        options: &ViewOptions,
        part: Complete,
        concurrently: bool,
    ) -> Result<Maintained> {
        let database = &self.environment.database;
        let calls = paid::prepare(self.environment, self.request, self.driver, &part).await?;
        self.held.hold(calls.clone());
        let mut state = part.state.clone();
        let looked_at = looked_at(&part);
        let (query, versions) = (Arc::clone(&part.query), part.versions.clone());
        let look_ups = Arc::new(LookUps::default());
        // Rows without a key can't be told apart, so they are all written anew.
        let is_keyed = part.query.root.is_some();
        let replace_all = part.mode == "full" && !(concurrently && is_keyed);
        let how = How {
            concurrently,
            look_ups: Arc::clone(&look_ups),
        };
        let change = self.write(table, options, part, calls.clone(), how);
        let change = change.await?;
        let (rows_inserted, rows_updated) = (change.rows_inserted, change.rows_replaced);
        let rows_deleted = match replace_all {
            true => table.dataset.count_rows(None).await? as u64,
            false => change.rows_deleted,
        };
        if let Some(calls) = &calls {
            state.failed = calls.failed_rows(database, looked_at.as_deref()).await?;
        }
        let (property, text) = state.property()?;
        let properties = HashMap::from([(property, text), (JOB.to_string(), self.driver.mark())]);
        if let Err(error) = self.driver.check_claims().await {
            discard_change(&table.dataset, change).await;
            return Err(error);
        }
        let committing = Instant::now();
        let committed = commit_change(
            &table.name,
            &table.dataset,
            &change,
            properties,
            replace_all,
        );
        let dataset = match committed.await {
            Ok(dataset) => Arc::new(dataset),
            Err(error) => {
                // After any other error it may have landed all the same.
                if error.kind() == ErrorKind::Conflict {
                    discard_change(&table.dataset, change).await;
                }
                return Err(error);
            }
        };
        log::debug!("'{}' committed in {:?}", table.name, committing.elapsed());
        let counters = self.driver.counters();
        counters.spent_since(Phase::Committing, committing);
        counters.add(Count::Commits, 1);
        let reused = counters.get(Count::RowsReused);
        let written = rows_inserted + rows_updated;
        counters.set(Count::RowsComputed, written.saturating_sub(reused));
        // Nothing of it is left to be kept.
        self.held.hold(None);
        let looked_up = LookedUp {
            sources: &query.sources,
            versions: &versions,
            table: &table.name,
            dataset: &dataset,
        };
        let kept = keep_indexes(&look_ups, &looked_up, options).await;
        let notices = kept.unwrap_or_else(|error| {
            log::warn!("job '{}': {error}", self.driver.id());
            Vec::new()
        });
        Ok(Maintained {
            dataset,
            notices,
            rows_inserted,
            rows_updated,
            rows_deleted,
        })
    }

    /// Computes the rows that change, and writes them.
    async fn write(
        &self,
        table: &Table,
        options: &ViewOptions,
        part: Complete,
        calls: Option<Arc<Calls>>,
        how: How,
    ) -> Result<Change> {
        let Environment {
            database, workers, ..
        } = self.environment;
        let (database, view, options) = (Arc::clone(database), table.clone(), options.clone());
        let session = self.session.clone();
        let writers = match options.is_ordered() {
            true => 1,
            false => session.config().target_partitions(),
        };
        let counters = self.driver.counters();
        let progress = Arc::new(Progress::new(&view.name));
        let shared = (Arc::clone(counters), Arc::clone(&progress));
        // On the workers: this thread has to hear what the job is told.
        let mut task = JoinSet::new();
        task.spawn_on(
            async move {
                let (counters, progress) = shared;
                // Another attempt counts anew.
                counters.set(Count::RowsComputed, 0);
                counters.set(Count::RowsReused, 0);
                let calls = calls.as_ref();
                let rows =
                    changed_rows(session, &view, &options, part, calls, (how, &*progress)).await?;
                let rows = match calls {
                    // They count themselves.
                    Some(_) => rows,
                    None => counted(rows, counters),
                };
                let layout = options.layout();
                write_change(
                    database.root(),
                    &view.name,
                    &view.dataset,
                    rows,
                    &layout,
                    writers,
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
        let change = match ended {
            Some(Ok(change)) => change?,
            Some(Err(error)) => return Err(Error::internal(format!("a task failed: {error}"))),
            None => return Err(Error::internal("a task was lost")),
        };
        log::debug!("'{}' written in {:?}", table.name, computing.elapsed());
        counters.spent_since(Phase::Computing, computing);
        counters.add(Count::BytesWritten, change.bytes);
        Ok(change)
    }
}

/// How rows are computed and compared.
struct How {
    /// Whether only the difference is written, if all are computed anew.
    concurrently: bool,
    /// Where look-ups are noted.
    look_ups: Arc<LookUps>,
}

/// The rows of sources, each set with its place in the key, from which a refresh computes what comes from them; `None` if
/// it computes all.
fn looked_at(part: &Complete) -> Option<Vec<(usize, Arc<RowSet>)>> {
    let root = part.query.root.as_ref();
    let keys = root.filter(|_| part.mode != "full")?.keys.iter();
    let rows = keys.enumerate().filter_map(|(place, key)| {
        let versions = part.versions.get(key.source?)?;
        Some((place, Arc::clone(&versions.removed)))
    });
    Some(rows.collect())
}

/// The rows to write, as [`write_change`] takes them.
async fn changed_rows(
    session: SessionState,
    view: &Table,
    options: &ViewOptions,
    part: Complete,
    calls: Option<&Arc<Calls>>,
    (how, progress): (How, &Progress),
) -> Result<SendableRecordBatchStream> {
    let Complete {
        query,
        mode,
        versions,
        ..
    } = part;
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
    let stored = scan_stored(view)?.build()?;
    let pass = Pass::new(session, versions, how.look_ups, stored);
    let mut stored = StoredRows::new(layout.clone())?;
    let by_row = match (&query.root, mode) {
        (None, _) | (_, "full") => None,
        (Some(root), _) => by_row_condition(&pass, view, root),
    };
    let added = match (&query.root, mode) {
        (Some(root), "full") => paid::rows(&pass, root, Side::New, None, calls).await?,
        (Some(root), _) => {
            let before = match &by_row {
                Some(condition) => {
                    let scan = scan_stored(view)?;
                    Some(scan.filter(condition.clone())?.build()?)
                }
                None => None,
            };
            paid::rows(&pass, root, Side::Added, before, calls).await?
        }
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
        (Some(root), "incremental" | "filtered") => {
            read_touched(&pass, view, root, by_row, &mut stored).await?
        }
        (Some(_), _) if how.concurrently => {
            let all = scan_stored(view)?.build()?;
            stored.extend(pass.execute(&all).await?).await?;
        }
        _ => {}
    }
    Ok(changes(added, stored))
}

/// Reads the stored rows that are removed, or may be replaced; `by_row` says which, if each comes from single rows.
async fn read_touched(
    pass: &Pass,
    view: &Table,
    root: &Node,
    by_row: Option<Expr>,
    stored: &mut StoredRows,
) -> Result<()> {
    let condition = if root.is_by_row() {
        by_row
    } else if root.replaces_all() {
        Some(lit(true))
    } else {
        let removed = pass.removed_keys(root).await?;
        let key = stored_key(view, root);
        if let [Expr::Column(column)] = key.as_slice() {
            pass.look_ups.add(None, column.name(), removed.len());
        }
        (!removed.is_empty()).then(|| in_keys(&removed, key))
    };
    let Some(condition) = condition else {
        return Ok(());
    };
    let began = Instant::now();
    let rows = scan_stored(view)?.filter(condition)?;
    stored.extend(pass.execute(&rows.build()?).await?).await?;
    log::debug!("{} stored rows read in {:?}", stored.len(), began.elapsed());
    Ok(())
}

/// The columns of the view that hold its key.
fn stored_key(view: &Table, root: &Node) -> Vec<Expr> {
    let names = hidden_names(&root.keys).into_iter().zip(&root.keys);
    names
        .filter(|(_, key)| !key.is_state)
        .map(|(name, _)| Expr::Column(Column::new(Some(table_reference(view)), name)))
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
        if removed.is_empty() {
            return None;
        }
        if let Expr::Column(column) = &column {
            pass.look_ups
                .add(None, column.name(), removed.len() as usize);
        }
        Some(in_rows(removed, column))
    });
    by_source.reduce(Expr::or)
}

/// The stored rows: all columns, `_rowid` and `_rowaddr`.
fn scan_stored(view: &Table) -> Result<LogicalPlanBuilder> {
    let provider = LanceTable::new(&view.name, Arc::clone(&view.dataset), true).with_hidden();
    let source = provider_as_source(Arc::new(provider));
    Ok(LogicalPlanBuilder::scan(
        table_reference(view),
        source,
        None,
    )?)
}

fn table_reference(view: &Table) -> TableReference {
    TableReference::bare(view.name.as_str())
}
