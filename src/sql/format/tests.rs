use super::*;
use crate::sql::statement::Statement;

fn expression(text: &str) -> Expr {
    let mut parser = Parser::new(&HeadwaterDialect).try_with_sql(text).unwrap();
    let expression = parser.parse_expr().unwrap();
    parser.expect_token(&Token::EOF).unwrap();
    expression
}

#[test]
fn expressions_have_one_canonical_text() {
    for (text, canonical) in [
        ("X*Y", "x * y"),
        ("(x * y)", "x * y"),
        ("((x*y))", "x * y"),
        ("(x + 1) * (y)", "(x + 1) * (y)"),
        ("\"x\" + \"Y\"", "x + \"Y\""),
        ("T.\"A\".b", "t.\"A\".b"),
        ("Upper( NAME )  -- comment", "upper(name)"),
        ("cast(X as bigint)", "CAST(x AS BIGINT)"),
        ("x::INT", "x::INT"),
        (
            "case when A then 'It''s' end",
            "CASE WHEN a THEN 'It''s' END",
        ),
        (
            "\"select\" + \"value\" + \"default\"",
            "\"select\" + value + \"default\"",
        ),
        (
            "a is NOT null AND b in (1,2)",
            "a IS NOT NULL AND b IN (1, 2)",
        ),
        ("interval '1 day'", "INTERVAL '1 day'"),
        ("A[1] || B['k'].c", "a[1] || b['k'].c"),
        (
            "coalesce(a, b) /* c */ like 'X%'",
            "coalesce(a, b) LIKE 'X%'",
        ),
        ("$$a'b$$", "$$a'b$$"),
    ] {
        let rendered = expression_text(&expression(text));
        assert_eq!(rendered, canonical, "{text}");
        assert_eq!(
            expression_text(&expression(&rendered)),
            rendered,
            "{text} does not read back"
        );
    }
}

#[test]
fn names_are_quoted_where_they_need_it() {
    for plain in [
        "a",
        "_a",
        "a1",
        "price_tier",
        "value",
        "name",
        "id",
        "text",
        "type",
        "key",
        "version",
        "index",
    ] {
        assert_eq!(quote_identifier(plain), plain);
    }
    for quoted in [
        "A",
        "aB",
        "1a",
        "a b",
        "a-b",
        "ä",
        "",
        "a$",
        "select",
        "from",
        "default",
        "order",
        "group",
        "null",
        "true",
        "case",
        "cast",
        "current_date",
        "primary",
        "check",
        "generated",
        "interval",
        "distinct",
        "on",
        "end",
        "limit",
        "union",
        "join",
    ] {
        assert_eq!(quote_identifier(quoted), format!("\"{quoted}\""));
    }
    assert_eq!(quote_identifier("a\"b"), "\"a\"\"b\"");
}

#[test]
fn every_keyword_reads_back_as_a_column() {
    for keyword in ALL_KEYWORDS {
        let name = keyword.to_lowercase();
        let quoted = quote_identifier(&name);
        let text = format!(
            "CREATE TABLE t ({quoted} INT, b INT GENERATED ALWAYS AS ({quoted} + 1), PRIMARY KEY ({quoted}))"
        );
        match crate::sql::parse(&text).as_deref() {
            Ok([Statement::CreateTable(create)]) => {
                assert_eq!(create.columns[0].name, name);
                assert_eq!(create.primary_key, [name]);
            }
            other => panic!("{text}: {other:?}"),
        }
        let text = format!("ALTER TABLE {quoted} DROP COLUMN {quoted}");
        assert!(crate::sql::parse(&text).is_ok(), "{text}");
        let text =
            format!("INSERT INTO {quoted} ({quoted}) SELECT {quoted} FROM {quoted} AS {quoted}");
        assert!(crate::sql::parse(&text).is_ok(), "{text}");
        let text = format!("REFRESH COLUMN {quoted} ON {quoted} WHERE {quoted} > 1");
        assert!(crate::sql::parse(&text).is_ok(), "{text}");
    }
}

#[test]
fn versions_are_clauses_again_in_the_text_of_a_query() {
    for (text, expected) in [
        (
            "SELECT x FROM t VERSION AS OF 5",
            "SELECT x FROM t VERSION AS OF 5",
        ),
        (
            "SELECT x FROM t VERSION AS OF 'v1'",
            "SELECT x FROM t VERSION AS OF 'v1'",
        ),
        (
            "SELECT x FROM T version as of 5 AS a JOIN s.\"U\" VERSION AS OF 7 ON a.x = \"U\".x",
            "SELECT x FROM t VERSION AS OF 5 AS a JOIN s.\"U\" VERSION AS OF 7 ON a.x = \"U\".x",
        ),
        ("SELECT _rowid, x FROM t", "SELECT _rowid, x FROM t"),
        (
            "SELECT * FROM t WHERE _rowid > 5",
            "SELECT t.* EXCEPT (_rowid, _rowaddr) FROM t WHERE _rowid > 5",
        ),
    ] {
        let read = |text: &str| match crate::sql::parse(&format!("CREATE VIEW v AS {text}"))
            .unwrap()
            .remove(0)
        {
            Statement::CreateView(create) => create.query,
            other => panic!("{other:?}"),
        };
        let query = read(text);
        let written = query_text(&query);
        assert_eq!(written, expected);
        assert_eq!(read(&written).to_string(), query.to_string());
    }
}
