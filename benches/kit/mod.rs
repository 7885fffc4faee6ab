//! What the benchmarks share: settings, a database to measure in, timing, and the report.

mod database;
mod report;
mod settings;
mod timing;

pub use database::{Database, text};
pub use report::{Report, milliseconds};
pub use settings::Settings;
pub use timing::{Best, alternate, best, timed};

/// A benchmark that fails says why, and no more.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// A number with a comma between the thousands.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}
