//! ALTER TABLE.

use super::*;

#[test]
fn several_actions() {
    let alter = alter(
        "ALTER TABLE IF EXISTS s.t ADD COLUMN a INT DEFAULT f(1, 2), DROP b, RENAME c TO d, \
         ADD e DECIMAL(10, 2), ENABLE ROW TRACKING",
    );
    assert!(alter.if_exists);
    assert_eq!(alter.table, TableReference::partial("s", "t"));
    assert!(matches!(
        alter.actions.as_slice(),
        [
            AlterAction::AddColumn { .. },
            AlterAction::DropColumn { .. },
            AlterAction::RenameColumn { .. },
            AlterAction::AddColumn { .. },
            AlterAction::EnableRowTracking,
        ]
    ));
}

#[test]
fn add_column() {
    for (text, expected_type, if_not_exists, is_virtual) in [
        ("ADD COLUMN c INT", Some(DataType::Int32), false, None),
        ("ADD c INT", Some(DataType::Int32), false, None),
        ("ADD IF NOT EXISTS c INT", Some(DataType::Int32), true, None),
        (
            "ADD COLUMN IF NOT EXISTS c INT",
            Some(DataType::Int32),
            true,
            None,
        ),
        ("ADD COLUMN c AS (x * y)", None, false, Some(false)),
        (
            "ADD COLUMN c GENERATED ALWAYS AS (x * y)",
            None,
            false,
            Some(false),
        ),
        (
            "ADD COLUMN c INT GENERATED ALWAYS AS (x * y) STORED",
            Some(DataType::Int32),
            false,
            Some(false),
        ),
        (
            "ADD COLUMN c BIGINT GENERATED ALWAYS AS (x * y) VIRTUAL",
            Some(DataType::Int64),
            false,
            Some(true),
        ),
    ] {
        let AlterAction::AddColumn {
            if_not_exists: given,
            column,
        } = action(text)
        else {
            panic!("{text}");
        };
        assert_eq!(column.name, "c", "{text}");
        assert_eq!(given, if_not_exists, "{text}");
        assert_eq!(
            column.field.map(|field| field.data_type().clone()),
            expected_type,
            "{text}"
        );
        assert_eq!(
            column.generated.map(|generated| generated.is_virtual),
            is_virtual,
            "{text}"
        );
    }
}

#[test]
fn add_columns_of_one_call() {
    let AlterAction::AddColumns {
        fields,
        prefix,
        expression,
    } = action("ADD COLUMNS (h, \"W\") PREFIX 'img_' AS (dims(image))")
    else {
        panic!();
    };
    assert_eq!(fields, ["h", "W"]);
    assert_eq!(prefix, "img_");
    assert_eq!(expression.to_string(), "dims(image)");
    let AlterAction::AddColumns { prefix, .. } = action("add columns (h) as (dims(image)) stored")
    else {
        panic!();
    };
    assert_eq!(prefix, "");
    errors(
        ErrorKind::Syntax,
        &[
            ("ALTER TABLE t ADD COLUMNS (h, w)", "expected PREFIX or AS"),
            (
                "ALTER TABLE t ADD COLUMNS (h, w) PREFIX x AS (f(x))",
                "expected the prefix in single quotes",
            ),
            (
                "ALTER TABLE t ADD COLUMNS (h INT, w INT)",
                "expected ',' or ')', found 'INT'",
            ),
            ("ALTER TABLE t ADD COLUMNS () AS (f(x))", "expected a name"),
        ],
    );
    errors(
        ErrorKind::InvalidInput,
        &[
            (
                "ALTER TABLE t ADD COLUMNS (h, h) AS (f(x))",
                "field 'h' is named twice",
            ),
            (
                "ALTER TABLE t ADD COLUMNS (h) AS (f(x)) VIRTUAL",
                "are STORED",
            ),
            (
                "ALTER TABLE t ADD COLUMNS (rowid) PREFIX '_' AS (f(x))",
                "every table has",
            ),
        ],
    );
}

#[test]
fn drop_column() {
    for (text, if_exists, cascade) in [
        ("DROP COLUMN c", false, false),
        ("DROP c", false, false),
        ("DROP COLUMN IF EXISTS c RESTRICT", true, false),
        ("DROP COLUMN c CASCADE", false, true),
    ] {
        let AlterAction::DropColumn {
            column,
            if_exists: given_if_exists,
            cascade: given_cascade,
        } = action(text)
        else {
            panic!("{text}");
        };
        assert_eq!(
            (column.as_str(), given_if_exists, given_cascade),
            ("c", if_exists, cascade)
        );
    }
}

#[test]
fn rename() {
    let AlterAction::RenameColumn { from, to } = action("RENAME COLUMN a TO \"B\"") else {
        panic!();
    };
    assert_eq!((from.as_str(), to.as_str()), ("a", "B"));
    let AlterAction::RenameTable { to } = action("RENAME TO s.u") else {
        panic!();
    };
    assert_eq!(to, TableReference::partial("s", "u"));
}

