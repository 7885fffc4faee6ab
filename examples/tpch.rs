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

use std::error::Error;
use std::fmt::{self, Display};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, Date32Array, Decimal128Array, Int32Array, Int64Array, RecordBatch,
    StringArray,
};
use datafusion::arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, UInt64Type};
use datafusion::catalog::streaming::StreamingTable;
use datafusion::common::Result as DataFusionResult;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use futures::stream;
use headwater::session::Headwater;
use tpchgen::dates::TPCHDate;
use tpchgen::decimal::TPCHDecimal;
use tpchgen::generators::{
    CustomerGenerator, LineItem, LineItemGenerator, NationGenerator, Order, OrderGenerator,
    PartGenerator, PartSuppGenerator, RegionGenerator, SupplierGenerator,
};
use tpchgen::text::TextPool;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Rows of a batch.
const BATCH_ROWS: usize = 8192;

/// Orders are made in so many parts; the last one is what is appended.
const PARTS: i32 = 100;

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
    };
    println!("TPC-H at scale {scale} in {database}\n");

    let started = Instant::now();
    TextPool::get_or_init_default();
    let elapsed = started.elapsed().as_secs_f64();
    println!("Made the text that comments are cut from in {elapsed:.1} s.\n");

    println!("Making the tables:");
    for (name, rows) in tables(scale) {
        shop.load(&format!("CREATE OR REPLACE TABLE {name} AS"), rows)
            .await?;
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
    shop.load("INSERT INTO orders", orders(scale, PARTS..=PARTS))
        .await?;
    shop.load("INSERT INTO lineitem", lineitem(scale, PARTS..=PARTS))
        .await?;
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
}

impl Shop {
    /// Runs `statement` with `rows` as its query.
    async fn load(&self, statement: &str, rows: Generated) -> Result<()> {
        // A table of the session: it is there for the statements, but not stored.
        let context = self.headwater.context();
        let table = StreamingTable::try_new(Arc::clone(&rows.schema), vec![Arc::new(rows)])?;
        context.register_table("generated", Arc::new(table))?;
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

/// Rows that are made while they are read.
struct Generated {
    schema: SchemaRef,
    batches: Arc<dyn Fn() -> BatchIterator + Send + Sync>,
}

type BatchIterator = Box<dyn Iterator<Item = DataFusionResult<RecordBatch>> + Send>;

/// The columns of a table, by name.
type Columns = Vec<(&'static str, ArrayRef)>;

impl Generated {
    /// Rows as `rows` gives them, in batches as `columns` makes them.
    fn new<T, I>(rows: impl Fn() -> I + Send + Sync + 'static, columns: fn(&[T]) -> Columns) -> Self
    where
        T: 'static,
        I: Iterator<Item = T> + Send + 'static,
    {
        // The columns of no rows have the types of all.
        let fields: Vec<Field> = columns(&[])
            .iter()
            .map(|(name, array)| Field::new(*name, array.data_type().clone(), true))
            .collect();
        let schema = Arc::new(Schema::new(fields));
        let of_batches = Arc::clone(&schema);
        let batches = move || -> BatchIterator {
            let mut rows = rows();
            let schema = Arc::clone(&of_batches);
            Box::new(std::iter::from_fn(move || {
                let batch: Vec<T> = rows.by_ref().take(BATCH_ROWS).collect();
                if batch.is_empty() {
                    return None;
                }
                let arrays = columns(&batch)
                    .into_iter()
                    .map(|(_, array)| array)
                    .collect();
                Some(RecordBatch::try_new(Arc::clone(&schema), arrays).map_err(Into::into))
            }))
        };
        Self {
            schema,
            batches: Arc::new(batches),
        }
    }
}

impl fmt::Debug for Generated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generated")
            .field("schema", &self.schema)
            .finish_non_exhaustive()
    }
}

impl PartitionStream for Generated {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let batches = stream::iter((self.batches)());
        Box::pin(RecordBatchStreamAdapter::new(
            Arc::clone(&self.schema),
            batches,
        ))
    }
}

fn bigint(values: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}

fn int(values: impl Iterator<Item = i32>) -> ArrayRef {
    Arc::new(Int32Array::from_iter_values(values))
}

fn text(values: impl Iterator<Item = impl Display>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(
        values.map(|value| value.to_string()),
    ))
}

