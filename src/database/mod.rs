//! The database: its catalog and tables, definitions in Lance metadata, system tables.
//!
//! A table is opened at its newest version for every statement, so what others
//! committed, and tables that others made, are seen by the next one.

pub mod blob;
mod catalog;
pub mod definition;
pub mod expression;
mod files;
pub mod materialized_view;
pub mod name;
pub mod system;
mod table;
pub mod view;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock, RwLock};

use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::{SchemaProvider, TableProvider};
use datafusion::execution::SessionState;
use lance::Dataset;

pub use catalog::{CATALOG_NAME, DatabaseCatalog, SCHEMA_NAME, is_object_name};
pub use table::LanceTable;

use crate::storage::Root;
use crate::storage::tag::tag_version;
use crate::{Error, ErrorKind, Result};
use definition::{Definitions, shown_columns};
use name::Version;

/// Gives the state that a session has now; `None` once the session is gone.
pub type StateSource = Box<dyn Fn() -> Option<SessionState> + Send + Sync>;

/// A database that is open.
pub struct Database {
    shared: Arc<Shared>,
    /// Tables that live only as long as the session: external tables, frames that were registered.
    session_tables: RwLock<HashMap<String, Arc<dyn TableProvider>>>,
}

/// What all sessions on a database share.
struct Shared {
    root: Root,
    /// Names as of the last listing, for callers that can't wait.
    known_names: RwLock<Vec<String>>,
    state: OnceLock<StateSource>,
    /// Where names are looked up that are not of the database: files by path.
    files: OnceLock<Arc<dyn SchemaProvider>>,
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database")
            .field("root", self.root())
            .finish_non_exhaustive()
    }
}

/// A table at one version, with its definitions.
#[derive(Debug, Clone)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// The table at a version.
    pub dataset: Arc<Dataset>,
    /// Its computed columns.
    pub definitions: Definitions,
}

impl Database {
    /// A database over `root`. [`attach`](Self::attach) completes it.
    pub fn new(root: Root) -> Self {
        Self {
            shared: Arc::new(Shared {
                root,
                known_names: RwLock::default(),
                state: OnceLock::new(),
                files: OnceLock::new(),
            }),
            session_tables: RwLock::default(),
        }
    }

    /// The same database for another session, which has tables of its own. Views and virtual columns are
    /// planned by the first session.
    pub(crate) fn for_session(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            session_tables: RwLock::default(),
        }
    }

    /// Gives the database the session that plans its views and virtual columns, and the schema in which
    /// other names are looked up. Only the first call counts.
    pub fn attach(&self, state: StateSource, files: Arc<dyn SchemaProvider>) {
        let _ = self.shared.state.set(state);
        let _ = self.shared.files.set(files);
    }

    /// Where the database is.
    pub fn root(&self) -> &Root {
        &self.shared.root
    }

    /// The session's state as it is now.
    pub fn session_state(&self) -> Result<SessionState> {
        self.shared
            .state
            .get()
            .and_then(|source| source())
            .ok_or_else(|| Error::internal("the session of this database is gone"))
    }

    /// Opens a table at its newest version.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`], with the nearest name, if there is none.
    pub async fn table(&self, name: &str) -> Result<Table> {
        self.table_at(name, None).await
    }

    /// Opens a table at `version`, or at its newest.
    pub async fn table_at(&self, name: &str, version: Option<u64>) -> Result<Table> {
        let dataset = match self.root().open_table(name, version).await {
            Ok(dataset) => dataset,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if version.is_some() && self.root().has_table(name).await? {
                    return Err(self.no_such_version(name, version).await);
                }
                if self.view(name).await?.is_some() {
                    return Err(Error::invalid(format!("'{name}' is a view, not a table")));
                }
                let known = self.object_names().await?;
                return Err(Error::not_found(
                    "table",
                    name,
                    known.iter().map(String::as_str),
                ));
            }
            Err(error) => return Err(error),
        };
        let schema = Schema::from(dataset.schema());
        let definitions = Definitions::read(&schema);
        Ok(Table {
            name: name.to_string(),
            dataset: Arc::new(dataset),
            definitions,
        })
    }

    /// Opens a table at the version that `version` says.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no such table, version or tag.
    pub async fn table_version(&self, name: &str, version: &Version) -> Result<Table> {
        match version {
            Version::Number(number) => self.table_at(name, Some(*number)).await,
            Version::Tag(tag) => {
                let newest = self.table(name).await?;
                let number = tag_version(name, &newest.dataset, tag).await?;
                self.table_at(name, Some(number)).await
            }
        }
    }

    async fn no_such_version(&self, name: &str, version: Option<u64>) -> Error {
        let error = Error::new(
            ErrorKind::NotFound,
            format!(
                "table '{name}' has no version {}",
                version.unwrap_or_default()
            ),
        );
        match self.root().open_table(name, None).await {
            Ok(newest) => error.with_hint(format!(
                "the newest is {}; SHOW VERSIONS FROM {name} lists them",
                newest.version().version
            )),
            Err(_) => error,
        }
    }

    /// Names of all tables and views, sorted.
    pub async fn object_names(&self) -> Result<Vec<String>> {
        let mut names = self.root().table_names().await?;
        names.extend(self.view_names().await?);
        names.sort();
        names.dedup();
        let known = &self.shared.known_names;
        *known.write().unwrap_or_else(|e| e.into_inner()) = names.clone();
        Ok(names)
    }
}

impl Table {
    /// The stored columns, hidden ones too, with their metadata.
    pub fn stored_schema(&self) -> SchemaRef {
        Arc::new(Schema::from(self.dataset.schema()))
    }

    /// The stored columns that users see, with their metadata.
    pub fn shown_schema(&self) -> SchemaRef {
        Arc::new(shown_columns(&self.stored_schema()))
    }

    /// The version.
    pub fn version(&self) -> u64 {
        self.dataset.version().version
    }

    /// Names of all columns, stored ones first; hidden ones too, since they take their names.
    pub fn column_names(&self) -> Vec<&str> {
        let stored = self.dataset.schema().fields.iter().map(|f| f.name.as_str());
        let virtuals = self.definitions.virtuals.iter().map(|v| v.name.as_str());
        stored.chain(virtuals).collect()
    }

    /// Fails unless `column` is one of the table's, naming the nearest that is.
    pub fn check_column(&self, column: &str) -> Result<()> {
        if self.column_names().contains(&column) {
            return Ok(());
        }
        Err(Error::not_found("column", column, self.column_names())
            .context(format!("table '{}'", self.name)))
    }

    /// Fails unless rows of the table can be tracked from version to version.
    pub fn check_row_tracking(&self, statement: &str) -> Result<()> {
        if self.dataset.manifest().uses_stable_row_ids() {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "{statement} needs row ids that survive a rewrite, and table '{}' has none",
            self.name
        ))
        .with_hint(format!("ALTER TABLE {} ENABLE ROW TRACKING", self.name)))
    }
}
