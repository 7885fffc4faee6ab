//! One run: some views that are due, with all that is refreshed before them.
//!
//! As in REFRESH … CASCADE, stale computed columns of tables come first; then the versions of the tables are fixed once, so
//! that two ways from a view to the same table lead to the same rows; then the views, each as soon as those are done
//! that it reads, several at once. A view that can't be refreshed keeps back only those that read it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::column::refresh::{Refresh, Scope as ColumnScope, Settings};
use crate::column::run::{self as columns, Refreshed};
use crate::database::materialized_view::ViewDefinition;
use crate::job::admission::Placement;
use crate::job::environment::Environment;
use crate::sql::format::quote_identifier;
use crate::view::assess::Scope;
use crate::view::cascade::{Found, Step};
use crate::view::failed::OnError;
use crate::view::lag::{Behind, Lags};
use crate::view::refresh::{ViewRefresh, ViewReport, begin, open_view};
use crate::view::state::{FoundState, find_state};
use crate::{Error, ErrorKind, Result};

/// What became of a view.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) view: String,
    /// The id of its definition when the run began.
    pub(super) definition: Option<String>,
    pub(super) behind: Behind,
    pub(super) limit: std::time::Duration,
    pub(super) outcome: Outcome,
}

#[derive(Debug)]
pub(super) enum Outcome {
    /// It was refreshed, with its sources at these versions.
    Refreshed(ViewReport, BTreeMap<String, u64>),
    /// Computed columns that it reads, or its own, were; it itself comes later.
    Columns(Refreshed),
    /// Another job works on it, or on what it needs.
    Busy(Option<String>),
    /// Others have refreshed it to newer versions of its sources than this run reads.
    Overtaken,
    /// Something that it reads could not be refreshed.
    Skipped,
    /// It could not be refreshed.
    Failed(Error),
}

/// Views that are due, and what they need.
pub(super) struct Run {
    pub(super) environment: Environment,
    pub(super) lags: Arc<Lags>,
    pub(super) definitions: Arc<BTreeMap<String, ViewDefinition>>,
    /// How far they are behind.
    pub(super) behind: BTreeMap<String, Behind>,
    pub(super) due: Vec<String>,
    /// How many are refreshed at once, in all runs; closed when nothing new is to begin.
    pub(super) gate: Arc<Semaphore>,
    pub(super) sender: mpsc::UnboundedSender<Finished>,
}

impl Run {
    /// Refreshes all of them.
    pub(super) async fn all(self) {
        let found = self.found().await;
        let mut lost: BTreeSet<String> = BTreeSet::new();
        self.columns_of_tables(&found, &mut lost).await;
        let mut versions = BTreeMap::new();
        for table in &found.tables {
            match self.environment.database.table(table).await {
                Ok(opened) => {
                    versions.insert(table.clone(), opened.version());
                }
                Err(error) => {
                    for view in readers(&found, table) {
                        if lost.insert(view.clone()) {
                            self.finish(&view, Outcome::Failed(again(&error)));
                        }
                    }
                }
            }
        }
        self.views(&found, versions, lost).await;
    }

    /// What is to be refreshed, in order. A view that can't be planned is told, and left out.
    async fn found(&self) -> Found {
        let mut found = Found::default();
        let mut broken: BTreeSet<&str> = BTreeSet::new();
        let none = BTreeMap::new();
        let is_kept = |name: &str| self.lags.limit(name).is_some();
        for view in &self.due {
            let before = self.lags.before(view);
            if before.iter().any(|view| broken.contains(&**view)) {
                broken.insert(view);
                self.finish(view, Outcome::Skipped);
                continue;
            }
            let mut more = found.clone();
            let added = more.add(&self.environment, view, &none, &is_kept);
            match Box::pin(added).await {
                Ok(()) => found = more,
                Err(error) => {
                    broken.insert(view);
                    let error = error.context(statement_of(view));
                    self.finish(view, Outcome::Failed(error));
                }
            }
        }
        found
    }

