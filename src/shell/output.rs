//! Writes a result in one of datafusion-cli's formats.
//!
//! Only a table needs the whole of what it shows, to find the widths of its columns, and
//! holds no more than that; every other format is written batch by batch.

use std::io::{self, BufWriter, Write};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::json::ArrayWriter;
use datafusion::common::DataFusionError;
use datafusion::config::FormatOptions;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::memory_pool::{
    MemoryConsumer, MemoryPool, MemoryReservation, UnboundedMemoryPool,
};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::spill::get_record_batch_memory_size;
use datafusion::physical_plan::{ExecutionPlanProperties, execute_stream};
use datafusion::prelude::DataFrame;
use datafusion_cli::print_format::PrintFormat;
use datafusion_cli::print_options::MaxRows;
use futures::TryStreamExt;

use super::progress::Progress;
use crate::Result;

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Printed {
    /// Rows of the result.
    pub(super) rows: usize,
    /// Rows shown, where that is not all of them.
    pub(super) shown: Option<usize>,
    /// Whether the result had columns; that of a statement such as SET has none.
    pub(super) has_columns: bool,
}

/// How to write results.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    /// The format; automatic is a table, and CSV for a result without an end.
    pub(super) format: PrintFormat,
    /// How many rows of a table to show.
    pub(super) maxrows: MaxRows,
}

impl Layout {
    /// Runs the query of `frame` and writes its result.
    ///
    /// # Errors
    ///
    /// If the query fails, or writing does.
    pub(super) async fn print<W: Write + Send>(
        mut self,
        frame: DataFrame,
        out: &mut W,
    ) -> Result<Printed> {
        // A plan, or a list of columns, is of use only as a whole.
        if matches!(
            frame.logical_plan(),
            LogicalPlan::Explain(_) | LogicalPlan::Analyze(_) | LogicalPlan::DescribeTable(_)
        ) {
            self.maxrows = MaxRows::Unlimited;
        }
        let task = Arc::new(frame.task_ctx());
        let plan = frame.create_physical_plan().await?;
        if self.format == PrintFormat::Automatic {
            self.format = if plan.boundedness().is_unbounded() {
                PrintFormat::Csv
            } else {
                PrintFormat::Table
            };
        }
        let held = MemoryConsumer::new("result").register(task.memory_pool());
        let stream = execute_stream(plan, Arc::clone(&task))?;
        let options = &task.session_config().options().format;
        self.print_stream(stream, held, options, out).await
    }

    /// Writes a result that is computed elsewhere.
    ///
    /// # Errors
    ///
    /// If it breaks off, or writing fails.
    pub(super) async fn print_remote<W: Write + Send>(
        mut self,
        stream: SendableRecordBatchStream,
        out: &mut W,
    ) -> Result<Printed> {
        if self.format == PrintFormat::Automatic {
            self.format = PrintFormat::Table;
        }
        let pool: Arc<dyn MemoryPool> = Arc::new(UnboundedMemoryPool::default());
        let held = MemoryConsumer::new("result").register(&pool);
        let options = FormatOptions {
            null: "NULL".to_string(),
            ..FormatOptions::default()
        };
        self.print_stream(stream, held, &options, out).await
    }

    async fn print_stream<W: Write + Send>(
        self,
        stream: SendableRecordBatchStream,
        held: MemoryReservation,
        options: &FormatOptions,
        out: &mut W,
    ) -> Result<Printed> {
        if stream.schema().fields().is_empty() {
            // There may be rows all the same, and a plan does its work while it is read.
            stream.try_for_each(|_| std::future::ready(Ok(()))).await?;
            return Ok(Printed::default());
        }
        let printed = match self.format {
            PrintFormat::Table => self.print_table(stream, held, options, out).await,
            PrintFormat::Json => print_json(stream, out).await,
            _ => self.print_batches(stream, options, out).await,
        };
        // Also what stood before a failure is a result.
        let flushed = out.flush();
        let printed = printed?;
        flushed.map_err(DataFusionError::from)?;
        Ok(printed)
    }

