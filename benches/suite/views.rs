//! Materialized views over TPC-H: incremental refreshes against full ones, and full ones against DataFusion.

#[path = "../../sql-tests/tpch/queries.rs"]
mod queries;
#[path = "../../sql-tests/tpch/rows.rs"]
mod rows;
#[path = "../../examples/tpch/tables.rs"]
mod tables;

use std::ops::RangeInclusive;
use std::time::Duration;

use datafusion::arrow::array::{AsArray, RecordBatch};
use datafusion::arrow::datatypes::Int64Type;
use datafusion::dataframe::DataFrameWriteOptions;
use datafusion::prelude::{ParquetReadOptions, SessionContext};
use rows::{is_same, only_in};
use tables::{PARTS, TABLES, generated};
use tpchgen::text::TextPool;

use crate::kit::{Best, Database, Report, Result, Settings, alternate, best, milliseconds, timed};

/// A view and changes to what it reads.
struct Case {
    view: &'static str,
    changed: &'static str,
    query: &'static str,
    /// Its columns, as they are compared: floats rounded to what they are a whole number of.
    compared: &'static [&'static str],
    /// The statements of a change; `{}` is another number each time.
    change: &'static [&'static str],
}

const CASES: [Case; 4] = [
    Case {
        view: "sum, count, avg by 4 groups",
        changed: "1 % updated",
        query: "SELECT l_returnflag, l_linestatus, sum(l_quantity) AS s, count(*) AS n, avg(l_extendedprice) AS a \
                FROM lineitem GROUP BY l_returnflag, l_linestatus",
        compared: &["l_returnflag", "l_linestatus", "s", "n", "a"],
        change: &["UPDATE lineitem SET l_quantity = l_quantity + 1, \
                   l_extendedprice = l_extendedprice + 1 WHERE l_orderkey / 32 % 100 = {}"],
    },
    Case {
        view: "sum, count, avg by 100,000 groups",
        changed: "1 % updated",
        query: "SELECT l_partkey % 100000 AS k, sum(l_quantity) AS s, count(*) AS n, avg(l_extendedprice) AS a \
                FROM lineitem GROUP BY l_partkey % 100000",
        compared: &["k", "s", "n", "a"],
        change: &["UPDATE lineitem SET l_quantity = l_quantity + 1, \
                   l_extendedprice = l_extendedprice + 1 WHERE l_orderkey / 32 % 100 = {}"],
    },
    Case {
        view: "min, float sum, median by 100,000 groups",
        changed: "0.1 % updated",
        query: "SELECT l_partkey % 100000 AS k, min(l_quantity) AS lo, \
                sum(CAST(l_extendedprice AS DOUBLE)) AS s, median(l_discount) AS m \
                FROM lineitem GROUP BY l_partkey % 100000",
        compared: &["k", "lo", "round(s, 2)", "m"],
        change: &["UPDATE lineitem SET l_quantity = l_quantity - 1, \
                   l_extendedprice = l_extendedprice + 1 WHERE l_orderkey / 32 % 1000 = {}"],
    },
    Case {
        view: "join of orders and lineitem",
        changed: "0.1 % of both changed",
        query: "SELECT o_orderkey, l_linenumber, o_orderdate, l_quantity, o_totalprice - l_extendedprice AS rest \
                FROM orders JOIN lineitem ON l_orderkey = o_orderkey",
        compared: &[
            "o_orderkey",
            "l_linenumber",
            "o_orderdate",
            "l_quantity",
            "rest",
        ],
        change: &[
            "UPDATE orders SET o_totalprice = o_totalprice + 1 WHERE o_orderkey / 32 % 1000 = {}",
            "UPDATE lineitem SET l_quantity = l_quantity + 1 WHERE l_orderkey / 32 % 2000 = 999 - {}",
            "DELETE FROM lineitem WHERE l_orderkey / 32 % 2000 = 1000 + {}",
        ],
    },
];

/// A view of single rows, to which rows are appended.
const ROWS_QUERY: &str = "SELECT l_orderkey, l_linenumber, l_quantity * l_extendedprice AS product FROM lineitem \
                          WHERE l_shipdate > DATE '1995-01-01'";
