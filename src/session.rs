//! A session: a DataFusion context over a database, with the dialect.

use std::collections::HashMap;

use datafusion::logical_expr::ScalarUDF;
use datafusion::prelude::{DataFrame, SessionContext};

use crate::Result;
use crate::sql::statement::Statement;

/// A database that is open: a DataFusion context whose catalog is the database
/// and whose SQL is the dialect.
#[derive(Debug, Clone)]
pub struct Headwater {}

/// Opens a [`Headwater`] with settings of its own.
#[derive(Debug, Default)]
pub struct HeadwaterBuilder {}

impl Headwater {
    /// A builder, for settings other than the defaults.
    pub fn builder() -> HeadwaterBuilder {
        HeadwaterBuilder::default()
    }

    /// Opens the database at `url`: a folder, or a URL of an object store.
    /// A folder that is not there is made on the first write.
    pub async fn open(url: &str) -> Result<Self> {
        Self::builder().database(url).build().await
    }

    /// Plans and runs one statement. A statement that changes something has done so
    /// when this returns; a query runs when the frame is collected.
    pub async fn sql(&self, sql: &str) -> Result<DataFrame> {
        let _ = sql;
        todo!()
    }

    /// As [`sql`](Self::sql), for a statement that is parsed already.
    pub async fn run(&self, statement: Statement) -> Result<DataFrame> {
        let _ = statement;
        todo!()
    }

    /// The DataFusion context underneath.
    pub fn context(&self) -> &SessionContext {
        todo!()
    }

    /// Takes the notices that statements have left since the last call: things that a
    /// user should know although the statement worked.
    pub fn take_notices(&self) -> Vec<String> {
        todo!()
    }
}

impl HeadwaterBuilder {
    /// Where the database is: a folder, or `s3://…`, `gs://…`, `az://…`.
    pub fn database(self, url: impl Into<String>) -> Self {
        let _ = url.into();
        self
    }

    /// Adds the catalog and the dialect to a context that is there already.
    pub fn context(self, context: SessionContext) -> Self {
        let _ = context;
        self
    }

    /// A scalar function, for queries and computed columns.
    pub fn scalar_function(self, function: ScalarUDF) -> Self {
        let _ = function;
        self
    }

    /// Options of the object store, as Lance names them.
    pub fn storage_options(self, options: HashMap<String, String>) -> Self {
        let _ = options;
        self
    }

    /// Opens the database.
    ///
    /// # Errors
    ///
    /// If the URL can't be understood, or the place can't be read.
    pub async fn build(self) -> Result<Headwater> {
        todo!()
    }
}
