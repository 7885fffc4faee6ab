//! No text makes the parser panic.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::*;

/// Statements of every kind, to be cut and mixed.
const STATEMENTS: &[&str] = &[
    "CREATE OR REPLACE TABLE s.t (id BIGINT NOT NULL PRIMARY KEY, x DECIMAL(10, 2) DEFAULT -1, \
     v FLOAT[3] AS (x * 2) VIRTUAL, m MAP(VARCHAR, ARRAY<INT>)) WITH (max_rows_per_fragment = 10) AS SELECT 1",
    "CREATE VIEW IF NOT EXISTS v (a, \"B\") AS SELECT *, _rowid FROM t VERSION AS OF 5",
    "INSERT INTO TABLE t (a, b) VALUES (1, DEFAULT), ('it''s', $$ ; $$)",
    "UPDATE t AS x SET (a, b) = (1, 2), c = x.c FROM u JOIN v USING (w) WHERE x._rowaddr = 5",
    "DELETE FROM t USING u VERSION AS OF 5, (SELECT 1) d WHERE a IN (SELECT b FROM c)",
    "ALTER TABLE IF EXISTS t ADD COLUMNS (h, w) PREFIX 'p_' AS (f(x)), DROP COLUMN a CASCADE, \
     ALTER COLUMN c SET EXPRESSION AS (x + 1), RENAME TO u, ENABLE ROW TRACKING",
    "EXPLAIN ANALYZE REFRESH COLUMN a, b ON TABLE t WHERE x > 1 STALE ONLY WITH (batch_bytes = '4 MB')",
    "DROP TABLE IF EXISTS a, b.c RESTRICT; SHOW COLUMNS FROM t; DESCRIBE HISTORY t; OPTIMIZE t WITH (a = TRUE)",
    "WITH RECURSIVE a AS (SELECT * FROM b NATURAL JOIN c) SELECT a.* EXCEPT (_rowid) FROM a -- comment",
    "BEGIN TRANSACTION; COMMIT AND NO CHAIN; START TRANSACTION; COPY (SELECT 1) TO 'x' STORED AS CSV",
    "CREATE OR REPLACE MATERIALIZED VIEW v (a) WITH (target_lag = '1 h', order_by = 'a') AS SELECT a FROM t GROUP BY a WITH NO DATA",
    "EXPLAIN ANALYZE REFRESH MATERIALIZED VIEW CONCURRENTLY v FULL AS OF (a VERSION 3, b VERSION 'x') CASCADE WITH (timeout = 5)",
    "ALTER MATERIALIZED VIEW IF EXISTS v RENAME TO w, SET (shuffle_seed = 1), RESET (order_by), UPGRADE FUNCTIONS, AS SELECT 1",
    "CREATE MATERIALIZED VIEW v AS /* a /* b */ c */ SELECT timestamp[us, tz=UTC] FROM t TIMESTAMP AS OF 'x'",
];

fn read(text: &str) {
    let _ = parse(text);
    let _ = is_complete(text);
    for piece in split(text) {
        assert!(text.contains(piece));
    }
}

#[test]
fn no_cut_statement_makes_it_panic() {
    for text in STATEMENTS {
        for (end, _) in text.char_indices() {
            read(&text[..end]);
        }
        read(text);
    }
}

#[test]
fn no_mixed_statement_makes_it_panic() {
    let words: Vec<&str> = STATEMENTS
        .iter()
        .flat_map(|text| text.split_inclusive([' ', '(', ')', ',']))
        .collect();
    let mut random = StdRng::seed_from_u64(11);
    for _ in 0..5000 {
        // Half of them start well.
        let start = STATEMENTS.choose(&mut random).unwrap();
        let kept = random.random_range(0..6);
        let mut text: String = start.split_inclusive(' ').take(kept).collect();
        for _ in 0..random.random_range(1..12) {
            text.push_str(words.choose(&mut random).unwrap());
        }
        read(&text);
    }
}

#[test]
fn statements_that_are_split_read_as_the_same() {
    for text in STATEMENTS {
        let joined: Vec<String> = split(text)
            .iter()
            .map(|piece| {
                format!(
                    "{:?}",
                    parse(piece).map_err(|error| error.kind()).map(|s| s.len())
                )
            })
            .collect();
        let whole = parse(text);
        if let Ok(statements) = whole {
            assert_eq!(joined.len(), statements.len(), "{text}");
            assert!(joined.iter().all(|piece| piece == "Ok(1)"), "{text}");
        }
    }
}
