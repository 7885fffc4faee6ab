//! The arguments of the command, and the options of the object store.
//!
//! `-c` and `-f` keep the order in which they stood, also among each other.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use clap::{ArgMatches, Args, ColorChoice, CommandFactory, FromArgMatches, Parser};
use datafusion::prelude::SessionContext;
use datafusion_cli::print_format::PrintFormat;
use datafusion_cli::print_options::MaxRows;

use super::{executor, serve, server};
use crate::client;
use crate::local_file::read_token;
use crate::session::Headwater;
use crate::{Error, ErrorKind, Result};

const EXAMPLES: &str = "\
Examples:
  headwater                                    open a shell over ./headwater-db
  headwater -c \"CREATE TABLE products AS SELECT * FROM 'products.parquet'\"
  headwater -c \"ALTER TABLE products ADD COLUMN total DOUBLE AS (price * amount)\"
  headwater -c \"REFRESH COLUMN total ON products\" -c \"SELECT * FROM products\"
  headwater ./shop -f setup.sql -f report.sql --format csv > report.csv
  echo 'SHOW TABLES' | headwater s3://bucket/shop --option aws_region=eu-west-1
  headwater grpc://localhost:50050 -c \"SHOW JOBS\"   on a server; its token is in HEADWATER_TOKEN

Statements end with a semicolon; the last one of -c, -f or standard input needs none.
Results go to standard output, everything else to standard error. Exit status: 0, or 1
when a statement failed, 2 for wrong arguments, 130 after Ctrl-C.

headwater server DATABASE takes statements by Arrow Flight SQL, headwater executor runs work for a server, and
headwater serve-refresh DATABASE keeps materialized views within their lag; each has a --help of its own.

In the shell, \\? lists the commands and \\h the statements.";

/// Derived data over Lance tables: computed columns, kept fresh by SQL
#[derive(Parser)]
#[command(name = "headwater", version, after_help = EXAMPLES)]
struct Declared {
    /// A folder, made on the first write, or s3://…, gs://…, az://…; or a server, grpc://… or grpc+tls://…
    #[arg(value_name = "DATABASE", default_value = Headwater::DEFAULT_DATABASE)]
    database: String,

    /// Run these statements and leave (may be repeated)
    #[arg(short, long, value_name = "SQL", allow_hyphen_values = true)]
    command: Vec<String>,

    /// The same for the statements of a file; - is standard input (may be repeated)
    #[arg(short, long, value_name = "FILE")]
    file: Vec<PathBuf>,

    /// How to print results: table, csv, tsv, json, nd-json; automatic is table
    #[arg(
        long,
        value_enum,
        ignore_case = true,
        hide_possible_values = true,
        default_value_t = PrintFormat::Automatic
    )]
    format: PrintFormat,

    /// Print results and errors only
    #[arg(short, long)]
    quiet: bool,

    /// How many rows of a table to print: a number, or inf for all
    #[arg(long, value_name = "ROWS", default_value = "40")]
    maxrows: MaxRows,

    /// Colour what is typed into the shell: auto, always or never
    #[arg(
        long,
        value_name = "WHEN",
        num_args = 0..=1,
        require_equals = true,
        hide_possible_values = true,
        default_value_t = ColorChoice::Auto,
        default_missing_value = "always"
    )]
    color: ColorChoice,

    /// Go on after a statement that failed; the exit status is 1 all the same
    #[arg(long)]
    keep_going: bool,

    #[command(flatten)]
    store: StoreArguments,

    /// How much memory queries may use, such as 4g or 512m
    #[arg(short, long, value_name = "BYTES", value_parser = size)]
    memory_limit: Option<u64>,

    #[command(flatten)]
    server: ServerArguments,
}

/// How a server is reached.
#[derive(Args)]
#[command(next_help_heading = "Options for grpc:// and grpc+tls://")]
struct ServerArguments {
    /// The token that the server asks for
    #[arg(
        long,
        value_name = "TOKEN",
        env = "HEADWATER_TOKEN",
        hide_env_values = true
    )]
    token: Option<String>,

    /// A file with the token
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// Certificates that vouch for the server's, PEM; by default those of the system
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,

    /// The certificate to show to a server that asks for one, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,

    /// Its key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
}

/// How the object store is reached.
#[derive(Args)]
pub(super) struct StoreArguments {
    /// An option of the object store, such as aws_region=eu-west-1 (may be repeated)
    #[arg(long, value_name = "NAME=VALUE", value_parser = name_and_value)]
    option: Vec<(String, String)>,

    /// A TOML file with options of the object store, one name = "value" a line
    #[arg(long, value_name = "FILE")]
    options_file: Option<PathBuf>,
}

