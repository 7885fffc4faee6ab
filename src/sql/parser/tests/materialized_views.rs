//! The statements about materialized views, but for REFRESH.

use super::*;
use crate::sql::format::query_text;

fn view_action(text: &str) -> AlterViewAction {
    let mut alter = alter_view(&format!("ALTER MATERIALIZED VIEW v {text}"));
    assert_eq!(alter.actions.len(), 1, "{text}");
    alter.actions.remove(0)
}

#[test]
fn create_reads_all_its_clauses() {
    let plain = create_materialized_view("CREATE MATERIALIZED VIEW v AS SELECT x FROM t");
    assert_eq!(plain.name, TableReference::bare("v"));
    assert!(!plain.or_replace && !plain.if_not_exists && plain.with_data);
    assert!(plain.columns.is_empty() && plain.options.is_empty());
    assert_eq!(plain.query.to_string(), "SELECT x FROM t");

    let full = create_materialized_view(
        "create materialized view if not exists S.V (a, \"B\") with (Target_Lag = '10 minutes', concurrency = 2) \
         as select x, y from t where x > 1 with data",
    );
    assert_eq!(full.name, TableReference::partial("s", "v"));
    assert!(full.if_not_exists && full.with_data);
    assert_eq!(full.columns, ["a", "B"]);
    assert_eq!(full.options[0].name, "target_lag");
    assert_eq!(full.options[1].value, OptionValue::Number(2.0));
    assert_eq!(full.query.to_string(), "SELECT x, y FROM t WHERE x > 1");

    let replaced = create_materialized_view(
        "CREATE OR REPLACE MATERIALIZED VIEW v AS (SELECT 1) WITH NO DATA",
    );
    assert!(replaced.or_replace && !replaced.with_data);
}

#[test]
fn with_data_ends_a_query_wherever_that_ends() {
    for query in [
        "SELECT x FROM t",
        "SELECT x FROM t AS a",
        "SELECT 1 AS one",
        "SELECT x, count(*) FROM t GROUP BY x",
        "SELECT x FROM t GROUP BY ALL",
        "SELECT x FROM t GROUP BY x HAVING count(*) > 1",
        "SELECT CAST(x AS TIMESTAMP) FROM t",
        "SELECT x::TIMESTAMP",
        "SELECT x FROM t ORDER BY x",
        "SELECT x FROM t ORDER BY x DESC LIMIT 5",
        "SELECT x FROM t CROSS JOIN unnest([1, 2])",
        "SELECT x FROM t JOIN u USING (x)",
        "SELECT x FROM t UNION ALL SELECT data FROM u",
        "SELECT \"no\" AS data FROM t WHERE x IS NOT NULL",
        "WITH data AS (SELECT 1 AS x) SELECT * FROM data",
        "VALUES (1)",
    ] {
        for (clause, with_data) in [
            ("", true),
            (" WITH DATA", true),
            (" with no data", false),
            (" WITH /* a */ NO -- b\n DATA", false),
        ] {
            let text = format!("CREATE MATERIALIZED VIEW v AS {query}{clause}");
            let read = create_materialized_view(&text);
            assert_eq!(read.with_data, with_data, "{text}");
            let alone = create_materialized_view(&format!("CREATE MATERIALIZED VIEW v AS {query}"));
            assert_eq!(read.query, alone.query, "{text}");
        }
    }
    let several = "CREATE MATERIALIZED VIEW v AS SELECT x FROM t GROUP BY x WITH NO DATA; \
                   CREATE MATERIALIZED VIEW w AS SELECT x FROM t GROUP BY x WITH DATA;";
    assert_eq!(parse(several).unwrap().len(), 2);
    // Elsewhere these words mean what they did.
    assert_eq!(
        datafusion("WITH data AS (SELECT 1) SELECT * FROM data"),
        "WITH data AS (SELECT 1) SELECT * FROM data"
    );
}

