//! What a refresh of a view has to do, and why.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use datafusion::arrow::datatypes::Schema;
use datafusion::execution::SessionState;
use lance::Dataset;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::failed::{self, FailedRows};
use super::options::{RefreshMode, ViewOptions};
use super::query::Query;
use super::source::{Origin, Source, SourceVersions};
use super::state::{FoundState, SourceState, ViewState, find_state};
use crate::database::materialized_view::ViewDefinition;
use crate::database::view::Reading;
use crate::database::{Database, Table};
use crate::delta::{self, Delta, FieldIdentity, VersionStamp};
use crate::storage::RowSet;
use crate::{Error, Result};

/// Reason code: it has no rows yet.
pub const FIRST_REFRESH: &str = "FIRST_REFRESH";
/// Reason code: FULL was asked for.
pub const REQUESTED_FULL: &str = "REQUESTED_FULL";
/// Reason code: the rows are of another definition.
pub const DEFINITION_CHANGED: &str = "DEFINITION_CHANGED";
/// Reason code: the record of what the rows reflect is gone or can't be read.
pub const STATE_LOST: &str = "STATE_LOST";
/// Reason code: others changed rows of the view.
pub const TARGET_MODIFIED: &str = "TARGET_MODIFIED";
/// Reason code: the query gives other rows each time.
pub const EXPRESSION_NOT_DETERMINISTIC: &str = "EXPRESSION_NOT_DETERMINISTIC";

/// What is asked of a refresh.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// What is cheaper.
    #[default]
    Auto,
    /// All rows.
    Full,
    /// Only what changed; an error if that can't be.
    Incremental,
    /// Rows on record as failed, at the versions that the view reflects.
    FailedOnly,
}

/// What is asked of a refresh, of whichever view.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Which rows.
    pub scope: Scope,
    /// Versions of sources to read; of others the newest.
    pub as_of: BTreeMap<String, u64>,
}

/// What changed in a source.
#[derive(Debug, Clone)]
pub struct SourceChange {
    /// The table.
    pub table: String,
    /// The version that the view reflects.
    pub from: Option<u64>,
    /// The version to refresh to.
    pub to: u64,
    /// Rows inserted, updated in what the query reads, and deleted; `None` in a full refresh.
    pub rows: Option<[u64; 3]>,
    /// Commits in between.
    pub commits: u64,
}

/// What a refresh has to do.
#[derive(Debug)]
pub(super) struct Assessment {
    /// What has to be done with the rows of the view.
    pub(super) view: Part,
    /// The same of its stages, in their order, each with its table as it was compared; `None` if it has none yet.
    pub(super) stages: Vec<(Option<Table>, Part)>,
    /// What changed in the tables that it reads: in those of its own, and behind them in those of its stages.
    pub(super) changes: Vec<SourceChange>,
}

impl Assessment {
    /// `none`, `incremental` or `full`.
    pub(super) fn mode(&self) -> &'static str {
        self.view.mode
    }

    /// The query.
    pub(super) fn query(&self) -> &Query {
        &self.view.query
    }
}

/// What has to be done with the rows of a view, or of a stage.
#[derive(Debug)]
pub(super) struct Part {
    /// The query.
    pub(super) query: Arc<Query>,
    /// `none`, `incremental`, `full`, or `filtered` (FAILED ONLY).
    pub(super) mode: &'static str,
    /// The reason code if it is `full`; empty otherwise.
    pub(super) reason: String,
    /// What the state is of.
    definition: String,
    /// Its sources, in order.
    sources: Vec<PartSource>,
    /// The tables of its stages, at the versions that are read.
    below: Vec<SourceState>,
    /// Rows on record as failed.
    failed: Vec<FailedRows>,
}

/// A source of a part.
#[derive(Debug)]
enum PartSource {
    /// A table, and what it is read at.
    Table(SourceState, SourceVersions),
    /// A stage, whose version is known once it is refreshed; and the one that the rows reflect, if they are not all computed
    /// anew.
    Stage(usize, Option<VersionStamp>),
}

impl Part {
    /// Some rows of a view again, in `mode`, at the versions of `state`, which it reflects. It has no stages.
    pub(super) fn again(
        query: Query,
        mode: &'static str,
        state: ViewState,
        versions: Vec<SourceVersions>,
    ) -> Self {
        let sources = state.sources.into_iter().zip(versions);
        Self {
            query: Arc::new(query),
            mode,
            reason: String::new(),
            definition: state.definition,
            sources: sources
                .map(|(state, v)| PartSource::Table(state, v))
                .collect(),
            below: state.below,
            failed: state.failed,
        }
    }

