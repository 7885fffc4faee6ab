//! All calls to Lance: scans, column files, commits, versions.

pub mod open;
pub mod properties;
pub mod row_set;
pub mod scan;
