//! `WITH (name = value, …)`: reading it, and checking it against what a statement knows.
//!
//! Every statement with options has a list of those that it knows and a struct of their
//! checked values. An unknown option is an error that lists the known ones and the nearest
//! name; a value out of range is an error that names the option and the range.

pub mod views;

use std::fmt::{self, Write};
use std::ops::RangeInclusive;
use std::time::Duration;

use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::Token;

use super::parser::failure::{Failure, Read};
use super::statement::{OptionValue, StatementOption};
use crate::column::plan::BatchSize;
use crate::column::refresh::Settings;
use crate::job::admission::{ADMISSION_TIMEOUT, Admission, Placement};
use crate::{Error, Result, nearest};

/// An option that a statement knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownOption {
    /// Its name.
    pub name: &'static str,
    /// False if it belongs to the dialect, but not to this release.
    pub available: bool,
}

impl KnownOption {
    const fn now(name: &'static str) -> Self {
        Self {
            name,
            available: true,
        }
    }

    const fn later(name: &'static str) -> Self {
        Self {
            name,
            available: false,
        }
    }
}

/// The options of REFRESH COLUMN.
pub const REFRESH_COLUMN: &[KnownOption] = &[
    KnownOption::now("concurrency"),
    KnownOption::now("batch_rows"),
    KnownOption::now("max_batch_rows"),
    KnownOption::now("batch_bytes"),
    KnownOption::now("commit_every"),
    KnownOption::now("commit_interval"),
    KnownOption::now("checkpoint_interval"),
    KnownOption::now("max_fragments"),
    KnownOption::now("skip_fragments"),
    KnownOption::now("version"),
    KnownOption::now("max_calls"),
    KnownOption::now("max_seconds"),
    KnownOption::now("timeout"),
    KnownOption::later("workers"),
    KnownOption::later("on_error"),
    KnownOption::later("max_failed_rows"),
    KnownOption::later("max_failed_fraction"),
    KnownOption::later("call_timeout"),
    KnownOption::now("pool"),
    KnownOption::now("admission"),
    KnownOption::now("admission_timeout"),
];

/// The options of OPTIMIZE.
pub const OPTIMIZE: &[KnownOption] = &[
    KnownOption::now("target_rows_per_fragment"),
    KnownOption::now("materialize_deletions"),
    KnownOption::now("materialize_deletions_threshold"),
];

/// The options of CREATE TABLE.
pub const CREATE_TABLE: &[KnownOption] = &[
    KnownOption::now("max_rows_per_fragment"),
    KnownOption::now("max_bytes_per_file"),
];

/// Checks and reads the options of REFRESH COLUMN.
///
/// # Errors
///
/// As [`Options::check`], and for values out of range.
pub fn refresh_settings(given: &[StatementOption]) -> Result<Settings> {
    let options = Options::check("REFRESH COLUMN", given, REFRESH_COLUMN)?;
    let (batches, fixed_batches) = options.batches()?;
    let commit_every = match options.value("commit_every") {
        Some(OptionValue::Text(all)) if all.eq_ignore_ascii_case("all") => Some(0),
        _ => options
            .count("commit_every", 1..=MOST_ROWS)
            .map_err(|error| error.with_hint("'all' commits once, at the end"))?,
    };
    Ok(Settings {
        concurrency: options.count("concurrency", 1..=1024)?,
        batches,
        fixed_batches,
        commit_every,
        commit_interval: options.duration("commit_interval", TIMES)?,
        checkpoint_interval: options.duration("checkpoint_interval", TIMES)?,
        skip_fragments: options.count("skip_fragments", 0..=MOST_ROWS)?,
        max_fragments: options.count("max_fragments", 1..=MOST_ROWS)?,
        max_calls: options.integer("max_calls", 1..=MOST_BYTES)?,
        max_time: options.duration("max_seconds", TIMES)?,
        timeout: options.duration("timeout", TIMES)?,
        version: options.integer("version", 1..=MOST_ROWS)?,
        placement: options.placement()?,
    })
}

/// What OPTIMIZE was given; `None` for Lance's own choice.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct OptimizeOptions {
    /// Fragments with fewer rows are put together, up to this many. 1,048,576 by default.
    pub target_rows_per_fragment: Option<usize>,
    /// Whether fragments with many deleted rows are written anew. They are by default.
    pub materialize_deletions: Option<bool>,
    /// How many deleted rows are many, as a fraction of the fragment's rows. 0.1 by default.
    pub materialize_deletions_threshold: Option<f32>,
}

