//! What holds for all statements, and which are not ours.

use super::*;

#[test]
fn statements_are_separated_by_semicolons() {
    assert_eq!(parse("").unwrap().len(), 0);
    assert_eq!(parse(" ; -- nothing\n;").unwrap().len(), 0);
    assert_eq!(parse("SELECT 1; SHOW TABLES;;TRUNCATE t").unwrap().len(), 3);
    errors(
        ErrorKind::Syntax,
        &[
            ("SELECT 1 FROM t SHOW TABLES", "expected"),
            ("TRUNCATE t u", "found 'u'"),
        ],
    );
}

#[test]
fn keywords_are_read_in_any_case() {
    let text = "Alter Table T Add Column C Int Generated Always As (X * 2) Virtual";
    for text in [text.to_string(), text.to_uppercase(), text.to_lowercase()] {
        let alter = alter(&text);
        assert_eq!(alter.table, TableReference::bare("t"));
        let AlterAction::AddColumn { column, .. } = &alter.actions[0] else {
            panic!("{text}");
        };
        assert_eq!(column.name, "c");
        assert!(column.generated.as_ref().unwrap().is_virtual);
    }
    assert_eq!(
        refresh("reFresh coLumn c oN t whEre x > 1 stAle onLy").scope,
        RefreshScope::StaleOnly
    );
}

#[test]
fn quoted_words_are_names_not_keywords() {
    errors(ErrorKind::Syntax, &[("\"SHOW\" TABLES", "found")]);
    assert_eq!(
        refresh("REFRESH COLUMN \"on\" ON \"where\" FULL").columns,
        ["on"]
    );
}

#[test]
fn names_have_up_to_three_parts() {
    let table = |text: &str| match one(&format!("TRUNCATE {text}")) {
        Statement::Truncate { table } => table,
        other => panic!("{other:?}"),
    };
    assert_eq!(table("T"), TableReference::bare("t"));
    assert_eq!(table("\"T\""), TableReference::bare("T"));
    assert_eq!(table("`T`"), TableReference::bare("T"));
    assert_eq!(table("S.\"T\""), TableReference::partial("s", "T"));
    assert_eq!(table("c.s.t"), TableReference::full("c", "s", "t"));
    errors(
        ErrorKind::Syntax,
        &[("TRUNCATE a.b.c.d", "at most three parts")],
    );
}

#[test]
fn comments_are_blanks() {
    let refresh = refresh("/* a */ REFRESH -- b\n COLUMN/* c /* d */ e */c ON t -- f");
    assert_eq!(refresh.columns, ["c"]);
}

#[test]
fn errors_say_where_and_what_was_expected() {
    let error = error("SELECT 1;\nREFRESH COLUMN c\n  FROM t");
    assert_eq!(error.kind(), ErrorKind::Syntax);
    assert_eq!(
        error.message(),
        "expected ',' or ON and the table, found 'FROM' (line 3, column 3)\n    FROM t\n    ^"
    );
    errors(
        ErrorKind::Syntax,
        &[
            ("SELCT 1", "expected a statement, found 'SELCT'"),
            ("SELCT 1", "did you mean SELECT?"),
            ("UPDTE t SET x = 1", "did you mean UPDATE?"),
            ("foo", "expected a statement"),
            ("5", "statement"),
            ("SELECT 'a", "terminated string literal"),
            ("SELECT \"a", "close delimiter"),
            ("SELECT 1 /* a", "comment"),
            (
                "SELECT 1 +",
                "expected an expression, found the end of the text (line 1, column 11)",
            ),
            ("SELECT * FROM", "found the end of the text"),
            ("SELECT (1", "found the end of the text"),
        ],
    );
}

#[test]
fn deep_nesting_is_an_error_not_a_crash() {
    let deep = format!("SELECT {}1{}", "(".repeat(5000), ")".repeat(5000));
    assert!(error(&deep).to_string().contains("nested too deeply"));
    let ok = format!("SELECT {}1{}", "(".repeat(30), ")".repeat(30));
    assert_eq!(parse(&ok).unwrap().len(), 1);
    let long = format!("SELECT {}", vec!["x"; 3000].join(" + "));
    assert_eq!(parse(&long).unwrap().len(), 1);
}

#[test]
fn large_statements_are_read_in_linear_time() {
    let rows = vec!["(1, 'some text', 2.5)"; 30_000].join(", ");
    let given = insert(&format!("INSERT INTO t VALUES {rows}"));
    assert!(given.query.is_some());
    assert_eq!(
        split(&format!("SELECT 1; VALUES {rows}; SELECT 2")).len(),
        3
    );
}

