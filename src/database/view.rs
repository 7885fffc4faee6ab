//! Views: stored queries, inlined when read.
//!
//! A view is a file `_headwater/views/<name>.json`, written whole or not at all.

use std::collections::BTreeSet;
use std::sync::Arc;

use datafusion::catalog::TableProvider;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::datasource::ViewTable;
use datafusion::logical_expr::LogicalPlan;
use serde::{Deserialize, Serialize};

use super::Database;
use super::name::TableName;
use crate::{Error, ErrorKind, Result};

tokio::task_local! {
    /// Views that are being planned, outermost first: one that reads itself would never end.
    static PLANNING: Vec<String>;
}

/// A stored view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// SQL text of the query, with the names that the catalog understands (see
    /// [`TableName`]).
    pub query: String,
    /// SQL text of the query as users write it.
    pub text: String,
    /// Names of the tables and views of the database that it reads.
    pub reads: BTreeSet<String>,
}

fn path(name: &str) -> String {
    format!("views/{name}.json")
}

impl Database {
    /// The view of that name, if there is one.
    pub async fn view(&self, name: &str) -> Result<Option<View>> {
        let Some(bytes) = self.root().read_own(&path(name)).await? else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            Error::new(
                ErrorKind::Storage,
                format!("the definition of view '{name}' can't be read: {error}"),
            )
        })
    }

    /// Names of all views, sorted.
    pub async fn view_names(&self) -> Result<Vec<String>> {
        let files = self.root().list_own("views").await?;
        Ok(files
            .iter()
            .filter_map(|file| file.strip_suffix(".json"))
            .map(str::to_string)
            .collect())
    }

    /// Stores a view. Returns false, and changes nothing, if one is there and `replace` is not set.
    pub async fn store_view(&self, name: &str, view: &View, replace: bool) -> Result<bool> {
        let text = serde_json::to_string_pretty(view)
            .map_err(|error| Error::internal(format!("a view can't be written: {error}")))?;
        if replace {
            self.root().replace_own(&path(name), text).await?;
            return Ok(true);
        }
        self.root().create_own(&path(name), text).await
    }

    /// Removes a view.
    pub async fn remove_view(&self, name: &str) -> Result<()> {
        self.root().remove_own(&path(name)).await
    }

    /// Plans a view, so that it can be read.
    ///
    /// # Errors
    ///
    /// If it reads itself, or can't be planned any more.
    pub async fn plan_view(&self, name: &str, view: &View) -> Result<Arc<dyn TableProvider>> {
        let mut planning = PLANNING.try_with(Clone::clone).unwrap_or_default();
        if planning.iter().any(|outer| outer == name) {
            planning.push(name.to_string());
            return Err(Error::invalid(format!(
                "view '{name}' reads itself: {}",
                planning.join(" → ")
            )));
        }
        planning.push(name.to_string());
        let state = self.session_state()?;
        let planned = PLANNING
            .scope(planning, async {
                Box::pin(state.create_logical_plan(&view.query)).await
            })
            .await
            .map_err(|error| Error::from(error).context(format!("view '{name}'")))?;
        Ok(Arc::new(ViewTable::new(planned, Some(view.text.clone()))))
    }
}

impl Database {
    /// Names of the views that read `name`, directly or through other views, nearest first.
    pub async fn views_reading(&self, name: &str) -> Result<Vec<String>> {
        let mut views = Vec::new();
        for view in self.view_names().await? {
            if let Some(definition) = self.view(&view).await? {
                views.push((view, definition.reads));
            }
        }
        let mut found: Vec<String> = Vec::new();
        let mut next = vec![name.to_string()];
        while let Some(read) = next.pop() {
            for (view, reads) in &views {
                if reads.contains(&read) && !found.contains(view) {
                    found.push(view.clone());
                    next.push(view.clone());
                }
            }
        }
        Ok(found)
    }

    /// Names of the views that read one of `columns` of `table`.
    pub async fn views_reading_columns(
        &self,
        table: &str,
        columns: &[String],
    ) -> Result<Vec<String>> {
        let state = self.session_state()?;
        let mut found = Vec::new();
        for name in self.views_reading(table).await? {
            let Some(view) = self.view(&name).await? else {
                continue;
            };
            // A view that can't be planned any more has nothing left to lose.
            let Ok(provider) = self.plan_view(&name, &view).await else {
                continue;
            };
            let Some(plan) = provider.get_logical_plan() else {
                continue;
            };
            let Ok(plan) = state.optimize(&plan) else {
                continue;
            };
            if reads_columns(&plan, table, columns)? {
                found.push(name);
            }
        }
        Ok(found)
    }
}

/// Whether an optimized plan scans one of `columns` of `table`.
fn reads_columns(plan: &LogicalPlan, table: &str, columns: &[String]) -> Result<bool> {
    let mut reads = false;
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && TableName::parse(scan.table_name.table()).name == table
        {
            reads |= scan
                .projected_schema
                .fields()
                .iter()
                .any(|field| columns.contains(field.name()));
            reads |= scan
                .filters
                .iter()
                .flat_map(|filter| filter.column_refs())
                .any(|column| columns.contains(&column.name));
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(reads)
}