impl StoreArguments {
    /// The options of the file, and over them those of the command line.
    ///
    /// # Errors
    ///
    /// If the file can't be read, or is not a table of plain values.
    pub(super) fn options(&self) -> Result<HashMap<String, String>> {
        let mut options = match &self.options_file {
            Some(path) => read_options(path)?,
            None => HashMap::new(),
        };
        options.extend(self.option.iter().cloned());
        Ok(options)
    }
}

/// What the command was asked to do.
pub(super) struct Arguments {
    /// A folder or URL.
    pub(super) database: String,
    /// What to run, in order; empty for the shell.
    pub(super) inputs: Vec<Input>,
    /// How to print results.
    pub(super) format: PrintFormat,
    /// Whether to print results and errors only.
    pub(super) quiet: bool,
    /// How many rows of a table to print.
    pub(super) maxrows: MaxRows,
    /// Whether to go on after a failure.
    pub(super) keep_going: bool,
    color: ColorChoice,
    store: StoreArguments,
    /// In bytes.
    memory_limit: Option<u64>,
    server: ServerArguments,
}

/// Where statements come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Input {
    /// The command line.
    Sql(String),
    /// A file.
    File(PathBuf),
    /// Standard input.
    Stdin,
}

impl Arguments {
    /// Reads the arguments, the program's name first.
    ///
    /// # Errors
    ///
    /// Of clap, which prints it and knows the exit status; also for `--help` and `--version`.
    pub(super) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let matches = Declared::command().try_get_matches_from(args)?;
        let inputs = inputs(&matches);
        let declared = Declared::from_arg_matches(&matches)?;
        Ok(Self {
            database: declared.database,
            inputs,
            format: declared.format,
            quiet: declared.quiet,
            maxrows: declared.maxrows,
            keep_going: declared.keep_going,
            color: declared.color,
            store: declared.store,
            memory_limit: declared.memory_limit,
            server: declared.server,
        })
    }

    /// The options of the object store; see [`StoreArguments::options`].
    pub(super) fn storage_options(&self) -> Result<HashMap<String, String>> {
        self.store.options()
    }

    /// How the server is reached, if the database is behind one.
    ///
    /// # Errors
    ///
    /// If something was given that belongs to a server and there is none, or that belongs to the server itself.
    pub(super) fn server_options(&self) -> Result<Option<client::Options>> {
        let server = &self.server;
        if !client::is_server(&self.database) {
            let given = [
                ("--token-file", server.token_file.is_some()),
                ("--tls-ca", server.tls_ca.is_some()),
                ("--tls-certificate", server.tls_certificate.is_some()),
            ];
            return match given.iter().find(|(_, is_given)| *is_given) {
                None => Ok(None),
                Some((name, _)) => Err(Error::invalid(format!(
                    "{name} is for a server, and '{}' is none",
                    self.database
                ))
                .with_hint("a server is grpc://host:port or grpc+tls://host:port")),
            };
        }
        let given = [
            ("--option", !self.store.option.is_empty()),
            ("--options-file", self.store.options_file.is_some()),
            ("--memory-limit", self.memory_limit.is_some()),
        ];
        if let Some((name, _)) = given.iter().find(|(_, is_given)| *is_given) {
            return Err(
                Error::invalid(format!("{name} is for the server itself")).with_hint(format!(
                    "start the server with it: headwater server DATABASE {name} …"
                )),
            );
        }
        Ok(Some(client::Options {
            // What is named here counts more than what may come from the environment.
            token: match &server.token_file {
                Some(path) => Some(read_token(path)?),
                None => server.token.clone().filter(|token| !token.is_empty()),
            },
            tls_ca: server.tls_ca.clone(),
            tls_identity: server.tls_certificate.clone().zip(server.tls_key.clone()),
        }))
    }

    /// Whether to colour what is typed.
    pub(super) fn color(&self) -> bool {
        match self.color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => {
                io::stdout().is_terminal()
                    && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
                    && std::env::var_os("TERM").is_none_or(|value| value != "dumb")
            }
        }
    }

    /// Sets the limit of `--memory-limit` on a context, if one was given.
    pub(super) async fn limit_memory(&self, context: &SessionContext) -> Result<()> {
        limit_memory(context, self.memory_limit).await
    }
}

/// Sets a limit of memory, in bytes, on a context, if there is one.
pub(super) async fn limit_memory(context: &SessionContext, limit: Option<u64>) -> Result<()> {
    if let Some(bytes) = limit {
        let kibibytes = bytes.div_ceil(1024);
        context
            .sql(&format!(
                "SET datafusion.runtime.memory_limit = '{kibibytes}K'"
            ))
            .await?;
    }
    Ok(())
}

