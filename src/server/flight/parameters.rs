//! Parameters of prepared statements: `?` and `$1` in their text, filled with literals.
//!
//! Every statement takes them, since they are put into its text and not into its plan. A value becomes a literal of
//! its own type, quoted as SQL wants it, so no value can be taken for more than one.

use std::fmt::Write as _;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::DataType;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

use crate::sql::HeadwaterDialect;
use crate::{Error, ErrorKind, Result};

/// The text of a statement, cut where its parameters stand.
#[derive(Debug, Clone)]
pub(super) struct Template {
    /// What stands before each parameter, and the parameter's place, from 0.
    parts: Vec<(String, usize)>,
    /// What stands after the last.
    rest: String,
    /// How many values it takes.
    count: usize,
}

impl Template {
    /// Finds the parameters in a statement: `?`, which take values in their order, or `$1`, `$2`, which name them.
    ///
    /// # Errors
    ///
    /// If the text can't be cut into words, or has parameters of both kinds.
    pub(super) fn new(sql: &str) -> Result<Self> {
        let tokens = Tokenizer::new(&HeadwaterDialect, sql)
            .tokenize_with_location()
            .map_err(|error| Error::new(ErrorKind::Syntax, error.to_string()))?;
        let lines: Vec<usize> = std::iter::once(0)
            .chain(sql.match_indices('\n').map(|(at, _)| at + 1))
            .collect();
        let mut parts = Vec::new();
        let (mut done, mut count) = (0, 0);
        let (mut marks, mut names) = (false, false);
        for token in tokens {
            let (text, place) = match &token.token {
                Token::Question => ("?", None),
                Token::Placeholder(text) if text == "?" => ("?", None),
                Token::Placeholder(text) => match text.strip_prefix('$').map(str::parse::<usize>) {
                    Some(Ok(number)) if (1..=65_535).contains(&number) => {
                        (text.as_str(), Some(number - 1))
                    }
                    _ => continue,
                },
                _ => continue,
            };
            marks |= place.is_none();
            names |= place.is_some();
            if marks && names {
                return Err(Error::new(
                    ErrorKind::Syntax,
                    "a statement has either ? or $1, $2 … as parameters, not both",
                ));
            }
            let start = token.span.start;
            let line = usize::try_from(start.line).unwrap_or(1).saturating_sub(1);
            let column = usize::try_from(start.column).unwrap_or(1).saturating_sub(1);
            let begin = lines.get(line).copied().unwrap_or_default();
            let line = sql.get(begin..).unwrap_or_default();
            let at = begin
                + line
                    .char_indices()
                    .nth(column)
                    .map_or(line.len(), |(at, _)| at);
            let (Some(before), Some(true)) = (
                sql.get(done..at),
                sql.get(at..).map(|rest| rest.starts_with(text)),
            ) else {
                return Err(Error::internal(
                    "a parameter does not stand where it was found",
                ));
            };
            let place = place.unwrap_or(count);
            parts.push((before.to_string(), place));
            count = count.max(place + 1);
            done = at + text.len();
        }
        Ok(Self {
            parts,
            rest: sql.get(done..).unwrap_or_default().to_string(),
            count,
        })
    }

    /// How many values it takes.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The statement with parameters named by number, as the planner knows them.
    pub(super) fn numbered(&self) -> String {
        self.with(|place| format!("${}", place + 1))
    }

