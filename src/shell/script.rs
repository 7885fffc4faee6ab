//! Cuts a script into statements and backslash commands while it is being read.
//!
//! A piece is handed out as soon as its last line is there, so a program can write a
//! statement and wait for its result, and no script is too large. What is wrong further
//! down keeps nothing above from running. A piece knows the line that it begins on.

use std::collections::VecDeque;
use std::io::{self, BufRead};

use crate::sql::{is_complete, split};

/// A statement or a command, and where it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    /// Line of the script, from 1.
    pub(super) line: usize,
    /// What it is.
    pub(super) kind: PieceKind,
}

/// What a piece of a script is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PieceKind {
    /// A statement, without its semicolon.
    Statement(String),
    /// A line that begins with a backslash.
    Command(String),
}

/// A script that is being read.
pub(super) struct Script<R> {
    reader: R,
    /// Lines read so far.
    lines: usize,
    ended: bool,
    ready: VecDeque<Piece>,
}

impl<R: BufRead> Script<R> {
    /// Nothing is read before the first call of [`next`](Self::next).
    pub(super) fn new(reader: R) -> Self {
        Self {
            reader,
            lines: 0,
            ended: false,
            ready: VecDeque::new(),
        }
    }

    /// Lines read so far, for errors in reading.
    pub(super) fn lines(&self) -> usize {
        self.lines
    }

    /// The next piece; `None` at the end.
    ///
    /// # Errors
    ///
    /// If the script can't be read, or is not UTF-8.
    pub(super) fn next(&mut self) -> io::Result<Option<Piece>> {
        while self.ready.is_empty() && !self.ended {
            self.fill()?;
        }
        Ok(self.ready.pop_front())
    }

    /// Reads lines until they hold whole statements.
    fn fill(&mut self) -> io::Result<()> {
        let first = self.lines + 1;
        let mut text = String::new();
        loop {
            let start = text.len();
            if self.reader.read_line(&mut text)? == 0 {
                self.ended = true;
                break;
            }
            self.lines += 1;
            if self.lines == 1 {
                drop_head(&mut text);
            }
            let line = text.get(start..).unwrap_or_default();
            if line.trim_start().starts_with('\\') && split(&text[..start]).is_empty() {
                self.ready.push_back(Piece {
                    line: self.lines,
                    kind: PieceKind::Command(line.trim().to_string()),
                });
                return Ok(());
            }
            // Looking through the text is left out for lines that can't end a statement:
            // one of many lines would be looked through for each of them.
            if line.contains(';') && is_complete(&text) {
                break;
            }
        }
        self.cut(&text, first);
        Ok(())
    }

    /// Cuts `text`, which begins on the line `first`, into statements.
    fn cut(&mut self, text: &str, first: usize) {
        let mut line = first;
        let mut counted = 0;
        for statement in split(text) {
            // `split` gives slices of `text`, in order.
            let start = (statement.as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
            let between = text.as_bytes().get(counted..start).unwrap_or_default();
            line += between.iter().filter(|byte| **byte == b'\n').count();
            counted = start.max(counted);
            self.ready.push_back(Piece {
                line,
                kind: PieceKind::Statement(statement.to_string()),
            });
        }
    }
}

/// Takes away what may stand before a script: a byte order mark, and `#!…`.
fn drop_head(line: &mut String) {
    if line.starts_with('\u{feff}') {
        line.remove(0);
    }
    if line.starts_with("#!") {
        line.clear();
        line.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(text: &str) -> Vec<(usize, String)> {
        let mut script = Script::new(text.as_bytes());
        let mut pieces = Vec::new();
        while let Some(piece) = script.next().unwrap() {
            let (PieceKind::Statement(text) | PieceKind::Command(text)) = piece.kind;
            pieces.push((piece.line, text.trim_end().to_string()));
        }
        pieces
    }

    fn expect(text: &str, expected: &[(usize, &str)]) {
        let expected: Vec<_> = expected
            .iter()
            .map(|(line, text)| (*line, text.to_string()))
            .collect();
        assert_eq!(pieces(text), expected);
    }

    #[test]
    fn statements_know_the_line_they_begin_on() {
        expect(
            "SELECT 1;\n\n  SELECT 2\n  FROM t;SELECT 3; SELECT\n4;\nSELECT 5",
            &[
                (1, "SELECT 1"),
                (3, "SELECT 2\n  FROM t"),
                (4, "SELECT 3"),
                (4, "SELECT\n4"),
                (6, "SELECT 5"),
            ],
        );
    }

    #[test]
    fn comments_before_a_statement_are_not_its_beginning() {
        expect(
            "-- one; two\n/* three;\n /* nested */ */ SELECT 1; -- four\n\n-- five\nSELECT 2;\n-- six",
            &[(3, "SELECT 1"), (6, "SELECT 2")],
        );
    }

    #[test]
    fn semicolons_in_strings_and_bodies_do_not_split() {
        expect(
            "SELECT ';\n;' AS \"a;b\";\nCREATE FUNCTION f() AS $$ a;\nb; $$;\nSELECT 2;",
            &[
                (1, "SELECT ';\n;' AS \"a;b\""),
                (3, "CREATE FUNCTION f() AS $$ a;\nb; $$"),
                (5, "SELECT 2"),
            ],
        );
    }

    #[test]
    fn a_line_with_a_backslash_is_a_command_only_between_statements() {
        expect(
            "\\d\n-- comment\n  \\d t \nSELECT\n'\n\\d';\n\\q",
            &[(1, "\\d"), (3, "\\d t"), (4, "SELECT\n'\n\\d'"), (7, "\\q")],
        );
    }

    #[test]
    fn the_head_of_a_script_is_left_out() {
        expect(
            "\u{feff}#!/usr/bin/env -S headwater -f\nSELECT 1;\n",
            &[(2, "SELECT 1")],
        );
        expect("\u{feff}SELECT 1", &[(1, "SELECT 1")]);
    }

    #[test]
    fn nothing_yields_nothing() {
        for text in ["", "\n\n", ";;;\n;", "-- only\n/* comments */"] {
            expect(text, &[]);
        }
    }

    #[test]
    fn a_statement_is_there_before_the_next_line_is_read() {
        struct Once(bool);
        impl io::Read for Once {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("read too far"))
            }
        }
        impl BufRead for Once {
            fn fill_buf(&mut self) -> io::Result<&[u8]> {
                if self.0 {
                    return Err(io::Error::other("read too far"));
                }
                Ok(b"SELECT 1;\n")
            }
            fn consume(&mut self, _: usize) {
                self.0 = true;
            }
        }
        let mut script = Script::new(Once(false));
        assert_eq!(script.next().unwrap().unwrap().line, 1);
        assert!(script.next().is_err());
    }

    #[test]
    fn text_that_is_not_utf8_is_an_error() {
        let mut script = Script::new(&b"SELECT 1;\nSELECT '\xff';"[..]);
        assert!(script.next().unwrap().is_some());
        let error = script.next().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert_eq!(script.lines(), 1);
    }
}
