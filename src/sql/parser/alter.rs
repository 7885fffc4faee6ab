//! ALTER TABLE.

use datafusion::sql::TableReference;
use datafusion::sql::sqlparser::tokenizer::Token;

use super::failure::Read;
use super::reader::Reader;
use super::tables::check_column_name;
use crate::Error;
use crate::sql::statement::{AlterAction, AlterTable, Statement};
use crate::sql::types;

impl Reader {
    /// What comes after ALTER TABLE.
    pub(super) fn alter_table(&mut self) -> Read<Statement> {
        let if_exists = self.eat("IF EXISTS");
        let table = self.table()?;
        if self.at("MATERIALIZE") {
            if if_exists {
                return Err(Error::invalid("MATERIALIZE COLUMN does not go with IF EXISTS").into());
            }
            return self.materialize_columns(table);
        }
        let actions = self.list(Self::alter_action)?;
        self.expect_end("','")?;
        Ok(Statement::AlterTable(Box::new(AlterTable {
            table,
            if_exists,
            actions,
        })))
    }

    /// `MATERIALIZE COLUMN c, …`, which is another way to write REFRESH COLUMN.
    fn materialize_columns(&mut self, table: TableReference) -> Read<Statement> {
        self.expect("MATERIALIZE COLUMN")?;
        let columns = self.list(|reader| {
            reader.eat("MATERIALIZE COLUMN");
            reader.name()
        })?;
        let refresh = self.refresh_modifiers(table, columns)?;
        Ok(Statement::RefreshColumn(Box::new(refresh)))
    }

    fn alter_action(&mut self) -> Read<AlterAction> {
        if self.eat("ADD") {
            self.add()
        } else if self.eat("DROP") {
            self.drop_column()
        } else if self.eat("RENAME") {
            self.rename()
        } else if self.eat("ALTER") {
            self.eat("COLUMN");
            self.alter_column()
        } else if self.at("ENABLE") {
            self.expect("ENABLE ROW TRACKING")?;
            Ok(AlterAction::EnableRowTracking)
        } else if self.at("DISABLE ROW TRACKING") {
            Err(Error::invalid("row tracking can't be switched off once it is on").into())
        } else if self.at("LOAD") {
            Err(Error::not_available("ALTER TABLE … LOAD COLUMNS").into())
        } else if self.at("MATERIALIZE") {
            Err(Error::invalid("MATERIALIZE COLUMN stands alone, without other actions").into())
        } else {
            self.expected(
                "ADD COLUMN, ADD COLUMNS, DROP COLUMN, RENAME COLUMN, RENAME TO, ALTER COLUMN, \
                 MATERIALIZE COLUMN or ENABLE ROW TRACKING",
            )
        }
    }

    fn add(&mut self) -> Read<AlterAction> {
        if self.at("COLUMNS") && self.token(1).token == Token::LParen {
            self.expect("COLUMNS")?;
            return self.add_columns();
        }
        if self.at_any(&["CONSTRAINT", "UNIQUE", "CHECK"]) || self.at("FOREIGN KEY") {
            return Err(Error::invalid("constraints can't be added to a table").into());
        }
        if self.at("PRIMARY KEY") {
            return Err(Error::invalid(
                "the PRIMARY KEY is declared with CREATE TABLE and can't be added later",
            )
            .into());
        }
        if self.at("INDEX") {
            return Err(Error::not_available("ALTER TABLE … ADD INDEX").into());
        }
        self.eat("COLUMN");
        let if_not_exists = self.eat("IF NOT EXISTS");
        let column = self.declared_column(false)?.definition;
        Ok(AlterAction::AddColumn {
            if_not_exists,
            column,
        })
    }