/// What stands where the database does, but can't be opened by this release.
pub(super) fn misplaced_subcommand(database: &str) -> Option<Error> {
    if database == executor::NAME {
        return Some(
            Error::invalid("executor is a subcommand: it comes first, then its options").with_hint(
                "headwater executor --scheduler …; for a database in a folder of that name, write ./executor",
            ),
        );
    }
    matches!(database, serve::NAME | server::NAME).then(|| {
        Error::invalid(format!("{database} is a subcommand: it comes first, then its options")).with_hint(
            format!("headwater {database} DATABASE …; for a database in a folder of that name, write ./{database}"),
        )
    })
}

/// `-c` and `-f` in the order of the command line.
fn inputs(matches: &ArgMatches) -> Vec<Input> {
    let commands = matches.get_many::<String>("command").unwrap_or_default();
    let command_indices = matches.indices_of("command").unwrap_or_default();
    let files = matches.get_many::<PathBuf>("file").unwrap_or_default();
    let file_indices = matches.indices_of("file").unwrap_or_default();
    let mut inputs: Vec<(usize, Input)> = command_indices
        .zip(commands.map(|sql| Input::Sql(sql.clone())))
        .chain(file_indices.zip(files.map(|path| {
            if path == Path::new("-") {
                Input::Stdin
            } else {
                Input::File(path.clone())
            }
        })))
        .collect();
    inputs.sort_by_key(|(index, _)| *index);
    inputs.into_iter().map(|(_, input)| input).collect()
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => {
            Ok((name.trim().to_string(), value.to_string()))
        }
        _ => Err("an option is written name=value".to_string()),
    }
}

/// Reads a number of bytes, with a unit or without.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &lower[digits.len()..] {
        "" | "b" => 1,
        "k" | "kb" => 1 << 10,
        "m" | "mb" => 1 << 20,
        "g" | "gb" => 1 << 30,
        "t" | "tb" => 1 << 40,
        other => return Err(format!("unknown unit '{other}': use b, k, m, g or t")),
    };
    match digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)) {
        Some(0) => Err("the limit must be more than 0".to_string()),
        Some(bytes) => Ok(bytes),
        None => Err("a size is written like 4g, 512m or 65536".to_string()),
    }
}