/// DECIMAL(15, 2); tpchgen counts in hundredths too.
fn decimal(values: impl Iterator<Item = TPCHDecimal>) -> ArrayRef {
    let values = values.map(|value| i128::from(value.into_inner()));
    let array = Decimal128Array::from_iter_values(values);
    Arc::new(array.with_data_type(DataType::Decimal128(15, 2)))
}

fn date(values: impl Iterator<Item = TPCHDate>) -> ArrayRef {
    let days = values.map(|date| date.to_unix_epoch());
    Arc::new(Date32Array::from_iter_values(days))
}

/// All tables with their names; of the orders and their lines all but the last part.
fn tables(scale: f64) -> Vec<(&'static str, Generated)> {
    vec![
        ("region", region()),
        ("nation", nation()),
        ("supplier", supplier(scale)),
        ("customer", customer(scale)),
        ("part", part(scale)),
        ("partsupp", partsupp(scale)),
        ("orders", orders(scale, 1..=PARTS - 1)),
        ("lineitem", lineitem(scale, 1..=PARTS - 1)),
    ]
}

fn region() -> Generated {
    Generated::new(
        || RegionGenerator::new(1.0, 1, 1).iter(),
        |rows| {
            vec![
                ("r_regionkey", bigint(rows.iter().map(|r| r.r_regionkey))),
                ("r_name", text(rows.iter().map(|r| r.r_name))),
                ("r_comment", text(rows.iter().map(|r| r.r_comment))),
            ]
        },
    )
}

fn nation() -> Generated {
    Generated::new(
        || NationGenerator::new(1.0, 1, 1).iter(),
        |rows| {
            vec![
                ("n_nationkey", bigint(rows.iter().map(|r| r.n_nationkey))),
                ("n_name", text(rows.iter().map(|r| r.n_name))),
                ("n_regionkey", bigint(rows.iter().map(|r| r.n_regionkey))),
                ("n_comment", text(rows.iter().map(|r| r.n_comment))),
            ]
        },
    )
}

fn supplier(scale: f64) -> Generated {
    Generated::new(
        move || SupplierGenerator::new(scale, 1, 1).iter(),
        |rows| {
            vec![
                ("s_suppkey", bigint(rows.iter().map(|r| r.s_suppkey))),
                ("s_name", text(rows.iter().map(|r| &r.s_name))),
                ("s_address", text(rows.iter().map(|r| &r.s_address))),
                ("s_nationkey", bigint(rows.iter().map(|r| r.s_nationkey))),
                ("s_phone", text(rows.iter().map(|r| &r.s_phone))),
                ("s_acctbal", decimal(rows.iter().map(|r| r.s_acctbal))),
                ("s_comment", text(rows.iter().map(|r| &r.s_comment))),
            ]
        },
    )
}

fn customer(scale: f64) -> Generated {
    Generated::new(
        move || CustomerGenerator::new(scale, 1, 1).iter(),
        |rows| {
            vec![
                ("c_custkey", bigint(rows.iter().map(|r| r.c_custkey))),
                ("c_name", text(rows.iter().map(|r| &r.c_name))),
                ("c_address", text(rows.iter().map(|r| &r.c_address))),
                ("c_nationkey", bigint(rows.iter().map(|r| r.c_nationkey))),
                ("c_phone", text(rows.iter().map(|r| &r.c_phone))),
                ("c_acctbal", decimal(rows.iter().map(|r| r.c_acctbal))),
                ("c_mktsegment", text(rows.iter().map(|r| r.c_mktsegment))),
                ("c_comment", text(rows.iter().map(|r| r.c_comment))),
            ]
        },
    )
}

fn part(scale: f64) -> Generated {
    Generated::new(
        move || PartGenerator::new(scale, 1, 1).iter(),
        |rows| {
            vec![
                ("p_partkey", bigint(rows.iter().map(|r| r.p_partkey))),
                ("p_name", text(rows.iter().map(|r| &r.p_name))),
                ("p_mfgr", text(rows.iter().map(|r| &r.p_mfgr))),
                ("p_brand", text(rows.iter().map(|r| &r.p_brand))),
                ("p_type", text(rows.iter().map(|r| r.p_type))),
                ("p_size", int(rows.iter().map(|r| r.p_size))),
                ("p_container", text(rows.iter().map(|r| r.p_container))),
                (
                    "p_retailprice",
                    decimal(rows.iter().map(|r| r.p_retailprice)),
                ),
                ("p_comment", text(rows.iter().map(|r| r.p_comment))),
            ]
        },
    )
}