const ROWS_COMPARED: &[&str] = &["l_orderkey", "l_linenumber", "product"];

/// Changes of orders and their lines: of 10,000 groups of orders, those from `{from}` on, so many that are inserted,
/// updated and deleted. `{n}` is the number of the change; of 32 keys TPC-H takes 8.
const CHANGES: &[&str] = &[
    "INSERT INTO orders SELECT * REPLACE (o_orderkey + 8 * {n} AS o_orderkey) FROM orders \
     WHERE o_orderkey % 32 < 8 AND o_orderkey / 32 % 10000 - {from} BETWEEN 0 AND {inserted} - 1",
    "INSERT INTO lineitem SELECT * REPLACE (l_orderkey + 8 * {n} AS l_orderkey) FROM lineitem \
     WHERE l_orderkey % 32 < 8 AND l_orderkey / 32 % 10000 - {from} BETWEEN 0 AND {inserted} - 1",
    "UPDATE orders SET o_totalprice = o_totalprice + 1, o_orderpriority = '1-URGENT' \
     WHERE o_orderkey / 32 % 10000 - {from} - {inserted} BETWEEN 0 AND {updated} - 1",
    "UPDATE lineitem SET l_quantity = l_quantity + 1, l_extendedprice = l_extendedprice + 10 \
     WHERE l_orderkey / 32 % 10000 - {from} - {inserted} BETWEEN 0 AND {updated} - 1",
    "DELETE FROM lineitem \
     WHERE l_orderkey / 32 % 10000 - {from} - {inserted} - {updated} BETWEEN 0 AND {deleted} - 1",
    "DELETE FROM orders \
     WHERE o_orderkey / 32 % 10000 - {from} - {inserted} - {updated} BETWEEN 0 AND {deleted} - 1",
];

/// Of 10,000 orders, how many change: a tenth of a percent, one, ten.
const SHARES: [u32; 3] = [10, 100, 1000];

/// The statements of the change `number`, counted from 1.
fn changes(number: u32, share: u32) -> impl Iterator<Item = String> {
    let (inserted, updated) = (share * 4 / 10, share * 3 / 10);
    CHANGES.iter().map(move |statement| {
        statement
            .replace("{n}", &number.to_string())
            .replace("{from}", &(number * 2000).to_string())
            .replace("{inserted}", &inserted.to_string())
            .replace("{updated}", &updated.to_string())
            .replace("{deleted}", &(share - inserted - updated).to_string())
    })
}

/// Parts of lineitem, each a hundredth, that are appended while the benchmark runs.
const APPENDED: i32 = 6;

pub async fn run(settings: &Settings) -> Result<Report> {
    let scale = settings.scale.unwrap_or(1.0);
    let shop = Shop::new(scale).await?;
    let mut report = Report::new(
        "views",
        format!(
            "REFRESH MATERIALIZED VIEW after a change, over the tables of TPC-H at scale {scale}. \
             Floor: the same refresh with FULL. Where FULL itself is measured, its floor is \
             DataFusion's query over Parquet, written to Parquet. Both read {} partitions at once.",
            shop.database.parallelism()
        ),
    );
    let runs = settings.runs;
    shop.appended(runs, &mut report).await?;
    let parquet = shop.parquet().await?;
    shop.full(
        "filter, project, x * y",
        ROWS_QUERY,
        &parquet,
        runs,
        &mut report,
    )
    .await?;
    for case in &CASES[..2] {
        shop.full(case.view, case.query, &parquet, runs, &mut report)
            .await?;
    }
    for case in &CASES {
        shop.changed(case, runs, &mut report).await?;
    }
    shop.queries(&mut report).await?;
    Ok(report)
}

/// A database with the tables of TPC-H.
struct Shop {
    database: Database,
    scale: f64,
}

impl Shop {
    /// The tables, without the last parts of lineitem.
    async fn new(scale: f64) -> Result<Self> {
        let shop = Self {
            database: Database::new().await?,
            scale,
        };
        for name in TABLES {
            eprintln!("making {name}");
            let last = match name {
                "lineitem" => PARTS - APPENDED,
                _ => PARTS,
            };
            shop.load(&format!("CREATE TABLE {name} AS"), name, 1..=last)
                .await?;
        }
        Ok(shop)
    }