    /// What there is to read, and the state once it is done, when the stages have these versions.
    pub(super) async fn complete(
        self,
        database: &Database,
        stages: &[Arc<Dataset>],
    ) -> Result<Complete> {
        let mut versions = Vec::with_capacity(self.sources.len());
        let mut sources = Vec::with_capacity(self.sources.len());
        for (source, planned) in self.sources.into_iter().zip(&self.query.sources) {
            let (state, found) = match source {
                PartSource::Table(state, versions) => (state, versions),
                PartSource::Stage(place, since) => {
                    let stage = stages.get(place);
                    let stage = stage.ok_or_else(|| Error::internal("a stage is missing"))?;
                    let state = source_state(planned, stage).await?;
                    let versions = match since {
                        None => everything(stage),
                        Some(since) => match between(database, &state, &since, stage).await? {
                            Between::Rows(versions, _) => versions,
                            Between::Full(reason) => {
                                return Err(Error::internal(format!(
                                    "a stage can't be compared: {reason}"
                                )));
                            }
                        },
                    };
                    (state, versions)
                }
            };
            sources.push(state);
            versions.push(found);
        }
        let is_same =
            |source: &SourceVersions| source.removed.is_empty() && source.added.is_empty();
        let mode = match self.mode {
            "incremental" if versions.iter().all(is_same) => "none",
            mode => mode,
        };
        Ok(Complete {
            query: self.query,
            mode,
            versions,
            state: ViewState {
                definition: self.definition,
                sources,
                below: self.below,
                mode: self.mode.to_string(),
                reason: self.reason,
                failed: Vec::new(),
            },
            failed: self.failed,
        })
    }
}

/// A part all of whose sources are known.
#[derive(Debug)]
pub(super) struct Complete {
    /// The query.
    pub(super) query: Arc<Query>,
    /// `none`, `incremental`, `full`, or `filtered` (FAILED ONLY).
    pub(super) mode: &'static str,
    /// The versions to read.
    pub(super) versions: Vec<SourceVersions>,
    /// Rows on record as failed before it.
    pub(super) failed: Vec<FailedRows>,
    /// The state once it is done, but for rows that fail.
    pub(super) state: ViewState,
}

impl Complete {
    /// Whether the rows reflect these versions already.
    pub(super) fn is_current(&self) -> bool {
        self.mode == "none"
            && self.versions.iter().all(|source| {
                let old = source.old.as_ref().map(|old| old.version().version);
                old == Some(source.new.version().version)
            })
    }
}

