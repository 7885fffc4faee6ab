//! `_rowid` and `_rowaddr`.

use super::*;

#[test]
fn tables_are_read_with_row_ids_where_one_is_named() {
    for (text, expected) in [
        (
            "SELECT _rowid FROM t",
            "SELECT _rowid FROM \"t WITH ROW IDS\" AS t",
        ),
        (
            "SELECT _ROWADDR FROM S.T AS x",
            "SELECT _ROWADDR FROM S.\"t WITH ROW IDS\" AS x",
        ),
        (
            "SELECT x FROM t WHERE \"_rowid\" = 5",
            "SELECT x FROM \"t WITH ROW IDS\" AS t WHERE \"_rowid\" = 5",
        ),
        (
            "SELECT t._rowid FROM t VERSION AS OF 5",
            "SELECT t._rowid FROM \"t VERSION AS OF 5 WITH ROW IDS\" AS t",
        ),
        (
            "SELECT x FROM u WHERE y IN (SELECT _rowid FROM t)",
            "SELECT x FROM \"u WITH ROW IDS\" AS u WHERE y IN (SELECT _rowid FROM \"t WITH ROW IDS\" AS t)",
        ),
    ] {
        assert_eq!(datafusion(text), expected, "{text}");
    }
    // Neither a text nor another name is a hidden column.
    for text in [
        "SELECT * FROM t WHERE x = '_rowid'",
        "SELECT * FROM t -- _rowid",
        "SELECT \"_ROWID\" FROM t",
        "SELECT my_rowid FROM t",
    ] {
        assert!(!datafusion(text).contains("ROW IDS"), "{text}");
    }
    // Each statement for itself.
    let statements = parse("SELECT _rowid FROM t; SELECT * FROM t").unwrap();
    assert!(format!("{:?}", statements[0]).contains("ROW IDS"));
    assert!(!format!("{:?}", statements[1]).contains("ROW IDS"));
}

#[test]
fn wildcards_leave_them_out() {
    let except = "EXCEPT (_rowid, _rowaddr)";
    for (text, expected) in [
        (
            "SELECT * FROM t WHERE _rowid = 5",
            format!("SELECT t.* {except} FROM \"t WITH ROW IDS\" AS t WHERE _rowid = 5"),
        ),
        (
            "SELECT _rowid, * FROM s.T",
            format!("SELECT _rowid, T.* {except} FROM s.\"t WITH ROW IDS\" AS T")
                .replace("T.*", "t.*")
                .replace("AS T", "AS t"),
        ),
        (
            "SELECT *, a._rowid FROM t a JOIN u AS b ON a.x = b.x, v",
            format!(
                "SELECT a.* {except}, b.* {except}, v.* {except}, a._rowid FROM \"t WITH ROW IDS\" a \
                 JOIN \"u WITH ROW IDS\" AS b ON a.x = b.x, \"v WITH ROW IDS\" AS v"
            ),
        ),
        (
            "SELECT *, t._rowid FROM t JOIN (SELECT 1 AS y) d ON true",
            format!(
                "SELECT t.* {except}, d.*, t._rowid FROM \"t WITH ROW IDS\" AS t JOIN (SELECT 1 AS y) d ON true"
            ),
        ),
        (
            "SELECT t.*, u._rowid FROM t, u",
            format!(
                "SELECT t.* {except}, u._rowid FROM \"t WITH ROW IDS\" AS t, \"u WITH ROW IDS\" AS u"
            ),
        ),
        (
            "SELECT s.t.*, _rowid FROM s.t",
            format!("SELECT t.* {except}, _rowid FROM s.\"t WITH ROW IDS\" AS t"),
        ),
        (
            "SELECT * EXCEPT (x), _rowid FROM t",
            "SELECT t.* EXCEPT (x, _rowid, _rowaddr), _rowid FROM \"t WITH ROW IDS\" AS t"
                .to_string(),
        ),
        (
            "SELECT * EXCLUDE x, _rowid FROM t",
            "SELECT t.* EXCLUDE (x, _rowid, _rowaddr), _rowid FROM \"t WITH ROW IDS\" AS t"
                .to_string(),
        ),
        (
            "SELECT * EXCEPT (_rowid) FROM t",
            "SELECT t.* EXCEPT (_rowid, _rowaddr) FROM \"t WITH ROW IDS\" AS t".to_string(),
        ),
        (
            "SELECT t.* EXCEPT (_rowid, _rowaddr) FROM t",
            "SELECT t.* EXCEPT (_rowid, _rowaddr) FROM \"t WITH ROW IDS\" AS t".to_string(),
        ),
        (
            "SELECT * REPLACE (x + 1 AS x), _rowid FROM t",
            format!(
                "SELECT t.* {except} REPLACE (x + 1 AS x), _rowid FROM \"t WITH ROW IDS\" AS t"
            ),
        ),
        (
            "SELECT *, t._rowid FROM t LEFT SEMI JOIN u ON t.x = u._rowid",
            format!(
                "SELECT t.* {except}, t._rowid FROM \"t WITH ROW IDS\" AS t LEFT SEMI JOIN \"u WITH ROW IDS\" AS u ON t.x = u._rowid"
            ),
        ),
        (
            "SELECT * FROM (SELECT _rowid, x FROM t) d",
            "SELECT * FROM (SELECT _rowid, x FROM \"t WITH ROW IDS\" AS t) d".to_string(),
        ),
        (
            "SELECT * FROM (SELECT * FROM t WHERE _rowid > 1)",
            format!(
                "SELECT * FROM (SELECT t.* {except} FROM \"t WITH ROW IDS\" AS t WHERE _rowid > 1)"
            ),
        ),
        (
            "SELECT count(*) FROM t WHERE _rowid > 1",
            "SELECT count(*) FROM \"t WITH ROW IDS\" AS t WHERE _rowid > 1".to_string(),
        ),
    ] {
        assert_eq!(datafusion(text), expected, "{text}");
    }
}