    /// Runs a statement with rows of a table as its query.
    async fn load(&self, statement: &str, name: &str, parts: RangeInclusive<i32>) -> Result<()> {
        let context = self.database.headwater().context();
        let table = generated(name, self.scale, parts, TextPool::get_or_init_default())?;
        context.register_table("generated", table)?;
        let statement = format!("{statement} SELECT * FROM generated");
        self.database.run(&statement).await?;
        context.deregister_table("generated")?;
        Ok(())
    }

    async fn create(&self, view: &str, query: &str) -> Result<()> {
        eprintln!("making view {view}");
        let statement = format!("CREATE MATERIALIZED VIEW {view} AS {query}");
        self.database.run(&statement).await?;
        Ok(())
    }

    async fn drop(&self, view: &str) -> Result<()> {
        let statement = format!("DROP MATERIALIZED VIEW {view}");
        self.database.run(&statement).await?;
        Ok(())
    }

    /// How long a refresh takes, which must be of this mode.
    async fn refresh(&self, view: &str, options: &str, mode: &str) -> Result<Duration> {
        let statement = format!("REFRESH MATERIALIZED VIEW {view} {options}");
        let mut done = Vec::new();
        let elapsed = timed(async {
            done = self.database.run(&statement).await?;
            Ok(())
        })
        .await?;
        let found = done.first().and_then(|batch| batch.column_by_name("mode"));
        match found.map(|column| column.as_string::<i32>().value(0)) {
            Some(found) if found == mode => Ok(elapsed),
            found => Err(format!("'{statement}' was {found:?} instead of {mode}").into()),
        }
    }

    /// Rows are appended.
    async fn appended(&self, runs: usize, report: &mut Report) -> Result<()> {
        self.create("appended", ROWS_QUERY).await?;
        let mut times = Times::default();
        for part in PARTS - APPENDED + 1..=PARTS {
            self.load("INSERT INTO lineitem", "lineitem", part..=part)
                .await?;
            let ours = self.refresh("appended", "", "incremental").await?;
            // Before FULL makes it right.
            self.check("appended", ROWS_QUERY, ROWS_COMPARED).await?;
            let floor = self.refresh("appended", "FULL", "full").await?;
            times.add(floor, ours);
        }
        report.time("filter, project, x * y; 1 % appended", times.best()?, "");
        let nothing = best(runs, async || self.refresh("appended", "", "none").await).await?;
        let what = "the same; nothing changed";
        report.row(what, "-", milliseconds(nothing), "", "");
        self.drop("appended").await
    }

    /// Rows are changed.
    async fn changed(&self, case: &Case, runs: usize, report: &mut Report) -> Result<()> {
        self.create("changed", case.query).await?;
        let mut times = Times::default();
        for run in 0..=runs {
            for statement in case.change {
                let statement = statement.replace("{}", &run.to_string());
                self.database.run(&statement).await?;
            }
            let ours = self.refresh("changed", "", "incremental").await?;
            self.check("changed", case.query, case.compared).await?;
            let floor = self.refresh("changed", "FULL", "full").await?;
            times.add(floor, ours);
        }
        report.time(
            format!("{}; {}", case.view, case.changed),
            times.best()?,
            "",
        );
        self.drop("changed").await
    }

    /// Fails unless the view holds the rows of the query, each as often.
    async fn check(&self, view: &str, query: &str, columns: &[&str]) -> Result<()> {
        // By counting: EXCEPT ALL takes no account of how often a row is there.
        let counted = |from: &str| {
            let places: Vec<String> = (1..=columns.len()).map(|place| place.to_string()).collect();
            let (columns, places) = (columns.join(", "), places.join(", "));
            format!("SELECT {columns}, count(*) AS times FROM {from} GROUP BY {places}")
        };
        let (held, wanted) = (counted(view), counted(&format!("({query}) AS wanted")));
        for (left, right) in [(&held, &wanted), (&wanted, &held)] {
            let statement = format!("SELECT count(*) FROM ({left} EXCEPT {right}) AS differing");
            let differing = count(&self.database.run(&statement).await?);
            if differing != Some(0) {
                return Err(format!("{differing:?} rows of '{query}' are wrong").into());
            }
        }
        Ok(())
    }

