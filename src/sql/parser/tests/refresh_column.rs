//! REFRESH COLUMN.

use super::*;

#[test]
fn modifiers_come_in_any_order() {
    let modifiers = [
        "WHERE x > 1 AND y IS NOT NULL",
        "STALE ONLY",
        "WITH (concurrency = 2)",
    ];
    for order in [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ] {
        let text = format!(
            "REFRESH COLUMN a, \"B\" ON TABLE s.t {} {} {}",
            modifiers[order[0]], modifiers[order[1]], modifiers[order[2]]
        );
        let refresh = refresh(&text);
        assert_eq!(refresh.columns, ["a", "B"], "{text}");
        assert_eq!(refresh.table, TableReference::partial("s", "t"), "{text}");
        assert_eq!(refresh.scope, RefreshScope::StaleOnly, "{text}");
        assert_eq!(
            refresh.filter.unwrap().to_string(),
            "x > 1 AND y IS NOT NULL",
            "{text}"
        );
        assert_eq!(refresh.options[0].value, OptionValue::Number(2.0), "{text}");
        assert!(!refresh.cascade, "{text}");
    }
    for text in [
        "REFRESH COLUMN c ON t FULL CASCADE WITH (batch_rows = 10)",
        "REFRESH COLUMN c ON t WITH (batch_rows = 10) CASCADE FULL",
    ] {
        let refresh = refresh(text);
        assert!(refresh.cascade && refresh.filter.is_none(), "{text}");
        assert_eq!(refresh.scope, RefreshScope::Full, "{text}");
    }
    let plain = refresh("REFRESH COLUMN c ON t");
    assert_eq!(plain.scope, RefreshScope::Changed);
    assert!(plain.options.is_empty() && !plain.cascade && plain.filter.is_none());
    assert_eq!(
        refresh("REFRESH COLUMN c ON table").table,
        TableReference::bare("table")
    );
}

#[test]
fn modifiers_that_contradict_are_errors() {
    errors(
        ErrorKind::InvalidInput,
        &[
            (
                "REFRESH COLUMN c ON t FULL WHERE x > 1",
                "FULL computes every row, so it does not go with WHERE",
            ),
            (
                "REFRESH COLUMN c ON t WHERE x > 1 FULL",
                "FULL computes every row",
            ),
            (
                "REFRESH COLUMN c ON t CASCADE WHERE x > 1",
                "CASCADE does not go with WHERE",
            ),
            (
                "REFRESH COLUMN c ON t WHERE x > 1 STALE ONLY CASCADE",
                "CASCADE does not go with WHERE",
            ),
            (
                "REFRESH COLUMN c ON t STALE ONLY",
                "STALE ONLY goes with WHERE",
            ),
            (
                "REFRESH COLUMN c ON t STALE ONLY CASCADE",
                "STALE ONLY goes with WHERE",
            ),
            ("REFRESH COLUMN c ON t FULL STALE ONLY", "contradict"),
            (
                "REFRESH COLUMN c ON t WHERE x > 1 WHERE y > 1",
                "WHERE is given twice",
            ),
            ("REFRESH COLUMN c ON t FULL FULL", "FULL is given twice"),
            (
                "REFRESH COLUMN c ON t CASCADE CASCADE",
                "CASCADE is given twice",
            ),
            (
                "REFRESH COLUMN c ON t WITH (batch_rows = 1) WITH (batch_rows = 2)",
                "WITH (…) is given twice",
            ),
            ("REFRESH COLUMN c, c ON t", "column 'c' is named twice"),
            (
                "REFRESH COLUMN c ON t WITH (concurency = 1)",
                "did you mean 'concurrency'?",
            ),
            ("REFRESH COLUMN c ON t WITH (concurrency = 0)", "from 1 to"),
        ],
    );
    errors(
        ErrorKind::Syntax,
        &[
            (
                "REFRESH t",
                "expected COLUMN or MATERIALIZED VIEW, found 't'",
            ),
            (
                "REFRESH COLUMN ON t",
                "expected ',' or ON and the table, found 't'",
            ),
            (
                "REFRESH COLUMN c",
                "expected ',' or ON and the table, found the end of the text",
            ),
            ("REFRESH COLUMN c ON", "expected"),
            (
                "REFRESH COLUMN c ON t FULLY",
                "expected WHERE, STALE ONLY, FULL",
            ),
            (
                "REFRESH COLUMN c ON t STALE",
                "expected WHERE, STALE ONLY, FULL",
            ),
            ("REFRESH COLUMN c ON t WHERE", "expected an expression"),
            ("REFRESH COLUMN c ON t WITH concurrency = 1", "expected '('"),
            ("REFRESH COLUMN c ON t VERSION AS OF 5", "found 'VERSION'"),
        ],
    );
}

#[test]
fn explain() {
    for (text, expected) in [
        ("EXPLAIN REFRESH COLUMN c ON t", false),
        ("explain analyze refresh column c on t", true),
    ] {
        match one(text) {
            Statement::ExplainRefresh { analyze, refresh } => {
                assert_eq!(analyze, expected, "{text}");
                assert_eq!(refresh.columns, ["c"]);
            }
            other => panic!("{text} was read as {other:?}"),
        }
    }
    errors(
        ErrorKind::InvalidInput,
        &[
            ("EXPLAIN VERBOSE REFRESH COLUMN c ON t", "VERBOSE"),
            (
                "EXPLAIN REFRESH COLUMN c ON t STALE ONLY",
                "STALE ONLY goes with WHERE",
            ),
        ],
    );
}
