//! Views: stored queries, inlined when read.
//!
//! A view is a file `_headwater/views/<name>.json`, written whole or not at all.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::datasource::ViewTable;
use datafusion::datasource::empty::EmptyTable;
use serde::{Deserialize, Serialize};

use super::Database;
use crate::{Error, ErrorKind, Result};

tokio::task_local! {
    /// Views that are being planned, outermost first: one that reads itself would never end.
    static PLANNING: Vec<String>;
    /// A table that is planned with other columns than it has.
    static CHANGED: Changed;
}

#[derive(Debug, Clone)]
struct Changed {
    table: String,
    schema: SchemaRef,
}

/// A stored view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// SQL text of the query, with the names that the catalog understands (see
    /// [`TableName`](super::name::TableName)).
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

/// A view that reads an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reader {
    /// Its name.
    pub name: String,
    /// Whether it is a materialized view.
    pub is_materialized: bool,
}

impl fmt::Display for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_materialized {
            true => write!(f, "materialized view '{}'", self.name),
            false => write!(f, "view '{}'", self.name),
        }
    }
}

impl Database {
    /// The views that read `name`, directly or through others, nearest first.
    pub async fn readers_of(&self, name: &str) -> Result<Vec<Reader>> {
        let mut readers = Vec::new();
        for view in self.view_names().await? {
            if let Some(definition) = self.view(&view).await? {
                readers.push((view, false, definition.reads));
            }
        }
        for view in self.materialized_view_names().await? {
            if let Some(definition) = self.materialized_view(&view).await? {
                readers.push((view, true, definition.reads));
            }
        }
        let mut found: Vec<Reader> = Vec::new();
        let mut next = vec![name.to_string()];
        while !next.is_empty() {
            let mut further = Vec::new();
            for (view, is_materialized, reads) in &readers {
                let is_found = found.iter().any(|reader| reader.name == *view);
                if !is_found && next.iter().any(|read| reads.contains(read)) {
                    found.push(Reader {
                        name: view.clone(),
                        is_materialized: *is_materialized,
                    });
                    further.push(view.clone());
                }
            }
            next = further;
        }
        Ok(found)
    }

    /// Names of the views that can be planned now, and can't any more once the columns of `table` are
    /// those of `schema`.
    pub async fn views_broken_by(&self, table: &str, schema: Schema) -> Result<Vec<String>> {
        let mut broken = Vec::new();
        let changed = Changed {
            table: table.to_string(),
            schema: Arc::new(schema),
        };
        for Reader { name, .. } in self.readers_of(table).await? {
            let Some(view) = self.view(&name).await? else {
                continue;
            };
            if self.plan_view(&name, &view).await.is_err() {
                continue;
            }
            let planned = CHANGED.scope(changed.clone(), self.plan_view(&name, &view));
            if planned.await.is_err() {
                broken.push(name);
            }
        }
        Ok(broken)
    }

    /// A stand-in for a table whose columns are about to change, while the views that read it are
    /// planned to see whether they still can be.
    pub(super) fn changed_table(&self, name: &str) -> Option<Arc<dyn TableProvider>> {
        CHANGED
            .try_with(|changed| (changed.table == name).then(|| Arc::clone(&changed.schema)))
            .ok()
            .flatten()
            .map(|schema| Arc::new(EmptyTable::new(schema)) as _)
    }
}
