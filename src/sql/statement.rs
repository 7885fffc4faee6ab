//! Statements of the dialect as types: what the parser yields and the executors take.
//!
//! Names are normalised (unquoted ones to lower case), types are Arrow's,
//! expressions and queries stay SQL syntax trees until they are planned against
//! a schema.

mod views;

use std::time::Duration;

use datafusion::arrow::datatypes::FieldRef;
use datafusion::sql::TableReference;
use datafusion::sql::parser::Statement as DataFusionStatement;
use datafusion::sql::sqlparser::ast;

use crate::database::name::Version;

pub use views::{
    AlterMaterializedView, AlterViewAction, CreateMaterializedView, RefreshView, ViewRefreshMode,
};

/// One statement.
#[derive(Debug, Clone)]
pub enum Statement {
    /// A query, or anything else that DataFusion plans and runs by itself:
    /// SELECT, EXPLAIN of it, SET, COPY, CREATE EXTERNAL TABLE, SHOW of settings.
    DataFusion(Box<DataFusionStatement>),
    /// CREATE TABLE, with columns or from a query.
    CreateTable(Box<CreateTable>),
    /// CREATE VIEW, stored in the database.
    CreateView(Box<CreateView>),
    /// INSERT INTO.
    Insert(Box<Insert>),
    /// UPDATE.
    Update(Box<Update>),
    /// DELETE FROM.
    Delete(Box<Delete>),
    /// TRUNCATE TABLE.
    Truncate {
        /// The table to empty.
        table: TableReference,
    },
    /// ALTER TABLE, with one or several actions.
    AlterTable(Box<AlterTable>),
    /// DROP TABLE, DROP VIEW or DROP MATERIALIZED VIEW.
    Drop(Drop),
    /// DESCRIBE t, also as SHOW COLUMNS FROM t.
    Describe {
        /// The table or view to describe.
        table: TableReference,
    },
    /// SHOW TABLES, SHOW CREATE TABLE, SHOW VERSIONS and the like.
    Show(Show),
    /// OPTIMIZE t: compacts small fragments and those with many deleted rows.
    Optimize {
        /// The table to compact.
        table: TableReference,
        /// What stood in WITH (…).
        options: Vec<StatementOption>,
    },
    /// REFRESH COLUMN.
    RefreshColumn(Box<RefreshColumn>),
    /// EXPLAIN \[ANALYZE\] REFRESH COLUMN.
    ExplainRefresh {
        /// Whether to run it, and to add what was measured.
        analyze: bool,
        /// What to explain.
        refresh: Box<RefreshColumn>,
    },
    /// CREATE MATERIALIZED VIEW.
    CreateMaterializedView(Box<CreateMaterializedView>),
    /// EXPLAIN CREATE MATERIALIZED VIEW.
    ExplainCreateView(Box<CreateMaterializedView>),
    /// REFRESH MATERIALIZED VIEW.
    RefreshView(Box<RefreshView>),
    /// EXPLAIN \[ANALYZE\] REFRESH MATERIALIZED VIEW.
    ExplainRefreshView {
        /// Whether to run it, and to add what was measured.
        analyze: bool,
        /// What to explain.
        refresh: Box<RefreshView>,
    },
    /// ALTER MATERIALIZED VIEW, with one or several actions.
    AlterMaterializedView(Box<AlterMaterializedView>),
    /// DESCRIBE MATERIALIZED VIEW v.
    DescribeMaterializedView {
        /// The view to describe.
        name: TableReference,
    },
    /// The statements about jobs.
    Job(JobStatement),
    /// BEGIN, COMMIT, ROLLBACK: accepted with a notice, each statement commits by itself.
    Transaction {
        /// The word that was typed.
        keyword: String,
    },
    /// VACUUM t: removes old versions, and files that nothing names.
    Vacuum(Vacuum),
    /// CREATE TAG.
    CreateTag(CreateTag),
    /// DROP TAG.
    DropTag(DropTag),
    /// SHOW TAGS FROM t.
    ShowTags {
        /// The table.
        table: TableReference,
    },
    /// RESTORE TABLE t TO VERSION AS OF ….
    Restore {
        /// The table to restore.
        table: TableReference,
        /// The version whose content it gets.
        version: Version,
    },
}

/// CREATE TABLE.
#[derive(Debug, Clone)]
pub struct CreateTable {
    /// The table to make.
    pub name: TableReference,
    /// Do nothing if it is there.
    pub if_not_exists: bool,
    /// Replace what is there.
    pub or_replace: bool,
    /// The columns, in order; empty with `query` when they come from it.
    pub columns: Vec<ColumnDefinition>,
    /// Columns of the primary key, in order; empty if none was declared.
    pub primary_key: Vec<String>,
    /// AS SELECT …
    pub query: Option<Box<ast::Query>>,
    /// What stood in WITH (…).
    pub options: Vec<StatementOption>,
}

