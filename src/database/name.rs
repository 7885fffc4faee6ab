//! Names under which a statement may ask the catalog for a table.
//!
//! DataFusion resolves a table by its name alone. What a statement says of the
//! version it wants, and whether it speaks of `_rowid` or `_rowaddr` (which are
//! columns only then, so that `*` leaves them out), therefore travels in the
//! name: `t VERSION AS OF 5 WITH ROW IDS`. No table can have such a name, since
//! names that contain these words are refused when a table is made.

use std::fmt;

const VERSION: &str = " VERSION AS OF ";
const ROW_IDS: &str = " WITH ROW IDS";

/// What VERSION AS OF says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Version {
    /// The number of a version.
    Number(u64),
    /// The tag that is on one.
    Tag(String),
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Tag(tag) => write!(f, "'{tag}'"),
        }
    }
}

/// A table as a statement wants it. Its version is said by a `V`: where a version that is known is
/// put into a name, that may be its number alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableName<'a, V = Version> {
    /// Its name in the database.
    pub name: &'a str,
    /// The version to read; `None` for the newest.
    pub version: Option<V>,
    /// Whether `_rowid` and `_rowaddr` are columns of it.
    pub row_ids: bool,
}

impl<'a> TableName<'a> {
    /// Takes a name apart; words that are not spelled exactly so belong to the name.
    pub fn parse(text: &'a str) -> Self {
        let (text, row_ids) = match text.strip_suffix(ROW_IDS) {
            Some(rest) if !rest.is_empty() => (rest, true),
            _ => (text, false),
        };
        let (name, version) = match versioned(text) {
            Some((name, version)) => (name, Some(version)),
            None => (text, None),
        };
        Self {
            name,
            version,
            row_ids,
        }
    }
}

impl<V: fmt::Display> fmt::Display for TableName<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        if let Some(version) = &self.version {
            write!(f, "{VERSION}{version}")?;
        }
        if self.row_ids {
            f.write_str(ROW_IDS)?;
        }
        Ok(())
    }
}

/// Takes `t VERSION AS OF 5` or `t VERSION AS OF 'v1'` apart; `None` for other names.
fn versioned(name: &str) -> Option<(&str, Version)> {
    let (name, version) = name.rsplit_once(VERSION)?;
    if name.is_empty() || version.is_empty() {
        return None;
    }
    if version.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some((name, Version::Number(version.parse().ok()?)));
    }
    let tag = version.strip_prefix('\'')?.strip_suffix('\'')?;
    is_tag(tag).then(|| (name, Version::Tag(tag.to_string())))
}

/// Whether a tag may have this name: it becomes a file name.
pub fn is_tag(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 200
        && !name.starts_with('.')
        && !name.ends_with('.')
        && !name.ends_with(".lock")
        && !name.contains("..")
        && name
            .chars()
            .all(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(number: u64) -> Option<Version> {
        Some(Version::Number(number))
    }

    fn tag(tag: &str) -> Option<Version> {
        Some(Version::Tag(tag.to_string()))
    }

    #[test]
    fn names_are_taken_apart_and_put_together() {
        for (text, name, version, row_ids) in [
            ("t", "t", None, false),
            ("t VERSION AS OF 5", "t", number(5), false),
            ("t WITH ROW IDS", "t", None, true),
            ("t VERSION AS OF 5 WITH ROW IDS", "t", number(5), true),
            (
                "t VERSION AS OF 'v1.0' WITH ROW IDS",
                "t",
                tag("v1.0"),
                true,
            ),
            ("t VERSION AS OF '5'", "t", tag("5"), false),
            ("T a.b VERSION AS OF 0", "T a.b", number(0), false),
            (
                "t VERSION AS OF 1 VERSION AS OF 2",
                "t VERSION AS OF 1",
                number(2),
                false,
            ),
            ("t version as of 5", "t version as of 5", None, false),
            ("t VERSION AS OF x", "t VERSION AS OF x", None, false),
            ("t VERSION AS OF +5", "t VERSION AS OF +5", None, false),
            ("t VERSION AS OF ''", "t VERSION AS OF ''", None, false),
            (
                "t VERSION AS OF 'a b'",
                "t VERSION AS OF 'a b'",
                None,
                false,
            ),
            (" VERSION AS OF 5", " VERSION AS OF 5", None, false),
            (" WITH ROW IDS", " WITH ROW IDS", None, false),
            ("", "", None, false),
        ] {
            let parsed = TableName::parse(text);
            assert_eq!(
                parsed,
                TableName {
                    name,
                    version,
                    row_ids
                }
            );
            assert_eq!(parsed.to_string(), text);
        }
    }

    #[test]
    fn a_version_is_a_number_of_64_bits() {
        assert_eq!(
            versioned("t VERSION AS OF 18446744073709551615"),
            Some(("t", Version::Number(u64::MAX)))
        );
        assert_eq!(versioned("t VERSION AS OF 18446744073709551616"), None);
        assert_eq!(versioned("t WITH ROW IDS"), None);
    }
}
