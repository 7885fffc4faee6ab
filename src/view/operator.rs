//! The operators of a view's query, as maintenance sees them.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;

use datafusion::common::{Column, DFSchemaRef};
use datafusion::logical_expr::{Expr, LogicalPlan};
use futures::future::{BoxFuture, ready};

use super::cost::{Cost, Known};
use super::pass::Pass;
use super::relation::{KeyColumn, Restriction, Side, arrange, union};
use crate::Result;
use crate::storage::key_set::KeySet;

/// A plan that is being made of the rows of a relation; `None` if there can't be a row in it.
pub(super) type Planned<'a> = BoxFuture<'a, Result<Option<LogicalPlan>>>;

/// An operator of a class: it says how its relations follow from those of its inputs.
pub(super) trait Operator: Debug + Send + Sync {
    /// One word for the class, as EXPLAIN shows it.
    fn class(&self) -> &'static str;

    /// What it reads from.
    fn inputs(&self) -> Vec<&Node>;

    /// One of its relations, with the columns of its node and the key behind them, in this order; `None` if there can't
    /// be a row in it.
    fn relation<'a>(&'a self, node: &'a Node, pass: &'a Pass, side: Side) -> Planned<'a>;

    /// The rows that are the same at both versions and meet `restriction`, which is over the columns of its node.
    fn restricted<'a>(
        &'a self,
        node: &'a Node,
        pass: &'a Pass,
        restriction: &'a Restriction,
    ) -> Planned<'a> {
        Box::pin(node.filtered(pass, restriction))
    }

    /// Whether computing its relations costs more than keeping them.
    fn is_costly(&self) -> bool {
        false
    }

    /// Whether a change takes all of its rows away.
    fn replaces_all(&self) -> bool {
        false
    }

    /// Its place among the sources of the query, if it is one.
    fn source(&self) -> Option<usize> {
        None
    }

    /// Its input and the columns that it computes, if it is a projection.
    fn projection(&self) -> Option<(&Node, &[Expr])> {
        None
    }

    /// The columns of sources that a column of its output is computed from; `None` if that can't be told.
    fn origins(&self, _: &Column) -> Option<Origins> {
        None
    }

    /// The keys of the rows that may be removed or added, if they are found without computing these.
    fn touched_keys<'a>(
        &'a self,
        _: &'a Node,
        _: &'a Pass,
    ) -> BoxFuture<'a, Result<Option<Arc<KeySet>>>> {
        Box::pin(ready(Ok(None)))
    }

    /// What its output costs, given what its inputs do.
    fn cost(&self, inputs: &[Cost], _: &Known) -> Cost {
        Cost::of_rows(inputs)
    }

    /// Whether each of its rows comes from single rows of the sources, whose ids are its key, so that a row of
    /// its output changed only if one of those did.
    fn is_by_row(&self) -> bool {
        false
    }
}

/// Columns of sources, each with the place of its source among those of the query.
pub(super) type Origins = BTreeSet<(usize, String)>;

/// An operator in its place in the query.
#[derive(Debug)]
pub(super) struct Node {
    /// Its number, one in the query.
    pub(super) id: usize,
    /// The columns of its output, without the key.
    pub(super) schema: DFSchemaRef,
    /// Its key.
    pub(super) keys: Vec<KeyColumn>,
    operator: Box<dyn Operator>,
}

impl Node {
    /// An operator with these columns and this key.
    pub(super) fn new(
        id: usize,
        schema: DFSchemaRef,
        keys: Vec<KeyColumn>,
        operator: impl Operator + 'static,
    ) -> Self {
        Self {
            id,
            schema,
            keys,
            operator: Box::new(operator),
        }
    }

    /// One of its relations. What it removes and adds is computed once, and kept as long as it is small.
    pub(super) async fn relation(&self, pass: &Pass, side: Side) -> Result<Option<LogicalPlan>> {
        let is_asked_again = matches!(side, Side::Removed | Side::Added);
        if is_asked_again && self.operator.is_costly() {
            return pass.kept_relation(self, side).await;
        }
        self.stream(pass, side).await
    }

