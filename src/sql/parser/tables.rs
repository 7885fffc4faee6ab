//! CREATE TABLE, CREATE VIEW, and the columns that they and ALTER TABLE declare.

use datafusion::sql::sqlparser::ast::{ColumnOption, Expr};
use datafusion::sql::sqlparser::tokenizer::Token;

use super::failure::Read;
use super::reader::{Reader, no_duplicates};
use super::relations::is_hidden_column;
use crate::sql::options::CreateTableOptions;
use crate::sql::statement::{ColumnDefinition, CreateTable, CreateView, Generated};
use crate::sql::types;
use crate::{Error, nearest};

/// A column, and whether PRIMARY KEY stood in it.
pub(super) struct DeclaredColumn {
    pub(super) definition: ColumnDefinition,
    pub(super) primary_key: bool,
}

/// A column's definition while its clauses are read.
#[derive(Default)]
struct Clauses {
    not_null: Option<bool>,
    default: Option<Expr>,
    generated: Option<Generated>,
    primary_key: bool,
}

impl Reader {
    /// What comes after CREATE \[OR REPLACE\] TABLE.
    pub(super) fn create_table(&mut self, or_replace: bool) -> Read<CreateTable> {
        let if_not_exists = self.if_not_exists(or_replace)?;
        let name = self.table()?;
        let mut table = CreateTable {
            name,
            if_not_exists,
            or_replace,
            columns: Vec::new(),
            primary_key: Vec::new(),
            query: None,
            options: Vec::new(),
        };
        let has_columns = self.eat_token(&Token::LParen);
        if has_columns {
            self.table_elements(&mut table)?;
        }
        if let Some(options) = self.with_options()? {
            CreateTableOptions::read(&options)?;
            table.options = options;
        }
        if self.eat("AS") {
            table.query = Some(self.query()?);
            self.expect_end("")?;
        } else if !has_columns {
            return self.expected("'(' and the columns, or AS and a query");
        } else {
            let more = if table.options.is_empty() {
                "WITH (…), AS"
            } else {
                "AS"
            };
            self.expect_end(more)?;
        }
        check_columns(&mut table)?;
        Ok(table)
    }

    /// The columns and constraints up to the closing parenthesis.
    fn table_elements(&mut self, table: &mut CreateTable) -> Read<()> {
        loop {
            if self.at("CONSTRAINT") {
                self.expect("CONSTRAINT")?;
                self.name()?;
                if !self.table_constraint(table)? {
                    return self.expected("PRIMARY KEY");
                }
            } else if !self.table_constraint(table)? {
                let column = self.declared_column(true)?;
                if column.primary_key {
                    set_primary_key(table, vec![column.definition.name.clone()])?;
                }
                table.columns.push(column.definition);
            }
            if self.eat_token(&Token::RParen) {
                return Ok(());
            }
            if !self.eat_token(&Token::Comma) {
                return self.expected("',' or ')'");
            }
        }
    }

    /// A constraint of the table, if one comes next.
    fn table_constraint(&mut self, table: &mut CreateTable) -> Read<bool> {
        if self.eat("PRIMARY KEY") {
            let columns = self.names_in_parentheses("column")?;
            set_primary_key(table, columns)?;
            return Ok(true);
        }
        let then_parenthesis = |n: usize| self.token(n).token == Token::LParen;
        if self.at("CHECK") && then_parenthesis(1) {
            return Err(no_check().into());
        }
        if self.at("FOREIGN KEY") {
            return Err(no_foreign_key().into());
        }
        if self.at("UNIQUE")
            && (then_parenthesis(1) || self.at_nth(1, "KEY") || self.at_nth(1, "INDEX"))
        {
            return Err(no_unique().into());
        }
        if self.at("EXCLUDE") && (then_parenthesis(1) || self.at_nth(1, "USING")) {
            return Err(Error::invalid("EXCLUDE constraints are not supported").into());
        }
        if self.at("LIKE") {
            return Err(Error::invalid("CREATE TABLE (LIKE …) is not supported")
                .with_hint("SHOW CREATE TABLE gives the statement that makes a table")
                .into());
        }
        Ok(false)
    }

