//! VACUUM, tags and RESTORE: the statements about versions of a table; and what names a version.

use datafusion::sql::TableReference;
use datafusion::sql::sqlparser::ast::{Expr, TableVersion, Value};
use datafusion::sql::sqlparser::tokenizer::Token;

use super::failure::Read;
use super::reader::Reader;
use crate::database::name::{Version, is_tag};
use crate::sql::statement::{CreateTag, DropTag, Statement, Vacuum};
use crate::{Error, Result};

/// RETAIN takes at most so many hours: a century.
const MAX_RETAIN_HOURS: u64 = 100 * 366 * 24;

impl Reader {
    /// A statement about versions, if one comes next.
    pub(super) fn version_statement(&mut self) -> Read<Option<Statement>> {
        for (words, or_replace) in [("CREATE TAG", false), ("CREATE OR REPLACE TAG", true)] {
            if self.eat(words) {
                return Ok(Some(Statement::CreateTag(self.create_tag(or_replace)?)));
            }
        }
        if self.eat("DROP TAG") {
            return Ok(Some(Statement::DropTag(self.drop_tag()?)));
        }
        if self.eat("SHOW TAGS") {
            let table = self.listed_table()?;
            self.expect_end("")?;
            return Ok(Some(Statement::ShowTags { table }));
        }
        if self.eat("VACUUM") {
            return Ok(Some(Statement::Vacuum(self.vacuum()?)));
        }
        if self.eat("RESTORE") {
            return Ok(Some(self.restore()?));
        }
        Ok(None)
    }

    /// What comes after CREATE \[OR REPLACE\] TAG.
    fn create_tag(&mut self, or_replace: bool) -> Read<CreateTag> {
        let if_not_exists = self.if_not_exists(or_replace)?;
        let tag = self.tag()?;
        let table = self.tagged_table()?;
        let version = match self.at("VERSION") || self.at("TIMESTAMP AS OF") {
            true => Some(self.version_clause()?),
            false => None,
        };
        self.expect_end(if version.is_none() {
            "VERSION AS OF"
        } else {
            ""
        })?;
        Ok(CreateTag {
            tag,
            table,
            version,
            or_replace,
            if_not_exists,
        })
    }

    /// What comes after DROP TAG.
    fn drop_tag(&mut self) -> Read<DropTag> {
        let if_exists = self.eat("IF EXISTS");
        let tag = self.tag()?;
        let table = self.tagged_table()?;
        self.expect_end("")?;
        Ok(DropTag {
            tag,
            table,
            if_exists,
        })
    }

    /// The name of a tag, in single quotes.
    fn tag(&mut self) -> Read<String> {
        match self.token(0).token.clone() {
            Token::SingleQuotedString(tag) => {
                self.parser().advance_token();
                Ok(checked_tag(&tag)?)
            }
            Token::Word(word) => self.expected_with_hint(
                "the name of a tag",
                format!("write '{}': a tag stands in single quotes", word.value),
            ),
            _ => self.expected("the name of a tag in single quotes"),
        }
    }

    /// ON and a table.
    fn tagged_table(&mut self) -> Read<TableReference> {
        if !self.eat("ON") {
            return self.expected("ON and a table");
        }
        self.named_table()
    }

    /// A table, with or without the word TABLE before it.
    fn named_table(&mut self) -> Read<TableReference> {
        if self.at("TABLE") && !self.at_nth_end(1) {
            self.expect("TABLE")?;
        }
        self.table()
    }

    /// VERSION AS OF, and a number or a tag.
    fn version_clause(&mut self) -> Read<Version> {
        if self.at("TIMESTAMP AS OF") {
            return Err(Error::not_available("TIMESTAMP AS OF").into());
        }
        self.expect("VERSION AS OF")?;
        match self.token(0).token.clone() {
            Token::Number(token, false) => {
                self.parser().advance_token();
                Ok(version_of(&token)?)
            }
            _ => self.expected("the number of a version, or a tag in single quotes"),
        }
    }

    /// The number of a version, or a tag in single quotes.
    pub(super) fn version(&mut self) -> Read<Version> {
        let version = match &self.token(0).token {
            Token::Number(number, false) => version_of(number)?,
            Token::SingleQuotedString(tag) => Version::Tag(checked_tag(tag)?),
            _ => return self.expected("the number of a version, or a tag in single quotes"),
        };
        self.parser().advance_token();
        Ok(version)
    }

