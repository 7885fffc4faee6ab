//! The protocol as other clients use it: arrow-flight's own, without cookies, without polls.

use std::sync::Arc;

use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::sql::{
    CommandGetDbSchemas, CommandGetPrimaryKeys, CommandGetTables, CommandGetXdbcTypeInfo, SqlInfo,
};
use arrow_flight::{Action, FlightInfo};
use datafusion::arrow::array::{AsArray, Int64Array, RecordBatch, StringArray};
use datafusion::arrow::datatypes::Schema;
use datafusion::arrow::util::pretty::pretty_format_batches;
use futures::TryStreamExt;
use headwater::protocol::StatementState;
use libtest_mimic::Trial;
use tonic::transport::{Channel, Endpoint};

use super::{has, start};
use crate::harness::scene::{Outcome, Scene, block_on};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("server/metadata", || block_on(metadata())),
        Trial::test("server/prepared", || block_on(prepared())),
        Trial::test("server/updates", || block_on(updates())),
        Trial::test("server/results", || block_on(results())),
        Trial::test("server/wrong_calls", || block_on(wrong_calls())),
    ]
}

type FlightSql = FlightSqlServiceClient<Channel>;

async fn connect(url: &str) -> Outcome<FlightSql> {
    let endpoint = Endpoint::from_shared(url.replace("grpc://", "http://"))?;
    Ok(FlightSqlServiceClient::new(endpoint.connect().await?))
}

async fn rows(client: &mut FlightSql, info: FlightInfo) -> Outcome<Vec<RecordBatch>> {
    let schema = Schema::try_from(info.clone())?;
    let ticket = info
        .endpoint
        .into_iter()
        .find_map(|endpoint| endpoint.ticket);
    let stream = client.do_get(ticket.ok_or("no ticket")?).await?;
    let batches: Vec<RecordBatch> = stream.try_collect().await?;
    for batch in &batches {
        if batch.schema().fields() != schema.fields() {
            return Err(format!("{:?}, not {schema:?}", batch.schema()).into());
        }
    }
    Ok(batches)
}

fn text(batches: &[RecordBatch]) -> Outcome<String> {
    Ok(pretty_format_batches(batches)?.to_string())
}

async fn metadata() -> Outcome<()> {
    let scene = Scene::new(&[
        "CREATE TABLE boxes (id BIGINT, x INT, PRIMARY KEY (x, id))",
        "CREATE VIEW seen AS SELECT x FROM boxes",
        "CREATE MATERIALIZED VIEW sums AS SELECT x, count(*) AS n FROM boxes GROUP BY x",
    ])
    .await?;
    let (mut server, url) = start(&scene, &[]).await?;
    let mut client = connect(&url).await?;

    let info = client.get_catalogs().await?;
    has(&text(&rows(&mut client, info).await?)?, &["headwater"])?;
    let request = CommandGetDbSchemas {
        catalog: None,
        db_schema_filter_pattern: Some("pub%".to_string()),
    };
    let info = client.get_db_schemas(request).await?;
    let schemas = rows(&mut client, info).await?;
    has(&text(&schemas)?, &["public"])?;
    if schemas.iter().map(RecordBatch::num_rows).sum::<usize>() != 1 {
        return Err(text(&schemas)?.into());
    }
    let info = client.get_table_types().await?;
    has(
        &text(&rows(&mut client, info).await?)?,
        &["MATERIALIZED VIEW", "SYSTEM TABLE"],
    )?;

    let all = |name: Option<&str>, types: &[&str], include_schema| CommandGetTables {
        catalog: None,
        db_schema_filter_pattern: None,
        table_name_filter_pattern: name.map(ToString::to_string),
        table_types: types.iter().map(ToString::to_string).collect(),
        include_schema,
    };
    let info = client.get_tables(all(None, &[], false)).await?;
    let tables = text(&rows(&mut client, info).await?)?;
    has(&tables, &["boxes", "seen", "sums", "jobs"])?;
    let info = client.get_tables(all(None, &["VIEW"], false)).await?;
    let tables = text(&rows(&mut client, info).await?)?;
    if !tables.contains("seen") || tables.contains("boxes") {
        return Err(tables.into());
    }
    let info = client.get_tables(all(Some("boxes"), &[], true)).await?;
    let tables = rows(&mut client, info).await?;
    let batch = tables.first().ok_or("no table")?;
    let bytes = batch.column(4).as_binary::<i32>().value(0).to_vec();
    let schema = Schema::try_from(arrow_flight::IpcMessage(bytes.into()))?;
    let names: Vec<&str> = schema
        .fields()
        .iter()
        .map(|field| field.name().as_str())
        .collect();
    if batch.num_rows() != 1 || names != ["id", "x"] {
        return Err(format!("{} row(s), {names:?}", batch.num_rows()).into());
    }

    let key = CommandGetPrimaryKeys {
        catalog: None,
        db_schema: None,
        table: "boxes".to_string(),
    };
    let info = client.get_primary_keys(key).await?;
    let keys = rows(&mut client, info).await?;
    let batch = keys.first().ok_or("no key")?;
    let columns: Vec<_> = batch
        .column(3)
        .as_string::<i32>()
        .iter()
        .flatten()
        .collect();
    if columns != ["x", "id"] {
        return Err(text(&keys)?.into());
    }
    let info = client
        .get_xdbc_type_info(CommandGetXdbcTypeInfo { data_type: None })
        .await?;
    has(
        &text(&rows(&mut client, info).await?)?,
        &["BIGINT", "VARCHAR", "DECIMAL"],
    )?;
    let wanted = vec![
        SqlInfo::FlightSqlServerName,
        SqlInfo::FlightSqlServerVersion,
    ];
    let info = client.get_sql_info(wanted).await?;
    has(
        &text(&rows(&mut client, info).await?)?,
        &["Headwater", env!("CARGO_PKG_VERSION")],
    )?;
    server.terminate().await
}

