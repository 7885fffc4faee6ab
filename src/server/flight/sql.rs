//! Flight SQL as arrow-flight has it: a function for each command.

use arrow_flight::flight_service_server::FlightService;
use arrow_flight::sql::server::{DoPutError, FlightSqlService, PeekableFlightDataStream};
use arrow_flight::sql::{
    ActionCancelQueryRequest, ActionCancelQueryResult, ActionClosePreparedStatementRequest,
    ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult, CommandGetCatalogs,
    CommandGetCrossReference, CommandGetDbSchemas, CommandGetExportedKeys, CommandGetImportedKeys,
    CommandGetPrimaryKeys, CommandGetSqlInfo, CommandGetTableTypes, CommandGetTables,
    CommandGetXdbcTypeInfo, CommandPreparedStatementQuery, CommandPreparedStatementUpdate,
    CommandStatementQuery, CommandStatementUpdate, DoPutPreparedStatementResult, SqlInfo,
    TicketStatementQuery,
};
use arrow_flight::{
    Action, ActionType, CancelFlightInfoRequest, CancelFlightInfoResult, FlightDescriptor,
    FlightInfo, HandshakeRequest, HandshakeResponse, Ticket,
};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use prost::Message;
use tonic::{Request, Response, Status, Streaming};

use super::calls::{Calls, Messages, bound, encoded, name, rows};
use super::parameters::Template;
use super::{metadata, prepared};
use crate::protocol::status;
use crate::server::access::{AUTHORIZATION, token};
use crate::{Error, Result};

const CANCEL: &str = "CancelFlightInfo";
const CLOSE_SESSION: &str = "CloseSession";
/// `CloseSessionResult` that says `CLOSED`: field 1, value 1.
const SESSION_CLOSED: &[u8] = &[0x08, 0x01];

#[tonic::async_trait]
impl FlightSqlService for Calls {
    type FlightService = Self;

    async fn do_handshake(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<
        Response<std::pin::Pin<Box<dyn Stream<Item = Result<HandshakeResponse, Status>> + Send>>>,
        Status,
    > {
        // It was let in: the token, or the password that is the token, is what it has to bring from now on.
        let token = token(request.metadata()).unwrap_or_default();
        let answer = HandshakeResponse {
            protocol_version: 0,
            payload: Bytes::copy_from_slice(token.as_bytes()),
        };
        let answers: std::pin::Pin<Box<dyn Stream<Item = _> + Send>> =
            Box::pin(stream::iter([Ok(answer)]));
        let mut response = Response::new(answers);
        if let Ok(header) = format!("Bearer {token}").parse() {
            response.metadata_mut().insert(AUTHORIZATION, header);
        }
        Ok(response)
    }

    async fn get_flight_info_statement(
        &self,
        query: CommandStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let session = self.session(&request)?;
        self.info(session, query.query, request.into_inner()).await
    }

    async fn get_flight_info_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let sql = self.prepared.query(&query.prepared_statement_handle);
        let sql = sql.map_err(|error| status(&error))?;
        let session = self.session(&request)?;
        self.info(session, sql, request.into_inner()).await
    }

    async fn get_flight_info_catalogs(
        &self,
        query: CommandGetCatalogs,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        Self::listing(request, &query, &query.into_builder().schema())
    }

    async fn get_flight_info_schemas(
        &self,
        query: CommandGetDbSchemas,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        Self::listing(request, &query, &query.clone().into_builder().schema())
    }

    async fn get_flight_info_tables(
        &self,
        query: CommandGetTables,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        Self::listing(request, &query, &query.clone().into_builder().schema())
    }

    async fn get_flight_info_table_types(
        &self,
        query: CommandGetTableTypes,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        Self::listing(request, &query, &query.into_builder().schema())
    }

    async fn get_flight_info_sql_info(
        &self,
        query: CommandGetSqlInfo,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        Self::listing(request, &query, &self.info.schema())
    }

    async fn get_flight_info_primary_keys(
        &self,
        query: CommandGetPrimaryKeys,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        Self::listing(request, &query, &metadata::primary_keys_schema())
    }

    async fn get_flight_info_exported_keys(
        &self,
        query: CommandGetExportedKeys,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        Self::listing(request, &query, &metadata::foreign_keys().schema())
    }