#[test]
fn names_of_with_are_no_tables() {
    for (text, expected) in [
        (
            "WITH a AS (SELECT _rowid AS r FROM t) SELECT * FROM a",
            "WITH a AS (SELECT _rowid AS r FROM \"t WITH ROW IDS\" AS t) SELECT * FROM a",
        ),
        (
            // Within its own query the name is the table's.
            "WITH t AS (SELECT _rowid AS r FROM t) SELECT * FROM t, u",
            "WITH t AS (SELECT _rowid AS r FROM \"t WITH ROW IDS\" AS t) \
             SELECT t.*, u.* EXCEPT (_rowid, _rowaddr) FROM t, \"u WITH ROW IDS\" AS u",
        ),
        (
            "WITH a AS (SELECT 1 FROM b), b AS (SELECT 1 FROM a) SELECT _rowid FROM a, b",
            "WITH a AS (SELECT 1 FROM \"b WITH ROW IDS\" AS b), b AS (SELECT 1 FROM a) SELECT _rowid FROM a, b",
        ),
        (
            "WITH A AS (SELECT 1) SELECT (SELECT max(_rowid) FROM t WHERE EXISTS (SELECT 1 FROM a)) FROM \"a\"",
            "WITH A AS (SELECT 1) SELECT (SELECT max(_rowid) FROM \"t WITH ROW IDS\" AS t WHERE EXISTS (SELECT 1 FROM a)) FROM \"a\"",
        ),
        (
            // The name ends with the query that defines it.
            "SELECT _rowid FROM (WITH a AS (SELECT 1) SELECT 1 FROM a), a",
            "SELECT _rowid FROM (WITH a AS (SELECT 1) SELECT 1 FROM a), \"a WITH ROW IDS\" AS a",
        ),
        (
            "WITH RECURSIVE a AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM a) SELECT t._rowid FROM a, t",
            "WITH RECURSIVE a AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM a) SELECT t._rowid FROM a, \"t WITH ROW IDS\" AS t",
        ),
        (
            "WITH a AS (SELECT 1) SELECT _rowid FROM s.a",
            "WITH a AS (SELECT 1) SELECT _rowid FROM s.\"a WITH ROW IDS\" AS a",
        ),
    ] {
        assert_eq!(datafusion(text), expected, "{text}");
    }
}

#[test]
fn what_has_no_row_ids_is_left_alone() {
    for text in [
        "SELECT _rowid FROM 'a.parquet'",
        "SELECT _rowid, * FROM \"data/a.parquet\"",
        "SELECT _rowid FROM information_schema.tables",
        "SELECT _rowid FROM headwater.information_schema.tables",
        "SELECT _rowid FROM system.versions",
        "SELECT _rowid FROM generate_series(1, 3) AS g",
        "SELECT _rowid FROM UNNEST([1, 2]) AS u",
        "SELECT _rowid FROM t AS x (a, b)",
    ] {
        assert_eq!(datafusion(text), text);
    }
    assert_eq!(
        datafusion("SELECT *, _rowid FROM t, information_schema.tables AS i"),
        "SELECT t.* EXCEPT (_rowid, _rowaddr), i.*, _rowid FROM \"t WITH ROW IDS\" AS t, information_schema.tables AS i"
    );
}

#[test]
fn what_can_not_be_written_out_is_an_error() {
    errors(
        ErrorKind::InvalidInput,
        &[
            (
                "SELECT *, t._rowid FROM t JOIN u USING (x)",
                "USING or NATURAL",
            ),
            (
                "SELECT *, t._rowid FROM t JOIN u USING (x)",
                "write the columns out",
            ),
            (
                "SELECT x, t._rowid FROM t NATURAL JOIN u",
                "would join on _rowid",
            ),
            ("SELECT *, t._rowid FROM t, (SELECT 1)", "has no alias"),
            (
                "SELECT *, t._rowid FROM t, generate_series(1, 3)",
                "has no alias",
            ),
            (
                "SELECT * EXCEPT (x), t._rowid FROM t, u",
                "more than one table",
            ),
        ],
    );
    // Without a wildcard USING is fine.
    assert_eq!(
        datafusion("SELECT x, t._rowid FROM t JOIN u USING (x)"),
        "SELECT x, t._rowid FROM \"t WITH ROW IDS\" AS t JOIN \"u WITH ROW IDS\" AS u USING(x)"
    );
}

#[test]
fn the_target_of_a_change_is_not_renamed() {
    let given = update("UPDATE t SET a = s.a FROM s WHERE t._rowid = s.r");
    assert_eq!(given.table, TableReference::bare("t"));
    assert_eq!(given.from[0].to_string(), "\"s WITH ROW IDS\" AS s");
    let given = delete("DELETE FROM t WHERE _rowid IN (SELECT _rowid FROM t)");
    assert_eq!(given.table, TableReference::bare("t"));
    assert_eq!(
        given.selection.unwrap().to_string(),
        "_rowid IN (SELECT _rowid FROM \"t WITH ROW IDS\" AS t)"
    );
    let given = insert("INSERT INTO t SELECT * FROM u WHERE _rowid > 1");
    assert_eq!(
        given.query.unwrap().to_string(),
        "SELECT u.* EXCEPT (_rowid, _rowaddr) FROM \"u WITH ROW IDS\" AS u WHERE _rowid > 1"
    );
}
