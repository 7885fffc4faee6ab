//! The rows that statements give back to say what they did.

use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::arrow::array::{ArrayRef, Float64Array, RecordBatch, StringArray, UInt64Array};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::prelude::DataFrame;

use super::Executor;
use crate::Result;
use crate::column::refresh::ColumnReport;
use crate::column::run::Refreshed;
use crate::job::record::JobSummary;

/// Seconds to the millisecond.
fn seconds(elapsed: Duration) -> f64 {
    (elapsed.as_secs_f64() * 1000.0).round() / 1000.0
}

/// Columns of text and numbers, put together to a frame.
#[derive(Debug, Default)]
pub(super) struct Rows {
    fields: Vec<Field>,
    arrays: Vec<ArrayRef>,
}

impl Rows {
    pub(super) fn text<T: Into<String>>(
        mut self,
        name: &str,
        values: impl IntoIterator<Item = T>,
    ) -> Self {
        let values: StringArray = values.into_iter().map(|v| Some(v.into())).collect();
        self.fields.push(Field::new(name, DataType::Utf8, true));
        self.arrays.push(Arc::new(values));
        self
    }

    pub(super) fn optional_text(
        mut self,
        name: &str,
        values: impl IntoIterator<Item = Option<String>>,
    ) -> Self {
        let values: StringArray = values.into_iter().collect();
        self.fields.push(Field::new(name, DataType::Utf8, true));
        self.arrays.push(Arc::new(values));
        self
    }

    pub(super) fn number(
        mut self,
        name: &str,
        values: impl IntoIterator<Item = Option<u64>>,
    ) -> Self {
        let values: UInt64Array = values.into_iter().collect();
        self.fields.push(Field::new(name, DataType::UInt64, true));
        self.arrays.push(Arc::new(values));
        self
    }

    pub(super) fn seconds(
        mut self,
        name: &str,
        values: impl IntoIterator<Item = Duration>,
    ) -> Self {
        let values: Float64Array = values.into_iter().map(|v| Some(seconds(v))).collect();
        self.fields.push(Field::new(name, DataType::Float64, true));
        self.arrays.push(Arc::new(values));
        self
    }

    /// A column that is made already.
    pub(super) fn column(mut self, field: Field, array: ArrayRef) -> Self {
        self.fields.push(field);
        self.arrays.push(array);
        self
    }

    pub(super) fn frame(self, executor: &Executor) -> Result<DataFrame> {
        let batch = RecordBatch::try_new(Arc::new(Schema::new(self.fields)), self.arrays)?;
        Ok(executor.context.read_batch(batch)?)
    }
}

/// What a statement did to one object.
#[derive(Debug)]
pub(super) struct Done {
    /// The statement's first words.
    pub(super) statement: &'static str,
    /// The object.
    pub(super) object: String,
    /// Rows that were written, changed or removed, where that makes sense.
    pub(super) rows: Option<u64>,
    /// The version of the table after it, where there is one.
    pub(super) version: Option<u64>,
}

impl Executor {
    /// The frame that says what a statement did that began at `started`.
    pub(super) fn done(&self, done: Vec<Done>, started: Instant) -> Result<DataFrame> {
        let elapsed = started.elapsed();
        Rows::default()
            .text("statement", done.iter().map(|d| d.statement))
            .text("object", done.iter().map(|d| d.object.clone()))
            .number("rows", done.iter().map(|d| d.rows))
            .number("version", done.iter().map(|d| d.version))
            .seconds("elapsed_seconds", done.iter().map(|_| elapsed))
            .frame(self)
    }

    /// The frame that says what a refresh did, a row for each column.
    pub(super) fn refreshed(&self, refreshed: &Refreshed) -> Result<DataFrame> {
        for notice in &refreshed.notices {
            self.notice(notice);
        }
        let reports: Vec<&ColumnReport> = refreshed
            .passes
            .iter()
            .flat_map(|pass| &pass.reports)
            .collect();
        let reports = reports.as_slice();
        let number =
            |get: fn(&ColumnReport) -> u64| reports.iter().map(move |report| Some(get(report)));
        Rows::default()
            .text("object", reports.iter().map(|r| r.object.clone()))
            .text("mode", reports.iter().map(|r| r.mode))
            .text("reason", reports.iter().map(|r| r.reason.clone()))
            .number("rows_computed", number(|r| r.rows_computed))
            .number("rows_reused", number(|r| r.rows_reused))
            .number("rows_skipped", number(|r| r.rows_skipped))
            .number("rows_pending", number(|r| r.rows_pending))
            .number("rows_failed", number(|r| r.rows_failed))
            .number("fragments", number(|r| r.fragments))
            .number("version", number(|r| r.version))
            .optional_text("job_id", reports.iter().map(|_| refreshed.job.clone()))
            .seconds("elapsed_seconds", reports.iter().map(|r| r.elapsed))
            .frame(self)
    }

    /// The frame that says that a job was submitted.
    pub(super) fn submitted(&self, job: &JobSummary) -> Result<DataFrame> {
        let record = &job.record;
        Rows::default()
            .text("job_id", [record.id.clone()])
            .text("state", [job.state.name()])
            .text(
                "object",
                [match record.columns.is_empty() {
                    true => record.table.clone(),
                    false => format!("{}.{}", record.table, record.columns.join(", ")),
                }],
            )
            .text("mode", [record.mode.clone()])
            .text("reason", [record.reason.clone()])
            .frame(self)
    }
}
