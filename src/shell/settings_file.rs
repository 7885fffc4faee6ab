//! Settings in a file, beside those of the command line and the environment.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use toml::{Table, Value};

use crate::local_file::read;
use crate::{Error, Result, nearest};

/// The settings of a file. Their names are those of the command line, without the dashes before.
#[derive(Default)]
pub(super) struct SettingsFile {
    place: String,
    table: Table,
}

impl fmt::Debug for SettingsFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Its values may be secrets.
        f.debug_struct("SettingsFile")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

impl SettingsFile {
    /// Reads a file that may have these names.
    ///
    /// # Errors
    ///
    /// If it can't be read, is not TOML, or has a name that is not a setting.
    pub(super) fn read(path: &Path, names: &[&str]) -> Result<Self> {
        let bytes = read(path, "the settings file")?;
        let place = path.display().to_string();
        Self::parse(place, &String::from_utf8_lossy(&bytes), names)
    }

    fn parse(place: String, text: &str, names: &[&str]) -> Result<Self> {
        let table: Table = text.parse().map_err(|error: toml::de::Error| {
            let line = error
                .span()
                .map(|span| 1 + text[..span.start.min(text.len())].matches('\n').count());
            let place = line.map_or(place.clone(), |line| format!("{place}:{line}"));
            Error::invalid(format!(
                "the settings file {place} is not TOML: {}",
                error.message()
            ))
        })?;
        for name in table.keys() {
            if !names.contains(&name.as_str()) {
                let error = Error::invalid(format!("'{name}' in {place} is not a setting"));
                return Err(match nearest(name, names.iter().copied()) {
                    Some(near) => error.with_hint(format!("did you mean '{near}'?")),
                    None => error.with_hint(format!("settings are {}", names.join(", "))),
                });
            }
        }
        Ok(Self { place, table })
    }

    /// A setting that is text.
    pub(super) fn text(&self, name: &str) -> Result<Option<String>> {
        match self.table.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(self.wrong(name, "text", other)),
        }
    }

    /// A setting that is a whole number, in text or not.
    pub(super) fn number<T: FromStr>(&self, name: &str) -> Result<Option<T>> {
        let text = match self.table.get(name) {
            None => return Ok(None),
            Some(Value::Integer(number)) => number.to_string(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => return Err(self.wrong(name, "a whole number", other)),
        };
        let number = text.parse();
        number.map(Some).map_err(|_| {
            Error::invalid(format!(
                "'{name}' in {} is not one that is possible",
                self.place
            ))
        })
    }

    /// A setting that `read` understands.
    pub(super) fn parsed<T>(
        &self,
        name: &str,
        read: impl Fn(&str) -> std::result::Result<T, String>,
    ) -> Result<Option<T>> {
        let text = self.text(name)?;
        let read = text.as_deref().map(read).transpose();
        read.map_err(|error| Error::invalid(format!("'{name}' in {}: {error}", self.place)))
    }

    /// A setting that is a path, from the folder of the working directory.
    pub(super) fn path(&self, name: &str) -> Result<Option<PathBuf>> {
        Ok(self.text(name)?.map(PathBuf::from))
    }

    /// A setting that is text, unless it is given.
    pub(super) fn text_or(&self, given: Option<String>, name: &str) -> Result<Option<String>> {
        given_or(given, || self.text(name))
    }

    /// A setting that is a path, unless it is given.
    pub(super) fn path_or(&self, given: Option<PathBuf>, name: &str) -> Result<Option<PathBuf>> {
        given_or(given, || self.path(name))
    }

    /// A setting that is true or false.
    pub(super) fn switch(&self, name: &str) -> Result<Option<bool>> {
        match self.table.get(name) {
            None => Ok(None),
            Some(Value::Boolean(value)) => Ok(Some(*value)),
            Some(other) => Err(self.wrong(name, "true or false", other)),
        }
    }

    /// The options of the object store.
    pub(super) fn options(&self) -> Result<Vec<(String, String)>> {
        let table = match self.table.get("options") {
            None => return Ok(Vec::new()),
            Some(Value::Table(table)) => table,
            Some(other) => return Err(self.wrong("options", "a table", other)),
        };
        table
            .iter()
            .map(|(name, value)| {
                let text = match value {
                    Value::String(text) => text.clone(),
                    Value::Boolean(value) => value.to_string(),
                    Value::Integer(value) => value.to_string(),
                    Value::Float(value) => value.to_string(),
                    other => {
                        return Err(self.wrong(&format!("options.{name}"), "a plain value", other));
                    }
                };
                Ok((name.clone(), text))
            })
            .collect()
    }

    /// Values may be secrets: no error shows one.
    fn wrong(&self, name: &str, wanted: &str, value: &Value) -> Error {
        Error::invalid(format!(
            "'{name}' in {} is of type {}, not {wanted}",
            self.place,
            value.type_str()
        ))
    }
}

/// What the command line or the environment gives, otherwise what the file has.
pub(super) fn given_or<T>(
    given: Option<T>,
    in_file: impl FnOnce() -> Result<Option<T>>,
) -> Result<Option<T>> {
    match given {
        Some(given) => Ok(Some(given)),
        None => in_file(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 5] = ["bind", "token", "insecure", "tls-key", "options"];

    #[test]
    fn a_file_has_the_names_of_the_command_line() {
        let text =
            "bind = '0.0.0.0:1'\ninsecure = true\n[options]\nallow_http = true\naws_region = 'x'";
        let file = SettingsFile::parse("s.toml".to_string(), text, &NAMES).unwrap();
        assert_eq!(file.text("bind").unwrap().as_deref(), Some("0.0.0.0:1"));
        assert_eq!(file.switch("insecure").unwrap(), Some(true));
        assert_eq!(file.options().unwrap().len(), 2);
        assert_eq!(file.text("token").unwrap(), None);
    }

    #[test]
    fn slips_in_a_file_are_told() {
        for (text, words) in [
            ("bimd = 'x'", ["'bimd'", "'bind'"]),
            ("tls_key = 'x'", ["'tls_key'", "'tls-key'"]),
            ("\nbind = ", ["s.toml:2", "TOML"]),
        ] {
            let error = SettingsFile::parse("s.toml".to_string(), text, &NAMES)
                .unwrap_err()
                .to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
        let file = SettingsFile::parse("s.toml".to_string(), "token = 5", &NAMES).unwrap();
        let error = file.text("token").unwrap_err().to_string();
        assert!(error.contains("token") && !error.contains('5'), "{error}");
    }
}
