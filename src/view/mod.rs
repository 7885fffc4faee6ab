//! Materialized views.

mod apply;
pub mod assess;
pub mod cascade;
mod classify;
mod constant;
pub mod declare;
pub mod explain;
mod group;
mod join;
mod keys;
mod matching;
mod operator;
pub mod options;
mod plan;
pub mod reason;
pub mod refresh;
mod relation;
mod row;
mod signed;
mod source;
pub mod state;
pub mod system;
mod top;
mod union;
mod unnest;
mod window;