#[test]
fn the_query_can_be_written_down_and_read_again() {
    for (query, written) in [
        (
            "select X, \"Y\" from T where x > 1 -- why",
            "SELECT X, \"Y\" FROM T WHERE x > 1",
        ),
        ("SELECT _rowid, x FROM t", "SELECT _rowid, x FROM t"),
        (
            "SELECT *, _rowid AS id FROM t AS a",
            "SELECT a.* EXCEPT (_rowid, _rowaddr), _rowid AS id FROM t AS a",
        ),
    ] {
        let first = create_materialized_view(&format!("CREATE MATERIALIZED VIEW v AS {query}"));
        assert_eq!(query_text(&first.query), written);
        let again = create_materialized_view(&format!("CREATE MATERIALIZED VIEW v AS {written}"));
        assert_eq!(again.query.to_string(), first.query.to_string());
    }
    let hidden = create_materialized_view("CREATE MATERIALIZED VIEW v AS SELECT _rowid FROM t");
    assert_eq!(
        hidden.query.to_string(),
        "SELECT _rowid FROM \"t WITH ROW IDS\" AS t"
    );
}

#[test]
fn a_query_follows_its_sources() {
    let mend = "a materialized view follows its sources; AS OF of REFRESH reads older versions";
    for query in [
        "SELECT * FROM t VERSION AS OF 5",
        "SELECT * FROM s.t VERSION AS OF 'tag' AS a",
        "SELECT * FROM t TIMESTAMP AS OF '2024-01-01'",
        "SELECT * FROM \"t VERSION AS OF 5\"",
        "SELECT _rowid FROM u JOIN t VERSION AS OF 5 ON true",
        "SELECT x FROM u WHERE x IN (SELECT x FROM t VERSION AS OF 5)",
        "WITH a AS (SELECT * FROM t VERSION AS OF 5) SELECT * FROM a",
    ] {
        for text in [
            format!("CREATE MATERIALIZED VIEW v AS {query}"),
            format!("EXPLAIN CREATE MATERIALIZED VIEW v AS {query} WITH NO DATA"),
            format!("ALTER MATERIALIZED VIEW v SUSPEND, AS {query}"),
        ] {
            let error = error(&text);
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}: {error}");
            assert!(error.message().ends_with("a version of 't'"), "{error}");
            assert_eq!(error.hint(), Some(mend), "{text}");
        }
    }
}

#[test]
fn wrong_create_statements_are_errors() {
    errors(
        ErrorKind::InvalidInput,
        &[
            (
                "CREATE OR REPLACE MATERIALIZED VIEW IF NOT EXISTS v AS SELECT 1",
                "OR REPLACE and IF NOT EXISTS contradict each other",
            ),
            (
                "CREATE MATERIALIZED VIEW v (a, a) AS SELECT 1, 2",
                "column 'a' is named twice",
            ),
            (
                "CREATE MATERIALIZED VIEW v (_rowid) AS SELECT 1",
                "'_rowid' is a column that every table has",
            ),
            (
                "CREATE MATERIALIZED VIEW v WITH (target_lag = 1) WITH (order_by = 'x') AS SELECT 1",
                "WITH (…) is given twice",
            ),
            (
                "CREATE MATERIALIZED VIEW v AS SELECT 1 WITH DATA WITH NO DATA",
                "WITH [NO] DATA is given twice",
            ),
            (
                "CREATE MATERIALIZED VIEW v WITH (target_leg = 1) AS SELECT 1",
                "did you mean 'target_lag'?",
            ),
            (
                "CREATE MATERIALIZED VIEW v WITH (commit_every = 5) AS SELECT 1",
                "would show half a refresh",
            ),
            (
                "CREATE MATERIALIZED VIEW v WITH (refresh_mode = 'full', timeout = '1h') AS SELECT 1 WITH NO DATA",
                "option 'timeout' is one of the first refresh, and WITH NO DATA leaves that out",
            ),
            (
                "CREATE MATERIALIZED VIEW v AS SELECT * FROM t WITH (refresh_mode = 'full')",
                "stand before AS",
            ),
            (
                "CREATE MATERIALIZED VIEW v AS WITH a AS (SELECT 1) INSERT INTO t SELECT 1",
                "WITH can't stand before INSERT",
            ),
            (
                "EXPLAIN ANALYZE CREATE MATERIALIZED VIEW v AS SELECT 1",
                "EXPLAIN CREATE MATERIALIZED VIEW takes no ANALYZE",
            ),
            (
                "EXPLAIN VERBOSE CREATE OR REPLACE MATERIALIZED VIEW v AS SELECT 1",
                "takes no VERBOSE",
            ),
        ],
    );
    errors(
        ErrorKind::Syntax,
        &[
            ("CREATE MATERIALIZED v AS SELECT 1", "expected"),
            ("CREATE MATERIALIZED VIEW AS SELECT 1", "expected"),
            (
                "CREATE MATERIALIZED VIEW v",
                "expected columns, WITH (…) or AS and a query, found the end of the text",
            ),
            (
                "CREATE MATERIALIZED VIEW v (a) SELECT 1",
                "expected WITH (…) or AS and a query, found 'SELECT'",
            ),
            (
                "CREATE MATERIALIZED VIEW v WITH (order_by = 'x') SELECT 1",
                "expected AS and a query, found 'SELECT'",
            ),
            (
                "CREATE MATERIALIZED VIEW v WITH NO DATA AS SELECT 1",
                "WITH NO DATA stand behind the query",
            ),
            ("CREATE MATERIALIZED VIEW v AS", "found the end of the text"),
            (
                "CREATE MATERIALIZED VIEW v AS DELETE FROM t",
                "expected a query, found 'DELETE'",
            ),
            (
                "CREATE MATERIALIZED VIEW v AS SELECT 1 WITH NO",
                "expected WITH [NO] DATA or the end of the statement, found 'WITH'",
            ),
            (
                "CREATE MATERIALIZED VIEW v AS SELECT 1 WITH (order_by = 'x')",
                "stand before AS",
            ),
            (
                "CREATE MATERIALIZED VIEW v AS SELECT 1 WITH NO DATA ASYNC",
                "then REFRESH MATERIALIZED VIEW … ASYNC",
            ),
            ("SELECT 1 WITH NO DATA", "found 'WITH'"),
            ("CREATE TABLE t AS SELECT 1 WITH NO DATA", "found 'WITH'"),
            ("CREATE VIEW v AS SELECT 1 WITH NO DATA", "found 'WITH'"),
        ],
    );
}

