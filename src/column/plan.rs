//! Planning one pass of a refresh: which rows of which fragments, and the physical plan.

use std::collections::BTreeSet;
use std::sync::Arc;

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::Column as ColumnName;
use datafusion::execution::SessionState;
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;

use super::assess::{Assessment, Column, REQUESTED_FULL, Rows};
use super::compute::{ColumnComputeExec, ColumnValue, ROW_ADDRESS};
use super::write::ColumnWriteExec;
use crate::database::Table;
use crate::database::blob::BLOB_READ;
use crate::database::expression::physical_expression;
use crate::storage::RowSet;
use crate::storage::blob::{is_blob, is_descriptor, value_type};
use crate::storage::fragments::{live_rows, offsets_of};
use crate::storage::scan::{LanceScanExec, ScanDescription};
use crate::{Error, Result};

/// Which rows a refresh was asked for.
#[derive(Debug, Clone)]
pub enum Wanted {
    /// Those that lack a value or have a stale one.
    Changed,
    /// Of those, the ones with these ids.
    ChangedAmong(RowSet),
    /// The rows with these ids, whatever they have.
    Among(RowSet),
    /// All rows.
    Full,
}

/// What is done for one column.
#[derive(Debug, Clone)]
pub struct ColumnTask {
    /// The column.
    pub column: Column,
    /// What it needed.
    pub assessment: Assessment,
    /// Rows to compute.
    pub todo: Rows,
    /// `full`, `incremental`, `filtered`, or `none` if there is nothing to do.
    pub mode: &'static str,
    /// The reason code of a full refresh; empty otherwise.
    pub reason: String,
    /// Live rows to compute.
    pub rows: u64,
}

/// One pass: columns that are computed together, from one version of the table.
#[derive(Debug)]
pub struct Pass {
    /// The table at the version that is read.
    pub table: Table,
    /// The columns, none of which reads another.
    pub tasks: Vec<ColumnTask>,
    /// Live rows of the table.
    pub table_rows: u64,
    /// Live rows in the fragments that are written.
    pub rows_in_fragments: u64,
    /// Fragments to write.
    pub fragments: Vec<u64>,
    /// Whether old values are read, because some rows of those fragments keep them.
    pub keeps_values: bool,
    /// Addresses of the rows to compute, by column.
    addresses: Vec<Rows>,
}

impl Pass {
    /// Plans a pass over `columns`, of which each has its assessment and what is wanted of it.
    pub async fn plan(
        table: Table,
        columns: Vec<Column>,
        assessments: Vec<Assessment>,
        wanted: Vec<Wanted>,
    ) -> Result<Self> {
        let mut tasks: Vec<ColumnTask> = columns
            .into_iter()
            .zip(assessments)
            .zip(&wanted)
            .map(|((column, assessment), wanted)| task(column, assessment, wanted))
            .collect();
        share_struct_calls(&mut tasks);
        let name = table.name.clone();
        let dataset = Arc::clone(&table.dataset);
        let mut addresses: Vec<RowSet> = vec![RowSet::default(); tasks.len()];
        let mut fragments = Vec::new();
        let (mut table_rows, mut rows_in_fragments, mut keeps_values) = (0, 0, false);
        for fragment in dataset.fragments().iter() {
            let live = live_rows(&name, &dataset, fragment).await?;
            table_rows += live;
            if live == 0 {
                continue;
            }
            let mut touched = false;
            let mut all_selected = true;
            for (task, addresses) in tasks.iter_mut().zip(&mut addresses) {
                let selected = match &task.todo {
                    Rows::All => live,
                    Rows::Some(ids) if ids.is_empty() => 0,
                    Rows::Some(ids) => {
                        let offsets = offsets_of(&name, &dataset, fragment, ids).await?;
                        let base = fragment.id << 32;
                        addresses.extend(offsets.iter().map(|offset| base + u64::from(offset)));
                        offsets.len()
                    }
                };
                task.rows += selected;
                touched |= selected > 0;
                all_selected &= selected == live;
            }
            if touched {
                fragments.push(fragment.id);
                rows_in_fragments += live;
                keeps_values |= !all_selected;
            }
        }
        for task in &mut tasks {
            if task.rows == 0 {
                task.mode = "none";
            }
        }
        let addresses = tasks
            .iter()
            .zip(addresses)
            .map(|(task, addresses)| match task.todo {
                Rows::All => Rows::All,
                // Every live row of the fragments that are written: no need to ask row by row.
                Rows::Some(_) if task.rows == rows_in_fragments => Rows::All,
                Rows::Some(_) => Rows::Some(addresses),
            })
            .collect();
        Ok(Self {
            table,
            tasks,
            table_rows,
            rows_in_fragments,
            fragments,
            keeps_values,
            addresses,
        })
    }

