//! From text to [`Statement`]s.

use super::statement::Statement;
use crate::Result;

/// Reads all statements of `text`, which semicolons separate.
///
/// # Errors
///
/// [`ErrorKind::Syntax`](crate::ErrorKind::Syntax), with line and column, for the first that is not one.
pub fn parse(text: &str) -> Result<Vec<Statement>> {
    let _ = text;
    todo!()
}

/// Cuts `text` into its statements, as text, without the semicolons; knows strings, quoted
/// names, comments and `$$ … $$`.
pub fn split(text: &str) -> Vec<&str> {
    let _ = text;
    todo!()
}

/// Whether `text` ends with a semicolon that ends a statement.
pub fn is_complete(text: &str) -> bool {
    text.trim_end().ends_with(';')
}
