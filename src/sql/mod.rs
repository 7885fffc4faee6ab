//! The dialect: statements as types, the parser around DataFusion's, and what runs each statement.

pub mod parser;
pub mod statement;

pub use parser::{is_complete, parse, split};
