//! The prompt: reads lines with history, highlighting, hints and completion.

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use datafusion_cli::helper::CliHelper;
use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::{CmdKind, Highlighter};
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{CompletionType, Config, Context, Editor, Helper};

use super::completion::Words;
use super::runner::{Halt, Runner};
use super::{report, say};
use crate::sql::is_complete;
use crate::{Error, ErrorKind};

const PROMPT: &str = "headwater> ";
const HISTORY: &str = ".headwater_history";
const HISTORY_LINES: usize = 10_000;

/// Reads and runs statements until the user leaves.
pub(super) fn run(runner: &mut Runner, database: &str) -> ExitCode {
    let mut editor = match editor(runner) {
        Ok(editor) => editor,
        Err(error) => {
            report(
                &Error::new(
                    ErrorKind::Internal,
                    format!("can't read from the terminal: {error}"),
                )
                .with_source(error),
            );
            return ExitCode::FAILURE;
        }
    };
    if !runner.settings().quiet {
        let version = env!("CARGO_PKG_VERSION");
        say(&format!("Headwater {version}, database {database}"));
    }
    let history = history();
    if let Some(path) = &history
        && let Err(error) = editor.load_history(path)
    {
        log::debug!("no history in {}: {error}", path.display());
    }
    loop {
        let input = match editor.readline(PROMPT) {
            Ok(input) => input,
            // Ctrl-C takes away what was typed.
            Err(ReadlineError::Interrupted) => {
                if let Some(helper) = editor.helper() {
                    helper.inner.reset_hint();
                }
                continue;
            }
            Err(ReadlineError::Eof) => return ExitCode::SUCCESS,
            Err(error) => {
                report(&Error::new(
                    ErrorKind::Internal,
                    format!("can't read from the terminal: {error}"),
                ));
                return ExitCode::FAILURE;
            }
        };
        if input.trim().is_empty() {
            continue;
        }
        remember(&mut editor, history.as_ref(), &input);
        match runner.script(io::Cursor::new(input), None) {
            Ok(()) | Err(Halt::Failed | Halt::Interrupted) => {}
            Err(Halt::Quit) => return ExitCode::SUCCESS,
            Err(Halt::BrokenPipe) => return ExitCode::FAILURE,
        }
        if let Some(helper) = editor.helper() {
            helper.words.forget();
        }
    }
}

fn editor(runner: &Runner) -> rustyline::Result<Editor<ShellHelper, DefaultHistory>> {
    let config = Config::builder()
        .completion_type(CompletionType::List)
        .max_history_size(HISTORY_LINES)?
        .build();
    let mut editor = Editor::with_config(config)?;
    let state = runner.target().context().state();
    let dialect = &state.config_options().sql_parser.dialect;
    editor.set_helper(Some(ShellHelper {
        inner: CliHelper::new(dialect, runner.settings().color),
        words: Words::new(runner.target().clone(), runner.runtime().clone()),
    }));
    Ok(editor)
}

fn history() -> Option<PathBuf> {
    dirs::home_dir().map(|home| home.join(HISTORY))
}

/// Adds to the history at once, so that it outlives a crash and other shells can't overwrite it.
fn remember(
    editor: &mut Editor<ShellHelper, DefaultHistory>,
    history: Option<&PathBuf>,
    input: &str,
) {
    let added = editor.add_history_entry(input.trim_end());
    if let (Ok(true), Some(path)) = (added, history)
        && let Err(error) = editor.append_history(path)
    {
        log::debug!("can't write the history to {}: {error}", path.display());
    }
}

/// datafusion-cli's helper, but for what depends on the dialect: when an input is
/// complete, and which words can be completed.
struct ShellHelper {
    inner: CliHelper,
    words: Words,
}

/// Whether Enter runs the input, instead of beginning another line of it.
fn is_ready(input: &str) -> bool {
    let input = input.trim();
    input.is_empty() || input.starts_with('\\') || is_complete(input)
}

impl Validator for ShellHelper {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        self.inner.reset_hint();
        Ok(if is_ready(context.input()) {
            ValidationResult::Valid(None)
        } else {
            ValidationResult::Incomplete
        })
    }
}

impl Completer for ShellHelper {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        pos: usize,
        context: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let (start, files) = self.inner.complete(line, pos, context)?;
        if files.is_empty() {
            self.words.complete(line, pos, context)
        } else {
            Ok((start, files))
        }
    }
}

impl Hinter for ShellHelper {
    type Hint = String;

    fn hint(&self, line: &str, pos: usize, context: &Context<'_>) -> Option<String> {
        self.inner.hint(line, pos, context)
    }
}

impl Highlighter for ShellHelper {
    fn highlight<'l>(&self, line: &'l str, pos: usize) -> Cow<'l, str> {
        self.inner.highlight(line, pos)
    }

    fn highlight_hint<'h>(&self, hint: &'h str) -> Cow<'h, str> {
        self.inner.highlight_hint(hint)
    }

    fn highlight_char(&self, line: &str, pos: usize, kind: CmdKind) -> bool {
        self.inner.highlight_char(line, pos, kind)
    }
}

impl Helper for ShellHelper {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enter_runs_what_is_complete() {
        for input in ["", "  ", "\\d", "\\h refresh", "SELECT 1;", "SELECT 1; "] {
            assert!(is_ready(input), "{input}");
        }
        for input in ["SELECT 1", "SELECT ';", "CREATE FUNCTION f() AS $$ a;"] {
            assert!(!is_ready(input), "{input}");
        }
    }
}
