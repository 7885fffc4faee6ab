//! Statements about jobs.

use std::time::Duration;

use super::*;

fn job(text: &str) -> JobStatement {
    match one(text) {
        Statement::Job(statement) => statement,
        other => panic!("{text} was read as {other:?}"),
    }
}

fn object(column: Option<&str>) -> Option<JobObject> {
    Some(JobObject {
        table: TableReference::bare("t"),
        column: column.map(str::to_string),
        is_view: false,
    })
}

fn view() -> Option<JobObject> {
    Some(JobObject {
        table: TableReference::bare("t"),
        column: None,
        is_view: true,
    })
}

#[test]
fn listings_may_name_a_table_or_a_column() {
    let jobs = |of, limit| JobStatement::Jobs { of, limit };
    for (text, expected) in [
        ("SHOW JOBS", jobs(None, None)),
        ("show jobs limit 5", jobs(None, Some(5))),
        ("SHOW JOBS FOR TABLE t LIMIT 0", jobs(object(None), Some(0))),
        ("SHOW JOBS FOR COLUMN c ON t", jobs(object(Some("c")), None)),
        (
            "SHOW JOBS FOR COLUMN \"C\" ON TABLE t",
            jobs(object(Some("C")), None),
        ),
        ("SHOW JOBS FOR VIEW t", jobs(view(), None)),
        (
            "SHOW JOBS FOR MATERIALIZED VIEW t LIMIT 1",
            jobs(view(), Some(1)),
        ),
    ] {
        assert_eq!(job(text), expected, "{text}");
    }
    let errors = |job: Option<&str>, of| JobStatement::Errors {
        job: job.map(str::to_string),
        of,
    };
    for (text, expected) in [
        ("SHOW ERRORS", errors(None, None)),
        ("SHOW ERRORS FOR JOB 'x'", errors(Some("x"), None)),
        ("SHOW ERRORS FOR TABLE t", errors(None, object(None))),
        (
            "SHOW ERRORS FOR COLUMN c ON t",
            errors(None, object(Some("c"))),
        ),
    ] {
        assert_eq!(job(text), expected, "{text}");
    }
}

#[test]
fn a_job_is_named_in_single_quotes() {
    let id = || "x".to_string();
    let wait = |timeout: Option<u64>| JobStatement::Wait {
        id: id(),
        timeout: timeout.map(Duration::from_secs),
    };
    for (text, expected) in [
        ("SHOW JOB EVENTS 'x'", JobStatement::Events(id())),
        ("SHOW JOB EVENTS FOR JOB 'x'", JobStatement::Events(id())),
        ("DESCRIBE JOB 'x'", JobStatement::Describe(id())),
        ("desc job 'x'", JobStatement::Describe(id())),
        ("PAUSE JOB 'x'", JobStatement::Pause(id())),
        ("RESUME JOB 'x'", JobStatement::Resume(id())),
        ("CANCEL JOB 'x'", JobStatement::Cancel(id())),
        ("WAIT JOB 'x'", wait(None)),
        ("WAIT JOB 'x' TIMEOUT '10m'", wait(Some(600))),
        ("WAIT JOB 'x' TIMEOUT 5", wait(Some(5))),
    ] {
        assert_eq!(job(text), expected, "{text}");
    }
    // A table may be called job.
    assert!(!matches!(one("DESCRIBE job"), Statement::Job(_)));
    errors(
        ErrorKind::Syntax,
        &[
            ("PAUSE", "JOB"),
            ("CANCEL x", "JOB"),
            ("WAIT JOB x", "single quotes"),
            ("WAIT JOB 'x' TIMEOUT", "a time in single quotes"),
            ("SHOW JOBS LIMIT -1", "a whole number"),
            ("SHOW JOBS FOR t", "TABLE, VIEW or COLUMN"),
            ("DESCRIBE JOB 'x' 'y'", "end of"),
        ],
    );
}