/// Reads a TOML table of plain values. Values may be secrets: no error shows one.
fn read_options(path: &Path) -> Result<HashMap<String, String>> {
    let place = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| {
        Error::new(
            ErrorKind::Storage,
            format!("can't read the options file '{place}': {error}"),
        )
        .with_source(error)
    })?;
    let hint = "write one name = \"value\" a line, as in aws_region = \"eu-west-1\"";
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        let line = error
            .span()
            .map(|span| 1 + text[..span.start.min(text.len())].matches('\n').count());
        let place = line.map_or(place.to_string(), |line| format!("{place}:{line}"));
        Error::invalid(format!(
            "the options file {place} is not TOML: {}",
            error.message()
        ))
        .with_hint(hint)
    })?;
    table
        .into_iter()
        .map(|(name, value)| {
            let text = match value {
                toml::Value::String(text) => text,
                toml::Value::Boolean(value) => value.to_string(),
                toml::Value::Integer(value) => value.to_string(),
                toml::Value::Float(value) => value.to_string(),
                other => {
                    return Err(Error::invalid(format!(
                        "the option '{name}' in {place} is of type {}, not a plain value",
                        other.type_str()
                    ))
                    .with_hint(hint));
                }
            };
            Ok((name, text))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use datafusion::execution::memory_pool::MemoryLimit;

    use super::*;

    fn parse(args: &[&str]) -> Arguments {
        let args = std::iter::once("headwater").chain(args.iter().copied());
        match Arguments::parse(args.map(OsString::from)) {
            Ok(arguments) => arguments,
            Err(error) => panic!("{error}"),
        }
    }

    fn refuse(args: &[&str]) -> clap::Error {
        let args = std::iter::once("headwater").chain(args.iter().copied());
        match Arguments::parse(args.map(OsString::from)) {
            Ok(_) => panic!("the arguments were accepted"),
            Err(error) => error,
        }
    }

    fn sql(text: &str) -> Input {
        Input::Sql(text.to_string())
    }

    #[test]
    fn defaults_open_a_shell_over_the_default_folder() {
        let arguments = parse(&[]);
        assert_eq!(arguments.database, Headwater::DEFAULT_DATABASE);
        assert_eq!(arguments.inputs, []);
        assert_eq!(arguments.format, PrintFormat::Automatic);
        assert_eq!(arguments.maxrows, MaxRows::Limited(40));
        assert!(!arguments.quiet && !arguments.keep_going);
        assert!(arguments.storage_options().unwrap().is_empty());
    }

    #[test]
    fn the_declaration_is_consistent() {
        Declared::command().debug_assert();
    }

    #[test]
    fn commands_and_files_keep_their_order() {
        let arguments = parse(&[
            "-c",
            "SELECT 1",
            "-f",
            "a.sql",
            "db",
            "-c",
            "SELECT 2",
            "-f",
            "-",
            "--file=b.sql",
            "--command",
            "SELECT 3",
        ]);
        assert_eq!(arguments.database, "db");
        assert_eq!(
            arguments.inputs,
            [
                sql("SELECT 1"),
                Input::File("a.sql".into()),
                sql("SELECT 2"),
                Input::Stdin,
                Input::File("b.sql".into()),
                sql("SELECT 3"),
            ]
        );
    }

    #[test]
    fn a_command_may_begin_with_a_comment() {
        let arguments = parse(&["-c", "-- first\nSELECT 1", "-q"]);
        assert_eq!(arguments.inputs, [sql("-- first\nSELECT 1")]);
        assert!(arguments.quiet);
    }

    #[test]
    fn formats_are_those_of_datafusion_cli() {
        assert_eq!(parse(&["--format", "nd-json"]).format, PrintFormat::NdJson);
        assert_eq!(parse(&["--format", "CSV"]).format, PrintFormat::Csv);
        let message = refuse(&["--format", "yaml"]).to_string();
        assert!(message.contains("json"), "{message}");
    }

    #[test]
    fn maxrows_takes_a_number_or_none() {
        assert_eq!(parse(&["--maxrows", "7"]).maxrows, MaxRows::Limited(7));
        assert_eq!(parse(&["--maxrows", "inf"]).maxrows, MaxRows::Unlimited);
        assert_eq!(refuse(&["--maxrows", "few"]).exit_code(), 2);
    }

    #[test]
    fn color_takes_its_value_only_after_an_equals_sign() {
        let arguments = parse(&["--color", "db"]);
        assert_eq!(arguments.database, "db");
        assert!(arguments.color());
        assert!(!parse(&["--color=never"]).color());
    }

    #[test]
    fn sizes_are_bytes_with_a_unit() {
        assert_eq!(size("65536"), Ok(65536));
        assert_eq!(size("5B"), Ok(5));
        assert_eq!(size("4k"), Ok(4 << 10));
        assert_eq!(size("20MB"), Ok(20 << 20));
        assert_eq!(size("2g"), Ok(2 << 30));
        assert_eq!(size("1t"), Ok(1 << 40));
        for wrong in [
            "",
            "g",
            "-1g",
            "0",
            "4x",
            "1.5g",
            "99999999999t",
            "4 kilobytes",
        ] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn the_memory_limit_reaches_the_context() {
        let context = SessionContext::new();
        let arguments = parse(&["-m", "1m"]);
        arguments.limit_memory(&context).await.unwrap();
        let limit = context.runtime_env().memory_pool.memory_limit();
        assert!(matches!(limit, MemoryLimit::Finite(1_048_576)));
    }

    #[test]
    fn options_of_the_command_line_beat_those_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("options.toml");
        std::fs::write(&file, "region = \"a\"\nallow_http = true\nretries = 3\n").unwrap();
        let arguments = parse(&[
            "--options-file",
            file.to_str().unwrap(),
            "--option",
            "region=b",
            "--option",
            "token=x=y",
        ]);
        let expected = [
            ("region", "b"),
            ("allow_http", "true"),
            ("retries", "3"),
            ("token", "x=y"),
        ];
        let expected = expected.map(|(name, value)| (name.to_string(), value.to_string()));
        assert_eq!(arguments.storage_options().unwrap(), expected.into());
    }

    #[test]
    fn a_wrong_options_file_is_named_and_its_values_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("options.toml");
        let read = |text: &str| {
            std::fs::write(&file, text).unwrap();
            read_options(&file).unwrap_err().to_string()
        };
        let message = read("fine = \"x\"\nsecret = [\"hidden\"]\n");
        assert!(
            message.contains("'secret'") && message.contains("array"),
            "{message}"
        );
        assert!(!message.contains("hidden"), "{message}");
        let message = read("fine = \"x\"\nkey = hidden\n");
        assert!(message.contains("options.toml:2"), "{message}");
        assert!(!message.contains("hidden"), "{message}");
        let message = read_options(&folder.path().join("none.toml"))
            .unwrap_err()
            .to_string();
        assert!(message.contains("none.toml"), "{message}");
    }

    #[test]
    fn an_option_needs_a_name() {
        for wrong in ["novalue", "=value"] {
            let error = refuse(&["--option", wrong]);
            assert!(error.to_string().contains("name=value"), "{error}");
        }
    }

    #[test]
    fn subcommands_come_first() {
        for word in ["server", "executor", "serve-refresh"] {
            let error = misplaced_subcommand(word).unwrap();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.message().contains("comes first"), "{error}");
            assert!(error.hint().is_some());
        }
        for folder in ["./server", "servers", "s3://server", "grpc://localhost:1"] {
            assert!(misplaced_subcommand(folder).is_none());
        }
    }
}
