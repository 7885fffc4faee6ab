//! The dialect: statements as types, the parser around DataFusion's, and what runs each statement.

pub mod execute;
pub mod format;
pub mod options;
pub mod parser;
pub mod statement;
pub mod types;

pub use parser::{HeadwaterDialect, is_complete, parse, split};
