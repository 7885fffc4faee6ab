//! REFRESH MATERIALIZED VIEW.

use super::*;

#[test]
fn modifiers_of_refresh_come_in_any_order() {
    let plain = refresh_view("REFRESH MATERIALIZED VIEW v");
    assert_eq!(plain.mode, ViewRefreshMode::Auto);
    assert!(!plain.concurrently && !plain.cascade && !plain.is_async);
    assert!(plain.as_of.is_empty() && plain.options.is_empty());

    let modifiers = [
        "FULL",
        "AS OF (a VERSION 3, S.\"B\" VERSION 'v1.0')",
        "CASCADE",
        "ASYNC",
        "WITH (concurrency = 2)",
    ];
    for first in 0..modifiers.len() {
        let mut order = modifiers;
        order.rotate_left(first);
        for text in [
            format!(
                "REFRESH MATERIALIZED VIEW CONCURRENTLY s.v {}",
                order.join(" ")
            ),
            format!(
                "refresh materialized view s.v {} concurrently",
                order.join(" ")
            ),
        ] {
            let read = refresh_view(&text);
            assert_eq!(read.name, TableReference::partial("s", "v"), "{text}");
            assert_eq!(read.mode, ViewRefreshMode::Full, "{text}");
            assert!(read.concurrently && read.cascade && read.is_async, "{text}");
            assert_eq!(
                read.as_of,
                [
                    (TableReference::bare("a"), Version::Number(3)),
                    (
                        TableReference::partial("s", "B"),
                        Version::Tag("v1.0".to_string())
                    ),
                ],
                "{text}"
            );
            assert_eq!(read.options[0].value, OptionValue::Number(2.0), "{text}");
        }
    }
    for (text, mode) in [
        ("v INCREMENTAL", ViewRefreshMode::Incremental),
        ("v FAILED ONLY", ViewRefreshMode::FailedOnly),
        ("v WITH (full = TRUE)", ViewRefreshMode::Full),
        ("v WITH (full = FALSE)", ViewRefreshMode::Auto),
        (
            "v WITH (full = FALSE) INCREMENTAL",
            ViewRefreshMode::Incremental,
        ),
    ] {
        let text = format!("REFRESH MATERIALIZED VIEW {text}");
        assert_eq!(refresh_view(&text).mode, mode, "{text}");
    }
    let named = refresh_view("REFRESH MATERIALIZED VIEW concurrently");
    assert_eq!(named.name, TableReference::bare("concurrently"));
}

#[test]
fn a_refresh_has_one_text() {
    for (texts, expected) in [
        (&["v", "V", "\"v\"", "public.v", "v ASYNC"][..], "v"),
        (&["v FULL", "v WITH (FULL = true)"], "v FULL"),
        (
            &[
                "v CASCADE CONCURRENTLY INCREMENTAL",
                "concurrently v incremental cascade",
            ],
            "CONCURRENTLY v INCREMENTAL CASCADE",
        ),
        (
            &[
                "\"V\" AS OF (b VERSION 'x', A VERSION 3) WITH (concurrency = 2, batch_bytes = '4 MB') FAILED ONLY",
                "\"V\" FAILED ONLY WITH (Batch_Bytes = '4 MB', concurrency = 2.0) AS OF (a VERSION 3, b VERSION 'x')",
            ],
            "\"V\" FAILED ONLY AS OF (a VERSION 3, b VERSION 'x') WITH (batch_bytes = '4 MB', concurrency = 2)",
        ),
    ] {
        let expected = format!("REFRESH MATERIALIZED VIEW {expected}");
        for text in texts {
            let text = format!("REFRESH MATERIALIZED VIEW {text}");
            assert_eq!(refresh_view(&text).text(), expected, "{text}");
        }
        assert_eq!(refresh_view(&expected).text(), expected);
    }
}

