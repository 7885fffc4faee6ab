//! `headwater server`: takes statements by Arrow Flight SQL.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use super::arguments::{StoreArguments, limit_memory, size};
use super::serve::time;
use super::settings_file::{SettingsFile, given_or};
use super::signals::{listen, now};
use super::{no_runtime, report, runtime, say};
use crate::engine::ballista::Certificates;
use crate::local_file::read_token;
use crate::server::{ClusterSettings, Server, Settings};
use crate::session::HeadwaterBuilder;
use crate::{Error, Result};

/// The name of the subcommand.
pub(super) const NAME: &str = "server";

const EXAMPLES: &str = "\
Clients are the shell, and all that speaks Arrow Flight SQL: ADBC, JDBC, ODBC drivers.
  headwater grpc://localhost:50050

Examples:
  headwater server ./shop                              for this machine only, without a token
  HEADWATER_TOKEN=$(cat token) headwater server s3://bucket/shop --bind 0.0.0.0:50050 \\
      --tls-certificate server.pem --tls-key server.key
  headwater server --config /etc/headwater.toml

A file of --config has the same names: bind = \"0.0.0.0:50050\", token-file = \"/run/token\", and a table [options]
for the object store. What the command line says counts most, then the environment, then the file.

Whoever brings the token may run every statement, and with it read and write files that the server can.
Without a token that is everybody who can connect.

SIGINT (Ctrl-C) and SIGTERM end it within seconds: jobs that run are interrupted, and go on when it is started again.
The same after it was killed. A second signal ends it at once.
Exit status: 0; 1 if the database can't be opened or the address can't be had; 2 for wrong arguments.";

/// All names that a file of settings may have.
const NAMES: [&str; 17] = [
    "database",
    "bind",
    "token",
    "token-file",
    "tls-certificate",
    "tls-key",
    "tls-client-ca",
    "insecure",
    "cluster-bind",
    "cluster-host",
    "cluster-ca",
    "cluster-certificate",
    "cluster-key",
    "executor-timeout",
    "http-bind",
    "memory-limit",
    "options",
];

/// Take statements for a database by Arrow Flight SQL
#[derive(Parser)]
#[command(name = "headwater server", version, after_help = EXAMPLES)]
struct ServerArguments {
    /// A folder, made on the first write, or s3://…, gs://…, az://…
    #[arg(value_name = "DATABASE", env = "HEADWATER_SERVER_DATABASE")]
    database: Option<String>,

    /// Where to listen; port 0 is any that is free [default: 127.0.0.1:50050]
    #[arg(long, value_name = "HOST:PORT", env = "HEADWATER_SERVER_BIND")]
    bind: Option<String>,

    /// The token that clients have to bring; on a command line others can see it
    #[arg(long, value_name = "TOKEN", conflicts_with = "token_file")]
    token: Option<String>,

    /// A file with the token [env: HEADWATER_TOKEN=, the token itself; HEADWATER_SERVER_TOKEN_FILE=]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// The server's certificate, and those that vouch for it, PEM
    #[arg(long, value_name = "FILE", env = "HEADWATER_SERVER_TLS_CERTIFICATE")]
    tls_certificate: Option<PathBuf>,

    /// The key of the certificate, PEM
    #[arg(long, value_name = "FILE", env = "HEADWATER_SERVER_TLS_KEY")]
    tls_key: Option<PathBuf>,

    /// Let in only clients with a certificate that one of these vouches for, PEM
    #[arg(long, value_name = "FILE", env = "HEADWATER_SERVER_TLS_CLIENT_CA")]
    tls_client_ca: Option<PathBuf>,

    /// Listen to other machines though there is no token
    #[arg(long, env = "HEADWATER_SERVER_INSECURE", value_parser = clap::builder::BoolishValueParser::new(),
          num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOLEAN", hide_possible_values = true)]
    insecure: Option<bool>,

    /// Own a cluster: executors do the work, and reach the scheduler here, such as 127.0.0.1:50060
    #[arg(long, value_name = "HOST:PORT", env = "HEADWATER_SERVER_CLUSTER_BIND")]
    cluster_bind: Option<String>,

    /// The name that executors reach the scheduler by; by default that of --cluster-bind
    #[arg(long, value_name = "HOST", env = "HEADWATER_SERVER_CLUSTER_HOST")]
    cluster_host: Option<String>,

    /// Certificates that vouch for those of executors and of programs that drive the cluster, PEM
    #[arg(long, value_name = "FILE", env = "HEADWATER_SERVER_CLUSTER_CA")]
    cluster_ca: Option<PathBuf>,