async fn prepared() -> Outcome<()> {
    let scene = Scene::new(&["CREATE TABLE boxes (id BIGINT, name VARCHAR)"]).await?;
    let (mut server, url) = start(&scene, &[]).await?;
    let mut client = connect(&url).await?;

    let mut insert = client
        .prepare("INSERT INTO boxes VALUES (?, ?)".to_string(), None)
        .await?;
    if insert.parameter_schema()?.fields().len() != 2
        || !insert.dataset_schema()?.fields().is_empty()
    {
        return Err(format!("{insert:?}").into());
    }
    let values = RecordBatch::try_from_iter([
        ("1", Arc::new(Int64Array::from(vec![1, 2, 3])) as _),
        (
            "2",
            Arc::new(StringArray::from(vec![Some("it's"), Some("?"), None])) as _,
        ),
    ])?;
    insert.set_parameters(values)?;
    let changed = insert.execute_update().await?;
    insert.close().await?;

    let sql = "SELECT name FROM boxes WHERE id = $1 OR name = $2 ORDER BY id".to_string();
    let mut query = client.prepare(sql, None).await?;
    let found = format!("{:?}", query.parameter_schema()?);
    has(&found, &["$1", "Int64", "$2", "Utf8"])?;
    let columns = query.dataset_schema()?.fields().len();
    let mut names = Vec::new();
    for (id, name) in [(1, "none"), (3, "?")] {
        let values = RecordBatch::try_from_iter([
            ("1", Arc::new(Int64Array::from(vec![id])) as _),
            ("2", Arc::new(StringArray::from(vec![name])) as _),
        ])?;
        query.set_parameters(values)?;
        let info = query.execute().await?;
        for batch in rows(&mut client, info).await? {
            let column = batch.column(0).as_string::<i32>();
            names.extend(column.iter().map(|name| name.map(ToString::to_string)));
        }
    }
    let expected = [Some("it's".to_string()), Some("?".to_string()), None];
    if changed != 3 || columns != 1 || names != expected {
        return Err(format!("{changed} rows, {columns} column(s), {names:?}").into());
    }
    query.close().await?;
    // What only reads is described, what changes something is not run.
    let show = client.prepare("SHOW TABLES".to_string(), None).await?;
    let drop = client.prepare("DROP TABLE boxes".to_string(), None).await?;
    if show.dataset_schema()?.fields().len() != 2 || !drop.dataset_schema()?.fields().is_empty() {
        return Err(format!("{show:?} {drop:?}").into());
    }
    let error = client
        .prepare("SELECT nosuch FROM boxes".to_string(), None)
        .await;
    has(&format!("{:?}", error.err()), &["nosuch"])?;
    server.terminate().await
}

