//! The catalog that DataFusion resolves names in: schema `public` (tables and views of the
//! database, and tables of the session) and schema `system`.

use std::sync::{Arc, PoisonError};

use async_trait::async_trait;
use datafusion::arrow::datatypes::DataType;
use datafusion::catalog::{CatalogProvider, SchemaProvider, TableProvider};
use datafusion::common::Result as DataFusionResult;
use datafusion::datasource::{TableType, ViewTable, provider_as_source};
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, cast, col};

use super::expression::plan_expression;
use super::name::TableName;
use super::system::SystemSchema;
use super::view::Reading;
use super::{Database, LanceTable, Table};
use crate::storage::refused;
use crate::{Error, ErrorKind, Result};

/// The name of the catalog.
pub const CATALOG_NAME: &str = "headwater";
/// The name of the schema that holds the database's tables.
pub const SCHEMA_NAME: &str = "public";
/// The name of the schema that tells about them.
const SYSTEM_SCHEMA_NAME: &str = "system";

/// A database as a catalog.
#[derive(Debug)]
pub struct DatabaseCatalog {
    public: Arc<DatabaseSchema>,
    system: Arc<SystemSchema>,
}

impl DatabaseCatalog {
    /// The catalog of `database`, with the tables of `system`.
    pub fn new(database: Arc<Database>, system: SystemSchema) -> Self {
        Self {
            public: Arc::new(DatabaseSchema { database }),
            system: Arc::new(system),
        }
    }
}

impl CatalogProvider for DatabaseCatalog {
    fn schema_names(&self) -> Vec<String> {
        vec![SCHEMA_NAME.to_string(), SYSTEM_SCHEMA_NAME.to_string()]
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        match name {
            SCHEMA_NAME => Some(Arc::clone(&self.public) as _),
            SYSTEM_SCHEMA_NAME => Some(Arc::clone(&self.system) as _),
            _ => None,
        }
    }
}

/// The schema `public`.
#[derive(Debug)]
struct DatabaseSchema {
    database: Arc<Database>,
}

#[async_trait]
impl SchemaProvider for DatabaseSchema {
    fn table_names(&self) -> Vec<String> {
        self.database.names_now()
    }

    async fn table(&self, name: &str) -> DataFusionResult<Option<Arc<dyn TableProvider>>> {
        Ok(self.database.provider(name).await?)
    }

    async fn table_type(&self, name: &str) -> DataFusionResult<Option<TableType>> {
        // Without planning it: a view that others broke is listed all the same.
        match self.database.session_table(name) {
            Some(table) => Ok(Some(table.table_type())),
            None => Ok(self.database.object_type(name).await?),
        }
    }

    fn register_table(
        &self,
        name: String,
        table: Arc<dyn TableProvider>,
    ) -> DataFusionResult<Option<Arc<dyn TableProvider>>> {
        Ok(self
            .database
            .session_tables
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name, table))
    }

    fn deregister_table(&self, name: &str) -> DataFusionResult<Option<Arc<dyn TableProvider>>> {
        Ok(self
            .database
            .session_tables
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(name))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.database.session_table(name).is_some()
            || self.database.names_now().iter().any(|known| known == name)
    }
}

impl Database {
    /// A table of the session alone.
    pub fn session_table(&self, name: &str) -> Option<Arc<dyn TableProvider>> {
        self.session_tables
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .cloned()
    }

    /// Removes a table of the session; false if there is none.
    pub fn remove_session_table(&self, name: &str) -> bool {
        self.session_tables
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(name)
            .is_some()
    }

    /// Names of the tables of the session alone.
    pub fn session_table_names(&self) -> Vec<String> {
        let tables = self
            .session_tables
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        tables.keys().cloned().collect()
    }

    /// Names as of the last listing, and those of the session.
    fn names_now(&self) -> Vec<String> {
        let mut names = self
            .shared
            .known_names
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        names.extend(self.session_table_names());
        names.sort();
        names.dedup();
        names
    }

