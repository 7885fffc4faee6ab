//! What a refresh of a view has to do, and why.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use datafusion::arrow::datatypes::{Field, Schema};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::datasource::source_as_provider;
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use lance::Dataset;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::classify::{Classified, Obstacle, classify, source_of};
use super::operator::Node;
use super::options::{RefreshMode, ViewOptions};
use super::plan::{check_sources, plan_query, unstable_function};
use super::relation::hidden_names;
use super::source::{Source, SourceVersions};
use super::state::{FoundState, SourceState, ViewState, find_state};
use crate::database::definition::HIDDEN;
use crate::database::expression::stored_type;
use crate::database::materialized_view::ViewDefinition;
use crate::database::view::Reading;
use crate::database::{Database, LanceTable, Table};
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

/// A query that was planned for maintenance.
#[derive(Debug)]
pub(super) struct Query {
    /// Its plan.
    pub(super) plan: LogicalPlan,
    /// Its operators; `None` if it can only be computed in full.
    pub(super) root: Option<Node>,
    /// The reason code if it can only be computed in full; empty otherwise.
    pub(super) obstacle: String,
    /// What it reads, each table at one version.
    pub(super) sources: Vec<Source>,
    /// Names of its columns.
    pub(super) names: Vec<String>,
}

impl Query {
    /// Plans the query of a definition, which sees its sources as `reading` says.
    pub(super) async fn plan(
        state: &SessionState,
        definition: &ViewDefinition,
        reading: Reading,
    ) -> Result<Self> {
        let state = definition.session(state)?;
        let plan = reading.scope(plan_query(&state, definition)).await?;
        check_sources(&plan)?;
        let names = names(&plan, &definition.columns)?;
        let unstable = unstable_function(&plan)?;
        let (root, obstacle, mut sources) = match (unstable, classify(&plan)) {
            (_, Err(Obstacle::Refused(error))) => return Err(error),
            (None, Ok(Classified { root, sources })) => (Some(root), String::new(), sources),
            (None, Err(Obstacle::Full(code))) => (None, code, sources_of(&plan)?),
            (Some(_), _) => (
                None,
                EXPRESSION_NOT_DETERMINISTIC.to_string(),
                sources_of(&plan)?,
            ),
        };
        one_version_each(&mut sources);
        Ok(Self {
            plan,
            root,
            obstacle,
            sources,
            names,
        })
    }

    /// The columns of the table that holds its rows: its own, and the key behind them.
    pub(super) fn schema(&self) -> Schema {
        let shown = self.plan.schema().fields().iter().zip(&self.names);
        let mut fields: Vec<Field> = shown
            .map(|(field, name)| Field::new(name, stored_type(field.data_type()), true))
            .collect();
        let keys = self.root.as_ref().map_or(&[][..], |root| &root.keys);
        for (name, key) in hidden_names(keys).into_iter().zip(keys) {
            let hidden = BTreeMap::from([(HIDDEN.to_string(), "true".to_string())]);
            let field = Field::new(name, stored_type(&key.data_type), true);
            fields.push(field.with_metadata(hidden.into_iter().collect()));
        }
        Schema::new(fields)
    }
}

fn names(plan: &LogicalPlan, given: &[String]) -> Result<Vec<String>> {
    let fields = plan.schema().fields();
    if !given.is_empty() && given.len() != fields.len() {
        return Err(Error::invalid(format!(
            "the query has {} columns, but {} names are given",
            fields.len(),
            given.len()
        )));
    }
    let names: Vec<String> = match given.is_empty() {
        true => fields.iter().map(|field| field.name().clone()).collect(),
        false => given.to_vec(),
    };
    for (place, name) in names.iter().enumerate() {
        if names[..place].contains(name) {
            return Err(Error::invalid(format!("two columns are named '{name}'"))
                .with_hint("give one of them another name with AS"));
        }
    }
    Ok(names)
}

fn sources_of(plan: &LogicalPlan) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            let provider = source_as_provider(&scan.source)?;
            if let Some(table) = provider.downcast_ref::<LanceTable>() {
                sources.push(source_of(scan, table));
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(sources)
}

/// A table that stands in a query twice is read at one version, though others may have committed while it was planned.
fn one_version_each(sources: &mut [Source]) {
    let mut datasets: BTreeMap<String, Arc<Dataset>> = BTreeMap::new();
    for source in sources {
        let dataset = datasets
            .entry(source.table.clone())
            .or_insert_with(|| Arc::clone(&source.dataset));
        source.dataset = Arc::clone(dataset);
    }
}

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
    /// The query.
    pub(super) query: Query,
    /// `none`, `incremental` or `full`.
    pub(super) mode: &'static str,
    /// The reason code of a full refresh; empty otherwise.
    pub(super) reason: String,
    /// What changed, in the order of the query's sources.
    pub(super) changes: Vec<SourceChange>,
    /// The versions to read.
    pub(super) versions: Vec<SourceVersions>,
    /// The state once it is done.
    pub(super) state: ViewState,
}

