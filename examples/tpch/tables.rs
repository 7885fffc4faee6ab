//! The tables of TPC-H, made while they are read.

use std::fmt::{self, Display};
use std::ops::RangeInclusive;
use std::sync::Arc;

use datafusion::arrow::array::{
    ArrayRef, Date32Array, Decimal128Array, Int32Array, Int64Array, RecordBatch, StringArray,
};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::common::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use futures::stream;
use tpchgen::dates::TPCHDate;
use tpchgen::decimal::TPCHDecimal;
use tpchgen::distribution::Distributions;
use tpchgen::generators::{
    CustomerGenerator, LineItem, LineItemGenerator, NationGenerator, Order, OrderGenerator,
    PartGenerator, PartSuppGenerator, RegionGenerator, SupplierGenerator,
};
use tpchgen::text::TextPool;

/// Names of the tables.
pub const TABLES: [&str; 8] = [
    "region", "nation", "supplier", "customer", "part", "partsupp", "orders", "lineitem",
];

/// Orders and their lines are made in so many parts, numbered from 1.
pub const PARTS: i32 = 100;

/// Rows of a batch.
const BATCH_ROWS: usize = 8192;

/// A table of TPC-H to read from; of orders and lineitem only these parts. Comments are cut from `pool`.
pub fn generated(
    name: &str,
    scale: f64,
    parts: RangeInclusive<i32>,
    pool: &'static TextPool,
) -> Result<Arc<dyn TableProvider>> {
    let made = Made { scale, parts, pool };
    let rows = match name {
        "region" => made.region(),
        "nation" => made.nation(),
        "supplier" => made.supplier(),
        "customer" => made.customer(),
        "part" => made.part(),
        "partsupp" => made.partsupp(),
        "orders" => made.orders(),
        "lineitem" => made.lineitem(),
        other => return datafusion::common::plan_err!("TPC-H has no table '{other}'"),
    };
    let schema = Arc::clone(&rows.schema);
    Ok(Arc::new(StreamingTable::try_new(
        schema,
        vec![Arc::new(rows)],
    )?))
}

/// What is made.
struct Made {
    scale: f64,
    parts: RangeInclusive<i32>,
    pool: &'static TextPool,
}

impl Made {
    fn region(self) -> Generated {
        let Self { pool, .. } = self;
        Generated::new(
            move || {
                RegionGenerator::new_with_distributions_and_text_pool(
                    Distributions::static_default(),
                    pool,
                )
                .iter()
            },
            |rows| {
                vec![
                    ("r_regionkey", bigint(rows.iter().map(|r| r.r_regionkey))),
                    ("r_name", text(rows.iter().map(|r| r.r_name))),
                    ("r_comment", text(rows.iter().map(|r| r.r_comment))),
                ]
            },
        )
    }

    fn nation(self) -> Generated {
        let Self { pool, .. } = self;
        Generated::new(
            move || {
                NationGenerator::new_with_distributions_and_text_pool(
                    Distributions::static_default(),
                    pool,
                )
                .iter()
            },
            |rows| {
                vec![
                    ("n_nationkey", bigint(rows.iter().map(|r| r.n_nationkey))),
                    ("n_name", text(rows.iter().map(|r| r.n_name))),
                    ("n_regionkey", bigint(rows.iter().map(|r| r.n_regionkey))),
                    ("n_comment", text(rows.iter().map(|r| r.n_comment))),
                ]
            },
        )
    }

    fn supplier(self) -> Generated {
        let Self { scale, pool, .. } = self;
        Generated::new(
            move || {
                SupplierGenerator::new_with_distributions_and_text_pool(
                    scale,
                    1,
                    1,
                    Distributions::static_default(),
                    pool,
                )
                .iter()
            },
            |rows| {
                vec![
                    ("s_suppkey", bigint(rows.iter().map(|r| r.s_suppkey))),
                    ("s_name", text(rows.iter().map(|r| &r.s_name))),
                    ("s_address", text(rows.iter().map(|r| &r.s_address))),
                    ("s_nationkey", bigint(rows.iter().map(|r| r.s_nationkey))),
                    ("s_phone", text(rows.iter().map(|r| &r.s_phone))),
                    ("s_acctbal", decimal(rows.iter().map(|r| r.s_acctbal))),
                    ("s_comment", text(rows.iter().map(|r| &r.s_comment))),
                ]
            },
        )
    }

