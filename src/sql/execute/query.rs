//! Queries, and the other statements that DataFusion runs by itself.

use std::ops::ControlFlow;

use datafusion::logical_expr::{DdlStatement, LogicalPlan};
use datafusion::prelude::DataFrame;
use datafusion::sql::parser::Statement as DataFusionStatement;
use datafusion::sql::sqlparser::ast;

use super::Executor;
use crate::database::name::TableName;
use crate::database::{CATALOG_NAME, SCHEMA_NAME};
use crate::storage::refused;
use crate::{Error, ErrorKind, Result};

impl Executor {
    pub(super) async fn run_datafusion(&self, statement: DataFusionStatement) -> Result<DataFrame> {
        let text = statement.to_string();
        if text.contains("information_schema") {
            // Its tables ask for names without waiting: have them ready.
            self.database.object_names().await?;
        }
        check_table_functions(&statement)?;
        let plan = match self.context.state().statement_to_plan(statement).await {
            Ok(plan) => plan,
            Err(error) => return Err(self.unknown_table(error.into()).await?),
        };
        match &plan {
            LogicalPlan::Dml(dml) => {
                return Err(Error::invalid(format!(
                    "'{}' can't be changed: it is not a table of this database",
                    dml.table_name
                )));
            }
            LogicalPlan::Ddl(ddl) => {
                check_ddl(ddl)?;
                if let DdlStatement::CreateExternalTable(table) = ddl {
                    self.database.register_store(&table.location).await?;
                }
            }
            LogicalPlan::Copy(copy) => {
                let url = copy.output_url.clone();
                return self.copy(&url, plan).await;
            }
            _ => {}
        }
        Ok(self.context.execute_logical_plan(plan).await?)
    }

    /// Runs a COPY to `url`.
    async fn copy(&self, url: &str, plan: LogicalPlan) -> Result<DataFrame> {
        self.database.register_store(url).await?;
        let copied = async {
            let frame = self.context.execute_logical_plan(plan).await?;
            frame.collect().await
        };
        let error: Error = match copied.await {
            Ok(batches) => return Ok(self.context.read_batches(batches)?),
            Err(error) => error.into(),
        };
        // DataFusion drops what a store says when a file is closed.
        if !WRITE_FAILED
            .iter()
            .any(|said| error.message().contains(said))
        {
            return Err(refused(format!("can't copy to '{url}'"), error));
        }
        Err(match self.database.store_refusal(url).await {
            Some(refusal) => refusal.context("can't write"),
            None => Error::new(
                ErrorKind::Storage,
                format!("can't write '{url}'; a part of it may be there"),
            )
            .with_hint("check the rights of the account, and that there is space"),
        })
    }
}

/// What DataFusion says where the store did not take what was written.
const WRITE_FAILED: [&str; 2] = ["finalizing writes", "failed to abort all writers"];

impl Executor {
    /// Names the nearest table, where a query names one that does not exist.
    pub(super) async fn unknown_table(&self, error: Error) -> Result<Error> {
        let prefix = format!("table '{CATALOG_NAME}.{SCHEMA_NAME}.");
        let name = error
            .message()
            .strip_prefix(prefix.as_str())
            .and_then(|rest| rest.strip_suffix("' not found"))
            .map(|name| TableName::parse(name).name.to_string());
        let Some(name) = name else {
            return Ok(error);
        };
        let mut known = self.database.object_names().await?;
        known.extend(self.database.session_table_names());
        Ok(Error::not_found(
            "table",
            &name,
            known.iter().map(String::as_str),
        ))
    }
}

/// Searches are table functions; they come later.
fn check_table_functions(statement: &DataFusionStatement) -> Result<()> {
    const LATER: [&str; 3] = ["vector_search", "fts", "hybrid_search"];
    let DataFusionStatement::Statement(statement) = statement else {
        return Ok(());
    };
    let mut found = None;
    let _ = ast::visit_relations(statement.as_ref(), |name| {
        let name = name.to_string().to_lowercase();
        found = LATER.iter().find(|later| **later == name);
        match found {
            Some(_) => ControlFlow::Break(()),
            None => ControlFlow::Continue(()),
        }
    });
    match found {
        Some(name) => Err(Error::not_available(format!("{name}()"))),
        None => Ok(()),
    }
}

/// Refuses what DataFusion would make for the session only, where users expect it to last.
fn check_ddl(ddl: &DdlStatement) -> Result<()> {
    match ddl {
        DdlStatement::CreateExternalTable(_) | DdlStatement::DropTable(_) => Ok(()),
        other => Err(Error::not_available(other.name().to_uppercase())),
    }
}