#[test]
fn explain_reads_what_it_explains() {
    for (text, expected) in [
        ("EXPLAIN REFRESH MATERIALIZED VIEW v FULL", false),
        ("explain analyze refresh materialized view v full", true),
    ] {
        match one(text) {
            Statement::ExplainRefreshView { analyze, refresh } => {
                assert_eq!(analyze, expected, "{text}");
                assert_eq!(refresh.mode, ViewRefreshMode::Full, "{text}");
            }
            other => panic!("{text} was read as {other:?}"),
        }
    }
    for (text, or_replace) in [
        (
            "EXPLAIN CREATE MATERIALIZED VIEW v AS SELECT _rowid FROM t",
            false,
        ),
        (
            "explain create or replace materialized view v as select _rowid from t with no data",
            true,
        ),
    ] {
        match one(text) {
            Statement::ExplainCreateView(create) => {
                assert_eq!(create.or_replace, or_replace, "{text}");
                assert!(
                    create.query.to_string().contains("t WITH ROW IDS"),
                    "{text}"
                );
            }
            other => panic!("{text} was read as {other:?}"),
        }
    }
}

#[test]
fn alter_reads_its_actions() {
    assert!(matches!(view_action("RENAME TO W"), AlterViewAction::RenameTo(name) if name == "w"));
    assert!(matches!(view_action("suspend"), AlterViewAction::Suspend));
    assert!(matches!(view_action("RESUME"), AlterViewAction::Resume));
    assert!(matches!(
        view_action("UPGRADE FUNCTIONS"),
        AlterViewAction::UpgradeFunctions
    ));
    match view_action("SET (target_lag = downstream, shuffle_seed = 4)") {
        AlterViewAction::Set(options) => {
            assert_eq!(
                options[0].value,
                OptionValue::Text("downstream".to_string())
            );
            assert_eq!(options[1].name, "shuffle_seed");
        }
        other => panic!("{other:?}"),
    }
    match view_action("RESET (Target_Lag, \"ORDER_BY\")") {
        AlterViewAction::Reset(names) => assert_eq!(names, ["target_lag", "order_by"]),
        other => panic!("{other:?}"),
    }
    match view_action("AS SELECT a, _rowid FROM t") {
        AlterViewAction::As(query) => {
            assert_eq!(
                query.to_string(),
                "SELECT a, _rowid FROM \"t WITH ROW IDS\" AS t"
            );
        }
        other => panic!("{other:?}"),
    }
    let several = alter_view(
        "ALTER MATERIALIZED VIEW IF EXISTS s.v RENAME TO w, SET (target_lag = 1), RESET (order_by), SUSPEND, AS SELECT a, b FROM t",
    );
    assert!(several.if_exists);
    assert_eq!(several.name, TableReference::partial("s", "v"));
    assert_eq!(several.actions.len(), 5);
}

