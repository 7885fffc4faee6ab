"""Statements, metadata and errors through ADBC's driver for Flight SQL: adbc.py URL TOKEN."""

import sys

import adbc_driver_flightsql.dbapi as flightsql
import pyarrow as pa
from adbc_driver_flightsql import DatabaseOptions

url, token = sys.argv[1:]


def connect(token, **options):
    known = {DatabaseOptions.AUTHORIZATION_HEADER.value: f"Bearer {token}"}
    return flightsql.connect(url, db_kwargs={**known, **options}, autocommit=True)


def rows(cursor, sql, parameters=None):
    cursor.execute(sql, parameters)
    return cursor.fetchall()


cookies = {DatabaseOptions.WITH_COOKIE_MIDDLEWARE.value: "true"}
with connect(token, **cookies) as connection, connection.cursor() as cursor:
    assert rows(cursor, "SELECT 1 AS one, 'x' AS text, NULL AS nothing") == [(1, "x", None)]

    cursor.execute("CREATE TABLE boxes (id BIGINT, x INT, y INT, area INT AS (x * y), PRIMARY KEY (id))")
    cursor.execute("INSERT INTO boxes (id, x, y) VALUES (1, 2, 3), (2, 4, 5), (3, NULL, 1)")
    refreshed = rows(cursor, "REFRESH COLUMN area ON boxes")
    assert refreshed[0][:4] == ("boxes.area", "full", "FIRST_REFRESH", 3), refreshed
    assert rows(cursor, "SELECT id, area FROM boxes ORDER BY id") == [(1, 6), (2, 20), (3, None)]
    assert ("boxes", "table") in rows(cursor, "SHOW TABLES")
    cursor.execute("CREATE MATERIALIZED VIEW total AS SELECT sum(area) AS total FROM boxes")
    rows(cursor, "REFRESH MATERIALIZED VIEW total")
    assert rows(cursor, "SELECT total FROM total") == [(26,)]

    # Parameters, of one row and of several.
    assert rows(cursor, "SELECT x FROM boxes WHERE id = ?", (2,)) == [(4,)]
    assert rows(cursor, "SELECT ? || '!'", ("it's",)) == [("it's!",)]
    cursor.executemany("INSERT INTO boxes (id, x, y) VALUES (?, ?, ?)", [(4, 1, 1), (5, 2, 2)])
    assert rows(cursor, "SELECT count(*) FROM boxes") == [(5,)]
    cursor.execute("UPDATE boxes SET x = 0 WHERE id > 3")

    # With cookies the session lasts.
    cursor.execute("SET datafusion.execution.batch_size = 77")
    assert rows(cursor, "SHOW datafusion.execution.batch_size")[0][1] == "77"

    # Many rows.
    cursor.execute("SELECT value FROM generate_series(1, 100000)")
    assert cursor.fetch_arrow_table().num_rows == 100_000

    # Metadata.
    assert connection.adbc_get_info()["vendor_name"] == "Headwater"
    assert "TABLE" in connection.adbc_get_table_types()
    schema = connection.adbc_get_table_schema("boxes")
    assert schema.names == ["id", "x", "y", "area"], schema
    assert schema.field("id").type == pa.int64(), schema
    objects = connection.adbc_get_objects(depth="tables", catalog_filter="headwater").read_all().to_pylist()
    tables = {
        table["table_name"]: table["table_type"]
        for catalog in objects
        for schema in catalog["catalog_db_schemas"]
        for table in schema["db_schema_tables"]
    }
    assert tables["boxes"] == "TABLE" and tables["total"] == "MATERIALIZED VIEW", tables

    # Errors have their text.
    for sql, words in [
        ("SELECT nosuch FROM boxes", "nosuch"),
        ("SELECT * FROM boxs", "did you mean 'boxes'?"),
        ("REFRESH COLUMN nosuch ON boxes", "nosuch"),
        ("SELEC 1", "SELEC"),
    ]:
        try:
            rows(cursor, sql)
        except flightsql.Error as error:
            assert words in str(error), error
        else:
            raise AssertionError(f"{sql} did not fail")

# Without cookies each statement has a session of its own.
with connect(token) as connection, connection.cursor() as cursor:
    cursor.execute("SET datafusion.execution.batch_size = 77")
    assert rows(cursor, "SHOW datafusion.execution.batch_size")[0][1] == "8192"

# A user and a password that is the token.
with flightsql.connect(url, db_kwargs={"username": "me", "password": token}, autocommit=True) as connection:
    with connection.cursor() as cursor:
        assert rows(cursor, "SELECT 2") == [(2,)]

try:
    with connect("wrong") as connection, connection.cursor() as cursor:
        rows(cursor, "SELECT 1")
except flightsql.Error as error:
    assert "token" in str(error), error
else:
    raise AssertionError("a wrong token was taken")

print("ok")
