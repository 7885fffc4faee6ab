//! A query that was planned for maintenance.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::arrow::datatypes::{Field, Schema};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::datasource::source_as_provider;
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use lance::Dataset;

use super::classify::{Classified, Obstacle, classify, source_of};
use super::operator::Node;
use super::plan::{check_sources, plan_query, unstable_function};
use super::reason::EXPRESSION_NOT_DETERMINISTIC;
use super::relation::hidden_names;
use super::source::{Origin, Source};
use super::stage::Stage;
use crate::Error;
use crate::Result;
use crate::database::LanceTable;
use crate::database::definition::HIDDEN;
use crate::database::expression::stored_type;
use crate::database::materialized_view::ViewDefinition;
use crate::database::view::Reading;

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
    /// Its stages, each behind those that it reads.
    pub(super) stages: Vec<Stage>,
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
        let (classified, obstacle) = match (unstable, classify(&plan)) {
            (_, Err(Obstacle::Refused(error))) => return Err(error),
            (None, Ok(classified)) => (Some(classified), String::new()),
            (None, Err(Obstacle::Full(code))) => (None, code),
            (Some(_), _) => (None, EXPRESSION_NOT_DETERMINISTIC.to_string()),
        };
        let mut datasets = BTreeMap::new();
        let Some(classified) = classified else {
            let mut sources = sources_of(&plan)?;
            one_version_each(&mut sources, &mut datasets);
            return Ok(Self {
                plan,
                root: None,
                obstacle,
                sources,
                names,
                stages: Vec::new(),
            });
        };
        let Classified {
            root,
            mut sources,
            stages: plans,
        } = classified;
        let mut stages: Vec<Stage> = Vec::with_capacity(plans.len());
        for mut stage in plans {
            name_stages(&mut stage.sources, &stages);
            one_version_each(&mut stage.sources, &mut datasets);
            stages.push(Stage::new(&definition.id, stage));
        }
        name_stages(&mut sources, &stages);
        one_version_each(&mut sources, &mut datasets);
        Ok(Self {
            plan,
            root: Some(root),
            obstacle,
            sources,
            names,
            stages,
        })
    }

    /// The tables that it reads: those of its own, and behind them those of its stages.
    pub(super) fn tables(&self) -> impl Iterator<Item = (&Source, &Arc<Dataset>)> {
        let of_stages = self.stages.iter().flat_map(|stage| &stage.query.sources);
        let sources = self.sources.iter().chain(of_stages);
        sources.filter_map(|source| Some((source, source.dataset()?)))
    }

    /// The classes of its operators, from the top down, each once; empty if it can only be computed in full.
    pub(super) fn classes(&self) -> Vec<&'static str> {
        let roots = self
            .root
            .iter()
            .chain(self.stages.iter().rev().flat_map(|stage| &stage.query.root));
        let mut classes: Vec<&str> = Vec::new();
        for class in roots.flat_map(Node::classes) {
            if !classes.contains(&class) {
                classes.push(class);
            }
        }
        classes
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
fn one_version_each(sources: &mut [Source], datasets: &mut BTreeMap<String, Arc<Dataset>>) {
    for source in sources {
        if let Origin::Table(dataset) = &mut source.origin {
            let first = datasets.entry(source.table.clone());
            *dataset = Arc::clone(first.or_insert_with(|| Arc::clone(dataset)));
        }
    }
}

/// Gives sources that are stages the names of their tables.
fn name_stages(sources: &mut [Source], stages: &[Stage]) {
    for source in sources {
        if let Origin::Stage(place) = source.origin
            && let Some(stage) = stages.get(place)
        {
            source.table = stage.table.clone();
        }
    }
}
