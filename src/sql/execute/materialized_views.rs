//! The statements about materialized views.

use datafusion::prelude::DataFrame;
use datafusion::sql::TableReference;

use super::Executor;
use crate::sql::statement::{AlterMaterializedView, CreateMaterializedView, Drop, RefreshView};
use crate::{Error, Result};

impl Executor {
    pub(super) async fn create_materialized_view(
        &self,
        _create: CreateMaterializedView,
    ) -> Result<DataFrame> {
        Err(Error::not_available("CREATE MATERIALIZED VIEW"))
    }

    pub(super) async fn explain_create_view(
        &self,
        _create: CreateMaterializedView,
    ) -> Result<DataFrame> {
        Err(Error::not_available("EXPLAIN CREATE MATERIALIZED VIEW"))
    }

    pub(super) async fn refresh_view(&self, _refresh: RefreshView) -> Result<DataFrame> {
        Err(Error::not_available("REFRESH MATERIALIZED VIEW"))
    }

    pub(super) async fn explain_refresh_view(
        &self,
        _refresh: RefreshView,
        _analyze: bool,
    ) -> Result<DataFrame> {
        Err(Error::not_available("EXPLAIN REFRESH MATERIALIZED VIEW"))
    }

    pub(super) async fn alter_materialized_view(
        &self,
        _alter: AlterMaterializedView,
    ) -> Result<DataFrame> {
        Err(Error::not_available("ALTER MATERIALIZED VIEW"))
    }

    pub(super) async fn drop_materialized_views(&self, _drop: Drop) -> Result<DataFrame> {
        Err(Error::not_available("DROP MATERIALIZED VIEW"))
    }

    pub(super) async fn show_materialized_views(&self) -> Result<DataFrame> {
        Err(Error::not_available("SHOW MATERIALIZED VIEWS"))
    }

    pub(super) async fn describe_materialized_view(
        &self,
        _name: &TableReference,
    ) -> Result<DataFrame> {
        Err(Error::not_available("DESCRIBE MATERIALIZED VIEW"))
    }

    pub(super) async fn show_create_materialized_view(
        &self,
        _name: &TableReference,
    ) -> Result<DataFrame> {
        Err(Error::not_available("SHOW CREATE MATERIALIZED VIEW"))
    }
}