#[test]
fn what_datafusion_runs_is_left_to_it() {
    for text in [
        "SELECT 1",
        "WITH a AS (SELECT 1) SELECT * FROM a",
        "VALUES (1), (2)",
        "(SELECT 1) UNION ALL SELECT 2",
        "EXPLAIN SELECT 1",
        "EXPLAIN ANALYZE VERBOSE SELECT 1",
        "EXPLAIN FORMAT TREE SELECT 1",
        "SHOW ALL",
        "SHOW datafusion.execution.batch_size",
        "SHOW FUNCTIONS",
        "SHOW FUNCTIONS LIKE 'a%'",
        "SET datafusion.execution.batch_size = 10",
        "SET headwater.batch_rows = 10",
        "RESET datafusion.execution.batch_size",
        "COPY t TO 'a.parquet'",
        "COPY (SELECT * FROM t) TO 'a.csv' STORED AS CSV OPTIONS (format.delimiter ';')",
        "CREATE EXTERNAL TABLE e STORED AS CSV LOCATION 'a.csv'",
        "CREATE EXTERNAL TABLE e (a INT, b VARCHAR) STORED AS CSV LOCATION 'a.csv' OPTIONS (format.has_header true)",
        "PREPARE p (INT) AS SELECT $1",
        "EXECUTE p(1)",
        "DEALLOCATE p",
        "DESCRIBE SELECT 1",
        "SELECT * FROM 'data/*.parquet'",
        "SELECT id, _distance FROM vector_search('t', 'embedding', [0.1], k => 10)",
        "SELECT a FROM t WHERE EXISTS (SELECT * FROM u)",
    ] {
        datafusion(text);
    }
}

#[test]
fn what_datafusion_must_not_run_is_refused() {
    errors(
        ErrorKind::NotAvailable,
        &[
            (
                "EXPLAIN INSERT INTO t VALUES (1)",
                "EXPLAIN INSERT is not available yet",
            ),
            (
                "EXPLAIN ANALYZE UPDATE t SET x = 1",
                "EXPLAIN UPDATE is not available yet",
            ),
            (
                "EXPLAIN ANALYZE DELETE FROM t",
                "EXPLAIN DELETE is not available yet",
            ),
            ("EXPLAIN CREATE TABLE t AS SELECT 1", "EXPLAIN CREATE TABLE"),
            (
                "PREPARE p AS DELETE FROM t",
                "PREPARE … AS DELETE is not available yet",
            ),
        ],
    );
    errors(
        ErrorKind::InvalidInput,
        &[
            (
                "WITH s AS (SELECT 1) INSERT INTO t SELECT * FROM s",
                "WITH can't stand before INSERT",
            ),
            (
                "WITH s AS (SELECT 1) UPDATE t SET x = 1",
                "WITH can't stand before UPDATE",
            ),
            (
                "WITH s AS (SELECT 1) DELETE FROM t",
                "WITH can't stand before DELETE",
            ),
            ("GRANT SELECT ON t TO u", "GRANT is not supported"),
            ("REPLACE INTO t VALUES (1)", "not supported"),
            ("USE d", "USE is not supported"),
            ("CREATE SEQUENCE s", "CREATE SEQUENCE is not supported"),
            ("ALTER VIEW v AS SELECT 1", "ALTER VIEW is not supported"),
            ("DROP ROLE r", "DROP ROLE is not supported"),
            ("SHOW DATABASES", "SHOW DATABASES is not supported"),
            ("SHOW VIEWS", "SHOW VIEWS is not supported"),
            ("SAVEPOINT s", "SAVEPOINT is not supported"),
            ("COMMENT ON TABLE t IS 'x'", "COMMENT is not supported"),
            ("ANALYZE TABLE t", "ANALYZE is not supported"),
        ],
    );
}

