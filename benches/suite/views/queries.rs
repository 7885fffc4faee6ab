//! The queries of TPC-H as views.

use super::query_rows::{is_same, only_in, rows};
use super::query_texts;
use super::shop::Shop;
use crate::kit::{Best, Report, Result, Settings};

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

/// The queries that read orders or lineitem, after changes of a share of these.
pub async fn run(settings: &Settings) -> Result<Report> {
    let scale = settings.scale.unwrap_or(1.0);
    let shop = Shop::new(scale).await?;
    let mut report = Report::new(
        "view_queries",
        format!(
            "REFRESH MATERIALIZED VIEW of the queries of TPC-H at scale {scale}, after a change of orders and lineitem, \
             once. Floor: the same refresh with FULL. Both read {} partitions at once.",
            shop.database.parallelism()
        ),
    );
    let mut views = query_texts::views();
    // The others read neither.
    views.retain(|(_, query)| query.contains("lineitem") || query.contains("orders"));
    for (name, query) in &views {
        shop.create(name, query).await?;
    }
    for (number, share) in (1..).zip(SHARES) {
        for statement in changes(number, share) {
            shop.database.run(&statement).await?;
        }
        let percent = f64::from(share) / 100.0;
        let mut speedups = Vec::with_capacity(views.len());
        for (name, query) in &views {
            let ours = shop.refresh(name, "INCREMENTAL", "incremental").await?;
            let held = shop.database.run(&format!("SELECT * FROM {name}")).await?;
            let (held, wanted) = (rows(&held)?, rows(&shop.database.run(query).await?)?);
            if !is_same(&held, &wanted) {
                let (more, less) = (only_in(&held, &wanted), only_in(&wanted, &held));
                return Err(format!("{name} holds\n{more}\ninstead of\n{less}").into());
            }
            let floor = shop.refresh(name, "FULL", "full").await?;
            speedups.push(floor.as_secs_f64() / ours.as_secs_f64());
            report.time(
                format!("{name}; {percent} % changed"),
                Best { floor, ours },
                "",
            );
        }
        speedups.sort_by(f64::total_cmp);
        let (last, middle) = (speedups.len() - 1, speedups.len() / 2);
        let median = (speedups[middle] + speedups[last - middle]) / 2.0;
        report.row(
            format!(
                "{percent} % changed: median of how many times faster than FULL, {} queries",
                views.len()
            ),
            "-",
            "-",
            format!("{median:.2} times"),
            if share == 100 { "≥ 5 times" } else { "" },
        );
    }
    Ok(report)
}
