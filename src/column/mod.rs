//! Computed columns: declared, assessed, filled, kept fresh.
//!
//! A computed column is a row-for-row view stored beside its source rows. A refresh finds the rows
//! that need a value ([`assess`]), plans which fragments to write ([`plan`]), computes ([`compute`])
//! and writes ([`write`]) one file a fragment, and commits the files with the column's new
//! [`state`] ([`commit`]). It does so as a job ([`run`]), whose results are [`staged`] until they are
//! committed. Copies of the states outlive the versions that they were committed with ([`mirror`]).

pub mod assess;
pub mod commit;
mod computation;
pub mod compute;
pub mod declare;
pub mod mirror;
pub mod plan;
pub mod refresh;
pub mod remote;
pub mod run;
pub mod staged;
pub mod state;
mod system;
pub mod work;
pub mod write;

pub use system::system_tables;
