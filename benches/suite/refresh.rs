//! REFRESH COLUMN against the calls of Lance that it can't do without.

use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::compute::kernels::numeric::mul_wrapping;
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use futures::{StreamExt, TryStreamExt, stream};
use lance::Dataset;
use lance::dataset::fragment::FileFragment;
use lance::dataset::transaction::{DataReplacementGroup, Operation, TransactionBuilder};
use lance::dataset::{CommitBuilder, NewColumnTransform};

use crate::kit::{Database, Report, Result, Settings, alternate, grouped, timed};

/// Fragments of the tables.
pub const FRAGMENTS: u64 = 16;

/// Rows of the tables, unless the settings say otherwise.
pub const ROWS: u64 = 10_000_000;

pub async fn run(settings: &Settings) -> Result<Report> {
    let rows = settings.rows.unwrap_or(ROWS);
    let database = Database::new().await?;
    database.make("ours", rows, FRAGMENTS).await?;
    database.declare_area("ours").await?;
    database.make("floor", rows, FRAGMENTS).await?;
    let mut floor = Floor::open(&database.table_uri("floor"), database.parallelism()).await?;
    let best = alternate(
        settings.runs,
        async || floor.refresh().await,
        async || {
            let sql = "REFRESH COLUMN area ON ours FULL";
            database.timed_refresh(sql, rows).await
        },
    )
    .await?;
    database.check_area("ours").await?;
    database.check_area("floor").await?;
    let mut report = Report::new(
        "refresh",
        format!(
            "The statement `REFRESH COLUMN area ON t FULL`, where area is `x * y`, on {FRAGMENTS} \
             fragments. Floor: Lance's own calls and no more: scan x and y, multiply without a \
             check, write a column file a fragment, {} fragments at once, one commit.",
            database.parallelism()
        ),
    );
    report.time(
        format!("REFRESH COLUMN x * y, {} rows", grouped(rows)),
        best,
        "ratio ≤ 1.3",
    );
    Ok(report)
}

/// A table, and the least that a refresh of it takes.
struct Floor {
    dataset: Dataset,
    parallelism: usize,
}

impl Floor {
    /// Opens the table and adds the column.
    async fn open(uri: &str, parallelism: usize) -> Result<Self> {
        let mut dataset = Dataset::open(uri).await?;
        let column = NewColumnTransform::AllNulls(area());
        dataset.add_columns(column, None, None).await?;
        Ok(Self {
            dataset,
            parallelism,
        })
    }

    /// Computes and commits the column once.
    async fn refresh(&mut self) -> Result<Duration> {
        timed(async {
            let replacements: Vec<DataReplacementGroup> =
                stream::iter(self.dataset.get_fragments())
                    .map(|fragment| tokio::spawn(write_area(fragment)))
                    .buffer_unordered(self.parallelism)
                    .map(|written| written?)
                    .try_collect()
                    .await?;
            let version = self.dataset.version().version;
            let operation = Operation::DataReplacement { replacements };
            let transaction = TransactionBuilder::new(version, operation).build();
            self.dataset = CommitBuilder::new(Arc::new(self.dataset.clone()))
                .execute(transaction)
                .await?;
            Ok(())
        })
        .await
    }
}

async fn write_area(fragment: FileFragment) -> Result<DataReplacementGroup> {
    let written = fragment.schema().project(&["area"])?;
    let mut scan = fragment.scan();
    scan.project(&["x", "y"])?.scan_in_order(true);
    let areas = scan.try_into_stream().await?.map(|batch| {
        let batch = batch?;
        let product = mul_wrapping(batch.column(0), batch.column(1))?;
        Ok(RecordBatch::try_new(area(), vec![product])?)
    });
    Ok(fragment.write_columns(areas, &written).await?)
}

fn area() -> Arc<Schema> {
    Arc::new(Schema::new(vec![Field::new("area", DataType::Int32, true)]))
}
