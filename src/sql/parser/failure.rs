//! What can go wrong while reading a statement, and how it is shown: line, column, the
//! line itself and a caret under the place.

use datafusion::common::DataFusionError;
use datafusion::sql::sqlparser::parser::ParserError;
use datafusion::sql::sqlparser::tokenizer::{Location, TokenizerError};

use crate::{Error, ErrorKind};

/// The result of everything that reads tokens.
pub(in crate::sql) type Read<T> = std::result::Result<T, Failure>;

/// Why a statement could not be read.
#[derive(Debug)]
pub(in crate::sql) enum Failure {
    /// It is not a statement of the dialect.
    Syntax {
        /// What was expected, and what is there.
        message: String,
        /// Where; line 0 for the end of the text.
        at: Location,
        /// The mend, where there is one.
        hint: Option<String>,
    },
    /// It can be read, but is refused.
    Refused(Box<Error>),
}

impl Failure {
    /// A syntax error at a place.
    pub(in crate::sql) fn syntax(message: impl Into<String>, at: Location) -> Self {
        Self::Syntax {
            message: message.into(),
            at,
            hint: None,
        }
    }

    /// The error as people see it, with the place in `text`.
    pub(in crate::sql) fn into_error(self, text: &str) -> Error {
        match self {
            Self::Syntax { message, at, hint } => {
                let error = Error::new(ErrorKind::Syntax, render(text, &message, at));
                match hint {
                    Some(hint) => error.with_hint(hint),
                    None => error,
                }
            }
            Self::Refused(error) => *error,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Refused(Box::new(error))
    }
}

impl From<ParserError> for Failure {
    fn from(error: ParserError) -> Self {
        match error {
            ParserError::TokenizerError(message) | ParserError::ParserError(message) => {
                let (message, at) = take_location(&message);
                Self::syntax(reword(message), at)
            }
            ParserError::RecursionLimitExceeded => Self::Refused(Box::new(Error::new(
                ErrorKind::Syntax,
                "the statement is nested too deeply",
            ))),
        }
    }
}

impl From<TokenizerError> for Failure {
    fn from(error: TokenizerError) -> Self {
        Self::syntax(reword(&error.message), error.location)
    }
}

impl From<DataFusionError> for Failure {
    fn from(error: DataFusionError) -> Self {
        match error {
            DataFusionError::SQL(inner, _) => Self::from(*inner),
            DataFusionError::Diagnostic(_, inner) => Self::from(*inner),
            DataFusionError::Context(_, inner) => Self::from(*inner),
            other => Self::from(Error::from(other)),
        }
    }
}

/// Cuts ` at Line: 1, Column: 2` off the end of a message of sqlparser's.
fn take_location(message: &str) -> (&str, Location) {
    let parse = || {
        let (rest, place) = message.rsplit_once(" at Line: ")?;
        let (line, column) = place.split_once(", Column: ")?;
        Some((
            rest,
            Location::new(line.trim().parse().ok()?, column.trim().parse().ok()?),
        ))
    };
    parse().unwrap_or((message, Location::empty()))
}

/// sqlparser's messages in our words.
fn reword(message: &str) -> String {
    let Some((expected, found)) = message
        .strip_prefix("Expected: ")
        .and_then(|rest| rest.rsplit_once(", found: "))
    else {
        let mut characters = message.chars();
        return match characters.next() {
            Some(first) => first.to_lowercase().chain(characters).collect(),
            None => String::new(),
        };
    };
    let found = match found {
        "EOF" => "the end of the text".to_string(),
        found => format!("'{found}'"),
    };
    format!("expected {expected}, found {found}")
}

/// The message with line and column, the line, and a caret below the place.
fn render(text: &str, message: &str, at: Location) -> String {
    /// How much of a long line is shown to each side of the place.
    const AROUND: usize = 60;

    let at = if at.line == 0 { end_of(text) } else { at };
    let line_index = usize::try_from(at.line.saturating_sub(1)).unwrap_or(usize::MAX);
    let column_index = usize::try_from(at.column.saturating_sub(1)).unwrap_or(usize::MAX);
    let line: Vec<char> = text
        .split('\n')
        .nth(line_index)
        .unwrap_or_default()
        .trim_end_matches('\r')
        .chars()
        .collect();
    let column_index = column_index.min(line.len());
    let first = column_index.saturating_sub(AROUND);
    let last = (column_index + AROUND).min(line.len());
    let ellipsis = |cut: bool| if cut { "…" } else { "" };
    let excerpt: String = line[first..last].iter().collect();
    // Tabs are kept so that the caret stands under its character however wide they are.
    let indent: String = line[first..column_index]
        .iter()
        .map(|&character| if character == '\t' { '\t' } else { ' ' })
        .collect();
    format!(
        "{message} (line {}, column {})\n  {}{excerpt}{}\n  {}{indent}^",
        at.line,
        at.column,
        ellipsis(first > 0),
        ellipsis(last < line.len()),
        if first > 0 { " " } else { "" },
    )
}

/// Just behind the last character that is not blank.
fn end_of(text: &str) -> Location {
    let text = text.trim_end();
    let line = text.matches('\n').count() as u64 + 1;
    let last = text.rsplit('\n').next().unwrap_or_default();
    Location::new(line, last.chars().count() as u64 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caret_stands_under_the_place() {
        let error = Failure::syntax("expected FROM, found 'FORM'", Location::new(2, 4))
            .into_error("SELECT a\n\tx FORM t");
        assert_eq!(error.kind(), ErrorKind::Syntax);
        assert_eq!(
            error.message(),
            "expected FROM, found 'FORM' (line 2, column 4)\n  \tx FORM t\n  \t  ^"
        );
    }

    #[test]
    fn without_a_place_it_is_the_end_of_the_text() {
        let error = Failure::from(ParserError::ParserError(
            "Expected: an expression, found: EOF".to_string(),
        ))
        .into_error("SELECT 1 +\n  ");
        assert_eq!(
            error.message(),
            "expected an expression, found the end of the text (line 1, column 11)\n  SELECT 1 +\n            ^"
        );
    }

    #[test]
    fn long_lines_are_cut_around_the_place() {
        let text = format!("SELECT {}, )", "abcdefghi, ".repeat(50));
        let column = text.chars().count() as u64;
        let error = Failure::syntax("oh", Location::new(1, column)).into_error(&text);
        let lines: Vec<&str> = error.message().lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].starts_with("  …") && lines[1].ends_with(')'));
        assert_eq!(
            lines[2].chars().count(),
            lines[1].chars().count(),
            "the caret is under the last character"
        );
    }

    #[test]
    fn the_place_is_read_from_messages() {
        let failure = Failure::from(ParserError::ParserError(
            "Expected: identifier, found: ) at Line: 3, Column: 7".to_string(),
        ));
        let Failure::Syntax { message, at, .. } = failure else {
            panic!("not a syntax error");
        };
        assert_eq!(message, "expected identifier, found ')'");
        assert_eq!(at, Location::new(3, 7));
    }
}
