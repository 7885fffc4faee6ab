use super::*;
use crate::ErrorKind;
use crate::sql::parser::dialect::HeadwaterDialect;

fn given(text: &str) -> Vec<StatementOption> {
    try_given(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn try_given(text: &str) -> Result<Vec<StatementOption>> {
    let mut parser = Parser::new(&HeadwaterDialect).try_with_sql(text).unwrap();
    read(&mut parser).map_err(|failure| failure.into_error(text))
}

#[test]
fn values_are_numbers_texts_and_truths() {
    let options = given(
        "(a = 1, B = -2.5, c = 'x''y', d = word, e = TRUE, f = false, g = 1e3, \"H\" = $$z$$)",
    );
    let expected = [
        ("a", OptionValue::Number(1.0)),
        ("b", OptionValue::Number(-2.5)),
        ("c", OptionValue::Text("x'y".to_string())),
        ("d", OptionValue::Text("word".to_string())),
        ("e", OptionValue::Boolean(true)),
        ("f", OptionValue::Boolean(false)),
        ("g", OptionValue::Number(1000.0)),
        ("h", OptionValue::Text("z".to_string())),
    ];
    assert_eq!(options.len(), expected.len());
    for (option, (name, value)) in options.iter().zip(expected) {
        assert_eq!((option.name.as_str(), &option.value), (name, &value));
    }
}

#[test]
fn bad_lists_say_what_was_expected() {
    for (text, expected) in [
        ("a = 1", "expected '('"),
        ("()", "expected the name of an option, found ')'"),
        ("(a)", "expected '=', found ')'"),
        ("(a = )", "expected the value of an option, found ')'"),
        ("(a = 1", "expected ',' or ')', found the end of the text"),
        ("(a = 1 b = 2)", "expected ',' or ')', found 'b'"),
        ("(a = -x)", "expected a number, found 'x'"),
        ("(a = 1,)", "expected the name of an option"),
        ("(a => 1)", "expected '='"),
    ] {
        let error = try_given(text).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Syntax, "{text}");
        assert!(error.message().contains(expected), "{text}: {error}");
    }
}

#[test]
fn unknown_options_name_the_known_ones() {
    let error = refresh_settings(&given("(concurency = 2)")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert_eq!(error.message(), "REFRESH COLUMN has no option 'concurency'");
    assert_eq!(
        error.hint(),
        Some(
            "did you mean 'concurrency'? its options are concurrency, batch_rows, max_batch_rows, batch_bytes, commit_every, commit_interval, checkpoint_interval, max_fragments, skip_fragments, version, max_calls, max_seconds, timeout, pool, admission, admission_timeout"
        )
    );
    let error = OptimizeOptions::read(&given("(zzzzzzzz = 2)")).unwrap_err();
    assert_eq!(
        error.hint(),
        Some(
            "its options are target_rows_per_fragment, materialize_deletions, materialize_deletions_threshold"
        )
    );
}

#[test]
fn an_option_twice_is_an_error() {
    let error = refresh_settings(&given("(batch_rows = 2, Batch_Rows = 2)")).unwrap_err();
    assert_eq!(
        error.message(),
        "option 'batch_rows' of REFRESH COLUMN is given twice"
    );
}

#[test]
fn options_of_later_releases_are_not_available() {
    for known in REFRESH_COLUMN.iter().filter(|known| !known.available) {
        let error = refresh_settings(&given(&format!("({} = 1)", known.name))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotAvailable);
        assert_eq!(
            error.message(),
            format!(
                "option '{}' of REFRESH COLUMN is not available yet",
                known.name
            )
        );
    }
}

#[test]
fn refresh_options_are_read() {
    let settings = refresh_settings(&given(
        "(concurrency = 4, batch_rows = 1000, max_batch_rows = 2000, batch_bytes = '64 MB', \
          commit_every = 'all', commit_interval = '1m', checkpoint_interval = 2.5, max_calls = 7, \
          max_seconds = 60, timeout = '1 hour', skip_fragments = 0, max_fragments = 3, version = 5, \
          pool = 'gpu', admission = 'wait', admission_timeout = '2m')",
    ))
    .unwrap();
    assert_eq!(
        settings,
        Settings {
            concurrency: Some(4),
            batches: BatchSize {
                rows: Some(1000),
                bytes: Some(64 << 20),
            },
            fixed_batches: true,
            commit_every: Some(0),
            commit_interval: Some(Duration::from_secs(60)),
            checkpoint_interval: Some(Duration::from_millis(2500)),
            skip_fragments: Some(0),
            max_fragments: Some(3),
            max_calls: Some(7),
            max_time: Some(Duration::from_secs(60)),
            timeout: Some(Duration::from_secs(3600)),
            version: Some(5),
            placement: Placement {
                pool: Some("gpu".to_string()),
                admission: Admission::Wait(Duration::from_secs(120)),
            },
        }
    );
    let most = refresh_settings(&given("(max_batch_rows = 9)")).unwrap();
    assert_eq!(most.batches.rows, Some(9));
    assert!(!most.fixed_batches);
    assert_eq!(refresh_settings(&[]).unwrap(), Settings::default());
    for (text, expected) in [
        (
            "(concurrency = 0)",
            "option 'concurrency' of REFRESH COLUMN takes a whole number from 1 to 1024, not 0",
        ),
        ("(concurrency = -1)", "from 1 to 1024, not -1"),
        ("(concurrency = 1.5)", "not 1.5"),
        ("(concurrency = 'two')", "not 'two'"),
        ("(concurrency = TRUE)", "not TRUE"),
        ("(commit_every = 0)", "option 'commit_every'"),
        ("(commit_every = 'some')", "not 'some'"),
        ("(max_seconds = 0)", "option 'max_seconds'"),
        (
            "(timeout = 'soon')",
            "like '30 s', '10m' or '1 hour', not 'soon'",
        ),
        ("(batch_rows = 0)", "option 'batch_rows'"),
        ("(batch_rows = 1e300)", "option 'batch_rows'"),
        ("(batch_bytes = '4 XB')", "like '64MB' or '4GB', not '4 XB'"),
        (
            "(batch_rows = 5, max_batch_rows = 4)",
            "more than 'max_batch_rows' = 4",
        ),
    ] {
        let error = refresh_settings(&given(text)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}");
        assert!(error.message().contains(expected), "{text}: {error}");
    }
}

#[test]
fn options_of_optimize_and_create_table_are_read() {
    let optimize = OptimizeOptions::read(&given(
        "(target_rows_per_fragment = 100, materialize_deletions = FALSE, materialize_deletions_threshold = 0.5)",
    ))
    .unwrap();
    assert_eq!(optimize.target_rows_per_fragment, Some(100));
    assert_eq!(optimize.materialize_deletions, Some(false));
    assert_eq!(optimize.materialize_deletions_threshold, Some(0.5));
    let error = OptimizeOptions::read(&given("(materialize_deletions_threshold = 2)")).unwrap_err();
    assert!(
        error.message().contains("a number from 0 to 1, not 2"),
        "{error}"
    );
    let error = OptimizeOptions::read(&given("(materialize_deletions = 'yes')")).unwrap_err();
    assert!(
        error.message().contains("TRUE or FALSE, not 'yes'"),
        "{error}"
    );
    let create = CreateTableOptions::read(&given(
        "(max_rows_per_fragment = 1000, max_bytes_per_file = '1 GB')",
    ))
    .unwrap();
    assert_eq!(create.max_rows_per_fragment, Some(1000));
    assert_eq!(create.max_bytes_per_file, Some(1 << 30));
}

#[test]
fn durations_and_sizes_have_units() {
    for (text, seconds) in [
        ("30 s", 30.0),
        ("30", 30.0),
        ("10m", 600.0),
        ("1 hour", 3600.0),
        ("1.5h", 5400.0),
        ("250ms", 0.25),
        (" 2 Days ", 172_800.0),
    ] {
        assert_eq!(
            parse_duration(text),
            Some(Duration::from_secs_f64(seconds)),
            "{text}"
        );
    }
    for text in ["", "s", "10 x", "-1 s", "1 2 s", "1..5 s", "1e400 s"] {
        assert_eq!(parse_duration(text), None, "{text}");
    }
    for (text, bytes) in [
        ("100", 100),
        ("1 KB", 1024),
        ("64MB", 64 << 20),
        ("4 GiB", 4 << 30),
        ("0.5 GB", 1 << 29),
        ("1tb", 1 << 40),
    ] {
        assert_eq!(parse_bytes(text), Some(bytes), "{text}");
    }
    for text in ["", "MB", "1 XB", "-1"] {
        assert_eq!(parse_bytes(text), None, "{text}");
    }
    let options = given("(a = '10 s', b = 5, c = '10 y', d = '1 day')");
    let known = [
        KnownOption::now("a"),
        KnownOption::now("b"),
        KnownOption::now("c"),
        KnownOption::now("d"),
    ];
    let options = Options::check("TEST", &options, &known).unwrap();
    let range = Duration::from_secs(1)..=Duration::from_secs(3600);
    assert_eq!(
        options.duration("a", range.clone()).unwrap(),
        Some(Duration::from_secs(10))
    );
    assert_eq!(
        options.duration("b", range.clone()).unwrap(),
        Some(Duration::from_secs(5))
    );
    assert_eq!(options.duration("x", range.clone()).unwrap(), None);
    for name in ["c", "d"] {
        let error = options.duration(name, range.clone()).unwrap_err();
        assert!(
            error.message().contains("a time from 1s to 3600s"),
            "{error}"
        );
    }
    assert_eq!(options.text("a").unwrap(), Some("10 s"));
    assert!(options.text("b").is_err());
}