    fn customer(self) -> Generated {
        let Self { scale, pool, .. } = self;
        Generated::new(
            move || {
                CustomerGenerator::new_with_distributions_and_text_pool(
                    scale,
                    1,
                    1,
                    Distributions::static_default(),
                    pool,
                )
                .iter()
            },
            |rows| {
                vec![
                    ("c_custkey", bigint(rows.iter().map(|r| r.c_custkey))),
                    ("c_name", text(rows.iter().map(|r| &r.c_name))),
                    ("c_address", text(rows.iter().map(|r| &r.c_address))),
                    ("c_nationkey", bigint(rows.iter().map(|r| r.c_nationkey))),
                    ("c_phone", text(rows.iter().map(|r| &r.c_phone))),
                    ("c_acctbal", decimal(rows.iter().map(|r| r.c_acctbal))),
                    ("c_mktsegment", text(rows.iter().map(|r| r.c_mktsegment))),
                    ("c_comment", text(rows.iter().map(|r| r.c_comment))),
                ]
            },
        )
    }

    fn part(self) -> Generated {
        let Self { scale, pool, .. } = self;
        Generated::new(
            move || {
                PartGenerator::new_with_distributions_and_text_pool(
                    scale,
                    1,
                    1,
                    Distributions::static_default(),
                    pool,
                )
                .iter()
            },
            |rows| {
                vec![
                    ("p_partkey", bigint(rows.iter().map(|r| r.p_partkey))),
                    ("p_name", text(rows.iter().map(|r| &r.p_name))),
                    ("p_mfgr", text(rows.iter().map(|r| &r.p_mfgr))),
                    ("p_brand", text(rows.iter().map(|r| &r.p_brand))),
                    ("p_type", text(rows.iter().map(|r| r.p_type))),
                    ("p_size", int(rows.iter().map(|r| r.p_size))),
                    ("p_container", text(rows.iter().map(|r| r.p_container))),
                    (
                        "p_retailprice",
                        decimal(rows.iter().map(|r| r.p_retailprice)),
                    ),
                    ("p_comment", text(rows.iter().map(|r| r.p_comment))),
                ]
            },
        )
    }

    fn partsupp(self) -> Generated {
        let Self { scale, pool, .. } = self;
        Generated::new(
            move || PartSuppGenerator::new_with_text_pool(scale, 1, 1, pool).iter(),
            |rows| {
                vec![
                    ("ps_partkey", bigint(rows.iter().map(|r| r.ps_partkey))),
                    ("ps_suppkey", bigint(rows.iter().map(|r| r.ps_suppkey))),
                    ("ps_availqty", int(rows.iter().map(|r| r.ps_availqty))),
                    (
                        "ps_supplycost",
                        decimal(rows.iter().map(|r| r.ps_supplycost)),
                    ),
                    ("ps_comment", text(rows.iter().map(|r| r.ps_comment))),
                ]
            },
        )
    }

    fn orders(self) -> Generated {
        let Self { scale, parts, pool } = self;
        Generated::new(
            move || {
                parts.clone().flat_map(move |part| {
                    OrderGenerator::new_with_distributions_and_text_pool(
                        scale,
                        part,
                        PARTS,
                        Distributions::static_default(),
                        pool,
                    )
                    .iter()
                })
            },
            |rows: &[Order<'static>]| {
                vec![
                    ("o_orderkey", bigint(rows.iter().map(|r| r.o_orderkey))),
                    ("o_custkey", bigint(rows.iter().map(|r| r.o_custkey))),
                    (
                        "o_orderstatus",
                        text(rows.iter().map(|r| r.o_orderstatus.as_str())),
                    ),
                    ("o_totalprice", decimal(rows.iter().map(|r| r.o_totalprice))),
                    ("o_orderdate", date(rows.iter().map(|r| r.o_orderdate))),
                    (
                        "o_orderpriority",
                        text(rows.iter().map(|r| r.o_orderpriority)),
                    ),
                    ("o_clerk", text(rows.iter().map(|r| &r.o_clerk))),
                    ("o_shippriority", int(rows.iter().map(|r| r.o_shippriority))),
                    ("o_comment", text(rows.iter().map(|r| r.o_comment))),
                ]
            },
        )
    }