#[test]
fn modifiers_of_refresh_that_contradict_are_errors() {
    for (modifiers, expected) in [
        ("FULL INCREMENTAL", "FULL and INCREMENTAL contradict"),
        ("INCREMENTAL FULL", "FULL and INCREMENTAL contradict"),
        (
            "INCREMENTAL WITH (full = TRUE)",
            "FULL and INCREMENTAL contradict",
        ),
        ("FAILED ONLY FULL", "FULL and FAILED ONLY contradict"),
        (
            "INCREMENTAL FAILED ONLY",
            "INCREMENTAL and FAILED ONLY contradict",
        ),
        ("FULL FULL", "FULL is given twice"),
        ("FULL WITH (full = TRUE)", "FULL is given twice"),
        (
            "FULL WITH (full = FALSE)",
            "FULL and WITH (full = FALSE) contradict",
        ),
        ("INCREMENTAL INCREMENTAL", "INCREMENTAL is given twice"),
        ("FAILED ONLY FAILED ONLY", "FAILED ONLY is given twice"),
        ("CASCADE CASCADE", "CASCADE is given twice"),
        ("ASYNC ASYNC", "ASYNC is given twice"),
        ("CONCURRENTLY CONCURRENTLY", "CONCURRENTLY is given twice"),
        (
            "AS OF (a VERSION 1) AS OF (b VERSION 1)",
            "AS OF (…) is given twice",
        ),
        (
            "WITH (timeout = 1) WITH (concurrency = 1)",
            "WITH (…) is given twice",
        ),
        (
            "AS OF (a VERSION 1, b VERSION 1, a VERSION 2)",
            "AS OF names a version of table 'a' twice",
        ),
        (
            "AS OF (a VERSION 1, public.A VERSION 1)",
            "AS OF names a version of table 'a' twice",
        ),
        (
            "AS OF (a VERSION 99999999999999999999)",
            "the number of a version",
        ),
        (
            "AS OF (a VERSION 'x y')",
            "'x y' can't be the name of a tag",
        ),
        ("WITH (max_calls = 5)", "would show half a refresh"),
        ("WITH (version = 5)", "AS OF (t VERSION 3)"),
        ("WITH (refresh_mode = full)", "belongs to the view"),
        ("WITH (concurency = 1)", "did you mean 'concurrency'?"),
    ] {
        let text = format!("REFRESH MATERIALIZED VIEW v {modifiers}");
        errors(ErrorKind::InvalidInput, &[(text.as_str(), expected)]);
    }
    errors(
        ErrorKind::InvalidInput,
        &[
            (
                "REFRESH MATERIALIZED VIEW CONCURRENTLY v CONCURRENTLY",
                "CONCURRENTLY is given twice",
            ),
            (
                "EXPLAIN REFRESH MATERIALIZED VIEW v ASYNC",
                "EXPLAIN does not go with ASYNC",
            ),
            (
                "EXPLAIN VERBOSE REFRESH MATERIALIZED VIEW v",
                "EXPLAIN REFRESH MATERIALIZED VIEW takes no VERBOSE",
            ),
        ],
    );
    errors(
        ErrorKind::NotAvailable,
        &[(
            "REFRESH MATERIALIZED VIEW v AS OF (a TIMESTAMP '2024-01-01')",
            "TIMESTAMP in AS OF",
        )],
    );
    errors(
        ErrorKind::Syntax,
        &[
            (
                "REFRESH MATERIALIZED v",
                "expected COLUMN or MATERIALIZED VIEW",
            ),
            ("REFRESH VIEW v", "write REFRESH MATERIALIZED VIEW"),
            ("REFRESH MATERIALIZED VIEW", "expected"),
            (
                "REFRESH MATERIALIZED VIEW v WHERE x > 1",
                "expected FULL, INCREMENTAL, FAILED ONLY, CONCURRENTLY, AS OF (…), CASCADE, ASYNC, WITH (…)",
            ),
            ("REFRESH MATERIALIZED VIEW v FAILED", "found 'FAILED'"),
            (
                "REFRESH MATERIALIZED VIEW v AS OF a VERSION 1",
                "expected '('",
            ),
            ("REFRESH MATERIALIZED VIEW v AS OF ()", "expected"),
            ("REFRESH MATERIALIZED VIEW v AS OF (a)", "expected VERSION"),
            (
                "REFRESH MATERIALIZED VIEW v AS OF (a VERSION x)",
                "expected the number of a version, or a tag in single quotes, found 'x'",
            ),
            (
                "REFRESH MATERIALIZED VIEW v AS OF (a VERSION 1",
                "expected ',' or ')'",
            ),
            ("REFRESH MATERIALIZED VIEW v WITH NO DATA", "expected '('"),
        ],
    );
}
