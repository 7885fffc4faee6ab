//! INSERT, UPDATE, DELETE, TRUNCATE.

use super::*;

#[test]
fn insert_forms() {
    let given = insert("INSERT INTO s.t (a, \"B\") VALUES (1, 'x'), (2, DEFAULT)");
    assert_eq!(given.table, TableReference::partial("s", "t"));
    assert_eq!(given.columns, ["a", "B"]);
    assert_eq!(
        given.query.unwrap().to_string(),
        "VALUES (1, 'x'), (2, DEFAULT)"
    );
    assert_eq!(
        insert("insert into t values (default, \"DEFAULT\", \"default\")")
            .query
            .unwrap()
            .to_string(),
        "VALUES (DEFAULT, \"DEFAULT\", \"default\")"
    );
    assert!(insert("INSERT INTO t DEFAULT VALUES").query.is_none());
    for text in [
        "INSERT INTO t SELECT * FROM u",
        "INSERT INTO TABLE t SELECT * FROM u",
        "INSERT INTO t (SELECT * FROM u)",
        "INSERT INTO t ((SELECT * FROM u) UNION ALL SELECT * FROM v)",
        "INSERT INTO t WITH u AS (SELECT 1) SELECT * FROM u",
        "INSERT INTO t (WITH u AS (SELECT 1) SELECT * FROM u)",
        "INSERT INTO t VALUES (1)",
        "INSERT INTO t (VALUES (1))",
    ] {
        let given = insert(text);
        assert!(given.query.is_some() && given.columns.is_empty(), "{text}");
    }
    for text in [
        "INSERT INTO t (a) SELECT 1",
        "INSERT INTO t (a) (SELECT 1)",
        "INSERT INTO t (a) WITH u AS (SELECT 1) SELECT * FROM u",
    ] {
        assert_eq!(insert(text).columns, ["a"], "{text}");
    }
    assert_eq!(
        insert("INSERT INTO t (values, \"select\") SELECT 1, 2").columns,
        ["values", "select"]
    );
    assert_eq!(
        insert("INSERT INTO t ('a') SELECT 1".replace('\'', "\"").as_str()).columns,
        ["a"]
    );
}

#[test]
fn insert_refuses_what_it_can_not_do() {
    errors(
        ErrorKind::InvalidInput,
        &[
            (
                "INSERT OVERWRITE t SELECT 1",
                "INSERT OVERWRITE is not supported",
            ),
            (
                "INSERT OVERWRITE TABLE t SELECT 1",
                "INSERT OVERWRITE is not supported",
            ),
            (
                "INSERT INTO t VALUES (1) ON CONFLICT DO NOTHING",
                "ON CONFLICT",
            ),
            (
                "INSERT INTO t SELECT a FROM u ON CONFLICT (a) DO NOTHING",
                "ON CONFLICT",
            ),
            (
                "INSERT INTO t VALUES (1) ON DUPLICATE KEY UPDATE a = 1",
                "ON DUPLICATE KEY",
            ),
            (
                "INSERT INTO t VALUES (1) RETURNING a",
                "RETURNING is not supported",
            ),
            (
                "INSERT INTO t SELECT a FROM u RETURNING a",
                "RETURNING is not supported",
            ),
            ("INSERT OR REPLACE INTO t VALUES (1)", "INSERT OR"),
            ("INSERT IGNORE INTO t VALUES (1)", "INSERT IGNORE"),
            (
                "INSERT INTO t (a, a) VALUES (1, 2)",
                "column 'a' is named twice",
            ),
            (
                "INSERT INTO t (a) DEFAULT VALUES",
                "takes no list of columns",
            ),
        ],
    );
    errors(
        ErrorKind::Syntax,
        &[
            ("INSERT t VALUES (1)", "expected INTO, found 't'"),
            (
                "INSERT INTO t",
                "expected a list of columns, VALUES, DEFAULT VALUES or a query",
            ),
            (
                "INSERT INTO t (a)",
                "expected VALUES, DEFAULT VALUES or a query",
            ),
            (
                "INSERT INTO t AS x VALUES (1)",
                "expected a list of columns, VALUES",
            ),
            ("INSERT INTO t (a.b) VALUES (1)", "expected ',' or ')'"),
            ("INSERT INTO t () VALUES (1)", "expected a name"),
            ("INSERT INTO t VALUES (1) x", "found 'x'"),
        ],
    );
}