fn partsupp(scale: f64) -> Generated {
    Generated::new(
        move || PartSuppGenerator::new(scale, 1, 1).iter(),
        |rows| {
            vec![
                ("ps_partkey", bigint(rows.iter().map(|r| r.ps_partkey))),
                ("ps_suppkey", bigint(rows.iter().map(|r| r.ps_suppkey))),
                ("ps_availqty", int(rows.iter().map(|r| r.ps_availqty))),
                (
                    "ps_supplycost",
                    decimal(rows.iter().map(|r| r.ps_supplycost)),
                ),
                ("ps_comment", text(rows.iter().map(|r| r.ps_comment))),
            ]
        },
    )
}

fn orders(scale: f64, parts: std::ops::RangeInclusive<i32>) -> Generated {
    Generated::new(
        move || {
            parts
                .clone()
                .flat_map(move |part| OrderGenerator::new(scale, part, PARTS).iter())
        },
        |rows: &[Order<'static>]| {
            vec![
                ("o_orderkey", bigint(rows.iter().map(|r| r.o_orderkey))),
                ("o_custkey", bigint(rows.iter().map(|r| r.o_custkey))),
                (
                    "o_orderstatus",
                    text(rows.iter().map(|r| r.o_orderstatus.as_str())),
                ),
                ("o_totalprice", decimal(rows.iter().map(|r| r.o_totalprice))),
                ("o_orderdate", date(rows.iter().map(|r| r.o_orderdate))),
                (
                    "o_orderpriority",
                    text(rows.iter().map(|r| r.o_orderpriority)),
                ),
                ("o_clerk", text(rows.iter().map(|r| &r.o_clerk))),
                ("o_shippriority", int(rows.iter().map(|r| r.o_shippriority))),
                ("o_comment", text(rows.iter().map(|r| r.o_comment))),
            ]
        },
    )
}

fn lineitem(scale: f64, parts: std::ops::RangeInclusive<i32>) -> Generated {
    Generated::new(
        move || {
            parts
                .clone()
                .flat_map(move |part| LineItemGenerator::new(scale, part, PARTS).iter())
        },
        |rows: &[LineItem<'static>]| {
            // The only decimal that tpchgen gives as a whole number.
            let quantity = |r: &LineItem| TPCHDecimal::new(r.l_quantity * 100);
            vec![
                ("l_orderkey", bigint(rows.iter().map(|r| r.l_orderkey))),
                ("l_partkey", bigint(rows.iter().map(|r| r.l_partkey))),
                ("l_suppkey", bigint(rows.iter().map(|r| r.l_suppkey))),
                ("l_linenumber", int(rows.iter().map(|r| r.l_linenumber))),
                ("l_quantity", decimal(rows.iter().map(quantity))),
                (
                    "l_extendedprice",
                    decimal(rows.iter().map(|r| r.l_extendedprice)),
                ),
                ("l_discount", decimal(rows.iter().map(|r| r.l_discount))),
                ("l_tax", decimal(rows.iter().map(|r| r.l_tax))),
                ("l_returnflag", text(rows.iter().map(|r| r.l_returnflag))),
                ("l_linestatus", text(rows.iter().map(|r| r.l_linestatus))),
                ("l_shipdate", date(rows.iter().map(|r| r.l_shipdate))),
                ("l_commitdate", date(rows.iter().map(|r| r.l_commitdate))),
                ("l_receiptdate", date(rows.iter().map(|r| r.l_receiptdate))),
                (
                    "l_shipinstruct",
                    text(rows.iter().map(|r| r.l_shipinstruct)),
                ),
                ("l_shipmode", text(rows.iter().map(|r| r.l_shipmode))),
                ("l_comment", text(rows.iter().map(|r| r.l_comment))),
            ]
        },
    )
}
