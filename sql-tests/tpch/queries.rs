//! The 22 queries of TPC-H as views.

/// The views as statements.
const STATEMENTS: &str = include_str!("../../examples/tpch/views.sql");

/// The views: their names, and their queries.
pub fn views() -> Vec<(&'static str, &'static str)> {
    STATEMENTS
        .split("CREATE MATERIALIZED VIEW ")
        .skip(1)
        .filter_map(|statement| statement.split_once(" AS\n"))
        .map(|(name, query)| (name, query.trim_end().trim_end_matches(';')))
        .collect()
}
