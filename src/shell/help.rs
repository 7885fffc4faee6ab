//! What `\?` and `\h` print.
//!
//! Statements that are DataFusion's own are left to datafusion-cli; here are those that
//! the dialect adds or changes.

use std::fmt::Write;

/// The backslash commands and what they do.
const COMMANDS: &[(&str, &str)] = &[
    ("\\d", "list the tables and views"),
    ("\\d NAME", "describe a table or view"),
    ("\\h", "list the statements"),
    ("\\h STATEMENT", "show how a statement is written"),
    ("\\i FILE", "run the statements of a file"),
    (
        "\\pset format FORMAT",
        "print results as automatic, table, csv, tsv, json or nd-json",
    ),
    ("\\quiet on|off", "print results and errors only"),
    ("\\?", "list these commands"),
    ("\\q", "leave, as does Ctrl-D"),
];

/// Statements that datafusion-cli explains.
const DATAFUSION: &[(&str, &str)] = &[("SELECT", "query tables, views and files")];

struct Entry {
    name: &'static str,
    does: &'static str,
    syntax: &'static str,
}

const STATEMENTS: &[Entry] = &[
    Entry {
        name: "ALTER TABLE",
        does: "add, change and drop columns, plain and computed",
        syntax: "\
ALTER TABLE [IF EXISTS] table action [, action …]

where an action is
    ADD COLUMN [IF NOT EXISTS] column type [DEFAULT value]
    ADD COLUMN column [type] GENERATED ALWAYS AS (expression) [STORED | VIRTUAL]
    ADD COLUMN column [type] AS (expression)
    ADD COLUMNS (field, …) [PREFIX 'text'] AS (call)
    DROP COLUMN [IF EXISTS] column [RESTRICT | CASCADE]
    RENAME COLUMN column TO name
    RENAME TO name
    ALTER COLUMN column TYPE type
    ALTER COLUMN column { SET | DROP } NOT NULL
    ALTER COLUMN column SET EXPRESSION AS (expression)
    ALTER COLUMN column DROP EXPRESSION [IF EXISTS]
    ENABLE ROW TRACKING

A STORED column is empty until REFRESH COLUMN fills it; a VIRTUAL one is computed when read.
Example: ALTER TABLE products ADD COLUMN total AS (price * amount);",
    },
    Entry {
        name: "ALTER MATERIALIZED VIEW",
        does: "change the options or the query of a materialized view",
        syntax: "\
ALTER MATERIALIZED VIEW [IF EXISTS] view action [, action …]

where an action is
    RENAME TO name
    SET (option = value, …)
    RESET (option, …)
    SUSPEND
    RESUME
    UPGRADE FUNCTIONS
    AS query

AS comes last. After AS and UPGRADE FUNCTIONS the view is stale until it is refreshed.
Example: ALTER MATERIALIZED VIEW totals SET (target_lag = '10 minutes');",
    },
    Entry {
        name: "CANCEL JOB",
        does: "end a job; what is finished is kept",
        syntax: "CANCEL JOB 'id'",
    },
    Entry {
        name: "COPY",
        does: "write a table or the result of a query to files",
        syntax: "\
COPY { table | (query) } TO 'path or URL' [STORED AS { PARQUET | CSV | JSON | ARROW }] [OPTIONS (…)]

Example: COPY (SELECT * FROM products WHERE price > 10) TO 'dear.parquet';",
    },
    Entry {
        name: "CREATE TABLE",
        does: "make a table, from columns or from a query",
        syntax: "\
CREATE [OR REPLACE] TABLE [IF NOT EXISTS] table (column, … [, PRIMARY KEY (column, …)])
CREATE [OR REPLACE] TABLE [IF NOT EXISTS] table AS query

where a column is
    name type [NOT NULL] [DEFAULT value]
    name [type] GENERATED ALWAYS AS (expression) [STORED | VIRTUAL]

A query may read files: CREATE TABLE products AS SELECT * FROM 'data/*.parquet';",
    },
    Entry {
        name: "CREATE MATERIALIZED VIEW",
        does: "store the rows of a query, to be kept up to date",
        syntax: "\
CREATE [OR REPLACE] MATERIALIZED VIEW [IF NOT EXISTS] view [(column, …)]
    [WITH (option = value, …)] AS query [WITH [NO] DATA]

Options of the view: refresh_mode, target_lag, max_rows_per_fragment, order_by, shuffle_seed,
index_sources; those of its first refresh: see REFRESH MATERIALIZED VIEW. WITH NO DATA: without
rows, to be refreshed before it is read.
Example: CREATE MATERIALIZED VIEW totals AS SELECT id, price * amount AS total FROM products;",
    },
    Entry {
        name: "CREATE TAG",
        does: "give a version of a table a name",
        syntax: "\
CREATE [OR REPLACE] TAG [IF NOT EXISTS] 'tag' ON table [VERSION AS OF { number | 'tag' }]

Without a version it is the newest. A version with a tag is never cleaned up.
Example: CREATE TAG 'v1' ON products;",
    },
    Entry {
        name: "CREATE VIEW",
        does: "store a query under a name",
        syntax: "CREATE [OR REPLACE] VIEW [IF NOT EXISTS] view [(column, …)] AS query",
    },
    Entry {
        name: "DELETE",
        does: "delete rows",
        syntax: "DELETE FROM table [WHERE condition]",
    },
    Entry {
        name: "DESCRIBE",
        does: "show the columns of a table or view, the versions of a table, or a job",
        syntax: "\
DESCRIBE table
DESCRIBE MATERIALIZED VIEW view
DESCRIBE HISTORY table
DESCRIBE JOB 'id'",
    },
    Entry {
        name: "DROP",
        does: "drop tables and views",
        syntax: "DROP { TABLE | VIEW | MATERIALIZED VIEW } [IF EXISTS] name [, …] [RESTRICT | CASCADE]",
    },
    Entry {
        name: "DROP TAG",
        does: "remove the name of a version",
        syntax: "DROP TAG [IF EXISTS] 'tag' ON table",
    },
    Entry {
        name: "EXPLAIN",
        does: "show how a query or a refresh would run, or how it did",
        syntax: "\
EXPLAIN [ANALYZE] [VERBOSE] query
EXPLAIN [ANALYZE] REFRESH COLUMN column [, …] ON table …
EXPLAIN [ANALYZE] REFRESH MATERIALIZED VIEW view …
EXPLAIN CREATE MATERIALIZED VIEW view AS query",
    },
    Entry {
        name: "INSERT",
        does: "add rows",
        syntax: "\
INSERT INTO table [(column, …)] { VALUES (value, …) [, …] | query }

Computed columns are left out: REFRESH COLUMN fills them.",
    },
    Entry {
        name: "OPTIMIZE",
        does: "compact a table: few large fragments instead of many small ones",
        syntax: "OPTIMIZE table [WITH (option = value, …)]",
    },
    Entry {
        name: "PAUSE JOB",
        does: "let a job wait, until RESUME JOB",
        syntax: "PAUSE JOB 'id'",
    },
    Entry {
        name: "REFRESH COLUMN",
        does: "compute what is missing or out of date in computed columns",
        syntax: "\
REFRESH COLUMN column [, …] ON [TABLE] table
    [WHERE condition] [STALE ONLY | FULL] [CASCADE] [ASYNC] [WITH (option = value, …)]

Plain, it computes rows never computed and rows whose inputs changed. WHERE: every row that
matches; with STALE ONLY, those of them that need it. FULL: every row. CASCADE: computed
inputs first. ASYNC: gives the name of the job at once. If it is killed, the same statement
goes on with it.
Example: REFRESH COLUMN total ON products;",
    },
    Entry {
        name: "REFRESH MATERIALIZED VIEW",
        does: "bring a materialized view up to date",
        syntax: "\
REFRESH MATERIALIZED VIEW [CONCURRENTLY] view
    [FULL | INCREMENTAL | FAILED ONLY] [AS OF (table VERSION { number | 'tag' }, …)]
    [CASCADE] [ASYNC] [WITH (option = value, …)]

Options: concurrency, batch_rows, max_batch_rows, batch_bytes, checkpoint_interval, timeout.
CONCURRENTLY: writes only what differs. FULL: computes all rows. INCREMENTAL: what changed.
FAILED ONLY: rows that failed. AS OF: reads versions of its sources. CASCADE: materialized views
that it reads first. ASYNC: gives the name of the job at once.
Example: REFRESH MATERIALIZED VIEW totals;",
    },
    Entry {
        name: "RESTORE",
        does: "give a table the content of an older version, as a new one",
        syntax: "\
RESTORE [TABLE] table TO VERSION AS OF { number | 'tag' }

Example: RESTORE TABLE products TO VERSION AS OF 5;",
    },
    Entry {
        name: "RESUME JOB",
        does: "go on with a job that is paused, or whose process is gone",
        syntax: "RESUME JOB 'id'",
    },
    Entry {
        name: "SHOW",
        does: "list tables, columns, versions, tags, jobs, settings",
        syntax: "\
SHOW TABLES
SHOW COLUMNS FROM table
SHOW MATERIALIZED VIEWS
SHOW CREATE { TABLE | VIEW | MATERIALIZED VIEW } name
SHOW VERSIONS FROM table
SHOW TAGS FROM table
SHOW JOBS [FOR { TABLE table | COLUMN column ON table }] [LIMIT number]
SHOW JOB EVENTS 'id'
SHOW ERRORS [FOR { JOB 'id' | TABLE table | COLUMN column ON table }]
SHOW { ALL | setting }",
    },
    Entry {
        name: "TRUNCATE",
        does: "delete all rows of a table",
        syntax: "TRUNCATE [TABLE] table",
    },
    Entry {
        name: "UPDATE",
        does: "change rows",
        syntax: "UPDATE table SET column = value [, …] [FROM table, …] [WHERE condition]",
    },
    Entry {
        name: "VACUUM",
        does: "remove old versions of a table that nothing needs",
        syntax: "\
VACUUM [TABLE] table [RETAIN number { HOURS | DAYS }] [DRY RUN]

Versions of the last 168 hours stay, unless RETAIN says otherwise; so do the newest, and those
that computed columns, tags, views, branches and jobs need.
Example: VACUUM products RETAIN 30 DAYS DRY RUN;",
    },
    Entry {
        name: "WAIT JOB",
        does: "wait until a job has ended",
        syntax: "\
WAIT JOB 'id' [TIMEOUT 'time']

Example: WAIT JOB '20261121-093012481-5c1e7a90' TIMEOUT '10m';",
    },
];

