//! Headwater makes derived data a first-class SQL object: computed columns and materialized views over
//! Lance tables, declared, filled and kept fresh by SQL.
//!
//! A [`Headwater`](session::Headwater) is a database that is open: a folder of Lance
//! tables behind a DataFusion context. Statements go through
//! [`sql`](session::Headwater::sql); what they give is DataFusion's `DataFrame`.
//!
//! ```
//! use headwater::session::Headwater;
//!
//! # #[tokio::main]
//! # async fn main() -> headwater::Result<()> {
//! # let folder = std::env::temp_dir().join(format!("headwater-doc-{}", std::process::id()));
//! let headwater = Headwater::open(&folder.display().to_string()).await?;
//! headwater
//!     .sql("CREATE TABLE boxes (id BIGINT, x INT, y INT, area AS (x * y))")
//!     .await?;
//! headwater.sql("INSERT INTO boxes VALUES (1, 2, 3), (2, 4, 5)").await?;
//! headwater.sql("REFRESH COLUMN area ON boxes").await?;
//!
//! // One row changes, and one row is computed.
//! headwater.sql("UPDATE boxes SET x = 10 WHERE id = 1").await?;
//! let done = headwater.sql("REFRESH COLUMN area ON boxes").await?.to_string().await?;
//! assert!(done.contains("incremental"));
//!
//! let boxes = headwater.sql("SELECT area FROM boxes ORDER BY id").await?.to_string().await?;
//! assert!(boxes.contains("30") && boxes.contains("20"));
//! # std::fs::remove_dir_all(folder).ok();
//! # Ok(())
//! # }
//! ```
//!
//! The rooms of the crate, from the top. Imports point down this list only.
//!
//! - [`shell`]: the command.
//! - [`server`] takes statements by Arrow Flight SQL, [`client`] sends them, [`protocol`] is what they say besides.
//! - [`serve`] keeps views within their lag.
//! - [`session`]: a database that is open.
//! - [`sql`]: the dialect.
//! - [`view`]: materialized views.
//! - [`column`]: computed columns.
//! - [`job`]: refreshes that survive their process.
//! - [`function`]: what calls of users' functions take.
//! - [`database`]: catalog, definitions, system tables.
//! - [`delta`]: what changed between versions.
//! - [`storage`]: all calls to Lance.
//! - [`engine`]: where plans run.
#![warn(missing_docs, missing_debug_implementations, unreachable_pub)]
#![cfg_attr(
    not(test),
    warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

pub mod client;
pub mod column;
pub mod database;
pub mod delta;
pub mod engine;
mod error;
pub mod function;
pub mod job;
mod local_file;
pub mod protocol;
pub mod serve;
pub mod server;
pub mod session;
pub mod shell;
pub mod sql;
pub mod storage;
mod tls;
pub mod view;

pub use error::{Error, ErrorKind, Result, nearest};