    async fn get_flight_info_imported_keys(
        &self,
        query: CommandGetImportedKeys,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        Self::listing(request, &query, &metadata::foreign_keys().schema())
    }

    async fn get_flight_info_cross_reference(
        &self,
        query: CommandGetCrossReference,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        Self::listing(request, &query, &metadata::foreign_keys().schema())
    }

    async fn get_flight_info_xdbc_type_info(
        &self,
        query: CommandGetXdbcTypeInfo,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        Self::listing(request, &query, &self.types.schema())
    }

    async fn do_get_statement(
        &self,
        ticket: TicketStatementQuery,
        _request: Request<Ticket>,
    ) -> Result<Response<Messages>, Status> {
        let rows = self.statements.fetch(&name(&ticket))?;
        Ok(Response::new(rows.boxed()))
    }

    async fn do_get_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<Ticket>,
    ) -> Result<Response<Messages>, Status> {
        let sql = self.prepared.query(&query.prepared_statement_handle);
        let sql = sql.map_err(|error| status(&error))?;
        let answer = self.statements.run(self.session(&request)?, sql).await?;
        Ok(Response::new(self.statements.rows(answer).boxed()))
    }

    async fn do_get_catalogs(
        &self,
        query: CommandGetCatalogs,
        _request: Request<Ticket>,
    ) -> Result<Response<Messages>, Status> {
        rows(metadata::catalogs(query))
    }

    async fn do_get_schemas(
        &self,
        query: CommandGetDbSchemas,
        _request: Request<Ticket>,
    ) -> Result<Response<Messages>, Status> {
        rows(metadata::schemas(query))
    }

    async fn do_get_tables(
        &self,
        query: CommandGetTables,
        request: Request<Ticket>,
    ) -> Result<Response<Messages>, Status> {
        let session = self.session(&request)?;
        let tables = self.on_workers(async move { metadata::tables(&session, query).await });
        rows(Ok(tables.await?))
    }

    async fn do_get_table_types(
        &self,
        query: CommandGetTableTypes,
        _request: Request<Ticket>,
    ) -> Result<Response<Messages>, Status> {
        rows(metadata::table_types(query))
    }

    async fn do_get_sql_info(
        &self,
        query: CommandGetSqlInfo,
        _request: Request<Ticket>,
    ) -> Result<Response<Messages>, Status> {
        let batch = query.into_builder(&self.info).build();
        rows(Ok(batch.map_err(Status::from)?))
    }

    async fn do_get_primary_keys(
        &self,
        query: CommandGetPrimaryKeys,
        request: Request<Ticket>,
    ) -> Result<Response<Messages>, Status> {
        let session = self.session(&request)?;
        let keys = self.on_workers(async move { metadata::primary_keys(&session, query).await });
        rows(Ok(keys.await?))
    }

    async fn do_get_exported_keys(
        &self,
        _query: CommandGetExportedKeys,
        _request: Request<Ticket>,
    ) -> Result<Response<Messages>, Status> {
        rows(Ok(metadata::foreign_keys()))
    }

    async fn do_get_imported_keys(
        &self,
        _query: CommandGetImportedKeys,
        _request: Request<Ticket>,
    ) -> Result<Response<Messages>, Status> {
        rows(Ok(metadata::foreign_keys()))
    }

    async fn do_get_cross_reference(
        &self,
        _query: CommandGetCrossReference,
        _request: Request<Ticket>,
    ) -> Result<Response<Messages>, Status> {
        rows(Ok(metadata::foreign_keys()))
    }

    async fn do_get_xdbc_type_info(
        &self,
        query: CommandGetXdbcTypeInfo,
        _request: Request<Ticket>,
    ) -> Result<Response<Messages>, Status> {
        let batch = query.into_builder(&self.types).build();
        rows(Ok(batch.map_err(Status::from)?))
    }

    async fn do_put_error_callback(
        &self,
        _request: Request<PeekableFlightDataStream>,
        error: DoPutError,
    ) -> Result<Response<<Self as FlightService>::DoPutStream>, Status> {
        Err(status(&Error::invalid(format!(
            "not a command of Flight SQL: {error}"
        ))))
    }

    async fn do_put_statement_update(
        &self,
        update: CommandStatementUpdate,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        let session = self.session(&request)?;
        self.update(session, update.query).await
    }

    async fn do_put_prepared_statement_query(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<DoPutPreparedStatementResult, Status> {
        let handle = query.prepared_statement_handle;
        let values = bound(request.into_inner()).await?;
        self.prepared
            .bind(&handle, values)
            .map_err(|error| status(&error))?;
        Ok(DoPutPreparedStatementResult {
            prepared_statement_handle: Some(handle),
        })
    }

    async fn do_put_prepared_statement_update(
        &self,
        query: CommandPreparedStatementUpdate,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        let session = self.session(&request)?;
        let handle = query.prepared_statement_handle;
        // Values may come along, or have been bound before.
        let values = bound(request.into_inner()).await?;
        if !values.is_empty() {
            let bind = self.prepared.bind(&handle, values);
            bind.map_err(|error| status(&error))?;
        }
        let statements = self.prepared.statements(&handle);
        let mut changed = 0;
        for statement in statements.map_err(|error| status(&error))? {
            let rows = self.update(session.for_statement(), statement).await?;
            changed = if rows < 0 || changed < 0 {
                -1
            } else {
                changed + rows
            };
        }
        Ok(changed)
    }

    async fn do_action_create_prepared_statement(
        &self,
        query: ActionCreatePreparedStatementRequest,
        request: Request<Action>,
    ) -> Result<ActionCreatePreparedStatementResult, Status> {
        let session = self.session(&request)?;
        let template = Template::new(&query.query).map_err(|error| status(&error))?;
        let described = self.on_workers(prepared::describe(session, template.clone()));
        let described = described.await?;
        let handle = self
            .prepared
            .add(template)
            .map_err(|error| status(&error))?;
        Ok(ActionCreatePreparedStatementResult {
            prepared_statement_handle: handle.into(),
            dataset_schema: match described.rows {
                Some(rows) => encoded(&rows)?,
                None => Bytes::new(),
            },
            parameter_schema: encoded(&described.parameters)?,
        })
    }

    async fn do_action_close_prepared_statement(
        &self,
        query: ActionClosePreparedStatementRequest,
        _request: Request<Action>,
    ) -> Result<(), Status> {
        self.prepared.close(&query.prepared_statement_handle);
        Ok(())
    }

    async fn do_action_cancel_query(
        &self,
        query: ActionCancelQueryRequest,
        _request: Request<Action>,
    ) -> Result<ActionCancelQueryResult, Status> {
        let info = FlightInfo::decode(query.info)
            .map_err(|error| status(&Error::invalid(format!("not a FlightInfo: {error}"))))?;
        Ok(ActionCancelQueryResult {
            result: self.cancel(&info).await as i32,
        })
    }

    async fn do_action_fallback(
        &self,
        request: Request<Action>,
    ) -> Result<Response<<Self as FlightService>::DoActionStream>, Status> {
        let body: Bytes = match request.get_ref().r#type.as_str() {
            CANCEL => {
                let decoded = CancelFlightInfoRequest::decode(request.get_ref().body.clone());
                let wanted = decoded.map_err(|error| {
                    status(&Error::invalid(format!(
                        "not a CancelFlightInfoRequest: {error}"
                    )))
                })?;
                let info = wanted.info.unwrap_or_default();
                CancelFlightInfoResult::new(self.cancel(&info).await)
                    .encode_to_vec()
                    .into()
            }
            CLOSE_SESSION => {
                self.sessions.close(request.metadata());
                Bytes::from_static(SESSION_CLOSED)
            }
            other => {
                let error = Error::not_available(format!("the action '{other}'"));
                return Err(status(&error));
            }
        };
        let result = arrow_flight::Result { body };
        Ok(Response::new(Box::pin(stream::iter([Ok(result)]))))
    }

    async fn list_custom_actions(&self) -> Option<Vec<Result<ActionType, Status>>> {
        let action = |name: &str, description: &str| {
            Ok(ActionType {
                r#type: name.to_string(),
                description: description.to_string(),
            })
        };
        Some(vec![
            action(
                CANCEL,
                "Cancels a statement that runs, or drops its result.",
            ),
            action(CLOSE_SESSION, "Ends the session of the cookie."),
        ])
    }

    /// What the server says of itself is put together when it starts.
    async fn register_sql_info(&self, _id: i32, _result: &SqlInfo) {}
}
