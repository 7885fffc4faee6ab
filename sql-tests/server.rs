//! `headwater server` and its clients, as processes: what they print, and what happens when one of them goes away.

mod adbc;
mod flight;
mod lost;
mod tls;

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use crate::harness::daemon::Daemon;
use crate::harness::process::{Ended, TestShell};
use crate::harness::scene::{Outcome, Scene, block_on};

/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("server/shell", || block_on(shell())),
        Trial::test("server/sessions", || block_on(sessions())),
        Trial::test("server/much", || block_on(much())),
        Trial::test("server/token", || block_on(token())),
        Trial::test("server/settings", || block_on(settings())),
    ]
    .into_iter()
    .chain(flight::trials())
    .chain(lost::trials())
    .chain(tls::trials())
    .chain(adbc::trials())
    .collect()
}

/// A server over the database of a scene.
async fn start(scene: &Scene, arguments: &[&str]) -> Outcome<(Daemon, String)> {
    let daemon = Daemon::new(scene.shell.server(arguments)?)?;
    let url = daemon.url().await?;
    Ok((daemon, url))
}

/// The shell over a database or on a server, with these arguments and variables.
fn headwater(database: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Outcome<Ended> {
    let output = command(database, arguments, variables)?.output()?;
    Ok(ended(&output))
}

fn command(database: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Outcome<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .env("HEADWATER_TEST_SHELL", "1")
        .env("RUST_BACKTRACE", "0")
        .env_remove("HEADWATER_TOKEN")
        .arg(database)
        .args(arguments)
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Ok(command)
}

fn ended(output: &Output) -> Ended {
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A shell on a server, as [`TestShell`] runs it.
fn remote(scene: &Scene, url: &str) -> TestShell {
    TestShell::new(url.as_ref(), &scene.file("unused"))
}

/// Fails unless `text` has all of `words`.
fn has(text: &str, words: &[&str]) -> Outcome<()> {
    match words.iter().find(|word| !text.contains(**word)) {
        None => Ok(()),
        Some(word) => Err(format!("no {word:?} in {text:?}").into()),
    }
}

fn within(started: Instant, limit: Duration) -> Outcome<()> {
    match started.elapsed() {
        elapsed if elapsed <= limit => Ok(()),
        elapsed => Err(format!("it took {elapsed:?}, more than {limit:?}").into()),
    }
}

/// Waits until a query gives a number.
async fn until(scene: &Scene, query: &str, expected: i64) -> Outcome<()> {
    let started = Instant::now();
    loop {
        let found = scene.number(query).await;
        if matches!(found, Ok(found) if found == expected) {
            return Ok(());
        }
        if started.elapsed() > PATIENCE {
            return Err(format!("{query}: {found:?}, never {expected}").into());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// A table of so many rows with a column each of whose values takes some milliseconds, and is counted.
async fn slow(rows: u32, millis: u32) -> Outcome<Scene> {
    Scene::new(&[
        &format!(
            "CREATE TABLE t (id BIGINT, x BIGINT,
                 y BIGINT AS (count_calls(sleep_ms(x, {millis}))))"
        ),
        &format!(
            "INSERT INTO t (id, x) SELECT value AS id, value AS x FROM generate_series(1, {rows})"
        ),
    ])
    .await
}

const RUNNING: &str = "SELECT count(*) FROM system.jobs WHERE state = 'running'";

/// What the shell prints and how it ends is the same on a server as over a database.
async fn shell() -> Outcome<()> {
    let scripts: [&[&str]; 9] = [
        &[
            "-c",
            "SELECT 1 AS one, 'x' AS text, NULL AS nothing; SELECT 2 AS two",
        ],
        &[
            "-c",
            "SELECT value FROM generate_series(1, 100)",
            "--maxrows",
            "3",
        ],
        &[
            "--format",
            "csv",
            "-c",
            "SELECT value, DATE '2024-02-29' AS d FROM generate_series(1, 3)",
        ],
        &[
            "--format",
            "json",
            "-c",
            "SELECT [1, 2] AS list, {'a': 1} AS struct",
        ],
        &[
            "-c",
            "CREATE TABLE boxes (id BIGINT PRIMARY KEY, x INT, area INT AS (x * x))",
            "-c",
            "INSERT INTO boxes (id, x) VALUES (1, 2), (2, 3)",
            "-c",
            "BEGIN",
            "-c",
            "DESCRIBE boxes",
            "-c",
            "SHOW TABLES",
            "-c",
            "SELECT x FROM boxes ORDER BY id",
            "-c",
            "EXPLAIN REFRESH COLUMN area ON boxes",
        ],
        &[
            "-c",
            "SELECT 1",
            "-c",
            "SELECT nosuch FROM boxes",
            "-c",
            "SELECT 3",
        ],
        &[
            "--keep-going",
            "-c",
            "SELEC 1",
            "-c",
            "SELECT * FROM boxs",
            "-c",
            "SELECT 3",
        ],
        &["-c", "SELECT fail_if(value, 7) FROM generate_series(1, 10)"],
        &[
            "-c",
            "\\d boxes",
            "-c",
            "\\h REFRESH COLUMN",
            "-c",
            "DROP TABLE boxes",
            "-c",
            "\\pset format tsv",
            "-c",
            "SELECT 1, 2",
        ],
    ];
    let scene = Scene::new(&[]).await?;
    let (mut server, url) = start(&scene, &[]).await?;
    let here = scene.file("here").display().to_string();
    for script in scripts {
        let expected = headwater(&here, script, &[])?;
        let found = headwater(&url, script, &[])?;
        let plain = |text: &str, place: &str| {
            let folder = scene.database().display().to_string();
            let text = text.replace(place, "$DB").replace(&folder, "$DB");
            let lines = text.lines().map(|line| {
                let times = line.find("Elapsed ").map_or(line, |at| &line[..at]);
                // Times of one run differ from those of the next.
                let is_timed = line.contains("| DROP")
                    || line.contains("| CREATE")
                    || line.contains("| INSERT");
                if is_timed {
                    "a row with its time"
                } else {
                    times
                }
            });
            lines.collect::<Vec<_>>().join("\n")
        };
        if found.code != expected.code
            || plain(&found.stdout, &url) != plain(&expected.stdout, &here)
            || plain(&found.stderr, &url) != plain(&expected.stderr, &here)
        {
            return Err(format!("{script:?}: {found:#?}, not {expected:#?}").into());
        }
    }
    // Options that belong to the server are not taken for nothing.
    for (arguments, word) in [
        (&["--option", "a=b"][..], "--option"),
        (&["-m", "1g"], "--memory-limit"),
    ] {
        let found = headwater(&url, &[arguments, &["-c", "SELECT 1"]].concat(), &[])?;
        has(&found.stderr, &[word, "headwater server"])?;
        if found.code != Some(1) {
            return Err(format!("{found:?}").into());
        }
    }
    server.terminate().await
}

/// A client has settings and tables of its own.
async fn sessions() -> Outcome<()> {
    let scene = Scene::new(&[]).await?;
    let (mut server, url) = start(&scene, &[]).await?;
    std::fs::write(scene.file("numbers.csv"), "n\n1\n2\n")?;
    let external = format!(
        "CREATE EXTERNAL TABLE numbers STORED AS CSV LOCATION '{}'",
        scene.file("numbers.csv").display()
    );
    let shell = remote(&scene, &url);
    let show = "SHOW datafusion.execution.batch_size";
    let first = shell.run(&[
        "SET datafusion.execution.batch_size = 123",
        show,
        &external,
        "SELECT count(*) AS c FROM numbers",
        "SHOW TABLES",
    ])?;
    has(
        &first.stdout,
        &["batch_size,123", "c\n2", "numbers,session"],
    )?;
    let second = shell.run(&[show])?;
    has(&second.stdout, &["batch_size,8192"])?;
    let second = shell.run(&["SELECT * FROM numbers"])?;
    has(&second.stderr, &["'numbers' does not exist"])?;
    server.terminate().await
}

/// A result that is larger than what the server may hold is sent as it is computed.
async fn much() -> Outcome<()> {
    use futures::TryStreamExt;
    let scene = Scene::new(&[]).await?;
    let (mut server, url) = start(&scene, &[]).await?;
    let client = headwater::client::Client::connect(&url, &Default::default()).await?;
    client.execute("SELECT 1").await?.collect().await?;
    let before = most_memory(server.id())?;
    let query = "SELECT value, repeat('x', 500) AS text FROM generate_series(1, 1500000)";
    let mut rows = client.execute(query).await?;
    let (mut count, mut bytes) = (0, 0);
    while let Some(batch) = rows.try_next().await? {
        count += batch.num_rows();
        bytes += batch.get_array_memory_size();
    }
    let grown = most_memory(server.id())?.saturating_sub(before);
    // Some batches are on their way, the more the faster the machine; what is held back would be five times as much.
    if count != 1_500_000 || bytes < 700 << 20 || grown > 200 << 20 {
        return Err(format!("{count} rows, {bytes} bytes, the server grew by {grown}").into());
    }
    // A client that takes the first rows only ends the query.
    let started = Instant::now();
    let endless = "SELECT value FROM generate_series(1, 100000000000)";
    let mut rows = client.execute(endless).await?;
    rows.try_next().await?.ok_or("no rows")?;
    drop(rows);
    within(started, Duration::from_secs(10))?;
    server.terminate().await
}

/// The most memory that a process had so far, in bytes.
fn most_memory(id: u32) -> Outcome<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.ok_or("no VmHWM")?.parse::<u64>()? * 1024)
}

/// Without its token a server answers nothing.
async fn token() -> Outcome<()> {
    let scene = Scene::new(&[]).await?;
    let file = scene.file("token");
    std::fs::write(&file, "open sesame\n")?;
    let file = file.display().to_string();
    let (mut server, url) = start(&scene, &["--token-file", &file]).await?;
    let ask = |arguments: &[&str], variables: &[(&str, &str)]| {
        headwater(
            &url,
            &[arguments, &["-qc", "SELECT 1 AS one", "--format", "csv"]].concat(),
            variables,
        )
    };
    let started = Instant::now();
    for (found, word) in [
        (ask(&[], &[])?, "asks for a token"),
        (ask(&["--token", "wrong"], &[])?, "does not take this token"),
        (
            ask(&[], &[("HEADWATER_TOKEN", "wrong")])?,
            "HEADWATER_TOKEN",
        ),
        (ask(&["--token", "ä\n"], &[])?, "characters"),
    ] {
        has(&found.stderr, &[word])?;
        if found.code != Some(1) || !found.stdout.is_empty() {
            return Err(format!("{found:?}").into());
        }
    }
    for found in [
        ask(&["--token", "open sesame"], &[])?,
        ask(&["--token-file", &file], &[("HEADWATER_TOKEN", "wrong")])?,
        ask(&[], &[("HEADWATER_TOKEN", "open sesame")])?,
    ] {
        if found.stdout != "one\n1\n" || found.code != Some(0) {
            return Err(format!("{found:?}").into());
        }
    }
    within(started, Duration::from_secs(20))?;
    server.terminate().await
}

/// What is wrong when a server is started is told, and it ends.
async fn settings() -> Outcome<()> {
    let scene = Scene::new(&[]).await?;
    let (mut server, url) = start(&scene, &[]).await?;
    let taken = url.trim_start_matches("grpc://").to_string();
    let file = scene.file("server.toml");
    std::fs::write(&file, "tls_key = 'x'")?;
    let file = file.display().to_string();
    let database = scene.database().display().to_string();
    for (arguments, words) in [
        (
            &["--bind", "0.0.0.0:0"][..],
            &["without a token", "--insecure"][..],
        ),
        (&["--bind", &taken], &["can't listen on", "--bind"]),
        (&["--bind", "here"], &["'here'", "host:port"]),
        (&["--config", &file], &["'tls_key'", "'tls-key'"]),
        (&["--tls-certificate", "none.pem"], &["--tls-key"]),
        (&["--token-file", "/nowhere"], &["/nowhere"]),
    ] {
        let found = headwater("server", &[&[database.as_str()], arguments].concat(), &[])?;
        has(&found.stderr, words)?;
        if found.code != Some(1) {
            return Err(format!("{arguments:?}: {found:?}").into());
        }
    }
    let help = headwater("server", &["--help"], &[])?;
    has(&help.stdout, &["--bind", "HEADWATER_TOKEN", "--config"])?;
    server.terminate().await
}