    /// `name [type] clauses`.
    pub(super) fn declared_column(&mut self, may_be_key: bool) -> Read<DeclaredColumn> {
        let at = self.location();
        let name = self.name()?;
        check_column_name(&name)?;
        let type_left_out = self.at_any(&[
            "GENERATED",
            "AS",
            "NOT",
            "NULL",
            "DEFAULT",
            "PRIMARY",
            "CONSTRAINT",
            "UNIQUE",
            "CHECK",
            "REFERENCES",
        ]) || matches!(
            self.token(0).token,
            Token::Comma | Token::RParen | Token::SemiColon | Token::EOF
        );
        let field = if type_left_out {
            None
        } else {
            Some(types::read(self.parser(), &name, true)?)
        };
        let mut clauses = Clauses::default();
        while self.column_clause(&name, &mut clauses)? {}
        let Clauses {
            not_null,
            default,
            generated,
            primary_key,
        } = clauses;
        if field.is_none() && generated.is_none() {
            return Err(super::failure::Failure::syntax(
                format!("column '{name}' has no type; only a generated column may leave it out"),
                at,
            ));
        }
        if default.is_some() && generated.is_some() {
            return Err(Error::invalid(format!(
                "column '{name}' can't have both DEFAULT and GENERATED ALWAYS AS"
            ))
            .into());
        }
        if primary_key && !may_be_key {
            return Err(no_new_key().into());
        }
        if primary_key && not_null == Some(false) {
            return Err(Error::invalid(format!(
                "column '{name}' is a primary key, so it can't be NULL"
            ))
            .into());
        }
        let nullable = !(primary_key || not_null == Some(true));
        Ok(DeclaredColumn {
            definition: ColumnDefinition {
                field: field.map(|field| field.as_ref().clone().with_nullable(nullable).into()),
                name,
                nullable,
                default,
                generated,
            },
            primary_key,
        })
    }