    /// The rows of a side, which is old, new or unchanged, that meet `restriction`. They are supposed to be few: those that
    /// are the same at both versions are found once.
    pub(super) async fn restricted(
        &self,
        pass: &Pass,
        side: Side,
        restriction: &Restriction,
    ) -> Result<Option<LogicalPlan>> {
        let unchanged = pass.kept_restricted(self, restriction).await?;
        let change = match side {
            Side::Old | Side::Removed => self.relation(pass, Side::Removed).await?,
            Side::New | Side::Added => self.relation(pass, Side::Added).await?,
            Side::Unchanged => None,
        };
        let change = change.map(|rows| restriction.filter(rows)).transpose()?;
        Ok(union([unchanged.rows, change])?)
    }

    /// The unchanged rows that meet `restriction`, looked for among all.
    pub(super) async fn filtered(
        &self,
        pass: &Pass,
        restriction: &Restriction,
    ) -> Result<Option<LogicalPlan>> {
        let rows = self.relation(pass, Side::Unchanged).await?;
        Ok(rows.map(|rows| restriction.filter(rows)).transpose()?)
    }

    /// The unchanged rows that meet `restriction`, computed as they are read.
    pub(super) async fn stream_restricted(
        &self,
        pass: &Pass,
        restriction: &Restriction,
    ) -> Result<Option<LogicalPlan>> {
        self.operator.restricted(self, pass, restriction).await
    }

    /// As [`relation`](Self::relation), for one that is asked for once only.
    pub(super) async fn stream(&self, pass: &Pass, side: Side) -> Result<Option<LogicalPlan>> {
        self.operator.relation(self, pass, side).await
    }

    /// What logs call it.
    pub(super) fn name(&self) -> String {
        format!("{} {}", self.operator.class(), self.id)
    }

    /// Its input and the columns that it computes, if it is a projection.
    pub(super) fn projection(&self) -> Option<(&Node, &[Expr])> {
        self.operator.projection()
    }

    /// The columns of sources that a column of its output is computed from; `None` if that can't be told.
    pub(super) fn origins(&self, column: &Column) -> Option<Origins> {
        self.operator.origins(column)
    }

    /// The keys of the rows that are removed, and perhaps of others that may be.
    pub(super) async fn touched_keys(&self, pass: &Pass) -> Result<Option<Arc<KeySet>>> {
        self.operator.touched_keys(self, pass).await
    }

    /// Its columns and its key, taken from a plan that has them among others.
    pub(super) fn arrange(&self, plan: LogicalPlan) -> Result<LogicalPlan> {
        Ok(arrange(plan, &self.schema, &self.keys)?)
    }

    /// Whether each row comes from single rows of the sources, whose ids are its key.
    pub(super) fn is_by_row(&self) -> bool {
        self.operator.is_by_row() && self.operator.inputs().iter().all(|input| input.is_by_row())
    }

    /// Whether a change takes all of its rows away.
    pub(super) fn replaces_all(&self) -> bool {
        match self.projection() {
            Some((input, _)) => input.replaces_all(),
            None => self.operator.replaces_all(),
        }
    }

    /// What its output costs.
    pub(super) fn cost(&self, known: &Known) -> Cost {
        let inputs = self.operator.inputs().into_iter();
        let inputs: Vec<Cost> = inputs.map(|input| input.cost(known)).collect();
        self.operator.cost(&inputs, known)
    }

    /// How many rows its largest source has.
    pub(super) fn source_rows(&self, pass: &Pass) -> u64 {
        let own = self
            .operator
            .source()
            .and_then(|place| pass.sources.get(place));
        let own = own.map_or(0, |source| source.rows());
        let inputs = self.operator.inputs().into_iter();
        inputs.fold(own, |most, input| most.max(input.source_rows(pass)))
    }

    /// The classes in it, from the top down, each once.
    pub(super) fn classes(&self) -> Vec<&'static str> {
        let mut classes = Vec::new();
        self.add_classes(&mut classes);
        classes
    }

    fn add_classes(&self, classes: &mut Vec<&'static str>) {
        if !classes.contains(&self.operator.class()) {
            classes.push(self.operator.class());
        }
        for input in self.operator.inputs() {
            input.add_classes(classes);
        }
    }
}