#[test]
fn wrong_alter_statements_are_errors() {
    for (actions, expected) in [
        ("SUSPEND, RESUME", "SUSPEND and RESUME contradict"),
        ("SUSPEND, SUSPEND", "SUSPEND is given twice"),
        ("RENAME TO a, RENAME TO b", "RENAME TO is given twice"),
        (
            "SET (target_lag = 1), SET (order_by = 'x')",
            "SET (…) is given twice",
        ),
        (
            "RESET (target_lag), SET (target_lag = 1)",
            "SET and RESET of option 'target_lag' contradict",
        ),
        (
            "RESET (order_by, ORDER_BY)",
            "option 'order_by' is named twice",
        ),
        ("RESET (order_bye)", "did you mean 'order_by'?"),
        ("SET (target_lag = 'soon')", "takes 'downstream', or a time"),
        ("SET (concurrency = 1)", "REFRESH MATERIALIZED VIEW … WITH"),
        ("SET (max_calls = 1)", "would show half a refresh"),
        (
            "SET (order_by = 'x', shuffle_seed = 1)",
            "'order_by' and 'shuffle_seed'",
        ),
        (
            "AS SELECT a FROM t WHERE b > 1, SUSPEND",
            "AS and its query come last",
        ),
    ] {
        let text = format!("ALTER MATERIALIZED VIEW v {actions}");
        errors(ErrorKind::InvalidInput, &[(text.as_str(), expected)]);
    }
    for (actions, expected) in [
        (
            "",
            "expected RENAME TO, SET (…), RESET (…), SUSPEND, RESUME, AS and a query, or UPGRADE FUNCTIONS, found the end",
        ),
        ("ADD COLUMN c INT", "found 'ADD'"),
        ("RENAME COLUMN a TO b", "expected TO, found 'COLUMN'"),
        ("RENAME TO s.w", "expected ',' or the end of the statement"),
        ("SET target_lag = '1h'", "expected '('"),
        ("RESET target_lag", "expected '('"),
        ("RESET ()", "expected a name"),
        ("AS DELETE FROM t", "expected a query"),
        ("AS SELECT 1 WITH NO DATA", "found 'WITH'"),
        ("UPGRADE", "expected FUNCTIONS"),
        ("SUSPEND RESUME", "expected ',' or the end of the statement"),
    ] {
        let text = format!("ALTER MATERIALIZED VIEW v {actions}");
        errors(ErrorKind::Syntax, &[(text.as_str(), expected)]);
    }
}

#[test]
fn the_other_statements_name_a_view() {
    match one("DROP MATERIALIZED VIEW IF EXISTS a, s.b CASCADE") {
        Statement::Drop(drop) => {
            assert_eq!(drop.kind, DropKind::MaterializedView);
            assert_eq!(drop.names.len(), 2);
            assert!(drop.if_exists && drop.cascade);
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        one("show materialized views"),
        Statement::Show(Show::MaterializedViews)
    ));
    assert!(matches!(
        one("SHOW CREATE MATERIALIZED VIEW s.v"),
        Statement::Show(Show::CreateMaterializedView { name }) if name == TableReference::partial("s", "v")
    ));
    for text in ["DESCRIBE MATERIALIZED VIEW v", "desc materialized view v"] {
        assert!(matches!(
            one(text),
            Statement::DescribeMaterializedView { name } if name == TableReference::bare("v")
        ));
    }
    // The first word alone is a name.
    assert!(matches!(
        one("DESCRIBE materialized"),
        Statement::Describe { table } if table == TableReference::bare("materialized")
    ));
    errors(
        ErrorKind::InvalidInput,
        &[(
            "SHOW MATERIALIZED VIEWS LIKE 'a%'",
            "system.materialized_views",
        )],
    );
    errors(
        ErrorKind::Syntax,
        &[
            ("DROP MATERIALIZED VIEW", "expected"),
            (
                "DROP MATERIALIZED VIEW v w",
                "expected ',', RESTRICT, CASCADE",
            ),
            ("SHOW MATERIALIZED VIEWS v", "expected the end"),
            (
                "SHOW CREATE MATERIALIZED v",
                "expected TABLE, VIEW or MATERIALIZED VIEW",
            ),
            ("DESCRIBE MATERIALIZED VIEW", "expected"),
            ("DESCRIBE MATERIALIZED VIEW v w", "expected the end"),
        ],
    );
}