    /// The certificate that the server shows to them, for the name headwater-cluster, PEM
    #[arg(
        long,
        value_name = "FILE",
        env = "HEADWATER_SERVER_CLUSTER_CERTIFICATE"
    )]
    cluster_certificate: Option<PathBuf>,

    /// The key of that certificate, PEM
    #[arg(long, value_name = "FILE", env = "HEADWATER_SERVER_CLUSTER_KEY")]
    cluster_key: Option<PathBuf>,

    /// After this silence an executor counts as lost, and others do its work; at least 10s [default: 60s]
    #[arg(long, value_name = "TIME", env = "HEADWATER_SERVER_EXECUTOR_TIMEOUT", value_parser = time)]
    executor_timeout: Option<Duration>,

    /// Answer by HTTP whether it lives (/health, /ready), and with its figures (/metrics), such as at 127.0.0.1:50080
    #[arg(long, value_name = "HOST:PORT", env = "HEADWATER_SERVER_HTTP_BIND")]
    http_bind: Option<String>,

    /// A TOML file with these settings
    #[arg(long, value_name = "FILE", env = "HEADWATER_SERVER_CONFIG")]
    config: Option<PathBuf>,

    #[command(flatten)]
    store: StoreArguments,

    /// How much memory queries may use, such as 4g or 512m
    #[arg(short, long, value_name = "BYTES", env = "HEADWATER_SERVER_MEMORY_LIMIT", value_parser = size)]
    memory_limit: Option<u64>,
}

/// All that a server is told, from the command line, the environment and the file.
struct Told {
    database: String,
    settings: Settings,
    options: HashMap<String, String>,
    memory_limit: Option<u64>,
}

impl ServerArguments {
    /// Puts them together. `variable` reads the environment where clap does not: a token has two names, of which the
    /// nearer counts. Variables that no setting has are left alone: systems that run containers make some of their own.
    fn told(self, variable: impl Fn(&str) -> Option<String>) -> Result<Told> {
        let file = match &self.config {
            Some(path) => SettingsFile::read(path, &NAMES)?,
            None => SettingsFile::default(),
        };
        let from_environment = || -> Result<Option<String>> {
            if let Some(token) = variable("HEADWATER_TOKEN") {
                return Ok(Some(token));
            }
            let path = variable("HEADWATER_SERVER_TOKEN_FILE");
            path.map(|path| read_token(path.as_ref())).transpose()
        };
        let from_file = || -> Result<Option<String>> {
            match (file.text("token")?, file.path("token-file")?) {
                (Some(_), Some(_)) => Err(Error::invalid(
                    "the settings file has both a token and a token-file",
                )),
                (None, Some(path)) => read_token(&path).map(Some),
                (token, None) => Ok(token),
            }
        };
        let token = match (self.token, &self.token_file) {
            (Some(token), _) => Some(token),
            (None, Some(path)) => Some(read_token(path)?),
            (None, None) => match from_environment()? {
                Some(token) => Some(token),
                None => from_file()?,
            },
        };
        if token.as_ref().is_some_and(|token| token.trim().is_empty()) {
            return Err(Error::invalid("the token is empty")
                .with_hint("leave it out for a server that asks for none"));
        }
        let mut options: HashMap<String, String> = file.options()?.into_iter().collect();
        options.extend(self.store.options()?);
        let memory_limit = given_or(self.memory_limit, || file.parsed("memory-limit", size))?;
        let database = file.text_or(self.database, "database")?;
        let host = file.text_or(self.cluster_host, "cluster-host")?;
        let executor_timeout = given_or(self.executor_timeout, || {
            file.parsed("executor-timeout", time)
        })?
        .unwrap_or(ClusterSettings::EXECUTOR_TIMEOUT);
        let certificates = Certificates::all(
            file.path_or(self.cluster_ca, "cluster-ca")?,
            file.path_or(self.cluster_certificate, "cluster-certificate")?,
            file.path_or(self.cluster_key, "cluster-key")?,
        )?;
        let cluster_bind = file.text_or(self.cluster_bind, "cluster-bind")?;
        if cluster_bind.is_none() && certificates.is_some() {
            return Err(
                Error::invalid("--cluster-ca needs --cluster-bind").with_hint(
                    "certificates of clients' connections are --tls-certificate and --tls-key",
                ),
            );
        }
        let cluster = cluster_bind.map(|bind| ClusterSettings {
            bind,
            host,
            executor_timeout,
            certificates,
        });
        Ok(Told {
            database: database.ok_or_else(|| {
                Error::invalid("there is no DATABASE").with_hint(
                    "headwater server DATABASE, or database = \"…\" in the file of --config",
                )
            })?,
            settings: Settings {
                bind: file.text_or(self.bind, "bind")?,
                token,
                tls_certificate: file.path_or(self.tls_certificate, "tls-certificate")?,
                tls_key: file.path_or(self.tls_key, "tls-key")?,
                tls_client_ca: file.path_or(self.tls_client_ca, "tls-client-ca")?,
                insecure: given_or(self.insecure, || file.switch("insecure"))?.unwrap_or(false),
                cluster,
                http_bind: file.text_or(self.http_bind, "http-bind")?,
            },
            options,
            memory_limit,
        })
    }
}

