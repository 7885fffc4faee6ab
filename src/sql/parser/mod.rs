//! From text to [`Statement`]s.
//!
//! Our own statements are read token by token, everything else by DataFusion's parser. What
//! DataFusion would plan by itself but must not (its own DDL and DML know nothing of our
//! tables) never leaves this module as DataFusion's: a statement that is neither ours nor one that
//! DataFusion may run is an error.
//!
//! Unquoted names are put to lower case. Table versions and hidden columns are moved into the
//! names of tables: see [`names`] and [`relations`].

mod alter;
pub(in crate::sql) mod dialect;
mod dml;
pub(in crate::sql) mod failure;
mod jobs;
mod materialized_views;
mod objects;
pub(in crate::sql) mod reader;
mod refresh;
pub mod relations;
mod split;
mod tables;
mod versions;

use datafusion::sql::parser::Statement as DataFusionStatement;
use datafusion::sql::sqlparser::ast::{self, SetExpr};
use datafusion::sql::sqlparser::tokenizer::{Token, Word};

use self::failure::{Failure, Read};
use self::reader::Reader;
use self::relations::is_hidden_column;
use super::statement::{DropKind, Statement};
use crate::{Error, Result, nearest};

pub use dialect::HeadwaterDialect;
pub use split::{is_complete, split};

/// The first words of statements, for proposals.
const FIRST_WORDS: &[&str] = &[
    "SELECT",
    "WITH",
    "VALUES",
    "CREATE",
    "INSERT",
    "UPDATE",
    "DELETE",
    "TRUNCATE",
    "ALTER",
    "DROP",
    "DESCRIBE",
    "SHOW",
    "OPTIMIZE",
    "VACUUM",
    "RESTORE",
    "REFRESH",
    "PAUSE",
    "RESUME",
    "CANCEL",
    "WAIT",
    "EXPLAIN",
    "COPY",
    "SET",
    "RESET",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "PREPARE",
    "EXECUTE",
    "DEALLOCATE",
];

/// Reads all statements of `text`, which semicolons separate.
///
/// # Errors
///
/// For the first that can't be read: [`ErrorKind::Syntax`](crate::ErrorKind::Syntax) with line
/// and column where the text is not a statement,
/// [`ErrorKind::NotAvailable`](crate::ErrorKind::NotAvailable) where it is one of a later
/// release, [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) where it is refused.
pub fn parse(text: &str) -> Result<Vec<Statement>> {
    statements(text).map_err(|failure| failure.into_error(text))
}

fn statements(text: &str) -> Read<Vec<Statement>> {
    let mut reader = Reader::new(text)?;
    let mut statements = Vec::new();
    loop {
        while reader.eat_token(&Token::SemiColon) {}
        if reader.at_token(&Token::EOF) {
            return Ok(statements);
        }
        let first = reader.parser().index();
        let mut statement = reader.statement()?;
        reader.expect_end("")?;
        let row_ids = reader.names_hidden_columns(first);
        relations::resolve(&mut statement, row_ids)?;
        statements.push(statement);
    }
}

impl Reader {
    fn statement(&mut self) -> Read<Statement> {
        self.refuse_later()?;
        if let Some(statement) = self.materialized_view_statement()? {
            return Ok(statement);
        }
        for (words, or_replace) in [("CREATE", false), ("CREATE OR REPLACE", true)] {
            if self.eat(&format!("{words} TABLE")) {
                let create = self.create_table(or_replace)?;
                return Ok(Statement::CreateTable(Box::new(create)));
            }
            if self.eat(&format!("{words} VIEW")) {
                let create = self.create_view(or_replace)?;
                return Ok(Statement::CreateView(Box::new(create)));
            }
        }
        if self.eat("INSERT") {
            return Ok(Statement::Insert(Box::new(self.insert()?)));
        }
        if self.eat("UPDATE") {
            return Ok(Statement::Update(Box::new(self.update()?)));
        }
        if self.eat("DELETE") {
            return Ok(Statement::Delete(Box::new(self.delete()?)));
        }
        if self.eat("TRUNCATE") {
            return self.truncate();
        }
        if self.eat("ALTER TABLE") {
            return self.alter_table();
        }
        if self.eat("DROP TABLE") {
            return Ok(Statement::Drop(self.drop_objects(DropKind::Table)?));
        }
        if self.eat("DROP VIEW") {
            return Ok(Statement::Drop(self.drop_objects(DropKind::View)?));
        }
        if let Some(statement) = self.job_statement()? {
            return Ok(Statement::Job(statement));
        }
        if (self.at("DESCRIBE") || self.at("DESC")) && !self.query_at_nth(1) {
            self.parser().advance_token();
            return self.describe();
        }
        if self.at("SHOW")
            && let Some(show) = self.show()?
        {
            return Ok(show);
        }
        if self.eat("OPTIMIZE") {
            return self.optimize();
        }
        if let Some(statement) = self.version_statement()? {
            return Ok(statement);
        }
        if self.eat("REFRESH") {
            return Ok(Statement::RefreshColumn(Box::new(self.refresh()?)));
        }
        if self.at("EXPLAIN")
            && let Some(explain) = self.explain()?
        {
            return Ok(explain);
        }
        if let Some(transaction) = self.transaction()? {
            return Ok(transaction);
        }
        self.datafusion_statement()
    }

