//! Function calls that are paid for: those of functions of the user's own. Their results are not computed twice for a
//! row whose arguments have not changed.
//!
//! In the last projection of a by-row query, a column that calls such a function keeps its stored value in a row that was
//! there before, if what it reads of the sources is the same at both versions. What is called is computed by a node of
//! its own ([`super::calls`]), which keeps results of a refresh that ends early.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, JoinType, NullEquality};
use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::{
    Expr, ExprSchemable, Join, JoinConstraint, LogicalPlan, LogicalPlanBuilder, cast, lit,
};
use lance::Dataset;

use super::assess::{Complete, Scope};
use super::calls::evaluate::Evaluator;
use super::calls::remote::{self, Remote};
use super::calls::{CallExec, CallLayout, CallTable, Calls, Value, key_name, value_name};
use super::checkpoint::{Checkpoints, Staged};
use super::failed::{self, FailedKeys};
use super::operator::Node;
use super::pass::Pass;
use super::progress::physical_plan;
use super::query::Query;
use super::refresh::ViewRefresh;
use super::relation::{KeyColumn, Side, hidden_names, key_columns, project};
use crate::column::work::{self, Pace};
use crate::delta::{self, Delta, FieldIdentity, VersionStamp};
use crate::function::has_call;
use crate::job::admission::InFlight;
use crate::job::driver::Driver;
use crate::job::environment::Environment;
use crate::storage::RowSet;
use crate::storage::keys::in_rows;
use crate::{Error, Result};

/// A column of the last projection that calls functions, row by row.
#[derive(Debug, Clone)]
pub(super) struct PaidColumn {
    /// Its name in the view.
    pub(super) name: String,
    /// Its place in the projection.
    pub(super) place: usize,
    /// Its type in plans.
    pub(super) data_type: DataType,
    /// Its expression, for people.
    pub(super) text: String,
    /// What its value depends on.
    pub(super) reads: Vec<Read>,
}

/// Columns of a source that a value depends on.
#[derive(Debug, Clone)]
pub(super) struct Read {
    /// The place of the source in the query.
    pub(super) source: usize,
    /// The place of its row ids in the key.
    pub(super) key: usize,
    /// The columns.
    pub(super) columns: BTreeSet<String>,
}

/// The columns of a query that call functions for single rows: those in the last projection, if it is by row.
pub(super) fn paid_columns(root: &Node, query: &Query) -> Result<Vec<PaidColumn>> {
    let Some((input, values)) = root.projection().filter(|_| root.is_by_row()) else {
        return Ok(Vec::new());
    };
    let mut columns = Vec::new();
    for (place, value) in values.iter().enumerate() {
        // Without arguments of the row it is one call.
        if !has_call(value) || value.column_refs().is_empty() {
            continue;
        }
        // If that can't be told: all that the query reads.
        let read = sources_read(input, value).unwrap_or_else(|| {
            let sources = query.sources.iter().enumerate();
            let sources = sources.map(|(s, source)| (s, source.columns.iter().cloned().collect()));
            sources.collect()
        });
        let reads = read.into_iter().filter_map(|(source, columns)| {
            let key = root
                .keys
                .iter()
                .position(|key| key.source == Some(source))?;
            Some(Read {
                source,
                key,
                columns,
            })
        });
        let name = query.names.get(place);
        columns.push(PaidColumn {
            name: name.cloned().ok_or_else(no_name)?,
            place,
            data_type: value.get_type(&input.schema)?,
            text: value.clone().unalias().to_string(),
            reads: reads.collect(),
        });
    }
    Ok(columns)
}

fn no_name() -> Error {
    Error::internal("a column has no name")
}

/// The columns of sources that `value`, which is computed from the output of `input`, depends on.
fn sources_read(input: &Node, value: &Expr) -> Option<BTreeMap<usize, BTreeSet<String>>> {
    let mut read: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
    for column in value.column_refs() {
        for (source, column) in input.origins(column)? {
            read.entry(source).or_default().insert(column);
        }
    }
    Some(read)
}