#[test]
fn alter_column() {
    for text in ["ALTER COLUMN c TYPE BIGINT", "ALTER c SET DATA TYPE bigint"] {
        let AlterAction::SetType { column, field } = action(text) else {
            panic!("{text}");
        };
        assert_eq!(column, "c");
        assert_eq!(*field, Field::new("c", DataType::Int64, true));
    }
    for (text, expected) in [
        ("ALTER COLUMN c SET NOT NULL", false),
        ("ALTER COLUMN c DROP NOT NULL", true),
    ] {
        let AlterAction::SetNullable { nullable, .. } = action(text) else {
            panic!("{text}");
        };
        assert_eq!(nullable, expected);
    }
    for (text, expected) in [
        ("ALTER COLUMN c SET DEFAULT 1 + 2", Some("1 + 2")),
        ("ALTER COLUMN c DROP DEFAULT", None),
    ] {
        let AlterAction::SetDefault { default, .. } = action(text) else {
            panic!("{text}");
        };
        assert_eq!(
            default.map(|default| default.to_string()).as_deref(),
            expected
        );
    }
    let AlterAction::SetExpression { column, expression } =
        action("ALTER COLUMN c SET EXPRESSION AS (x + 1)")
    else {
        panic!();
    };
    assert_eq!(
        (column.as_str(), expression.to_string().as_str()),
        ("c", "x + 1")
    );
    for (text, expected) in [
        ("ALTER COLUMN c DROP EXPRESSION", false),
        ("ALTER COLUMN c DROP EXPRESSION IF EXISTS", true),
    ] {
        let AlterAction::DropExpression { if_exists, .. } = action(text) else {
            panic!("{text}");
        };
        assert_eq!(if_exists, expected);
    }
}

#[test]
fn materialize_column_is_a_refresh() {
    let refreshed = refresh("ALTER TABLE t MATERIALIZE COLUMN c");
    assert_eq!(refreshed.table, TableReference::bare("t"));
    assert_eq!(refreshed.columns, ["c"]);
    assert_eq!(refreshed.scope, RefreshScope::Changed);
    assert_eq!(
        refresh("ALTER TABLE t MATERIALIZE COLUMN a, b").columns,
        ["a", "b"]
    );
    assert_eq!(
        refresh("ALTER TABLE t MATERIALIZE COLUMN a, MATERIALIZE COLUMN b FULL").columns,
        ["a", "b"]
    );
    errors(
        ErrorKind::InvalidInput,
        &[
            ("ALTER TABLE t DROP c, MATERIALIZE COLUMN a", "stands alone"),
            ("ALTER TABLE IF EXISTS t MATERIALIZE COLUMN a", "IF EXISTS"),
        ],
    );
}

#[test]
fn bad_actions_say_what_is_possible() {
    errors(
        ErrorKind::Syntax,
        &[
            (
                "ALTER TABLE t",
                "expected ADD COLUMN, ADD COLUMNS, DROP COLUMN",
            ),
            ("ALTER TABLE t OWNER TO x", "expected ADD COLUMN"),
            ("ALTER TABLE t ADD COLUMN", "expected a name"),
            ("ALTER TABLE t ADD COLUMN c", "column 'c' has no type"),
            (
                "ALTER TABLE t ADD COLUMN c INT b",
                "expected ',' or the end of the statement, found 'b'",
            ),
            (
                "ALTER TABLE t ALTER COLUMN c",
                "expected TYPE, SET DATA TYPE",
            ),
            ("ALTER TABLE t ALTER COLUMN c TYPE", "expected a type"),
            (
                "ALTER TABLE t ALTER COLUMN c SET EXPRESSION (x)",
                "expected AS",
            ),
            ("ALTER TABLE t RENAME a b", "expected TO"),
            ("ALTER TABLE t ENABLE", "expected ENABLE ROW TRACKING"),
            ("ALTER TABLE t DROP COLUMN a,", "found the end of the text"),
            ("ALTER t ADD COLUMN c INT", "expected"),
        ],
    );
    errors(
        ErrorKind::InvalidInput,
        &[
            (
                "ALTER TABLE t ADD CONSTRAINT c CHECK (a > 0)",
                "constraints can't be added",
            ),
            ("ALTER TABLE t ADD PRIMARY KEY (a)", "can't be added later"),
            (
                "ALTER TABLE t ADD COLUMN c INT PRIMARY KEY",
                "can't be added later",
            ),
            (
                "ALTER TABLE t DROP CONSTRAINT c",
                "constraints can't be dropped",
            ),
            (
                "ALTER TABLE t ADD COLUMN c INT AFTER b",
                "new ones come last",
            ),
            (
                "ALTER TABLE t ALTER COLUMN c TYPE INT USING x::INT",
                "USING is not supported",
            ),
            (
                "ALTER TABLE t DISABLE ROW TRACKING",
                "can't be switched off",
            ),
            ("ALTER TABLE t ADD COLUMN _rowaddr INT", "every table has"),
            ("ALTER TABLE t RENAME a TO _rowid", "every table has"),
            (
                "ALTER TABLE t ADD COLUMN c AS (WITH a AS (SELECT 1) SELECT 1)",
                "can't be a query",
            ),
        ],
    );
}