/// Runs the subcommand; `args` begin with its name.
pub(super) fn run(args: Vec<OsString>, builder: HeadwaterBuilder) -> ExitCode {
    let arguments = match ServerArguments::try_parse_from(args) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Also --help and --version come this way.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let served = arguments
        .told(variable)
        .and_then(|told| serve(told, builder));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

fn serve(told: Told, builder: HeadwaterBuilder) -> Result<()> {
    // Apart from the one that computes: the network, signals and clocks stand still on a runtime whose workers all compute.
    let computing = runtime("headwater", None)?;
    let serving = runtime("server", Some(2))?;
    let mut stop = serving.block_on(async { listen() }).map_err(no_runtime)?;
    let mut builder = builder.database(told.database.as_str());
    if !told.options.is_empty() {
        builder = builder.storage_options(told.options);
    }
    let workers = computing.handle().clone();
    let (settings, memory_limit, database) = (told.settings, told.memory_limit, told.database);
    let work = async move {
        let server = Server::bind(builder, &settings, workers).await?;
        let context = server.session().context();
        limit_memory(context, memory_limit).await?;
        context.sql("SET datafusion.format.null = 'NULL'").await?;
        say(&format!("Listening on {} for {database}", server.url()));
        if let Some(url) = server.cluster_url() {
            say(&format!("Executors reach it at {url}"));
        }
        if let Some(address) = server.http_address() {
            say(&format!("Figures are at http://{address}/metrics"));
        }
        if settings.token.is_none() {
            say("It asks for no token: whoever can connect may run every statement.");
        }
        server
            .tell(|report| say(&format!("{} {report}", now())))
            .serve(async move {
                let _ = stop.wait_for(|stop| *stop).await;
            })
            .await
    };
    // A task of its own: it has a worker's stack.
    let result = serving.block_on(serving.spawn(work));
    // What is left has nobody who waits for it.
    computing.shutdown_background();
    serving.shutdown_background();
    result.unwrap_or_else(|error| Err(Error::internal(format!("the server failed: {error}"))))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn told(args: &[&str], variables: &[(&str, &str)]) -> Result<Told> {
        let args = std::iter::once(NAME).chain(args.iter().copied());
        let arguments =
            ServerArguments::try_parse_from(args).unwrap_or_else(|error| panic!("{error}"));
        arguments.told(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| value.to_string())
        })
    }

    #[test]
    fn the_declaration_is_consistent() {
        ServerArguments::command().debug_assert();
    }

    #[test]
    fn the_command_line_counts_more_than_the_environment_and_that_more_than_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("s.toml");
        let text = "database = 'shop'\nbind = '127.0.0.1:1'\ntoken = 'c'\ninsecure = true\nmemory-limit = '1g'\n[options]\na = 'file'\nb = 1";
        std::fs::write(&file, text).unwrap();
        let config = format!("--config={}", file.display());
        let from_file = told(&[&config], &[]).unwrap();
        assert_eq!(from_file.database, "shop");
        assert_eq!(from_file.settings.bind.as_deref(), Some("127.0.0.1:1"));
        assert_eq!(from_file.settings.token.as_deref(), Some("c"));
        assert!(from_file.settings.insecure);
        assert_eq!(from_file.memory_limit, Some(1 << 30));
        let environment = [("HEADWATER_TOKEN", "b")];
        let both = told(
            &[&config, "--bind=[::1]:2", "--option", "a=flag", "other"],
            &environment,
        )
        .unwrap();
        assert_eq!(both.database, "other");
        assert_eq!(both.settings.bind.as_deref(), Some("[::1]:2"));
        assert_eq!(both.settings.token.as_deref(), Some("b"));
        assert_eq!(
            (both.options["a"].as_str(), both.options["b"].as_str()),
            ("flag", "1")
        );
        let flag = told(&[&config, "--token=a", "--insecure=false"], &environment).unwrap();
        assert_eq!(flag.settings.token.as_deref(), Some("a"));
        assert!(!flag.settings.insecure);
        assert!(told(&["db", "--insecure"], &[]).unwrap().settings.insecure);
    }

    #[test]
    fn what_is_missing_is_told() {
        let error = |result: Result<Told>| match result {
            Ok(_) => panic!("it was accepted"),
            Err(error) => error.to_string(),
        };
        assert!(error(told(&[], &[])).contains("DATABASE"));
        assert!(error(told(&["db", "--token", " "], &[])).contains("empty"));
        assert!(error(told(&["db", "--token-file", "/nowhere"], &[])).contains("/nowhere"));
        assert!(error(told(&["db", "--config", "/nowhere.toml"], &[])).contains("/nowhere.toml"));
    }
}
