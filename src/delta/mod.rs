//! What changed in a table between two of its versions, for a set of fields.
