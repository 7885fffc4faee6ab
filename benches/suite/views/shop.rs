//! A database with the tables of TPC-H.

use std::ops::RangeInclusive;
use std::time::Duration;

use datafusion::arrow::array::{AsArray, RecordBatch};
use datafusion::arrow::datatypes::Int64Type;
use tpchgen::text::TextPool;

use super::tables::{PARTS, TABLES, generated};
use crate::kit::{Database, Result, timed};

/// Parts of lineitem, each a hundredth, that are appended while the benchmark runs.
pub const APPENDED: i32 = 6;

/// A database with the tables of TPC-H.
pub struct Shop {
    pub database: Database,
    scale: f64,
}

impl Shop {
    /// The tables, without the last parts of lineitem.
    pub async fn new(scale: f64) -> Result<Self> {
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
    pub async fn load(
        &self,
        statement: &str,
        name: &str,
        parts: RangeInclusive<i32>,
    ) -> Result<()> {
        let context = self.database.headwater().context();
        let table = generated(name, self.scale, parts, TextPool::get_or_init_default())?;
        context.register_table("generated", table)?;
        let statement = format!("{statement} SELECT * FROM generated");
        self.database.run(&statement).await?;
        context.deregister_table("generated")?;
        Ok(())
    }

    pub async fn create(&self, view: &str, query: &str) -> Result<()> {
        eprintln!("making view {view}");
        let statement = format!("CREATE MATERIALIZED VIEW {view} AS {query}");
        self.database.run(&statement).await?;
        Ok(())
    }

    pub async fn drop(&self, view: &str) -> Result<()> {
        let statement = format!("DROP MATERIALIZED VIEW {view}");
        self.database.run(&statement).await?;
        Ok(())
    }

    /// How long a refresh takes, which must be of this mode.
    pub async fn refresh(&self, view: &str, options: &str, mode: &str) -> Result<Duration> {
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

    /// Fails unless the view holds the rows of the query, each as often.
    pub async fn check(&self, view: &str, query: &str, columns: &[&str]) -> Result<()> {
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
}

/// The number that a query gives.
fn count(batches: &[RecordBatch]) -> Option<i64> {
    let column = batches.first()?.column(0);
    column.as_primitive::<Int64Type>().iter().next()?
}
