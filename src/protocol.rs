//! What a server and its clients say to one another besides Arrow Flight SQL.
//!
//! - Errors: the text of an [`Error`] is the message of the gRPC status, its hint after it; what kind it is stands in the
//!   trailer [`ERROR_HEADER`], as JSON: `{"kind": "not_found", "hint": "did you mean 'orders'?"}`.
//! - Statements: [`StatementState`], as JSON, is the `app_metadata` of each `FlightInfo` of a statement, also of those
//!   that `PollFlightInfo` answers while it runs.
//! - Sessions: the cookie [`SESSION_COOKIE`].

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tonic::metadata::{BinaryMetadataValue, MetadataMap};
use tonic::{Code, Status};

use crate::job::counters::Figures;
use crate::job::jobs::RunningJob;
use crate::{Error, ErrorKind};

/// The trailer with what a client can't read off the code and the message of an error.
pub const ERROR_HEADER: &str = "headwater-error-bin";
/// The cookie that names a session.
pub const SESSION_COOKIE: &str = "arrow_flight_session_id";
/// The port of a server when nobody says.
pub const DEFAULT_PORT: u16 = 50050;

/// How long a message may be in a header, as it is written there. Some clients take no more than 8 KiB of headers.
const MESSAGE_BYTES: usize = 5_000;
const HINT_BYTES: usize = 1_000;

/// How far a statement is: the `app_metadata` of its `FlightInfo`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatementState {
    /// The name of the statement on the server.
    pub statement: String,
    /// Whether it runs still. If not, the tickets of the `FlightInfo` give its result.
    pub running: bool,
    /// How long it has run, or did.
    pub elapsed_seconds: f64,
    /// The job that it waits for, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<JobState>,
    /// What a user should know although the statement worked. Empty while it runs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notices: Vec<String>,
}

/// A job that runs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct JobState {
    /// Its name.
    pub id: String,
    /// Its statement.
    pub statement: String,
    /// How long it has run.
    pub elapsed_seconds: f64,
    /// What it has done.
    pub figures: Figures,
}

impl StatementState {
    /// As `app_metadata`.
    pub fn to_bytes(&self) -> Bytes {
        // Numbers, text and lists: there is nothing in it that JSON can't say.
        serde_json::to_vec(self).unwrap_or_default().into()
    }

    /// Reads `app_metadata`; what another server wrote there says nothing.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        serde_json::from_slice(bytes).unwrap_or_default()
    }
}

impl From<RunningJob> for JobState {
    fn from(job: RunningJob) -> Self {
        Self {
            id: job.id,
            statement: job.statement,
            elapsed_seconds: job.elapsed.as_secs_f64(),
            figures: job.figures,
        }
    }
}

impl From<JobState> for RunningJob {
    fn from(job: JobState) -> Self {
        Self {
            id: job.id,
            statement: job.statement,
            elapsed: Duration::try_from_secs_f64(job.elapsed_seconds).unwrap_or_default(),
            figures: job.figures,
        }
    }
}

/// The trailer of an error.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct ErrorHeader {
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

/// The kinds of errors with their names and codes.
const KINDS: [(ErrorKind, &str, Code); 14] = [
    (ErrorKind::Syntax, "syntax", Code::InvalidArgument),
    (
        ErrorKind::InvalidInput,
        "invalid_input",
        Code::InvalidArgument,
    ),
    (ErrorKind::NotFound, "not_found", Code::NotFound),
    (
        ErrorKind::AlreadyExists,
        "already_exists",
        Code::AlreadyExists,
    ),
    (
        ErrorKind::NotAvailable,
        "not_available",
        Code::Unimplemented,
    ),
    (
        ErrorKind::Dependents,
        "dependents",
        Code::FailedPrecondition,
    ),
    (ErrorKind::Conflict, "conflict", Code::Aborted),
    (ErrorKind::Busy, "busy", Code::FailedPrecondition),
    (ErrorKind::Computation, "computation", Code::InvalidArgument),
    (ErrorKind::Storage, "storage", Code::Unavailable),
    (ErrorKind::Cluster, "cluster", Code::Unavailable),
    (ErrorKind::Query, "query", Code::InvalidArgument),
    (ErrorKind::Cancelled, "cancelled", Code::Cancelled),
    (ErrorKind::Internal, "internal", Code::Internal),
];

