//! The statements about materialized views.

use datafusion::sql::TableReference;
use datafusion::sql::sqlparser::tokenizer::Token;

use super::failure::Read;
use super::reader::{Reader, no_duplicates};
use super::tables::check_column_name;
use crate::database::name::Version;
use crate::database::{CATALOG_NAME, SCHEMA_NAME};
use crate::sql::options;
use crate::sql::options::views::{RefreshViewOptions, ViewOptions, of_refresh};
use crate::sql::statement::{
    AlterMaterializedView, AlterViewAction, CreateMaterializedView, DropKind, RefreshView, Show,
    Statement, StatementOption, ViewRefreshMode,
};
use crate::{Error, Result};

impl Reader {
    /// A statement about materialized views, if one comes next.
    pub(super) fn materialized_view_statement(&mut self) -> Read<Option<Statement>> {
        for (words, or_replace) in [
            ("CREATE MATERIALIZED VIEW", false),
            ("CREATE OR REPLACE MATERIALIZED VIEW", true),
        ] {
            if self.eat(words) {
                let create = Box::new(self.create_materialized_view(or_replace)?);
                return Ok(Some(Statement::CreateMaterializedView(create)));
            }
        }
        if self.eat("REFRESH MATERIALIZED VIEW") {
            let refresh = Box::new(self.refresh_view()?);
            return Ok(Some(Statement::RefreshView(refresh)));
        }
        if self.eat("ALTER MATERIALIZED VIEW") {
            let alter = Box::new(self.alter_materialized_view()?);
            return Ok(Some(Statement::AlterMaterializedView(alter)));
        }
        if self.eat("DROP MATERIALIZED VIEW") {
            let drop = self.drop_objects(DropKind::MaterializedView)?;
            return Ok(Some(Statement::Drop(drop)));
        }
        if self.eat("SHOW MATERIALIZED VIEWS") {
            if self.at_any(&["LIKE", "ILIKE", "WHERE", "FROM", "IN"]) {
                return Err(Error::invalid("SHOW MATERIALIZED VIEWS takes no filter")
                    .with_hint("SELECT * FROM system.materialized_views WHERE …")
                    .into());
            }
            self.expect_end("")?;
            return Ok(Some(Statement::Show(Show::MaterializedViews)));
        }
        if self.eat("SHOW CREATE MATERIALIZED VIEW") {
            let name = self.table()?;
            self.expect_end("")?;
            let show = Show::CreateMaterializedView { name };
            return Ok(Some(Statement::Show(show)));
        }
        if self.eat("DESCRIBE MATERIALIZED VIEW") || self.eat("DESC MATERIALIZED VIEW") {
            let name = self.table()?;
            self.expect_end("")?;
            return Ok(Some(Statement::DescribeMaterializedView { name }));
        }
        Ok(None)
    }

    /// What comes after CREATE \[OR REPLACE\] MATERIALIZED VIEW.
    pub(super) fn create_materialized_view(
        &mut self,
        or_replace: bool,
    ) -> Read<CreateMaterializedView> {
        let if_not_exists = self.if_not_exists(or_replace)?;
        let name = self.table()?;
        let columns = if self.at_token(&Token::LParen) {
            self.names_in_parentheses("column")?
        } else {
            Vec::new()
        };
        for column in &columns {
            check_column_name(column)?;
        }
        if self.at("WITH NO DATA") || self.at("WITH DATA") {
            let mend = "WITH DATA and WITH NO DATA stand behind the query".to_string();
            return self.expected_with_hint("WITH (…) or AS and a query", mend);
        }
        let options = self.with_options()?;
        if options.is_some() && self.at("WITH") {
            return Err(Error::invalid("WITH (…) is given twice").into());
        }
        if !self.eat("AS") {
            return self.expected(match (columns.is_empty(), options.is_none()) {
                (true, true) => "columns, WITH (…) or AS and a query",
                (false, true) => "WITH (…) or AS and a query",
                _ => "AS and a query",
            });
        }
        let options = options.unwrap_or_default();
        ViewOptions::for_create(&options)?;
        let query = self.query()?;
        let with_data = self.with_data()?;
        if let (false, Some(name)) = (with_data, of_refresh(&options)) {
            return Err(Error::invalid(format!(
                "option '{name}' is one of the first refresh, and WITH NO DATA leaves that out"
            ))
            .with_hint(format!("REFRESH MATERIALIZED VIEW … WITH ({name} = …)"))
            .into());
        }
        Ok(CreateMaterializedView {
            name,
            or_replace,
            if_not_exists,
            columns,
            query,
            options,
            with_data,
        })
    }

