//! From a query's plan to operators: which class each belongs to, and what its key is.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field};
use datafusion::arrow::row::{RowConverter, SortField};
use datafusion::common::{DFSchema, DFSchemaRef, DataFusionError, JoinType};
use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::{
    Aggregate, Expr, ExprSchemable, Join, Limit, LogicalPlan, Projection, SortExpr, TableScan,
    Union, Unnest, Values, Window, cast,
};
use datafusion::sql::TableReference;

use super::constant::Constant;
use super::group::Group;
use super::grouping_sets::grouping_sets;
use super::join::InnerJoin;
use super::matching::MatchingJoin;
use super::operator::Node;
use super::relation::KeyColumn;
use super::row::{ByRow, RowStep};
use super::signed::{SignedGroup, states};
use super::source::{Origin, Scan, Source};
use super::ties::{ordered_aggregate, ordered_window};
use super::top::Top;
use super::union::UnionAll;
use super::unnest::Unnested;
use super::window::Windows;
use crate::Error;
use crate::database::LanceTable;
use crate::database::expression::stored_type;
use crate::function::has_call;

/// A query as operators.
#[derive(Debug)]
pub(super) struct Classified {
    /// The last operator.
    pub(super) root: Node,
    /// The sources, in the order of the query.
    pub(super) sources: Vec<Source>,
    /// The stages, each behind those that it reads.
    pub(super) stages: Vec<StagePlan>,
}

/// A part of a query whose rows are stored in a table of their own (see [`super::stage`]).
#[derive(Debug)]
pub(super) struct StagePlan {
    /// The part.
    pub(super) plan: LogicalPlan,
    /// What tells it from others.
    pub(super) text: String,
    /// Its last operator.
    pub(super) root: Node,
    /// Its sources.
    pub(super) sources: Vec<Source>,
}

/// Why a query can't be maintained.
#[derive(Debug)]
pub(super) enum Obstacle {
    /// It can only be computed in full, for this reason code.
    Full(String),
    /// It can't be a materialized view.
    Refused(Error),
}

impl From<Error> for Obstacle {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl From<DataFusionError> for Obstacle {
    fn from(error: DataFusionError) -> Self {
        Self::Refused(error.into())
    }
}

pub(super) type Classification<T> = std::result::Result<T, Obstacle>;

/// Divides a plan into operators.
pub(super) fn classify(plan: &LogicalPlan) -> Classification<Classified> {
    let mut classifier = Classifier {
        is_at_top: true,
        ..Default::default()
    };
    let root = classifier.node(plan)?;
    Ok(Classified {
        root,
        sources: classifier.sources,
        stages: classifier.stages,
    })
}

/// The table that a scan reads, with the columns of it.
pub(super) fn source_of(scan: &TableScan, table: &LanceTable) -> Source {
    let mut columns: Vec<String> = Vec::new();
    let filtered = scan.filters.iter().flat_map(Expr::column_refs);
    let read = scan.projected_schema.columns();
    for column in read.iter().chain(filtered) {
        let is_row_id = column.name == "_rowid" || column.name == "_rowaddr";
        if !columns.contains(&column.name) && !is_row_id {
            columns.push(column.name.clone());
        }
    }
    Source {
        table: table.name().to_string(),
        origin: Origin::Table(Arc::clone(table.dataset())),
        columns,
    }
}

pub(super) fn not_incremental(operator: &str) -> Obstacle {
    Obstacle::Full(format!("OPERATOR_NOT_INCREMENTALIZABLE({operator})"))
}

#[derive(Debug, Default)]
struct Classifier {
    nodes: usize,
    keys: usize,
    sources: Vec<Source>,
    stages: Vec<StagePlan>,
    /// Whether there are only projections above.
    is_at_top: bool,
    /// Whether the rows of groupings are not stored, since they are the rows of the view, or of a stage.
    is_stored: bool,
    /// Whether there is an operator above that reads what changed more than once.
    is_reread: bool,
}

impl Classifier {
    fn next_node(&mut self) -> usize {
        self.nodes += 1;
        self.nodes
    }

    fn key(&mut self, data_type: DataType, source: Option<usize>) -> KeyColumn {
        self.keys += 1;
        KeyColumn {
            name: format!("__key_{}", self.keys),
            data_type,
            source,
            is_state: false,
        }
    }

    fn node(&mut self, plan: &LogicalPlan) -> Classification<Node> {
        if !self.is_at_top && !self.is_stored && is_stage(plan) {
            return self.stage(plan);
        }
        let (is_reread, is_stored) = (self.is_reread, self.is_stored);
        self.is_stored &= matches!(plan, LogicalPlan::Union(_) | LogicalPlan::Projection(_));
        self.is_reread |= matches!(
            plan,
            LogicalPlan::Join(_)
                | LogicalPlan::Aggregate(_)
                | LogicalPlan::Window(_)
                | LogicalPlan::Limit(_)
        );
        let node = self.operator(plan);
        (self.is_reread, self.is_stored) = (is_reread, is_stored);
        node
    }

