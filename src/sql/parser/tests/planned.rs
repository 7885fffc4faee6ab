//! What DataFusion makes of rewritten queries.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, Int64Array, RecordBatch};
use datafusion::arrow::datatypes::Schema;
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;

use super::*;

fn ints(values: Vec<i64>) -> ArrayRef {
    Arc::new(Int64Array::from(values))
}

/// Tables by the names that the catalog would take apart.
fn context() -> SessionContext {
    let context = SessionContext::new();
    let register = |name: &str, columns: Vec<(&str, ArrayRef)>| {
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let table = MemTable::try_new(batch.schema(), vec![vec![batch]]).unwrap();
        context
            .register_table(TableReference::bare(name), Arc::new(table))
            .unwrap();
    };
    for name in ["t", "u"] {
        register(name, vec![("x", ints(vec![1, 2, 3]))]);
        register(
            &format!("{name} VERSION AS OF 5"),
            vec![("x", ints(vec![5]))],
        );
        register(
            &format!("{name} WITH ROW IDS"),
            vec![
                ("x", ints(vec![1, 2, 3])),
                ("_rowid", ints(vec![0, 1, 2])),
                ("_rowaddr", ints(vec![0, 1, 2])),
            ],
        );
    }
    context
}

async fn run(text: &str) -> datafusion::common::Result<(Arc<Schema>, Vec<i64>)> {
    let Statement::DataFusion(statement) = one(text) else {
        panic!("{text}");
    };
    let context = context();
    let plan = context.state().statement_to_plan(*statement).await?;
    let frame = context.execute_logical_plan(plan).await?;
    let schema = Arc::new(frame.schema().as_arrow().clone());
    let mut values = Vec::new();
    for batch in frame.collect().await? {
        if let Some(column) = batch.column(0).as_any().downcast_ref::<Int64Array>() {
            values.extend(column.iter().flatten());
        }
    }
    values.sort_unstable();
    Ok((schema, values))
}

#[tokio::test]
async fn a_version_reads_that_version() {
    for (text, expected) in [
        ("SELECT * FROM t", vec![1, 2, 3]),
        ("SELECT * FROM t VERSION AS OF 5", vec![5]),
        ("SELECT t.x FROM t VERSION AS OF 5", vec![5]),
        (
            "SELECT a.x FROM t a JOIN u VERSION AS OF 5 ON u.x = a.x + 2",
            vec![3],
        ),
        (
            "SELECT x FROM t WHERE x + 2 IN (SELECT x FROM t VERSION AS OF 5)",
            vec![3],
        ),
        (
            "WITH t AS (SELECT x FROM t VERSION AS OF 5) SELECT * FROM t",
            vec![5],
        ),
    ] {
        assert_eq!(run(text).await.unwrap().1, expected, "{text}");
    }
    assert!(run("SELECT * FROM t VERSION AS OF 6").await.is_err());
}

#[tokio::test]
async fn wildcards_show_no_hidden_columns() {
    for (text, names) in [
        ("SELECT * FROM t WHERE _rowid > 0", vec!["x"]),
        ("SELECT _rowid, * FROM t", vec!["_rowid", "x"]),
        (
            "SELECT *, t._rowid AS r FROM t JOIN u ON t._rowid = u._rowid",
            vec!["x", "x", "r"],
        ),
        ("SELECT t.*, u._rowaddr FROM t, u", vec!["x", "_rowaddr"]),
        (
            "SELECT * FROM (SELECT *, _rowid FROM t) d",
            vec!["x", "_rowid"],
        ),
        ("SELECT * EXCLUDE (x), _rowid FROM t", vec!["_rowid"]),
        (
            "SELECT x FROM t JOIN u USING (x) WHERE t._rowid = 1",
            vec!["x"],
        ),
        (
            "SELECT * REPLACE (x + 1 AS x) FROM t WHERE _rowid = 1",
            vec!["x"],
        ),
    ] {
        let (schema, _) = run(text)
            .await
            .unwrap_or_else(|error| panic!("{text}: {error}"));
        let found: Vec<&str> = schema
            .fields()
            .iter()
            .map(|field| field.name().as_str())
            .collect();
        assert_eq!(found, names, "{text}");
    }
    assert_eq!(
        run("SELECT * FROM t WHERE _rowid > 0").await.unwrap().1,
        [2, 3]
    );
    // An exclusion of columns that are not there fails, hence the exceptions.
    let sql = "SELECT t.* EXCEPT (y) FROM t";
    assert!(context().sql(sql).await.is_err());
}
