//! The options of materialized views: those that are stored with a view, and those of a refresh.
//!
//! CREATE MATERIALIZED VIEW takes both, ALTER … SET those of the view, REFRESH those of a refresh.

use std::ops::RangeInclusive;
use std::time::Duration;

use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::Token;
use serde::{Deserialize, Serialize};

use super::{KnownOption, MOST_ROWS, Options, TIMES, parse_duration, unknown};
use crate::column::plan::BatchSize;
use crate::job::admission::Placement;
use crate::sql::parser::dialect::HeadwaterDialect;
use crate::sql::statement::{OptionValue, StatementOption};
use crate::view::failed::OnError;
pub use crate::view::options::{RefreshMode, TargetLag, ViewOptions};
use crate::{Error, Result};

const CREATE: &str = "CREATE MATERIALIZED VIEW";
const REFRESH: &str = "REFRESH MATERIALIZED VIEW";
const ALTER: &str = "ALTER MATERIALIZED VIEW";

/// The options of a materialized view.
pub const MATERIALIZED_VIEW: &[KnownOption] = &[
    KnownOption::now("refresh_mode"),
    KnownOption::now("target_lag"),
    KnownOption::now("max_rows_per_fragment"),
    KnownOption::now("order_by"),
    KnownOption::now("shuffle_seed"),
    KnownOption::now("index_sources"),
];

/// The options of REFRESH MATERIALIZED VIEW.
pub const REFRESH_VIEW: &[KnownOption] = &[
    KnownOption::now("full"),
    KnownOption::now("concurrency"),
    KnownOption::now("batch_rows"),
    KnownOption::now("max_batch_rows"),
    KnownOption::now("batch_bytes"),
    KnownOption::now("checkpoint_interval"),
    KnownOption::now("timeout"),
    KnownOption::later("workers"),
    KnownOption::now("on_error"),
    KnownOption::later("max_failed_rows"),
    KnownOption::later("max_failed_fraction"),
    KnownOption::later("call_timeout"),
    KnownOption::now("pool"),
    KnownOption::now("admission"),
    KnownOption::now("admission_timeout"),
];

/// Options of REFRESH COLUMN with which a refresh ends, or commits, in the middle: a view is never seen
/// half refreshed.
const WOULD_SHOW_HALF: [&str; 6] = [
    "commit_every",
    "commit_interval",
    "max_fragments",
    "skip_fragments",
    "max_calls",
    "max_seconds",
];

/// How far behind its sources a view may be.
const LAGS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(366 * 86_400);

/// The largest seed: larger whole numbers are not exact as options.
const LARGEST_SEED: u64 = (1 << 53) - 1;

impl ViewOptions {
    /// Checks and reads the options of CREATE MATERIALIZED VIEW: those of the view, and those of its
    /// first refresh.
    ///
    /// # Errors
    ///
    /// As [`Options::check`], and for values out of range.
    pub fn for_create(given: &[StatementOption]) -> Result<(Self, RefreshViewOptions)> {
        check_half(CREATE, given)?;
        let known = [MATERIALIZED_VIEW, REFRESH_VIEW].concat();
        let options = Options::check(CREATE, given, &known)?;
        let mut of_view = Self::default();
        of_view.take(&options)?;
        Ok((of_view, RefreshViewOptions::take(&options)?))
    }

    /// These options with those of ALTER MATERIALIZED VIEW … SET.
    ///
    /// # Errors
    ///
    /// As [`Options::check`], for values out of range, and where they contradict those that are there.
    pub fn with(&self, given: &[StatementOption]) -> Result<Self> {
        check_half(ALTER, given)?;
        for option in given {
            check_stored(&option.name)?;
        }
        let options = Options::check(ALTER, given, MATERIALIZED_VIEW)?;
        let mut changed = self.clone();
        changed.take(&options)?;
        Ok(changed)
    }

