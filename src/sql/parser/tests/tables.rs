//! CREATE, DROP, DESCRIBE, SHOW, OPTIMIZE.

use super::*;

#[test]
fn create_table_with_columns() {
    let create = create_table(
        "CREATE TABLE IF NOT EXISTS s.T (id BIGINT NOT NULL, x INT DEFAULT 0, y INT NULL, \
         area INT GENERATED ALWAYS AS (x * y) STORED, \"Mixed\" VARCHAR(20), PRIMARY KEY (id)) \
         WITH (max_rows_per_fragment = 1000)",
    );
    assert_eq!(create.name, TableReference::partial("s", "t"));
    assert!(create.if_not_exists && !create.or_replace);
    assert_eq!(create.primary_key, ["id"]);
    assert!(create.query.is_none());
    assert_eq!(create.options.len(), 1);
    assert_eq!(create.options[0].name, "max_rows_per_fragment");
    assert_eq!(create.options[0].value, OptionValue::Number(1000.0));
    let names: Vec<&str> = create
        .columns
        .iter()
        .map(|column| column.name.as_str())
        .collect();
    assert_eq!(names, ["id", "x", "y", "area", "Mixed"]);
    assert_eq!(
        create.columns[0].field.as_deref(),
        Some(&Field::new("id", DataType::Int64, false))
    );
    assert!(!create.columns[0].nullable);
    assert_eq!(create.columns[1].default.as_ref().unwrap().to_string(), "0");
    assert!(create.columns[2].nullable);
    let area = create.columns[3].generated.as_ref().unwrap();
    assert_eq!(area.expression.to_string(), "x * y");
    assert!(!area.is_virtual);
    assert_eq!(
        create.columns[4].field.as_deref(),
        Some(&Field::new("Mixed", DataType::Utf8, true))
    );
}

#[test]
fn columns_take_clauses_in_any_order() {
    let given = column("a INT DEFAULT (1 + 2) NOT NULL");
    assert!(!given.nullable && !given.field.unwrap().is_nullable());
    assert_eq!(given.default.unwrap().to_string(), "(1 + 2)");
    let given = column("a INT NOT NULL DEFAULT -1");
    assert_eq!(given.default.unwrap().to_string(), "-1");
    let given = column("a VARCHAR DEFAULT 'x' NULL");
    assert!(given.nullable);
    let given = column("a TIMESTAMP(6) WITH TIME ZONE DEFAULT now() NOT NULL");
    assert_eq!(
        given.field.unwrap().data_type(),
        &DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
    );
    let given = column("a FLOAT[384] NOT NULL");
    assert!(!given.nullable);
    assert!(crate::sql::types::is_blob(&column("a BLOB").field.unwrap()));
}

#[test]
fn generated_columns_may_leave_out_the_type() {
    for (text, typed, is_virtual) in [
        ("c AS (x * y)", false, false),
        ("c AS (x * y) STORED", false, false),
        ("c AS (x * y) VIRTUAL", false, true),
        ("c INT AS (x * y)", true, false),
        ("c GENERATED ALWAYS AS (x * y)", false, false),
        ("c BIGINT GENERATED ALWAYS AS (x * y) VIRTUAL", true, true),
        (
            "c STRUCT(a INT, b VARCHAR) GENERATED ALWAYS AS (x * y)",
            true,
            false,
        ),
    ] {
        let column = create_table(&format!("CREATE TABLE t (x INT, y INT, {text})"))
            .columns
            .remove(2);
        let generated = column.generated.unwrap();
        assert_eq!(column.field.is_some(), typed, "{text}");
        assert_eq!(generated.is_virtual, is_virtual, "{text}");
        assert_eq!(generated.expression.to_string(), "x * y", "{text}");
    }
}

