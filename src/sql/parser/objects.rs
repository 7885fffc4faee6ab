//! DROP, DESCRIBE, SHOW, OPTIMIZE and transactions, and the statements of later releases.

use datafusion::sql::TableReference;
use datafusion::sql::sqlparser::tokenizer::Token;

use super::failure::Read;
use super::reader::Reader;
use crate::Error;
use crate::sql::options::OptimizeOptions;
use crate::sql::statement::{Drop, DropKind, Show, Statement};

/// Statements that the dialect has, but not this release, by their first words.
/// OR REPLACE after CREATE is skipped.
const LATER: &[&str] = &[
    "CREATE FUNCTION",
    "CREATE TEMPORARY FUNCTION",
    "CREATE ENVIRONMENT",
    "CREATE INDEX",
    "CREATE UNIQUE INDEX",
    "CREATE SCHEMA",
    "CREATE DATABASE",
    "CREATE TEMPORARY TABLE",
    "CREATE TEMP TABLE",
    "CREATE TEMPORARY VIEW",
    "CREATE TEMP VIEW",
    "ALTER SCHEMA",
    "ALTER INDEX",
    "DROP FUNCTION",
    "DROP ENVIRONMENT",
    "DROP INDEX",
    "DROP SCHEMA",
    "DROP DATABASE",
    "SHOW CREATE FUNCTION",
    "SHOW ENVIRONMENTS",
    "SHOW INDEXES",
    "VERIFY ENVIRONMENT",
    "MERGE",
];

/// As [`LATER`], where the last word may also be the name of a table, if nothing follows it.
const LATER_WITH_NAME: &[&str] = &[
    "DESCRIBE FUNCTION",
    "DESCRIBE ENVIRONMENT",
    "DESC FUNCTION",
    "DESC ENVIRONMENT",
    "OPTIMIZE INDEX",
    "PREPARE ENVIRONMENT",
];

impl Reader {
    /// An error if a statement of a later release comes next.
    pub(super) fn refuse_later(&self) -> Read<()> {
        let or_replace = self.at("CREATE OR REPLACE");
        let starts_with = |words: &str| match words.strip_prefix("CREATE ") {
            Some(rest) if or_replace => self.at_nth(3, rest),
            _ => self.at(words),
        };
        let with_name = |words: &str| {
            let n = words.split(' ').count();
            let name_follows = matches!(
                self.token(n).token,
                Token::Word(_) | Token::SingleQuotedString(_)
            );
            self.at(words) && name_follows && !self.at_nth(n, "AS") && !self.at_nth(n, "WITH")
        };
        let later = LATER
            .iter()
            .find(|words| starts_with(words))
            .or_else(|| LATER_WITH_NAME.iter().find(|words| with_name(words)));
        match later {
            Some(words) => Err(Error::not_available(words).into()),
            None => Ok(()),
        }
    }

    /// What comes after DROP TABLE, DROP VIEW or DROP MATERIALIZED VIEW.
    pub(super) fn drop_objects(&mut self, kind: DropKind) -> Read<Drop> {
        let if_exists = self.eat("IF EXISTS");
        let names = self.list(Self::table)?;
        let cascade = self.cascade();
        self.expect_end("',', RESTRICT, CASCADE")?;
        Ok(Drop {
            kind,
            names,
            if_exists,
            cascade,
        })
    }

    /// What comes after DESCRIBE.
    pub(super) fn describe(&mut self) -> Read<Statement> {
        if self.at("HISTORY") && !self.at_nth_end(1) {
            self.expect("HISTORY")?;
            let table = self.table()?;
            self.expect_end("")?;
            return Ok(Statement::Show(Show::Versions { table }));
        }
        for word in ["TABLE", "VIEW"] {
            if self.at(word) && !self.at_nth_end(1) {
                self.expect(word)?;
                break;
            }
        }
        let table = self.table()?;
        self.expect_end("")?;
        Ok(Statement::Describe { table })
    }

    /// What comes after SHOW, where it is ours: the rest is DataFusion's.
    pub(super) fn show(&mut self) -> Read<Option<Statement>> {
        let statement = if self.at_nth(1, "TABLES") {
            self.expect("SHOW TABLES")?;
            if self.at_any(&["LIKE", "ILIKE", "WHERE", "FROM", "IN"]) {
                return Err(Error::invalid("SHOW TABLES takes no filter")
                    .with_hint("SELECT * FROM information_schema.tables WHERE …")
                    .into());
            }
            Statement::Show(Show::Tables)
        } else if self.at_nth(1, "COLUMNS") {
            self.expect("SHOW COLUMNS")?;
            let table = self.listed_table()?;
            let table = match (table, self.eat("FROM") || self.eat("IN")) {
                (TableReference::Bare { table }, true) => {
                    TableReference::partial(self.name()?, table)
                }
                (_, true) => {
                    return Err(Error::invalid("the schema is named twice").into());
                }
                (table, false) => table,
            };
            if self.at_any(&["LIKE", "ILIKE", "WHERE"]) {
                return Err(Error::invalid("SHOW COLUMNS takes no filter")
                    .with_hint("SELECT * FROM information_schema.columns WHERE …")
                    .into());
            }
            Statement::Describe { table }
        } else if self.at_nth(1, "VERSIONS") {
            self.expect("SHOW VERSIONS")?;
            Statement::Show(Show::Versions {
                table: self.listed_table()?,
            })
        } else if self.at_nth(1, "CREATE") {
            self.expect("SHOW CREATE")?;
            if !self.eat("TABLE") && !self.eat("VIEW") {
                return self.expected("TABLE, VIEW or MATERIALIZED VIEW");
            }
            Statement::Show(Show::Create {
                name: self.table()?,
            })
        } else {
            return Ok(None);
        };
        self.expect_end("")?;
        Ok(Some(statement))
    }

    pub(super) fn listed_table(&mut self) -> Read<TableReference> {
        if !self.eat("FROM") && !self.eat("IN") {
            return self.expected("FROM and a table");
        }
        self.table()
    }

    /// What comes after OPTIMIZE.
    pub(super) fn optimize(&mut self) -> Read<Statement> {
        if self.at("TABLE") && !self.at_nth_end(1) {
            self.expect("TABLE")?;
        }
        let table = self.table()?;
        let options = self.with_options()?;
        self.expect_end(if options.is_none() { "WITH (…)" } else { "" })?;
        let options = options.unwrap_or_default();
        OptimizeOptions::read(&options)?;
        Ok(Statement::Optimize { table, options })
    }

    /// BEGIN, START TRANSACTION, COMMIT, ROLLBACK or END, with what may stand after them.
    pub(super) fn transaction(&mut self) -> Read<Option<Statement>> {
        let keyword = if self.eat("START TRANSACTION") {
            "START TRANSACTION"
        } else {
            let words = ["BEGIN", "COMMIT", "ROLLBACK", "END"];
            let Some(word) = words.into_iter().find(|word| self.at(word)) else {
                return Ok(None);
            };
            self.expect(word)?;
            let _ = self.eat("TRANSACTION") || self.eat("WORK");
            word
        };
        if self.at("TO") {
            return Err(Error::invalid(
                "there are no savepoints: each statement commits by itself",
            )
            .into());
        }
        if self.at("AND CHAIN") || self.at("AND NO CHAIN") {
            while !self.at_nth_end(0) {
                self.parser().advance_token();
            }
        } else if keyword == "BEGIN" || keyword == "START TRANSACTION" {
            self.parser().parse_transaction_modes()?;
        }
        self.expect_end("")?;
        Ok(Some(Statement::Transaction {
            keyword: keyword.to_string(),
        }))
    }
}