    /// These options without those of ALTER MATERIALIZED VIEW … RESET.
    ///
    /// # Errors
    ///
    /// For an option that is not known.
    pub fn without(&self, names: &[String]) -> Result<Self> {
        let mut changed = self.clone();
        for name in names {
            check_stored(name)?;
            let default = Self::default();
            match name.as_str() {
                "refresh_mode" => changed.refresh_mode = default.refresh_mode,
                "target_lag" => changed.target_lag = default.target_lag,
                "max_rows_per_fragment" => {
                    changed.max_rows_per_fragment = default.max_rows_per_fragment;
                }
                "order_by" => changed.order_by = default.order_by,
                "shuffle_seed" => changed.shuffle_seed = default.shuffle_seed,
                "index_sources" => changed.index_sources = default.index_sources,
                _ => return Err(unknown(ALTER, name, MATERIALIZED_VIEW)),
            }
        }
        Ok(changed)
    }

    /// Takes over those that were given.
    fn take(&mut self, options: &Options<'_>) -> Result<()> {
        if let Some(mode) = refresh_mode(options)? {
            self.refresh_mode = mode;
        }
        if let Some(lag) = target_lag(options)? {
            self.target_lag = Some(lag);
        }
        if let Some(rows) = options.count("max_rows_per_fragment", 1..=MOST_ROWS)? {
            self.max_rows_per_fragment = Some(rows);
        }
        if let Some(order) = order_by(options)? {
            self.order_by = Some(order);
        }
        if let Some(seed) = options.integer("shuffle_seed", 0..=LARGEST_SEED)? {
            self.shuffle_seed = Some(seed);
        }
        if let Some(index) = options.boolean("index_sources")? {
            self.index_sources = Some(index);
        }
        if self.order_by.is_some() && self.shuffle_seed.is_some() {
            return Err(Error::invalid(format!(
                "options 'order_by' and 'shuffle_seed' of {} contradict each other",
                options.statement
            ))
            .with_hint("each gives the rows an order: leave one of them out, or RESET it"));
        }
        Ok(())
    }
}

/// What REFRESH MATERIALIZED VIEW was given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RefreshViewOptions {
    /// Whether FULL is meant; `None` if nothing was said.
    pub full: Option<bool>,
    /// Evaluations of users' functions at once; `None` for as many as there are cores, or slots of the cluster.
    pub concurrency: Option<usize>,
    /// How large batches are.
    pub batches: BatchSize,
    /// Whether every evaluation has as many rows as `batches` say, instead of as many as are quick.
    pub fixed_batches: bool,
    /// How much computing may be lost; `None` for the default.
    pub checkpoint_interval: Option<Duration>,
    /// Cancels the job after so long.
    pub timeout: Option<Duration>,
    /// What becomes of a row whose call fails.
    pub on_error: OnError,
    /// The executors that it wants.
    pub placement: Placement,
}

impl RefreshViewOptions {
    /// Checks and reads the options of REFRESH MATERIALIZED VIEW.
    ///
    /// # Errors
    ///
    /// As [`Options::check`], and for values out of range.
    pub fn read(given: &[StatementOption]) -> Result<Self> {
        check_half(REFRESH, given)?;
        let of_view = |option: &&StatementOption| is_among(MATERIALIZED_VIEW, &option.name);
        if let Some(StatementOption { name, value }) = given.iter().find(of_view) {
            return Err(Error::invalid(format!(
                "option '{name}' belongs to the view, not to {REFRESH}"
            ))
            .with_hint(format!("{ALTER} … SET ({name} = {value})")));
        }
        Self::take(&Options::check(REFRESH, given, REFRESH_VIEW)?)
    }

    fn take(options: &Options<'_>) -> Result<Self> {
        let (batches, fixed_batches) = options.batches()?;
        Ok(Self {
            full: options.boolean("full")?,
            concurrency: options.count("concurrency", 1..=1024)?,
            batches,
            fixed_batches,
            checkpoint_interval: options.duration("checkpoint_interval", TIMES)?,
            timeout: options.duration("timeout", TIMES)?,
            on_error: on_error(options)?,
            placement: options.placement()?,
        })
    }
}

/// The first option of a refresh among those of CREATE MATERIALIZED VIEW.
pub fn of_refresh(given: &[StatementOption]) -> Option<&str> {
    given
        .iter()
        .map(|option| option.name.as_str())
        .find(|name| is_among(REFRESH_VIEW, name))
}

fn is_among(known: &[KnownOption], name: &str) -> bool {
    known.iter().any(|known| known.name == name)
}