/// Prepares the calls for the rows of a view, or of a stage; `None` if its query has no column that calls functions row by row.
pub(super) async fn prepare(
    environment: &Environment,
    request: &ViewRefresh,
    driver: &Driver,
    part: &Complete,
) -> Result<Option<Arc<Calls>>> {
    let database = &environment.database;
    let query = &part.query;
    let Some(root) = &query.root else {
        return Ok(None);
    };
    let columns = paid_columns(root, query)?;
    if columns.is_empty() {
        return Ok(None);
    }
    let state = (&*part.state.definition, &*part.state.sources);
    let types: Vec<DataType> = root.keys.iter().map(|key| key.data_type.clone()).collect();
    // FULL computes what is there already, but not what this very job has computed before it was interrupted.
    let only = (request.scope == Scope::Full).then_some(driver.id());
    let (view, versions) = (&request.view, &part.versions);
    let staged = Staged::find(database, view, state, (&types, &columns), versions, only).await?;
    let failed_before = match part.mode {
        "full" => columns.iter().map(|_| FailedKeys::default()).collect(),
        _ => failed::read(database, &part.failed, &columns, &types).await?,
    };
    let counters = driver.counters();
    let cluster = environment.cluster();
    let evaluation = match cluster {
        Some(_) => remote::EVALUATION,
        None => work::EVALUATION,
    };
    let settings = (
        request.checkpoint_interval,
        evaluation,
        Arc::clone(counters),
    );
    let checkpoints = Checkpoints::new(
        Arc::clone(database),
        view,
        driver.id(),
        state,
        &columns,
        settings,
    );
    let table = |key: &KeyColumn| {
        let source = query.sources.get(key.source?)?;
        // What a stage is called says nothing to anyone.
        source.dataset().map(|_| source.table.clone())
    };
    let keys = root.keys.iter().map(table);
    let failed_now = columns.iter().map(|_| FailedKeys::default()).collect();
    let slots = match &cluster {
        Some(cluster) => cluster.slots(request.placement.pool.as_deref()).await?,
        None => environment.state.config().target_partitions(),
    };
    let remote = cluster.map(|cluster| Remote {
        cluster,
        purpose: request.placement.purpose(driver.id()),
    });
    Ok(Some(Arc::new(Calls {
        view: view.clone(),
        keys: types.into_iter().zip(keys).collect(),
        job: driver.id().to_string(),
        signal: driver.signal().clone(),
        counters: Arc::clone(counters),
        ledger: driver.ledger().clone(),
        pace: Pace::of(checkpoints.evaluation()),
        remote,
        in_flight: InFlight::new(request.concurrency, slots),
        checkpoints,
        staged,
        on_error: request.on_error,
        failed_before,
        failed_only: request.scope == Scope::FailedOnly,
        failed_now: Mutex::new(failed_now),
        columns,
    })))
}

/// The new or added rows of the last operator, with `calls` made by their node. `stored` gives the rows of the view that may
/// change, if there are any: paid columns keep their values from there where these are still right.
pub(super) async fn rows(
    pass: &Pass,
    root: &Node,
    side: Side,
    stored: Option<LogicalPlan>,
    calls: Option<&Arc<Calls>>,
) -> Result<Option<LogicalPlan>> {
    let (Some((input, values)), Some(calls)) = (root.projection(), calls) else {
        return root.stream(pass, side).await;
    };
    let Some(rows) = input.relation(pass, side).await? else {
        return Ok(None);
    };
    let mut kept: BTreeMap<usize, Expr> = BTreeMap::new();
    if stored.is_some() {
        for (at, column) in calls.columns.iter().enumerate() {
            let unchanged = match calls.failed_only {
                true => Some(lit(true)),
                false => unchanged(pass, input, &values[column.place]).await?,
            };
            kept.extend(unchanged.map(|unchanged| (at, unchanged)));
        }
    }
    let rows = match stored.filter(|_| !kept.is_empty()) {
        Some(stored) => with_old_values(rows, &root.keys, stored, calls, kept.keys().copied())?,
        None => rows,
    };
    let (plan, layout) = layout(pass, root, values, rows, kept, calls)?;
    let plan = physical_plan(pass, &plan).await?;
    let node = CallExec::new(plan, Arc::clone(calls), Arc::new(layout));
    let source = provider_as_source(Arc::new(CallTable(Arc::new(node))));
    let plan = LogicalPlanBuilder::scan("__calls", source, None)?.build()?;
    let computed = |name: String| Expr::Column(Column::new(Some("__calls"), name));
    let shown = root.schema.iter().enumerate();
    let mut all: Vec<Expr> = shown
        .map(|(place, (qualifier, field))| {
            computed(value_name(place)).alias_qualified(qualifier.cloned(), field.name())
        })
        .collect();
    let keys = root.keys.iter().enumerate();
    all.extend(keys.map(|(place, key)| computed(key_name(place)).alias(&key.name)));
    Ok(Some(project(plan, all)?))
}

