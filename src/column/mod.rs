//! Computed columns: declared, planned, filled, kept fresh.