    /// Whether a query comes at the nth token.
    fn query_at_nth(&self, n: usize) -> bool {
        self.token(n).token == Token::LParen
            || (["SELECT", "WITH", "VALUES"]
                .iter()
                .any(|word| self.at_nth(n, word))
                && !self.at_nth_end(n + 1))
    }

    /// A statement that DataFusion runs by itself.
    fn datafusion_statement(&mut self) -> Read<Statement> {
        let first = self.token(0).clone();
        if let Token::Word(word) = &first.token
            && word.quote_style.is_none()
            && !is_first_word(word)
        {
            let near = nearest(
                &word.value.to_ascii_uppercase(),
                FIRST_WORDS.iter().copied(),
            );
            return match near {
                Some(near) => {
                    self.expected_with_hint("a statement", format!("did you mean {near}?"))
                }
                None => self.expected("a statement"),
            };
        }
        let statement = self.datafusion.parse_statement()?;
        check_datafusion_statement(&statement)?;
        Ok(Statement::DataFusion(Box::new(statement)))
    }

    /// Whether a token from the one at `first` to here names a hidden column.
    fn names_hidden_columns(&self, first: usize) -> bool {
        let parser = &self.datafusion.parser;
        (first..parser.index()).any(|index| match &parser.token_at(index).token {
            Token::Word(word) if word.quote_style.is_some() => is_hidden_column(&word.value),
            Token::Word(word) => is_hidden_column(&word.value.to_ascii_lowercase()),
            _ => false,
        })
    }
}

/// Whether sqlparser knows statements that begin with this word.
fn is_first_word(word: &Word) -> bool {
    FIRST_WORDS
        .iter()
        .chain(&[
            "ANALYZE",
            "ATTACH",
            "CACHE",
            "CALL",
            "COMMENT",
            "DECLARE",
            "DETACH",
            "EXEC",
            "FETCH",
            "FROM",
            "GRANT",
            "INSTALL",
            "KILL",
            "LOAD",
            "LOCK",
            "PRAGMA",
            "RELEASE",
            "REPLACE",
            "REVOKE",
            "SAVEPOINT",
            "UNCACHE",
            "UNLOAD",
            "USE",
            "TABLE",
        ])
        .any(|known| word.value.eq_ignore_ascii_case(known))
}

/// Refuses what DataFusion would plan, or fail to plan, behind our back.
fn check_datafusion_statement(statement: &DataFusionStatement) -> Read<()> {
    match statement {
        DataFusionStatement::Statement(statement) => check_sql_statement(statement),
        DataFusionStatement::Explain(explain) => match explain.statement.as_ref() {
            DataFusionStatement::Statement(inner) => match inner.as_ref() {
                ast::Statement::Query(query) => check_query(query),
                other => Err(Error::not_available(format!("EXPLAIN {}", first_word(other))).into()),
            },
            DataFusionStatement::Explain(_) => {
                Err(Error::invalid("EXPLAIN can't explain an EXPLAIN").into())
            }
            DataFusionStatement::CopyTo(_) => Ok(()),
            DataFusionStatement::CreateExternalTable(_) | DataFusionStatement::Reset(_) => Err(
                Error::invalid("EXPLAIN explains queries, REFRESH and CREATE MATERIALIZED VIEW")
                    .into(),
            ),
        },
        DataFusionStatement::CopyTo(_)
        | DataFusionStatement::CreateExternalTable(_)
        | DataFusionStatement::Reset(_) => Ok(()),
    }
}

fn check_sql_statement(statement: &ast::Statement) -> Read<()> {
    match statement {
        ast::Statement::Query(query) => check_query(query),
        ast::Statement::Explain { statement, .. } => match statement.as_ref() {
            ast::Statement::Query(query) => check_query(query),
            other => Err(unsupported(other)),
        },
        ast::Statement::Prepare { statement, .. } => match statement.as_ref() {
            ast::Statement::Query(query) => check_query(query),
            other => {
                Err(Error::not_available(format!("PREPARE … AS {}", first_word(other))).into())
            }
        },
        ast::Statement::Set(_)
        | ast::Statement::ShowVariable { .. }
        | ast::Statement::ShowFunctions { .. }
        | ast::Statement::Execute { .. }
        | ast::Statement::Deallocate { .. } => Ok(()),
        other => Err(unsupported(other)),
    }
}

/// A query must not change anything: INSERT and the like may stand behind WITH.
fn check_query(query: &ast::Query) -> Read<()> {
    let statement = match query.body.as_ref() {
        SetExpr::Insert(_) => "INSERT",
        SetExpr::Update(_) => "UPDATE",
        SetExpr::Delete(_) => "DELETE",
        SetExpr::Merge(_) => "MERGE",
        _ => return Ok(()),
    };
    Err(
        Error::invalid(format!("WITH can't stand before {statement}"))
            .with_hint(match statement {
                "INSERT" => "write it behind the table: INSERT INTO t WITH … SELECT …",
                _ => "write its query as a subquery in FROM, USING or WHERE",
            })
            .into(),
    )
}

fn unsupported(statement: &ast::Statement) -> Failure {
    Error::invalid(format!("{} is not supported", first_word(statement))).into()
}

fn first_word(statement: &ast::Statement) -> String {
    let text = statement.to_string();
    let mut words = text.split_whitespace();
    let first = words.next().unwrap_or_default();
    match (first, words.next()) {
        // These say too little alone.
        ("CREATE" | "ALTER" | "DROP" | "SHOW", Some(second)) => format!("{first} {second}"),
        _ => first.to_string(),
    }
}

#[cfg(test)]
mod tests;
