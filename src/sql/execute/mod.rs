//! Runs statements.
//!
//! A statement that changes something has done so when its frame is given back, and the
//! frame has one row for each object that says what was done. A query runs when its frame is
//! collected.

mod alter;
mod create;
mod describe;
mod dml;
mod drop;
mod jobs;
mod materialized_views;
mod query;
mod refresh;
mod report;
mod versions;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use datafusion::prelude::{DataFrame, SessionContext};
use datafusion::sql::TableReference;

use super::statement::{Show, Statement};
use crate::database::{CATALOG_NAME, Database, SCHEMA_NAME};
use crate::job::jobs::Jobs;
use crate::{Error, Result};

/// Runs statements against a database.
#[derive(Clone)]
pub struct Executor {
    /// The session.
    pub context: SessionContext,
    /// The database.
    pub database: Arc<Database>,
    /// The jobs of this process.
    pub jobs: Arc<Jobs>,
    notices: Arc<Mutex<Vec<String>>>,
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor")
            .field("database", &self.database)
            .finish_non_exhaustive()
    }
}

impl Executor {
    /// Runs statements of the session `context` against the database of `jobs`.
    pub fn new(context: SessionContext, jobs: Arc<Jobs>) -> Self {
        Self {
            context,
            database: Arc::clone(jobs.ledger().database()),
            jobs,
            notices: Arc::default(),
        }
    }

    /// The same session for one statement of several that run at once: notices, and the jobs that it begins, are
    /// told apart.
    pub(crate) fn for_statement(&self) -> Self {
        let jobs = self.jobs.beside(self.jobs.ledger().clone());
        Self {
            context: self.context.clone(),
            database: Arc::clone(&self.database),
            jobs: Arc::new(jobs),
            notices: Arc::default(),
        }
    }

    /// Runs one statement.
    pub async fn run(&self, statement: Statement) -> Result<DataFrame> {
        // Boxed, or the future of this function would nest as deeply as all of theirs together.
        match statement {
            Statement::DataFusion(statement) => Box::pin(self.run_datafusion(*statement)).await,
            Statement::CreateTable(create) => Box::pin(self.create_table(*create)).await,
            Statement::CreateView(create) => Box::pin(self.create_view(*create)).await,
            Statement::Insert(insert) => Box::pin(self.insert(*insert)).await,
            Statement::Update(update) => Box::pin(self.update(*update)).await,
            Statement::Delete(delete) => Box::pin(self.delete(*delete)).await,
            Statement::Truncate { table } => Box::pin(self.truncate(&table)).await,
            Statement::AlterTable(alter) => Box::pin(self.alter_table(*alter)).await,
            Statement::Drop(drop) => Box::pin(self.drop_objects(drop)).await,
            Statement::Describe { table } => Box::pin(self.describe(&table)).await,
            Statement::Show(Show::Tables) => Box::pin(self.show_tables()).await,
            Statement::Show(Show::Create { name }) => Box::pin(self.show_create(&name)).await,
            Statement::Show(Show::MaterializedViews) => {
                Box::pin(self.show_materialized_views()).await
            }
            Statement::Show(Show::CreateMaterializedView { name }) => {
                Box::pin(self.show_create_materialized_view(&name)).await
            }
            Statement::Show(Show::Versions { table }) => Box::pin(self.show_versions(&table)).await,
            Statement::Optimize { table, options } => {
                Box::pin(self.optimize(&table, &options)).await
            }
            Statement::RefreshColumn(refresh) => Box::pin(self.refresh_column(*refresh)).await,
            Statement::ExplainRefresh { analyze, refresh } => {
                Box::pin(self.explain_refresh(*refresh, analyze)).await
            }
            Statement::CreateMaterializedView(create) => {
                Box::pin(self.create_materialized_view(*create)).await
            }
            Statement::ExplainCreateView(create) => {
                Box::pin(self.explain_create_view(*create)).await
            }
            Statement::RefreshView(refresh) => Box::pin(self.refresh_view(*refresh)).await,
            Statement::ExplainRefreshView { analyze, refresh } => {
                Box::pin(self.explain_refresh_view(*refresh, analyze)).await
            }
            Statement::AlterMaterializedView(alter) => {
                Box::pin(self.alter_materialized_view(*alter)).await
            }
            Statement::DescribeMaterializedView { name } => {
                Box::pin(self.describe_materialized_view(&name)).await
            }
            Statement::Job(statement) => Box::pin(self.job_statement(statement)).await,
            Statement::Transaction { keyword } => {
                self.notice(format!(
                    "{keyword} has no effect: each statement commits by itself"
                ));
                Ok(self.context.read_empty()?)
            }
            Statement::Vacuum(vacuum) => Box::pin(self.vacuum(vacuum)).await,
            Statement::CreateTag(create) => Box::pin(self.create_tag(create)).await,
            Statement::DropTag(drop) => Box::pin(self.drop_tag(drop)).await,
            Statement::ShowTags { table } => Box::pin(self.show_tags(&table)).await,
            Statement::Restore { table, version } => Box::pin(self.restore(&table, &version)).await,
        }
    }

    /// Takes the notices left since the last call.
    pub fn take_notices(&self) -> Vec<String> {
        std::mem::take(&mut *self.notices.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn notice(&self, text: impl Into<String>) {
        self.notices
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(text.into());
    }

    /// The name of a table of this database.
    ///
    /// # Errors
    ///
    /// If the reference leads elsewhere: to another catalog, or to the schema `system`.
    fn name_of(&self, table: &TableReference) -> Result<String> {
        let catalog = table.catalog().unwrap_or(CATALOG_NAME);
        let schema = table.schema().unwrap_or(SCHEMA_NAME);
        if catalog == CATALOG_NAME && schema == SCHEMA_NAME {
            return Ok(table.table().to_string());
        }
        Err(Error::invalid(format!(
            "'{table}' is not a table that can be changed: tables are in schema '{SCHEMA_NAME}'"
        )))
    }
}