    /// The statement with one row of values.
    ///
    /// # Errors
    ///
    /// If there are too few or too many, or one can't be written as a literal.
    pub(super) fn filled(&self, values: Option<(&RecordBatch, usize)>) -> Result<String> {
        let given = values.map_or(0, |(batch, _)| batch.num_columns());
        if given != self.count {
            return Err(Error::invalid(format!(
                "the statement takes {} parameter(s), and {given} were bound",
                self.count
            )));
        }
        let Some((batch, row)) = values else {
            return Ok(self.with(|_| String::new()));
        };
        let literals = batch
            .columns()
            .iter()
            .enumerate()
            .map(|(place, column)| {
                literal(column, row)
                    .map_err(|error| error.context(format!("parameter ${}", place + 1)))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(self.with(|place| literals.get(place).cloned().unwrap_or_default()))
    }

    fn with(&self, value: impl Fn(usize) -> String) -> String {
        let mut text = String::new();
        for (before, place) in &self.parts {
            text += before;
            text += &value(*place);
        }
        text + &self.rest
    }
}

/// A value as an expression of SQL.
fn literal(array: &dyn Array, row: usize) -> Result<String> {
    if array.is_null(row) {
        return Ok("NULL".to_string());
    }
    let text = || -> Result<String> {
        let options = FormatOptions::default();
        Ok(ArrayFormatter::try_new(array, &options)?
            .value(row)
            .to_string())
    };
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
    Ok(match array.data_type() {
        DataType::Null => "NULL".to_string(),
        DataType::Boolean => text()?.to_uppercase(),
        // In parentheses: a minus after another one would begin a comment.
        DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::UInt8
        | DataType::UInt16
        | DataType::UInt32
        | DataType::UInt64 => format!("({})", text()?),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => quoted(&text()?),
        DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView
        | DataType::FixedSizeBinary(_) => format!("X{}", quoted(&text()?)),
        DataType::Float16
        | DataType::Float32
        | DataType::Float64
        | DataType::Decimal32(..)
        | DataType::Decimal64(..)
        | DataType::Decimal128(..)
        | DataType::Decimal256(..)
        | DataType::Date32
        | DataType::Date64
        | DataType::Time32(_)
        | DataType::Time64(_)
        | DataType::Timestamp(..)
        | DataType::Duration(_) => {
            let kind = quoted(&array.data_type().to_string());
            format!("arrow_cast({}, {kind})", quoted(&text()?))
        }
        DataType::List(_) => list(&array.as_list::<i32>().value(row))?,
        DataType::LargeList(_) => list(&array.as_list::<i64>().value(row))?,
        DataType::FixedSizeList(..) => list(&array.as_fixed_size_list().value(row))?,
        DataType::Dictionary(..) => {
            let values = arrow::compute::cast(&array.slice(row, 1), &DataType::Utf8)?;
            literal(&values, 0)?
        }
        other => {
            return Err(
                Error::not_available(format!("a value of type {other}")).with_hint(
                    "bind numbers, text, binary, booleans, dates and times, or lists of them",
                ),
            );
        }
    })
}

fn list(values: &dyn Array) -> Result<String> {
    let mut text = "[".to_string();
    for row in 0..values.len() {
        let separator = if row == 0 { "" } else { ", " };
        let _ = write!(text, "{separator}{}", literal(values, row)?);
    }
    Ok(text + "]")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Float64Array, Int64Array, ListArray, StringArray};
    use arrow::datatypes::Int64Type;

    use super::*;

    fn row(columns: Vec<ArrayRef>) -> RecordBatch {
        let names = ["a", "b", "c", "d"];
        RecordBatch::try_from_iter(names.into_iter().zip(columns)).unwrap()
    }

    #[test]
    fn parameters_are_found_where_they_are_none_of_text() {
        let template = Template::new("SELECT '?', \"?\" -- ?\n, ö, ?\n  + ? /* ? */").unwrap();
        assert_eq!(template.count(), 2);
        assert_eq!(
            template.numbered(),
            "SELECT '?', \"?\" -- ?\n, ö, $1\n  + $2 /* ? */"
        );
        let template = Template::new("SELECT $2, $1, $2").unwrap();
        assert_eq!(template.count(), 2);
        let values = row(vec![
            Arc::new(Int64Array::from(vec![-1])),
            Arc::new(StringArray::from(vec!["it's"])),
        ]);
        let filled = template.filled(Some((&values, 0))).unwrap();
        assert_eq!(filled, "SELECT 'it''s', (-1), 'it''s'");
        assert_eq!(
            Template::new("SELECT 1").unwrap().filled(None).unwrap(),
            "SELECT 1"
        );
    }

    #[test]
    fn values_become_literals() {
        let lists = ListArray::from_iter_primitive::<Int64Type, _, _>([Some([Some(1), None])]);
        let values = row(vec![
            Arc::new(Float64Array::from(vec![1.5])),
            Arc::new(lists),
            Arc::new(Int64Array::from(vec![None])),
        ]);
        let filled = Template::new("?|?|?")
            .unwrap()
            .filled(Some((&values, 0)))
            .unwrap();
        assert_eq!(filled, "arrow_cast('1.5', 'Float64')|[(1), NULL]|NULL");
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let error = Template::new("SELECT ?").unwrap().filled(None).unwrap_err();
        assert!(
            error.to_string().contains("1 parameter(s), and 0"),
            "{error}"
        );
        assert!(Template::new("SELECT ?, $1").is_err());
        assert!(Template::new("SELECT 'open").is_err());
    }
}
