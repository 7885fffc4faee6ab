//! TPC-H tables of any scale, and computed columns over lineitem that are kept fresh.
//!
//! ```sh
//! cargo run --release --example tpch -- [SCALE] [DATABASE]
//! ```
//!
//! SCALE is TPC-H's scale factor: 1 makes six million rows of lineitem; 0.01 is the default.
//! DATABASE is where the tables go, and stay: a folder or the URL of an object store; a
//! temporary folder if it is left out. Tables of the same names are replaced.
//!
//! The rows are made while they are written, 8,192 at a time: no file comes in between, and
//! memory does not grow with the scale (tpchgen takes 300 MB of text to cut comments from, and
//! seconds to make it when it is not optimised). The last hundredth of the orders comes later, to be
//! appended after the first refresh.

mod tables;

use std::error::Error;
use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::time::Instant;

use datafusion::arrow::array::{Array, AsArray};
use datafusion::arrow::datatypes::{Int64Type, UInt64Type};
use headwater::session::Headwater;
use tables::{PARTS, TABLES, generated};
use tpchgen::text::TextPool;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (scale, database) = match read(&arguments) {
        Ok(read) => read,
        Err(message) => {
            eprintln!("{message}\nUsage: tpch [SCALE] [DATABASE]");
            return ExitCode::from(2);
        }
    };
    match run(scale, database).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The scale, and the database if one is named.
fn read(arguments: &[String]) -> std::result::Result<(f64, Option<String>), String> {
    let (scale, database) = match arguments {
        [] => return Ok((0.01, None)),
        [scale] => (scale, None),
        [scale, database] => (scale, Some(database.clone())),
        _ => return Err("too many arguments".to_string()),
    };
    match scale.parse::<f64>() {
        // Below, a part of the orders would be empty; above, a row number leaves its range.
        Ok(number) if (0.001..=1000.0).contains(&number) => Ok((number, database)),
        _ => Err(format!(
            "'{scale}' is not a scale: a number from 0.001 to 1000"
        )),
    }
}

async fn run(scale: f64, database: Option<String>) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let database = database.unwrap_or_else(|| folder.path().display().to_string());
    let shop = Shop {
        headwater: Headwater::open(&database).await?,
        scale,
    };
    println!("TPC-H at scale {scale} in {database}\n");

    let started = Instant::now();
    TextPool::get_or_init_default();
    let elapsed = started.elapsed().as_secs_f64();
    println!("Made the text that comments are cut from in {elapsed:.1} s.\n");

    println!("Making the tables:");
    for name in TABLES {
        let statement = format!("CREATE OR REPLACE TABLE {name} AS");
        shop.load(&statement, name, 1..=PARTS - 1).await?;
    }

    println!("\nDeclaring computed columns, and filling them:");
    shop.run(
        "ALTER TABLE lineitem
             ADD COLUMN revenue DECIMAL(18, 4) AS (l_extendedprice * (1 - l_discount)),
             ADD COLUMN charge DECIMAL(18, 6) AS (revenue * (1 + l_tax)),
             ADD COLUMN days_late INT AS (l_receiptdate - l_commitdate),
             ADD COLUMN ship_month DATE AS (CAST(date_trunc('month', l_shipdate) AS DATE)),
             ADD COLUMN is_fragile BOOLEAN AS (l_shipinstruct LIKE '%IN PERSON%' OR l_comment LIKE '%careful%')",
    )
    .await?;
    let refresh = "REFRESH COLUMN revenue, charge, days_late, ship_month, is_fragile ON lineitem";
    shop.run(refresh).await?;

    println!("\nAppending the last hundredth of the orders:");
    for name in ["orders", "lineitem"] {
        let statement = format!("INSERT INTO {name}");
        shop.load(&statement, name, PARTS..=PARTS).await?;
    }
    shop.run(refresh).await?;

    println!("\nA discount changes: revenue and charge read it, the others do not:");
    shop.run("UPDATE lineitem SET l_discount = 0.10 WHERE l_shipmode = 'AIR' AND l_quantity >= 45")
        .await?;
    shop.run(refresh).await?;

    println!("\nA tax changes, for suppliers of one nation: only charge reads it:");
    shop.run(
        "UPDATE lineitem SET l_tax = 0 FROM supplier, nation
         WHERE l_suppkey = s_suppkey AND s_nationkey = n_nationkey AND n_name = 'GERMANY'",
    )
    .await?;
    shop.run(refresh).await?;

    println!("\nSmall fragments are put together, which changes no value:");
    shop.run("OPTIMIZE lineitem").await?;
    shop.run(refresh).await?;

    shop.check().await?;

    println!("\nWhat late deliveries cost, by nation of the supplier:");
    shop.headwater
        .sql(
            "SELECT n_name AS nation, count(*) AS lines, round(avg(days_late), 1) AS average_days,
                 sum(revenue) AS revenue, sum(charge) AS charge
             FROM lineitem JOIN supplier ON l_suppkey = s_suppkey
                 JOIN nation ON s_nationkey = n_nationkey
             WHERE days_late > 60 GROUP BY n_name ORDER BY revenue DESC LIMIT 5",
        )
        .await?
        .show()
        .await?;
    Ok(())
}

