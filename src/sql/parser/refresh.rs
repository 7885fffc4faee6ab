//! REFRESH COLUMN, and EXPLAIN of statements of ours.

use datafusion::sql::TableReference;

use super::failure::Read;
use super::reader::{Reader, no_duplicates};
use crate::Error;
use crate::sql::options::refresh_settings;
use crate::sql::statement::{RefreshColumn, RefreshScope, Statement};

impl Reader {
    /// What comes after REFRESH.
    pub(super) fn refresh(&mut self) -> Read<RefreshColumn> {
        if self.at("VIEW") {
            let mend = "write REFRESH MATERIALIZED VIEW; other views hold no rows".to_string();
            return self.expected_with_hint("COLUMN or MATERIALIZED VIEW", mend);
        }
        if !self.eat("COLUMN") && !self.eat("COLUMNS") {
            return self.expected("COLUMN or MATERIALIZED VIEW");
        }
        let columns = self.list(Self::name)?;
        if !self.at("ON") {
            return self.expected("',' or ON and the table");
        }
        self.expect("ON")?;
        if self.at("TABLE") && !self.at_nth_end(1) {
            self.expect("TABLE")?;
        }
        let table = self.table()?;
        self.refresh_modifiers(table, columns)
    }

    /// What comes after the table, in any order, to the end of the statement.
    pub(super) fn refresh_modifiers(
        &mut self,
        table: TableReference,
        columns: Vec<String>,
    ) -> Read<RefreshColumn> {
        no_duplicates(&columns, "column")?;
        let mut given: Vec<&str> = Vec::new();
        let mut refresh = RefreshColumn {
            table,
            columns,
            scope: RefreshScope::Changed,
            filter: None,
            cascade: false,
            is_async: false,
            options: Vec::new(),
        };
        while !self.at_nth_end(0) {
            let modifier = if self.at("WHERE") {
                refresh.filter = self.where_clause()?;
                "WHERE"
            } else if self.eat("STALE ONLY") {
                refresh.scope = RefreshScope::StaleOnly;
                "STALE ONLY"
            } else if self.eat("FULL") {
                refresh.scope = RefreshScope::Full;
                "FULL"
            } else if self.at("FAILED ONLY") {
                return Err(Error::not_available("REFRESH COLUMN … FAILED ONLY").into());
            } else if self.eat("ASYNC") {
                refresh.is_async = true;
                "ASYNC"
            } else if self.eat("CASCADE") {
                refresh.cascade = true;
                "CASCADE"
            } else if let Some(options) = self.with_options()? {
                refresh_settings(&options)?;
                refresh.options = options;
                "WITH (…)"
            } else {
                return self.expected(
                    "WHERE, STALE ONLY, FULL, FAILED ONLY, CASCADE, ASYNC, WITH (…) or the end of the statement",
                );
            };
            if given.contains(&modifier) {
                return Err(Error::invalid(format!("{modifier} is given twice")).into());
            }
            given.push(modifier);
        }
        let both = |one, other| given.contains(&one) && given.contains(&other);
        if both("FULL", "STALE ONLY") {
            return Err(Error::invalid("FULL and STALE ONLY contradict each other")
                .with_hint("FULL computes every row, STALE ONLY WHERE … of the stale rows those that match")
                .into());
        }
        if both("FULL", "WHERE") {
            return Err(
                Error::invalid("FULL computes every row, so it does not go with WHERE")
                    .with_hint("WHERE alone computes every row that matches")
                    .into(),
            );
        }
        if both("CASCADE", "WHERE") {
            return Err(Error::invalid("CASCADE does not go with WHERE")
                .with_hint("refresh the inputs first, with a REFRESH COLUMN of their own")
                .into());
        }
        if given.contains(&"STALE ONLY") && refresh.filter.is_none() {
            return Err(Error::invalid("STALE ONLY goes with WHERE")
                .with_hint(
                    "without WHERE only stale rows are computed anyway: leave STALE ONLY out",
                )
                .into());
        }
        Ok(refresh)
    }

    /// EXPLAIN of a statement of ours, if that comes next: from EXPLAIN on.
    pub(super) fn explain(&mut self) -> Read<Option<Statement>> {
        let mut n = 1;
        let mut verbose = false;
        let mut analyze = false;
        loop {
            if self.at_nth(n, "ANALYZE") {
                analyze = true;
            } else if self.at_nth(n, "VERBOSE") {
                verbose = true;
            } else {
                break;
            }
            n += 1;
        }
        let statement = [
            "CREATE MATERIALIZED VIEW",
            "CREATE OR REPLACE MATERIALIZED VIEW",
            "REFRESH MATERIALIZED VIEW",
            "REFRESH",
        ]
        .into_iter()
        .find(|words| self.at_nth(n, words));
        let Some(statement) = statement else {
            return Ok(None);
        };
        if verbose {
            let statement = match statement {
                "REFRESH" => "REFRESH COLUMN",
                other => other,
            };
            return Err(Error::invalid(format!("EXPLAIN {statement} takes no VERBOSE")).into());
        }
        for _ in 0..n {
            self.parser().advance_token();
        }
        self.expect(statement)?;
        let (statement, is_async) = match statement {
            "REFRESH" => {
                let refresh = Box::new(self.refresh()?);
                let is_async = refresh.is_async;
                (Statement::ExplainRefresh { analyze, refresh }, is_async)
            }
            "REFRESH MATERIALIZED VIEW" => {
                let refresh = Box::new(self.refresh_view()?);
                let is_async = refresh.is_async;
                (Statement::ExplainRefreshView { analyze, refresh }, is_async)
            }
            _ if analyze => {
                return Err(
                    Error::invalid("EXPLAIN CREATE MATERIALIZED VIEW takes no ANALYZE")
                        .with_hint(
                            "make the view WITH NO DATA, then EXPLAIN ANALYZE REFRESH MATERIALIZED VIEW",
                        )
                        .into(),
                );
            }
            create => {
                let or_replace = create.contains("OR REPLACE");
                let create = Box::new(self.create_materialized_view(or_replace)?);
                (Statement::ExplainCreateView(create), false)
            }
        };
        if is_async {
            return Err(Error::invalid("EXPLAIN does not go with ASYNC").into());
        }
        Ok(Some(statement))
    }
}
