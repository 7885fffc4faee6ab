//! REFRESH COLUMN and EXPLAIN of it.

use datafusion::sql::TableReference;

use super::failure::Read;
use super::reader::{Reader, no_duplicates};
use crate::Error;
use crate::sql::options::refresh_settings;
use crate::sql::statement::{RefreshColumn, RefreshScope, Statement};

impl Reader {
    /// What comes after REFRESH.
    pub(super) fn refresh(&mut self) -> Read<RefreshColumn> {
        if !self.eat("COLUMN") && !self.eat("COLUMNS") {
            return self.expected("COLUMN");
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
    pub(super) fn explain_refresh(&mut self) -> Read<Option<Statement>> {
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
        if self.at_nth(n, "CREATE MATERIALIZED VIEW")
            || self.at_nth(n, "CREATE OR REPLACE MATERIALIZED VIEW")
        {
            return Err(Error::not_available("EXPLAIN CREATE MATERIALIZED VIEW").into());
        }
        if self.at_nth(n, "REFRESH MATERIALIZED VIEW") {
            return Err(Error::not_available("EXPLAIN REFRESH MATERIALIZED VIEW").into());
        }
        if !self.at_nth(n, "REFRESH") {
            return Ok(None);
        }
        if verbose {
            return Err(Error::invalid("EXPLAIN REFRESH COLUMN takes no VERBOSE").into());
        }
        for _ in 0..=n {
            self.parser().advance_token();
        }
        let refresh = Box::new(self.refresh()?);
        if refresh.is_async {
            return Err(Error::invalid("EXPLAIN does not go with ASYNC").into());
        }
        Ok(Some(Statement::ExplainRefresh { analyze, refresh }))
    }
}
