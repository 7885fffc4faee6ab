//! Results as multisets of rows.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use datafusion::arrow::array::{Array, AsArray, RecordBatch};
use datafusion::arrow::datatypes::{DataType, Float64Type};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};

/// A multiset of rows: by all values that must be equal, the values that may be off a little.
pub type Rows = BTreeMap<Vec<String>, Vec<Vec<f64>>>;

/// The rows of a result.
pub fn rows(batches: &[RecordBatch]) -> Result<Rows, ArrowError> {
    let options = FormatOptions::default();
    let mut rows = Rows::new();
    for batch in batches {
        for row in 0..batch.num_rows() {
            let (mut exact, mut floats) = (Vec::new(), Vec::new());
            for column in batch.columns() {
                if column.is_null(row) {
                    exact.push("NULL".to_string());
                } else if column.data_type() == &DataType::Float64 {
                    floats.push(column.as_primitive::<Float64Type>().value(row));
                } else {
                    let column = ArrayFormatter::try_new(column.as_ref(), &options)?;
                    exact.push(column.value(row).to_string());
                }
            }
            rows.entry(exact).or_default().push(floats);
        }
    }
    for floats in rows.values_mut() {
        floats.sort_by(|a, b| a.partial_cmp(b).unwrap_or(Ordering::Equal));
    }
    Ok(rows)
}

/// Whether two results have the same rows, but for what floats are off.
pub fn is_same(left: &Rows, right: &Rows) -> bool {
    let is_near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.0);
    left.len() == right.len()
        && left
            .iter()
            .zip(right)
            .all(|((left, of_left), (right, of_right))| {
                left == right
                    && of_left.len() == of_right.len()
                    && of_left
                        .iter()
                        .zip(of_right)
                        .all(|(a, b)| a.len() == b.len() && a.iter().zip(b).all(is_near))
            })
}

/// The first of the rows that are not in `others`, a line each.
pub fn only_in(rows: &Rows, others: &Rows) -> String {
    let differing = rows
        .iter()
        .filter(|(key, floats)| others.get(*key) != Some(*floats));
    let lines = differing.take(20).map(|row| format!("    {row:?}"));
    lines.collect::<Vec<_>>().join("\n")
}