#[test]
fn a_primary_key_is_declared_inline_or_for_the_table() {
    for text in [
        "CREATE TABLE t (a INT PRIMARY KEY, b INT)",
        "CREATE TABLE t (a INT NOT NULL PRIMARY KEY, b INT)",
        "CREATE TABLE t (a INT CONSTRAINT pk PRIMARY KEY, b INT)",
        "CREATE TABLE t (a INT, b INT, PRIMARY KEY (a))",
        "CREATE TABLE t (a INT, CONSTRAINT pk PRIMARY KEY (a), b INT)",
    ] {
        let create = create_table(text);
        assert_eq!(create.primary_key, ["a"], "{text}");
        assert_eq!(create.columns.len(), 2, "{text}");
        assert!(!create.columns[0].nullable, "{text}");
        assert!(
            !create.columns[0].field.as_ref().unwrap().is_nullable(),
            "{text}"
        );
        assert!(create.columns[1].nullable, "{text}");
    }
    let create = create_table("CREATE TABLE t (a INT, b INT, PRIMARY KEY (B, a))");
    assert_eq!(create.primary_key, ["b", "a"]);
    errors(
        ErrorKind::InvalidInput,
        &[
            (
                "CREATE TABLE t (a INT PRIMARY KEY, b INT PRIMARY KEY)",
                "PRIMARY KEY (a, b)",
            ),
            (
                "CREATE TABLE t (price INT, PRIMARY KEY (prize))",
                "did you mean 'price'?",
            ),
            (
                "CREATE TABLE t (a INT, PRIMARY KEY (a, a))",
                "column 'a' is named twice",
            ),
            ("CREATE TABLE t (a INT NULL PRIMARY KEY)", "can't be NULL"),
        ],
    );
}

#[test]
fn create_table_as_a_query() {
    let create = create_table("CREATE OR REPLACE TABLE t AS SELECT * FROM 'data/*.parquet'");
    assert!(create.or_replace && create.columns.is_empty());
    assert_eq!(
        create.query.unwrap().to_string(),
        "SELECT * FROM 'data/*.parquet'"
    );
    let create = create_table(
        "CREATE TABLE t WITH (max_rows_per_fragment = 5) AS WITH a AS (SELECT 1) SELECT * FROM a",
    );
    assert_eq!(create.options.len(), 1);
    let create = create_table("CREATE TABLE t (a BIGINT, b VARCHAR) AS VALUES (1, 'x')");
    assert_eq!(create.columns.len(), 2);
    assert!(create.query.is_some());
    create_table("CREATE TABLE t AS (SELECT 1)");
}

#[test]
fn create_table_refuses_what_it_can_not_do() {
    errors(
        ErrorKind::InvalidInput,
        &[
            (
                "CREATE TABLE t (a INT CHECK (a > 0))",
                "CHECK is not supported",
            ),
            (
                "CREATE TABLE t (a INT, CHECK (a > 0))",
                "CHECK is not supported",
            ),
            (
                "CREATE TABLE t (a INT, CONSTRAINT c CHECK (a > 0))",
                "CHECK is not supported",
            ),
            (
                "CREATE TABLE t (a INT REFERENCES u)",
                "REFERENCES are not supported",
            ),
            (
                "CREATE TABLE t (a INT, FOREIGN KEY (a) REFERENCES u (b))",
                "FOREIGN KEY",
            ),
            ("CREATE TABLE t (a INT UNIQUE)", "UNIQUE is not supported"),
            (
                "CREATE TABLE t (a INT, UNIQUE (a))",
                "UNIQUE is not supported",
            ),
            (
                "CREATE TABLE t (a INT GENERATED ALWAYS AS IDENTITY)",
                "identity columns",
            ),
            (
                "CREATE TABLE t (a INT GENERATED BY DEFAULT AS IDENTITY)",
                "identity columns",
            ),
            ("CREATE TABLE t (a INT AUTO_INCREMENT)", "identity columns"),
            ("CREATE TABLE t (a VARCHAR COLLATE x)", "COLLATE"),
            ("CREATE TABLE t (a INT COMMENT 'x')", "COMMENT"),
            (
                "CREATE TABLE t (a INT DEFAULT 1 AS (b))",
                "both DEFAULT and GENERATED",
            ),
            (
                "CREATE TABLE t (a INT NULL NOT NULL)",
                "NULL or NOT NULL is given twice",
            ),
            (
                "CREATE TABLE t (a INT DEFAULT 1 DEFAULT 2)",
                "DEFAULT is given twice",
            ),
            ("CREATE TABLE t (a INT, A INT)", "column 'a' is named twice"),
            ("CREATE TABLE t (_rowid INT)", "every table has"),
            ("CREATE TABLE t (a INT AS (SELECT 1))", "can't be a query"),
            (
                "CREATE OR REPLACE TABLE IF NOT EXISTS t (a INT)",
                "contradict",
            ),
            ("CREATE TABLE t (LIKE u)", "SHOW CREATE TABLE"),
            (
                "CREATE TABLE t (a INT) WITH (max_row_per_fragment = 1)",
                "did you mean 'max_rows_per_fragment'?",
            ),
            (
                "CREATE TABLE t (a INT) WITH (max_rows_per_fragment = 0)",
                "from 1 to",
            ),
        ],
    );
    errors(
        ErrorKind::Syntax,
        &[
            (
                "CREATE TABLE t",
                "expected '(' and the columns, or AS and a query",
            ),
            ("CREATE TABLE t ()", "expected a name, found ')'"),
            (
                "CREATE TABLE t (a)",
                "column 'a' has no type; only a generated column",
            ),
            ("CREATE TABLE t (a NOT NULL)", "column 'a' has no type"),
            (
                "CREATE TABLE t (a, b) AS SELECT 1, 2",
                "column 'a' has no type",
            ),
            ("CREATE TABLE t (a INTT)", "unknown type 'INTT'"),
            (
                "CREATE TABLE t (a INT b INT)",
                "expected ',' or ')', found 'b'",
            ),
            ("CREATE TABLE t (a INT,)", "expected a name, found ')'"),
            (
                "CREATE TABLE t (a INT",
                "expected ',' or ')', found the end of the text",
            ),
            ("CREATE TABLE t ('a' INT)", "single quotes are for text"),
            ("CREATE TABLE t (a INT AS x)", "expected '(', found 'x'"),
            ("CREATE TABLE t (a INT AS (x)", "expected ',' or ')'"),
            (
                "CREATE TABLE t (a INT AS (x y))",
                "expected an operator or ')', found 'y'",
            ),
            ("CREATE TABLE t (a INT GENERATED AS (x))", "expected ALWAYS"),
            (
                "CREATE TABLE t (a INT) PARTITIONED BY (a)",
                "expected WITH (…), AS or the end of the statement",
            ),
            ("CREATE TABLE t (a INT) WITH", "expected '('"),
            (
                "CREATE TABLE t (a INT, CONSTRAINT c)",
                "expected PRIMARY KEY",
            ),
            (
                "CREATE TABLE t (a INT, CONSTRAINT c UNIQ (a))",
                "expected PRIMARY KEY",
            ),
        ],
    );
}

