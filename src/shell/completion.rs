//! Completes keywords, names of tables and views, columns of those that the input names,
//! and paths of files within quotes and after `\i`.
//!
//! Nothing is asked of the database before the first Tab, and an answer that takes too long
//! is done without: a prompt must not hang.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::time::Duration;

use rustyline::Context;
use rustyline::completion::{Completer, FilenameCompleter, Pair};
use tokio::runtime::Handle;

use super::target::Target;

/// How long a Tab may wait for the database.
const PATIENCE: Duration = Duration::from_millis(500);

/// The words of statements that people type; those of DataFusion's functions and options
/// are too many to be of help.
const KEYWORDS: &str = "\
    ADD ALL ALTER ALWAYS ANALYZE AND AS ASC ASYNC BETWEEN BIGINT BOOLEAN BY CANCEL CASCADE CASE \
    CAST COLUMN COLUMNS CONCURRENTLY COPY COUNT CREATE CROSS DATA DATE DAYS DECIMAL DEFAULT DELETE \
    DESC DESCRIBE DISTINCT DOUBLE DROP DRY ELSE ENABLE END ERRORS EVENTS EXCEPT EXISTS EXPLAIN \
    EXPRESSION EXTERNAL FAILED FALSE FLOAT FOR FROM FULL FUNCTIONS GENERATED GROUP HAVING HISTORY \
    HOURS IN INCREMENTAL INNER INSERT INT INTERSECT INTERVAL INTO IS JOB JOBS JOIN KEY LEFT LIKE \
    LIMIT LOCATION MATERIALIZE MATERIALIZED NO NOT NULL OF OFFSET ON ONLY OPTIMIZE OPTIONS OR \
    ORDER OUTER OVER PARTITION PAUSE PREFIX PRIMARY REFRESH RENAME REPLACE RESET RESTORE RESTRICT \
    RESUME RETAIN RIGHT ROW RUN SELECT SET SHOW STALE STORED SUSPEND TABLE TABLES TAG TAGS THEN \
    TIMEOUT TIMESTAMP TO TRACKING TRUE TRUNCATE TYPE UNION UPDATE UPGRADE USING VACUUM VALUES \
    VARCHAR VERSION VERSIONS VIEW VIEWS VIRTUAL WAIT WHEN WHERE WITH";

/// What a word can be completed to.
pub(super) struct Words {
    target: Target,
    runtime: Handle,
    files: FilenameCompleter,
    names: RefCell<Names>,
}

/// What the database answered since the last statement.
#[derive(Default)]
struct Names {
    tables: Option<Vec<String>>,
    columns: HashMap<String, Vec<String>>,
}

impl Words {
    pub(super) fn new(target: Target, runtime: Handle) -> Self {
        Self {
            target,
            runtime,
            files: FilenameCompleter::new(),
            names: RefCell::default(),
        }
    }

    /// Asks the database again next time: a statement may have changed it.
    pub(super) fn forget(&self) {
        self.names.replace(Names::default());
    }

    /// The candidates for what stands before `pos`, and where that begins.
    pub(super) fn complete(
        &self,
        line: &str,
        pos: usize,
        context: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let before = line.get(..pos).unwrap_or(line);
        if wants_file(before) {
            return self.files.complete(line, pos, context);
        }
        let start = word_start(before);
        let word = &before[start..];
        if word.is_empty() && !before.ends_with('.') {
            // Everything is no help.
            return Ok((start, Vec::new()));
        }
        Ok((start, candidates(word, &self.known(line, word))))
    }

    /// Names of tables, and of the columns of those in `line`, other than the `word` that is
    /// being typed.
    fn known(&self, line: &str, word: &str) -> BTreeSet<String> {
        let mut names = self.names.borrow_mut();
        if names.tables.is_none() {
            let listed = self.wait(self.target.tables());
            names.tables = Some(listed.and_then(Result::ok).unwrap_or_default());
        }
        let tables = names.tables.clone().unwrap_or_default();
        for table in &tables {
            if table != word && mentions(line, table) && !names.columns.contains_key(table) {
                let columns = self.wait(self.target.columns(table));
                let columns = columns.and_then(Result::ok).unwrap_or_default();
                names.columns.insert(table.clone(), columns);
            }
        }
        let columns = names
            .columns
            .iter()
            .filter(|(table, _)| mentions(line, table));
        let columns = columns.flat_map(|(_, columns)| columns.iter().cloned());
        columns.chain(tables).collect()
    }

