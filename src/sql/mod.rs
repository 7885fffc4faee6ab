//! The dialect: statements as types, the parser around DataFusion's, and what runs each statement.

pub mod execute;
pub mod format;
pub mod options;
pub mod parser;
pub mod statement;
pub mod types;

pub use parser::{
    HeadwaterDialect, TableName, is_complete, parse, parse_table_name, parse_versioned_name,
    split,
};