    /// `(h, w) [PREFIX 'img_'] AS (call)`.
    fn add_columns(&mut self) -> Read<AlterAction> {
        let fields = self.names_in_parentheses("field")?;
        let mut prefix = String::new();
        if self.eat("PREFIX") {
            let Token::SingleQuotedString(text) = &self.token(0).token else {
                return self.expected("the prefix in single quotes");
            };
            prefix.clone_from(text);
            self.parser().advance_token();
        }
        if !self.at("AS") {
            return self.expected(if prefix.is_empty() {
                "PREFIX or AS"
            } else {
                "AS"
            });
        }
        self.expect("AS")?;
        let expression = self.column_expression()?;
        if self.at("VIRTUAL") {
            return Err(Error::invalid(
                "the columns of one struct-valued call are STORED; add them one by one for VIRTUAL ones",
            )
            .into());
        }
        self.eat("STORED");
        for field in &fields {
            check_column_name(&format!("{prefix}{field}"))?;
        }
        Ok(AlterAction::AddColumns {
            fields,
            prefix,
            expression,
        })
    }

    fn drop_column(&mut self) -> Read<AlterAction> {
        if (self.at("CONSTRAINT") || self.at("PRIMARY KEY")) && !self.at_nth_end(1) {
            return Err(Error::invalid("constraints can't be dropped from a table").into());
        }
        if self.at("INDEX") && !self.at_nth_end(1) {
            return Err(Error::not_available("ALTER TABLE … DROP INDEX").into());
        }
        self.eat("COLUMN");
        let if_exists = self.eat("IF EXISTS");
        let column = self.name()?;
        Ok(AlterAction::DropColumn {
            column,
            if_exists,
            cascade: self.cascade(),
        })
    }

    /// CASCADE, or RESTRICT, which is the default.
    pub(super) fn cascade(&mut self) -> bool {
        let cascade = self.eat("CASCADE");
        if !cascade {
            self.eat("RESTRICT");
        }
        cascade
    }

    fn rename(&mut self) -> Read<AlterAction> {
        if self.eat("TO") {
            return Ok(AlterAction::RenameTable { to: self.table()? });
        }
        self.eat("COLUMN");
        let from = self.name()?;
        self.expect("TO")?;
        let to = self.name()?;
        check_column_name(&to)?;
        Ok(AlterAction::RenameColumn { from, to })
    }

    /// What comes after ALTER COLUMN.
    fn alter_column(&mut self) -> Read<AlterAction> {
        let column = self.name()?;
        if self.eat("TYPE") || self.eat("SET DATA TYPE") {
            let field = types::read(self.parser(), &column, true)?;
            if self.at("USING") {
                return Err(
                    Error::invalid("ALTER COLUMN … TYPE … USING is not supported")
                        .with_hint("add a computed column with that expression instead")
                        .into(),
                );
            }
            return Ok(AlterAction::SetType { column, field });
        }
        if self.eat("SET NOT NULL") {
            return Ok(AlterAction::SetNullable {
                column,
                nullable: false,
            });
        }
        if self.eat("DROP NOT NULL") {
            return Ok(AlterAction::SetNullable {
                column,
                nullable: true,
            });
        }
        if self.eat("SET DEFAULT") {
            let default = Some(self.expression()?);
            return Ok(AlterAction::SetDefault { column, default });
        }
        if self.eat("DROP DEFAULT") {
            return Ok(AlterAction::SetDefault {
                column,
                default: None,
            });
        }
        if self.at("SET EXPRESSION") {
            self.expect("SET EXPRESSION")?;
            self.expect("AS")?;
            let expression = self.column_expression()?;
            return Ok(AlterAction::SetExpression { column, expression });
        }
        if self.eat("DROP EXPRESSION") {
            let if_exists = self.eat("IF EXISTS");
            return Ok(AlterAction::DropExpression { column, if_exists });
        }
        self.expected(
            "TYPE, SET DATA TYPE, SET or DROP NOT NULL, SET or DROP DEFAULT, SET EXPRESSION AS or DROP EXPRESSION",
        )
    }
}
