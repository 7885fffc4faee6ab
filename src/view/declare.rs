//! What a query would be as a materialized view.

use std::collections::BTreeSet;
use std::sync::Arc;

use datafusion::arrow::datatypes::Schema;
use datafusion::common::DFSchema;
use datafusion::execution::SessionState;
use datafusion::logical_expr::{EmptyRelation, LogicalPlan};

use super::options::ViewOptions;
use super::query::Query;
use crate::Result;
use crate::database::Database;
use crate::database::materialized_view::ViewDefinition;
use crate::database::view::Reading;
use crate::function::functions_called;

/// How the query of a view is maintained.
#[derive(Debug)]
pub struct Maintenance {
    /// The columns of the table that holds its rows, hidden ones too.
    pub schema: Schema,
    /// The classes of its operators, from the top down; empty if it can only be computed in full.
    pub classes: Vec<&'static str>,
    /// The reason code if it can only be computed in full; empty otherwise.
    pub obstacle: String,
    /// Tables and the columns that it reads of them, in the order of the query.
    pub sources: Vec<(String, Vec<String>)>,
    /// Functions of users that it calls.
    pub functions: BTreeSet<String>,
}

/// Plans the query of a definition.
///
/// # Errors
///
/// If it can't be planned, or reads what has no versions.
pub async fn maintenance(state: &SessionState, definition: &ViewDefinition) -> Result<Maintenance> {
    // It may be declared over views that have no rows yet.
    let reading = Reading {
        unpopulated: true,
        ..definition.reading()
    };
    let query = Query::plan(state, definition, reading).await?;
    let options = ViewOptions::of(definition)?;
    let schema = query.schema();
    let empty = LogicalPlan::EmptyRelation(EmptyRelation {
        produce_one_row: false,
        schema: Arc::new(DFSchema::try_from(schema.clone())?),
    });
    options.ordered(&definition.session(state)?, empty, &[])?;
    let sources = query.tables().map(|(source, _)| source);
    Ok(Maintenance {
        schema,
        classes: query.classes(),
        sources: sources
            .map(|source| (source.table.clone(), source.columns.clone()))
            .collect(),
        functions: functions_called(&query.plan)?,
        obstacle: query.obstacle,
    })
}

/// Names of the tables that a definition reads, directly or through views.
pub async fn tables_read(
    database: &Database,
    definition: &ViewDefinition,
) -> Result<BTreeSet<String>> {
    let mut tables = BTreeSet::new();
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let mut next: Vec<String> = definition.reads.iter().cloned().collect();
    while let Some(name) = next.pop() {
        if !seen.insert(name.clone()) {
            continue;
        }
        match database.view(&name).await? {
            Some(view) => next.extend(view.reads),
            None => {
                tables.insert(name);
            }
        }
    }
    Ok(tables)
}