    fn wait<T>(&self, answer: impl Future<Output = T>) -> Option<T> {
        self.runtime
            .block_on(async { tokio::time::timeout(PATIENCE, answer).await.ok() })
    }
}

/// Keywords and names that begin with `word`, whatever the case.
fn candidates(word: &str, names: &BTreeSet<String>) -> Vec<Pair> {
    let (quoted, bare) = match word.strip_prefix('"') {
        Some(bare) => (true, bare),
        None => (false, word),
    };
    let matches = |name: &str| {
        name.get(..bare.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(bare))
    };
    let names = names.iter().filter(|name| matches(name)).map(|name| {
        if quoted || needs_quotes(name) {
            format!("\"{}\"", name.replace('"', "\"\""))
        } else {
            name.clone()
        }
    });
    // After a dot, and in quotes, stands a name.
    let keywords = KEYWORDS
        .split_whitespace()
        .filter(|keyword| !bare.is_empty() && !quoted && matches(keyword))
        .map(|keyword| {
            if bare.starts_with(|c: char| c.is_ascii_lowercase()) {
                keyword.to_lowercase()
            } else {
                keyword.to_string()
            }
        });
    names
        .chain(keywords)
        .map(|text| Pair {
            display: text.clone(),
            replacement: text,
        })
        .collect()
}

/// Whether a path is being typed.
fn wants_file(before: &str) -> bool {
    let in_quotes = before.matches('\'').count() % 2 == 1;
    in_quotes || before.trim_start().starts_with("\\i ")
}

/// Where the word at the end of `before` begins, with its opening quote.
fn word_start(before: &str) -> usize {
    let word = before.trim_end_matches(is_word).len();
    if before[..word].ends_with('"') {
        word - 1
    } else {
        word
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether the words of `line` include `name`.
fn mentions(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + name.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

/// Whether a name is another one without quotes.
fn needs_quotes(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit();
    !name.chars().all(plain) || name.starts_with(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(word: &str, names: &[&str]) -> Vec<String> {
        let names = names.iter().map(ToString::to_string).collect();
        let pairs = candidates(word, &names);
        pairs.into_iter().map(|pair| pair.replacement).collect()
    }

    #[test]
    fn keywords_follow_the_case_that_was_typed() {
        assert_eq!(complete("refr", &[]), ["refresh"]);
        assert_eq!(complete("REFR", &[]), ["REFRESH"]);
        assert_eq!(complete("Gen", &[]), ["GENERATED"]);
    }

    #[test]
    fn names_come_first_and_get_quotes_where_they_need_them() {
        let names = ["orders", "Order Lines", "customers"];
        assert_eq!(
            complete("ord", &names),
            ["\"Order Lines\"", "orders", "order"]
        );
        assert_eq!(complete("\"ord", &names), ["\"Order Lines\"", "\"orders\""]);
        assert_eq!(complete("", &names).len(), 3);
    }

    #[test]
    fn a_word_begins_after_what_is_none() {
        assert_eq!(word_start("SELECT na"), 7);
        assert_eq!(word_start("SELECT t.na"), 9);
        assert_eq!(word_start("SELECT \"Na"), 7);
        assert_eq!(word_start("größe"), 0);
        assert_eq!(word_start("a "), 2);
    }

    #[test]
    fn paths_stand_in_quotes_and_after_include() {
        assert!(wants_file("SELECT * FROM 'da"));
        assert!(wants_file("\\i exa"));
        assert!(!wants_file("SELECT 'a' AS b"));
    }

    #[test]
    fn a_table_is_mentioned_as_a_word() {
        assert!(mentions("SELECT x FROM orders o", "orders"));
        assert!(mentions("orders", "orders"));
        assert!(!mentions("SELECT x FROM reorders2, orders_old", "orders"));
    }
}
