use super::*;
use crate::ErrorKind;
use crate::sql::options::read;

fn given(text: &str) -> Vec<StatementOption> {
    let mut parser = Parser::new(&HeadwaterDialect).try_with_sql(text).unwrap();
    read(&mut parser)
        .map_err(|failure| failure.into_error(text))
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// The options as they stand in WITH (…).
fn written(options: &ViewOptions) -> String {
    format!("({options})")
}

#[test]
fn create_takes_the_options_of_the_view_and_of_its_first_refresh() {
    let (view, refresh) = ViewOptions::for_create(&given(
        "(refresh_mode = incremental, target_lag = '10 minutes', max_rows_per_fragment = 1000, \
          shuffle_seed = 7, index_sources = FALSE, concurrency = 4, batch_rows = 100, \
          batch_bytes = '64 MB', checkpoint_interval = 2.5, timeout = '1 hour', on_error = 'SKIP')",
    ))
    .unwrap();
    assert_eq!(
        view,
        ViewOptions {
            refresh_mode: RefreshMode::Incremental,
            target_lag: Some(TargetLag::Within(Duration::from_secs(600))),
            max_rows_per_fragment: Some(1000),
            order_by: None,
            shuffle_seed: Some(7),
            index_sources: Some(false),
        }
    );
    assert_eq!(
        refresh,
        RefreshViewOptions {
            full: None,
            concurrency: Some(4),
            batches: BatchSize {
                rows: Some(100),
                bytes: Some(64 << 20),
            },
            fixed_batches: true,
            checkpoint_interval: Some(Duration::from_millis(2500)),
            timeout: Some(Duration::from_secs(3600)),
            on_error: OnError::Skip,
            placement: Placement::default(),
        }
    );
    assert_eq!(
        ViewOptions::for_create(&[]).unwrap(),
        (ViewOptions::default(), RefreshViewOptions::default())
    );
}

#[test]
fn what_is_written_is_read_as_the_same() {
    for text in [
        "(refresh_mode = 'full', target_lag = 'downstream', max_rows_per_fragment = 4294967295, shuffle_seed = 9007199254740991, index_sources = TRUE)",
        "(target_lag = '1 day', order_by = 'lower(\"Name\") DESC NULLS LAST, id')",
        "(target_lag = '90 minutes')",
        "(target_lag = '61 seconds')",
        "(target_lag = '1.25 seconds')",
        "(target_lag = '2 hours')",
        "(order_by = 'a || ''b''')",
    ] {
        let (options, _) = ViewOptions::for_create(&given(text)).unwrap();
        assert_eq!(written(&options), text);
        let stored = serde_json::to_string(&options).unwrap();
        assert_eq!(
            serde_json::from_str::<ViewOptions>(&stored).unwrap(),
            options,
            "{stored}"
        );
    }
    let (auto, _) = ViewOptions::for_create(&given("(refresh_mode = AUTO)")).unwrap();
    assert_eq!(written(&auto), "()");
    assert_eq!(
        serde_json::from_str::<ViewOptions>("{}").unwrap(),
        ViewOptions::default()
    );
}

#[test]
fn set_and_reset_change_what_they_name() {
    let options = ViewOptions::default()
        .with(&given("(target_lag = 'Downstream', order_by = 'id')"))
        .unwrap()
        .with(&given("(target_lag = 60, index_sources = TRUE)"))
        .unwrap();
    assert_eq!(
        written(&options),
        "(target_lag = '1 minute', order_by = 'id', index_sources = TRUE)"
    );
    let contradicts = options.with(&given("(shuffle_seed = 1)")).unwrap_err();
    assert!(
        contradicts
            .message()
            .contains("'order_by' and 'shuffle_seed'"),
        "{contradicts}"
    );
    let names: Vec<String> = MATERIALIZED_VIEW
        .iter()
        .map(|known| known.name.to_string())
        .collect();
    assert_eq!(options.without(&names).unwrap(), ViewOptions::default());
    let kept = options.without(&["order_by".to_string()]).unwrap();
    assert_eq!(
        written(&kept),
        "(target_lag = '1 minute', index_sources = TRUE)"
    );
}

#[test]
fn wrong_values_name_the_option_and_the_range() {
    for (text, expected) in [
        (
            "(refresh_mode = 'fast')",
            "option 'refresh_mode' of CREATE MATERIALIZED VIEW takes 'auto', 'incremental' or 'full', not 'fast'",
        ),
        ("(refresh_mode = TRUE)", "'auto', 'incremental' or 'full'"),
        (
            "(target_lag = 'soon')",
            "'downstream', or a time from '1 second' to '366 days', like '10 minutes', not 'soon'",
        ),
        ("(target_lag = 0)", "not 0"),
        ("(target_lag = '400 days')", "not '400 days'"),
        (
            "(max_rows_per_fragment = 0)",
            "a whole number from 1 to 4294967295, not 0",
        ),
        (
            "(order_by = 'id DOWN')",
            "what stands behind ORDER BY, like 'bucket, id DESC', not 'id DOWN'",
        ),
        ("(order_by = '')", "what stands behind ORDER BY"),
        ("(order_by = 'a''')", "what stands behind ORDER BY"),
        ("(order_by = 5)", "a text in single quotes, not 5"),
        ("(shuffle_seed = -1)", "not -1"),
        ("(shuffle_seed = 9007199254740992)", "'shuffle_seed'"),
        ("(index_sources = 1)", "TRUE or FALSE, not 1"),
        ("(full = 1)", "TRUE or FALSE, not 1"),
        ("(concurrency = 0)", "from 1 to 1024, not 0"),
        (
            "(batch_rows = 5, max_batch_rows = 4)",
            "option 'batch_rows' of CREATE MATERIALIZED VIEW is 5, more than 'max_batch_rows' = 4",
        ),
        (
            "(order_by = 'id', shuffle_seed = 1)",
            "options 'order_by' and 'shuffle_seed' of CREATE MATERIALIZED VIEW contradict",
        ),
        ("(full = TRUE, full = TRUE)", "is given twice"),
    ] {
        let error = ViewOptions::for_create(&given(text)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}");
        assert!(error.message().contains(expected), "{text}: {error}");
    }
}

#[test]
fn unknown_options_name_the_known_ones() {
    let error = ViewOptions::for_create(&given("(target_leg = 1)")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "CREATE MATERIALIZED VIEW has no option 'target_leg'\n\
         Hint: did you mean 'target_lag'? its options are refresh_mode, target_lag, \
         max_rows_per_fragment, order_by, shuffle_seed, index_sources, full, concurrency, \
         batch_rows, max_batch_rows, batch_bytes, checkpoint_interval, timeout, on_error, pool, \
         admission, admission_timeout"
    );
    let error = RefreshViewOptions::read(&given("(batchrows = 1)")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "REFRESH MATERIALIZED VIEW has no option 'batchrows'\n\
         Hint: did you mean 'batch_rows'? its options are full, concurrency, batch_rows, \
         max_batch_rows, batch_bytes, checkpoint_interval, timeout, on_error, pool, admission, \
         admission_timeout"
    );
    let options = ViewOptions::default();
    for error in [
        options.with(&given("(zzz = 1)")).unwrap_err(),
        options.without(&["zzz".to_string()]).unwrap_err(),
    ] {
        assert_eq!(
            error.to_string(),
            "ALTER MATERIALIZED VIEW has no option 'zzz'\n\
             Hint: its options are refresh_mode, target_lag, max_rows_per_fragment, order_by, \
             shuffle_seed, index_sources"
        );
    }
}

#[test]
fn options_of_another_statement_say_of_which() {
    let error = RefreshViewOptions::read(&given("(target_lag = 'downstream')")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "option 'target_lag' belongs to the view, not to REFRESH MATERIALIZED VIEW\n\
         Hint: ALTER MATERIALIZED VIEW … SET (target_lag = 'downstream')"
    );
    let options = ViewOptions::default();
    for (error, hint) in [
        (
            options.with(&given("(concurrency = 2)")).unwrap_err(),
            "REFRESH MATERIALIZED VIEW … WITH (concurrency = …)",
        ),
        (
            options.without(&["timeout".to_string()]).unwrap_err(),
            "REFRESH MATERIALIZED VIEW … WITH (timeout = …)",
        ),
        (
            options.with(&given("(full = TRUE)")).unwrap_err(),
            "refresh_mode = 'full' makes every refresh of the view a full one",
        ),
    ] {
        assert!(
            error
                .message()
                .ends_with("is one of a refresh, not of a view"),
            "{error}"
        );
        assert_eq!(error.hint(), Some(hint));
    }
}

#[test]
fn a_view_is_never_seen_half_refreshed() {
    for name in WOULD_SHOW_HALF {
        let options = given(&format!("({name} = 1)"));
        for (statement, error) in [
            (CREATE, ViewOptions::for_create(&options).unwrap_err()),
            (REFRESH, RefreshViewOptions::read(&options).unwrap_err()),
            (ALTER, ViewOptions::default().with(&options).unwrap_err()),
        ] {
            assert_eq!(
                error.message(),
                format!("{statement} has no option '{name}': it would show half a refresh")
            );
        }
    }
    let error = RefreshViewOptions::read(&given("(version = 3)")).unwrap_err();
    assert!(error.hint().unwrap().contains("AS OF (t VERSION 3)"));
}

#[test]
fn options_of_later_releases_are_not_available() {
    for known in REFRESH_VIEW.iter().filter(|known| !known.available) {
        let options = given(&format!("({} = 1)", known.name));
        let error = RefreshViewOptions::read(&options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotAvailable);
        assert_eq!(
            error.message(),
            format!(
                "option '{}' of REFRESH MATERIALIZED VIEW is not available yet",
                known.name
            )
        );
    }
}