#[test]
fn update_forms() {
    let given = update("UPDATE s.t SET a = a + 1, \"B\" = DEFAULT WHERE c > 1");
    assert_eq!(given.table, TableReference::partial("s", "t"));
    assert_eq!(given.alias, None);
    let assignments: Vec<(String, String)> = given
        .assignments
        .iter()
        .map(|(column, value)| (column.clone(), value.to_string()))
        .collect();
    assert_eq!(
        assignments,
        [
            ("a".to_string(), "a + 1".to_string()),
            ("B".to_string(), "DEFAULT".to_string())
        ]
    );
    assert_eq!(given.selection.unwrap().to_string(), "c > 1");
    for text in [
        "UPDATE t AS x SET a = s.a FROM s JOIN u ON s.b = u.b, v WHERE x.id = s.id",
        "UPDATE t x FROM s JOIN u ON s.b = u.b, v SET a = s.a WHERE x.id = s.id",
        "update t x set x.a = s.a from s join u on s.b = u.b, v where x.id = s.id",
    ] {
        let given = update(text);
        assert_eq!(given.alias.as_deref(), Some("x"), "{text}");
        assert_eq!(given.from.len(), 2, "{text}");
        assert_eq!(given.assignments[0].0, "a", "{text}");
        assert!(given.selection.is_some(), "{text}");
    }
    let given = update("UPDATE t SET (a, b) = (1, DEFAULT), t.c = 3");
    assert_eq!(given.assignments.len(), 3);
    assert_eq!(given.assignments[1].1.to_string(), "DEFAULT");
    assert!(given.selection.is_none());
    assert_eq!(update("UPDATE t SET (a) = (1)").assignments.len(), 1);
}

#[test]
fn update_refuses_what_it_can_not_do() {
    errors(
        ErrorKind::InvalidInput,
        &[
            (
                "UPDATE t SET a = 1 WHERE b ORDER BY c",
                "ORDER BY and LIMIT are not supported in UPDATE",
            ),
            ("UPDATE t SET a = 1 LIMIT 5", "ORDER BY and LIMIT"),
            (
                "UPDATE t SET a = 1 RETURNING a",
                "RETURNING is not supported",
            ),
            ("UPDATE t SET a = 1, a = 2", "column 'a' is named twice"),
            (
                "UPDATE t SET (a, b) = (1, 2, 3)",
                "2 columns are set to 3 values",
            ),
            ("UPDATE t SET (a, b) = (SELECT 1, 2)", "after FROM"),
            ("UPDATE t SET s.f = 1", "'s.f' is not one"),
            ("UPDATE t AS x SET t.a = 1", "'t.a' is not one"),
            (
                "UPDATE t JOIN u ON t.a = u.a SET b = 1",
                "name the others after FROM",
            ),
            ("UPDATE t, u SET b = 1", "name the others after FROM"),
            ("UPDATE t VERSION AS OF 5 SET b = 1", "newest version"),
            ("UPDATE t FROM s SET a = 1 FROM u", "takes one FROM"),
        ],
    );
    errors(
        ErrorKind::Syntax,
        &[
            ("UPDATE t", "expected SET"),
            ("UPDATE t SET", "expected a name"),
            ("UPDATE t SET a", "expected '='"),
            ("UPDATE t SET a = ", "expected an expression"),
            (
                "UPDATE t SET a = 1 b",
                "expected ',', FROM, WHERE or the end of the statement, found 'b'",
            ),
            (
                "UPDATE t SET a = 1 WHERE b c",
                "expected an operator or the end of the statement",
            ),
        ],
    );
}

#[test]
fn delete_forms() {
    let given = delete("DELETE FROM s.t AS x USING u, (SELECT 1) AS v WHERE x.a = u.a");
    assert_eq!(given.table, TableReference::partial("s", "t"));
    assert_eq!(given.alias.as_deref(), Some("x"));
    assert_eq!(given.using.len(), 2);
    assert_eq!(given.selection.unwrap().to_string(), "x.a = u.a");
    let given = delete("delete from t");
    assert!(given.alias.is_none() && given.using.is_empty() && given.selection.is_none());
    assert_eq!(
        delete("DELETE FROM t x WHERE x.a IN (SELECT 1)")
            .alias
            .as_deref(),
        Some("x")
    );
    errors(
        ErrorKind::InvalidInput,
        &[
            (
                "DELETE FROM t ORDER BY a",
                "ORDER BY and LIMIT are not supported in DELETE",
            ),
            ("DELETE FROM t WHERE a LIMIT 1", "ORDER BY and LIMIT"),
            ("DELETE FROM t RETURNING a", "RETURNING"),
            ("DELETE FROM t, u WHERE a", "after USING"),
            ("DELETE FROM t VERSION AS OF 5", "newest version"),
        ],
    );
    errors(
        ErrorKind::Syntax,
        &[
            ("DELETE t WHERE a", "expected FROM"),
            ("DELETE FROM", "expected"),
            (
                "DELETE FROM t x y",
                "expected USING, WHERE or the end of the statement",
            ),
        ],
    );
}

#[test]
fn truncate() {
    for text in ["TRUNCATE t", "truncate table t"] {
        match one(text) {
            Statement::Truncate { table } => assert_eq!(table, TableReference::bare("t")),
            other => panic!("{other:?}"),
        }
    }
    errors(ErrorKind::InvalidInput, &[("TRUNCATE t, u", "one table")]);
    errors(
        ErrorKind::Syntax,
        &[("TRUNCATE t CASCADE", "found 'CASCADE'")],
    );
}