/// Refuses options that a view can't have, because of what it promises.
fn check_half(statement: &str, given: &[StatementOption]) -> Result<()> {
    for StatementOption { name, .. } in given {
        if WOULD_SHOW_HALF.contains(&name.as_str()) {
            return Err(Error::invalid(format!(
                "{statement} has no option '{name}': it would show half a refresh"
            ))
            .with_hint(
                "a refresh of a view is seen as a whole; 'timeout' limits how long it takes",
            ));
        }
        if name == "version" {
            return Err(Error::invalid(format!(
                "{statement} has no option 'version': a view may read several tables"
            ))
            .with_hint(format!(
                "{REFRESH} … AS OF (t VERSION 3) names the version of each"
            )));
        }
    }
    Ok(())
}

/// Refuses options of a refresh where those of the view are changed.
fn check_stored(name: &str) -> Result<()> {
    if name == "full" {
        return Err(
            Error::invalid("option 'full' is one of a refresh, not of a view")
                .with_hint("refresh_mode = 'full' makes every refresh of the view a full one"),
        );
    }
    if is_among(REFRESH_VIEW, name) {
        return Err(Error::invalid(format!(
            "option '{name}' is one of a refresh, not of a view"
        ))
        .with_hint(format!("{REFRESH} … WITH ({name} = …)")));
    }
    Ok(())
}

/// What becomes of a row whose call fails. Trying again comes with functions that say how.
fn on_error(options: &Options<'_>) -> Result<OnError> {
    let Some(value) = options.value("on_error") else {
        return Ok(OnError::default());
    };
    let OptionValue::Text(text) = value else {
        return Err(options.refuse("on_error", value, "'fail' or 'skip'"));
    };
    let text = text.trim().to_lowercase();
    match text.as_str() {
        "fail" => Ok(OnError::Fail),
        "skip" => Ok(OnError::Skip),
        _ if text.starts_with("retry") || text.starts_with("skip(") => Err(Error::not_available(
            format!("on_error = '{text}' of {}", options.statement),
        )
        .with_hint("'fail' and 'skip' are")),
        _ => Err(options.refuse("on_error", value, "'fail' or 'skip'")),
    }
}

fn refresh_mode(options: &Options<'_>) -> Result<Option<RefreshMode>> {
    let modes = [
        RefreshMode::Auto,
        RefreshMode::Incremental,
        RefreshMode::Full,
    ];
    let Some(value) = options.value("refresh_mode") else {
        return Ok(None);
    };
    let found = match value {
        OptionValue::Text(text) => modes
            .into_iter()
            .find(|mode| mode.name().eq_ignore_ascii_case(text)),
        _ => None,
    };
    match found {
        Some(mode) => Ok(Some(mode)),
        None => Err(options.refuse("refresh_mode", value, "'auto', 'incremental' or 'full'")),
    }
}

fn target_lag(options: &Options<'_>) -> Result<Option<TargetLag>> {
    let Some(value) = options.value("target_lag") else {
        return Ok(None);
    };
    let lag = match value {
        OptionValue::Text(text) if text.eq_ignore_ascii_case("downstream") => {
            return Ok(Some(TargetLag::Downstream));
        }
        OptionValue::Text(text) => parse_duration(text),
        OptionValue::Number(seconds) => Duration::try_from_secs_f64(*seconds).ok(),
        OptionValue::Boolean(_) => None,
    };
    match lag.filter(|lag| LAGS.contains(lag)) {
        Some(lag) => Ok(Some(TargetLag::Within(lag))),
        None => Err(options.refuse(
            "target_lag",
            value,
            "'downstream', or a time from '1 second' to '366 days', like '10 minutes'",
        )),
    }
}

/// The order, if it can be read as one.
fn order_by(options: &Options<'_>) -> Result<Option<String>> {
    let Some(text) = options.text("order_by")? else {
        return Ok(None);
    };
    let read = || {
        let mut parser = Parser::new(&HeadwaterDialect).try_with_sql(text)?;
        parser.parse_comma_separated(Parser::parse_order_by_expr)?;
        parser.expect_token(&Token::EOF)
    };
    match read() {
        Ok(_) => Ok(Some(text.trim().to_string())),
        Err(error) => Err(options
            .refuse(
                "order_by",
                &OptionValue::Text(text.to_string()),
                "what stands behind ORDER BY, like 'bucket, id DESC'",
            )
            .with_source(error)),
    }
}

#[cfg(test)]
mod tests;