/// A column as CREATE TABLE and ADD COLUMN declare it.
#[derive(Debug, Clone)]
pub struct ColumnDefinition {
    /// Its name.
    pub name: String,
    /// Name, type, nullability, and the metadata that marks blobs; `None` when the
    /// type was left out, which only a generated column may do.
    pub field: Option<FieldRef>,
    /// False after NOT NULL.
    pub nullable: bool,
    /// DEFAULT.
    pub default: Option<ast::Expr>,
    /// GENERATED ALWAYS AS, or AS.
    pub generated: Option<Generated>,
}

/// GENERATED ALWAYS AS (expression) \[STORED | VIRTUAL\].
#[derive(Debug, Clone)]
pub struct Generated {
    /// What the column is computed by.
    pub expression: ast::Expr,
    /// Whether it is computed when read (VIRTUAL) instead of at REFRESH (STORED, the default).
    pub is_virtual: bool,
}

/// CREATE VIEW.
#[derive(Debug, Clone)]
pub struct CreateView {
    /// The view to make.
    pub name: TableReference,
    /// Replace what is there.
    pub or_replace: bool,
    /// Do nothing if it is there.
    pub if_not_exists: bool,
    /// Names for its columns; empty to take the query's.
    pub columns: Vec<String>,
    /// What it stands for.
    pub query: Box<ast::Query>,
}

/// INSERT INTO t \[(columns)\] query | DEFAULT VALUES.
#[derive(Debug, Clone)]
pub struct Insert {
    /// The table to insert into.
    pub table: TableReference,
    /// The columns named; empty if none were.
    pub columns: Vec<String>,
    /// Where the rows come from; `None` for DEFAULT VALUES. A bare DEFAULT inside VALUES
    /// is the identifier `DEFAULT` in the tree.
    pub query: Option<Box<ast::Query>>,
}

/// UPDATE t SET … \[FROM …\] \[WHERE …\].
#[derive(Debug, Clone)]
pub struct Update {
    /// The table to update.
    pub table: TableReference,
    /// What the statement calls it.
    pub alias: Option<String>,
    /// Column and new value, in order.
    pub assignments: Vec<(String, ast::Expr)>,
    /// The tables of FROM; empty if there is none.
    pub from: Vec<ast::TableWithJoins>,
    /// WHERE.
    pub selection: Option<ast::Expr>,
}

/// DELETE FROM t \[USING …\] \[WHERE …\].
#[derive(Debug, Clone)]
pub struct Delete {
    /// The table to delete from.
    pub table: TableReference,
    /// What the statement calls it.
    pub alias: Option<String>,
    /// The tables of USING; empty if there is none.
    pub using: Vec<ast::TableWithJoins>,
    /// WHERE.
    pub selection: Option<ast::Expr>,
}

/// ALTER TABLE t action, action, …
#[derive(Debug, Clone)]
pub struct AlterTable {
    /// The table to change.
    pub table: TableReference,
    /// ALTER TABLE IF EXISTS.
    pub if_exists: bool,
    /// What to do, in order; never empty.
    pub actions: Vec<AlterAction>,
}

/// One action of ALTER TABLE.
#[derive(Debug, Clone)]
#[allow(
    clippy::large_enum_variant,
    reason = "a statement has a handful of actions, mostly the largest"
)]
pub enum AlterAction {
    /// ADD COLUMN, plain or generated.
    AddColumn {
        /// Do nothing if it is there.
        if_not_exists: bool,
        /// The column to add.
        column: ColumnDefinition,
    },
    /// ADD COLUMNS (h, w) \[PREFIX 'img_'\] AS (call): fields of one struct-valued call.
    AddColumns {
        /// Fields of the struct to make columns of.
        fields: Vec<String>,
        /// What to put before the field names to get the column names.
        prefix: String,
        /// The call.
        expression: ast::Expr,
    },
    /// DROP COLUMN.
    DropColumn {
        /// The column to drop.
        column: String,
        /// Do nothing if it is not there.
        if_exists: bool,
        /// Drop what depends on it too.
        cascade: bool,
    },
    /// RENAME COLUMN a TO b.
    RenameColumn {
        /// Its name.
        from: String,
        /// Its name afterwards.
        to: String,
    },
    /// RENAME TO u.
    RenameTable {
        /// The table's name afterwards.
        to: TableReference,
    },
    /// ALTER COLUMN c TYPE ….
    SetType {
        /// The column to change.
        column: String,
        /// The new type, as a field of that name.
        field: FieldRef,
    },
    /// ALTER COLUMN c SET | DROP NOT NULL.
    SetNullable {
        /// The column to change.
        column: String,
        /// True for DROP NOT NULL.
        nullable: bool,
    },
    /// ALTER COLUMN c SET | DROP DEFAULT.
    SetDefault {
        /// The column to change.
        column: String,
        /// The new default; `None` to drop it.
        default: Option<ast::Expr>,
    },
    /// ALTER COLUMN c SET EXPRESSION AS (expression).
    SetExpression {
        /// The computed column to change.
        column: String,
        /// Its new expression.
        expression: ast::Expr,
    },
    /// ALTER COLUMN c DROP EXPRESSION.
    DropExpression {
        /// The computed column that becomes a plain one.
        column: String,
        /// Do nothing if it is plain already.
        if_exists: bool,
    },
    /// ENABLE ROW TRACKING.
    EnableRowTracking,
}

