//! What a refresh costs, as an estimate: of what changed, and of everything.
//!
//! The unit is a row that is read in order, some 50 nanoseconds. All else is measured in it (release build, local
//! files, two cores), and the estimate is good to a factor of two: enough to tell a tenth of a table from most of it.

use std::collections::BTreeMap;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::Expr;

use super::operator::Node;

/// Seconds of the unit.
const UNIT_SECONDS: f64 = 50e-9;
/// A row that is read by its id, when those beside it are not.
const SCATTERED: f64 = 15.0;
/// All rows of a table, if they are read by their ids.
const ALL_SCATTERED: f64 = 1.5;
/// A row of a table that changed, and lies beside others that did.
const ADDED: f64 = 4.0;
/// A row that is looked at in the column that it is found by.
const LOOKED_AT: f64 = 0.4;
/// A row that an operator takes.
pub(super) const TAKEN: f64 = 1.0;
/// A stored row that is compared with a new one.
const COMPARED: f64 = 15.0;
/// A row that is written.
const WRITTEN: f64 = 8.0;
/// A stored row, for the commit of changes of others.
const COMMITTED: f64 = 0.5;

/// Below this nothing is chosen: a twentieth of a second is no matter.
const SMALL: f64 = 1e6;
/// How many times as dear as everything what changed may be, since it is an estimate.
const MARGIN: f64 = 1.2;

/// The output of an operator, and what it costs to compute it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cost {
    /// Its rows.
    pub(super) rows: f64,
    /// How many of them are removed and added.
    pub(super) changed: f64,
    /// All of it.
    pub(super) full: f64,
    /// What is removed and added.
    pub(super) incremental: f64,
    /// To look for a few rows in what did not change.
    pub(super) finding: f64,
}

impl Cost {
    /// A table: of `rows`, so many were removed and added.
    pub(super) fn of_table(rows: f64, removed: f64, added: f64) -> Self {
        Self {
            rows,
            changed: removed + added,
            full: rows,
            incremental: scattered(removed, rows) + added * ADDED,
            finding: rows * LOOKED_AT,
        }
    }

    /// An operator that takes the rows of its inputs one by one.
    pub(super) fn of_rows(inputs: &[Cost]) -> Self {
        inputs.iter().fold(Self::default(), |all, input| Self {
            rows: all.rows + input.rows,
            changed: all.changed + input.changed,
            full: all.full + input.full + input.rows * TAKEN,
            incremental: all.incremental + input.incremental + input.changed * TAKEN,
            finding: all.finding + input.finding,
        })
    }

    /// Some of its rows, those that did not change looked for.
    pub(super) fn some(&self, rows: f64) -> f64 {
        self.finding + scattered(rows.min(self.rows), self.rows)
    }
}

/// Rows that are read by their ids, out of `all`.
fn scattered(rows: f64, all: f64) -> f64 {
    (rows * SCATTERED).min(all * ALL_SCATTERED)
}

/// How large a part of `groups` so many changes touch, if they are anywhere.
pub(super) fn touched(changes: f64, groups: f64) -> f64 {
    1.0 - (-changes / groups.max(1.0)).exp()
}

/// What is known of a part of a query.
#[derive(Debug)]
pub(super) struct Known<'a> {
    /// Its sources, in their order.
    pub(super) sources: &'a [Cost],
    /// How many rows are stored.
    pub(super) stored: f64,
    /// Seconds of a call of each function of users.
    pub(super) seconds: &'a BTreeMap<String, f64>,
}

impl Known<'_> {
    /// What the calls of users' functions in an expression cost for one row.
    pub(super) fn calls(&self, expression: &Expr) -> f64 {
        let mut seconds = 0.0;
        // Looking never fails.
        let _ = expression.apply(|part| {
            if let Expr::ScalarFunction(call) = part {
                seconds += self.seconds.get(call.func.name()).copied().unwrap_or(0.0);
            }
            Ok(TreeNodeRecursion::Continue)
        });
        seconds / UNIT_SECONDS
    }
}

/// What a refresh of a view or a stage costs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Estimate {
    /// If what changed is computed and written.
    pub(super) incremental: f64,
    /// If all is computed, and what differs is written.
    pub(super) full: f64,
    /// How many rows change.
    pub(super) changed: f64,
}

impl Estimate {
    pub(super) fn of(root: &Node, known: &Known) -> Self {
        let cost = root.cost(known);
        let written = cost.changed * WRITTEN;
        let replaced = match cost.changed > 0.0 {
            true => known.stored * (LOOKED_AT + COMMITTED) + scattered(cost.changed, known.stored),
            false => 0.0,
        };
        Self {
            incremental: cost.incremental + replaced + written,
            full: cost.full + known.stored * (COMPARED + COMMITTED) + written,
            changed: cost.changed,
        }
    }

    /// Whether it is better to compute all of it.
    pub(super) fn is_too_large(&self) -> bool {
        self.full >= SMALL && self.incremental > self.full * MARGIN
    }
}
