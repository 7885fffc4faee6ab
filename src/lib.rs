//! Headwater makes derived data a first-class SQL object: computed columns over
//! Lance tables, declared, filled and kept fresh by SQL.
#![warn(missing_docs, missing_debug_implementations, unreachable_pub)]
#![cfg_attr(
    not(test),
    warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

pub mod column;
pub mod database;
pub mod delta;
pub mod engine;
mod error;
pub mod session;
pub mod shell;
pub mod sql;
pub mod storage;

pub use error::{Error, ErrorKind, Result, nearest};