#[test]
fn statements_of_later_releases_say_so() {
    for (text, feature) in [
        (
            "CREATE FUNCTION f(x INT) RETURNS INT LANGUAGE python AS $$ a; b $$ WITH (memory = '4GB')",
            "CREATE FUNCTION",
        ),
        (
            "CREATE OR REPLACE FUNCTION f(x INT) RETURNS INT RETURN x",
            "CREATE FUNCTION",
        ),
        ("CREATE ENVIRONMENT ml FROM LOCAL", "CREATE ENVIRONMENT"),
        (
            "CREATE INDEX ON t USING ivf_pq (a) WITH (x = 1)",
            "CREATE INDEX",
        ),
        (
            "CREATE OR REPLACE INDEX i ON t USING fts (a)",
            "CREATE INDEX",
        ),
        ("CREATE SCHEMA s", "CREATE SCHEMA"),
        ("CREATE DATABASE d", "CREATE DATABASE"),
        ("CREATE TEMPORARY TABLE t (a INT)", "CREATE TEMPORARY TABLE"),
        ("CREATE TEMP VIEW v AS SELECT 1", "CREATE TEMP VIEW"),
        (
            "CREATE OR REPLACE TEMPORARY VIEW v AS SELECT 1",
            "CREATE TEMPORARY VIEW",
        ),
        ("DROP FUNCTION f", "DROP FUNCTION"),
        ("DROP ENVIRONMENT e", "DROP ENVIRONMENT"),
        ("DROP INDEX i ON t", "DROP INDEX"),
        ("DROP SCHEMA s", "DROP SCHEMA"),
        ("SHOW CREATE FUNCTION f", "SHOW CREATE FUNCTION"),
        ("SHOW ENVIRONMENTS", "SHOW ENVIRONMENTS"),
        ("SHOW INDEXES FROM t", "SHOW INDEXES"),
        ("DESCRIBE FUNCTION f", "DESCRIBE FUNCTION"),
        ("DESCRIBE ENVIRONMENT e", "DESCRIBE ENVIRONMENT"),
        ("PREPARE ENVIRONMENT ml", "PREPARE ENVIRONMENT"),
        ("VERIFY ENVIRONMENT ml", "VERIFY ENVIRONMENT"),
        (
            "MERGE INTO t USING s ON t.a = s.a WHEN MATCHED THEN DELETE",
            "MERGE",
        ),
        ("OPTIMIZE INDEX i ON t", "OPTIMIZE INDEX"),
        (
            "ALTER TABLE t LOAD COLUMNS (e) FROM 's3://x' KEY (id)",
            "ALTER TABLE … LOAD COLUMNS",
        ),
        (
            "REFRESH COLUMN c ON t FAILED ONLY",
            "REFRESH COLUMN … FAILED ONLY",
        ),
        (
            "REFRESH COLUMN c ON t WITH (workers = 1)",
            "option 'workers' of REFRESH COLUMN",
        ),
        (
            "SELECT * FROM t TIMESTAMP AS OF '2024-01-01'",
            "TIMESTAMP AS OF",
        ),
        (
            "RESTORE TABLE t TO TIMESTAMP AS OF '2024-01-01'",
            "TIMESTAMP AS OF",
        ),
        (
            "SELECT * FROM t FOR SYSTEM_TIME AS OF '2024-01-01'",
            "FOR SYSTEM_TIME AS OF",
        ),
        (
            "SELECT * FROM t AT(TIMESTAMP => '2024-01-01')",
            "AT or BEFORE after a table",
        ),
        (
            "SELECT * FROM t BEFORE(STATEMENT => 'x')",
            "AT or BEFORE after a table",
        ),
        (
            "SELECT * FROM t CHANGES(INFORMATION => DEFAULT) AT(TIMESTAMP => 'x')",
            "CHANGES after a table",
        ),
    ] {
        let error = error(text);
        assert_eq!(error.kind(), ErrorKind::NotAvailable, "{text}: {error}");
        assert_eq!(
            error.message(),
            format!("{feature} is not available yet"),
            "{text}"
        );
    }
}

#[test]
fn transactions_are_accepted() {
    for (text, expected) in [
        ("BEGIN", "BEGIN"),
        ("begin transaction", "BEGIN"),
        ("BEGIN WORK", "BEGIN"),
        ("BEGIN TRANSACTION ISOLATION LEVEL SERIALIZABLE", "BEGIN"),
        ("START TRANSACTION", "START TRANSACTION"),
        ("START TRANSACTION READ ONLY", "START TRANSACTION"),
        ("COMMIT", "COMMIT"),
        ("COMMIT TRANSACTION", "COMMIT"),
        ("COMMIT AND NO CHAIN", "COMMIT"),
        ("ROLLBACK", "ROLLBACK"),
        ("ROLLBACK WORK", "ROLLBACK"),
        ("END", "END"),
        ("END TRANSACTION", "END"),
    ] {
        match one(text) {
            Statement::Transaction { keyword } => assert_eq!(keyword, expected),
            other => panic!("{text} was read as {other:?}"),
        }
    }
    errors(
        ErrorKind::InvalidInput,
        &[("ROLLBACK TO SAVEPOINT s", "no savepoints")],
    );
    errors(
        ErrorKind::Syntax,
        &[("BEGIN x", "found 'x'"), ("COMMIT x", "found 'x'")],
    );
}
