//! Queries over a table, against DataFusion over the same rows in Parquet.

use std::time::Duration;

use datafusion::config::TableParquetOptions;
use datafusion::dataframe::DataFrameWriteOptions;
use datafusion::prelude::{ParquetReadOptions, SessionContext};

use super::refresh::{FRAGMENTS, ROWS};
use crate::kit::{Database, Report, Result, Settings, alternate, grouped, text, timed};

/// What is asked, and of which table: `t` in both engines.
const QUERIES: [&str; 2] = [
    "SELECT sum(x) FROM t",
    "SELECT y, count(*), sum(x), max(id) FROM t GROUP BY y",
];

/// How the Parquet files are compressed: what DataFusion does by default, and what is fastest to read.
const COMPRESSIONS: [&str; 2] = ["zstd(3)", "uncompressed"];

pub async fn run(settings: &Settings) -> Result<Report> {
    let rows = settings.rows.unwrap_or(ROWS);
    let database = Database::new().await?;
    database.make("t", rows, FRAGMENTS).await?;
    let mut report = Report::new(
        "query",
        format!(
            "A query over a table of {} rows in {FRAGMENTS} fragments, warm. Floor: DataFusion \
             over the same rows in {FRAGMENTS} Parquet files of one row group each. Both read \
             {} partitions at once.",
            grouped(rows),
            database.parallelism()
        ),
    );
    for compression in COMPRESSIONS {
        let parquet = parquet(&database, rows, compression).await?;
        for query in QUERIES {
            let expected = parquet.sql(query).await?.collect().await?;
            if text(&expected)? != text(&database.run(query).await?)? {
                return Err(format!("'{query}' gives another result over Parquet").into());
            }
            let best = alternate(
                settings.runs,
                async || collect(&parquet, query).await,
                async || database.timed(query).await,
            )
            .await?;
            report.time(
                format!("`{query}`, Parquet {compression}"),
                best,
                "ratio ≤ 1.0",
            );
        }
    }
    Ok(report)
}

async fn collect(context: &SessionContext, query: &str) -> Result<Duration> {
    timed(async { Ok(context.sql(query).await?.collect().await?) }).await
}

/// A context of DataFusion alone, over the table's rows in Parquet: a file for each fragment.
async fn parquet(database: &Database, rows: u64, compression: &str) -> Result<SessionContext> {
    let folder = database
        .folder()
        .join(format!("parquet-{}", compression.replace(['(', ')'], "-")));
    std::fs::create_dir_all(&folder)?;
    let mut options = TableParquetOptions::default();
    options.global.compression = Some(compression.to_string());
    let most = rows.div_ceil(FRAGMENTS);
    options.global.max_row_group_size = most as usize;
    for part in 0..FRAGMENTS {
        let (first, end) = (part * most, (part + 1) * most);
        let path = folder.join(format!("part-{part:02}.parquet"));
        database
            .headwater()
            .sql(&format!(
                "SELECT * FROM t WHERE id >= {first} AND id < {end} ORDER BY id"
            ))
            .await?
            .write_parquet(
                &path.to_string_lossy(),
                DataFrameWriteOptions::new().with_single_file_output(true),
                Some(options.clone()),
            )
            .await?;
    }
    let context = SessionContext::new();
    context
        .register_parquet("t", folder.to_string_lossy(), ParquetReadOptions::default())
        .await?;
    Ok(context)
}