    /// Whether there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.fragments.is_empty()
    }

    /// Names of the columns.
    pub fn column_names(&self) -> Vec<&str> {
        self.tasks.iter().map(|task| task.column.name()).collect()
    }

    /// Names of the stored columns that are read: inputs, and old values where rows keep them.
    pub fn columns_read(&self) -> BTreeSet<String> {
        let inputs = self
            .tasks
            .iter()
            .flat_map(|task| task.column.inputs.iter().map(|input| input.name.clone()));
        let mut read: BTreeSet<String> = inputs.collect();
        if self.keeps_values {
            read.extend(self.column_names().into_iter().map(str::to_string));
        }
        read
    }

    /// Bytes that will probably be read and written: rows × the width of the columns' types.
    pub fn estimated_bytes(&self) -> u64 {
        let schema = self.table.stored_schema();
        let width = |name: &str| {
            schema
                .field_with_name(name)
                .map_or(0, |field| type_width(field.data_type()))
        };
        let read: u64 = self.columns_read().iter().map(|name| width(name)).sum();
        let written: u64 = self.column_names().into_iter().map(width).sum();
        self.rows_in_fragments * (read + written)
    }

    /// The physical plan: scan the inputs, compute, write a file a fragment.
    pub fn physical_plan(
        &self,
        state: &SessionState,
        batch_rows: Option<usize>,
        batch_bytes: Option<u64>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let mut columns: Vec<String> = self.columns_read().into_iter().collect();
        columns.push(ROW_ADDRESS.to_string());
        let dataset = Arc::clone(&self.table.dataset);
        let mut description = ScanDescription::new(&dataset);
        description.columns = columns;
        description.fragments = self.fragments.iter().map(|id| vec![*id]).collect();
        description.in_order = true;
        description.batch_rows =
            batch_rows.unwrap_or_else(|| state.config().options().execution.batch_size);
        if let Some(bytes) = batch_bytes {
            description.batch_bytes = bytes;
        }
        let scan = Arc::new(LanceScanExec::try_new(Arc::clone(&dataset), description)?);
        let schema: SchemaRef = scan.schema();
        let values = self
            .tasks
            .iter()
            .zip(&self.addresses)
            .map(|(task, rows)| {
                let column = &task.column;
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
        ));
        Ok(Arc::new(ColumnWriteExec::new(
            compute,
            self.table.name.clone(),
            dataset,
            self.fragments.clone().into(),
        )))
    }
}

/// The bytes of the blob that `expression` describes.
fn blob_bytes(state: &SessionState, expression: Expr) -> Result<Expr> {
    let function = state
        .scalar_functions()
        .get(BLOB_READ)
        .ok_or_else(|| Error::internal(format!("there is no function {BLOB_READ}")))?;
    Ok(function.call(vec![expression]))
}

fn expression_type(
    schema: &SchemaRef,
    expression: &datafusion::logical_expr::Expr,
) -> Result<datafusion::arrow::datatypes::DataType> {
    use datafusion::logical_expr::ExprSchemable;
    let schema = datafusion::common::DFSchema::try_from(schema.as_ref().clone())?;
    Ok(expression.get_type(&schema)?)
}

fn task(column: Column, assessment: Assessment, wanted: &Wanted) -> ColumnTask {
    let (todo, mode, reason) = match wanted {
        Wanted::Full => (Rows::All, "full", REQUESTED_FULL.to_string()),
        Wanted::Among(rows) => (Rows::Some(rows.clone()), "filtered", String::new()),
        Wanted::ChangedAmong(rows) => {
            let todo = match assessment.todo() {
                Rows::All => rows.clone(),
                Rows::Some(todo) => todo.intersection(rows),
            };
            (Rows::Some(todo), "filtered", String::new())
        }
        Wanted::Changed => match &assessment.full_reason {
            Some(reason) => (Rows::All, "full", reason.clone()),
            None => (assessment.todo(), "incremental", String::new()),
        },
    };
    ColumnTask {
        column,
        assessment,
        todo,
        mode,
        reason,
        rows: 0,
    }
}

/// Columns of one struct call are computed for the same rows, so that the call is made once a row.
fn share_struct_calls(tasks: &mut [ColumnTask]) {
    for index in 0..tasks.len() {
        if tasks[index].column.definition.struct_field.is_none() {
            continue;
        }
        let text = tasks[index].column.definition.expression.clone();
        let same = |task: &&ColumnTask| {
            task.column.definition.struct_field.is_some()
                && task.column.definition.expression == text
        };
        let mut shared: Option<Rows> = None;
        for task in tasks.iter().filter(same) {
            shared = Some(match (shared, &task.todo) {
                (None, todo) => todo.clone(),
                (Some(Rows::Some(a)), Rows::Some(b)) => Rows::Some(a.union(b)),
                _ => Rows::All,
            });
        }
        if let Some(shared) = shared {
            tasks[index].todo = shared;
        }
    }
}

/// Bytes that a value of a type takes, about.
fn type_width(data_type: &datafusion::arrow::datatypes::DataType) -> u64 {
    use datafusion::arrow::datatypes::DataType;
    /// For strings, lists and other values without a fixed width.
    const VARIABLE: u64 = 32;
    match data_type {
        DataType::FixedSizeList(item, size) => {
            type_width(item.data_type()) * u64::try_from(*size).unwrap_or(0)
        }
        DataType::FixedSizeBinary(size) => u64::try_from(*size).unwrap_or(0),
        DataType::Struct(fields) => fields.iter().map(|f| type_width(f.data_type())).sum(),
        DataType::Boolean => 1,
        other => other
            .primitive_width()
            .map_or(VARIABLE, |width| width as u64),
    }
}

/// Orders `columns` so that each comes after those it reads; gives one list a pass.
///
/// # Errors
///
/// If they read one another in a circle (others may have written such definitions).
pub fn passes(table: &Table, columns: &[String]) -> Result<Vec<Vec<String>>> {
    let mut left: Vec<String> = columns.to_vec();
    let mut passes = Vec::new();
    while !left.is_empty() {
        let (ready, waiting): (Vec<String>, Vec<String>) =
            left.iter().cloned().partition(|column| {
                !left
                    .iter()
                    .any(|other| other != column && table.definitions.path(column, other).is_some())
            });
        if ready.is_empty() {
            return Err(Error::invalid(format!(
                "computed columns of table '{}' read one another in a circle: {}",
                table.name,
                waiting.join(", ")
            )));
        }
        passes.push(ready);
        left = waiting;
    }
    Ok(passes)
}
