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
            "SELECT * FROM t VERSION AS OF 'v1.0'",
            "SELECT * FROM \"t VERSION AS OF 'v1.0'\" AS t",
        ),
        (
            "SELECT (SELECT max(x) FROM t version /* of the year */ as of '2024') FROM t",
            "SELECT (SELECT max(x) FROM \"t VERSION AS OF '2024'\" AS t) FROM t",
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
                "or a tag in quotes, not 5.5",
            ),
            (
                "SELECT * FROM t VERSION AS OF 99999999999999999999",
                "the number of a version",
            ),
            ("SELECT * FROM t VERSION AS OF $1", "not $1"),
            (
                "SELECT * FROM t VERSION AS OF 'a b'",
                "'a b' can't be the name of a tag",
            ),
            (
                "SELECT * FROM t VERSION AS OF ''",
                "'' can't be the name of a tag",
            ),
            (
                "SELECT * FROM t VERSION AS OF '../x'",
                "can't be the name of a tag",
            ),
            (
                "SELECT * FROM \"t VERSION AS OF 'a'\" VERSION AS OF 6",
                "is a version already",
            ),
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

fn table(name: &str) -> TableReference {
    TableReference::parse_str(name)
}

fn tag(name: &str) -> Version {
    Version::Tag(name.to_string())
}

#[test]
fn vacuum_takes_a_retention_and_dry_run_in_any_order() {
    for (text, retain_hours, dry_run) in [
        ("VACUUM t", None, false),
        ("vacuum table t", None, false),
        ("VACUUM t RETAIN 168 HOURS", Some(168), false),
        ("VACUUM t RETAIN 1 HOUR DRY RUN", Some(1), true),
        ("VACUUM t DRY RUN RETAIN 2 DAYS", Some(48), true),
        ("VACUUM t RETAIN 0 HOURS", Some(0), false),
        ("VACUUM t DRY RUN", None, true),
    ] {
        let Statement::Vacuum(vacuum) = one(text) else {
            panic!("{text}");
        };
        let expected = Vacuum {
            table: table("t"),
            retain_hours,
            dry_run,
        };
        assert_eq!(vacuum, expected, "{text}");
    }
}

#[test]
fn wrong_retentions_are_errors() {
    errors(
        ErrorKind::InvalidInput,
        &[
            ("VACUUM t RETAIN -1 HOURS", "not -1"),
            ("VACUUM t RETAIN 1.5 DAYS", "not 1.5"),
            ("VACUUM t RETAIN 99999999999999999999 HOURS", "from 0 to"),
            ("VACUUM t RETAIN 18446744073709551615 DAYS", "from 0 to"),
            (
                "VACUUM t RETAIN 1 HOUR RETAIN 2 HOURS",
                "RETAIN stands twice",
            ),
            ("VACUUM t DRY RUN DRY RUN", "DRY RUN stands twice"),
        ],
    );
    errors(
        ErrorKind::Syntax,
        &[
            ("VACUUM", "expected"),
            ("VACUUM t, u", "expected RETAIN, DRY RUN"),
            ("VACUUM t RETAIN", "a number of HOURS or DAYS"),
            ("VACUUM t RETAIN HOURS", "a number of HOURS or DAYS"),
            ("VACUUM t RETAIN 5", "HOURS or DAYS"),
            ("VACUUM t RETAIN 5 WEEKS", "HOURS or DAYS, found 'WEEKS'"),
            ("VACUUM t DRY", "expected"),
            (
                "VACUUM t RETAIN 1 HOUR DRY RUN now",
                "the end of the statement",
            ),
        ],
    );
}