impl OptimizeOptions {
    /// Checks and reads the options of a statement.
    ///
    /// # Errors
    ///
    /// As [`Options::check`], and for values out of range.
    pub fn read(given: &[StatementOption]) -> Result<Self> {
        let options = Options::check("OPTIMIZE", given, OPTIMIZE)?;
        Ok(Self {
            target_rows_per_fragment: options.count("target_rows_per_fragment", 1..=MOST_ROWS)?,
            materialize_deletions: options.boolean("materialize_deletions")?,
            #[allow(clippy::cast_possible_truncation)]
            materialize_deletions_threshold: options
                .number("materialize_deletions_threshold", 0.0..=1.0)?
                .map(|threshold| threshold as f32),
        })
    }
}

/// What CREATE TABLE was given; `None` for Lance's own choice. They hold for the data that
/// the statement itself writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CreateTableOptions {
    /// Most rows of a fragment. 1,048,576 by default.
    pub max_rows_per_fragment: Option<usize>,
    /// Bytes from which on a data file is ended and another one begun. 90 GiB by default.
    pub max_bytes_per_file: Option<u64>,
}

impl CreateTableOptions {
    /// Checks and reads the options of a statement.
    ///
    /// # Errors
    ///
    /// As [`Options::check`], and for values out of range.
    pub fn read(given: &[StatementOption]) -> Result<Self> {
        let options = Options::check("CREATE TABLE", given, CREATE_TABLE)?;
        Ok(Self {
            max_rows_per_fragment: options.count("max_rows_per_fragment", 1..=MOST_ROWS)?,
            max_bytes_per_file: options.bytes("max_bytes_per_file", 1024..=MOST_BYTES)?,
        })
    }
}

/// Rows are addressed by 32 bits within a fragment.
const MOST_ROWS: u64 = u32::MAX as u64;

/// Times that options take.
const TIMES: RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(366 * 86_400);

/// What an object store takes as one object, about.
const MOST_BYTES: u64 = 1 << 40;

/// The options that one statement was given, each known, available and given once.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    statement: &'a str,
    given: &'a [StatementOption],
}

impl<'a> Options<'a> {
    /// Checks the names of the options that `statement` was given.
    ///
    /// # Errors
    ///
    /// For an option that is not known, given twice, or not available yet.
    pub fn check(
        statement: &'a str,
        given: &'a [StatementOption],
        known: &[KnownOption],
    ) -> Result<Self> {
        for (index, option) in given.iter().enumerate() {
            let name = &option.name;
            match known.iter().find(|known| known.name == name) {
                Some(found) if !found.available => {
                    return Err(Error::not_available(format!(
                        "option '{name}' of {statement}"
                    )));
                }
                Some(_) => {}
                None => return Err(unknown(statement, name, known)),
            }
            if given
                .iter()
                .skip(index + 1)
                .any(|other| other.name == *name)
            {
                return Err(Error::invalid(format!(
                    "option '{name}' of {statement} is given twice"
                )));
            }
        }
        Ok(Self { statement, given })
    }

