//! Queries, and the other statements that DataFusion runs by itself.

use datafusion::logical_expr::{DdlStatement, LogicalPlan};
use datafusion::prelude::DataFrame;
use datafusion::sql::parser::Statement as DataFusionStatement;

use super::Executor;
use crate::{Error, Result};

impl Executor {
    pub(super) async fn run_datafusion(
        &self,
        statement: DataFusionStatement,
    ) -> Result<DataFrame> {
        let text = statement.to_string();
        if text.contains("information_schema") {
            // Its tables ask for names without waiting: have them ready.
            self.database.object_names().await?;
        }
        let plan = self
            .context
            .state()
            .statement_to_plan(statement)
            .await
            .map_err(|error| Error::from(error))?;
        match &plan {
            LogicalPlan::Dml(dml) => {
                return Err(Error::invalid(format!(
                    "'{}' can't be changed: it is not a table of this database",
                    dml.table_name
                )));
            }
            LogicalPlan::Ddl(ddl) => check_ddl(ddl)?,
            LogicalPlan::Copy(_) => {
                let frame = self.context.execute_logical_plan(plan).await?;
                let batches = frame.collect().await?;
                return Ok(self.context.read_batches(batches)?);
            }
            _ => {}
        }
        Ok(self.context.execute_logical_plan(plan).await?)
    }
}

/// Refuses what DataFusion would make for the session only, where users expect it to last.
fn check_ddl(ddl: &DdlStatement) -> Result<()> {
    match ddl {
        DdlStatement::CreateExternalTable(_) | DdlStatement::DropTable(_) => Ok(()),
        other => Err(Error::not_available(other.name().to_uppercase())),
    }
}
