//! Headwater as a library: a function of one's own in a computed column.
//!
//! ```sh
//! cargo run --example embed
//! ```
//!
//! The function makes the part of a web address from a title. The database is a temporary folder.

use std::error::Error;
use std::sync::Arc;

use datafusion::arrow::array::StringArray;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::cast::as_string_array;
use datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf};
use headwater::session::Headwater;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    // `Headwater::open(url)` is enough where no function is added. A SessionContext that a program
    // has already goes to `.context(…)`: it gets the tables and the dialect, and keeps its own.
    let headwater = Headwater::builder()
        .database(folder.path().to_string_lossy())
        .scalar_function(slug())
        .build()
        .await?;

    // A statement that changes something has done so when `sql` returns.
    headwater
        .sql("CREATE TABLE articles (id BIGINT NOT NULL, title VARCHAR, body VARCHAR)")
        .await?;
    headwater
        .sql(
            "INSERT INTO articles VALUES
                 (1, 'A river, from source to sea', 'It begins as a trickle.'),
                 (2, 'Rain: where it goes', 'Most of it, nowhere far.'),
                 (3, 'What is a watershed?', 'A line that you cannot see.')",
        )
        .await?;

    // The function works wherever an expression does: in queries and in computed columns.
    headwater
        .sql("ALTER TABLE articles ADD COLUMN address VARCHAR AS ('/articles/' || slug(title))")
        .await?;
    // The frame says what was done: one row for each column. It is DataFusion's DataFrame.
    let done = headwater.sql("REFRESH COLUMN address ON articles").await?;
    done.show().await?;

    // One title changes, one body does: the refresh calls the function for one row.
    headwater
        .sql("UPDATE articles SET title = 'Rain, and where it goes' WHERE id = 2")
        .await?;
    headwater
        .sql("UPDATE articles SET body = 'It begins as a trickle in the moss.' WHERE id = 1")
        .await?;
    let done = headwater.sql("REFRESH COLUMN address ON articles").await?;
    done.show().await?;

    headwater
        .sql("SELECT id, address FROM articles ORDER BY id")
        .await?
        .show()
        .await?;
    Ok(())
}

/// `slug(text)`: lower case, and a hyphen for everything that is neither letter nor digit.
fn slug() -> ScalarUDF {
    create_udf(
        "slug",
        vec![DataType::Utf8],
        DataType::Utf8,
        // The same text always gives the same slug: what is stored stays right until the
        // text changes. A volatile function is refused in a stored column.
        Volatility::Immutable,
        Arc::new(|arguments: &[ColumnarValue]| {
            let arguments = ColumnarValue::values_to_arrays(arguments)?;
            let slugs: StringArray = as_string_array(&arguments[0])?
                .iter()
                .map(|text| text.map(slug_of))
                .collect();
            Ok(ColumnarValue::Array(Arc::new(slugs)))
        }),
    )
}

fn slug_of(text: &str) -> String {
    let words: Vec<String> = text
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect();
    words.join("-")
}