#[test]
fn tags_are_made_and_dropped() {
    let create = |text: &str| match one(text) {
        Statement::CreateTag(create) => create,
        other => panic!("{text} was read as {other:?}"),
    };
    let made = create("CREATE TAG 'v1' ON t");
    let plain = CreateTag {
        tag: "v1".to_string(),
        table: table("t"),
        version: None,
        or_replace: false,
        if_not_exists: false,
    };
    assert_eq!(made, plain);
    assert_eq!(
        create("create or replace tag 'v1' on table public.t version as of 5"),
        CreateTag {
            table: table("public.t"),
            version: Some(Version::Number(5)),
            or_replace: true,
            ..plain.clone()
        }
    );
    assert_eq!(
        create("CREATE TAG IF NOT EXISTS 'v1' ON t VERSION AS OF 'other'"),
        CreateTag {
            version: Some(tag("other")),
            if_not_exists: true,
            ..plain
        }
    );
    for (text, if_exists) in [
        ("DROP TAG 'v1' ON t", false),
        ("DROP TAG IF EXISTS 'v1' ON TABLE t", true),
    ] {
        let Statement::DropTag(drop) = one(text) else {
            panic!("{text}");
        };
        let expected = DropTag {
            tag: "v1".to_string(),
            table: table("t"),
            if_exists,
        };
        assert_eq!(drop, expected, "{text}");
    }
    assert!(matches!(
        one("SHOW TAGS FROM t"),
        Statement::ShowTags { .. }
    ));
    assert!(matches!(one("SHOW TAGS IN t"), Statement::ShowTags { .. }));
}

#[test]
fn wrong_tags_are_errors() {
    errors(
        ErrorKind::InvalidInput,
        &[
            ("CREATE TAG 'a b' ON t", "'a b' can't be the name of a tag"),
            ("CREATE TAG '' ON t", "can't be the name of a tag"),
            ("CREATE TAG 'a/b' ON t", "can't be the name of a tag"),
            ("CREATE TAG '.a' ON t", "can't be the name of a tag"),
            ("DROP TAG 'a..b' ON t", "can't be the name of a tag"),
            ("CREATE OR REPLACE TAG IF NOT EXISTS 'a' ON t", "contradict"),
            ("CREATE TAG 'a' ON t VERSION AS OF 1.5", "not 1.5"),
        ],
    );
    errors(
        ErrorKind::Syntax,
        &[
            ("CREATE TAG v1 ON t", "write 'v1'"),
            ("CREATE TAG \"v1\" ON t", "write 'v1'"),
            ("CREATE TAG", "the name of a tag"),
            ("CREATE TAG 'v1'", "ON and a table"),
            ("CREATE TAG 'v1' ON", "expected"),
            ("CREATE TAG 'v1' ON t VERSION 5", "VERSION AS OF"),
            (
                "CREATE TAG 'v1' ON t VERSION AS OF x",
                "the number of a version",
            ),
            ("DROP TAG 'v1' FROM t", "ON and a table"),
            ("DROP TAG 'v1' ON t CASCADE", "the end of the statement"),
            ("SHOW TAGS", "FROM and a table"),
            ("SHOW TAGS FROM t WHERE a", "the end of the statement"),
        ],
    );
}

#[test]
fn restore_takes_a_version_or_a_tag() {
    for (text, expected) in [
        ("RESTORE TABLE t TO VERSION AS OF 5", Version::Number(5)),
        ("restore t to version as of 'v1'", tag("v1")),
        ("RESTORE t VERSION AS OF 0", Version::Number(0)),
    ] {
        let Statement::Restore {
            table: restored,
            version,
        } = one(text)
        else {
            panic!("{text}");
        };
        assert_eq!((restored, version), (table("t"), expected), "{text}");
    }
    errors(
        ErrorKind::Syntax,
        &[
            ("RESTORE", "expected"),
            ("RESTORE TABLE t", "TO VERSION AS OF"),
            ("RESTORE TABLE t TO 5", "VERSION AS OF"),
            (
                "RESTORE TABLE t TO VERSION AS OF",
                "the number of a version",
            ),
            (
                "RESTORE TABLE t TO VERSION AS OF -1",
                "the number of a version",
            ),
            (
                "RESTORE TABLE t TO VERSION AS OF 5 6",
                "the end of the statement",
            ),
        ],
    );
}
