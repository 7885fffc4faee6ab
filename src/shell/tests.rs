use super::*;

fn status(args: &[&str]) -> String {
    let args = std::iter::once("headwater").chain(args.iter().copied());
    format!("{:?}", run(args.map(OsString::from), Headwater::builder()))
}

fn expect(args: &[&str], code: u8) {
    assert_eq!(
        status(args),
        format!("{:?}", ExitCode::from(code)),
        "{args:?}"
    );
}

#[test]
fn subcommands_come_first() {
    expect(&["-q", "serve-refresh"], 1);
    expect(&["-q", "server"], 1);
    expect(&["-q", "executor"], 1);
}

#[test]
fn wrong_arguments_are_status_2() {
    expect(&["--no-such-option"], 2);
    expect(&["one", "two"], 2);
    expect(&["--version"], 0);
    expect(&["serve-refresh"], 2);
    expect(&["serve-refresh", "--help"], 0);
    expect(&["executor", "--no-such-option"], 2);
    expect(&["server", "--port", "1"], 2);
    expect(&["server", "--help"], 0);
    expect(&["db", "--tls-key", "key.pem"], 2);
}

#[test]
fn what_can_not_be_read_is_found_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    expect(&["-c", "SELECT 1", "-f", "/no/such/script.sql"], 1);
    expect(&["-c", "SELECT 1", "-f", path], 1);
    expect(&["-c", "SELECT 1", "--options-file", path], 1);
}

#[test]
fn what_belongs_to_a_server_needs_one() {
    expect(&["db", "--tls-ca", "ca.pem", "-c", "SELECT 1"], 1);
    expect(
        &["grpc://localhost:1", "--option", "a=b", "-c", "SELECT 1"],
        1,
    );
    expect(&["grpc://localhost:1", "-c", "SELECT 1"], 1);
}
