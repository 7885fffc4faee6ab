//! Materialized views.

mod apply;
pub mod assess;
mod classify;
mod constant;
pub mod declare;
pub mod explain;
mod group;
mod join;
mod keys;
mod matching;
mod operator;
mod paid;
mod plan;
pub mod refresh;
mod relation;
mod row;
mod signed;
mod source;
pub mod state;
mod top;
mod union;
mod unnest;
mod window;
