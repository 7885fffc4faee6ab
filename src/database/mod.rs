//! The database: its catalog and tables, definitions in Lance metadata, DDL, DML and system tables.

pub mod table;
