//! Runs statements and backslash commands, one after the other, and prints what comes of them.

use std::io::{self, BufRead, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion_cli::command::{Command, OutputFormat};
use datafusion_cli::print_options::PrintOptions;
use tokio::runtime::Handle;

use super::interrupt::{Ended, Interrupts};
use super::output::{Layout, Printed};
use super::progress::{self, Progress};
use super::script::{PieceKind, Script};
use super::target::{Failure, Running, Target};
use super::{help, open_script, report, say};
use crate::{Error, ErrorKind, Result};

/// How deep scripts may include others. One that includes itself would never end.
const MAX_DEPTH: usize = 16;

/// How long jobs that were told to stop are waited for.
const SETTLE: Duration = Duration::from_secs(1);

/// Why nothing more is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Halt {
    /// A statement failed, and was reported.
    Failed,
    /// The user wants to leave.
    Quit,
    /// Ctrl-C.
    Interrupted,
    /// The reader of the output went away.
    BrokenPipe,
}

/// What the statements of one shell share.
pub(super) struct Runner {
    runtime: Handle,
    target: Target,
    settings: PrintOptions,
    keep_going: bool,
    interrupts: Interrupts,
    /// Scripts that are being run, each included by the one before.
    depth: usize,
    failed: bool,
}

impl Runner {
    pub(super) fn new(
        runtime: Handle,
        target: Target,
        settings: PrintOptions,
        keep_going: bool,
        interrupts: Interrupts,
    ) -> Self {
        Self {
            runtime,
            target,
            settings,
            keep_going,
            interrupts,
            depth: 0,
            failed: false,
        }
    }

    /// Where they are waited for.
    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// What they run against.
    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    /// How results are printed.
    pub(super) fn settings(&self) -> &PrintOptions {
        &self.settings
    }

    /// Whether a statement failed, of those that were run so far.
    pub(super) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Runs a script; errors name it by `name`, and the line.
    pub(super) fn script(&mut self, reader: impl BufRead, name: Option<&str>) -> Result<(), Halt> {
        let mut script = Script::new(reader);
        loop {
            let piece = match script.next() {
                Ok(Some(piece)) => piece,
                Ok(None) => return Ok(()),
                Err(error) => {
                    let error = Error::new(
                        ErrorKind::Storage,
                        format!("can't read the script: {error}"),
                    )
                    .with_source(error);
                    self.fail(error, place(name, script.lines() + 1).as_deref());
                    return Err(Halt::Failed);
                }
            };
            let place = place(name, piece.line);
            let result = match piece.kind {
                PieceKind::Statement(sql) => self.statement(sql, place.as_deref()),
                PieceKind::Command(line) => self.command(&line, place.as_deref()),
            };
            match result {
                Ok(()) => {}
                Err(Halt::Failed) if self.keep_going => {}
                Err(halt) => return Err(halt),
            }
        }
    }

    /// Runs one statement. `place` is where it stands in a script.
    fn statement(&mut self, sql: String, place: Option<&str>) -> Result<(), Halt> {
        let started = Instant::now();
        let progress = Progress::new(!self.settings.quiet);
        let statement = Running::new(&self.target);
        let layout = Layout {
            format: self.settings.format,
            maxrows: self.settings.maxrows,
        };
        let ended = self.interrupts.run(
            &self.runtime,
            statement.clone().execute(sql, layout, progress.clone()),
            progress::INTERVAL,
            || progress.update(statement.job().as_ref()),
            // At once, though the statement may have no worker left to hear of it.
            || statement.cancel(),
        );
        progress.clear();
        if let Ended::Cancelled { .. } = ended {
            self.settle();
        }
        for notice in statement.take_notices() {
            if !self.settings.quiet {
                say(&format!("Notice: {notice}"));
            }
        }
        match ended {
            Ended::Finished { value, interrupted } => {
                match value {
                    Ok(printed) => self.summarise(&printed, started),
                    Err(Failure::Error(error)) => return Err(self.fail(error, place)),
                    Err(Failure::BrokenPipe) => return Err(Halt::BrokenPipe),
                }
                if interrupted {
                    return Err(Halt::Interrupted);
                }
                Ok(())
            }
            Ended::Panicked(message) => {
                let error = Error::internal(format!("the statement panicked: {message}"))
                    .with_hint(
                        "this is a bug, of Headwater or of a function that the statement calls",
                    );
                Err(self.fail(error, place))
            }
            Ended::Cancelled { gone } => {
                let mut error = Error::new(ErrorKind::Cancelled, "the statement was cancelled");
                if !gone {
                    error =
                        error.with_hint("what it is computing right now ends in the background");
                }
                self.fail(error, place);
                Err(Halt::Interrupted)
            }
        }
    }

    /// Gives jobs that were told to stop the time to write down what they have.
    fn settle(&self) {
        let settled = self.target.settled();
        let _ = self
            .runtime
            .block_on(async { tokio::time::timeout(SETTLE, settled).await });
    }

