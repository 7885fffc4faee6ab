//! The physical plan that computes columns: of a whole pass, or of one unit of it in another process.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::{Column as ColumnName, DFSchema};
use datafusion::execution::SessionState;
use datafusion::logical_expr::{Expr, ExprSchemable};
use datafusion::physical_plan::ExecutionPlan;

use super::assess::{Column, Rows};
use super::compute::{ColumnComputeExec, ColumnValue, ROW_ADDRESS};
use super::plan::{BatchSize, Unit};
use super::work::Work;
use super::write::ColumnWriteExec;
use crate::database::Table;
use crate::database::blob::BLOB_READ;
use crate::database::expression::physical_expression;
use crate::storage::blob::{is_blob, is_descriptor, value_type};
use crate::storage::column_file::SplitFile;
use crate::storage::fragments::deleted_offsets;
use crate::storage::scan::{LanceScanExec, ScanDescription, Window};
use crate::{Error, Result};

/// Columns that are computed together, from one version of a table.
#[derive(Debug, Clone)]
pub struct Computation {
    /// The table at the version that is read.
    pub table: Table,
    /// The columns, none of which reads another.
    pub columns: Vec<Column>,
    /// Addresses of the rows to compute, by column.
    pub rows: Vec<Rows>,
    /// Whether old values are read, because some rows keep them.
    pub keeps_values: bool,
}

impl Computation {
    /// The physical plan: scan the inputs, compute, write a file a unit. `work` is the job that it
    /// is for, if it is to be run.
    pub async fn physical_plan(
        &self,
        state: &SessionState,
        batches: BatchSize,
        units: &[Unit],
        split: Arc<HashMap<u64, SplitFile>>,
        work: Option<Arc<Work>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let mut columns: Vec<String> = columns_read(&self.columns, self.keeps_values)
            .into_iter()
            .collect();
        columns.push(ROW_ADDRESS.to_string());
        let dataset = Arc::clone(&self.table.dataset);
        let mut description = ScanDescription::new(&dataset);
        description.columns = columns;
        description.fragments = units.iter().map(|unit| vec![unit.fragment]).collect();
        description.windows = self.windows(units).await?;
        description.in_order = true;
        description.batch_rows = batches
            .rows
            .unwrap_or_else(|| state.config().options().execution.batch_size);
        if let Some(bytes) = batches.bytes {
            description.batch_bytes = bytes;
        }
        let scan = Arc::new(LanceScanExec::try_new(Arc::clone(&dataset), description)?);
        let schema: SchemaRef = scan.schema();
        let values = self
            .columns
            .iter()
            .zip(&self.rows)
            .map(|(column, rows)| {
                let stored_type = value_type(&column.field);
                let mut expression = column.expression.clone();
                let result_type = match &column.definition.struct_field {
                    None => stored_type.clone(),
                    Some(_) => expression_type(&schema, &expression)?,
                };
                let mut old_value = None;
                if is_blob(&column.field) {
                    // It is computed and written as bytes, wherever they come from.
                    if is_descriptor(&expression_type(&schema, &expression)?) {
                        expression = blob_bytes(state, expression)?;
                    }
                    if self.keeps_values {
                        let own = Expr::Column(ColumnName::new_unqualified(column.name()));
                        let own = blob_bytes(state, own)?;
                        old_value = Some(physical_expression(state, &schema, &own, &stored_type)?);
                    }
                }
                let field = column.field.clone().with_metadata(Default::default());
                Ok(ColumnValue {
                    field: Arc::new(field.with_data_type(stored_type)),
                    expression: physical_expression(state, &schema, &expression, &result_type)?,
                    old_value,
                    text: column.definition.expression.clone(),
                    struct_field: column.definition.struct_field.clone(),
                    rows: rows.clone(),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let compute = Arc::new(ColumnComputeExec::new(
            scan,
            self.table.name.clone(),
            Arc::clone(&dataset),
            values.into(),
            work.clone(),
        ));
        Ok(Arc::new(ColumnWriteExec::new(
            compute,
            self.table.name.clone(),
            dataset,
            units.into(),
            split,
            work,
        )))
    }

    /// For each unit that is a part of its fragment, its place among the live rows.
    async fn windows(&self, units: &[Unit]) -> Result<Vec<Option<Window>>> {
        if units.iter().all(|unit| unit.rows.is_none()) {
            return Ok(Vec::new());
        }
        let dataset = &self.table.dataset;
        let mut windows = Vec::with_capacity(units.len());
        for unit in units {
            let Some(rows) = &unit.rows else {
                windows.push(None);
                continue;
            };
            let fragment = dataset.get_fragment(unit.fragment as usize);
            let fragment = fragment
                .ok_or_else(|| Error::internal(format!("fragment {} is gone", unit.fragment)))?;
            let deleted = deleted_offsets(&self.table.name, dataset, fragment.metadata()).await?;
            let live_before = |row: u32| row as usize - deleted.range_cardinality(..row) as usize;
            windows.push(Some(Window {
                skip: live_before(rows.start),
                rows: live_before(rows.end) - live_before(rows.start),
            }));
        }
        Ok(windows)
    }
}

/// Names of the stored columns that are read: inputs, and old values where rows keep them.
pub(super) fn columns_read<'a>(
    columns: impl IntoIterator<Item = &'a Column>,
    keeps_values: bool,
) -> BTreeSet<String> {
    let mut read = BTreeSet::new();
    for column in columns {
        read.extend(column.inputs.iter().map(|input| input.name.clone()));
        if keeps_values {
            read.insert(column.name().to_string());
        }
    }
    read
}

/// The bytes of the blob that `expression` describes.
fn blob_bytes(state: &SessionState, expression: Expr) -> Result<Expr> {
    let function = state
        .scalar_functions()
        .get(BLOB_READ)
        .ok_or_else(|| Error::internal(format!("there is no function {BLOB_READ}")))?;
    Ok(function.call(vec![expression]))
}

fn expression_type(schema: &SchemaRef, expression: &Expr) -> Result<DataType> {
    let schema = DFSchema::try_from(schema.as_ref().clone())?;
    Ok(expression.get_type(&schema)?)
}