    /// Refreshes the computed columns of tables that views read. Views for which that fails are `lost`.
    async fn columns_of_tables(&self, found: &Found, lost: &mut BTreeSet<String>) {
        let mut tasks = JoinSet::new();
        let steps = found
            .tables
            .iter()
            .filter_map(|table| found.columns_of(table));
        for step in steps {
            // A materialized view that nobody keeps is left as it is, with its columns.
            if let Step::Columns { table, columns } = step
                && !self.definitions.contains_key(&table)
            {
                let (environment, gate) = (self.environment.clone(), Arc::clone(&self.gate));
                tasks.spawn(async move {
                    let outcome = refresh_columns(&environment, &gate, &table, columns).await;
                    (table, outcome)
                });
            }
        }
        while let Some(Ok((table, outcome))) = tasks.join_next().await {
            let readers = readers(found, &table);
            if let Outcome::Columns(_) = &outcome {
                if let Some(reader) = readers.first() {
                    self.finish(reader, outcome);
                }
                continue;
            }
            for view in readers {
                if lost.insert(view.clone()) {
                    self.finish(&view, outcome.again());
                }
            }
        }
    }

    /// Refreshes the views, each behind those that it reads.
    async fn views(
        &self,
        found: &Found,
        mut versions: BTreeMap<String, u64>,
        mut lost: BTreeSet<String>,
    ) {
        let of_run: BTreeSet<&String> = found.views.iter().collect();
        let mut waiting: Vec<&String> = found.views.iter().collect();
        let mut tasks = JoinSet::new();
        loop {
            let mut still = Vec::new();
            for view in std::mem::take(&mut waiting) {
                let reads = found.reads.get(view);
                let mut before = reads.into_iter().flatten().filter(|r| of_run.contains(r));
                if lost.contains(view) {
                    continue;
                }
                if before.clone().any(|read| lost.contains(read)) {
                    lost.insert(view.clone());
                    self.finish(view, Outcome::Skipped);
                } else if before.all(|read| versions.contains_key(read)) {
                    let read = |table: &String| reads.is_some_and(|reads| reads.contains(table));
                    let sources = versions.iter().filter(|(table, _)| read(table));
                    let one = One {
                        environment: self.environment.clone(),
                        gate: Arc::clone(&self.gate),
                        view: view.clone(),
                        sources: sources.map(|(table, v)| (table.clone(), *v)).collect(),
                        columns: found.columns_of(view),
                    };
                    tasks.spawn(one.refresh());
                } else {
                    still.push(view);
                }
            }
            waiting = still;
            let Some(ended) = tasks.join_next().await else {
                return;
            };
            // One that panicked is not there for those that read it: they wait for ever, and end here with the run.
            let Ok((view, outcome, then)) = ended else {
                continue;
            };
            let is_done = matches!(outcome, Outcome::Refreshed(..));
            self.finish(&view, outcome);
            match then {
                Some(Ok((version, refreshed))) if is_done => {
                    if let Some(refreshed) = refreshed {
                        self.finish(&view, Outcome::Columns(refreshed));
                    }
                    versions.insert(view, version);
                }
                Some(Err(outcome)) => {
                    // Its own columns could not be computed: those that read them say so.
                    for reader in readers(found, &view) {
                        if lost.insert(reader.clone()) {
                            self.finish(&reader, outcome.again());
                        }
                    }
                    lost.insert(view);
                }
                _ => {
                    lost.insert(view);
                }
            }
        }
    }

    fn finish(&self, view: &str, outcome: Outcome) {
        let finished = Finished {
            view: view.to_string(),
            definition: self.definitions.get(view).map(|d| d.id.clone()),
            behind: self.behind.get(view).copied().unwrap_or(Behind::Unknown),
            limit: self.lags.limit(view).unwrap_or_default(),
            outcome,
        };
        // The keeper may be gone.
        let _ = self.sender.send(finished);
    }
}

/// The views that read a table.
fn readers(found: &Found, table: &str) -> Vec<String> {
    let views = found.views.iter();
    let reads = |view: &&String| found.reads.get(*view).is_some_and(|r| r.contains(table));
    views.filter(reads).cloned().collect()
}

/// One view of a run.
struct One {
    environment: Environment,
    gate: Arc<Semaphore>,
    view: String,
    /// The versions to read.
    sources: BTreeMap<String, u64>,
    /// Computed columns of it that others read.
    columns: Option<Step>,
}

/// What comes of a view's own columns: its version then.
type Then = std::result::Result<(u64, Option<Refreshed>), Outcome>;

impl One {
    async fn refresh(self) -> (String, Outcome, Option<Then>) {
        let outcome = self.outcome().await;
        let Outcome::Refreshed(report, _) = &outcome else {
            return (self.view, outcome, None);
        };
        let Some(Step::Columns { table, columns }) = self.columns else {
            let then = Ok((report.version, None));
            return (self.view, outcome, Some(then));
        };
        let then = refresh_columns(&self.environment, &self.gate, &table, columns).await;
        let then = match then {
            Outcome::Columns(refreshed) => match self.environment.database.table(&table).await {
                Ok(table) => Ok((table.version(), Some(refreshed))),
                Err(error) => Err(Outcome::Failed(error)),
            },
            other => Err(other),
        };
        (self.view, outcome, Some(then))
    }

