//! How nodes, functions and errors are written for other processes.
//!
//! Everything begins with a mark and the number of the format. The head of a node is JSON and never changes its
//! meaning, so that a process of another release reads columns and partitions of the node, and says at its execution why it
//! can't run it.

use std::io::Cursor;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::arrow::ipc::reader::StreamReader;
use datafusion::arrow::ipc::writer::StreamWriter;
use datafusion::common::DataFusionError;
use regex::Regex;
use serde::{Deserialize, Serialize};

use super::deferred::DeferredExec;
use crate::{Error, ErrorKind, Result};

/// What all begins with that we write: no message of Protocol Buffers begins so.
const MARK: &[u8] = b"\xffHDWR";
/// The number of the format.
const FORMAT: u8 = 1;

/// The head of a node.
#[derive(Debug, Serialize, Deserialize)]
struct NodeHead {
    kind: String,
    release: String,
    text: String,
    schema: String,
    rows: Vec<Option<u64>>,
}

/// The head of a function.
#[derive(Debug, Serialize, Deserialize)]
struct FunctionHead {
    kind: String,
    release: String,
}

/// Whether `bytes` are ours.
pub fn is_ours(bytes: &[u8]) -> bool {
    bytes.starts_with(MARK)
}

/// Writes a node.
pub fn write_node(node: &DeferredExec, bytes: &mut Vec<u8>) -> Result<()> {
    use datafusion::physical_plan::ExecutionPlan;
    let head = NodeHead {
        kind: node.kind.clone(),
        release: node.release.clone(),
        text: node.text.clone(),
        schema: write_schema(&node.schema())?,
        rows: node.rows.clone(),
    };
    write_message(&head, &node.description, bytes)
}

/// Reads a node.
pub fn read_node(bytes: &[u8]) -> Result<DeferredExec> {
    let (head, description) = read_message::<NodeHead>(bytes)?;
    let schema = read_schema(&head.schema)?;
    Ok(
        DeferredExec::new(&head.kind, description.to_vec(), schema, head.rows)
            .with_text(head.text)
            .of_release(head.release),
    )
}

/// Writes a function.
pub fn write_function(kind: &str, description: &[u8], bytes: &mut Vec<u8>) -> Result<()> {
    let head = FunctionHead {
        kind: kind.to_string(),
        release: super::deferred::RELEASE.to_string(),
    };
    write_message(&head, description, bytes)
}

/// Reads a function: its kind, and its description.
pub fn read_function(bytes: &[u8]) -> Result<(String, &[u8])> {
    let (head, description) = read_message::<FunctionHead>(bytes)?;
    if head.release != super::deferred::RELEASE {
        return Err(Error::invalid(format!(
            "a function of headwater {} can't run in headwater {}",
            head.release,
            super::deferred::RELEASE
        )));
    }
    Ok((head.kind, description))
}

/// Writes a head, and what is behind it.
pub fn write_message(head: &impl Serialize, body: &[u8], bytes: &mut Vec<u8>) -> Result<()> {
    let head = serde_json::to_vec(head)
        .map_err(|error| Error::internal(format!("a plan can't be written: {error}")))?;
    let length = u32::try_from(head.len())
        .map_err(|_| Error::internal("a plan is too large to be written"))?;
    bytes.extend_from_slice(MARK);
    bytes.push(FORMAT);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&head);
    bytes.extend_from_slice(body);
    Ok(())
}

/// Reads what [`write_message`] wrote.
pub fn read_message<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<(T, &'a [u8])> {
    let broken = || Error::internal("a plan of another process can't be read");
    let rest = bytes.strip_prefix(MARK).ok_or_else(broken)?;
    let (format, rest) = rest.split_first().ok_or_else(broken)?;
    if *format != FORMAT {
        return Err(Error::invalid(format!(
            "a plan is written in format {format}; this release knows format {FORMAT}"
        ))
        .with_hint("run the same release of headwater on the server and on every executor"));
    }
    let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(broken)?;
    let length = u32::from_le_bytes(*length) as usize;
    let (head, body) = rest.split_at_checked(length).ok_or_else(broken)?;
    let head = serde_json::from_slice(head).map_err(|error| broken().with_source(error))?;
    Ok((head, body))
}