/// Finds out what a refresh of `view` has to do.
pub(super) async fn assess(
    database: &Database,
    session: &SessionState,
    view: &Table,
    definition: &ViewDefinition,
    wanted: &Wanted,
) -> Result<Assessment> {
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
    let mut sources = Vec::with_capacity(query.sources.len());
    for source in &query.sources {
        let columns = source.columns.iter().map(|column| {
            FieldIdentity::of(&source.dataset, column).ok_or_else(|| {
                Error::internal(format!("column '{column}' of '{}' is gone", source.table))
            })
        });
        sources.push(SourceState {
            table: source.table.clone(),
            version: VersionStamp::of(&source.dataset).await?,
            columns: columns.collect::<Result<_>>()?,
        });
    }
    let found = find_state(&view.name, &view.dataset).await?;
    let digest = digest(database, definition).await?;
    let compared = compare(database, &digest, &query, &sources, found).await?;
    let (versions, changes, reason) = match compared {
        Compared::Changes(versions, changes) => (versions, changes, String::new()),
        Compared::Full(reason) => {
            let (versions, changes) = whole(&query);
            (versions, changes, reason)
        }
    };
    let is_same = reason.is_empty()
        && versions
            .iter()
            .all(|source| source.removed.is_empty() && source.added.is_empty());
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
    let (versions, changes) = match mode {
        "full" => whole(&query),
        _ => (versions, changes),
    };
    let state = ViewState {
        definition: digest,
        sources,
        mode: mode.to_string(),
        reason: reason.clone(),
    };
    Ok(Assessment {
        query,
        mode,
        reason,
        changes,
        versions,
        state,
    })
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

fn whole(query: &Query) -> (Vec<SourceVersions>, Vec<SourceChange>) {
    let versions = query.sources.iter().map(|source| SourceVersions {
        old: None,
        new: Arc::clone(&source.dataset),
        removed: Arc::default(),
        added: Arc::default(),
    });
    let changes = query.sources.iter().map(|source| SourceChange {
        table: source.table.clone(),
        from: None,
        to: source.dataset.version().version,
        rows: None,
        commits: 0,
    });
    (versions.collect(), changes.collect())
}

enum Compared {
    Changes(Vec<SourceVersions>, Vec<SourceChange>),
    Full(String),
}

async fn compare(
    database: &Database,
    digest: &str,
    query: &Query,
    sources: &[SourceState],
    found: FoundState,
) -> Result<Compared> {
    let full = |reason: &str| Ok(Compared::Full(reason.to_string()));
    let state = match found {
        FoundState::Never => return full(FIRST_REFRESH),
        FoundState::Lost => return full(STATE_LOST),
        FoundState::Modified => return full(TARGET_MODIFIED),
        FoundState::State(state) => state,
    };
    let same_tables = state.sources.len() == sources.len()
        && state
            .sources
            .iter()
            .zip(sources)
            .all(|(then, now)| then.table == now.table);
    if state.definition != digest || !same_tables {
        return full(DEFINITION_CHANGED);
    }
    let (mut versions, mut changes) = (Vec::new(), Vec::new());
    for ((then, now), source) in state.sources.iter().zip(sources).zip(&query.sources) {
        let is_same = |then: &FieldIdentity, now: &FieldIdentity| {
            (then.id, &then.data_type) == (now.id, &now.data_type)
        };
        let same_columns = then.columns.len() == now.columns.len()
            && then
                .columns
                .iter()
                .all(|then| now.columns.iter().any(|now| is_same(then, now)));
        if !same_columns {
            return full(delta::FullReason::InputReplaced.code());
        }
        let from = then.version.version;
        let found = match delta::changes(&source.dataset, &then.version, &now.columns).await? {
            Delta::Everything(reason) => return full(reason.code()),
            Delta::Rows(found) => found,
        };
        let old = match database.table_at(&source.table, Some(from)).await {
            Ok(table) => table.dataset,
            Err(_) => return full(delta::FullReason::SourceVersionGone.code()),
        };
        let rows = [&found.inserted, &found.updated, &found.deleted].map(RowSet::len);
        let removed = found.updated.clone().union(&found.deleted);
        let added = found.updated.union(&found.inserted);
        changes.push(SourceChange {
            table: source.table.clone(),
            from: Some(from),
            to: now.version.version,
            rows: Some(rows),
            commits: found.commits,
        });
        versions.push(SourceVersions {
            old: Some(old),
            new: Arc::clone(&source.dataset),
            removed: Arc::new(removed),
            added: Arc::new(added),
        });
    }
    Ok(Compared::Changes(versions, changes))
}

/// Refuses to refresh a view whose table can't hold what its query gives now. The columns of tables are fixed in the
/// definition; but a view that it reads may have been replaced.
fn check_columns(view: &Table, query: &Query) -> Result<()> {
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