    /// One clause of a column, if one comes next.
    fn column_clause(&mut self, column: &str, clauses: &mut Clauses) -> Read<bool> {
        let twice =
            |clause: &str| Error::invalid(format!("{clause} is given twice for column '{column}'"));
        if self.at("CONSTRAINT") {
            self.expect("CONSTRAINT")?;
            self.name()?;
        }
        if self.at("NOT NULL") || self.at("NULL") {
            let not_null = self.eat("NOT");
            self.expect("NULL")?;
            if clauses.not_null.replace(not_null).is_some() {
                return Err(twice("NULL or NOT NULL").into());
            }
        } else if self.at("DEFAULT") {
            let default = self.column_default()?;
            if clauses.default.replace(default).is_some() {
                return Err(twice("DEFAULT").into());
            }
        } else if self.at("PRIMARY") {
            self.expect("PRIMARY KEY")?;
            if std::mem::replace(&mut clauses.primary_key, true) {
                return Err(twice("PRIMARY KEY").into());
            }
        } else if self.at("GENERATED") || self.at("AS") {
            let generated = self.generated(column)?;
            if clauses.generated.replace(generated).is_some() {
                return Err(twice("GENERATED").into());
            }
        } else if self.at("UNIQUE") {
            return Err(no_unique().into());
        } else if self.at("CHECK") {
            return Err(no_check().into());
        } else if self.at("REFERENCES") {
            return Err(no_foreign_key().into());
        } else if self.at_any(&["AUTO_INCREMENT", "AUTOINCREMENT", "IDENTITY"]) {
            return Err(no_identity(column).into());
        } else if self.at("COLLATE") {
            return Err(
                Error::invalid("COLLATE is not supported: text is ordered by its bytes").into(),
            );
        } else if self.at("COMMENT") {
            return Err(Error::invalid("COMMENT is not supported").into());
        } else if self.at_any(&["FIRST", "AFTER"]) {
            return Err(
                Error::invalid("a column can't be given a place: new ones come last").into(),
            );
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// `DEFAULT expression`. Read as sqlparser reads a column's, because elsewhere
    /// `0 NOT NULL` is an expression.
    fn column_default(&mut self) -> Read<Expr> {
        match self.parser().parse_optional_column_option()? {
            Some(ColumnOption::Default(default)) => Ok(default),
            _ => self.expected("DEFAULT and an expression"),
        }
    }

    /// `GENERATED ALWAYS AS (expression) [STORED | VIRTUAL]`, or `AS (expression) …`.
    fn generated(&mut self, column: &str) -> Read<Generated> {
        if self.eat("GENERATED") {
            if self.at("BY DEFAULT") {
                return Err(no_identity(column).into());
            }
            self.expect("ALWAYS")?;
        }
        self.expect("AS")?;
        if self.at("IDENTITY") {
            return Err(no_identity(column).into());
        }
        let expression = self.column_expression()?;
        let is_virtual = self.eat("VIRTUAL");
        if !is_virtual {
            self.eat("STORED");
        }
        Ok(Generated {
            expression,
            is_virtual,
        })
    }

    /// What comes after CREATE \[OR REPLACE\] VIEW.
    pub(super) fn create_view(&mut self, or_replace: bool) -> Read<CreateView> {
        let if_not_exists = self.if_not_exists(or_replace)?;
        let name = self.table()?;
        let columns = if self.at_token(&Token::LParen) {
            self.names_in_parentheses("column")?
        } else {
            Vec::new()
        };
        if self.at("WITH") {
            return Err(Error::invalid("a view has no options; a materialized view has").into());
        }
        if !self.eat("AS") {
            return self.expected("AS and a query");
        }
        let query = self.query()?;
        self.expect_end("")?;
        Ok(CreateView {
            name,
            or_replace,
            if_not_exists,
            columns,
            query,
        })
    }

    pub(super) fn if_not_exists(&mut self, or_replace: bool) -> Read<bool> {
        let if_not_exists = self.eat("IF NOT EXISTS");
        if if_not_exists && or_replace {
            return Err(
                Error::invalid("OR REPLACE and IF NOT EXISTS contradict each other").into(),
            );
        }
        Ok(if_not_exists)
    }
}

fn set_primary_key(table: &mut CreateTable, columns: Vec<String>) -> Result<(), Error> {
    if !table.primary_key.is_empty() {
        return Err(Error::invalid("a table has one PRIMARY KEY")
            .with_hint("write PRIMARY KEY (a, b) for a key of several columns"));
    }
    table.primary_key = columns;
    Ok(())
}

/// What can be said of the columns without a database. Columns of the key are not NULL.
fn check_columns(table: &mut CreateTable) -> Result<(), Error> {
    no_duplicates(table.columns.iter().map(|column| &column.name), "column")?;
    for column in &mut table.columns {
        if table.primary_key.contains(&column.name) {
            column.nullable = false;
            if let Some(field) = column.field.take() {
                column.field = Some(field.as_ref().clone().with_nullable(false).into());
            }
        }
    }
    for key in &table.primary_key {
        let names = || table.columns.iter().map(|column| column.name.as_str());
        // With a query, the key may name columns that come from it.
        if table.query.is_none() && !names().any(|name| name == key) {
            let error = Error::invalid(format!(
                "PRIMARY KEY names '{key}', which is not a column of the table"
            ));
            return Err(match nearest(key, names()) {
                Some(near) => error.with_hint(format!("did you mean '{near}'?")),
                None => error,
            });
        }
    }
    Ok(())
}

/// Names of columns that every table has already.
pub(super) fn check_column_name(name: &str) -> Result<(), Error> {
    if is_hidden_column(name) {
        return Err(Error::invalid(format!(
            "'{name}' is a column that every table has; choose another name"
        )));
    }
    Ok(())
}

fn no_check() -> Error {
    Error::invalid("CHECK is not supported: other tools write to the tables without checking it")
}

fn no_foreign_key() -> Error {
    Error::invalid("FOREIGN KEY and REFERENCES are not supported")
}

fn no_unique() -> Error {
    Error::invalid("UNIQUE is not supported")
        .with_hint("PRIMARY KEY declares a key, which MERGE checks")
}

fn no_new_key() -> Error {
    Error::invalid("the PRIMARY KEY is declared with CREATE TABLE and can't be added later")
}

fn no_identity(column: &str) -> Error {
    Error::invalid(format!(
        "column '{column}': identity columns are not supported"
    ))
    .with_hint("every row has an id already: SELECT _rowid")
}
