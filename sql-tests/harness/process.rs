//! This binary as a shell in a process of its own, with the functions of the tests.

use std::collections::HashMap;
use std::env;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A shell over one database, to be started with statements.
#[derive(Debug, Clone)]
pub struct TestShell {
    database: PathBuf,
    calls: PathBuf,
    options: HashMap<String, String>,
    /// The scheduler of a cluster that it drives.
    cluster: Option<String>,
}

/// What a shell left when it ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status, or `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it printed as results.
    pub stdout: String,
    /// What it printed besides.
    pub stderr: String,
}

impl TestShell {
    /// A shell over `database` whose `count_calls` writes to the file `calls`.
    pub fn new(database: &Path, calls: &Path) -> Self {
        Self {
            database: database.to_path_buf(),
            calls: calls.to_path_buf(),
            options: HashMap::new(),
            cluster: None,
        }
    }

    /// The same with `options` for the object store.
    pub fn with_options(self, options: HashMap<String, String>) -> Self {
        Self { options, ..self }
    }

    /// The same, driving the cluster of this scheduler.
    pub fn with_cluster(self, cluster: &str) -> Self {
        let cluster = Some(cluster.to_string());
        Self { cluster, ..self }
    }

    /// Starts it with one `-c` for each statement.
    pub fn start<S: AsRef<OsStr>>(&self, statements: &[S]) -> io::Result<Child> {
        let mut command = Command::new(env::current_exe()?);
        command
            .env("HEADWATER_TEST_SHELL", "1")
            .env("HEADWATER_CALLS", &self.calls)
            .env("RUST_BACKTRACE", "0")
            .env_remove("HEADWATER_TOKEN")
            .arg(&self.database)
            .args(["--format", "csv", "--quiet"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(cluster) = &self.cluster {
            command.env("HEADWATER_TEST_CLUSTER", cluster);
        }
        for (name, value) in &self.options {
            command.arg("--option").arg(format!("{name}={value}"));
        }
        for statement in statements {
            command.arg("-c").arg(statement);
        }
        command.spawn()
    }

    /// Starts `serve-refresh` with these arguments.
    pub fn serve(&self, arguments: &[&str]) -> io::Result<Child> {
        self.subcommand("serve-refresh", arguments)
    }

    /// Starts `server` with these arguments, on any free port.
    pub fn server(&self, arguments: &[&str]) -> io::Result<Child> {
        let mut all = vec!["--bind", "127.0.0.1:0"];
        all.extend(arguments);
        self.subcommand("server", &all)
    }

    fn subcommand(&self, name: &str, arguments: &[&str]) -> io::Result<Child> {
        let mut command = Command::new(env::current_exe()?);
        command
            .env("HEADWATER_TEST_SHELL", "1")
            .env("HEADWATER_CALLS", &self.calls)
            .env("RUST_BACKTRACE", "0")
            .env_remove("HEADWATER_TOKEN")
            .arg(name)
            .arg(&self.database)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        for (name, value) in &self.options {
            command.arg("--option").arg(format!("{name}={value}"));
        }
        command.spawn()
    }

    /// Starts it and waits for its end.
    pub fn run<S: AsRef<OsStr>>(&self, statements: &[S]) -> io::Result<Ended> {
        let output = self.start(statements)?.wait_with_output()?;
        Ok(Ended {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}
