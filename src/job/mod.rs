//! Jobs: runs of a refresh that survive their process, and can be watched and stopped.
//!
//! A job is written down in the [`ledger`], claims what it works on, and is driven by one process
//! at a time. What it computes is staged in files before it is committed, so that a run that ends
//! early, by whatever cause, loses little: the same statement goes on from there.

pub mod admission;
pub mod claim;
pub mod clock;
pub mod counters;
mod driven;
pub mod driver;
pub mod environment;
pub mod executors;
pub mod history;
pub mod jobs;
pub mod ledger;
pub mod process;
pub mod record;
pub mod signal;
pub mod staged;
pub mod system;
