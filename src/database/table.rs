//! A Lance table as DataFusion sees it.
//!
//! The table stays at the version that it was opened at, so that everything in
//! one statement sees the same rows. It can only be read: statements that change
//! tables do so by row id, not through DataFusion's hooks.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use lance::Dataset;

use super::definition::shown_columns;
use crate::storage::scan::{
    Blobs, DEFAULT_BATCH_ROWS, LanceScanExec, RowFilter, ScanDescription, can_push_down,
    fragment_rows, partition_fragments, row_field, selected_rows, table_schema,
};

const ROW_ID: &str = "_rowid";

/// A Lance table at one version.
#[derive(Debug, Clone)]
pub struct LanceTable {
    name: String,
    dataset: Arc<Dataset>,
    schema: SchemaRef,
    rows: RowFilter,
}

impl LanceTable {
    /// The table `name` at the version of `dataset`, as users see it: without hidden columns. With
    /// `expose_row_ids` it has the columns `_rowid` and `_rowaddr` at the end.
    pub fn new(name: impl Into<String>, dataset: Arc<Dataset>, expose_row_ids: bool) -> Self {
        let stored = shown_columns(&table_schema(&dataset, Blobs::Descriptors));
        Self {
            name: name.into(),
            dataset,
            schema: with_row_fields(stored, expose_row_ids),
            rows: RowFilter::All,
        }
    }

    /// The same table with its hidden columns, where they are stored.
    pub fn with_hidden(mut self) -> Self {
        let exposes_row_ids = self.schema.fields().iter().any(|f| f.name() == ROW_ID);
        let stored = table_schema(&self.dataset, Blobs::Descriptors);
        self.schema = with_row_fields(stored, exposes_row_ids);
        self
    }

    /// The same table without the columns for which `is_known` is false; row ids stay.
    pub fn with_columns(mut self, is_known: impl Fn(&str) -> bool) -> Self {
        let is_kept = |name: &str| name == ROW_ID || name == "_rowaddr" || is_known(name);
        let fields = self.schema.fields().iter();
        let fields: Vec<Arc<Field>> = fields.filter(|f| is_kept(f.name())).cloned().collect();
        let metadata = self.schema.metadata.clone();
        self.schema = Arc::new(Schema::new_with_metadata(fields, metadata));
        self
    }

    /// The same table with the rows of `rows` only, by their ids, which have to be lasting ones. They are
    /// found by where they are stored; the others are not read.
    pub fn with_rows(mut self, rows: RowFilter) -> Self {
        self.rows = rows;
        self
    }

    /// The name of the table.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The table at its version.
    pub fn dataset(&self) -> &Arc<Dataset> {
        &self.dataset
    }
}

/// `stored`, with the columns `_rowid` and `_rowaddr` at the end if they are exposed.
pub(super) fn with_row_fields(stored: Schema, exposed: bool) -> SchemaRef {
    if !exposed {
        return Arc::new(stored);
    }
    let row_fields = [ROW_ID, "_rowaddr"].into_iter().filter_map(row_field);
    let fields = stored.fields().iter().cloned();
    let fields: Vec<Arc<Field>> = fields.chain(row_fields.map(Arc::new)).collect();
    Arc::new(Schema::new_with_metadata(fields, stored.metadata))
}

#[async_trait]
impl TableProvider for LanceTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(filters
            .iter()
            .map(|filter| match can_push_down(filter, &self.schema) {
                true => TableProviderFilterPushDown::Exact,
                false => TableProviderFilterPushDown::Unsupported,
            })
            .collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let columns = match projection {
            Some(indices) => self.schema.project(indices)?,
            None => self.schema.as_ref().clone(),
        };
        let settings = state.config();
        let found = match self.rows.is_all() {
            true => fragment_rows(&self.dataset),
            false => selected_rows(&self.name, &self.dataset, &self.rows).await?,
        };
        let fragments = partition_fragments(&found, settings.target_partitions());
        let description = ScanDescription {
            columns: columns.fields().iter().map(|f| f.name().clone()).collect(),
            filter: all_of(filters),
            limit,
            counts: match self.rows.is_all() {
                true => Vec::new(),
                false => sums(&found, &fragments),
            },
            rows: self.rows.clone(),
            fragments,
            batch_rows: batch_rows(settings.batch_size(), &columns),
            ..ScanDescription::new(&self.dataset)
        };
        let scan = LanceScanExec::try_new(self.dataset.clone(), description)?;
        Ok(Arc::new(scan))
    }
}

/// The rows in each of `groups` of fragments, from those in each fragment.
fn sums(rows: &[(u64, u64)], groups: &[Vec<u64>]) -> Vec<u64> {
    let mut rows = rows.iter();
    let sum = |group: &Vec<u64>| rows.by_ref().take(group.len()).map(|(_, rows)| rows).sum();
    groups.iter().map(sum).collect()
}

/// Rows for a batch of `columns`: what the session says, and up to four times that
/// while it is few bytes, since each batch has its cost whatever is in it.
fn batch_rows(session: usize, columns: &Schema) -> usize {
    const ENOUGH_BYTES: usize = 128 * 1024;
    let widths = columns
        .fields()
        .iter()
        .map(|f| f.data_type().primitive_width());
    match widths.sum::<Option<usize>>() {
        Some(width) if width > 0 && session >= DEFAULT_BATCH_ROWS => {
            (ENOUGH_BYTES / width).clamp(session, 4 * session)
        }
        _ => session,
    }
}

/// `filters` joined by AND, as flat a tree as can be: Lance limits the depth.
fn all_of(filters: &[Expr]) -> Option<Expr> {
    match filters {
        [] => None,
        [filter] => Some(filter.clone()),
        _ => {
            let (left, right) = filters.split_at(filters.len() / 2);
            Some(all_of(left)?.and(all_of(right)?))
        }
    }
}

#[cfg(test)]
mod tests;