    /// `WITH [NO] DATA`, or nothing, and the end.
    fn with_data(&mut self) -> Read<bool> {
        if self.at("WITH") && self.token(1).token == Token::LParen {
            let mend = "the options of a materialized view stand before AS".to_string();
            return self.expected_with_hint("WITH [NO] DATA or the end of the statement", mend);
        }
        let no_data = self.eat("WITH NO DATA");
        let said = no_data || self.eat("WITH DATA");
        if self.at("WITH") && said {
            return Err(Error::invalid("WITH [NO] DATA is given twice").into());
        }
        if self.at("ASYNC") {
            let mend = "make the view WITH NO DATA, then REFRESH MATERIALIZED VIEW … ASYNC";
            return self.expected_with_hint("the end of the statement", mend.to_string());
        }
        self.expect_end(if said { "" } else { "WITH [NO] DATA" })?;
        Ok(!no_data)
    }

    /// What comes after REFRESH MATERIALIZED VIEW.
    pub(super) fn refresh_view(&mut self) -> Read<RefreshView> {
        // Behind the view like all the others, or before it as PostgreSQL has it.
        let concurrently =
            self.at("CONCURRENTLY") && !self.at_nth_end(1) && self.eat("CONCURRENTLY");
        let mut refresh = RefreshView {
            name: self.table()?,
            mode: ViewRefreshMode::Auto,
            concurrently,
            as_of: Vec::new(),
            cascade: false,
            is_async: false,
            options: Vec::new(),
        };
        let mut given: Vec<&str> = Vec::new();
        if concurrently {
            given.push("CONCURRENTLY");
        }
        let mut full_option = None;
        while !self.at_nth_end(0) {
            let modifier = if self.eat("FULL") {
                "FULL"
            } else if self.eat("INCREMENTAL") {
                "INCREMENTAL"
            } else if self.eat("FAILED ONLY") {
                "FAILED ONLY"
            } else if self.eat("CONCURRENTLY") {
                refresh.concurrently = true;
                "CONCURRENTLY"
            } else if self.eat("AS OF") {
                refresh.as_of = self.source_versions()?;
                "AS OF (…)"
            } else if self.eat("CASCADE") {
                refresh.cascade = true;
                "CASCADE"
            } else if self.eat("ASYNC") {
                refresh.is_async = true;
                "ASYNC"
            } else if let Some(options) = self.with_options()? {
                full_option = RefreshViewOptions::read(&options)?.full;
                refresh.options = options;
                "WITH (…)"
            } else {
                return self.expected(
                    "FULL, INCREMENTAL, FAILED ONLY, CONCURRENTLY, AS OF (…), CASCADE, ASYNC, WITH (…) or the end of the statement",
                );
            };
            if given.contains(&modifier) {
                return Err(given_twice(modifier).into());
            }
            given.push(modifier);
        }
        refresh.mode = mode(&given, full_option)?;
        refresh.options.retain(|option| option.name != "full");
        Ok(refresh)
    }

    /// `(a VERSION 3, b VERSION 'tag')`, none of them twice.
    fn source_versions(&mut self) -> Read<Vec<(TableReference, Version)>> {
        self.expect_token(&Token::LParen)?;
        let versions = self.list(|reader| {
            let table = reader.table()?;
            if reader.at("TIMESTAMP") {
                return Err(Error::not_available("TIMESTAMP in AS OF").into());
            }
            reader.expect("VERSION")?;
            Ok((table, reader.version()?))
        })?;
        if !self.at_token(&Token::RParen) {
            return self.expected("',' or ')'");
        }
        self.expect_token(&Token::RParen)?;
        let mut seen = std::collections::HashSet::new();
        for (table, _) in &versions {
            if !seen.insert(table.clone().resolve(CATALOG_NAME, SCHEMA_NAME)) {
                return Err(Error::invalid(format!(
                    "AS OF names a version of table '{}' twice",
                    table.table()
                ))
                .into());
            }
        }
        Ok(versions)
    }

    /// What comes after ALTER MATERIALIZED VIEW.
    fn alter_materialized_view(&mut self) -> Read<AlterMaterializedView> {
        let if_exists = self.eat("IF EXISTS");
        let name = self.table()?;
        let actions = self.list(Self::view_action)?;
        self.expect_end("','")?;
        check_actions(&actions)?;
        Ok(AlterMaterializedView {
            name,
            if_exists,
            actions,
        })
    }