/// DROP TABLE | VIEW | MATERIALIZED VIEW \[IF EXISTS\] names \[RESTRICT | CASCADE\].
#[derive(Debug, Clone)]
pub struct Drop {
    /// What kind of object.
    pub kind: DropKind,
    /// Which ones.
    pub names: Vec<TableReference>,
    /// Do nothing about those that are not there.
    pub if_exists: bool,
    /// Drop what depends on them too.
    pub cascade: bool,
}

/// What DROP drops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropKind {
    /// DROP TABLE.
    Table,
    /// DROP VIEW.
    View,
    /// DROP MATERIALIZED VIEW.
    MaterializedView,
}

/// The statements that list things.
#[derive(Debug, Clone)]
pub enum Show {
    /// SHOW TABLES.
    Tables,
    /// SHOW CREATE TABLE t | VIEW v.
    Create {
        /// The table or view.
        name: TableReference,
    },
    /// SHOW MATERIALIZED VIEWS.
    MaterializedViews,
    /// SHOW CREATE MATERIALIZED VIEW v.
    CreateMaterializedView {
        /// The view.
        name: TableReference,
    },
    /// SHOW VERSIONS FROM t, also as DESCRIBE HISTORY t.
    Versions {
        /// The table.
        table: TableReference,
    },
}

/// REFRESH COLUMN c, d ON t ….
#[derive(Debug, Clone)]
pub struct RefreshColumn {
    /// The table.
    pub table: TableReference,
    /// The columns to refresh, at least one.
    pub columns: Vec<String>,
    /// Which of the rows to compute.
    pub scope: RefreshScope,
    /// WHERE: only rows that match.
    pub filter: Option<ast::Expr>,
    /// CASCADE: stale computed inputs first.
    pub cascade: bool,
    /// ASYNC: give back the job's name at once.
    pub is_async: bool,
    /// What stood in WITH (…).
    pub options: Vec<StatementOption>,
}

/// Which rows a REFRESH COLUMN computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefreshScope {
    /// Rows never computed and rows with a changed input; with WHERE, every row that matches.
    Changed,
    /// STALE ONLY: of the changed rows those that match WHERE.
    StaleOnly,
    /// FULL: every row.
    Full,
}

/// One `name = value` of WITH (…).
#[derive(Debug, Clone, PartialEq)]
pub struct StatementOption {
    /// Its name, in lower case.
    pub name: String,
    /// Its value.
    pub value: OptionValue,
}

/// The value of an option.
#[derive(Debug, Clone, PartialEq)]
pub enum OptionValue {
    /// A number.
    Number(f64),
    /// A quoted string, or a bare word.
    Text(String),
    /// TRUE or FALSE.
    Boolean(bool),
}

/// What a statement about jobs does.
#[derive(Debug, Clone, PartialEq)]
pub enum JobStatement {
    /// SHOW JOBS.
    Jobs {
        /// Those of one table or column.
        of: Option<JobObject>,
        /// At most so many.
        limit: Option<usize>,
    },
    /// SHOW JOB EVENTS 'id'.
    Events(String),
    /// SHOW ERRORS.
    Errors {
        /// Those of one job.
        job: Option<String>,
        /// Those of one table or column.
        of: Option<JobObject>,
    },
    /// DESCRIBE JOB 'id'.
    Describe(String),
    /// PAUSE JOB 'id'.
    Pause(String),
    /// RESUME JOB 'id'.
    Resume(String),
    /// CANCEL JOB 'id'.
    Cancel(String),
    /// WAIT JOB 'id' \[TIMEOUT '10m'\].
    Wait {
        /// The job.
        id: String,
        /// How long.
        timeout: Option<Duration>,
    },
}

/// What a job works on.
#[derive(Debug, Clone, PartialEq)]
pub struct JobObject {
    /// The table.
    pub table: TableReference,
    /// One of its columns; `None` for all.
    pub column: Option<String>,
    /// Whether it is a materialized view, and its own refreshes are meant.
    pub is_view: bool,
}

/// VACUUM t \[RETAIN n HOURS | DAYS\] \[DRY RUN\].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vacuum {
    /// The table to clean up.
    pub table: TableReference,
    /// RETAIN: hours for which versions are kept in any case; `None` for the default.
    pub retain_hours: Option<u64>,
    /// DRY RUN: only say what would go.
    pub dry_run: bool,
}

/// CREATE TAG 'v1' ON t \[VERSION AS OF …\].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateTag {
    /// The tag.
    pub tag: String,
    /// The table.
    pub table: TableReference,
    /// The version to put it on; `None` for the newest.
    pub version: Option<Version>,
    /// Move the tag if it is there.
    pub or_replace: bool,
    /// Do nothing if it is there.
    pub if_not_exists: bool,
}

/// DROP TAG 'v1' ON t.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DropTag {
    /// The tag.
    pub tag: String,
    /// The table.
    pub table: TableReference,
    /// Do nothing if it is not there.
    pub if_exists: bool,
}
