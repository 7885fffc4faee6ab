//! Views: stored queries, inlined when read.
//!
//! A view is a file `_headwater/views/<name>.json`, written whole or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use datafusion::arrow::datatypes::{FieldRef, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::datasource::ViewTable;
use datafusion::datasource::empty::EmptyTable;
use serde::{Deserialize, Serialize};

use super::Database;
use super::materialized_view::ViewDefinition;
use super::table::with_row_fields;
use crate::{Error, ErrorKind, Result};

tokio::task_local! {
    /// Views that are being planned, outermost first: one that reads itself would never end.
    static PLANNING: Vec<String>;
    /// A table that is planned with other columns than it has.
    static CHANGED: Changed;
    /// How the query of a materialized view sees what it reads.
    static READING: Arc<Reading>;
}

/// How the query of a materialized view sees the tables that it reads.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// Versions to read; of other tables the newest.
    pub versions: BTreeMap<String, u64>,
    /// The columns that a table had when the query was written: `*` means these, whatever was added since. Of other
    /// tables all.
    pub columns: BTreeMap<String, Vec<String>>,
    /// Whether materialized views may be planned that have no rows yet.
    pub unpopulated: bool,
}

impl Reading {
    /// Plans a query so that it sees tables this way.
    pub async fn scope<F: Future>(self, planning: F) -> F::Output {
        READING.scope(Arc::new(self), planning).await
    }

    /// How the query that is being planned sees tables.
    pub(super) fn current() -> Arc<Self> {
        READING.try_with(Arc::clone).unwrap_or_default()
    }

    /// Whether the query knows a column of a table.
    pub(super) fn knows(&self, table: &str, column: &str) -> bool {
        let known = self.columns.get(table);
        known.is_none_or(|known| known.iter().any(|known| known == column))
    }
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
    /// Names of what an object reads; none if it is a table.
    pub async fn reads_of(&self, name: &str) -> Result<BTreeSet<String>> {
        if let Some(view) = self.view(name).await? {
            return Ok(view.reads);
        }
        let definition = self.materialized_view(name).await?;
        Ok(definition.map(|view| view.reads).unwrap_or_default())
    }

    /// Refuses an object `name` that would read `reads`, if one of these reads it, directly or through others.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`], with the way around.
    pub async fn check_no_circle(
        &self,
        what: &str,
        name: &str,
        reads: &BTreeSet<String>,
    ) -> Result<()> {
        let mut ways: Vec<Vec<String>> = vec![vec![name.to_string()]];
        let mut seen: BTreeSet<String> = BTreeSet::new();
        while let Some(way) = ways.pop() {
            let next = match way.as_slice() {
                [_, .., last] => self.reads_of(last).await?,
                _ => reads.clone(),
            };
            for read in next {
                let mut way = way.clone();
                way.push(read.clone());
                if read == name {
                    return Err(Error::invalid(format!(
                        "{what} '{name}' would read itself: {}",
                        way.join(" → ")
                    )));
                }
                if seen.insert(read) {
                    ways.push(way);
                }
            }
        }
        Ok(())
    }

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

    /// The views that can be planned now, and can't any more once the columns of `table` are those of `schema`;
    /// also the materialized views whose columns would be others then, and what reads these. Readers come behind what they
    /// read.
    pub async fn views_broken_by(&self, table: &str, schema: Schema) -> Result<Vec<Reader>> {
        let changed = Changed {
            table: table.to_string(),
            schema: Arc::new(schema),
        };
        let mut broken: Vec<Reader> = Vec::new();
        for reader in self.readers_of(table).await? {
            let name = &reader.name;
            let is_broken = match reader.is_materialized {
                true => {
                    let Some(definition) = self.materialized_view(name).await? else {
                        continue;
                    };
                    let Ok(now) = self.plan_materialized(&definition).await else {
                        continue;
                    };
                    let then = self.plan_materialized(&definition);
                    let then = CHANGED.scope(changed.clone(), then).await;
                    !then.is_ok_and(|then| then == now)
                }
                false => {
                    let Some(view) = self.view(name).await? else {
                        continue;
                    };
                    if self.plan_view(name, &view).await.is_err() {
                        continue;
                    }
                    let planned = CHANGED.scope(changed.clone(), self.plan_view(name, &view));
                    planned.await.is_err()
                }
            };
            if is_broken && !broken.contains(&reader) {
                broken.push(reader);
            }
        }
        // What reads a materialized view that goes finds nothing there.
        let gone: Vec<Reader> = broken
            .iter()
            .filter(|r| r.is_materialized)
            .cloned()
            .collect();
        for view in gone {
            for reader in self.readers_of(&view.name).await? {
                broken.retain(|other| *other != reader);
                broken.push(reader);
            }
        }
        Ok(broken)
    }

    /// Names and types of the columns that the query of a materialized view gives now.
    async fn plan_materialized(&self, definition: &ViewDefinition) -> Result<Vec<FieldRef>> {
        let state = definition.session(&self.session_state()?)?;
        let reading = Reading {
            unpopulated: true,
            ..definition.reading()
        };
        let plan = reading
            .scope(async { Box::pin(state.create_logical_plan(&definition.query)).await })
            .await?;
        let fields = plan.schema().fields().iter();
        let plain = |field: &FieldRef| {
            let field = field.as_ref().clone();
            Arc::new(field.with_nullable(true).with_metadata(Default::default()))
        };
        Ok(fields.map(plain).collect())
    }

    /// A stand-in for a table whose columns are about to change, while the views that read it are
    /// planned to see whether they still can be.
    pub(super) fn changed_table(
        &self,
        name: &str,
        row_ids: bool,
    ) -> Option<Arc<dyn TableProvider>> {
        let changed = CHANGED.try_with(Clone::clone).ok()?;
        if changed.table != name {
            return None;
        }
        let reading = Reading::current();
        let fields = changed.schema.fields().iter();
        let fields = fields.filter(|field| reading.knows(name, field.name()));
        let schema = Schema::new(fields.cloned().collect::<Vec<_>>());
        Some(Arc::new(EmptyTable::new(with_row_fields(schema, row_ids))))
    }
}