    /// What comes after VACUUM.
    fn vacuum(&mut self) -> Read<Vacuum> {
        let mut vacuum = Vacuum {
            table: self.named_table()?,
            retain_hours: None,
            dry_run: false,
        };
        loop {
            if self.at("RETAIN") {
                if vacuum.retain_hours.is_some() {
                    return Err(Error::invalid("RETAIN stands twice").into());
                }
                self.expect("RETAIN")?;
                vacuum.retain_hours = Some(self.retention()?);
            } else if self.at("DRY RUN") {
                if vacuum.dry_run {
                    return Err(Error::invalid("DRY RUN stands twice").into());
                }
                self.expect("DRY RUN")?;
                vacuum.dry_run = true;
            } else {
                break;
            }
        }
        self.expect_end(match (vacuum.retain_hours, vacuum.dry_run) {
            (None, false) => "RETAIN, DRY RUN",
            (None, true) => "RETAIN",
            (Some(_), false) => "DRY RUN",
            (Some(_), true) => "",
        })?;
        Ok(vacuum)
    }

    /// A number of hours or days, in hours.
    fn retention(&mut self) -> Read<u64> {
        let wrong = |found: &str| {
            Error::invalid(format!(
                "RETAIN takes a whole number of hours or days, from 0 to {MAX_RETAIN_HOURS} hours, not {found}"
            ))
            .with_hint("RETAIN 168 HOURS keeps the versions of the last week")
        };
        let negative = self.eat_token(&Token::Minus);
        let number = match self.token(0).token.clone() {
            Token::Number(number, false) if tag_in_quotes(&number).is_none() => number,
            _ => return self.expected("a number of HOURS or DAYS"),
        };
        self.parser().advance_token();
        let hours = if self.eat("HOURS") || self.eat("HOUR") {
            1
        } else if self.eat("DAYS") || self.eat("DAY") {
            24
        } else {
            return self.expected("HOURS or DAYS");
        };
        if negative {
            return Err(wrong(&format!("-{number}")).into());
        }
        number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(hours))
            .filter(|hours| *hours <= MAX_RETAIN_HOURS)
            .ok_or_else(|| wrong(&number).into())
    }

    /// What comes after RESTORE.
    fn restore(&mut self) -> Read<Statement> {
        let table = self.named_table()?;
        if !self.eat("TO") && !self.at("VERSION") && !self.at("TIMESTAMP") {
            return self.expected("TO VERSION AS OF");
        }
        let version = self.version_clause()?;
        self.expect_end("")?;
        Ok(Statement::Restore { table, version })
    }
}

/// What VERSION AS OF says of the version.
pub(super) fn read_version(version: TableVersion) -> Result<Version> {
    match version {
        TableVersion::VersionAsOf(Expr::Value(value)) => match &value.value {
            Value::Number(number, false) => version_of(number),
            other => Err(not_a_version(&other.to_string())),
        },
        TableVersion::VersionAsOf(other) => Err(not_a_version(&other.to_string())),
        TableVersion::TimestampAsOf(_) => Err(Error::not_available("TIMESTAMP AS OF")),
        TableVersion::ForSystemTimeAsOf(_) => Err(Error::not_available("FOR SYSTEM_TIME AS OF")),
        TableVersion::Function(_) => Err(Error::not_available("AT or BEFORE after a table")),
        TableVersion::Changes { .. } => Err(Error::not_available("CHANGES after a table")),
    }
}

/// The version that a token says: a number, or a tag in its quotes.
fn version_of(token: &str) -> Result<Version> {
    match tag_in_quotes(token) {
        Some(tag) => Ok(Version::Tag(checked_tag(tag)?)),
        None => match token.parse() {
            Ok(number) => Ok(Version::Number(number)),
            Err(_) => Err(not_a_version(token)),
        },
    }
}

/// The tag in a number token that the reader made of one.
fn tag_in_quotes(token: &str) -> Option<&str> {
    token.strip_prefix('\'')?.strip_suffix('\'')
}

/// `tag`, if it can be the name of one.
fn checked_tag(tag: &str) -> Result<String> {
    match is_tag(tag) {
        true => Ok(tag.to_string()),
        false => Err(
            Error::invalid(format!("'{tag}' can't be the name of a tag")).with_hint(
                "use letters, digits, '_', '-' and single dots, not beginning or ending with a dot",
            ),
        ),
    }
}

fn not_a_version(found: &str) -> Error {
    Error::invalid(format!(
        "VERSION AS OF takes the number of a version, or a tag in quotes, not {found}"
    ))
    .with_hint("SHOW VERSIONS FROM the table lists them")
}