    async fn print_table<W: Write>(
        self,
        mut stream: SendableRecordBatchStream,
        held: MemoryReservation,
        options: &FormatOptions,
        out: &mut W,
    ) -> Result<Printed> {
        let schema = stream.schema();
        let limit = match self.maxrows {
            MaxRows::Unlimited => usize::MAX,
            MaxRows::Limited(rows) => rows,
        };
        let mut kept: Vec<RecordBatch> = Vec::new();
        let mut kept_rows = 0;
        let mut rows = 0;
        while let Some(batch) = stream.try_next().await? {
            rows += batch.num_rows();
            // One row more than is shown tells the printer that there are more.
            if kept_rows <= limit {
                held.try_grow(get_record_batch_memory_size(&batch))?;
                kept_rows += batch.num_rows();
                kept.push(batch);
            }
        }
        self.format
            .print_batches(out, schema, &kept, self.maxrows, true, options)?;
        Ok(Printed {
            rows,
            shown: (limit < rows).then_some(limit),
            has_columns: true,
        })
    }

    async fn print_batches<W: Write>(
        self,
        mut stream: SendableRecordBatchStream,
        options: &FormatOptions,
        out: &mut W,
    ) -> Result<Printed> {
        let schema = stream.schema();
        let mut rows = 0;
        while let Some(batch) = stream.try_next().await? {
            if batch.num_rows() == 0 {
                continue;
            }
            self.format.print_batches(
                out,
                Arc::clone(&schema),
                std::slice::from_ref(&batch),
                MaxRows::Unlimited,
                rows == 0,
                options,
            )?;
            rows += batch.num_rows();
        }
        Ok(Printed {
            rows,
            shown: None,
            has_columns: true,
        })
    }
}

/// Writes one array for the whole result: the printer of datafusion-cli would write one for
/// each batch.
async fn print_json<W: Write>(
    mut stream: SendableRecordBatchStream,
    out: &mut W,
) -> Result<Printed> {
    let mut writer = ArrayWriter::new(&mut *out);
    let mut rows = 0;
    while let Some(batch) = stream.try_next().await? {
        writer.write(&batch)?;
        rows += batch.num_rows();
    }
    writer.finish()?;
    writeln!(out).map_err(DataFusionError::from)?;
    Ok(Printed {
        rows,
        shown: None,
        has_columns: true,
    })
}

/// A buffered writer that remembers whether the reader at the other end went away.
#[derive(Debug)]
pub(super) struct Sink<W: Write> {
    inner: BufWriter<W>,
    broken: bool,
    /// What has to be off the screen before something is written to it.
    progress: Option<Progress>,
}

impl<W: Write> Sink<W> {
    /// Clears `progress`, if there is one, before the first byte.
    pub(super) fn new(inner: W, progress: Option<Progress>) -> Self {
        Self {
            inner: BufWriter::with_capacity(64 << 10, inner),
            broken: false,
            progress,
        }
    }

    /// Whether the reader at the other end went away.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    fn note<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result {
            self.broken |= error.kind() == io::ErrorKind::BrokenPipe;
        }
        result
    }
}

