//! Sources: tables that a query reads, each at the place where it stands in the query.
//!
//! Key: the row id. With *I*, *U*, *D* the ids of the rows inserted, updated in the columns that the query reads,
//! and deleted between the old version and the new one:
//!
//! - removed = the old version's rows of *U* ∪ *D*, added = the new version's rows of *I* ∪ *U*,
//! - unchanged = the new version's rows but those of *I* ∪ *U*.
//!
//! A table that stands in a query twice is two sources, each with its own columns. What a query reads of one of its
//! [stages](super::stage) is a source, too.

use std::sync::Arc;

use datafusion::common::{Column, DFSchemaRef};
use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, col};
use datafusion::sql::TableReference;
use lance::Dataset;

use super::cost::{Cost, Known};
use super::operator::{Node, Operator, Origins, Planned};
use super::pass::Pass;
use super::relation::{Restriction, Side, columns, project};
use crate::database::LanceTable;
use crate::storage::RowSet;
use crate::storage::fragments::physical_rows;
use crate::storage::scan::RowFilter;
use crate::{Error, Result};

/// A table at one place of a query.
#[derive(Debug, Clone)]
pub(super) struct Source {
    /// Its name in the database.
    pub(super) table: String,
    /// Where its rows come from.
    pub(super) origin: Origin,
    /// The columns that the query reads, of those that are stored.
    pub(super) columns: Vec<String>,
}

/// Where the rows of a source come from.
#[derive(Debug, Clone)]
pub(super) enum Origin {
    /// A table of the database, at the version that the query was planned with.
    Table(Arc<Dataset>),
    /// A stage of the query, as its place among the stages.
    Stage(usize),
}

impl Source {
    /// The version that the query was planned with, if it is a table of the database.
    pub(super) fn dataset(&self) -> Option<&Arc<Dataset>> {
        match &self.origin {
            Origin::Table(dataset) => Some(dataset),
            Origin::Stage(_) => None,
        }
    }
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

impl SourceVersions {
    /// How many rows the new version has, deleted ones among them.
    pub(super) fn rows(&self) -> u64 {
        physical_rows(&self.new)
    }
}

/// Reads a source.
#[derive(Debug)]
pub(super) struct Scan {
    /// Its place among the sources of the query.
    pub(super) place: usize,
    /// What the query calls it.
    pub(super) name: TableReference,
    /// Only rows for which all of these are true.
    pub(super) filters: Vec<Expr>,
    /// The columns of the node.
    pub(super) schema: DFSchemaRef,
    /// Whether an operator above it reads what changed more than once.
    pub(super) is_reread: bool,
}

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

    fn source(&self) -> Option<usize> {
        Some(self.place)
    }

    fn cost(&self, _: &[Cost], known: &Known) -> Cost {
        known.sources.get(self.place).copied().unwrap_or_default()
    }

    /// Rows that are read several times are kept.
    fn is_costly(&self) -> bool {
        self.is_reread
    }

    fn restricted<'a>(
        &'a self,
        node: &'a Node,
        pass: &'a Pass,
        restriction: &'a Restriction,
    ) -> Planned<'a> {
        Box::pin(async move {
            if let [Expr::Column(column)] = restriction.key.as_slice() {
                let keys = restriction.keys.len();
                pass.look_ups.add(Some(self.place), column.name(), keys);
            }
            node.filtered(pass, restriction).await
        })
    }

    fn relation<'a>(&'a self, node: &'a Node, pass: &'a Pass, side: Side) -> Planned<'a> {
        Box::pin(async move {
            let versions = self.versions(pass)?;
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
            self.shown(node, self.rows(dataset, rows)?).map(Some)
        })
    }
}

impl Scan {
    fn versions<'a>(&self, pass: &'a Pass) -> Result<&'a SourceVersions> {
        let versions = pass.sources.get(self.place);
        versions.ok_or_else(|| Error::internal("a source has no versions"))
    }

    fn row_id(&self) -> Expr {
        col(Column::new(Some(self.name.clone()), "_rowid"))
    }

    /// Rows of a version that meet the filters, with all columns of the table.
    fn rows(&self, dataset: &Arc<Dataset>, rows: RowFilter) -> Result<LogicalPlan> {
        let provider =
            LanceTable::new(self.name.table(), Arc::clone(dataset), true).with_rows(rows);
        let provider = provider_as_source(Arc::new(provider));
        let plan = LogicalPlanBuilder::scan(self.name.clone(), provider, None)?;
        let plan = match conjunction(self.filters.clone()) {
            Some(filter) => plan.filter(filter)?,
            None => plan,
        };
        Ok(plan.build()?)
    }

    /// The columns of the node, and its key.
    fn shown(&self, node: &Node, rows: LogicalPlan) -> Result<LogicalPlan> {
        let mut all = columns(&self.schema);
        all.extend(node.keys.iter().map(|key| self.row_id().alias(&key.name)));
        Ok(project(rows, all)?)
    }
}
