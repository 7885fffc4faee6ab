//! Evaluates expressions that call users' functions, for some rows. It is the same wherever that happens.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use datafusion::arrow::array::{Array, ArrayRef, RecordBatch, new_null_array};
use datafusion::arrow::compute::concat;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::{DFSchemaRef, Result as DataFusionResult};
use datafusion::execution::SessionState;
use datafusion::logical_expr::{EmptyRelation, Expr, LogicalPlan};
use datafusion::optimizer::common_subexpr_eliminate::CommonSubexprEliminate;
use datafusion::optimizer::{Optimizer, OptimizerContext};
use datafusion::physical_expr::PhysicalExpr;

use super::value_name;
use crate::function::{Meter, metered};
use crate::view::relation::project;
use crate::{Error, Result};

/// Layers of expressions, each over what the one before gives.
type Layers = Vec<(Vec<Arc<dyn PhysicalExpr>>, Vec<String>)>;

/// Evaluates expressions.
pub(in crate::view) struct Evaluator {
    state: SessionState,
    /// What the expressions read.
    schema: DFSchemaRef,
    expressions: Vec<Expr>,
    types: Vec<DataType>,
    meter: Arc<Meter>,
    /// Expressions that are evaluated together, by their places.
    compiled: Mutex<HashMap<Vec<usize>, Arc<Layers>>>,
}

impl fmt::Debug for Evaluator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Evaluator")
            .field("expressions", &self.expressions)
            .finish_non_exhaustive()
    }
}

/// What rows came to.
pub(super) struct Evaluated {
    /// By expression; NULL where a row failed. None of them if a failure ended it.
    pub(super) values: Vec<ArrayRef>,
    /// The rows of which no expression failed.
    pub(super) good: Vec<u32>,
    /// What failed.
    pub(super) failed: Vec<Failure>,
}

/// An expression failed on a row.
pub(super) struct Failure {
    /// Its place among those that were asked for.
    pub(super) place: usize,
    /// The row.
    pub(super) row: u32,
    /// Why.
    pub(super) error: Error,
}

impl Evaluator {
    /// Of `expressions`, over columns of `schema`, which give `types`. What calls take is added to `meter`.
    pub(in crate::view) fn new(
        state: SessionState,
        schema: DFSchemaRef,
        expressions: Vec<Expr>,
        types: Vec<DataType>,
        meter: Arc<Meter>,
    ) -> Self {
        Self {
            state,
            schema,
            expressions,
            types,
            meter,
            compiled: Mutex::default(),
        }
    }

    /// The session.
    pub(super) fn state(&self) -> &SessionState {
        &self.state
    }

    /// What the expressions read.
    pub(super) fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    /// The expression at a place, and its type.
    pub(super) fn expression(&self, place: usize) -> (&Expr, &DataType) {
        (&self.expressions[place], &self.types[place])
    }

