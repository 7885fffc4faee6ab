//! A database in a folder below `target/`, which goes when the benchmark ends.
//!
//! Its tables have the columns `id` BIGINT, `x` INT and `y` INT. Their values follow from the id
//! by a formula, so every run, and every side of a comparison, has the same ones: `x` and `y` are
//! spread over 0 to 1,999 without an order, and their product fits INT.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use datafusion::arrow::array::{AsArray, RecordBatch};
use datafusion::arrow::datatypes::{Int64Type, UInt64Type};
use datafusion::arrow::util::pretty::pretty_format_batches;
use headwater::session::Headwater;
use tempfile::TempDir;

use super::{Result, grouped, timed};

/// Where benchmarks keep what goes when they end; made by cargo, below `target/`.
const SCRATCH: &str = env!("CARGO_TARGET_TMPDIR");

/// A database to measure in.
pub struct Database {
    folder: TempDir,
    headwater: Headwater,
}

impl Database {
    /// An empty database, and a session over it.
    pub async fn new() -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("bench-")
            .tempdir_in(SCRATCH)?;
        let headwater = Headwater::open(&folder.path().to_string_lossy()).await?;
        Ok(Self { folder, headwater })
    }

    /// The folder of the database; a benchmark may put files of its own into it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The folder that cargo builds in.
    pub fn target() -> PathBuf {
        Path::new(SCRATCH)
            .parent()
            .unwrap_or(Path::new(SCRATCH))
            .to_path_buf()
    }

    /// Where the database is.
    pub fn url(&self) -> String {
        self.folder.path().to_string_lossy().into_owned()
    }

    /// Where Lance finds a table.
    pub fn table_uri(&self, table: &str) -> String {
        format!("{}/{table}.lance", self.url())
    }

    /// The session.
    pub fn headwater(&self) -> &Headwater {
        &self.headwater
    }

    /// Fragments that are computed, and partitions that are read, at once.
    pub fn parallelism(&self) -> usize {
        self.headwater.context().copied_config().target_partitions()
    }

    /// Makes the table `name` with `rows` rows in `fragments` fragments of equal size.
    pub async fn make(&self, name: &str, rows: u64, fragments: u64) -> Result<()> {
        eprintln!(
            "making {} rows in {} fragments",
            grouped(rows),
            grouped(fragments)
        );
        let most = rows.div_ceil(fragments);
        let select = numbers(0..rows);
        self.run(&format!(
            "CREATE TABLE {name} WITH (max_rows_per_fragment = {most}) AS {select}"
        ))
        .await?;
        let have = lance::Dataset::open(&self.table_uri(name))
            .await?
            .count_fragments() as u64;
        // Rows that can't be shared out equally may need one fewer.
        if have.abs_diff(fragments) > 1 {
            return Err(format!("the table has {have} fragments instead of {fragments}").into());
        }
        Ok(())
    }

    /// Appends rows with these ids.
    pub async fn append(&self, name: &str, ids: Range<u64>) -> Result<()> {
        let select = numbers(ids);
        self.run(&format!("INSERT INTO {name} (id, x, y) {select}"))
            .await?;
        Ok(())
    }

    /// Declares the computed column `area`.
    pub async fn declare_area(&self, name: &str) -> Result<()> {
        self.run(&format!(
            "ALTER TABLE {name} ADD COLUMN area INT AS (x * y)"
        ))
        .await?;
        Ok(())
    }

    /// Fails unless `area` is `x * y` in every row.
    pub async fn check_area(&self, name: &str) -> Result<()> {
        let batches = self
            .run(&format!(
                "SELECT count(*) FROM {name} WHERE area IS DISTINCT FROM x * y"
            ))
            .await?;
        let wrong = batches[0].column(0).as_primitive::<Int64Type>().value(0);
        match wrong {
            0 => Ok(()),
            wrong => Err(format!("{wrong} rows of table '{name}' have a wrong area").into()),
        }
    }

    /// Runs a statement.
    pub async fn run(&self, sql: &str) -> Result<Vec<RecordBatch>> {
        Ok(self.headwater.sql(sql).await?.collect().await?)
    }

    /// How long a statement takes.
    pub async fn timed(&self, sql: &str) -> Result<Duration> {
        timed(self.run(sql)).await
    }

    /// How long a refresh takes, which must have computed `rows` rows.
    pub async fn timed_refresh(&self, sql: &str, rows: u64) -> Result<Duration> {
        let started = std::time::Instant::now();
        let done = self.run(sql).await?;
        let elapsed = started.elapsed();
        let computed: u64 = done
            .iter()
            .filter_map(|batch| batch.column_by_name("rows_computed"))
            .flat_map(|column| column.as_primitive::<UInt64Type>().iter().flatten())
            .sum();
        match computed == rows {
            true => Ok(elapsed),
            false => Err(format!("'{sql}' computed {computed} rows instead of {rows}").into()),
        }
    }
}

/// A query that gives the rows with these ids.
fn numbers(ids: Range<u64>) -> String {
    let (first, end) = (ids.start, ids.end);
    format!(
        "SELECT value AS id, \
         CAST((value * 2654435761 + 20) / 65536 % 2000 AS INT) AS x, \
         CAST((value * 2246822519 + 26) / 65536 % 2000 AS INT) AS y \
         FROM range({first}, {end})"
    )
}

/// Rows as text in an order of their own, to compare results.
pub fn text(batches: &[RecordBatch]) -> Result<Vec<String>> {
    let text = pretty_format_batches(batches)?.to_string();
    let mut lines: Vec<String> = text.lines().map(str::to_string).collect();
    lines.sort();
    Ok(lines)
}
