//! Changes to the tables that the queries of TPC-H read.

use rand::Rng;

/// Rounds of changes that can be made: the keys of orders leave room for as many.
pub const MOST_ROUNDS: u32 = 3;

/// Inserts, updates and deletes of about a hundredth of each table, more of a small one, so chosen that every query
/// gives another result at scale 0.01. `{n}` is the number of the round; `{p}`, `{o}` and `{r}` choose rows, out of a
/// hundred: parts and orders, the same ones in each statement of a round, and others.
///
/// New keys are beyond those of any scale, but for those of orders, which fill gaps: of 32 keys TPC-H takes 8.
const CHANGES: &[&str] = &[
    "INSERT INTO orders SELECT * REPLACE (o_orderkey + 8 * {n} AS o_orderkey) FROM orders \
     WHERE o_orderkey % 32 < 8 AND o_orderkey / 32 % 100 = {o}",
    "INSERT INTO lineitem SELECT * REPLACE (l_orderkey + 8 * {n} AS l_orderkey) FROM lineitem \
     WHERE l_orderkey % 32 < 8 AND l_orderkey / 32 % 100 = {o}",
    "INSERT INTO part SELECT * REPLACE (p_partkey + {n}000000000 AS p_partkey) FROM part \
     WHERE p_partkey < 1000000000 AND p_partkey % 100 = {p}",
    "INSERT INTO partsupp SELECT * REPLACE (ps_partkey + {n}000000000 AS ps_partkey) FROM partsupp \
     WHERE ps_partkey < 1000000000 AND ps_partkey % 100 = {p}",
    "INSERT INTO customer SELECT * REPLACE (c_custkey + {n}000000000 AS c_custkey) FROM customer \
     WHERE c_custkey < 1000000000 AND c_custkey % 100 = {r}",
    "INSERT INTO supplier SELECT * REPLACE (s_suppkey + {n}000000000 AS s_suppkey, s_name || ' {n}' AS s_name) \
     FROM supplier WHERE s_suppkey < 1000000000 AND s_suppkey % 50 = {r} % 50",
    "UPDATE orders SET o_totalprice = o_totalprice + 1000.5, o_custkey = o_custkey + 1, o_orderpriority = '1-URGENT' \
     WHERE o_orderkey % 200 = {r}",
    "UPDATE orders SET o_orderdate = CAST(o_orderdate + INTERVAL '1' MONTH AS DATE), o_orderstatus = 'F', \
     o_comment = 'special requests' WHERE o_orderkey % 200 = {o}",
    // Many a line for more than 300 together.
    "UPDATE lineitem SET l_quantity = 60, l_extendedprice = l_extendedprice + 10.25 WHERE l_orderkey % 300 = {r}",
    // Only the first is late.
    "UPDATE lineitem SET l_discount = 0.06, l_returnflag = 'R', \
     l_receiptdate = CASE l_linenumber WHEN 1 THEN CAST(l_commitdate + INTERVAL '5' DAY AS DATE) ELSE l_commitdate END \
     WHERE l_orderkey % 200 = {o}",
    "UPDATE lineitem SET l_shipdate = CAST(l_shipdate - INTERVAL '10' DAY AS DATE), l_shipmode = 'AIR', \
     l_shipinstruct = 'DELIVER IN PERSON', l_quantity = 5 WHERE l_partkey % 300 = {p}",
    "UPDATE part SET p_brand = 'Brand#12', p_container = 'SM CASE', p_size = 3 WHERE p_partkey % 300 = {p}",
    "UPDATE part SET p_brand = 'Brand#23', p_container = 'MED BOX', p_size = 15, p_type = 'PROMO POLISHED BRASS' \
     WHERE p_partkey % 200 = {r}",
    "UPDATE part SET p_name = 'forest green', p_type = 'ECONOMY ANODIZED STEEL' WHERE p_partkey % 200 = {r}",
    "UPDATE partsupp SET ps_supplycost = CAST(ps_supplycost * 0.75 AS DECIMAL(15, 2)), ps_availqty = ps_availqty + 100 \
     WHERE ps_partkey % 200 = {r}",
    "UPDATE customer SET c_mktsegment = 'BUILDING', c_acctbal = c_acctbal + 500 WHERE c_custkey % 200 = {r}",
    "UPDATE customer SET c_nationkey = (c_nationkey + 1) % 25, c_phone = '13' || substring(c_phone FROM 3) \
     WHERE c_custkey % 200 = {r}",
    // To Canada and Saudi Arabia, of which there are few, and from there to Germany and France.
    "UPDATE supplier SET \
     s_nationkey = CASE s_nationkey WHEN 3 THEN 7 WHEN 20 THEN 6 ELSE 3 + 17 * (s_suppkey % 2) END, \
     s_acctbal = s_acctbal - 1 WHERE s_suppkey % 25 = {r} % 25",
    "UPDATE supplier SET s_comment = 'Customer had many Complaints' WHERE s_suppkey % 50 = {r} % 50",
    "DELETE FROM lineitem WHERE l_orderkey % 200 = {r}",
    // Their lines stay.
    "DELETE FROM orders WHERE o_orderkey % 150 = {r}",
    "DELETE FROM partsupp WHERE ps_partkey % 150 = {r}",
    "DELETE FROM part WHERE p_partkey % 150 = {r}",
    "DELETE FROM customer WHERE c_custkey % 150 = {r}",
    "DELETE FROM supplier WHERE s_suppkey % 50 = {r} % 50",
];

/// The statements of a round, counted from 1.
pub fn changes(round: u32, random: &mut impl Rng) -> Vec<String> {
    let [parts, orders] = [(); 2].map(|()| random.random_range(0..100).to_string());
    CHANGES
        .iter()
        .map(|statement| {
            statement
                .replace("{n}", &round.to_string())
                .replace("{p}", &parts)
                .replace("{o}", &orders)
                .replace("{r}", &random.random_range(0..100).to_string())
        })
        .collect()
}
