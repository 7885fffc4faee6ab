//! Materialized views over TPC-H: incremental refreshes against full ones, and full ones against DataFusion.

mod growth;
mod queries;
#[path = "../../../sql-tests/tpch/rows.rs"]
mod query_rows;
#[path = "../../../sql-tests/tpch/queries.rs"]
mod query_texts;
mod shop;
#[path = "../../../examples/tpch/tables.rs"]
mod tables;

use std::time::Duration;

use datafusion::dataframe::DataFrameWriteOptions;
use datafusion::prelude::{ParquetReadOptions, SessionContext};

use crate::kit::{Best, Report, Result, Settings, alternate, best, milliseconds, timed};
pub use growth::run as growth;
pub use queries::run as queries;
use shop::{APPENDED, Shop};
use tables::PARTS;

/// A view and changes to what it reads.
struct Case {
    view: &'static str,
    changed: &'static str,
    /// What the ratio of incremental to full should be, as the report says it.
    goal: &'static str,
    query: &'static str,
    /// Its columns, as they are compared: floats rounded to what they are a whole number of.
    compared: &'static [&'static str],
    /// The statements of a change; `{}` is another number each time.
    change: &'static [&'static str],
}

/// One of a hundred rows of lineitem.
const ONE_PERCENT: &[&str] = &["UPDATE lineitem SET l_quantity = l_quantity + 1, \
     l_extendedprice = l_extendedprice + 1 WHERE l_orderkey / 32 % 100 = {}"];

const CASES: [Case; 4] = [
    Case {
        view: "sum, count, avg by 4 groups",
        changed: "1 % updated",
        goal: "≤ 5 % + 100 ms",
        query: "SELECT l_returnflag, l_linestatus, sum(l_quantity) AS s, count(*) AS n, avg(l_extendedprice) AS a \
                FROM lineitem GROUP BY l_returnflag, l_linestatus",
        compared: &["l_returnflag", "l_linestatus", "s", "n", "a"],
        change: ONE_PERCENT,
    },
    Case {
        view: "sum, count, avg by 100,000 groups",
        changed: "1 % updated",
        goal: "≤ 5 % + 100 ms",
        query: "SELECT l_partkey % 100000 AS k, sum(l_quantity) AS s, count(*) AS n, avg(l_extendedprice) AS a \
                FROM lineitem GROUP BY l_partkey % 100000",
        compared: &["k", "s", "n", "a"],
        change: ONE_PERCENT,
    },
    Case {
        view: "min, float sum, median by 100,000 groups",
        changed: "0.1 % updated",
        goal: "ratio ≤ 0.2",
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
        goal: "ratio ≤ 0.1",
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
    Ok(report)
}

impl Shop {
    /// Rows are appended.
    async fn appended(&self, runs: usize, report: &mut Report) -> Result<()> {
        self.create("appended", ROWS_QUERY).await?;
        let mut times = Times::default();
        for part in PARTS - APPENDED + 1..=PARTS {
            self.load("INSERT INTO lineitem", "lineitem", part..=part)
                .await?;
            let ours = self
                .refresh("appended", "INCREMENTAL", "incremental")
                .await?;
            // Before FULL makes it right.
            self.check("appended", ROWS_QUERY, ROWS_COMPARED).await?;
            let floor = self.refresh("appended", "FULL", "full").await?;
            times.add(floor, ours);
        }
        report.time(
            "filter, project, x * y; 1 % appended",
            times.best()?,
            "≤ 5 % + 60 ms",
        );
        let nothing = best(runs, async || self.refresh("appended", "", "none").await).await?;
        let what = "the same; nothing changed";
        report.row(what, "-", milliseconds(nothing), "-", "≤ 100 ms");
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
            let ours = self
                .refresh("changed", "INCREMENTAL", "incremental")
                .await?;
            self.check("changed", case.query, case.compared).await?;
            let floor = self.refresh("changed", "FULL", "full").await?;
            times.add(floor, ours);
        }
        report.time(
            format!("{}; {}", case.view, case.changed),
            times.best()?,
            case.goal,
        );
        self.drop("changed").await
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
        report.time(format!("{what}; FULL against Parquet"), best, "ratio ≤ 1.3");
        self.drop("whole").await
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