    fn operator(&mut self, plan: &LogicalPlan) -> Classification<Node> {
        let is_at_top = std::mem::take(&mut self.is_at_top);
        self.is_at_top = is_at_top
            && match plan {
                LogicalPlan::Projection(_)
                | LogicalPlan::SubqueryAlias(_)
                | LogicalPlan::Repartition(_) => true,
                LogicalPlan::Sort(sort) => sort.fetch.is_none(),
                _ => false,
            };
        match plan {
            LogicalPlan::TableScan(scan) => self.scan(scan),
            LogicalPlan::Projection(projection) => {
                let step = RowStep::Project(projection.expr.clone());
                self.by_row(plan, &projection.input, step)
            }
            LogicalPlan::Filter(filter) => {
                let step = RowStep::Filter(filter.predicate.clone());
                self.by_row(plan, &filter.input, step)
            }
            LogicalPlan::SubqueryAlias(alias) => {
                let step = RowStep::Alias(alias.alias.clone());
                self.by_row(plan, &alias.input, step)
            }
            LogicalPlan::Unnest(unnest) => self.unnest(unnest),
            LogicalPlan::Union(union) => self.union(union),
            LogicalPlan::Join(join) => self.join(join),
            LogicalPlan::Aggregate(aggregate) => self.aggregate(aggregate, is_at_top),
            LogicalPlan::Window(window) => self.window(window),
            LogicalPlan::Limit(limit) => self.limit(limit),
            // An order without a limit is none of a table's.
            LogicalPlan::Sort(sort) if sort.fetch.is_none() => self.node(&sort.input),
            LogicalPlan::Repartition(repartition) => self.node(&repartition.input),
            LogicalPlan::EmptyRelation(empty) => {
                let rows = match empty.produce_one_row {
                    true => vec![plan.clone()],
                    false => Vec::new(),
                };
                self.constant(&empty.schema, Constant { rows })
            }
            LogicalPlan::Values(values @ Values { schema, .. }) => {
                self.constant(schema, Constant::values(values))
            }
            LogicalPlan::RecursiveQuery(_) => Err(not_incremental("RecursiveQuery")),
            other => {
                let name = other.display().to_string();
                let name = name.split([' ', ':']).next().unwrap_or_default();
                Err(not_incremental(name))
            }
        }
    }

    /// Reads the rows of `plan` from a table of their own.
    fn stage(&mut self, plan: &LogicalPlan) -> Classification<Node> {
        let (number, place) = (self.stage_of(plan)?, self.sources.len());
        let names = stage_columns(plan.schema());
        self.sources.push(Source {
            table: String::new(),
            origin: Origin::Stage(number),
            columns: names.clone(),
        });
        let name = TableReference::bare(format!("__stage_{number}"));
        let fields = plan.schema().fields().iter().zip(&names);
        let fields = fields.map(|(field, column)| {
            let stored = Field::new(column, stored_type(field.data_type()), true);
            (Some(name.clone()), Arc::new(stored))
        });
        let schema = DFSchema::new_with_metadata(fields.collect(), HashMap::new())?;
        let schema = Arc::new(schema);
        let values = plan.schema().iter().zip(schema.columns());
        let values = values.map(|((qualifier, field), column)| {
            cast(Expr::Column(column), field.data_type().clone())
                .alias_qualified(qualifier.cloned(), field.name())
        });
        let step = RowStep::Project(values.collect());
        let scan = Scan {
            place,
            name,
            filters: Vec::new(),
            schema: Arc::clone(&schema),
            is_reread: self.is_reread,
        };
        let keys = vec![self.key(DataType::UInt64, Some(place))];
        let input = Node::new(self.next_node(), schema, keys.clone(), scan);
        let operator = ByRow { input, step };
        let schema = Arc::clone(plan.schema());
        Ok(Node::new(self.next_node(), schema, keys, operator))
    }

    /// The number of the stage that holds the rows of `plan`: parts that are the same are stored once.
    fn stage_of(&mut self, plan: &LogicalPlan) -> Classification<usize> {
        let text = plan.display_indent_schema().to_string();
        if let Some(number) = self.stages.iter().position(|stage| stage.text == text) {
            return Ok(number);
        }
        let mut inner = Self {
            nodes: self.nodes,
            keys: self.keys,
            stages: std::mem::take(&mut self.stages),
            is_at_top: true,
            ..Self::default()
        };
        let root = inner.node(plan)?;
        (self.nodes, self.keys) = (inner.nodes, inner.keys);
        self.stages = inner.stages;
        self.stages.push(StagePlan {
            plan: plan.clone(),
            text,
            root,
            sources: inner.sources,
        });
        Ok(self.stages.len() - 1)
    }

