//! Sets of row ids.
