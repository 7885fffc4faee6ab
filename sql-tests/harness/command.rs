//! What a test does besides SQL: statements that begin with a backslash.
//!
//! | command | what it does |
//! |---|---|
//! | `\pick a, b` and a statement | runs the statement, keeps these columns of its result |
//! | `\let name [column]` and a statement | binds a value (of the last column, if none is named) of its only row to `$name` |
//! | `\reopen` | opens the database anew: nothing in memory survives |
//! | `\notices` | what the statements since the last call left, one row each |
//! | `\calls` | how many rows `count_calls` saw since the last call |
//! | `\foreign change table` and a body | changes a table without Headwater |

use std::fs;
use std::io;
use std::path::Path;

use crate::harness::Failure;
use crate::harness::foreign::Change;

/// A command.
#[derive(Debug, PartialEq, Eq)]
pub enum Command<'a> {
    Pick {
        columns: Vec<&'a str>,
        statement: &'a str,
    },
    Let {
        variable: &'a str,
        column: Option<&'a str>,
        statement: &'a str,
    },
    Reopen,
    Notices,
    Calls,
    Foreign(Change<'a>),
}

impl<'a> Command<'a> {
    /// The command in `text`, or `None` if it is SQL.
    pub fn parse(text: &'a str) -> Result<Option<Self>, Failure> {
        let Some(text) = text.strip_prefix('\\') else {
            return Ok(None);
        };
        let (line, body) = text.split_once('\n').unwrap_or((text, ""));
        let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
        let words: Vec<_> = rest.split_whitespace().collect();
        let command = match (name, words.as_slice()) {
            ("pick", [_, ..]) => Command::Pick {
                columns: rest.split(',').map(str::trim).collect(),
                statement: body,
            },
            ("let", [variable]) => Command::Let {
                variable,
                column: None,
                statement: body,
            },
            ("let", [variable, column]) => Command::Let {
                variable,
                column: Some(column),
                statement: body,
            },
            ("reopen", []) => Command::Reopen,
            ("notices", []) => Command::Notices,
            ("calls", []) => Command::Calls,
            ("foreign", [change, table]) => Command::Foreign(Change::parse(change, table, body)?),
            _ => return Err(Failure::new(format!("no such command: \\{line}"))),
        };
        Ok(Some(command))
    }
}

/// Whether the statement returns a plan, in which times and sizes differ from run to run.
pub fn is_explain(statement: &str) -> bool {
    statement
        .split_whitespace()
        .next()
        .is_some_and(|word| word.eq_ignore_ascii_case("explain"))
}

/// The number of calls since the last call of this.
pub fn take_calls(file: &Path) -> Result<usize, Failure> {
    let count = match fs::read_to_string(file) {
        Ok(calls) => calls.lines().count(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(Failure::new(error)),
    };
    fs::remove_file(file).map_err(Failure::new)?;
    Ok(count)
}