    /// Waits for the jobs that run in the background; Ctrl-C twice leaves them. Those of a server go on without us.
    pub(super) fn wait_for_jobs(&mut self) {
        let Target::Here(session) = self.target.clone() else {
            return;
        };
        let mut leaving = false;
        loop {
            let running = session.jobs().running();
            let Some(first) = running.first() else { return };
            if !self.settings.quiet && !leaving {
                say(&format!(
                    "Waiting for {} job(s). Ctrl-C twice leaves; what they have done is kept, and RESUME JOB '{}' goes on from there.",
                    running.len(),
                    first.id
                ));
            }
            let progress = Progress::new(!self.settings.quiet);
            let jobs = Arc::clone(session.jobs());
            let all = Arc::clone(&jobs);
            let ended = self.interrupts.run(
                &self.runtime,
                async move { all.wait_for_all().await },
                progress::INTERVAL,
                || progress.update(jobs.running().first()),
                || {},
            );
            progress.clear();
            match ended {
                Ended::Cancelled { .. } if leaving => return,
                Ended::Cancelled { .. } => {
                    leaving = true;
                    say("Ctrl-C again leaves.");
                }
                _ => return,
            }
        }
    }

    /// Runs one backslash command.
    fn command(&mut self, line: &str, place: Option<&str>) -> Result<(), Halt> {
        let line = line.trim_end_matches(|c: char| c == ';' || c.is_whitespace());
        let words = line.split_whitespace().collect::<Vec<_>>().join(" ");
        let command = words
            .strip_prefix('\\')
            .and_then(|words| words.parse().ok());
        let result = match command {
            Some(Command::Quit) => return Err(Halt::Quit),
            Some(Command::ListTables) => return self.statement("SHOW TABLES".to_string(), place),
            Some(Command::DescribeTableStmt(name)) => {
                return self.statement(format!("DESCRIBE {name}"), place);
            }
            Some(Command::Include(Some(_))) => {
                // Of the line, not of its words: a path may have several spaces in a row.
                let path = line.trim_start().trim_start_matches("\\i").trim_start();
                match self.include(path) {
                    Ok(result) => return result,
                    Err(error) => Err(error),
                }
            }
            Some(Command::Include(None)) => Err(Error::invalid("\\i needs the name of a script")),
            Some(Command::QuietMode(quiet)) => {
                self.settings.quiet = quiet.unwrap_or(self.settings.quiet);
                say(&format!("Quiet mode is {}.", self.settings.quiet));
                Ok(())
            }
            Some(Command::OutputFormat(setting)) => self.set_output(setting.as_deref()),
            Some(Command::ObjectStoreProfileMode(_)) => {
                Err(Error::not_available("\\object_store_profiling"))
            }
            Some(Command::Help) => {
                print_help(&help::commands());
                Ok(())
            }
            Some(Command::ListFunctions) => {
                print_help(&help::statements());
                Ok(())
            }
            Some(Command::SearchFunctions(name)) => self.explain(&name),
            None => Err(Error::invalid(format!("'{line}' is not a command"))
                .with_hint("\\? lists the commands")),
        };
        result.map_err(|error| self.fail(error, place))
    }

    /// Runs a script that a command names.
    fn include(&mut self, path: &str) -> Result<Result<(), Halt>> {
        if self.depth >= MAX_DEPTH {
            return Err(Error::invalid(format!(
                "scripts include one another more than {MAX_DEPTH} deep"
            ))
            .with_hint("does a script include itself?"));
        }
        let reader = open_script(path.as_ref())?;
        self.depth += 1;
        let result = self.script(reader, Some(path));
        self.depth -= 1;
        Ok(result)
    }

    /// \pset: shows or sets the format.
    fn set_output(&mut self, setting: Option<&str>) -> Result<()> {
        if let Some(setting) = setting {
            let Ok(OutputFormat::ChangeFormat(format)) = setting.parse() else {
                return Err(Error::invalid(format!("'{setting}' can't be set"))
                    .with_hint("write \\pset format csv"));
            };
            self.settings.format = format.parse().map_err(|_| {
                Error::invalid(format!("'{format}' is not a format"))
                    .with_hint("use automatic, table, csv, tsv, json or nd-json")
            })?;
        }
        let format = format!("{:?}", self.settings.format).to_lowercase();
        say(&format!("Output format is {format}."));
        Ok(())
    }

    /// \h name: shows how a statement is written.
    fn explain(&mut self, name: &str) -> Result<()> {
        if let Some(text) = help::syntax(name) {
            print_help(text);
            return Ok(());
        }
        // datafusion-cli knows those that are plain DataFusion.
        let command = Command::SearchFunctions(name.to_string());
        let done = self
            .runtime
            .block_on(command.execute(&self.target.context(), &mut self.settings));
        done.map_err(|_| {
            Error::not_found("the statement", name, help::names())
                .with_hint("\\h lists the statements")
        })
    }

    /// Prints how many rows there were and how long it took.
    fn summarise(&self, printed: &Printed, started: Instant) {
        if self.settings.quiet {
            return;
        }
        let rows = match (printed.has_columns, printed.shown) {
            (false, _) => "Done.".to_string(),
            (true, None) => format!("{} row(s) fetched.", printed.rows),
            (true, Some(shown)) => format!(
                "{} row(s) fetched. (First {shown} displayed. Use --maxrows to adjust)",
                printed.rows
            ),
        };
        let seconds = started.elapsed().as_secs_f64();
        say(&format!("{rows} Elapsed {seconds:.3} seconds.\n"));
    }

    /// Takes note of a failure, and reports it.
    fn fail(&mut self, error: Error, place: Option<&str>) -> Halt {
        self.failed = true;
        report(&match place {
            Some(place) => error.context(place),
            None => error,
        });
        Halt::Failed
    }
}

/// Where a piece of a script stands, as errors say it.
fn place(name: Option<&str>, line: usize) -> Option<String> {
    name.map(|name| format!("{name}:{line}"))
}

/// Prints what was asked for, so to stdout.
fn print_help(text: &str) {
    let _ = writeln!(io::stdout(), "{}", text.trim_end());
}
