//! INSERT, UPDATE, DELETE and TRUNCATE.

use datafusion::sql::TableReference;
use datafusion::sql::sqlparser::ast::{Expr, Query, SetExpr, TableWithJoins};
use datafusion::sql::sqlparser::tokenizer::Token;

use super::failure::Read;
use super::reader::{Reader, no_duplicates};
use crate::Error;
use crate::sql::statement::{Delete, Insert, Statement, Update};

impl Reader {
    /// What comes after INSERT.
    pub(super) fn insert(&mut self) -> Read<Insert> {
        if self.at("OVERWRITE") {
            return Err(Error::invalid("INSERT OVERWRITE is not supported")
                .with_hint("write TRUNCATE and INSERT, or CREATE OR REPLACE TABLE … AS")
                .into());
        }
        if self.at_any(&["OR", "IGNORE"]) {
            return Err(no_upsert("INSERT OR … and INSERT IGNORE").into());
        }
        self.expect("INTO")?;
        if self.at("TABLE") && matches!(self.token(1).token, Token::Word(_)) {
            self.expect("TABLE")?;
        }
        let table = self.table()?;
        if self.at("OVERWRITE") {
            return Err(Error::invalid("INSERT OVERWRITE is not supported").into());
        }
        let columns = if self.at_token(&Token::LParen) && !self.query_in_parentheses() {
            self.names_in_parentheses("column")?
        } else {
            Vec::new()
        };
        let query = if self.eat("DEFAULT VALUES") {
            if !columns.is_empty() {
                return Err(Error::invalid("DEFAULT VALUES takes no list of columns").into());
            }
            None
        } else if self.at_any(&["SELECT", "VALUES", "VALUE", "WITH", "TABLE", "FROM"])
            || self.at_token(&Token::LParen)
        {
            let mut query = self.query()?;
            mark_defaults(&mut query);
            Some(query)
        } else {
            let mut expected = "VALUES, DEFAULT VALUES or a query".to_string();
            if columns.is_empty() {
                expected.insert_str(0, "a list of columns, ");
            }
            return self.expected(&expected);
        };
        if self.at("ON") {
            return Err(no_upsert("ON CONFLICT and ON DUPLICATE KEY").into());
        }
        self.refuse_returning()?;
        self.expect_end("")?;
        Ok(Insert {
            table,
            columns,
            query,
        })
    }

    /// Whether the parentheses that come next hold a query, not a list of columns.
    fn query_in_parentheses(&self) -> bool {
        let mut n = 1;
        while self.token(n).token == Token::LParen {
            n += 1;
        }
        ["SELECT", "VALUES", "WITH"]
            .iter()
            .any(|word| self.at_nth(n, word))
            // A column may have such a name.
            && !matches!(self.token(n + 1).token, Token::Comma | Token::RParen)
    }

    /// What comes after UPDATE.
    pub(super) fn update(&mut self) -> Read<Update> {
        let (table, alias) = self.target("UPDATE", &["SET", "FROM"])?;
        let mut from = Vec::new();
        if self.eat("FROM") {
            from = self.tables()?;
        }
        self.expect("SET")?;
        let assignments = self
            .list(|reader| reader.assignment(&table, alias.as_deref()))?
            .concat();
        no_duplicates(assignments.iter().map(|(column, _)| column), "column")?;
        if self.at("FROM") {
            if !from.is_empty() {
                return Err(Error::invalid("UPDATE takes one FROM").into());
            }
            self.expect("FROM")?;
            from = self.tables()?;
        }
        let selection = self.where_clause()?;
        self.refuse_order_and_limit("UPDATE")?;
        self.refuse_returning()?;
        let more = if selection.is_some() {
            "an operator"
        } else if from.is_empty() {
            "',', FROM, WHERE"
        } else {
            "WHERE"
        };
        self.expect_end(more)?;
        Ok(Update {
            table,
            alias,
            assignments,
            from,
            selection,
        })
    }

    /// What comes after DELETE.
    pub(super) fn delete(&mut self) -> Read<Delete> {
        self.expect("FROM")?;
        let (table, alias) = self.target("DELETE", &["USING", "WHERE"])?;
        let using = if self.eat("USING") {
            self.tables()?
        } else {
            Vec::new()
        };
        let selection = self.where_clause()?;
        self.refuse_order_and_limit("DELETE")?;
        self.refuse_returning()?;
        let more = if selection.is_some() {
            "an operator"
        } else if using.is_empty() {
            "USING, WHERE"
        } else {
            "WHERE"
        };
        self.expect_end(more)?;
        Ok(Delete {
            table,
            alias,
            using,
            selection,
        })
    }

    /// What comes after TRUNCATE.
    pub(super) fn truncate(&mut self) -> Read<Statement> {
        if self.at("TABLE") && !self.at_nth_end(1) {
            self.expect("TABLE")?;
        }
        let table = self.table()?;
        if self.at_token(&Token::Comma) {
            return Err(Error::invalid(
                "TRUNCATE takes one table: each statement commits by itself",
            )
            .into());
        }
        self.expect_end("")?;
        Ok(Statement::Truncate { table })
    }

