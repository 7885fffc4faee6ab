//! Names that say more than which table: which version of it, and whether with row ids.
//!
//! DataFusion resolves tables by name alone. So `t VERSION AS OF 5` becomes the one quoted
//! name `"t VERSION AS OF 5"`, which the catalog takes apart again. The schema and the
//! catalog stay parts of their own: `s.t VERSION AS OF 5` is `s."t VERSION AS OF 5"`.

const VERSION: &str = " VERSION AS OF ";
const ROW_IDS: &str = " WITH ROW IDS";

/// What the last part of a table's name in a query asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParsedTableName<'a> {
    /// The table's own name.
    pub name: &'a str,
    /// The version to read; `None` for the newest.
    pub version: Option<u64>,
    /// Whether the columns `_rowid` and `_rowaddr` come after the table's own.
    pub row_ids: bool,
}

impl std::fmt::Display for ParsedTableName<'_> {
    /// The name that [`parse_table_name`] takes apart.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
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

/// Takes apart the last part of a table's name: `t`, `t VERSION AS OF 5`, `t WITH ROW IDS`
/// or `t VERSION AS OF 5 WITH ROW IDS`, spelled exactly so.
pub fn parse_table_name(name: &str) -> ParsedTableName<'_> {
    let (name, row_ids) = match name.strip_suffix(ROW_IDS) {
        Some(name) if !name.is_empty() => (name, true),
        _ => (name, false),
    };
    match parse_versioned_name(name) {
        Some((name, version)) => ParsedTableName {
            name,
            version: Some(version),
            row_ids,
        },
        None => ParsedTableName {
            name,
            version: None,
            row_ids,
        },
    }
}

/// Takes apart `t VERSION AS OF 5`, spelled exactly so; `None` for other names.
pub fn parse_versioned_name(name: &str) -> Option<(&str, u64)> {
    let (name, version) = name.rsplit_once(VERSION)?;
    let digits = !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit());
    (digits && !name.is_empty()).then_some(())?;
    Some((name, version.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart_and_put_together() {
        for (text, name, version, row_ids) in [
            ("t", "t", None, false),
            ("t VERSION AS OF 5", "t", Some(5), false),
            ("t WITH ROW IDS", "t", None, true),
            ("t VERSION AS OF 5 WITH ROW IDS", "t", Some(5), true),
            ("T a.b VERSION AS OF 0", "T a.b", Some(0), false),
            (
                "t VERSION AS OF 1 VERSION AS OF 2",
                "t VERSION AS OF 1",
                Some(2),
                false,
            ),
            ("t version as of 5", "t version as of 5", None, false),
            ("t VERSION AS OF x", "t VERSION AS OF x", None, false),
            ("t VERSION AS OF +5", "t VERSION AS OF +5", None, false),
            (" VERSION AS OF 5", " VERSION AS OF 5", None, false),
            (" WITH ROW IDS", " WITH ROW IDS", None, false),
            ("", "", None, false),
        ] {
            let parsed = parse_table_name(text);
            assert_eq!(
                parsed,
                ParsedTableName {
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
            parse_versioned_name("t VERSION AS OF 18446744073709551615"),
            Some(("t", u64::MAX))
        );
        assert_eq!(
            parse_versioned_name("t VERSION AS OF 18446744073709551616"),
            None
        );
        assert_eq!(parse_versioned_name("t WITH ROW IDS"), None);
    }
}
