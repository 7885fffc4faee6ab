//! Table versions and hidden columns: what DataFusion's planner has no idea of is moved
//! into the names of tables, which our catalog resolves (see [`super::names`]).
//!
//! # Versions
//!
//! `FROM t VERSION AS OF 5` becomes `FROM "t VERSION AS OF 5" AS t`, wherever a table can
//! stand, and `VERSION AS OF 'v1'` likewise. sqlparser reads a number only there: the reader gives
//! it a tag as a number that is the tag in its quotes. DataFusion's planner ignores a version that it is given, so none may be left
//! when a statement leaves the parser; every other form of a version is an error. The query of a
//! materialized view has none: a version would not change any more, and a view follows its sources.
//!
//! # Hidden columns
//!
//! `_rowid` and `_rowaddr` can be selected, but `*` leaves them out. A statement that names
//! one of them reads every table of its FROM clauses as `"t WITH ROW IDS" AS t`, which has
//! them as its last two columns, and each `*` over it becomes
//! `t.* EXCEPT (_rowid, _rowaddr)`, one for each table in order. This has limits, in such
//! statements only:
//!
//! - `*` over a join with USING or NATURAL would change its meaning, so it is an error that
//!   says to write the columns out; a NATURAL join would join on the hidden columns, so it is
//!   an error with and without `*`.
//! - Next to a table, a subquery or table function needs an alias for `*` to be written out.
//! - A column can be qualified by the table's own name or alias (`t.x`), not by
//!   its schema too (`public.t.x`): the name is an alias now. This also holds for versions.
//! - `EXCEPT` fails on columns that are not there. So quoted paths, `information_schema` and
//!   `system`, which never have row ids, are left alone; the catalog resolves every other name
//!   with the suffix, and `*` over what it can't give row ids (a view) is an error.
//! - A table whose alias renames its columns (`t AS a (x, y)`) is read without them.

mod wildcards;

use std::collections::{HashSet, VecDeque};
use std::ops::ControlFlow;

use datafusion::sql::parser::{CopyToSource, Statement as DataFusionStatement};
use datafusion::sql::sqlparser::ast::{
    Ident, JoinConstraint, JoinOperator, ObjectName, ObjectNamePart, Query, Select, SelectItem,
    SelectItemQualifiedWildcardKind, TableAlias, TableFactor, TableWithJoins, VisitMut, VisitorMut,
    WildcardAdditionalOptions,
};

use self::wildcards::{cannot_write_out, hide, qualified_wildcard, wildcard_like};
use super::reader::normalise;
use super::versions::read_version;
use crate::database::name::TableName;
use crate::sql::statement::{AlterAction, AlterViewAction, Statement};
use crate::{Error, Result};

/// The columns that `*` leaves out.
const HIDDEN: [&str; 2] = ["_rowid", "_rowaddr"];

/// Whether `name` is one of the columns that `*` leaves out.
pub fn is_hidden_column(name: &str) -> bool {
    HIDDEN.contains(&name)
}

