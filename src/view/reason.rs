//! Reason codes in plain words, and what can be done.

use super::assess::{
    DEFINITION_CHANGED, EXPRESSION_NOT_DETERMINISTIC, FIRST_REFRESH, REQUESTED_FULL, STATE_LOST,
    TARGET_MODIFIED,
};

/// What a reason code says in words; `None` if there are none for it.
pub fn words(code: &str) -> Option<&'static str> {
    Some(match code {
        FIRST_REFRESH => "it has no rows yet",
        REQUESTED_FULL => "all rows are asked for",
        DEFINITION_CHANGED => "its query, or a view that it reads, was changed since",
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