async fn updates() -> Outcome<()> {
    let scene = Scene::new(&[]).await?;
    let (mut server, url) = start(&scene, &[]).await?;
    let mut client = connect(&url).await?;
    for (statement, expected) in [
        (
            "CREATE TABLE boxes (id BIGINT, x BIGINT, y BIGINT AS (x + 1))",
            0,
        ),
        (
            "INSERT INTO boxes (id, x) SELECT value AS id, value AS x FROM generate_series(1, 10)",
            10,
        ),
        ("UPDATE boxes SET x = 0 WHERE id > 7", 3),
        ("DELETE FROM boxes WHERE id = 1", 1),
        ("DELETE FROM boxes WHERE id = 1", 0),
        ("REFRESH COLUMN y ON boxes", -1),
        ("SELECT count(*) AS rows FROM boxes", -1),
        ("DROP TABLE boxes", -1),
    ] {
        let changed = client.execute_update(statement.to_string(), None).await?;
        if changed != expected {
            return Err(format!("{statement}: {changed}, not {expected}").into());
        }
    }
    let error = client
        .execute_update("DELETE FROM boxes".to_string(), None)
        .await;
    let Err(arrow_flight::error::FlightError::Tonic(status)) = error else {
        return Err(format!("{error:?}").into());
    };
    has(status.message(), &["'boxes' does not exist"])?;
    if status.code() != tonic::Code::NotFound {
        return Err(format!("{status:?}").into());
    }
    server.terminate().await
}

/// Results and what comes with them.
async fn results() -> Outcome<()> {
    let scene = Scene::new(&["CREATE TABLE boxes (id BIGINT)"]).await?;
    let (mut server, url) = start(&scene, &[]).await?;
    let mut client = connect(&url).await?;
    // Without a cookie no setting lasts.
    let set = "SET datafusion.execution.batch_size = 7".to_string();
    client.execute(set, None).await?;
    let show = "SHOW datafusion.execution.batch_size".to_string();
    let info = client.execute(show, None).await?;
    has(&text(&rows(&mut client, info).await?)?, &["8192"])?;
    // A notice.
    let info = client.execute("COMMIT".to_string(), None).await?;
    let state = StatementState::from_bytes(&info.app_metadata);
    has(&state.notices.join("\n"), &["COMMIT has no effect"])?;
    // No rows, with columns.
    let info = client
        .execute("SELECT * FROM boxes".to_string(), None)
        .await?;
    if !rows(&mut client, info.clone())
        .await?
        .iter()
        .all(|batch| batch.num_rows() == 0)
    {
        return Err("an empty table has rows".into());
    }
    // A result is fetched once.
    let again = rows(&mut client, info).await;
    has(
        &again.err().ok_or("it was fetched twice")?.to_string(),
        &["fetched once"],
    )?;
    // An error in the middle.
    let sql = "SELECT fail_if(value, 100000) FROM generate_series(1, 100001)".to_string();
    let info = client.execute(sql, None).await?;
    let broken = rows(&mut client, info).await;
    has(
        &broken.err().ok_or("it did not fail")?.to_string(),
        &["100000"],
    )?;
    server.terminate().await
}

/// What is not of the protocol is refused, and harms nothing.
async fn wrong_calls() -> Outcome<()> {
    let scene = Scene::new(&[]).await?;
    let (mut server, url) = start(&scene, &[]).await?;
    let mut client = connect(&url).await?;
    let mut errors = Vec::new();
    for bytes in [&b""[..], b"x", b"\xff\xff\xff", b"\n\x03abc\x12\x01x"] {
        let descriptor = || arrow_flight::FlightDescriptor::new_cmd(bytes.to_vec());
        let inner = client.inner_mut();
        errors.push(inner.get_flight_info(descriptor()).await.err());
        errors.push(inner.poll_flight_info(descriptor()).await.err());
        errors.push(inner.get_schema(descriptor()).await.err());
        errors.push(
            inner
                .do_get(arrow_flight::Ticket::new(bytes.to_vec()))
                .await
                .err(),
        );
        for name in [
            "CancelFlightInfo",
            "CancelQuery",
            "CreatePreparedStatement",
            "nosuch",
        ] {
            let action = Action::new(name, bytes.to_vec());
            match inner.do_action(action).await {
                // Nothing is there to cancel.
                Ok(_) if name == "CancelFlightInfo" => {}
                other => errors.push(other.err()),
            }
        }
    }
    if errors.iter().any(Option::is_none) {
        return Err(format!("{errors:?}").into());
    }
    for sql in ["", ";", "SELECT 1; SELECT 2", "SELECT '", "\0"] {
        let result = client.execute(sql.to_string(), None).await;
        if result.is_ok() {
            return Err(format!("{sql:?} was run").into());
        }
    }
    let info = client.execute("SELECT 1".to_string(), None).await?;
    rows(&mut client, info).await?;
    server.terminate().await
}
