//! The options that are stored with a view, and the order in which they have its rows written.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::array::{ArrayRef, UInt64Array};
use datafusion::arrow::datatypes::DataType;
use datafusion::common::{Column, DataFusionError};
use datafusion::execution::SessionState;
use datafusion::logical_expr::{
    ColumnarValue, Expr, LogicalPlan, LogicalPlanBuilder, ScalarFunctionArgs, ScalarUDF,
    ScalarUDFImpl, Signature, SortExpr, Volatility,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;
use serde::{Deserialize, Serialize};

use crate::database::materialized_view::ViewDefinition;
use crate::storage::keys::RowEncoder;
use crate::storage::write::TableLayout;
use crate::{Error, ErrorKind, Result};

/// What is stored with a view of how it is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ViewOptions {
    /// How its refreshes compute it.
    pub refresh_mode: RefreshMode,
    /// How far behind its sources it may be; `None`: it is refreshed only when someone says so.
    pub target_lag: Option<TargetLag>,
    /// Most rows of a fragment; `None` for Lance's own choice.
    pub max_rows_per_fragment: Option<usize>,
    /// The order in which its rows are stored, as behind ORDER BY.
    pub order_by: Option<String>,
    /// Seed of the pseudo-random order in which its rows are stored.
    pub shuffle_seed: Option<u64>,
    /// Whether its sources get the indexes that refreshes need; `None` where they pay.
    pub index_sources: Option<bool>,
}

/// How refreshes compute a view, where REFRESH does not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RefreshMode {
    /// Whatever is cheaper.
    #[default]
    Auto,
    /// What changed; a query for which that can't be done is an error.
    Incremental,
    /// All of it.
    Full,
}

impl RefreshMode {
    /// Its name in SQL.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Incremental => "incremental",
            Self::Full => "full",
        }
    }
}

/// How far behind its sources a view may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetLag {
    /// As far as the views that read it allow.
    Downstream,
    /// So long.
    Within(Duration),
}

impl fmt::Display for TargetLag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Within(lag) = self else {
            return f.write_str("downstream");
        };
        let seconds = lag.as_secs();
        let (number, unit) = match seconds {
            _ if lag.subsec_nanos() > 0 => return write!(f, "{} seconds", lag.as_secs_f64()),
            _ if seconds % 86_400 == 0 => (seconds / 86_400, "day"),
            _ if seconds % 3600 == 0 => (seconds / 3600, "hour"),
            _ if seconds % 60 == 0 => (seconds / 60, "minute"),
            _ => (seconds, "second"),
        };
        let plural = if number == 1 { "" } else { "s" };
        write!(f, "{number} {unit}{plural}")
    }
}

/// Those that are not the default, as they stand in WITH (…).
impl fmt::Display for ViewOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |text: &str| format!("'{}'", text.replace('\'', "''"));
        let mode = Some(self.refresh_mode).filter(|mode| *mode != RefreshMode::default());
        let values = [
            ("refresh_mode", mode.map(|mode| text(mode.name()))),
            (
                "target_lag",
                self.target_lag.map(|lag| text(&lag.to_string())),
            ),
            (
                "max_rows_per_fragment",
                self.max_rows_per_fragment.map(|rows| rows.to_string()),
            ),
            ("order_by", self.order_by.as_deref().map(text)),
            ("shuffle_seed", self.shuffle_seed.map(|s| s.to_string())),
            (
                "index_sources",
                self.index_sources.map(|yes| yes.to_string().to_uppercase()),
            ),
        ];
        let given = values
            .into_iter()
            .filter_map(|(name, value)| Some(format!("{name} = {}", value?)));
        f.write_str(&given.collect::<Vec<_>>().join(", "))
    }
}

impl ViewOptions {
    /// The options that a definition has.
    ///
    /// # Errors
    ///
    /// If there are some that this release can't read.
    pub fn of(definition: &ViewDefinition) -> Result<Self> {
        if definition.options.is_null() {
            return Ok(Self::default());
        }
        serde_json::from_value(definition.options.clone()).map_err(|error| {
            Error::new(
                ErrorKind::Storage,
                format!("the options of a materialized view can't be read: {error}"),
            )
            .with_hint("they were damaged, or a newer release wrote them")
        })
    }

    /// How its rows are divided into fragments.
    pub fn layout(&self) -> TableLayout {
        TableLayout {
            max_rows_per_fragment: self.max_rows_per_fragment,
            max_bytes_per_file: None,
        }
    }

    /// Whether rows are stored in an order of their own.
    pub(super) fn is_ordered(&self) -> bool {
        self.order_by.is_some() || self.shuffle_seed.is_some()
    }