    /// The value of an option, if it was given.
    pub fn value(&self, name: &str) -> Option<&'a OptionValue> {
        self.given
            .iter()
            .find(|option| option.name == name)
            .map(|option| &option.value)
    }

    /// A whole number within `range`.
    pub fn integer(&self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>> {
        let Some(value) = self.value(name) else {
            return Ok(None);
        };
        match value {
            OptionValue::Number(number) => whole(*number).filter(|number| range.contains(number)),
            _ => None,
        }
        .map(Some)
        .ok_or_else(|| {
            self.refuse(
                name,
                value,
                &format!("a whole number from {} to {}", range.start(), range.end()),
            )
        })
    }

    /// As [`integer`](Self::integer), as a number of things in memory.
    pub fn count(&self, name: &str, range: RangeInclusive<u64>) -> Result<Option<usize>> {
        Ok(self
            .integer(name, range)?
            .map(|count| usize::try_from(count).unwrap_or(usize::MAX)))
    }

    /// A number within `range`.
    pub fn number(&self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>> {
        let Some(value) = self.value(name) else {
            return Ok(None);
        };
        match value {
            OptionValue::Number(number) if range.contains(number) => Ok(Some(*number)),
            _ => Err(self.refuse(
                name,
                value,
                &format!("a number from {} to {}", range.start(), range.end()),
            )),
        }
    }

    /// TRUE or FALSE.
    pub fn boolean(&self, name: &str) -> Result<Option<bool>> {
        match self.value(name) {
            None => Ok(None),
            Some(OptionValue::Boolean(value)) => Ok(Some(*value)),
            Some(value) => Err(self.refuse(name, value, "TRUE or FALSE")),
        }
    }

    /// A text.
    pub fn text(&self, name: &str) -> Result<Option<&'a str>> {
        match self.value(name) {
            None => Ok(None),
            Some(OptionValue::Text(text)) => Ok(Some(text)),
            Some(value) => Err(self.refuse(name, value, "a text in single quotes")),
        }
    }

    /// The executors that a job wants: `pool`, `admission` and `admission_timeout`.
    pub fn placement(&self) -> Result<Placement> {
        Ok(Placement {
            pool: self.text("pool")?.map(str::to_string),
            admission: self.admission()?,
        })
    }

    fn admission(&self) -> Result<Admission> {
        let timeout = self.duration("admission_timeout", TIMES)?;
        let timeout = timeout.unwrap_or(ADMISSION_TIMEOUT);
        match self.text("admission")?.map(str::to_lowercase).as_deref() {
            None | Some("strict") => Ok(Admission::Strict),
            Some("wait") => Ok(Admission::Wait(timeout)),
            Some("off") => Ok(Admission::Off),
            Some(other) => Err(Error::invalid(format!(
                "option 'admission' of {}: '{other}' is not known",
                self.statement
            ))
            .with_hint("it is 'strict', 'wait' or 'off'")),
        }
    }

    /// A length of time within `range`: a number of seconds, or a text like `'30 s'`, `'10m'`,
    /// `'1 hour'`.
    pub fn duration(
        &self,
        name: &str,
        range: RangeInclusive<Duration>,
    ) -> Result<Option<Duration>> {
        let Some(value) = self.value(name) else {
            return Ok(None);
        };
        match value {
            OptionValue::Number(seconds) => Duration::try_from_secs_f64(*seconds).ok(),
            OptionValue::Text(text) => parse_duration(text),
            OptionValue::Boolean(_) => None,
        }
        .filter(|duration| range.contains(duration))
        .map(Some)
        .ok_or_else(|| {
            self.refuse(
                name,
                value,
                &format!(
                    "a time from {:?} to {:?}, like '30 s', '10m' or '1 hour'",
                    range.start(),
                    range.end()
                ),
            )
        })
    }

    /// A number of bytes within `range`: a number, or a text like `'64 MB'`, `'4GiB'`.
    pub fn bytes(&self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>> {
        let Some(value) = self.value(name) else {
            return Ok(None);
        };
        match value {
            OptionValue::Number(number) => whole(*number),
            OptionValue::Text(text) => parse_bytes(text),
            OptionValue::Boolean(_) => None,
        }
        .filter(|bytes| range.contains(bytes))
        .map(Some)
        .ok_or_else(|| {
            self.refuse(
                name,
                value,
                &format!(
                    "a number of bytes from {} to {}, like '64MB' or '4GB'",
                    range.start(),
                    range.end()
                ),
            )
        })
    }

    /// The options about batches: how large they are, and whether every one is.
    fn batches(&self) -> Result<(BatchSize, bool)> {
        let rows = self.count("batch_rows", 1..=MOST_ROWS)?;
        let most = self.count("max_batch_rows", 1..=MOST_ROWS)?;
        if let (Some(rows), Some(most)) = (rows, most)
            && rows > most
        {
            return Err(Error::invalid(format!(
                "option 'batch_rows' of {} is {rows}, more than 'max_batch_rows' = {most}",
                self.statement
            )));
        }
        let size = BatchSize {
            // A fixed size is also the largest.
            rows: rows.or(most),
            bytes: self.bytes("batch_bytes", 1..=MOST_BYTES)?,
        };
        Ok((size, rows.is_some()))
    }

    fn refuse(&self, name: &str, value: &OptionValue, expected: &str) -> Error {
        Error::invalid(format!(
            "option '{name}' of {} takes {expected}, not {value}",
            self.statement
        ))
    }
}

fn unknown(statement: &str, name: &str, known: &[KnownOption]) -> Error {
    let mut hint = String::new();
    if let Some(near) = nearest(name, known.iter().map(|known| known.name)) {
        let _ = write!(hint, "did you mean '{near}'? ");
    }
    let available: Vec<&str> = known
        .iter()
        .filter(|known| known.available)
        .map(|known| known.name)
        .collect();
    let _ = write!(hint, "its options are {}", available.join(", "));
    Error::invalid(format!("{statement} has no option '{name}'")).with_hint(hint)
}

impl fmt::Display for StatementOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}", self.name, self.value)
    }
}