    /// A context of DataFusion alone, over lineitem in Parquet.
    async fn parquet(&self) -> Result<SessionContext> {
        let folder = self.database.folder().join("parquet");
        let folder = folder.to_string_lossy().into_owned();
        let rows = self
            .database
            .headwater()
            .sql("SELECT * FROM lineitem")
            .await?;
        rows.write_parquet(&folder, DataFrameWriteOptions::new(), None)
            .await?;
        let context = SessionContext::new();
        let options = ParquetReadOptions::default();
        context
            .register_parquet("lineitem", &folder, options)
            .await?;
        Ok(context)
    }

    /// A full refresh against the query over Parquet, written to Parquet.
    async fn full(
        &self,
        what: &str,
        query: &str,
        parquet: &SessionContext,
        runs: usize,
        report: &mut Report,
    ) -> Result<()> {
        self.create("whole", query).await?;
        let folder = self.database.folder().join("written");
        let best = alternate(
            runs,
            async || {
                let elapsed = timed(async {
                    let rows = parquet.sql(query).await?;
                    let options = DataFrameWriteOptions::new();
                    rows.write_parquet(&folder.to_string_lossy(), options, None)
                        .await?;
                    Ok(())
                })
                .await?;
                std::fs::remove_dir_all(&folder)?;
                Ok(elapsed)
            },
            async || self.refresh("whole", "FULL", "full").await,
        )
        .await?;
        report.time(format!("{what}; FULL against Parquet"), best, "");
        self.drop("whole").await
    }

    /// The queries that read orders or lineitem, after changes of a share of these.
    async fn queries(&self, report: &mut Report) -> Result<()> {
        let mut views = queries::views();
        // The others read neither.
        views.retain(|(_, query)| query.contains("lineitem") || query.contains("orders"));
        for (name, query) in &views {
            self.create(name, query).await?;
        }
        for (number, share) in (1..).zip(SHARES) {
            for statement in changes(number, share) {
                self.database.run(&statement).await?;
            }
            let percent = f64::from(share) / 100.0;
            let mut speedups = Vec::with_capacity(views.len());
            for (name, query) in &views {
                let ours = self.refresh(name, "INCREMENTAL", "incremental").await?;
                let held = self.database.run(&format!("SELECT * FROM {name}")).await?;
                let held = rows::rows(&held)?;
                let wanted = rows::rows(&self.database.run(query).await?)?;
                if !is_same(&held, &wanted) {
                    let (more, less) = (only_in(&held, &wanted), only_in(&wanted, &held));
                    return Err(format!("{name} holds\n{more}\ninstead of\n{less}").into());
                }
                let floor = self.refresh(name, "FULL", "full").await?;
                speedups.push(floor.as_secs_f64() / ours.as_secs_f64());
                let what = format!("TPC-H {name}; {percent} % of orders and lineitem changed");
                report.time(what, Best { floor, ours }, "");
            }
            speedups.sort_by(f64::total_cmp);
            let middle = speedups.len() / 2;
            let median = (speedups[middle] + speedups[middle - 1]) / 2.0;
            report.row(
                format!(
                    "TPC-H, {percent} % changed: median of how many times faster than FULL, {} queries",
                    views.len()
                ),
                "",
                "",
                format!("{median:.2} times"),
                "",
            );
        }
        Ok(())
    }
}

/// Times of both sides; the first of each does not count.
#[derive(Default)]
struct Times(Vec<Best>);

impl Times {
    fn add(&mut self, floor: Duration, ours: Duration) {
        self.0.push(Best { floor, ours });
    }

    fn best(&self) -> Result<Best> {
        let counted = self.0.iter().skip(1).copied();
        let best = counted.reduce(|best, next| Best {
            floor: best.floor.min(next.floor),
            ours: best.ours.min(next.ours),
        });
        best.ok_or_else(|| "nothing was measured".into())
    }
}

/// The number that a query gives.
fn count(batches: &[RecordBatch]) -> Option<i64> {
    let column = batches.first()?.column(0);
    column.as_primitive::<Int64Type>().iter().next()?
}