    async fn outcome(&self) -> Outcome {
        // Closed: nothing new begins.
        let Ok(_permit) = self.gate.acquire().await else {
            return Outcome::Skipped;
        };
        match Box::pin(self.refreshed()).await {
            Ok(Some(report)) => Outcome::Refreshed(report, self.sources.clone()),
            Ok(None) => Outcome::Overtaken,
            Err(error) if error.kind() == ErrorKind::Busy => {
                Outcome::Busy(job_on(&self.environment, &self.view, true).await)
            }
            Err(error) => Outcome::Failed(error.context(statement_of(&self.view))),
        }
    }

    async fn refreshed(&self) -> Result<Option<ViewReport>> {
        if self.is_overtaken().await? {
            return Ok(None);
        }
        let request = ViewRefresh {
            view: self.view.clone(),
            scope: Scope::Auto,
            as_of: self.sources.clone(),
            concurrently: false,
            timeout: None,
            checkpoint_interval: None,
            on_error: OnError::default(),
            concurrency: None,
            placement: Placement::default(),
            statement: statement_of(&self.view),
        };
        let begun = begin(&self.environment, &request).await?;
        Ok(Some(begun.wait().await?))
    }

    /// Whether it shows newer versions than those that would be read: it is not taken back.
    async fn is_overtaken(&self) -> Result<bool> {
        let database = &self.environment.database;
        let (table, _) = open_view(database, &self.view).await?;
        let FoundState::State(state) = find_state(&self.view, &table.dataset).await? else {
            return Ok(false);
        };
        for source in state.tables() {
            let shown = source.version.version;
            let is_newer = |version: &u64| shown > *version;
            // A table that was made again has lower versions.
            if self.sources.get(&source.table).is_some_and(is_newer)
                && database.table(&source.table).await?.version() >= shown
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Outcome {
    /// The same for another view. What came of columns is told once.
    fn again(&self) -> Self {
        match self {
            Self::Busy(job) => Self::Busy(job.clone()),
            Self::Overtaken => Self::Overtaken,
            Self::Failed(error) => Self::Failed(again(error)),
            Self::Refreshed(..) | Self::Columns(_) | Self::Skipped => Self::Skipped,
        }
    }
}

/// An error, for another object that it concerns.
fn again(error: &Error) -> Error {
    let copy = Error::new(error.kind(), error.message());
    match error.hint() {
        Some(hint) => copy.with_hint(hint),
        None => copy,
    }
}

/// As REFRESH … without modifiers writes it down: a job of that is gone on with.
fn statement_of(view: &str) -> String {
    format!("REFRESH MATERIALIZED VIEW {}", quote_identifier(view))
}

async fn refresh_columns(
    environment: &Environment,
    gate: &Semaphore,
    table: &str,
    columns: Vec<String>,
) -> Outcome {
    let Ok(_permit) = gate.acquire().await else {
        return Outcome::Skipped;
    };
    let names: Vec<String> = columns.iter().map(|name| quote_identifier(name)).collect();
    let statement = format!(
        "REFRESH COLUMN {} ON {} CASCADE",
        names.join(", "),
        quote_identifier(table)
    );
    let request = Refresh {
        table: table.to_string(),
        columns,
        filter: None,
        scope: ColumnScope::Changed,
        cascade: true,
        settings: Settings::default(),
        statement: statement.clone(),
    };
    let begun = Box::pin(async {
        let begun = columns::begin(environment, &request).await?;
        begun.wait().await
    });
    match begun.await {
        Ok(refreshed) => Outcome::Columns(refreshed),
        Err(error) if error.kind() == ErrorKind::Busy => {
            Outcome::Busy(job_on(environment, table, false).await)
        }
        Err(error) => Outcome::Failed(error.context(statement)),
    }
}

/// The job that works on a view, or on columns of a table.
async fn job_on(environment: &Environment, table: &str, is_view: bool) -> Option<String> {
    let ledger = environment.jobs.ledger();
    for id in ledger.active().await.ok()? {
        if let Ok(Some(files)) = ledger.read(&id).await
            && files.record.table == table
            && files.record.columns.is_empty() == is_view
            && ledger.is_alive(&files)
        {
            return Some(id);
        }
    }
    None
}