/// Moves versions, and row ids if `row_ids` says that they are named somewhere in the
/// statement, into the names of the tables that `statement` reads.
pub(super) fn resolve(statement: &mut Statement, row_ids: bool) -> Result<()> {
    let mut resolver = Resolver {
        row_ids,
        of_materialized_view: matches!(
            statement,
            Statement::CreateMaterializedView(_)
                | Statement::ExplainCreateView(_)
                | Statement::AlterMaterializedView(_)
        ),
        scopes: Vec::new(),
    };
    let flow = match statement {
        Statement::DataFusion(statement) => visit_datafusion(statement, &mut resolver),
        Statement::CreateTable(create) => create.query.visit(&mut resolver),
        Statement::CreateView(create) => create.query.visit(&mut resolver),
        Statement::CreateMaterializedView(create) | Statement::ExplainCreateView(create) => {
            create.query.visit(&mut resolver)
        }
        Statement::AlterMaterializedView(alter) => {
            all(alter.actions.iter_mut().map(|action| match action {
                AlterViewAction::As(query) => query.visit(&mut resolver),
                AlterViewAction::RenameTo(_)
                | AlterViewAction::Set(_)
                | AlterViewAction::Reset(_)
                | AlterViewAction::Suspend
                | AlterViewAction::Resume
                | AlterViewAction::UpgradeFunctions => ControlFlow::Continue(()),
            }))
        }
        Statement::Insert(insert) => insert.query.visit(&mut resolver),
        Statement::Update(update) => all([
            update.from.visit(&mut resolver),
            update.selection.visit(&mut resolver),
            all(update
                .assignments
                .iter_mut()
                .map(|(_, value)| value.visit(&mut resolver))),
        ]),
        Statement::Delete(delete) => all([
            delete.using.visit(&mut resolver),
            delete.selection.visit(&mut resolver),
        ]),
        Statement::RefreshColumn(refresh) | Statement::ExplainRefresh { refresh, .. } => {
            refresh.filter.visit(&mut resolver)
        }
        Statement::AlterTable(alter) => all(alter.actions.iter_mut().map(|action| match action {
            AlterAction::AddColumn { column, .. } => all([
                column.default.visit(&mut resolver),
                match &mut column.generated {
                    Some(generated) => generated.expression.visit(&mut resolver),
                    None => ControlFlow::Continue(()),
                },
            ]),
            AlterAction::AddColumns { expression, .. }
            | AlterAction::SetExpression { expression, .. } => expression.visit(&mut resolver),
            AlterAction::SetDefault { default, .. } => default.visit(&mut resolver),
            AlterAction::DropColumn { .. }
            | AlterAction::RenameColumn { .. }
            | AlterAction::RenameTable { .. }
            | AlterAction::SetType { .. }
            | AlterAction::SetNullable { .. }
            | AlterAction::DropExpression { .. }
            | AlterAction::EnableRowTracking => ControlFlow::Continue(()),
        })),
        Statement::Truncate { .. }
        | Statement::Drop(_)
        | Statement::Describe { .. }
        | Statement::Show(_)
        | Statement::Optimize { .. }
        | Statement::RefreshView(_)
        | Statement::ExplainRefreshView { .. }
        | Statement::DescribeMaterializedView { .. }
        | Statement::Job(_)
        | Statement::Transaction { .. }
        | Statement::Vacuum(_)
        | Statement::CreateTag(_)
        | Statement::DropTag(_)
        | Statement::ShowTags { .. }
        | Statement::Restore { .. } => ControlFlow::Continue(()),
    };
    match flow {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(*error),
    }
}

type Flow = ControlFlow<Box<Error>>;

/// The first of `flows` that breaks.
fn all(flows: impl IntoIterator<Item = Flow>) -> Flow {
    flows
        .into_iter()
        .find(ControlFlow::is_break)
        .unwrap_or(ControlFlow::Continue(()))
}

fn visit_datafusion(statement: &mut DataFusionStatement, resolver: &mut Resolver) -> Flow {
    match statement {
        DataFusionStatement::Statement(statement) => statement.visit(resolver),
        DataFusionStatement::CopyTo(copy) => match &mut copy.source {
            CopyToSource::Query(query) => query.visit(resolver),
            CopyToSource::Relation(_) => ControlFlow::Continue(()),
        },
        DataFusionStatement::Explain(explain) => visit_datafusion(&mut explain.statement, resolver),
        DataFusionStatement::CreateExternalTable(_) | DataFusionStatement::Reset(_) => {
            ControlFlow::Continue(())
        }
    }
}

/// The names that one query's WITH defines. sqlparser visits the queries of a WITH in
/// order and before anything else of the query, so the names are defined one by one as their
/// queries end, and the first queries below a query are those of its WITH.
#[derive(Default)]
struct Scope {
    defined: HashSet<String>,
    pending: VecDeque<String>,
}

struct Resolver {
    row_ids: bool,
    /// Whether the query is one of a materialized view.
    of_materialized_view: bool,
    scopes: Vec<Scope>,
}

impl VisitorMut for Resolver {
    type Break = Box<Error>;

