//! What changed in the sources of a view since the versions that its rows reflect.

use std::sync::Arc;

use lance::Dataset;

use super::query::Query;
use super::reason::{DEFINITION_CHANGED, FIRST_REFRESH, STATE_LOST, TARGET_MODIFIED};
use super::source::{Origin, Source, SourceVersions};
use super::state::{FoundState, SourceState, ViewState};
use crate::database::Database;
use crate::delta::{self, Delta, FieldIdentity, VersionStamp};
use crate::storage::RowSet;
use crate::{Error, Result};

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

/// A source as it is to be read.
pub(super) enum Planned {
    /// A table: its state once it is read, and its version.
    Table(SourceState, Arc<Dataset>),
    /// A stage, as its place among the stages; there is no version yet.
    Stage(usize),
}

impl Planned {
    pub(super) fn table(&self) -> Option<(&SourceState, &Arc<Dataset>)> {
        match self {
            Self::Table(state, dataset) => Some((state, dataset)),
            Self::Stage(_) => None,
        }
    }

    pub(super) fn state(&self) -> Option<&SourceState> {
        Some(self.table()?.0)
    }
}

/// The sources of a query, and of each of its stages.
pub(super) struct Sources {
    pub(super) own: Vec<Planned>,
    pub(super) of_stages: Vec<Vec<Planned>>,
}

impl Sources {
    pub(super) async fn of(query: &Query) -> Result<Self> {
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
pub(super) async fn source_state(source: &Source, dataset: &Dataset) -> Result<SourceState> {
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

/// All rows of a version.
pub(super) fn everything(dataset: &Arc<Dataset>) -> SourceVersions {
    SourceVersions {
        old: None,
        new: Arc::clone(dataset),
        removed: Arc::default(),
        added: Arc::default(),
    }
}

/// What changed since a state.
pub(super) enum Compared {
    /// Rows of the sources, in their order, and what to say of the tables among them.
    Changes(Vec<Since>, Vec<SourceChange>),
    /// All has to be computed, for this reason code.
    Full(String),
}

/// What changed in a source since a state.
pub(super) enum Since {
    /// The versions of a table.
    Table(SourceVersions),
    /// The version of a stage that the rows reflect.
    Stage(VersionStamp),
}

/// What changed in the sources of a query since `found`.
pub(super) async fn compare(
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
pub(super) async fn compare_below(
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
pub(super) enum Between {
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

pub(super) async fn between(
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
