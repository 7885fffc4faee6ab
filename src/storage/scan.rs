//! Scans of Lance tables as a node of a DataFusion plan.