    fn pre_visit_query(&mut self, query: &mut Query) -> Flow {
        let mut scope = Scope::default();
        if let Some(with) = &query.with {
            let names = with
                .cte_tables
                .iter()
                .map(|cte| normalise(cte.alias.name.clone()));
            if with.recursive {
                scope.defined = names.clone().collect();
            }
            scope.pending = names.collect();
        }
        self.scopes.push(scope);
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _query: &mut Query) -> Flow {
        self.scopes.pop();
        if let Some(parent) = self.scopes.last_mut()
            && let Some(name) = parent.pending.pop_front()
        {
            parent.defined.insert(name);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> Flow {
        if self.row_ids
            && let Err(error) = self.write_out_wildcards(select)
        {
            return ControlFlow::Break(Box::new(error));
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> Flow {
        match self.rename(factor) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(Box::new(error)),
        }
    }
}

impl Resolver {
    /// Whether `name` is defined by a WITH around this place.
    fn is_with_query(&self, name: &ObjectName) -> bool {
        match name.0.as_slice() {
            [ObjectNamePart::Identifier(ident)] => {
                let name = normalise(ident.clone());
                self.scopes
                    .iter()
                    .any(|scope| scope.defined.contains(&name))
            }
            _ => false,
        }
    }

    /// Whether the hidden columns of `factor` are read here.
    fn reads_row_ids(&self, factor: &TableFactor) -> bool {
        match factor {
            TableFactor::Table {
                name,
                args: None,
                alias,
                ..
            } => {
                self.row_ids
                    && !self.is_with_query(name)
                    && can_have_row_ids(name)
                    && alias.as_ref().is_none_or(|alias| alias.columns.is_empty())
            }
            _ => false,
        }
    }

    /// Moves version and row ids of a table into its name.
    fn rename(&self, factor: &mut TableFactor) -> Result<()> {
        let row_ids = self.reads_row_ids(factor);
        if self.of_materialized_view {
            check_source(factor)?;
        }
        let TableFactor::Table {
            name,
            alias,
            args,
            version,
            ..
        } = factor
        else {
            return Ok(());
        };
        let version = version.take().map(read_version).transpose()?;
        if version.is_some() && args.is_some() {
            return Err(Error::invalid(format!(
                "'{name}' is a table function; only a table has versions"
            )));
        }
        if version.is_some() && self.is_with_query(name) {
            return Err(Error::invalid(format!(
                "'{name}' is a query of WITH; only a table has versions"
            ))
            .with_hint("write VERSION AS OF after the tables in that query"));
        }
        if version.is_none() && !row_ids {
            return Ok(());
        }
        let Some(ObjectNamePart::Identifier(last)) = name.0.last_mut() else {
            return Ok(());
        };
        let own_name = normalise(last.clone());
        let given = TableName::parse(&own_name);
        if version.is_some() && given.version.is_some() {
            return Err(Error::invalid(format!("'{own_name}' is a version already")));
        }
        if alias.is_none() {
            *alias = Some(TableAlias {
                explicit: true,
                name: Ident {
                    value: given.name.to_string(),
                    quote_style: last.quote_style.map(|_| '"'),
                    span: last.span,
                },
                columns: Vec::new(),
                at: None,
            });
        }
        last.value = TableName {
            version: version.or(given.version),
            row_ids: row_ids || given.row_ids,
            ..given
        }
        .to_string();
        last.quote_style = Some('"');
        Ok(())
    }

    /// Replaces `*` by one wildcard for each table, without the hidden columns.
    fn write_out_wildcards(&self, select: &mut Select) -> Result<()> {
        let mut joins = select.from.iter().flat_map(|from| &from.joins);
        let reads_row_ids = select.from.iter().any(|from| self.any_row_ids(from));
        if !reads_row_ids {
            return Ok(());
        }
        if joins.any(|join| {
            matches!(
                constraint(&join.join_operator),
                Some(JoinConstraint::Natural)
            )
        }) {
            return Err(Error::invalid(
                "a NATURAL join would join on _rowid and _rowaddr too, which this statement names",
            )
            .with_hint("write the join as JOIN … ON …"));
        }
        let mut projection = Vec::with_capacity(select.projection.len());
        for item in std::mem::take(&mut select.projection) {
            match item {
                SelectItem::Wildcard(options) => {
                    projection.extend(self.written_out(&select.from, options)?);
                }
                SelectItem::QualifiedWildcard(
                    SelectItemQualifiedWildcardKind::ObjectName(name),
                    options,
                ) => projection.push(self.without_hidden(&select.from, name, options)?),
                other => projection.push(other),
            }
        }
        select.projection = projection;
        Ok(())
    }

    /// Whether a table of `from` is read with its hidden columns.
    fn any_row_ids(&self, from: &TableWithJoins) -> bool {
        std::iter::once(&from.relation)
            .chain(from.joins.iter().map(|join| &join.relation))
            .any(|factor| match factor {
                TableFactor::NestedJoin {
                    table_with_joins, ..
                } => self.any_row_ids(table_with_joins),
                other => self.reads_row_ids(other),
            })
    }

    /// What `*` stands for.
    fn written_out(
        &self,
        from: &[TableWithJoins],
        options: WildcardAdditionalOptions,
    ) -> Result<Vec<SelectItem>> {
        let mut visible = Vec::new();
        for from in from {
            visible.extend(visible_factors(from)?);
        }
        if visible.len() > 1 && options != wildcard_like(&options) {
            return Err(cannot_write_out(
                "EXCEPT, EXCLUDE, REPLACE and RENAME after it speak of more than one table",
            ));
        }
        visible
            .into_iter()
            .map(|factor| {
                let name = reference(factor).ok_or_else(|| {
                    cannot_write_out("a subquery or table function in FROM has no alias")
                })?;
                let options = options.clone();
                Ok(qualified_wildcard(
                    name,
                    if self.reads_row_ids(factor) {
                        hide(options)
                    } else {
                        options
                    },
                ))
            })
            .collect()
    }

    /// `t.*` without the hidden columns of t.
    fn without_hidden(
        &self,
        from: &[TableWithJoins],
        name: ObjectName,
        options: WildcardAdditionalOptions,
    ) -> Result<SelectItem> {
        let mut factors = Vec::new();
        for from in from {
            all_factors(from, &mut factors);
        }
        let same = |factor: &&TableFactor| is_reference(factor, &name);
        match factors.into_iter().find(same) {
            Some(factor) if self.reads_row_ids(factor) => Ok(qualified_wildcard(
                reference(factor).unwrap_or(name),
                hide(options),
            )),
            _ => Ok(qualified_wildcard(name, options)),
        }
    }
}

/// Refuses what can't be said of a table in the query of a materialized view.
fn check_source(factor: &TableFactor) -> Result<()> {
    let TableFactor::Table {
        name,
        version,
        with_hints,
        ..
    } = factor
    else {
        return Ok(());
    };
    let last = name.0.last().and_then(ObjectNamePart::as_ident).cloned();
    let own_name = last.map(normalise).unwrap_or_default();
    if version.is_some() || TableName::parse(&own_name).version.is_some() {
        return Err(Error::invalid(format!(
            "the query of a materialized view can't read a version of '{}'",
            TableName::parse(&own_name).name
        ))
        .with_hint(
            "a materialized view follows its sources; AS OF of REFRESH reads older versions",
        ));
    }
    // sqlparser takes them for hints about the table, which nobody would read.
    if !with_hints.is_empty() {
        return Err(
            Error::invalid(format!("WITH (…) stands behind table '{own_name}'"))
                .with_hint("the options of a materialized view stand before AS"),
        );
    }
    Ok(())
}

/// Whether a table of this name may have row ids: not a file by its path, and not one of
/// the schemas that hold no tables.
fn can_have_row_ids(name: &ObjectName) -> bool {
    let parts: Vec<&Ident> = name.0.iter().filter_map(ObjectNamePart::as_ident).collect();
    let [.., last] = parts.as_slice() else {
        return false;
    };
    let is_path = last.quote_style == Some('\'') || last.value.contains(['/', '\\', ':', '.', '*']);
    let schema = parts
        .len()
        .checked_sub(2)
        .and_then(|index| parts.get(index));
    let no_tables = schema.is_some_and(|schema| {
        ["information_schema", "system"].contains(&normalise((*schema).clone()).as_str())
    });
    parts.len() <= 3 && !is_path && !no_tables
}

/// What `factor` is called in the rest of the statement.
fn reference(factor: &TableFactor) -> Option<ObjectName> {
    let alias = match factor {
        TableFactor::Table {
            name,
            alias: None,
            args: None,
            ..
        } => {
            let last = name.0.last()?.as_ident()?;
            let own_name = normalise(last.clone());
            return Some(ObjectName::from(vec![Ident {
                value: TableName::parse(&own_name).name.to_string(),
                quote_style: last.quote_style.map(|_| '"'),
                span: last.span,
            }]));
        }
        TableFactor::Table { alias, .. }
        | TableFactor::Derived { alias, .. }
        | TableFactor::TableFunction { alias, .. }
        | TableFactor::Function { alias, .. }
        | TableFactor::UNNEST { alias, .. } => alias,
        _ => &None,
    };
    alias
        .as_ref()
        .map(|alias| ObjectName::from(vec![alias.name.clone()]))
}

/// Whether `name` names `factor`, by its alias or its full name.
fn is_reference(factor: &TableFactor, name: &ObjectName) -> bool {
    let normalised = |name: &ObjectName| {
        name.0
            .iter()
            .map(|part| part.as_ident().cloned().map(normalise))
            .collect::<Option<Vec<_>>>()
    };
    let Some(name) = normalised(name) else {
        return false;
    };
    let by_full_name = match factor {
        TableFactor::Table {
            name: full,
            alias: None,
            ..
        } => normalised(full).is_some_and(|full| full.ends_with(&name)),
        _ => false,
    };
    by_full_name || reference(factor).and_then(|known| normalised(&known)) == Some(name)
}

/// All tables, subqueries and functions of a FROM item.
fn all_factors<'a>(from: &'a TableWithJoins, factors: &mut Vec<&'a TableFactor>) {
    for factor in
        std::iter::once(&from.relation).chain(from.joins.iter().map(|join| &join.relation))
    {
        match factor {
            TableFactor::NestedJoin {
                table_with_joins, ..
            } => all_factors(table_with_joins, factors),
            other => factors.push(other),
        }
    }
}

/// Those of a FROM item whose columns `*` shows, in order.
fn visible_factors(from: &TableWithJoins) -> Result<Vec<&TableFactor>> {
    fn of_factor(factor: &TableFactor) -> Result<Vec<&TableFactor>> {
        match factor {
            TableFactor::NestedJoin {
                table_with_joins,
                alias: None,
            } => visible_factors(table_with_joins),
            other => Ok(vec![other]),
        }
    }
    let mut visible = of_factor(&from.relation)?;
    for join in &from.joins {
        if let Some(JoinConstraint::Using(_) | JoinConstraint::Natural) =
            constraint(&join.join_operator)
        {
            return Err(cannot_write_out("it is over a join with USING or NATURAL"));
        }
        match &join.join_operator {
            JoinOperator::Semi(_)
            | JoinOperator::LeftSemi(_)
            | JoinOperator::Anti(_)
            | JoinOperator::LeftAnti(_) => {}
            JoinOperator::RightSemi(_) | JoinOperator::RightAnti(_) => {
                visible = of_factor(&join.relation)?;
            }
            _ => visible.extend(of_factor(&join.relation)?),
        }
    }
    Ok(visible)
}

fn constraint(operator: &JoinOperator) -> Option<&JoinConstraint> {
    match operator {
        JoinOperator::Join(constraint)
        | JoinOperator::Inner(constraint)
        | JoinOperator::Left(constraint)
        | JoinOperator::LeftOuter(constraint)
        | JoinOperator::Right(constraint)
        | JoinOperator::RightOuter(constraint)
        | JoinOperator::FullOuter(constraint)
        | JoinOperator::CrossJoin(constraint)
        | JoinOperator::Semi(constraint)
        | JoinOperator::LeftSemi(constraint)
        | JoinOperator::RightSemi(constraint)
        | JoinOperator::Anti(constraint)
        | JoinOperator::LeftAnti(constraint)
        | JoinOperator::RightAnti(constraint)
        | JoinOperator::StraightJoin(constraint)
        | JoinOperator::AsOf { constraint, .. } => Some(constraint),
        JoinOperator::CrossApply
        | JoinOperator::OuterApply
        | JoinOperator::ArrayJoin
        | JoinOperator::LeftArrayJoin
        | JoinOperator::InnerArrayJoin => None,
    }
}