/// The database, and what the statements of this example have in common.
struct Shop {
    headwater: Headwater,
    scale: f64,
}

impl Shop {
    /// Runs `statement` with the rows of a table as its query; of orders and lineitem only these parts.
    async fn load(&self, statement: &str, name: &str, parts: RangeInclusive<i32>) -> Result<()> {
        // A table of the session: it is there for the statements, but not stored.
        let context = self.headwater.context();
        let table = generated(name, self.scale, parts, TextPool::get_or_init_default())?;
        context.register_table("generated", table)?;
        let done = self
            .run(&format!("{statement} SELECT * FROM generated"))
            .await;
        context.deregister_table("generated")?;
        done
    }

    /// Runs a statement and prints what it did: a line for each object.
    async fn run(&self, statement: &str) -> Result<()> {
        let started = Instant::now();
        let batches = self.headwater.sql(statement).await?.collect().await?;
        // Of the whole statement, so it stands once.
        let mut elapsed = format!("{:.3} s", started.elapsed().as_secs_f64());
        for batch in batches {
            for row in 0..batch.num_rows() {
                let text = |name: &str| {
                    let column = batch.column_by_name(name)?;
                    Some(column.as_string::<i32>().value(row).to_string())
                };
                let number = |name: &str| {
                    let column = batch.column_by_name(name)?.as_primitive::<UInt64Type>();
                    column.is_valid(row).then(|| column.value(row))
                };
                let statement = text("statement").unwrap_or("REFRESH COLUMN".to_string());
                let object = text("object").unwrap_or_default();
                let mode = text("mode").unwrap_or_default();
                let rows = number("rows_computed").or(number("rows"));
                let rows = rows.map_or_else(String::new, |rows| format!("{rows} rows"));
                let elapsed = std::mem::take(&mut elapsed);
                println!("  {statement:<14} {object:<20} {mode:<12} {rows:>16} {elapsed:>11}");
            }
        }
        Ok(())
    }

    /// Fails unless every computed value is what its expression gives now.
    async fn check(&self) -> Result<()> {
        let batches = self
            .headwater
            .sql(
                "SELECT count(*) AS rows, count(*) FILTER (WHERE
                     (revenue IS DISTINCT FROM CAST(l_extendedprice * (1 - l_discount) AS DECIMAL(18, 4)))
                     OR (charge IS DISTINCT FROM CAST(revenue * (1 + l_tax) AS DECIMAL(18, 6)))
                     OR (days_late IS DISTINCT FROM CAST(l_receiptdate - l_commitdate AS INT))
                     OR (ship_month IS DISTINCT FROM CAST(date_trunc('month', l_shipdate) AS DATE))
                     OR (is_fragile IS DISTINCT FROM
                         (l_shipinstruct LIKE '%IN PERSON%' OR l_comment LIKE '%careful%'))
                 ) AS wrong FROM lineitem",
            )
            .await?
            .collect()
            .await?;
        let value = |column: usize| {
            let column = batches.first()?.column(column);
            let column = column.as_primitive::<Int64Type>();
            column.iter().next().flatten()
        };
        match (value(0), value(1)) {
            (Some(rows), Some(0)) => {
                println!("\nChecked: all {rows} rows have the values that their inputs give.");
                Ok(())
            }
            counted => Err(format!("rows and wrong rows of lineitem: {counted:?}").into()),
        }
    }
}