/// Finds out what a refresh of `view` has to do.
pub(super) async fn assess(
    database: &Database,
    session: &SessionState,
    view: &Table,
    definition: &ViewDefinition,
    wanted: &Wanted,
) -> Result<Assessment> {
    if wanted.scope == Scope::FailedOnly {
        return failed::assess(database, session, view, definition).await;
    }
    let in_view = |error: Error| error.context(format!("materialized view '{}'", view.name));
    let options = ViewOptions::of(definition).map_err(in_view)?;
    let reading = Reading {
        versions: wanted.as_of.clone(),
        ..definition.reading()
    };
    let query = Query::plan(session, definition, reading)
        .await
        .map_err(in_view)?;
    check_columns(view, &query)?;
    let scope = match (wanted.scope, options.refresh_mode) {
        (Scope::Auto, RefreshMode::Incremental) => Scope::Incremental,
        (scope, _) => scope,
    };
    // It need not be computed where nothing changed.
    let always_full = wanted.scope == Scope::Auto && options.refresh_mode == RefreshMode::Full;
    let digest = digest(database, definition).await?;
    let planned = Sources::of(&query).await?;
    let mut tables = Vec::with_capacity(query.stages.len());
    let mut found = Vec::with_capacity(query.stages.len());
    let mut stages = Vec::with_capacity(query.stages.len());
    let mut obstacle = None;
    for (stage, planned) in query.stages.iter().zip(&planned.of_stages) {
        let table = stage.open(database).await?;
        let state = match &table {
            Some(table) => find_state(&table.name, &table.dataset).await?,
            None => FoundState::Never,
        };
        tables.push(table);
        let definition = stage.definition(&digest);
        let compared = compare(database, &definition, &stage.query, planned, &state).await?;
        if let Compared::Full(reason) = &compared {
            obstacle.get_or_insert(reason.clone());
        }
        found.push(state);
        stages.push(compared);
    }
    let of_view = find_state(&view.name, &view.dataset).await?;
    let mut compared = compare(database, &digest, &query, &planned.own, &of_view).await?;
    let mut below = Vec::new();
    if let (Compared::Changes(..), FoundState::State(state)) = (&compared, &of_view) {
        match compare_below(database, state, &planned, &found, &stages).await? {
            Ok(changes) => below = changes,
            Err(reason) => compared = Compared::Full(reason),
        }
    }
    if let (Compared::Changes(..), Some(reason)) = (&compared, obstacle) {
        compared = Compared::Full(reason);
    }
    let reason = match &compared {
        Compared::Full(reason) => reason.clone(),
        Compared::Changes(..) => String::new(),
    };
    let is_same = match &compared {
        Compared::Full(_) => false,
        Compared::Changes(_, changes) => {
            let mut changes = changes.iter().chain(&below);
            changes.all(|change| change.rows == Some([0, 0, 0]))
        }
    };
    let (mode, reason) = match scope {
        Scope::Full if reason.is_empty() => ("full", REQUESTED_FULL.to_string()),
        _ if is_same && query.obstacle != EXPRESSION_NOT_DETERMINISTIC => ("none", reason),
        _ if reason.is_empty() && query.root.is_none() => ("full", query.obstacle.clone()),
        _ if reason.is_empty() && always_full => ("full", REQUESTED_FULL.to_string()),
        _ if reason.is_empty() => ("incremental", reason),
        _ => ("full", reason),
    };
    if scope == Scope::Incremental && mode == "full" && reason != FIRST_REFRESH {
        return Err(Error::invalid(format!(
            "materialized view '{}' can't be refreshed incrementally: {reason}",
            view.name
        ))
        .with_hint(match wanted.scope {
            Scope::Incremental => "leave INCREMENTAL out to compute it in full".to_string(),
            _ => format!("REFRESH MATERIALIZED VIEW {} FULL", view.name),
        }));
    }
    let all_anew = reason == REQUESTED_FULL;
    let below_view = planned.of_stages.iter().flatten();
    let below_view = below_view.filter_map(Planned::state).cloned().collect();
    let mut parts = Vec::with_capacity(stages.len());
    let of_stages = query.stages.iter().zip(planned.of_stages);
    for (((stage, planned), compared), table) in of_stages.zip(stages).zip(tables) {
        let compared = match compared {
            Compared::Changes(..) if all_anew => Compared::Full(reason.clone()),
            compared => compared,
        };
        let (mode, reason) = match &compared {
            Compared::Full(reason) => ("full", reason.clone()),
            Compared::Changes(..) => ("incremental", String::new()),
        };
        let part = Part {
            sources: part_sources(planned, compared),
            query: Arc::clone(&stage.query),
            mode,
            reason,
            definition: stage.definition(&digest),
            below: Vec::new(),
            failed: Vec::new(),
        };
        parts.push((table, part));
    }
    let (compared, changes) = match (mode, compared) {
        ("full", _) | (_, Compared::Full(_)) => {
            let changes = query.tables().map(|(source, dataset)| SourceChange {
                table: source.table.clone(),
                from: None,
                to: dataset.version().version,
                rows: None,
                commits: 0,
            });
            (Compared::Full(reason.clone()), changes.collect())
        }
        (_, Compared::Changes(sources, changes)) => {
            let changes = changes.into_iter().chain(below).collect();
            (Compared::Changes(sources, Vec::new()), changes)
        }
    };
    let failed = match of_view {
        FoundState::State(state) => state.failed,
        _ => Vec::new(),
    };
    Ok(Assessment {
        view: Part {
            failed,
            sources: part_sources(planned.own, compared),
            query: Arc::new(query),
            mode,
            reason,
            definition: digest,
            below: below_view,
        },
        stages: parts,
        changes,
    })
}

/// A source as it is to be read.
enum Planned {
    /// A table: its state once it is read, and its version.
    Table(SourceState, Arc<Dataset>),
    /// A stage, as its place among the stages; there is no version yet.
    Stage(usize),
}

impl Planned {
    fn table(&self) -> Option<(&SourceState, &Arc<Dataset>)> {
        match self {
            Self::Table(state, dataset) => Some((state, dataset)),
            Self::Stage(_) => None,
        }
    }

    fn state(&self) -> Option<&SourceState> {
        Some(self.table()?.0)
    }
}

/// The sources of a query, and of each of its stages.
struct Sources {
    own: Vec<Planned>,
    of_stages: Vec<Vec<Planned>>,
}

impl Sources {
    async fn of(query: &Query) -> Result<Self> {
        let mut of_stages = Vec::with_capacity(query.stages.len());
        for stage in &query.stages {
            of_stages.push(planned(&stage.query).await?);
        }
        Ok(Self {
            own: planned(query).await?,
            of_stages,
        })
    }
}