    /// `plan` in the order that the options ask for; `keys` are its columns that tell rows apart.
    ///
    /// # Errors
    ///
    /// If `order_by` names what the view does not have.
    pub(super) fn ordered(
        &self,
        session: &SessionState,
        plan: LogicalPlan,
        keys: &[String],
    ) -> Result<LogicalPlan> {
        let column = |name: &String| Expr::Column(Column::new_unqualified(name));
        let mut order: Vec<SortExpr> = Vec::new();
        if let Some(text) = &self.order_by {
            let parsed = Parser::new(&GenericDialect {})
                .try_with_sql(text)
                .and_then(|mut parser| parser.parse_comma_separated(Parser::parse_order_by_expr));
            let parsed = parsed.map_err(|error| not_an_order(text, error.to_string()))?;
            for part in parsed {
                let expr = session
                    .create_logical_expr(&part.expr.to_string(), plan.schema())
                    .map_err(|error| not_an_order(text, error.strip_backtrace()))?;
                let asc = part.options.asc.unwrap_or(true);
                let nulls_first = part.options.nulls_first.unwrap_or(!asc);
                order.push(expr.sort(asc, nulls_first));
            }
            // What ties is written in the same order each time.
            order.extend(keys.iter().map(|key| column(key).sort(true, false)));
        }
        if let Some(seed) = self.shuffle_seed {
            let fields = plan.schema().fields().iter();
            let names: Vec<String> = match keys.is_empty() {
                true => fields.map(|field| field.name().clone()).collect(),
                false => keys.to_vec(),
            };
            let shuffle = ScalarUDF::new_from_impl(Shuffle::new(seed));
            let place = shuffle.call(names.iter().map(column).collect());
            order.push(place.sort(true, false));
        }
        if order.is_empty() {
            return Ok(plan);
        }
        Ok(LogicalPlanBuilder::from(plan).sort(order)?.build()?)
    }
}

fn not_an_order(text: &str, message: String) -> Error {
    Error::invalid(format!("option 'order_by' = '{text}': {message}"))
        .with_hint("it names columns of the view, like 'bucket, id DESC'")
}

/// A row's place in a pseudo-random order.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Shuffle {
    seed: u64,
    signature: Signature,
}

impl Shuffle {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            signature: Signature::variadic_any(Volatility::Immutable),
        }
    }

    pub(super) fn seed(&self) -> u64 {
        self.seed
    }
}

impl ScalarUDFImpl for Shuffle {
    fn name(&self) -> &str {
        "shuffle"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> datafusion::common::Result<DataType> {
        Ok(DataType::UInt64)
    }

    fn invoke_with_args(
        &self,
        args: ScalarFunctionArgs,
    ) -> datafusion::common::Result<ColumnarValue> {
        let columns: Vec<ArrayRef> = args
            .args
            .iter()
            .map(|value| value.to_array(args.number_rows))
            .collect::<datafusion::common::Result<_>>()?;
        let types = columns.iter().map(|column| column.data_type());
        let encoder = RowEncoder::new(types)?.ok_or_else(|| {
            DataFusionError::Plan(
                "option 'shuffle_seed': the view has a column of a type that can't be compared"
                    .to_string(),
            )
        })?;
        let rows = encoder.encode(&columns)?;
        let places = rows.iter().map(|row| place(self.seed, row.as_ref()));
        let places = UInt64Array::from_iter_values(places);
        Ok(ColumnarValue::Array(Arc::new(places)))
    }
}

/// FNV-1a over the bytes, then the finalizer of SplitMix64: the same on every machine.
fn place(seed: u64, bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for byte in bytes {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_written_as_they_are_typed() {
        let options = ViewOptions {
            refresh_mode: RefreshMode::Full,
            target_lag: Some(TargetLag::Within(Duration::from_secs(600))),
            order_by: Some("coalesce(s, 'x')".to_string()),
            index_sources: Some(false),
            ..Default::default()
        };
        assert_eq!(
            options.to_string(),
            "refresh_mode = 'full', target_lag = '10 minutes', order_by = 'coalesce(s, ''x'')', index_sources = FALSE"
        );
        assert_eq!(ViewOptions::default().to_string(), "");
    }

    #[test]
    fn another_seed_is_another_order() {
        let places = |seed| (0..50_u64).map(move |row| place(seed, &row.to_be_bytes()));
        assert!(places(1).eq(places(1)));
        assert!(places(1).zip(places(2)).all(|(a, b)| a != b));
        assert!(!places(1).is_sorted());
    }
}