    fn scan(&mut self, scan: &TableScan) -> Classification<Node> {
        let provider = source_as_provider(&scan.source)?;
        let Some(table) = provider.downcast_ref::<LanceTable>() else {
            return Err(not_incremental("TableFunction"));
        };
        if scan.fetch.is_some() {
            return Err(not_incremental("Limit"));
        }
        let place = self.sources.len();
        let source = source_of(scan, table);
        self.sources.push(source);
        let keys = vec![self.key(DataType::UInt64, Some(place))];
        let schema = Arc::clone(&scan.projected_schema);
        let operator = Scan {
            place,
            name: scan.table_name.clone(),
            filters: scan.filters.clone(),
            schema: Arc::clone(&schema),
            is_reread: self.is_reread,
        };
        Ok(Node::new(self.next_node(), schema, keys, operator))
    }

    fn constant(&mut self, schema: &DFSchemaRef, constant: Constant) -> Classification<Node> {
        let keys = vec![self.key(DataType::UInt64, None)];
        Ok(Node::new(
            self.next_node(),
            Arc::clone(schema),
            keys,
            constant,
        ))
    }

    fn by_row(
        &mut self,
        plan: &LogicalPlan,
        input: &LogicalPlan,
        step: RowStep,
    ) -> Classification<Node> {
        let input = self.node(input)?;
        let (schema, keys) = (Arc::clone(plan.schema()), input.keys.clone());
        let operator = ByRow { input, step };
        Ok(Node::new(self.next_node(), schema, keys, operator))
    }

    fn unnest(&mut self, unnest: &Unnest) -> Classification<Node> {
        let input = self.node(&unnest.input)?;
        let mut keys = input.keys.clone();
        if !unnest.list_type_columns.is_empty() {
            if unnest
                .list_type_columns
                .iter()
                .any(|(_, list)| list.depth != 1)
                || unnest.options.recursions.iter().any(|r| r.depth != 1)
            {
                return Err(not_incremental("Unnest"));
            }
            keys.push(self.key(DataType::Int64, None));
        }
        let operator = Unnested {
            input,
            unnest: unnest.clone(),
        };
        let schema = Arc::clone(&unnest.schema);
        Ok(Node::new(self.next_node(), schema, keys, operator))
    }

    fn union(&mut self, union: &Union) -> Classification<Node> {
        let mut keys = vec![self.key(DataType::UInt64, None)];
        let mut branches = Vec::with_capacity(union.inputs.len());
        for input in &union.inputs {
            let branch = self.node(input)?;
            keys.extend(branch.keys.iter().cloned());
            branches.push(branch);
        }
        let schema = Arc::clone(&union.schema);
        Ok(Node::new(
            self.next_node(),
            schema,
            keys,
            UnionAll { branches },
        ))
    }

    fn join(&mut self, join: &Join) -> Classification<Node> {
        let left = self.node(&join.left)?;
        let right = self.node(&join.right)?;
        let keys: Vec<KeyColumn> = match join.join_type {
            JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => left.keys.clone(),
            JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => right.keys.clone(),
            JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full => {
                left.keys.iter().chain(&right.keys).cloned().collect()
            }
        };
        let (schema, join) = (Arc::clone(&join.schema), join.clone());
        let id = self.next_node();
        Ok(match join.join_type {
            JoinType::Inner => Node::new(id, schema, keys, InnerJoin { left, right, join }),
            _ => {
                let on = join.on.iter().map(|(key, _)| key);
                check_keys(on, &left.schema)?;
                Node::new(id, schema, keys, MatchingJoin { left, right, join })
            }
        })
    }

    fn aggregate(&mut self, aggregate: &Aggregate, is_at_top: bool) -> Classification<Node> {
        if let [Expr::GroupingSet(sets)] = aggregate.group_expr.as_slice() {
            let union = grouping_sets(aggregate, sets)?;
            // Its groupings are not stored twice.
            self.is_stored = true;
            let node = self.operator(&union);
            self.is_stored = false;
            return node;
        }
        let input = self.node(&aggregate.input)?;
        check_keys(aggregate.group_expr.iter(), &input.schema)?;
        let groups = aggregate.group_expr.clone();
        let schema = Arc::clone(&aggregate.schema);
        let mut keys: Vec<KeyColumn> = match groups.is_empty() {
            true => vec![self.key(DataType::UInt64, None)],
            false => schema.fields()[..groups.len()]
                .iter()
                .map(|field| self.key(field.data_type().clone(), None))
                .collect(),
        };
        if is_at_top && let Some((states, results)) = states(&aggregate.aggr_expr, &input.schema)? {
            for state in &states {
                let mut column = self.key(state.get_type(&input.schema)?, None);
                column.is_state = true;
                keys.push(column);
            }
            let operator = SignedGroup {
                input,
                groups,
                results,
                states,
            };
            return Ok(Node::new(self.next_node(), schema, keys, operator));
        }
        let aggregates = aggregate
            .aggr_expr
            .iter()
            .map(|function| ordered_aggregate(function, &input.keys))
            .collect();
        let operator = Group {
            input,
            groups,
            aggregates,
        };
        Ok(Node::new(self.next_node(), schema, keys, operator))
    }

