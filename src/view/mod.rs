//! Materialized views: what a query changes in when its sources do.
//!
//! [`plan`] makes a plan of the query with subqueries turned into joins, [`classify`] divides it into [operators](operator).
//! Each belongs to a class, and each class is a file of its own whose head states its algebra: [`source`], [`row`],
//! [`union`], [`unnest`], [`join`], [`matching`], [`group`], [`signed`], [`window`], [`top`], [`constant`]. From the
//! [relations](relation) of its inputs an operator makes its own: what is removed, what is added, what stays.
//!
//! A [refresh] [assesses](assess) what changed since the [state], lets the last operator say which rows are removed and
//! added, [compares](apply) these with the stored ones, and commits the difference with the new state. Rows have a key
//! that lasts, stored in hidden columns, so that a row that changes is replaced in its place and one that does
//! not is left alone. [`paid`] keeps results of users' functions:
//! [`calls`] computes them, [`checkpoint`] has those that are not committed, [`failed`] the rows on which they failed.

mod apply;
pub mod assess;
pub mod calls;
pub mod cascade;
mod checkpoint;
mod classify;
mod compare;
mod constant;
mod cost;
pub mod declare;
pub mod explain;
mod extract;
pub mod failed;
pub mod failures;
pub mod functions;
mod group;
mod grouping_sets;
mod index;
mod join;
pub mod lag;
mod maintain;
mod matching;
mod operator;
pub mod options;
mod paid;
mod pass;
mod plan;
mod progress;
mod query;
pub mod reason;
pub mod refresh;
mod relation;
mod row;
mod signed;
mod source;
pub mod stage;
pub mod state;
pub mod suspend;
pub mod system;
mod ties;
mod top;
mod union;
mod unnest;
mod window;