impl<W: Write> Write for Sink<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(progress) = self.progress.take() {
            progress.clear();
        }
        let result = self.inner.write(bytes);
        self.note(result)
    }

    fn flush(&mut self) -> io::Result<()> {
        let result = self.inner.flush();
        self.note(result)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use datafusion::logical_expr::LogicalPlanBuilder;
    use datafusion::prelude::{SessionConfig, SessionContext};

    use super::*;

    async fn print(sql: &str, format: PrintFormat, maxrows: MaxRows) -> (String, Printed) {
        // Two rows a batch, so that results have several.
        let context = SessionContext::new_with_config(SessionConfig::new().with_batch_size(2));
        let frame = context.sql(sql).await.unwrap();
        let mut out = Vec::new();
        let layout = Layout { format, maxrows };
        let printed = layout.print(frame, &mut out).await.unwrap();
        (String::from_utf8(out).unwrap(), printed)
    }

    const NUMBERS: &str = "SELECT value AS n FROM generate_series(1, 5)";

    #[tokio::test]
    async fn a_table_shows_the_first_rows_and_counts_all() {
        let (text, printed) = print(NUMBERS, PrintFormat::Automatic, MaxRows::Limited(3)).await;
        assert!(text.contains("| 3 |") && !text.contains("| 4 |"), "{text}");
        assert!(text.contains("| . |"), "{text}");
        assert_eq!((printed.rows, printed.shown), (5, Some(3)));
        let (text, printed) = print(NUMBERS, PrintFormat::Table, MaxRows::Limited(5)).await;
        assert!(text.contains("| 5 |") && !text.contains("| . |"), "{text}");
        assert_eq!((printed.rows, printed.shown), (5, None));
        let (text, _) = print(NUMBERS, PrintFormat::Table, MaxRows::Unlimited).await;
        assert!(text.contains("| 5 |"), "{text}");
    }

    #[tokio::test]
    async fn limits_concern_only_tables() {
        let (text, printed) = print(NUMBERS, PrintFormat::Csv, MaxRows::Limited(1)).await;
        assert_eq!(text, "n\n1\n2\n3\n4\n5\n");
        assert_eq!((printed.rows, printed.shown), (5, None));
    }

    #[tokio::test]
    async fn json_of_several_batches_is_one_array() {
        let (text, _) = print(NUMBERS, PrintFormat::Json, MaxRows::Unlimited).await;
        assert_eq!(
            text,
            "[{\"n\":1},{\"n\":2},{\"n\":3},{\"n\":4},{\"n\":5}]\n"
        );
        let none = format!("{NUMBERS} WHERE value > 9");
        let (text, printed) = print(&none, PrintFormat::Json, MaxRows::Unlimited).await;
        assert_eq!(text, "[]\n");
        assert_eq!(printed.rows, 0);
        let (text, _) = print(NUMBERS, PrintFormat::NdJson, MaxRows::Unlimited).await;
        assert_eq!(text.lines().count(), 5);
    }

    #[tokio::test]
    async fn a_statement_without_columns_prints_nothing() {
        for format in [PrintFormat::Table, PrintFormat::Json, PrintFormat::Csv] {
            let sql = "SET datafusion.execution.batch_size = 10";
            let (text, printed) = print(sql, format, MaxRows::Unlimited).await;
            assert_eq!((text.as_str(), printed), ("", Printed::default()));
        }
    }

    #[tokio::test]
    async fn rows_without_columns_are_not_shown() {
        let context = SessionContext::new();
        for format in [PrintFormat::Table, PrintFormat::Json, PrintFormat::Csv] {
            let plan = LogicalPlanBuilder::empty(true).build().unwrap();
            let frame = DataFrame::new(context.state(), plan);
            let mut out = Vec::new();
            let maxrows = MaxRows::Unlimited;
            let printed = Layout { format, maxrows }.print(frame, &mut out).await;
            assert_eq!((printed.unwrap(), out), (Printed::default(), Vec::new()));
        }
    }

    #[tokio::test]
    async fn a_plan_is_shown_as_a_whole() {
        let sql = format!("EXPLAIN {NUMBERS}");
        let (_, printed) = print(&sql, PrintFormat::Table, MaxRows::Limited(1)).await;
        assert_eq!(printed.shown, None);
    }

    #[tokio::test]
    async fn csv_is_written_while_the_query_runs() {
        // A writer that counts how often something arrived before the end.
        struct Count(Arc<Mutex<usize>>);
        impl Write for Count {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                *self.0.lock().unwrap() += 1;
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let context = SessionContext::new_with_config(SessionConfig::new().with_batch_size(2));
        let frame = context.sql(NUMBERS).await.unwrap();
        let writes = Arc::new(Mutex::new(0));
        let mut sink = Sink::new(Count(Arc::clone(&writes)), None);
        let layout = Layout {
            format: PrintFormat::Csv,
            maxrows: MaxRows::Unlimited,
        };
        layout.print(frame, &mut sink).await.unwrap();
        assert!(*writes.lock().unwrap() >= 3);
    }

    #[tokio::test]
    async fn a_reader_that_went_away_is_remembered() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        for format in [PrintFormat::Csv, PrintFormat::Json, PrintFormat::Table] {
            let context = SessionContext::new();
            let frame = context.sql(NUMBERS).await.unwrap();
            let mut sink = Sink::new(Closed, None);
            let maxrows = MaxRows::Unlimited;
            let result = Layout { format, maxrows }.print(frame, &mut sink).await;
            assert!(result.is_err() && sink.is_broken(), "{format:?}");
        }
    }
}