/// An error as a gRPC status.
pub fn status(error: &Error) -> Status {
    let code = KINDS
        .iter()
        .find(|(kind, ..)| *kind == error.kind())
        .map_or(Code::Unknown, |(_, _, code)| *code);
    status_of(code, error)
}

/// An error as a gRPC status of this code, for what has no kind of its own: a wrong token, a server that ends.
pub fn status_of(code: Code, error: &Error) -> Status {
    let name = KINDS
        .iter()
        .find(|(kind, ..)| *kind == error.kind())
        .map_or("internal", |(_, name, _)| name);
    let hint = error.hint().map(|hint| cut(hint, HINT_BYTES));
    let mut message = cut(error.message(), MESSAGE_BYTES);
    if let Some(hint) = &hint {
        message = format!("{message}\nHint: {hint}");
    }
    let header = ErrorHeader {
        kind: name.to_string(),
        hint,
    };
    let mut metadata = MetadataMap::new();
    let header = serde_json::to_vec(&header).unwrap_or_default();
    metadata.insert_bin(ERROR_HEADER, BinaryMetadataValue::from_bytes(&header));
    Status::with_metadata(code, message, metadata)
}

/// The error that a server sent as a status; `None` if it is not one of ours: the connection broke, for instance.
pub fn error(status: &Status) -> Option<Error> {
    let header = status.metadata().get_bin(ERROR_HEADER)?.to_bytes().ok()?;
    let header: ErrorHeader = serde_json::from_slice(&header).ok()?;
    let kind = KINDS
        .iter()
        .find(|(_, name, _)| *name == header.kind)
        .map_or(ErrorKind::Internal, |(kind, ..)| *kind);
    let message = status.message();
    Some(match header.hint {
        Some(hint) => {
            let message = message
                .strip_suffix(hint.as_str())
                .and_then(|message| message.strip_suffix("\nHint: "))
                .unwrap_or(message);
            Error::new(kind, message).with_hint(hint)
        }
        None => Error::new(kind, message),
    })
}

/// Shortens `text` to `most` bytes of a header, in which all but letters, digits and some signs take three for each of
/// their own. Its beginning and its end are kept.
fn cut(text: &str, most: usize) -> String {
    let cost = |c: char| match c {
        '!'..='~' if c != '%' => 1,
        _ => 3 * c.len_utf8(),
    };
    if text.chars().map(cost).sum::<usize>() <= most {
        return text.to_string();
    }
    let within = |chars: &mut dyn Iterator<Item = char>, most: usize| {
        let mut left = most;
        let mut bytes = 0;
        for c in chars {
            if cost(c) > left {
                break;
            }
            left -= cost(c);
            bytes += c.len_utf8();
        }
        bytes
    };
    let head = within(&mut text.chars(), most * 2 / 3);
    let tail = within(&mut text[head..].chars().rev(), most / 3);
    format!("{} … {}", &text[..head], &text[text.len() - tail..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_arrive_as_they_were() {
        for (kind, ..) in KINDS {
            let sent = Error::new(kind, "größer:\n  50 %").with_hint("write\nless");
            let status = status(&sent);
            assert_eq!(status.message(), "größer:\n  50 %\nHint: write\nless");
            let Some(error) = error(&status) else {
                panic!("{kind:?} has no trailer");
            };
            assert_eq!(error.kind(), kind);
            assert_eq!(error.message(), sent.message());
            assert_eq!(error.hint(), sent.hint());
        }
    }

    #[test]
    fn a_status_of_another_server_is_none_of_ours() {
        assert!(error(&Status::unavailable("connection refused")).is_none());
    }

    #[test]
    fn long_messages_keep_both_ends() {
        let text = format!("begin {} end", "ß".repeat(10_000));
        let message = cut(&text, MESSAGE_BYTES);
        assert!(message.len() < 2_000, "{}", message.len());
        assert!(message.starts_with("begin ") && message.ends_with(" end"));
        assert_eq!(cut("short", 10), "short");
    }

    #[test]
    fn states_of_another_release_can_be_read() {
        let state = StatementState::from_bytes(br#"{"running": true, "more": 1}"#);
        assert!(state.running && state.job.is_none());
        assert_eq!(StatementState::from_bytes(b""), StatementState::default());
        let sent = StatementState {
            statement: "1".to_string(),
            job: Some(JobState::default()),
            notices: vec!["so".to_string()],
            ..StatementState::default()
        };
        assert_eq!(StatementState::from_bytes(&sent.to_bytes()), sent);
    }
}
