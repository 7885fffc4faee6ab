//! Files of this machine that settings name.

use std::path::Path;

use crate::{Error, ErrorKind, Result};

/// Reads a file that a setting names.
pub(crate) fn read(path: &Path, what: &str) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| {
        Error::new(
            ErrorKind::Storage,
            format!("can't read {what} '{}': {error}", path.display()),
        )
        .with_source(error)
    })
}

/// Reads a token from a file; a line break at its end is not of it.
pub(crate) fn read_token(path: &Path) -> Result<String> {
    let bytes = read(path, "the token file")?;
    let text = String::from_utf8_lossy(&bytes).trim().to_string();
    match text.is_empty() {
        true => Err(Error::invalid(format!(
            "the token file '{}' is empty",
            path.display()
        ))),
        false => Ok(text),
    }
}