/// What the node that calls reads, from `rows`, and where it finds things in it.
fn layout(
    pass: &Pass,
    root: &Node,
    values: &[Expr],
    rows: LogicalPlan,
    mut kept: BTreeMap<usize, Expr>,
    calls: &Calls,
) -> Result<(LogicalPlan, CallLayout)> {
    let mut all: Vec<Expr> = Vec::new();
    let mut given = |value: Expr| {
        let name = format!("__given_{}", all.len());
        all.push(value.alias(name));
        all.len() - 1
    };
    let mut shown = Vec::with_capacity(values.len());
    for (place, value) in values.iter().enumerate() {
        let called = calls
            .columns
            .iter()
            .position(|column| column.place == place);
        shown.push(match called {
            Some(at) => Value::Called(at),
            None => Value::Given(given(value.clone().unalias())),
        });
    }
    let keys = key_columns(&root.keys)
        .into_iter()
        .map(&mut given)
        .collect();
    let mut places = Vec::with_capacity(calls.columns.len());
    for (at, column) in calls.columns.iter().enumerate() {
        let old = Expr::Column(Column::new_unqualified(old_value(at)));
        places.push(kept.remove(&at).map(|unchanged| {
            let there = Expr::Column(Column::new_unqualified(old_key(0))).is_not_null();
            let old = cast(old, column.data_type.clone());
            (given(there.and(unchanged)), given(old))
        }));
    }
    let mut read: Vec<Column> = Vec::new();
    let mut expressions = Vec::with_capacity(calls.columns.len());
    for column in &calls.columns {
        let value = values[column.place].clone().unalias();
        let value = value.transform(|node| {
            Ok(match node {
                Expr::Column(column) => {
                    let known = read.iter().position(|known| *known == column);
                    let at = known.unwrap_or_else(|| {
                        read.push(column);
                        read.len() - 1
                    });
                    Transformed::yes(Expr::Column(Column::new_unqualified(input_name(at))))
                }
                node => Transformed::no(node),
            })
        })?;
        expressions.push(value.data);
    }
    let mut fields = Vec::with_capacity(read.len());
    for (at, column) in read.iter().enumerate() {
        let data_type = Expr::Column(column.clone()).get_type(rows.schema())?;
        fields.push(Field::new(input_name(at), data_type, true));
    }
    let inputs = read.into_iter().map(|column| given(Expr::Column(column)));
    let layout = CallLayout {
        inputs: inputs.collect(),
        values: shown,
        keys,
        kept: places,
        evaluator: Evaluator::new(
            pass.state.clone(),
            Arc::new(DFSchema::try_from(Schema::new(fields))?),
            expressions,
            calls.columns.iter().map(|c| c.data_type.clone()).collect(),
            Arc::clone(calls.counters.meter()),
        ),
    };
    Ok((project(rows, all)?, layout))
}

fn input_name(place: usize) -> String {
    format!("__input_{place}")
}

fn old_key(place: usize) -> String {
    format!("__old_key_{place}")
}

fn old_value(place: usize) -> String {
    format!("__old_value_{place}")
}

/// `rows` with the keys of stored rows that have the same, NULL if there are none, and their values of some of the columns that
/// call functions. All under names of their own.
fn with_old_values(
    rows: LogicalPlan,
    keys: &[KeyColumn],
    stored: LogicalPlan,
    calls: &Calls,
    places: impl Iterator<Item = usize>,
) -> Result<LogicalPlan> {
    let qualifier = stored.schema().qualified_field(0).0.cloned();
    let column = |name: &str| Expr::Column(Column::new(qualifier.clone(), name));
    let hidden = hidden_names(keys).into_iter().enumerate();
    let mut all: Vec<Expr> = hidden
        .map(|(place, name)| column(&name).alias(old_key(place)))
        .collect();
    all.extend(places.map(|at| column(&calls.columns[at].name).alias(old_value(at))));
    let old = project(stored, all)?;
    let on = keys.iter().enumerate().map(|(place, key)| {
        let old = Expr::Column(Column::new_unqualified(old_key(place)));
        (key.column(), old)
    });
    Ok(LogicalPlan::Join(Join::try_new(
        Arc::new(rows),
        Arc::new(old),
        on.collect(),
        None,
        JoinType::Left,
        JoinConstraint::On,
        NullEquality::NullEqualsNull,
        false,
    )?))
}

/// Whether what `value` reads is the same in a row as it was, as an expression over the key of `input`; `None` if that
/// can't be told.
async fn unchanged(pass: &Pass, input: &Node, value: &Expr) -> Result<Option<Expr>> {
    let Some(read) = sources_read(input, value) else {
        return Ok(None);
    };
    let mut unchanged: Option<Expr> = None;
    for (source, columns) in read {
        let key = input.keys.iter().find(|key| key.source == Some(source));
        let (Some(key), Some(versions)) = (key, pass.sources.get(source)) else {
            return Ok(None);
        };
        let Some(old) = &versions.old else {
            return Ok(None);
        };
        let since = VersionStamp::of(old).await?;
        let Some(changed) = changed_since(&versions.new, &since, &columns).await? else {
            return Ok(None);
        };
        let same = !in_rows(&Arc::new(changed), key.column());
        unchanged = Some(match unchanged {
            Some(before) => before.and(same),
            None => same,
        });
    }
    Ok(unchanged)
}

/// Ids of the rows of `dataset` whose `columns` are not those that they had at the version `since`; `None` if that
/// can't be told.
pub(super) async fn changed_since(
    dataset: &Dataset,
    since: &VersionStamp,
    columns: &BTreeSet<String>,
) -> Result<Option<RowSet>> {
    let fields = columns.iter();
    let fields = fields.map(|column| FieldIdentity::of(dataset, column));
    let Some(fields) = fields.collect::<Option<Vec<_>>>() else {
        return Ok(None);
    };
    Ok(match delta::changes(dataset, since, &fields).await? {
        Delta::Everything(_) => None,
        Delta::Rows(changes) => {
            // A commit of others does not say what it changed: comparing values is cheaper than a call.
            let unconfirmed = &changes.unconfirmed;
            let confirmed = delta::confirm(dataset, since.version, unconfirmed, &fields).await?;
            let certain = changes.updated.difference(unconfirmed);
            Some(certain.union(&confirmed).union(&changes.inserted))
        }
    })
}