    /// Evaluates the expressions at `places` for all rows of `inputs`. The first row that fails ends it, unless it
    /// `goes_on`.
    ///
    /// # Errors
    ///
    /// If an expression can't be planned; what fails on a row is no error here.
    pub(super) fn evaluate(
        &self,
        places: &[usize],
        inputs: &RecordBatch,
        goes_on: bool,
    ) -> Result<Evaluated> {
        let layers = self.compile(places)?;
        let rows = inputs.num_rows();
        let error = match run(&layers, inputs) {
            Ok(values) => {
                return Ok(Evaluated {
                    values,
                    good: (0..rows as u32).collect(),
                    failed: Vec::new(),
                });
            }
            Err(error) => error,
        };
        let (mut failed, mut parts, mut good) = (Vec::new(), Vec::new(), Vec::new());
        // Parts that are left, the first of them last.
        let mut left = vec![(0..rows, Some(error))];
        while let Some((part, known)) = left.pop() {
            let error = match known {
                Some(error) => error,
                None => match run(&layers, &inputs.slice(part.start, part.len())) {
                    Ok(values) => {
                        good.extend(part.start as u32..part.end as u32);
                        parts.push(values);
                        continue;
                    }
                    Err(error) => error,
                },
            };
            if part.len() > 1 {
                let middle = part.start + part.len() / 2;
                left.push((middle..part.end, None));
                left.push((part.start..middle, None));
                continue;
            }
            let row = part.start as u32;
            let (values, failures) = match places {
                // It is known which one fails: that need not be paid for again.
                [place] => {
                    let failures = vec![(0, Error::from(error))];
                    (vec![new_null_array(&self.types[*place], 1)], failures)
                }
                _ => self.one_row(places, &inputs.slice(part.start, 1))?,
            };
            if failures.is_empty() {
                // It failed only together with others, or by chance.
                good.push(row);
            }
            let failures = failures.into_iter();
            failed.extend(failures.map(|(place, error)| Failure { place, row, error }));
            if !failed.is_empty() && !goes_on {
                return Ok(Evaluated {
                    values: Vec::new(),
                    good,
                    failed,
                });
            }
            parts.push(values);
        }
        let values = (0..places.len()).map(|place| {
            let parts: Vec<&dyn Array> = parts.iter().map(|part| part[place].as_ref()).collect();
            concat(&parts)
        });
        Ok(Evaluated {
            values: values.collect::<Result<_, _>>()?,
            good,
            failed,
        })
    }

    /// The expressions for one row, each by itself; NULL where it fails, with the error.
    fn one_row(&self, places: &[usize], inputs: &RecordBatch) -> Result<OneRow> {
        let (mut values, mut failed) = (Vec::with_capacity(places.len()), Vec::new());
        for (at, place) in places.iter().enumerate() {
            let layers = self.compile(&[*place])?;
            match run(&layers, inputs) {
                Ok(value) => values.extend(value),
                Err(error) => {
                    values.push(new_null_array(&self.types[*place], 1));
                    failed.push((at, Error::from(error)));
                }
            }
        }
        Ok((values, failed))
    }

    /// The expressions at some places, so that what they have in common is evaluated once.
    fn compile(&self, places: &[usize]) -> Result<Arc<Layers>> {
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(layers) = compiled.get(places) {
            return Ok(Arc::clone(layers));
        }
        let input = LogicalPlan::EmptyRelation(EmptyRelation {
            produce_one_row: false,
            schema: Arc::clone(&self.schema),
        });
        let values = places.iter();
        let values = values.map(|at| self.expressions[*at].clone().alias(value_name(*at)));
        let plan = project(input, values.collect())?;
        let rule = CommonSubexprEliminate::new();
        let plan = Optimizer::with_rules(vec![Arc::new(rule)]).optimize(
            plan,
            &OptimizerContext::new(),
            |_, _| {},
        )?;
        let mut layers: Layers = Vec::new();
        let mut node = &plan;
        while let LogicalPlan::Projection(layer) = node {
            let expressions = layer.expr.iter().map(|expression| {
                let schema = layer.input.schema();
                let expression = self
                    .state
                    .create_physical_expr(expression.clone(), schema)?;
                metered(expression, &self.meter)
            });
            let expressions = expressions.collect::<DataFusionResult<Vec<_>>>()?;
            let names = layer.schema.fields().iter().map(|f| f.name().clone());
            layers.push((expressions, names.collect()));
            node = &layer.input;
        }
        layers.reverse();
        let layers = Arc::new(layers);
        compiled.insert(places.to_vec(), Arc::clone(&layers));
        Ok(layers)
    }
}

/// The values of a row, and the expressions that failed.
type OneRow = (Vec<ArrayRef>, Vec<(usize, Error)>);

fn run(layers: &Layers, inputs: &RecordBatch) -> DataFusionResult<Vec<ArrayRef>> {
    let mut batch = inputs.clone();
    for (expressions, names) in layers {
        let mut columns = Vec::with_capacity(names.len());
        for (expression, name) in expressions.iter().zip(names) {
            let value = expression.evaluate(&batch)?;
            columns.push((name, value.into_array(batch.num_rows())?, true));
        }
        batch = RecordBatch::try_from_iter_with_nullable(columns)?;
    }
    Ok(batch.columns().to_vec())
}
