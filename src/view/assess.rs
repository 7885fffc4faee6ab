//! What a refresh of a view has to do, and why.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use datafusion::arrow::datatypes::Schema;
use datafusion::execution::SessionState;
use lance::Dataset;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::compare::{
    Between, Compared, Planned, Since, SourceChange, Sources, between, compare, compare_below,
    everything, source_state,
};
use super::cost::{Cost, Estimate, Known};
use super::failed::{self, FailedRows};
use super::operator::Node;
use super::options::{RefreshMode, ViewOptions};
use super::query::Query;
use super::reason::{
    CHANGE_TOO_LARGE, EXPRESSION_NOT_DETERMINISTIC, FIRST_REFRESH, REQUESTED_FULL,
};
use super::source::SourceVersions;
use super::state::{FoundState, SourceState, ViewState, find_state};
use crate::database::materialized_view::ViewDefinition;
use crate::database::view::Reading;
use crate::database::{Database, Table};
use crate::delta::VersionStamp;
use crate::function::{Measured, functions_called, measured};
use crate::storage::scan::fragment_rows;
use crate::{Error, Result};

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

/// What a refresh has to do.
#[derive(Debug)]
pub(super) struct Assessment {
    /// What has to be done with the rows of the view.
    pub(super) view: Part,
    /// The same of its stages, in their order, each with its table as it was compared; `None` if it has none yet.
    pub(super) stages: Vec<(Option<Table>, Part)>,
    /// What changed in the tables that it reads: in those of its own, and behind them in those of its stages.
    pub(super) changes: Vec<SourceChange>,
    /// What it costs, of each stage and of the view behind them; empty where that is not known, or there is no choice.
    pub(super) estimates: Vec<Estimate>,
    /// The functions of users that it calls.
    pub(super) functions: Functions,
}

/// Functions of users, each with what its calls took in the last job that made any.
pub(super) type Functions = BTreeMap<String, Option<Measured>>;

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
    let mut functions = Functions::new();
    for name in functions_called(&query.plan)? {
        let measured = measured(database, &name).await?;
        functions.insert(name, measured);
    }
    // Calls that are paid for are not made again because that is quicker.
    let is_chosen = mode == "incremental" && scope == Scope::Auto && functions.is_empty();
    let estimates = match (mode, &compared) {
        ("incremental", Compared::Changes(of_view, _)) => {
            estimate(
                view, &query, &functions, of_view, &tables, &planned, &stages,
            )
            .await?
        }
        _ => Vec::new(),
    };
    let too_large = estimates.iter();
    let too_large = too_large.map(|found| is_chosen && found.is_too_large());
    let mut too_large: Vec<bool> = too_large.collect();
    let is_view_too_large = too_large.pop().unwrap_or_default();
    let (mode, reason) = match is_view_too_large {
        true => ("full", CHANGE_TOO_LARGE.to_string()),
        false => (mode, reason),
    };
    let all_anew = reason == REQUESTED_FULL;
    let below_view = planned.of_stages.iter().flatten();
    let below_view = below_view.filter_map(Planned::state).cloned().collect();
    let mut parts = Vec::with_capacity(stages.len());
    let of_stages = query.stages.iter().zip(planned.of_stages);
    let too_large = too_large.into_iter().chain(std::iter::repeat(false));
    let stages = stages.into_iter().zip(tables).zip(too_large);
    for ((stage, planned), ((compared, table), is_too_large)) in of_stages.zip(stages) {
        let compared = match compared {
            Compared::Changes(..) if all_anew => Compared::Full(reason.clone()),
            Compared::Changes(..) if is_too_large => Compared::Full(CHANGE_TOO_LARGE.to_string()),
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
        ("full", Compared::Changes(_, changes)) if is_view_too_large => {
            let changes = changes.into_iter().chain(below).collect();
            (Compared::Full(reason.clone()), changes)
        }
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
        estimates,
        functions,
    })
}

/// What it costs to refresh each stage, and behind them the view; empty where that is not known.
async fn estimate(
    view: &Table,
    query: &Query,
    functions: &Functions,
    of_view: &[Since],
    tables: &[Option<Table>],
    planned: &Sources,
    stages: &[Compared],
) -> Result<Vec<Estimate>> {
    let Some(root) = &query.root else {
        return Ok(Vec::new());
    };
    let mut seconds = BTreeMap::new();
    for function in functions {
        let Some(measured) = &function.1 else {
            return Ok(Vec::new());
        };
        seconds.insert(function.0.clone(), measured.seconds_per_call());
    }
    let estimate = |root: &Node, sources: &[Cost], stored: f64| {
        let seconds = &seconds;
        let known = Known {
            sources,
            stored,
            seconds,
        };
        Estimate::of(root, &known)
    };
    let mut estimates: Vec<Estimate> = Vec::with_capacity(stages.len() + 1);
    let mut rows_of_stages: Vec<f64> = Vec::with_capacity(stages.len());
    let cost_of = |planned: &[Planned], since: &[Since], stages: &[f64], made: &[Estimate]| {
        let sources = planned
            .iter()
            .zip(since)
            .map(|(source, since)| match (source, since) {
                (Planned::Table(_, dataset), Since::Table(versions)) => {
                    let rows = fragment_rows(dataset);
                    let rows: u64 = rows.iter().map(|(_, rows)| rows).sum();
                    let [removed, added] =
                        [&versions.removed, &versions.added].map(|rows| rows.len() as f64);
                    Cost::of_table(rows as f64, removed, added)
                }
                (Planned::Stage(place), _) => {
                    let rows = stages.get(*place).copied().unwrap_or_default();
                    let changed = made.get(*place).map_or(0.0, |made| made.changed / 2.0);
                    Cost::of_table(rows, changed, changed)
                }
                (Planned::Table(..), Since::Stage(_)) => Cost::default(),
            });
        sources.collect::<Vec<_>>()
    };
    let parts = query
        .stages
        .iter()
        .zip(tables)
        .zip(&planned.of_stages)
        .zip(stages);
    for (((stage, table), planned), compared) in parts {
        let (Some(root), Some(table), Compared::Changes(since, _)) =
            (&stage.query.root, table, compared)
        else {
            return Ok(Vec::new());
        };
        let stored = table.dataset.count_rows(None).await? as f64;
        let sources = cost_of(planned, since, &rows_of_stages, &estimates);
        estimates.push(estimate(root, &sources, stored));
        rows_of_stages.push(stored);
    }
    let stored = view.dataset.count_rows(None).await? as f64;
    let sources = cost_of(&planned.own, of_view, &rows_of_stages, &estimates);
    estimates.push(estimate(root, &sources, stored));
    Ok(estimates)
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
