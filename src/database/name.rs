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

/// A table as a statement wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableName<'a> {
    /// Its name in the database.
    pub name: &'a str,
    /// The version to read; `None` for the newest.
    pub version: Option<u64>,
    /// Whether `_rowid` and `_rowaddr` are columns of it.
    pub row_ids: bool,
}

impl<'a> TableName<'a> {
    /// Takes a name apart.
    pub fn parse(text: &'a str) -> Self {
        let (text, row_ids) = match text.strip_suffix(ROW_IDS) {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let versioned = text.rsplit_once(VERSION).and_then(|(name, version)| {
            version.parse::<u64>().ok().map(|version| (name, version))
        });
        match versioned {
            Some((name, version)) => Self {
                name,
                version: Some(version),
                row_ids,
            },
            None => Self {
                name: text,
                version: None,
                row_ids,
            },
        }
    }
}

impl fmt::Display for TableName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        if let Some(version) = self.version {
            write!(f, "{VERSION}{version}")?;
        }
        if self.row_ids {
            f.write_str(ROW_IDS)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_a_round_trip() {
        for (version, row_ids) in [(None, false), (Some(7), false), (None, true), (Some(7), true)] {
            let name = TableName {
                name: "t VERSION AS OF x",
                version,
                row_ids,
            };
            assert_eq!(TableName::parse(&name.to_string()), name);
        }
    }
}
