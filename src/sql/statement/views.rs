//! Statements about materialized views.

use datafusion::sql::TableReference;
use datafusion::sql::sqlparser::ast;

use super::StatementOption;
use crate::database::name::Version;
use crate::sql::format::quote_identifier;

/// CREATE MATERIALIZED VIEW.
#[derive(Debug, Clone)]
pub struct CreateMaterializedView {
    /// The view to make.
    pub name: TableReference,
    /// Replace what is there.
    pub or_replace: bool,
    /// Do nothing if it is there.
    pub if_not_exists: bool,
    /// Names for its columns; empty to take the query's.
    pub columns: Vec<String>,
    /// What it holds. No table in it has a version.
    pub query: Box<ast::Query>,
    /// What stood in WITH (…): options of the view, and of its first refresh.
    pub options: Vec<StatementOption>,
    /// False after WITH NO DATA.
    pub with_data: bool,
}

/// REFRESH MATERIALIZED VIEW.
#[derive(Debug, Clone)]
pub struct RefreshView {
    /// The view.
    pub name: TableReference,
    /// How much of it to compute.
    pub mode: ViewRefreshMode,
    /// CONCURRENTLY: write only the difference to what is stored.
    pub concurrently: bool,
    /// AS OF: sources, none of them twice, and the version to read of each.
    pub as_of: Vec<(TableReference, Version)>,
    /// CASCADE: materialized views that it reads first.
    pub cascade: bool,
    /// ASYNC: give back the job's name at once.
    pub is_async: bool,
    /// What stood in WITH (…), but for `full`, which is a mode.
    pub options: Vec<StatementOption>,
}

impl RefreshView {
    /// The statement in one form, whatever was typed: two that ask the same are the same job.
    pub fn text(&self) -> String {
        let mut text = "REFRESH MATERIALIZED VIEW ".to_string();
        if self.concurrently {
            text += "CONCURRENTLY ";
        }
        text += &quote_identifier(self.name.table());
        text += match self.mode {
            ViewRefreshMode::Auto => "",
            ViewRefreshMode::Full => " FULL",
            ViewRefreshMode::Incremental => " INCREMENTAL",
            ViewRefreshMode::FailedOnly => " FAILED ONLY",
        };
        if !self.as_of.is_empty() {
            let versions = self.as_of.iter().map(|(table, version)| {
                format!("{} VERSION {version}", quote_identifier(table.table()))
            });
            text += &format!(" AS OF ({})", sorted(versions));
        }
        if self.cascade {
            text += " CASCADE";
        }
        if !self.options.is_empty() {
            let options = self.options.iter().map(ToString::to_string);
            text += &format!(" WITH ({})", sorted(options));
        }
        text
    }
}

/// Parts of a list whose order says nothing.
fn sorted(parts: impl Iterator<Item = String>) -> String {
    let mut parts: Vec<String> = parts.collect();
    parts.sort();
    parts.join(", ")
}

/// How much of a view a refresh computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ViewRefreshMode {
    /// Whatever is cheaper.
    Auto,
    /// FULL: all of it.
    Full,
    /// INCREMENTAL: what changed.
    Incremental,
    /// FAILED ONLY: rows on record as failed.
    FailedOnly,
}

/// ALTER MATERIALIZED VIEW v action, action, …
#[derive(Debug, Clone)]
pub struct AlterMaterializedView {
    /// The view to change.
    pub name: TableReference,
    /// ALTER MATERIALIZED VIEW IF EXISTS.
    pub if_exists: bool,
    /// What to do, in order; never empty, none of them twice.
    pub actions: Vec<AlterViewAction>,
}

/// One action of ALTER MATERIALIZED VIEW.
#[derive(Debug, Clone)]
pub enum AlterViewAction {
    /// RENAME TO w.
    RenameTo(String),
    /// SET (option = value, …).
    Set(Vec<StatementOption>),
    /// RESET (option, …): their defaults again.
    Reset(Vec<String>),
    /// SUSPEND: no refresh by itself until RESUME.
    Suspend,
    /// RESUME.
    Resume,
    /// AS SELECT …: a new definition.
    As(Box<ast::Query>),
    /// UPGRADE FUNCTIONS: the newest versions of the functions that it calls.
    UpgradeFunctions,
}