/// The list of backslash commands.
pub(super) fn commands() -> String {
    listing(COMMANDS.iter().copied())
}

/// The list of statements.
pub(super) fn statements() -> String {
    let ours = STATEMENTS.iter().map(|entry| (entry.name, entry.does));
    let mut all: Vec<_> = ours.chain(DATAFUSION.iter().copied()).collect();
    all.sort_unstable();
    listing(all.into_iter())
}

/// How the statement `name` is written, if it is one of the dialect's own. A word too few
/// or too many does no harm: `create table as`, `refresh`.
pub(super) fn syntax(name: &str) -> Option<&'static str> {
    let name = name.trim().to_uppercase();
    let begins = |text: &str, start: &str| {
        text.strip_prefix(start)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    };
    STATEMENTS
        .iter()
        .find(|entry| begins(&name, entry.name) || begins(entry.name, &name))
        .map(|entry| entry.syntax)
}

/// The names of all statements.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    let ours = STATEMENTS.iter().map(|entry| entry.name);
    ours.chain(DATAFUSION.iter().map(|(name, _)| *name))
}

fn listing<'a>(lines: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> String {
    let width = lines.clone().map(|(name, _)| name.len()).max().unwrap_or(0);
    lines.fold(String::new(), |mut text, (name, does)| {
        // Writing to a string can't fail.
        let _ = writeln!(text, "  {name:width$}  {does}");
        text
    })
}

#[cfg(test)]
mod tests {
    use datafusion_cli::command::Command;
    use datafusion_cli::functions::Function;

    use super::*;

    #[test]
    fn every_command_listed_is_one() {
        for (name, _) in COMMANDS {
            let sample = name.replace("on|off", "on");
            assert!(sample[1..].parse::<Command>().is_ok(), "{name}");
        }
    }

    #[test]
    fn statements_are_found_by_any_part_of_their_name() {
        for name in [
            "refresh column",
            "REFRESH",
            "refresh materialized view v full",
            "create table as",
            "insert into",
            "drop table",
        ] {
            assert!(syntax(name).is_some(), "{name}");
        }
        for name in ["", "select", "refr", "nonsense"] {
            assert!(syntax(name).is_none(), "{name}");
        }
    }

    #[test]
    fn datafusion_cli_explains_the_rest() {
        for (name, _) in DATAFUSION {
            assert!(name.parse::<Function>().is_ok(), "{name}");
        }
        assert!(statements().contains("SELECT"));
    }
}