#[test]
fn columns_may_have_names_that_look_like_constraints() {
    let create =
        create_table("CREATE TABLE t (\"primary\" INT, key INT, exclude INT, \"check\" INT)");
    let names: Vec<&str> = create
        .columns
        .iter()
        .map(|column| column.name.as_str())
        .collect();
    assert_eq!(names, ["primary", "key", "exclude", "check"]);
}

#[test]
fn create_view() {
    let view = super::create_view("CREATE OR REPLACE VIEW s.v (a, \"B\") AS SELECT 1, 2");
    assert_eq!(view.name, TableReference::partial("s", "v"));
    assert!(view.or_replace && !view.if_not_exists);
    assert_eq!(view.columns, ["a", "B"]);
    assert_eq!(view.query.to_string(), "SELECT 1, 2");
    assert!(super::create_view("CREATE VIEW IF NOT EXISTS v AS SELECT 1").if_not_exists);
    errors(
        ErrorKind::InvalidInput,
        &[
            (
                "CREATE VIEW v (a, a) AS SELECT 1, 2",
                "column 'a' is named twice",
            ),
            (
                "CREATE VIEW v WITH (a = 1) AS SELECT 1",
                "a view has no options",
            ),
            (
                "CREATE OR REPLACE VIEW IF NOT EXISTS v AS SELECT 1",
                "contradict",
            ),
        ],
    );
    errors(
        ErrorKind::Syntax,
        &[
            ("CREATE VIEW v", "expected AS and a query"),
            ("CREATE VIEW v AS SELECT 1 WITH CHECK OPTION", "expected"),
            ("CREATE VIEW v AS INSERT INTO t VALUES (1)", "expected"),
            ("CREATE VIEW AS SELECT 1", "expected"),
        ],
    );
}

