//! Sources: tables that a query reads, each at the place where it stands in the query.
//!
//! Key: the row id. With *I*, *U*, *D* the ids of the rows inserted, updated in the columns that the query reads,
//! and deleted between the old version and the new one:
//!
//! - removed = the old version's rows of *U* ∪ *D*, added = the new version's rows of *I* ∪ *U*,
//! - unchanged = the new version's rows but those of *I* ∪ *U*.
//!
//! A table that stands in a query twice is two sources, each with its own columns.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::common::{Column, DFSchemaRef};
use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, col};
use datafusion::sql::TableReference;
use lance::Dataset;

use super::operator::{Node, Operator, Origins, Pass};
use super::relation::{Side, columns, project};
use crate::database::LanceTable;
use crate::storage::RowSet;
use crate::storage::scan::RowFilter;
use crate::{Error, Result};

/// A table at one place of a query.
#[derive(Debug, Clone)]
pub(super) struct Source {
    /// Its name in the database.
    pub(super) table: String,
    /// The version that the query was planned with.
    pub(super) dataset: Arc<Dataset>,
    /// The columns that the query reads, of those that are stored.
    pub(super) columns: Vec<String>,
}

/// The versions that a pass reads of a source.
#[derive(Debug, Clone)]
pub(super) struct SourceVersions {
    /// The version that the view reflects; `None` in a full refresh.
    pub(super) old: Option<Arc<Dataset>>,
    /// The version to refresh to.
    pub(super) new: Arc<Dataset>,
    /// Ids of the rows of the old version that were updated or deleted.
    pub(super) removed: Arc<RowSet>,
    /// Ids of the rows of the new version that were updated or inserted.
    pub(super) added: Arc<RowSet>,
}

/// Reads a source.
#[derive(Debug)]
pub(super) struct Scan {
    /// Its place among the sources of the query.
    pub(super) place: usize,
    /// What the query calls it.
    pub(super) name: TableReference,
    /// The table.
    pub(super) source: Source,
    /// Only rows for which all of these are true.
    pub(super) filters: Vec<Expr>,
    /// The columns of the node.
    pub(super) schema: DFSchemaRef,
}

#[async_trait]
impl Operator for Scan {
    fn class(&self) -> &'static str {
        "row"
    }

    fn inputs(&self) -> Vec<&Node> {
        Vec::new()
    }

    fn is_by_row(&self) -> bool {
        true
    }

    fn origins(&self, column: &Column) -> Option<Origins> {
        let is_ours = self.schema.has_column(column);
        is_ours.then(|| Origins::from([(self.place, column.name.clone())]))
    }

    async fn relation(&self, node: &Node, pass: &Pass, side: Side) -> Result<Option<LogicalPlan>> {
        let versions = pass
            .sources
            .get(self.place)
            .ok_or_else(|| Error::internal("a source has no versions"))?;
        let rows = match side {
            Side::Old | Side::New => RowFilter::All,
            Side::Unchanged if versions.added.is_empty() => RowFilter::All,
            Side::Unchanged => RowFilter::Except(Arc::clone(&versions.added)),
            Side::Removed => RowFilter::Only(Arc::clone(&versions.removed)),
            Side::Added => RowFilter::Only(Arc::clone(&versions.added)),
        };
        if matches!(&rows, RowFilter::Only(rows) if rows.is_empty()) {
            return Ok(None);
        }
        let dataset = match (side.is_old(), &versions.old) {
            (false, _) => &versions.new,
            (true, Some(old)) => old,
            (true, None) => {
                return Err(Error::internal("a full refresh has no old versions"));
            }
        };
        let provider =
            LanceTable::new(&self.source.table, Arc::clone(dataset), true).with_rows(rows);
        let plan = LogicalPlanBuilder::scan(
            self.name.clone(),
            provider_as_source(Arc::new(provider)),
            None,
        )?;
        let plan = match conjunction(self.filters.clone()) {
            Some(filter) => plan.filter(filter)?,
            None => plan,
        };
        let row_id = Column::new(Some(self.name.clone()), "_rowid");
        let mut all = columns(&self.schema);
        all.extend(
            node.keys
                .iter()
                .map(|key| col(row_id.clone()).alias(&key.name)),
        );
        Ok(Some(project(plan.build()?, all)?))
    }
}