    fn lineitem(self) -> Generated {
        let Self { scale, parts, pool } = self;
        Generated::new(
            move || {
                parts.clone().flat_map(move |part| {
                    LineItemGenerator::new_with_distributions_and_text_pool(
                        scale,
                        part,
                        PARTS,
                        Distributions::static_default(),
                        pool,
                    )
                    .iter()
                })
            },
            |rows: &[LineItem<'static>]| {
                // The only decimal that tpchgen gives as a whole number.
                let quantity = |r: &LineItem| TPCHDecimal::new(r.l_quantity * 100);
                vec![
                    ("l_orderkey", bigint(rows.iter().map(|r| r.l_orderkey))),
                    ("l_partkey", bigint(rows.iter().map(|r| r.l_partkey))),
                    ("l_suppkey", bigint(rows.iter().map(|r| r.l_suppkey))),
                    ("l_linenumber", int(rows.iter().map(|r| r.l_linenumber))),
                    ("l_quantity", decimal(rows.iter().map(quantity))),
                    (
                        "l_extendedprice",
                        decimal(rows.iter().map(|r| r.l_extendedprice)),
                    ),
                    ("l_discount", decimal(rows.iter().map(|r| r.l_discount))),
                    ("l_tax", decimal(rows.iter().map(|r| r.l_tax))),
                    ("l_returnflag", text(rows.iter().map(|r| r.l_returnflag))),
                    ("l_linestatus", text(rows.iter().map(|r| r.l_linestatus))),
                    ("l_shipdate", date(rows.iter().map(|r| r.l_shipdate))),
                    ("l_commitdate", date(rows.iter().map(|r| r.l_commitdate))),
                    ("l_receiptdate", date(rows.iter().map(|r| r.l_receiptdate))),
                    (
                        "l_shipinstruct",
                        text(rows.iter().map(|r| r.l_shipinstruct)),
                    ),
                    ("l_shipmode", text(rows.iter().map(|r| r.l_shipmode))),
                    ("l_comment", text(rows.iter().map(|r| r.l_comment))),
                ]
            },
        )
    }
}

/// Rows that are made while they are read.
struct Generated {
    schema: SchemaRef,
    batches: Arc<dyn Fn() -> BatchIterator + Send + Sync>,
}

type BatchIterator = Box<dyn Iterator<Item = Result<RecordBatch>> + Send>;

/// The columns of a table, by name.
type Columns = Vec<(&'static str, ArrayRef)>;

impl Generated {
    /// Rows as `rows` gives them, in batches as `columns` makes them.
    fn new<T, I>(rows: impl Fn() -> I + Send + Sync + 'static, columns: fn(&[T]) -> Columns) -> Self
    where
        T: 'static,
        I: Iterator<Item = T> + Send + 'static,
    {
        // The columns of no rows have the types of all.
        let fields: Vec<Field> = columns(&[])
            .iter()
            .map(|(name, array)| Field::new(*name, array.data_type().clone(), true))
            .collect();
        let schema = Arc::new(Schema::new(fields));
        let of_batches = Arc::clone(&schema);
        let batches = move || -> BatchIterator {
            let mut rows = rows();
            let schema = Arc::clone(&of_batches);
            Box::new(std::iter::from_fn(move || {
                let batch: Vec<T> = rows.by_ref().take(BATCH_ROWS).collect();
                if batch.is_empty() {
                    return None;
                }
                let arrays = columns(&batch)
                    .into_iter()
                    .map(|(_, array)| array)
                    .collect();
                Some(RecordBatch::try_new(Arc::clone(&schema), arrays).map_err(Into::into))
            }))
        };
        Self {
            schema,
            batches: Arc::new(batches),
        }
    }
}

impl fmt::Debug for Generated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generated")
            .field("schema", &self.schema)
            .finish_non_exhaustive()
    }
}

impl PartitionStream for Generated {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let batches = stream::iter((self.batches)());
        Box::pin(RecordBatchStreamAdapter::new(
            Arc::clone(&self.schema),
            batches,
        ))
    }
}

fn bigint(values: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}

fn int(values: impl Iterator<Item = i32>) -> ArrayRef {
    Arc::new(Int32Array::from_iter_values(values))
}

fn text(values: impl Iterator<Item = impl Display>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(
        values.map(|value| value.to_string()),
    ))
}

/// DECIMAL(15, 2); tpchgen counts in hundredths too.
fn decimal(values: impl Iterator<Item = TPCHDecimal>) -> ArrayRef {
    let values = values.map(|value| i128::from(value.into_inner()));
    let array = Decimal128Array::from_iter_values(values);
    Arc::new(array.with_data_type(DataType::Decimal128(15, 2)))
}

fn date(values: impl Iterator<Item = TPCHDate>) -> ArrayRef {
    let days = values.map(|date| date.to_unix_epoch());
    Arc::new(Date32Array::from_iter_values(days))
}
