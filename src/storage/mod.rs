//! All calls to Lance: scans, column files, commits, versions.

mod answer;
pub mod blob;
pub mod change;
pub mod column_file;
mod commit;
pub mod fragments;
pub mod index;
pub mod key_set;
pub mod keys;
mod open;
mod patience;
pub mod pin;
pub mod properties;
mod root;
pub mod row_set;
pub mod scan;
pub mod schema;
mod store;
pub mod tag;
pub mod vacuum;
pub mod version;
pub mod write;

pub use commit::{Properties, commit, with_retries, with_retries_until_known};
pub use open::{open, refused, storage_error};
use root::new_session;
pub use root::{OwnFile, Root};
pub use row_set::RowSet;
pub use store::StoreSettings;