    fn window(&mut self, window: &Window) -> Classification<Node> {
        let mut partitions: Option<Vec<Expr>> = None;
        for function in &window.window_expr {
            let Expr::WindowFunction(function) = function.clone().unalias() else {
                return Err(not_incremental("Window"));
            };
            let by = &function.params.partition_by;
            partitions = Some(match partitions {
                None => by.clone(),
                Some(shared) => shared.into_iter().filter(|e| by.contains(e)).collect(),
            });
        }
        let partitions = partitions.unwrap_or_default();
        if partitions.is_empty() {
            return Err(Obstacle::Full("WINDOW_WITHOUT_PARTITION_BY".to_string()));
        }
        let input = self.node(&window.input)?;
        check_keys(partitions.iter(), &input.schema)?;
        let functions = window
            .window_expr
            .iter()
            .map(|function| ordered_window(function, &input.keys))
            .collect();
        let (schema, keys) = (Arc::clone(&window.schema), input.keys.clone());
        let operator = Windows {
            input,
            functions,
            partitions,
        };
        Ok(Node::new(self.next_node(), schema, keys, operator))
    }

    fn limit(&mut self, limit: &Limit) -> Classification<Node> {
        let mut input = limit.input.as_ref();
        let mut order: Vec<SortExpr> = Vec::new();
        match input {
            LogicalPlan::Sort(sort) => {
                order = sort.expr.clone();
                input = &sort.input;
            }
            // A column that is only sorted by is projected away behind the sort.
            LogicalPlan::Projection(projection)
                if matches!(projection.input.as_ref(), LogicalPlan::Sort(_)) =>
            {
                let below = LogicalPlan::Limit(Limit {
                    skip: limit.skip.clone(),
                    fetch: limit.fetch.clone(),
                    input: Arc::clone(&projection.input),
                });
                let above = Projection::try_new(projection.expr.clone(), Arc::new(below))?;
                return self.node(&LogicalPlan::Projection(above));
            }
            _ => {}
        }
        let input = match is_cheap(input) {
            true => self.node(input)?,
            false => self.stage(input)?,
        };
        let (schema, keys) = (Arc::clone(&input.schema), input.keys.clone());
        let operator = Top {
            input,
            order,
            skip: limit.skip.clone(),
            fetch: limit.fetch.clone(),
        };
        Ok(Node::new(self.next_node(), schema, keys, operator))
    }
}

/// Names of the columns of the table that holds the rows of a stage.
pub(super) fn stage_columns(schema: &DFSchema) -> Vec<String> {
    let places = 1..=schema.fields().len();
    places.map(|place| format!("column_{place}")).collect()
}

/// Whether the rows of a part of a query, above which there are other operators than projections, are stored: they cost more to
/// compute again than to keep.
fn is_stage(plan: &LogicalPlan) -> bool {
    let is_dear = match plan {
        LogicalPlan::Aggregate(_) => true,
        LogicalPlan::Projection(projection) => projection.expr.iter().any(has_call),
        _ => false,
    };
    is_dear && reads_tables(plan)
}

fn reads_tables(plan: &LogicalPlan) -> bool {
    matches!(plan, LogicalPlan::TableScan(_)) || plan.inputs().into_iter().any(reads_tables)
}

/// Whether what an order with a limit is over costs little to compute as a whole.
fn is_cheap(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::Join(_) | LogicalPlan::Window(_) => false,
        // It is stored.
        LogicalPlan::Aggregate(_) => true,
        _ => plan.inputs().into_iter().all(is_cheap),
    }
}

/// Refuses keys of a type that can't be compared.
fn check_keys<'a>(
    keys: impl IntoIterator<Item = &'a Expr>,
    schema: &DFSchema,
) -> Classification<()> {
    for key in keys {
        let field = SortField::new(key.get_type(schema)?);
        if !RowConverter::supports_fields(&[field]) {
            return Err(not_incremental("Aggregate"));
        }
    }
    Ok(())
}
