//! Results as text, the way DataFusion's own sqllogictest writes them: `NULL`, `(empty)`
//! for an empty string, floats that do not depend on the order of a sum, nested values
//! as arrow writes them. Text of several lines takes a row for each line.

use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Float16Type, Float32Type, Float64Type, SchemaRef};
use datafusion::arrow::util::display::{ArrayFormatter, DurationFormat, FormatOptions};
use sqllogictest::ColumnType;

use crate::harness::Failure;

/// Columns whose values can't be foretold.
const VOLATILE: [&str; 3] = ["elapsed_seconds", "job", "bytes"];

/// The type of a column, one letter each in `query <letters>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnKind {
    /// `B`
    Boolean,
    /// `D`: dates and times of day.
    Date,
    /// `I`: integers of any width.
    Integer,
    /// `P`: timestamps.
    Timestamp,
    /// `R`: floats and decimals.
    Real,
    /// `T`
    Text,
    /// `?`: everything else.
    Other,
}

impl ColumnKind {
    /// The kind of an Arrow type; a dictionary is what its values are.
    pub fn of(data_type: &DataType) -> Self {
        match data_type {
            DataType::Boolean => Self::Boolean,
            DataType::Date32 | DataType::Date64 | DataType::Time32(_) | DataType::Time64(_) => {
                Self::Date
            }
            DataType::Timestamp(_, _) => Self::Timestamp,
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Self::Text,
            DataType::Dictionary(_, values) => Self::of(values),
            other if other.is_integer() => Self::Integer,
            other if other.is_floating() || other.is_decimal() => Self::Real,
            _ => Self::Other,
        }
    }
}

impl ColumnType for ColumnKind {
    fn from_char(letter: char) -> Option<Self> {
        Some(match letter {
            'B' => Self::Boolean,
            'D' => Self::Date,
            'I' => Self::Integer,
            'P' => Self::Timestamp,
            'R' => Self::Real,
            'T' => Self::Text,
            '?' => Self::Other,
            _ => return None,
        })
    }

    fn to_char(&self) -> char {
        match self {
            Self::Boolean => 'B',
            Self::Date => 'D',
            Self::Integer => 'I',
            Self::Timestamp => 'P',
            Self::Real => 'R',
            Self::Text => 'T',
            Self::Other => '?',
        }
    }
}

/// Rows as text.
#[derive(Debug)]
pub struct Rendered {
    /// One for each column.
    pub kinds: Vec<ColumnKind>,
    /// The rows.
    pub rows: Vec<Vec<String>>,
}

/// The rows of a batch; `normalize` is applied to each text.
pub fn render(
    batch: &RecordBatch,
    normalize: &dyn Fn(&str) -> String,
) -> Result<Rendered, Failure> {
    let mut rows = Vec::new();
    for row in 0..batch.num_rows() {
        let mut cells = Vec::with_capacity(batch.num_columns());
        for (name, array) in names(&batch.schema()).into_iter().zip(batch.columns()) {
            if VOLATILE.contains(&name.as_str()) {
                cells.push(format!("<{name}>"));
                continue;
            }
            let value = render_value(array, row)?;
            cells.push(match ColumnKind::of(array.data_type()) {
                ColumnKind::Text => normalize(&value),
                _ => value,
            });
        }
        rows.extend(expand(cells));
    }
    let kinds = batch
        .columns()
        .iter()
        .map(|array| ColumnKind::of(array.data_type()))
        .collect();
    Ok(Rendered { kinds, rows })
}

fn names(schema: &SchemaRef) -> Vec<String> {
    let name = |field: &_| String::clone(datafusion::arrow::datatypes::Field::name(field));
    schema.fields().iter().map(|field| name(field)).collect()
}

/// One value.
pub fn render_value(array: &ArrayRef, row: usize) -> Result<String, Failure> {
    if array.is_null(row) || array.data_type() == &DataType::Null {
        return Ok("NULL".to_string());
    }
    Ok(match array.data_type() {
        DataType::Float16 => float(array.as_primitive::<Float16Type>().value(row).to_f64(), 3),
        DataType::Float32 => float(f64::from(array.as_primitive::<Float32Type>().value(row)), 6),
        DataType::Float64 => float(array.as_primitive::<Float64Type>().value(row), 12),
        DataType::Dictionary(_, values) => {
            return render_value(&cast(array, values).map_err(Failure::new)?, row);
        }
        _ => {
            let options = FormatOptions::default()
                .with_null("NULL")
                .with_duration_format(DurationFormat::Pretty);
            let formatter = ArrayFormatter::try_new(array, &options).map_err(Failure::new)?;
            match formatter.value(row).to_string() {
                value if value.is_empty() => "(empty)".to_string(),
                value => value.trim_end_matches('\n').replace('\0', "\\0"),
            }
        }
    })
}

/// A float to so many significant digits, without an exponent or trailing zeros.
fn float(value: f64, digits: usize) -> String {
    if value.is_nan() {
        return "NaN".to_string();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_string();
    }
    let rounded = format!("{value:.*e}", digits - 1).parse().unwrap_or(value);
    // A negative zero prints its sign, which is no difference that SQL knows.
    (rounded + 0.0).to_string()
}

/// A row of one line, or a row for each line of its longest cell: sqllogictest collapses
/// spaces, so further lines begin with their number and keep their indentation as dashes.
fn expand(cells: Vec<String>) -> Vec<Vec<String>> {
    if cells.iter().all(|cell| !cell.contains('\n')) {
        return vec![cells];
    }
    let mut rows = Vec::new();
    let mut first = Vec::new();
    let mut number = 1;
    for cell in &cells {
        let mut lines = cell.lines();
        if !cell.contains('\n') {
            first.push(cell.clone());
            continue;
        }
        first.push(
            lines
                .next()
                .map(|line| numbered(1, line))
                .unwrap_or_default(),
        );
        for line in lines {
            number += 1;
            rows.push(vec![numbered(number, line)]);
        }
    }
    rows.insert(0, first);
    rows
}

fn numbered(number: usize, line: &str) -> String {
    let content = line.trim_start();
    let indentation = "-".repeat(line.len() - content.len());
    format!("{number:02}){indentation}{content}")
}
