//! Table versions.

use super::*;

#[test]
fn a_version_moves_into_the_name() {
    for (text, expected) in [
        (
            "SELECT * FROM t VERSION AS OF 5",
            "SELECT * FROM \"t VERSION AS OF 5\" AS t",
        ),
        (
            "SELECT * FROM S.T version as of 5 x",
            "SELECT * FROM S.\"t VERSION AS OF 5\" x",
        ),
        (
            "SELECT * FROM c.s.\"T\" VERSION AS OF 0 AS x",
            "SELECT * FROM c.s.\"T VERSION AS OF 0\" AS x",
        ),
        (
            "SELECT * FROM \"T\" VERSION AS OF 5",
            "SELECT * FROM \"T VERSION AS OF 5\" AS \"T\"",
        ),
        (
            "SELECT * FROM t VERSION AS OF 5 JOIN t VERSION AS OF 6 AS u ON t.a = u.a",
            "SELECT * FROM \"t VERSION AS OF 5\" AS t JOIN \"t VERSION AS OF 6\" AS u ON t.a = u.a",
        ),
        (
            "SELECT * FROM (a VERSION AS OF 1 JOIN b ON true)",
            "SELECT * FROM (\"a VERSION AS OF 1\" AS a JOIN b ON true)",
        ),
        (
            "SELECT (SELECT max(x) FROM t VERSION AS OF 1) FROM u WHERE y IN (SELECT z FROM v VERSION AS OF 2)",
            "SELECT (SELECT max(x) FROM \"t VERSION AS OF 1\" AS t) FROM u WHERE y IN (SELECT z FROM \"v VERSION AS OF 2\" AS v)",
        ),
        (
            "WITH a AS (SELECT * FROM t VERSION AS OF 3) SELECT * FROM a UNION ALL SELECT * FROM t",
            "WITH a AS (SELECT * FROM \"t VERSION AS OF 3\" AS t) SELECT * FROM a UNION ALL SELECT * FROM t",
        ),
        (
            "SELECT * FROM 'x.lance' VERSION AS OF 5",
            "SELECT * FROM \"x.lance VERSION AS OF 5\" AS \"x.lance\"",
        ),
        (
            "EXPLAIN SELECT * FROM t VERSION AS OF 5",
            "EXPLAIN SELECT * FROM \"t VERSION AS OF 5\" AS t",
        ),
        (
            "COPY (SELECT * FROM t VERSION AS OF 5) TO 'a.csv'",
            "COPY (SELECT * FROM \"t VERSION AS OF 5\" AS t) TO a.csv",
        ),
        (
            "PREPARE p AS SELECT * FROM t VERSION AS OF 5",
            "PREPARE p AS SELECT * FROM \"t VERSION AS OF 5\" AS t",
        ),
        (
            "DESCRIBE SELECT * FROM t VERSION AS OF 5",
            "DESCRIBE SELECT * FROM \"t VERSION AS OF 5\" AS t",
        ),
    ] {
        assert!(
            datafusion(text).starts_with(expected),
            "{text}: {}",
            datafusion(text)
        );
    }
}

#[test]
fn versions_are_read_in_all_statements_with_queries() {
    let expected = "\"t VERSION AS OF 5\" AS t";
    let texts = [
        create_table("CREATE TABLE u AS SELECT * FROM t VERSION AS OF 5")
            .query
            .unwrap()
            .to_string(),
        create_view("CREATE VIEW u AS SELECT * FROM t VERSION AS OF 5")
            .query
            .to_string(),
        insert("INSERT INTO u SELECT * FROM t VERSION AS OF 5")
            .query
            .unwrap()
            .to_string(),
        insert("INSERT INTO u VALUES ((SELECT max(x) FROM t VERSION AS OF 5))")
            .query
            .unwrap()
            .to_string(),
        update("UPDATE u SET a = t.a FROM t VERSION AS OF 5").from[0].to_string(),
        update("UPDATE u SET a = (SELECT 1 FROM t VERSION AS OF 5)").assignments[0]
            .1
            .to_string(),
        update("UPDATE u SET a = 1 WHERE b IN (SELECT b FROM t VERSION AS OF 5)")
            .selection
            .unwrap()
            .to_string(),
        delete("DELETE FROM u USING t VERSION AS OF 5 WHERE u.a = t.a").using[0].to_string(),
        delete("DELETE FROM u WHERE a IN (SELECT a FROM t VERSION AS OF 5)")
            .selection
            .unwrap()
            .to_string(),
        refresh("REFRESH COLUMN c ON u WHERE a IN (SELECT a FROM t VERSION AS OF 5)")
            .filter
            .unwrap()
            .to_string(),
    ];
    for text in texts {
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn wrong_versions_are_errors() {
    errors(
        ErrorKind::InvalidInput,
        &[
            (
                "SELECT * FROM t VERSION AS OF 5.5",
                "the number of a version, not 5.5",
            ),
            (
                "SELECT * FROM t VERSION AS OF 99999999999999999999",
                "the number of a version",
            ),
            ("SELECT * FROM t VERSION AS OF $1", "not $1"),
            ("SELECT * FROM f VERSION AS OF 5 (1)", "table function"),
            (
                "WITH a AS (SELECT 1) SELECT * FROM a VERSION AS OF 5",
                "is a query of WITH",
            ),
            (
                "SELECT * FROM \"t VERSION AS OF 5\" VERSION AS OF 6",
                "is a version already",
            ),
        ],
    );
    errors(
        ErrorKind::Syntax,
        &[
            ("SELECT * FROM t VERSION AS OF", "found the end of the text"),
            ("SELECT * FROM t VERSION AS OF x", "expected"),
            ("SELECT * FROM t VERSION AS OF -1", "expected"),
            ("SELECT * FROM t AS x VERSION AS OF 5", "expected"),
        ],
    );
}

#[test]
fn version_is_still_a_name() {
    for text in [
        "SELECT version AS of FROM t",
        "SELECT * FROM version",
        "SELECT * FROM t version",
        "SELECT * FROM t timestamp",
    ] {
        datafusion(text);
    }
}

#[test]
fn a_synthetic_name_is_read_as_it_is() {
    let once = datafusion("SELECT * FROM s.t VERSION AS OF 5 WHERE _rowid > 1");
    assert_eq!(datafusion(&once), once);
}
