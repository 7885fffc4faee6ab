//! Good and bad input of every statement.

mod alter_table;
mod changes;
mod general;
mod hidden_columns;
mod jobs;
mod materialized_views;
mod planned;
mod refresh_column;
mod refresh_view;
mod robust;
mod tables;
mod versions;

use datafusion::arrow::datatypes::{DataType, Field, TimeUnit};
use datafusion::sql::TableReference;

use super::*;
use crate::ErrorKind;
use crate::database::name::Version;
use crate::sql::statement::{
    AlterAction, AlterMaterializedView, AlterTable, AlterViewAction, ColumnDefinition,
    CreateMaterializedView, CreateTable, CreateTag, CreateView, Delete, Drop, DropTag, Insert,
    JobObject, JobStatement, OptionValue, RefreshColumn, RefreshScope, RefreshView, Show, Update,
    Vacuum, ViewRefreshMode,
};

/// Reads one statement, as it is and with its keywords in the other case.
fn one(text: &str) -> Statement {
    let mut statements = parse(text).unwrap_or_else(|error| panic!("{text}\n{error}"));
    assert_eq!(statements.len(), 1, "{text}");
    statements.remove(0)
}

fn error(text: &str) -> Error {
    match parse(text) {
        Ok(statements) => panic!("{text} was read as {statements:?}"),
        Err(error) => error,
    }
}

/// Each text gives an error of this kind whose message and hint hold the other text.
fn errors(kind: ErrorKind, texts: &[(&str, &str)]) {
    for (text, expected) in texts {
        let error = error(text);
        assert_eq!(error.kind(), kind, "{text}: {error}");
        assert!(error.to_string().contains(expected), "{text}: {error}");
    }
}

macro_rules! read_as {
    ($name:ident, $variant:ident, $of:ty) => {
        fn $name(text: &str) -> Box<$of> {
            match one(text) {
                Statement::$variant(statement) => statement,
                other => panic!("{text} was read as {other:?}"),
            }
        }
    };
}

read_as!(create_table, CreateTable, CreateTable);
read_as!(create_view, CreateView, CreateView);
read_as!(insert, Insert, Insert);
read_as!(update, Update, Update);
read_as!(delete, Delete, Delete);
read_as!(alter, AlterTable, AlterTable);
read_as!(refresh, RefreshColumn, RefreshColumn);
read_as!(
    create_materialized_view,
    CreateMaterializedView,
    CreateMaterializedView
);
read_as!(refresh_view, RefreshView, RefreshView);
read_as!(alter_view, AlterMaterializedView, AlterMaterializedView);

fn action(text: &str) -> AlterAction {
    let mut alter = alter(&format!("ALTER TABLE t {text}"));
    assert_eq!(alter.actions.len(), 1, "{text}");
    assert_eq!(alter.table, TableReference::bare("t"));
    alter.actions.remove(0)
}

fn column(text: &str) -> ColumnDefinition {
    create_table(&format!("CREATE TABLE t ({text})"))
        .columns
        .remove(0)
}

fn datafusion(text: &str) -> String {
    match one(text) {
        Statement::DataFusion(statement) => statement.to_string(),
        other => panic!("{text} was read as {other:?}"),
    }
}