/// A schema with its metadata, as text.
pub fn write_schema(schema: &Schema) -> Result<String> {
    let mut bytes = Vec::new();
    StreamWriter::try_new(&mut bytes, schema)?.finish()?;
    Ok(BASE64.encode(bytes))
}

/// Reads what [`write_schema`] wrote.
pub fn read_schema(text: &str) -> Result<SchemaRef> {
    let bytes = BASE64
        .decode(text)
        .map_err(|error| Error::internal(format!("a schema can't be read: {error}")))?;
    Ok(StreamReader::try_new(Cursor::new(bytes), None)?.schema())
}

/// An error of ours, as other processes get it.
#[derive(Debug, Serialize, Deserialize)]
struct WrittenError {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
}

/// What a written error begins with in the text of others.
const ERROR: &str = "headwater-error";

/// An error as text that survives being put into other texts, quoted or not.
pub fn write_error(error: &Error) -> String {
    let written = WrittenError {
        kind: error.kind(),
        message: error.message().to_string(),
        hint: error.hint().map(str::to_string),
    };
    let json = serde_json::to_vec(&written).unwrap_or_default();
    format!("{ERROR}({})", BASE64.encode(json))
}

/// The error that was [written](write_error) somewhere in `text`.
pub fn find_error(text: &str) -> Option<Error> {
    static PATTERN: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(&format!(r"{ERROR}\(([A-Za-z0-9+/=]*)\)")).ok());
    let found = PATTERN.as_ref()?.captures(text)?;
    let json = BASE64.decode(found.get(1)?.as_str()).ok()?;
    let written: WrittenError = serde_json::from_slice(&json).ok()?;
    let error = Error::new(written.kind, written.message);
    Some(match written.hint {
        Some(hint) => error.with_hint(hint),
        None => error,
    })
}

/// An error of a task, so that it reaches the process that waits for it, whatever is put around it.
pub fn carried(error: DataFusionError) -> DataFusionError {
    let error = Error::from(error);
    // It may come from another task, which has written it.
    let error = find_error(error.message()).unwrap_or(error);
    DataFusionError::Execution(write_error(&error))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use datafusion::arrow::datatypes::{DataType, Field};
    use datafusion::physical_plan::ExecutionPlan;

    fn node() -> DeferredExec {
        let field = Field::new("x", DataType::Int64, true)
            .with_metadata([("a".to_string(), "b".to_string())].into());
        let schema = Arc::new(Schema::new(vec![field]));
        DeferredExec::new("kind", b"body".to_vec(), schema, vec![Some(3), None])
            .with_text("a line".to_string())
    }

    #[test]
    fn a_node_is_read_as_it_was_written() {
        let mut bytes = Vec::new();
        write_node(&node(), &mut bytes).unwrap();
        assert!(is_ours(&bytes));
        let read = read_node(&bytes).unwrap();
        assert_eq!(format!("{read:?}"), format!("{:?}", node()));
        assert_eq!(read.schema(), node().schema());
    }

    #[test]
    fn what_is_cut_short_is_an_error() {
        let mut bytes = Vec::new();
        write_node(&node(), &mut bytes).unwrap();
        for end in [0, 3, 6, 9, 40] {
            assert!(read_node(&bytes[..end]).is_err());
        }
        bytes[MARK.len()] = 9;
        assert!(
            read_node(&bytes)
                .unwrap_err()
                .message()
                .contains("format 9")
        );
    }

    #[test]
    fn an_error_survives_quoting() {
        let error = Error::invalid("a 'b' \"c\"\nd").with_hint("mend");
        let text = format!("{:?}", format!("task: {:?}", write_error(&error)));
        let found = find_error(&text).unwrap();
        assert_eq!(found.to_string(), error.to_string());
        assert_eq!(found.kind(), ErrorKind::InvalidInput);
        assert!(find_error("no error of ours").is_none());
    }
}