    /// The table that a statement changes, and what it is called there.
    fn target(&mut self, statement: &str, next: &[&str]) -> Read<(TableReference, Option<String>)> {
        let table = self.table()?;
        if self.at("VERSION AS OF") || self.at("TIMESTAMP AS OF") {
            return Err(Error::invalid(format!(
                "{statement} changes the newest version of a table; older ones can't be changed"
            ))
            .into());
        }
        if self.at_any(&["JOIN", "INNER", "LEFT", "RIGHT", "FULL", "CROSS"])
            || self.at_token(&Token::Comma)
        {
            let clause = if statement == "UPDATE" {
                "FROM"
            } else {
                "USING"
            };
            return Err(Error::invalid(format!("{statement} changes one table"))
                .with_hint(format!("name the others after {clause}"))
                .into());
        }
        let alias_follows = matches!(self.token(0).token, Token::Word(_))
            && !self.at_any(next)
            && !self.at_any(&["WHERE", "SET", "ORDER", "LIMIT", "RETURNING"]);
        let alias = if self.eat("AS") || alias_follows {
            Some(self.name()?)
        } else {
            None
        };
        Ok((table, alias))
    }

    fn tables(&mut self) -> Read<Vec<TableWithJoins>> {
        self.list(|reader| Ok(reader.parser().parse_table_and_joins()?))
    }

    pub(super) fn where_clause(&mut self) -> Read<Option<Expr>> {
        if self.eat("WHERE") {
            Ok(Some(self.expression()?))
        } else {
            Ok(None)
        }
    }

    /// `c = value`, or `(c, d) = (value, value)`.
    fn assignment(
        &mut self,
        table: &TableReference,
        alias: Option<&str>,
    ) -> Read<Vec<(String, Expr)>> {
        if self.eat_token(&Token::LParen) {
            let columns = self.list(|reader| reader.assigned_column(table, alias))?;
            self.expect_token(&Token::RParen)?;
            self.expect_token(&Token::Eq)?;
            let mut values = match self.expression()? {
                Expr::Tuple(values) => values,
                Expr::Nested(value) if columns.len() == 1 => vec![*value],
                _ => return Err(Error::invalid("a list of columns is set to a list of values in parentheses")
                    .with_hint("for values of a query, name it after FROM: UPDATE t SET a = s.a, b = s.b FROM (SELECT …) AS s")
                    .into()),
            };
            if values.len() != columns.len() {
                return Err(Error::invalid(format!(
                    "{} columns are set to {} values",
                    columns.len(),
                    values.len()
                ))
                .into());
            }
            values.iter_mut().for_each(mark_default);
            return Ok(columns.into_iter().zip(values).collect());
        }
        let column = self.assigned_column(table, alias)?;
        self.expect_token(&Token::Eq)?;
        let mut value = self.expression()?;
        mark_default(&mut value);
        Ok(vec![(column, value)])
    }

    /// `c`, or `t.c` of the table that is changed.
    fn assigned_column(&mut self, table: &TableReference, alias: Option<&str>) -> Read<String> {
        let first = self.name()?;
        if !self.eat_token(&Token::Period) {
            return Ok(first);
        }
        let column = self.name()?;
        if first != alias.unwrap_or(table.table()) || self.at_token(&Token::Period) {
            return Err(Error::invalid(format!(
                "SET names the columns of '{table}'; '{first}.{column}' is not one"
            ))
            .with_hint("a field of a struct is set with the whole struct")
            .into());
        }
        Ok(column)
    }

    fn refuse_order_and_limit(&self, statement: &str) -> Read<()> {
        if self.at("ORDER BY") || self.at("LIMIT") {
            return Err(Error::invalid(format!(
                "ORDER BY and LIMIT are not supported in {statement}"
            ))
            .with_hint("choose the rows in WHERE: … WHERE _rowid IN (SELECT _rowid FROM … ORDER BY … LIMIT …)")
            .into());
        }
        Ok(())
    }

    fn refuse_returning(&self) -> Read<()> {
        if self.at("RETURNING") {
            return Err(Error::invalid("RETURNING is not supported").into());
        }
        Ok(())
    }
}

fn no_upsert(what: &str) -> Error {
    Error::invalid(format!("{what} are not supported"))
        .with_hint("INSERT … SELECT … WHERE NOT EXISTS (…) leaves out the rows that are there")
}

/// Spells the defaults in the rows of VALUES as one identifier, `DEFAULT`.
fn mark_defaults(query: &mut Query) {
    if let SetExpr::Values(values) = query.body.as_mut() {
        for row in &mut values.rows {
            row.content.iter_mut().for_each(mark_default);
        }
    }
}

fn mark_default(value: &mut Expr) {
    if let Expr::Identifier(ident) = value
        && ident.quote_style.is_none()
        && ident.value.eq_ignore_ascii_case("DEFAULT")
    {
        ident.value = "DEFAULT".to_string();
    }
}
