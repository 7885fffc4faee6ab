//! Names of what Headwater writes into the transaction properties of its commits.
//!
//! A property is written once, with the data that it speaks of, and can't be
//! changed afterwards; so it can be trusted to describe exactly that commit.

/// Of an UPDATE or MERGE of ours: the ids of the top-level fields it set, as decimal
/// numbers joined by commas. Rows that it moved to new fragments are changed in
/// these fields only.
pub const UPDATED_FIELDS: &str = "headwater.updated_fields";

/// Prefix of a property of column refreshes; the id of a column's field follows. It holds the ids of
/// the rows whose values in that column were computed, as a [`RowSet`](super::row_set::RowSet);
/// the other rows of the replaced files keep the values they had.
pub const COMPUTED_ROWS: &str = "headwater.computed_rows.";

/// Prefix of the state of a computed column; the field's id follows.
pub const COLUMN_STATE: &str = "headwater.column_state.";

/// The state of a materialized view.
pub const VIEW_STATE: &str = "headwater.view_state";

/// The job that a commit is of, and which of its drivers made it.
pub const JOB: &str = "headwater.job";