impl fmt::Display for OptionValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OptionValue::Number(number) => write!(f, "{number}"),
            OptionValue::Text(text) => write!(f, "'{}'", text.replace('\'', "''")),
            OptionValue::Boolean(true) => f.write_str("TRUE"),
            OptionValue::Boolean(false) => f.write_str("FALSE"),
        }
    }
}

/// A number that is whole, and exact as a floating-point number.
fn whole(number: f64) -> Option<u64> {
    const MOST: f64 = (1_u64 << 53) as f64;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    ((0.0..=MOST).contains(&number) && number.fract() == 0.0).then_some(number as u64)
}

/// Splits `'30 s'` into its number and its unit.
fn number_and_unit(text: &str) -> Option<(f64, String)> {
    let text = text.trim();
    let end = text
        .find(|character: char| !character.is_ascii_digit() && character != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim().to_ascii_lowercase()))
}

/// `30 s`, `10m`, `1 hour`, `1.5h`, `250ms`; a number alone is seconds.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = number_and_unit(text)?;
    let seconds = match unit.as_str() {
        "ms" | "millisecond" | "milliseconds" => 0.001,
        "" | "s" | "sec" | "secs" | "second" | "seconds" => 1.0,
        "m" | "min" | "mins" | "minute" | "minutes" => 60.0,
        "h" | "hour" | "hours" => 3600.0,
        "d" | "day" | "days" => 86_400.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number * seconds).ok()
}

/// `64MB`, `4 GiB`, `100`; the units count in steps of 1024, with and without the i.
fn parse_bytes(text: &str) -> Option<u64> {
    let (number, unit) = number_and_unit(text)?;
    let factor: u64 = match unit.as_str() {
        "" | "b" | "byte" | "bytes" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return None,
    };
    whole((number * factor as f64).round())
}

/// Reads `(name = value, …)`.
pub(super) fn read(parser: &mut Parser<'_>) -> Read<Vec<StatementOption>> {
    expect(parser, &Token::LParen)?;
    let mut options = Vec::new();
    loop {
        let name = read_name(parser)?;
        expect(parser, &Token::Eq)?;
        options.push(StatementOption {
            name,
            value: read_value(parser)?,
        });
        if parser.consume_token(&Token::RParen) {
            return Ok(options);
        }
        if !parser.consume_token(&Token::Comma) {
            return Ok(parser.expected_ref("',' or ')'", parser.peek_token_ref())?);
        }
    }
}

fn expect(parser: &mut Parser<'_>, token: &Token) -> Read<()> {
    if parser.consume_token(token) {
        Ok(())
    } else {
        Ok(parser.expected_ref(&format!("'{token}'"), parser.peek_token_ref())?)
    }
}

fn read_name(parser: &mut Parser<'_>) -> Read<String> {
    let name = match &parser.peek_token_ref().token {
        Token::Word(word) => word.value.to_ascii_lowercase(),
        Token::SingleQuotedString(text) => text.to_ascii_lowercase(),
        _ => return Ok(parser.expected_ref("the name of an option", parser.peek_token_ref())?),
    };
    parser.advance_token();
    Ok(name)
}

fn read_value(parser: &mut Parser<'_>) -> Read<OptionValue> {
    let sign = if parser.consume_token(&Token::Minus) {
        -1.0
    } else {
        1.0
    };
    let token = parser.peek_token();
    if sign < 0.0 && !matches!(token.token, Token::Number(..)) {
        return Ok(parser.expected("a number", token)?);
    }
    let value = match token.token {
        Token::Number(text, _) => match text.parse::<f64>() {
            Ok(number) if number.is_finite() => OptionValue::Number(sign * number),
            _ => {
                return Err(Failure::syntax(
                    format!("'{text}' is not a number"),
                    token.span.start,
                ));
            }
        },
        Token::SingleQuotedString(text) | Token::EscapedStringLiteral(text) => {
            OptionValue::Text(text)
        }
        Token::DollarQuotedString(text) => OptionValue::Text(text.value),
        Token::Word(word) if word.quote_style.is_some() => OptionValue::Text(word.value),
        Token::Word(word) => match word.value.to_ascii_lowercase().as_str() {
            "true" => OptionValue::Boolean(true),
            "false" => OptionValue::Boolean(false),
            _ => OptionValue::Text(word.value),
        },
        _ => return Ok(parser.expected("the value of an option", token)?),
    };
    parser.advance_token();
    Ok(value)
}

#[cfg(test)]
mod tests;
