//! The same change in a small table and in a large one.

use std::time::Duration;

use super::shop::Shop;
use super::{CASES, ROWS_COMPARED, ROWS_QUERY};
use crate::kit::{Best, Report, Result, Settings};

/// The statements of a change of the same rows at every scale; `{}` is another number each time.
const CHANGES: [&str; 2] = [
    "UPDATE lineitem SET l_quantity = l_quantity + 1, l_extendedprice = l_extendedprice + 1 \
     WHERE l_orderkey / 320 = {}",
    "DELETE FROM lineitem WHERE l_orderkey / 320 = 1000 + {}",
];

/// How many times larger the large table is.
const LARGER: f64 = 10.0;

/// A refresh after the same change, of a view over a table and over one that is ten times as large.
pub async fn run(settings: &Settings) -> Result<Report> {
    let scale = settings.scale.unwrap_or(1.0);
    let shops = [Shop::new(scale / LARGER).await?, Shop::new(scale).await?];
    let mut report = Report::new(
        "view_growth",
        format!(
            "REFRESH MATERIALIZED VIEW after a change of about 600 rows of lineitem of TPC-H at scale {scale}. \
             Floor: the same at scale {}. Both read {} partitions at once.",
            scale / LARGER,
            shops[0].database.parallelism()
        ),
    );
    let join = &CASES[3];
    for (view, query, compared) in [
        ("filter, project, x * y", ROWS_QUERY, ROWS_COMPARED),
        (join.view, join.query, join.compared),
    ] {
        for shop in &shops {
            shop.create("grown", query).await?;
        }
        let mut best = [Duration::MAX; 2];
        for run in 0..=settings.runs {
            for (shop, best) in shops.iter().zip(&mut best) {
                for statement in CHANGES {
                    let statement = statement.replace("{}", &run.to_string());
                    shop.database.run(&statement).await?;
                }
                let elapsed = shop.refresh("grown", "INCREMENTAL", "incremental").await?;
                shop.check("grown", query, compared).await?;
                // The first warms the caches.
                if run > 0 {
                    *best = elapsed.min(*best);
                }
            }
        }
        let [floor, ours] = best;
        let goal = "ratio ≤ 1.5";
        report.time(
            format!("{view}; 10 times the rows"),
            Best { floor, ours },
            goal,
        );
        for shop in &shops {
            shop.drop("grown").await?;
        }
    }
    Ok(report)
}