    /// What a statement reads when it names `name` (see [`TableName`]); `None` if nothing is there.
    async fn provider(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let wanted = TableName::parse(name);
        if let Some(changed) = self.changed_table(wanted.name, wanted.row_ids) {
            return Ok(Some(changed));
        }
        if let Some(table) = self.session_table(wanted.name) {
            return match wanted.version {
                None => Ok(Some(table)),
                Some(_) => Err(no_versions(wanted.name, "a table of this session only")),
            };
        }
        if !is_object_name(wanted.name) {
            return self.file(wanted.name).await;
        }
        let reading = Reading::current();
        let found = match &wanted.version {
            None => {
                let version = reading.versions.get(wanted.name).copied();
                self.table_at(wanted.name, version).await
            }
            Some(version) => self.table_version(wanted.name, version).await,
        };
        match found {
            Ok(table) => {
                if !reading.unpopulated {
                    table.check_populated().await?;
                }
                return Ok(Some(self.table_provider(&table, wanted.row_ids)?));
            }
            // Another layer may know the name: a view, a file by its path.
            Err(error) if error.kind() == ErrorKind::NotFound && wanted.version.is_some() => {
                return Err(error);
            }
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput) => {
                match self.view(wanted.name).await? {
                    Some(_) if wanted.version.is_some() => {
                        return Err(no_versions(wanted.name, "a view"));
                    }
                    Some(view) => return Ok(Some(self.plan_view(wanted.name, &view).await?)),
                    None if error.kind() == ErrorKind::NotFound => {}
                    None => return Err(error),
                }
            }
            Err(error) => return Err(error),
        }
        self.file(wanted.name).await
    }

    /// A file, or a folder of files, by its path or URL.
    async fn file(&self, path: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        match self.shared.files.get() {
            Some(files) => {
                self.register_store(path).await?;
                let table = files.table(path).await;
                match table.map_err(|error| refused(format!("'{path}'"), error.into()))? {
                    Some(table) => Ok(Some(table)),
                    None => self.store_refusal(path).await.map_or(Ok(None), Err),
                }
            }
            None => Ok(None),
        }
    }

    /// A table as DataFusion reads it: stored columns, virtual ones computed, and the row ids if
    /// the statement speaks of them.
    pub fn table_provider(&self, table: &Table, row_ids: bool) -> Result<Arc<dyn TableProvider>> {
        let reading = Reading::current();
        let stored = LanceTable::new(table.name.clone(), Arc::clone(&table.dataset), row_ids);
        if table.definitions.virtuals.is_empty() {
            let known = stored.with_columns(|column| reading.knows(&table.name, column));
            return Ok(Arc::new(known));
        }
        let stored = Arc::new(stored);
        table
            .definitions
            .check_no_clash(&table.stored_schema())
            .map_err(|error| error.context(format!("table '{}'", table.name)))?;
        let state = self.session_state()?;
        let mut plan =
            LogicalPlanBuilder::scan(table.name.as_str(), provider_as_source(stored), None)?;
        // A virtual column may read others: each round adds those whose inputs are there.
        let mut left: Vec<_> = table.definitions.virtuals.iter().collect();
        while !left.is_empty() {
            let schema = plan.schema().as_arrow().clone();
            let (ready, waiting): (Vec<_>, Vec<_>) = left.into_iter().partition(|column| {
                column
                    .input_names
                    .iter()
                    .all(|input| schema.field_with_name(input).is_ok())
            });
            if let (true, Some(column)) = (ready.is_empty(), waiting.first()) {
                let missing = column
                    .input_names
                    .iter()
                    .find(|input| schema.field_with_name(input).is_err());
                return Err(Error::invalid(format!(
                    "virtual column '{}' of table '{}' reads column '{}', which is gone",
                    column.name,
                    table.name,
                    missing.map_or("?", String::as_str)
                ))
                .with_hint(format!(
                    "ALTER TABLE {} DROP COLUMN {}",
                    table.name, column.name
                )));
            }
            let mut columns: Vec<Expr> = plan
                .schema()
                .columns()
                .into_iter()
                .map(Expr::Column)
                .collect();
            for column in ready {
                let purpose = format!("virtual column '{}' of table '{}'", column.name, table.name);
                let planned = plan_expression(&state, &schema, &column.expression, &purpose)?;
                let value = match &column.data_type {
                    Some(name) => cast(planned.logical, parse_type(&column.name, name)?),
                    None => planned.logical,
                };
                columns.push(value.alias(&column.name));
            }
            plan = plan.project(columns)?;
            left = waiting;
        }
        // `_rowid` and `_rowaddr` stay last.
        let names: Vec<String> = plan
            .schema()
            .fields()
            .iter()
            .map(|field| field.name().clone())
            .collect();
        let (hidden, shown): (Vec<_>, Vec<_>) = names
            .into_iter()
            .partition(|name| row_ids && (name == "_rowid" || name == "_rowaddr"));
        let plan = plan
            .project(
                shown
                    .into_iter()
                    .filter(|name| reading.knows(&table.name, name))
                    .chain(hidden)
                    .map(|name| col(datafusion::common::Column::new_unqualified(name))),
            )?
            .build()?;
        Ok(Arc::new(ViewTable::new(plan, None)))
    }

    /// The type of a table, for listings.
    pub async fn object_type(&self, name: &str) -> Result<Option<TableType>> {
        if self.root().has_table(name).await? {
            return Ok(Some(TableType::Base));
        }
        Ok(self.view(name).await?.map(|_| TableType::View))
    }
}

/// Reads the type of a virtual column as Arrow writes it.
fn parse_type(column: &str, text: &str) -> Result<DataType> {
    text.parse().map_err(|error| {
        Error::new(
            ErrorKind::Storage,
            format!("the type '{text}' of virtual column '{column}' can't be read: {error}"),
        )
    })
}

fn no_versions(name: &str, what: &str) -> Error {
    Error::invalid(format!("'{name}' is {what}: it has no versions"))
}

/// Whether a table or view of the database may have this name: it becomes a file name.
pub fn is_object_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 200
        && !name.starts_with(['.', '_'])
        && !name.chars().any(|c| {
            c.is_control()
                || matches!(
                    c,
                    '/' | '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|' | '%' | '#'
                )
        })
}