async fn planned(query: &Query) -> Result<Vec<Planned>> {
    let mut sources = Vec::with_capacity(query.sources.len());
    for source in &query.sources {
        sources.push(match &source.origin {
            Origin::Table(dataset) => {
                let state = source_state(source, dataset).await?;
                Planned::Table(state, Arc::clone(dataset))
            }
            Origin::Stage(place) => Planned::Stage(*place),
        });
    }
    Ok(sources)
}

/// The state of a source that is read at the version of `dataset`.
async fn source_state(source: &Source, dataset: &Dataset) -> Result<SourceState> {
    let columns = source.columns.iter().map(|column| {
        FieldIdentity::of(dataset, column).ok_or_else(|| {
            Error::internal(format!("column '{column}' of '{}' is gone", source.table))
        })
    });
    Ok(SourceState {
        table: source.table.clone(),
        version: VersionStamp::of(dataset).await?,
        columns: columns.collect::<Result<_>>()?,
    })
}

fn part_sources(planned: Vec<Planned>, compared: Compared) -> Vec<PartSource> {
    let since = match compared {
        Compared::Changes(sources, _) => sources.into_iter().map(Some).collect(),
        Compared::Full(_) => Vec::new(),
    };
    let since = since.into_iter().chain(std::iter::repeat_with(|| None));
    let sources = planned.into_iter().zip(since);
    sources
        .map(|(source, since)| match (source, since) {
            (Planned::Table(now, _), Some(Since::Table(versions))) => {
                PartSource::Table(now, versions)
            }
            (Planned::Table(now, dataset), _) => PartSource::Table(now, everything(&dataset)),
            (Planned::Stage(place), Some(Since::Stage(version))) => {
                PartSource::Stage(place, Some(version))
            }
            (Planned::Stage(place), _) => PartSource::Stage(place, None),
        })
        .collect()
}

/// All rows of a version.
fn everything(dataset: &Arc<Dataset>) -> SourceVersions {
    SourceVersions {
        old: None,
        new: Arc::clone(dataset),
        removed: Arc::default(),
        added: Arc::default(),
    }
}

/// The digest of a definition together with the views that it reads, which may be replaced.
pub(super) async fn digest(database: &Database, definition: &ViewDefinition) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(definition.digest().as_bytes());
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let mut next: Vec<String> = definition.reads.iter().cloned().collect();
    while let Some(name) = next.pop() {
        if seen.insert(name.clone())
            && let Some(view) = database.view(&name).await?
        {
            hash.update(format!("\0{name}\0{}", view.query).as_bytes());
            next.extend(view.reads);
        }
    }
    Ok(format!("{:x}", hash.finalize()))
}

/// What changed since a state.
enum Compared {
    /// Rows of the sources, in their order, and what to say of the tables among them.
    Changes(Vec<Since>, Vec<SourceChange>),
    /// All has to be computed, for this reason code.
    Full(String),
}

/// What changed in a source since a state.
enum Since {
    /// The versions of a table.
    Table(SourceVersions),
    /// The version of a stage that the rows reflect.
    Stage(VersionStamp),
}

/// What changed in the sources of a query since `found`.
async fn compare(
    database: &Database,
    definition: &str,
    query: &Query,
    planned: &[Planned],
    found: &FoundState,
) -> Result<Compared> {
    let full = |reason: &str| Ok(Compared::Full(reason.to_string()));
    let state = match found {
        FoundState::Never => return full(FIRST_REFRESH),
        FoundState::Lost => return full(STATE_LOST),
        FoundState::Modified => return full(TARGET_MODIFIED),
        FoundState::State(state) => state,
    };
    let tables = query.sources.iter().map(|source| &source.table);
    let same_tables = tables.eq(state.sources.iter().map(|source| &source.table));
    if state.definition != definition || !same_tables {
        return full(DEFINITION_CHANGED);
    }
    let (mut sources, mut changes) = (Vec::new(), Vec::new());
    for (then, source) in state.sources.iter().zip(planned) {
        let Some((now, dataset)) = source.table() else {
            let stage = database.table_at(&then.table, Some(then.version.version));
            let is_there = match stage.await {
                Ok(table) => VersionStamp::of(&table.dataset).await? == then.version,
                Err(_) => false,
            };
            if !is_there {
                return full(STATE_LOST);
            }
            sources.push(Since::Stage(then.version.clone()));
            continue;
        };
        match changed(database, then, now, dataset).await? {
            Between::Full(reason) => return full(reason),
            Between::Rows(versions, change) => {
                sources.push(Since::Table(versions));
                changes.push(change);
            }
        }
    }
    Ok(Compared::Changes(sources, changes))
}