#[test]
fn drop_objects() {
    let drop = |text: &str| match one(text) {
        Statement::Drop(drop) => drop,
        other => panic!("{other:?}"),
    };
    let Drop {
        kind,
        names,
        if_exists,
        cascade,
    } = drop("DROP TABLE IF EXISTS a, s.\"B\" CASCADE");
    assert_eq!(kind, DropKind::Table);
    assert_eq!(
        names,
        [TableReference::bare("a"), TableReference::partial("s", "B")]
    );
    assert!(if_exists && cascade);
    let plain = drop("drop view v");
    assert!(plain.kind == DropKind::View && !plain.if_exists && !plain.cascade);
    assert!(!drop("DROP TABLE t RESTRICT").cascade);
    errors(
        ErrorKind::Syntax,
        &[
            ("DROP TABLE", "expected"),
            (
                "DROP TABLE t PURGE",
                "expected ',', RESTRICT, CASCADE or the end of the statement, found 'PURGE'",
            ),
            ("DROP TABLE t CASCADE RESTRICT", "found 'RESTRICT'"),
        ],
    );
}

#[test]
fn describe_and_show() {
    for text in [
        "DESCRIBE t",
        "DESC t",
        "describe table t",
        "SHOW COLUMNS FROM t",
        "SHOW COLUMNS IN t",
    ] {
        match one(text) {
            Statement::Describe { table } => assert_eq!(table, TableReference::bare("t")),
            other => panic!("{text} was read as {other:?}"),
        }
    }
    for (text, expected) in [
        (
            "SHOW COLUMNS FROM t FROM s",
            TableReference::partial("s", "t"),
        ),
        ("DESCRIBE history", TableReference::bare("history")),
        ("DESCRIBE function", TableReference::bare("function")),
        ("DESCRIBE table", TableReference::bare("table")),
        ("DESCRIBE 'a.parquet'", TableReference::bare("a.parquet")),
    ] {
        match one(text) {
            Statement::Describe { table } => assert_eq!(table, expected, "{text}"),
            other => panic!("{text} was read as {other:?}"),
        }
    }
    assert!(matches!(one("SHOW TABLES"), Statement::Show(Show::Tables)));
    for text in ["SHOW CREATE TABLE s.t", "show create view s.t"] {
        match one(text) {
            Statement::Show(Show::Create { name }) => {
                assert_eq!(name, TableReference::partial("s", "t"));
            }
            other => panic!("{text} was read as {other:?}"),
        }
    }
    for text in [
        "SHOW VERSIONS FROM t",
        "DESCRIBE HISTORY t",
        "DESC HISTORY t",
    ] {
        match one(text) {
            Statement::Show(Show::Versions { table }) => {
                assert_eq!(table, TableReference::bare("t"));
            }
            other => panic!("{text} was read as {other:?}"),
        }
    }
    errors(
        ErrorKind::InvalidInput,
        &[
            ("SHOW TABLES LIKE 'a'", "SHOW TABLES takes no filter"),
            (
                "SHOW COLUMNS FROM t LIKE 'a'",
                "SHOW COLUMNS takes no filter",
            ),
            ("SHOW COLUMNS FROM s.t FROM s", "named twice"),
        ],
    );
    errors(
        ErrorKind::Syntax,
        &[
            ("SHOW COLUMNS t", "expected FROM and a table, found 't'"),
            ("SHOW VERSIONS", "expected FROM and a table"),
            ("SHOW CREATE t", "expected TABLE, VIEW or MATERIALIZED VIEW"),
            ("DESCRIBE", "expected"),
            ("DESCRIBE t u", "found 'u'"),
            ("DESCRIBE t VERSION AS OF 5", "found 'VERSION'"),
        ],
    );
}

#[test]
fn optimize() {
    let optimize = |text: &str| match one(text) {
        Statement::Optimize { table, options } => (table, options),
        other => panic!("{other:?}"),
    };
    assert_eq!(optimize("OPTIMIZE t").0, TableReference::bare("t"));
    assert_eq!(optimize("OPTIMIZE index").0, TableReference::bare("index"));
    let (table, options) = optimize(
        "optimize table s.t with (TARGET_ROWS_PER_FRAGMENT = 100, materialize_deletions = false)",
    );
    assert_eq!(table, TableReference::partial("s", "t"));
    assert_eq!(options[0].name, "target_rows_per_fragment");
    assert_eq!(options[1].value, OptionValue::Boolean(false));
    errors(
        ErrorKind::InvalidInput,
        &[("OPTIMIZE t WITH (zzz = 1)", "OPTIMIZE has no option 'zzz'")],
    );
    errors(
        ErrorKind::Syntax,
        &[
            (
                "OPTIMIZE t ZORDER BY (a)",
                "expected WITH (…) or the end of the statement",
            ),
            ("OPTIMIZE t WHERE a = 1", "expected WITH (…)"),
            ("OPTIMIZE", "expected"),
        ],
    );
}
