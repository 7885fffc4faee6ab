//! Reason codes in plain words, and what can be done.

/// Reason code: it has no rows yet.
pub const FIRST_REFRESH: &str = "FIRST_REFRESH";
/// Reason code: FULL was asked for.
pub const REQUESTED_FULL: &str = "REQUESTED_FULL";
/// Reason code: to compute what changed would cost more than to compute all.
pub const CHANGE_TOO_LARGE: &str = "CHANGE_TOO_LARGE";
/// Reason code: the rows are of another definition.
pub const DEFINITION_CHANGED: &str = "DEFINITION_CHANGED";
/// Reason code: the record of what the rows reflect is gone or can't be read.
pub const STATE_LOST: &str = "STATE_LOST";
/// Reason code: others changed rows of the view.
pub const TARGET_MODIFIED: &str = "TARGET_MODIFIED";
/// Reason code: the query gives other rows each time.
pub const EXPRESSION_NOT_DETERMINISTIC: &str = "EXPRESSION_NOT_DETERMINISTIC";

/// What a reason code says in words; `None` if there are none for it.
pub fn words(code: &str) -> Option<&'static str> {
    Some(match code {
        FIRST_REFRESH => "it has no rows yet",
        REQUESTED_FULL => "all rows are asked for",
        DEFINITION_CHANGED => "its query, or a view that it reads, was changed since",
        CHANGE_TOO_LARGE => "so much has changed that it is cheaper to compute all of it",
        STATE_LOST => "the record of what its rows reflect is gone",
        TARGET_MODIFIED => "another program changed rows of it",
        EXPRESSION_NOT_DETERMINISTIC => {
            "it calls a function that may give another result each time"
        }
        "SOURCE_VERSION_GONE" => "the version of a source that it reflects was cleaned up",
        "SOURCE_REPLACED" => "a source was overwritten, or dropped and made again",
        "INPUT_REPLACED" => "a column that it reads was cast, or dropped and added again",
        "ROW_TRACKING_NOT_ENABLED" => "a source has no row ids that survive a rewrite",
        "WINDOW_WITHOUT_PARTITION_BY" => "a window function goes over all rows",
        _ if code.starts_with("OPERATOR_NOT_INCREMENTALIZABLE") => {
            "an operator of the query can't be computed from changes alone"
        }
        _ => return None,
    })
}

/// What can be done about what stands in the way of incremental maintenance; `None` if nothing does.
pub fn mend(obstacle: &str) -> Option<&'static str> {
    Some(match obstacle {
        "" => return None,
        EXPRESSION_NOT_DETERMINISTIC => {
            "leave the function out of the query, or write its value into the source"
        }
        "WINDOW_WITHOUT_PARTITION_BY" => "give OVER a PARTITION BY",
        "ROW_TRACKING_NOT_ENABLED" => "ALTER TABLE … ENABLE ROW TRACKING on the source",
        "OPERATOR_NOT_INCREMENTALIZABLE(RecursiveQuery)" => {
            "unroll the recursion, if its depth is known"
        }
        _ => {
            "put the part with this operator into a view of its own: the rest can be maintained then"
        }
    })
}

/// A code and what it says.
pub fn explained(code: &str) -> String {
    match words(code) {
        Some(words) => format!("{code}: {words}"),
        None => code.to_string(),
    }
}