/// What changed in the tables of the stages since the state of the view; the reason code if that can't be said.
async fn compare_below(
    database: &Database,
    state: &ViewState,
    planned: &Sources,
    found: &[FoundState],
    compared: &[Compared],
) -> Result<std::result::Result<Vec<SourceChange>, String>> {
    let tables = planned.of_stages.iter().flatten();
    let tables = tables.filter_map(Planned::state).map(|now| &now.table);
    if !tables.eq(state.below.iter().map(|then| &then.table)) {
        return Ok(Err(DEFINITION_CHANGED.to_string()));
    }
    let mut then = state.below.iter();
    let mut changes = Vec::with_capacity(state.below.len());
    for ((planned, found), compared) in planned.of_stages.iter().zip(found).zip(compared) {
        let known = match (found, compared) {
            (FoundState::State(state), Compared::Changes(_, changes)) => {
                let tables = planned.iter().zip(&state.sources);
                let tables = tables.filter(|(source, _)| source.table().is_some());
                tables.map(|(_, then)| then).zip(changes).collect()
            }
            _ => Vec::new(),
        };
        let mut known = known.into_iter();
        for (now, dataset) in planned.iter().filter_map(Planned::table) {
            let (Some(then), known) = (then.next(), known.next()) else {
                continue;
            };
            // Unless a refresh was killed, the view and its stage reflect the same version.
            let change = match known {
                Some((of_stage, change)) if of_stage.version == then.version => change.clone(),
                _ => match changed(database, then, now, dataset).await? {
                    Between::Full(reason) => return Ok(Err(reason.to_string())),
                    Between::Rows(_, change) => change,
                },
            };
            changes.push(change);
        }
    }
    Ok(Ok(changes))
}

/// What changed between two versions.
enum Between {
    /// Rows.
    Rows(SourceVersions, SourceChange),
    /// It can't be told, for this reason code.
    Full(&'static str),
}

async fn changed(
    database: &Database,
    then: &SourceState,
    now: &SourceState,
    dataset: &Arc<Dataset>,
) -> Result<Between> {
    let is_same = |then: &FieldIdentity, now: &FieldIdentity| {
        (then.id, &then.data_type) == (now.id, &now.data_type)
    };
    let same_columns = then.columns.len() == now.columns.len()
        && then
            .columns
            .iter()
            .all(|then| now.columns.iter().any(|now| is_same(then, now)));
    match same_columns {
        true => between(database, now, &then.version, dataset).await,
        false => Ok(Between::Full(delta::FullReason::InputReplaced.code())),
    }
}

async fn between(
    database: &Database,
    now: &SourceState,
    since: &VersionStamp,
    dataset: &Arc<Dataset>,
) -> Result<Between> {
    let found = match delta::changes(dataset, since, &now.columns).await? {
        Delta::Everything(reason) => return Ok(Between::Full(reason.code())),
        Delta::Rows(found) => found,
    };
    let old = match database.table_at(&now.table, Some(since.version)).await {
        Ok(table) => table.dataset,
        Err(_) => return Ok(Between::Full(delta::FullReason::SourceVersionGone.code())),
    };
    let rows = [&found.inserted, &found.updated, &found.deleted].map(RowSet::len);
    let removed = found.updated.clone().union(&found.deleted);
    let added = found.updated.union(&found.inserted);
    let change = SourceChange {
        table: now.table.clone(),
        from: Some(since.version),
        to: now.version.version,
        rows: Some(rows),
        commits: found.commits,
    };
    let versions = SourceVersions {
        old: Some(old),
        new: Arc::clone(dataset),
        removed: Arc::new(removed),
        added: Arc::new(added),
    };
    Ok(Between::Rows(versions, change))
}

/// Refuses to refresh a view whose table can't hold what its query gives now. The columns of tables are fixed in the
/// definition; but a view that it reads may have been replaced.
pub(super) fn check_columns(view: &Table, query: &Query) -> Result<()> {
    if fits(&view.stored_schema(), &query.schema()) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the query of materialized view '{}' gives other columns now than it was made with",
        view.name
    ))
    .with_hint(format!(
        "ALTER MATERIALIZED VIEW {} AS and its query makes its table anew",
        view.name
    )))
}

/// Whether a table with the columns `stored` can hold rows with the columns `wanted`: others may have been added behind
/// them.
pub fn fits(stored: &Schema, wanted: &Schema) -> bool {
    stored.fields().len() >= wanted.fields().len()
        && stored
            .fields()
            .iter()
            .zip(wanted.fields())
            .all(|(stored, wanted)| {
                (stored.name(), stored.data_type()) == (wanted.name(), wanted.data_type())
            })
}
