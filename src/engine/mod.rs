//! Where a physical plan runs.