    fn view_action(&mut self) -> Read<AlterViewAction> {
        if self.eat("RENAME") {
            self.expect("TO")?;
            Ok(AlterViewAction::RenameTo(self.name()?))
        } else if self.eat("SET") {
            let given = options::read(self.parser())?;
            ViewOptions::default().with(&given)?;
            Ok(AlterViewAction::Set(given))
        } else if self.eat("RESET") {
            let names = self.names_in_parentheses("option")?;
            let names: Vec<String> = names.iter().map(|name| name.to_ascii_lowercase()).collect();
            no_duplicates(&names, "option")?;
            ViewOptions::default().without(&names)?;
            Ok(AlterViewAction::Reset(names))
        } else if self.eat("SUSPEND") {
            Ok(AlterViewAction::Suspend)
        } else if self.eat("RESUME") {
            Ok(AlterViewAction::Resume)
        } else if self.eat("AS") {
            Ok(AlterViewAction::As(self.query()?))
        } else if self.eat("UPGRADE") {
            self.expect("FUNCTIONS")?;
            Ok(AlterViewAction::UpgradeFunctions)
        } else {
            self.expected(
                "RENAME TO, SET (…), RESET (…), SUSPEND, RESUME, AS and a query, or UPGRADE FUNCTIONS",
            )
        }
    }
}

/// What the modifiers that were given, and option `full`, say of how much to compute.
fn mode(given: &[&str], full_option: Option<bool>) -> Result<ViewRefreshMode> {
    let is_given = |modifier| given.contains(&modifier);
    match full_option {
        Some(true) if is_given("FULL") => return Err(given_twice("FULL")),
        Some(false) if is_given("FULL") => {
            return Err(
                Error::invalid("FULL and WITH (full = FALSE) contradict each other")
                    .with_hint("leave one of them out"),
            );
        }
        _ => {}
    }
    let full = is_given("FULL") || full_option == Some(true);
    let contradict = |one: &str, other: &str, mend: &str| {
        Err(Error::invalid(format!("{one} and {other} contradict each other")).with_hint(mend))
    };
    match (full, is_given("INCREMENTAL"), is_given("FAILED ONLY")) {
        (true, true, _) => contradict(
            "FULL",
            "INCREMENTAL",
            "FULL computes all of the view, INCREMENTAL what changed",
        ),
        (true, _, true) => contradict(
            "FULL",
            "FAILED ONLY",
            "FULL computes all of the view, FAILED ONLY rows on record as failed",
        ),
        (_, true, true) => contradict(
            "INCREMENTAL",
            "FAILED ONLY",
            "INCREMENTAL computes what changed, FAILED ONLY rows on record as failed",
        ),
        (true, ..) => Ok(ViewRefreshMode::Full),
        (_, true, _) => Ok(ViewRefreshMode::Incremental),
        (.., true) => Ok(ViewRefreshMode::FailedOnly),
        _ => Ok(ViewRefreshMode::Auto),
    }
}

fn given_twice(modifier: &str) -> Error {
    Error::invalid(format!("{modifier} is given twice"))
}

/// Refuses actions of ALTER MATERIALIZED VIEW that contradict each other.
fn check_actions(actions: &[AlterViewAction]) -> Result<()> {
    let mut seen: Vec<&str> = Vec::new();
    let (mut set, mut reset): (&[StatementOption], &[String]) = (&[], &[]);
    for action in actions {
        let words = match action {
            AlterViewAction::RenameTo(_) => "RENAME TO",
            AlterViewAction::Set(options) => {
                set = options;
                "SET (…)"
            }
            AlterViewAction::Reset(names) => {
                reset = names;
                "RESET (…)"
            }
            AlterViewAction::Suspend => "SUSPEND",
            AlterViewAction::Resume => "RESUME",
            AlterViewAction::As(_) => "AS",
            AlterViewAction::UpgradeFunctions => "UPGRADE FUNCTIONS",
        };
        if seen.contains(&words) {
            return Err(given_twice(words));
        }
        seen.push(words);
    }
    if seen.contains(&"SUSPEND") && seen.contains(&"RESUME") {
        return Err(Error::invalid("SUSPEND and RESUME contradict each other"));
    }
    if let Some(option) = set.iter().find(|option| reset.contains(&option.name)) {
        return Err(Error::invalid(format!(
            "SET and RESET of option '{}' contradict each other",
            option.name
        )));
    }
    // Where the query ends in a table, a comma and what follows it are read as one more table.
    if let Some((_, before)) = actions.split_last()
        && before
            .iter()
            .any(|action| matches!(action, AlterViewAction::As(_)))
    {
        return Err(Error::invalid("AS and its query come last").with_hint(
            "put the other actions before it: ALTER MATERIALIZED VIEW v SUSPEND, AS SELECT …",
        ));
    }
    Ok(())
}
