//! Runs plans on a cluster of Ballista.
//!
//! A server embeds Ballista's [scheduler]; [executors](executor) register with it, and get tasks pushed. Whoever has work
//! is a [client](client::Cluster) of the scheduler, the server itself, too: it plans here, and sends
//! [physical plans](place), in which nodes of ours are [descriptions](super::deferred). Beside what Ballista tells,
//! executors report to a [board] how far they are, and hear there what jobs are told.

pub mod actions;
pub mod board;
pub mod client;
pub mod codec;
pub mod exec;
pub mod executor;
mod gate;
pub mod place;
pub mod scheduler;
pub mod security;
mod work_dir;

pub use client::{Cluster, Purpose};
pub use security::{Certificates, Security};

/// Bytes of a message at most: a plan, or a batch of rows.
pub const MESSAGE_BYTES: usize = 64 << 20;
