//! Arrow Flight SQL.
//!
//! [`Calls`] are the calls of the protocol. [`Flight`] stands before them: it answers those that arrow-flight's trait
//! leaves out, of which `PollFlightInfo` is the way for long statements, and gives clients their cookie.
//!
//! `GetFlightInfo` runs a statement to its end, or to where its rows can be fetched, and is cancelled with the call.
//! `PollFlightInfo` answers soon, and says how far the statement is until it is through; see `statements`.

mod metadata;
mod parameters;
mod prepared;

use std::future::{Future, ready};
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Schema, SchemaRef, UInt64Type};
use arrow::ipc::writer::IpcWriteOptions;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_server::FlightService;
use arrow_flight::sql::metadata::{SqlInfoData, XdbcTypeInfoData};
use arrow_flight::sql::server::{DoPutError, FlightSqlService, PeekableFlightDataStream};
use arrow_flight::sql::{
    ActionCancelQueryRequest, ActionCancelQueryResult, ActionClosePreparedStatementRequest,
    ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult, Any, Command,
    CommandGetCatalogs, CommandGetCrossReference, CommandGetDbSchemas, CommandGetExportedKeys,
    CommandGetImportedKeys, CommandGetPrimaryKeys, CommandGetSqlInfo, CommandGetTableTypes,
    CommandGetTables, CommandGetXdbcTypeInfo, CommandPreparedStatementQuery,
    CommandPreparedStatementUpdate, CommandStatementQuery, CommandStatementUpdate,
    DoPutPreparedStatementResult, ProstMessageExt, SqlInfo, TicketStatementQuery,
};
use arrow_flight::{
    Action, ActionType, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, Criteria,
    Empty, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest,
    HandshakeResponse, IpcMessage, PollInfo, SchemaAsIpc, SchemaResult, Ticket,
};
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use prost::Message;
use tokio::task::JoinHandle;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status, Streaming};

use self::parameters::Template;
use self::prepared::Prepared;
use super::access::{AUTHORIZATION, token};
use super::sessions::Sessions;
use super::statements::{Polling, Statements};
use crate::protocol::{StatementState, status, status_of};
use crate::session::Headwater;
use crate::sql::parse;
use crate::{Error, Result};

const CANCEL: &str = "CancelFlightInfo";
const CLOSE_SESSION: &str = "CloseSession";
/// `CloseSessionResult` that says `CLOSED`: field 1, value 1.
const SESSION_CLOSED: &[u8] = &[0x08, 0x01];
/// How many bytes of values may be bound to a statement.
const BOUND_BYTES: usize = 64 << 20;

type Messages = std::pin::Pin<Box<dyn Stream<Item = Result<FlightData, Status>> + Send>>;

/// The service as the port has it.
pub(super) struct Flight {
    calls: Calls,
}

/// The calls of the protocol.
pub(in crate::server) struct Calls {
    sessions: Arc<Sessions>,
    statements: Statements,
    prepared: Prepared,
    info: SqlInfoData,
    types: XdbcTypeInfoData,
}

impl Flight {
    pub(super) fn new(sessions: Arc<Sessions>, statements: Statements) -> Result<Self> {
        Ok(Self {
            calls: Calls {
                sessions,
                statements,
                prepared: Prepared::default(),
                info: metadata::sql_info()?,
                types: metadata::types()?,
            },
        })
    }

    /// Answers a call, and gives its client a cookie if it has none.
    async fn with_cookie<T>(
        &self,
        metadata: &MetadataMap,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<Response<T>, Status> {
        let cookie = self.calls.sessions.offer(metadata);
        let cookie = cookie.and_then(|cookie| cookie.parse().ok());
        let mut answer = answer.await;
        if let Some(cookie) = cookie {
            match &mut answer {
                Ok(response) => response.metadata_mut().insert("set-cookie", cookie),
                Err(status) => status.metadata_mut().insert("set-cookie", cookie),
            };
        }
        answer
    }
}

#[tonic::async_trait]
impl FlightService for Flight {
    type HandshakeStream = <Calls as FlightService>::HandshakeStream;
    type ListFlightsStream = <Calls as FlightService>::ListFlightsStream;
    type DoGetStream = <Calls as FlightService>::DoGetStream;
    type DoPutStream = <Calls as FlightService>::DoPutStream;
    type DoActionStream = <Calls as FlightService>::DoActionStream;
    type ListActionsStream = <Calls as FlightService>::ListActionsStream;
    type DoExchangeStream = <Calls as FlightService>::DoExchangeStream;

    async fn handshake(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        let metadata = request.metadata().clone();
        self.with_cookie(&metadata, self.calls.handshake(request))
            .await
    }

    async fn list_flights(
        &self,
        request: Request<Criteria>,
    ) -> Result<Response<Self::ListFlightsStream>, Status> {
        self.calls.list_flights(request).await
    }

    async fn get_flight_info(
        &self,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let metadata = request.metadata().clone();
        self.with_cookie(&metadata, self.calls.get_flight_info(request))
            .await
    }

    async fn poll_flight_info(
        &self,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<PollInfo>, Status> {
        let metadata = request.metadata().clone();
        self.with_cookie(&metadata, self.calls.poll(request)).await
    }

    async fn get_schema(
        &self,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<SchemaResult>, Status> {
        let metadata = request.metadata().clone();
        self.with_cookie(&metadata, self.calls.schema(request))
            .await
    }

    async fn do_get(
        &self,
        request: Request<Ticket>,
    ) -> Result<Response<Self::DoGetStream>, Status> {
        let metadata = request.metadata().clone();
        self.with_cookie(&metadata, self.calls.do_get(request))
            .await
    }

    async fn do_put(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoPutStream>, Status> {
        let metadata = request.metadata().clone();
        self.with_cookie(&metadata, self.calls.do_put(request))
            .await
    }

    async fn do_action(
        &self,
        request: Request<Action>,
    ) -> Result<Response<Self::DoActionStream>, Status> {
        let metadata = request.metadata().clone();
        self.with_cookie(&metadata, self.calls.do_action(request))
            .await
    }

    async fn list_actions(
        &self,
        request: Request<Empty>,
    ) -> Result<Response<Self::ListActionsStream>, Status> {
        self.calls.list_actions(request).await
    }

    async fn do_exchange(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoExchangeStream>, Status> {
        self.calls.do_exchange(request).await
    }
}

impl Calls {
    fn session<T>(&self, request: &Request<T>) -> Result<Headwater, Status> {
        self.sessions.of(request.metadata())
    }

    /// Runs what looks at tables on the workers, as long as it is waited for.
    async fn on_workers<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T, Status> {
        struct Task<T>(JoinHandle<T>);
        impl<T> Drop for Task<T> {
            fn drop(&mut self) {
                self.0.abort();
            }
        }
        let mut task = Task(self.statements.workers().spawn(work));
        match (&mut task.0).await {
            Ok(result) => result.map_err(|error| status(&error)),
            Err(error) => Err(status(&Error::internal(format!(
                "the call failed: {error}"
            )))),
        }
    }

    /// Runs a statement, and says where its rows are.
    async fn info(
        &self,
        session: Headwater,
        sql: String,
        descriptor: FlightDescriptor,
    ) -> Result<Response<FlightInfo>, Status> {
        let (id, schema, state) = self.statements.keep(session, sql).await?;
        Ok(Response::new(
            fetchable(&id, &schema, &state)?.with_descriptor(descriptor),
        ))
    }

    async fn poll(&self, request: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        let command = command(&request.get_ref().cmd)?;
        let is_first = !matches!(command, Command::TicketStatementQuery(_));
        let id = match command {
            Command::CommandStatementQuery(query) => self
                .statements
                .begin(self.session(&request)?, query.query)?,
            Command::CommandPreparedStatementQuery(query) => {
                let sql = self.prepared.query(&query.prepared_statement_handle);
                let sql = sql.map_err(|error| status(&error))?;
                self.statements.begin(self.session(&request)?, sql)?
            }
            Command::TicketStatementQuery(ticket) => name(&ticket),
            // What is answered at once.
            _ => {
                let info = FlightService::get_flight_info(self, request)
                    .await?
                    .into_inner();
                return Ok(Response::new(PollInfo::new().with_info(info)));
            }
        };
        let mut unanswered = Unanswered {
            statements: &self.statements,
            id: is_first.then_some(id.as_str()),
        };
        let polling = self.statements.poll(&id).await;
        unanswered.id = None;
        let answer = match polling? {
            Polling::Ready(id, schema, state) => {
                PollInfo::new().with_info(fetchable(&id, &schema, &state)?)
            }
            Polling::Running(state) => {
                // The same names it for CancelFlightInfo.
                let descriptor = FlightDescriptor::new_cmd(ticket(&id));
                let info = FlightInfo::new()
                    .with_descriptor(descriptor.clone())
                    .with_app_metadata(state.to_bytes());
                let answer = PollInfo::new().with_info(info).with_descriptor(descriptor);
                let progress = state.job.and_then(|job| job.figures.fraction());
                match progress {
                    Some(progress) => answer
                        .try_with_progress(progress)
                        .map_err(|error| status(&Error::from(error)))?,
                    None => answer,
                }
            }
        };
        Ok(Response::new(answer))
    }

    /// The columns of a query, without running it.
    async fn schema(
        &self,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<SchemaResult>, Status> {
        let sql = match command(&request.get_ref().cmd)? {
            Command::CommandStatementQuery(query) => query.query,
            Command::CommandPreparedStatementQuery(query) => self
                .prepared
                .query(&query.prepared_statement_handle)
                .map_err(|error| status(&error))?,
            _ => {
                let info = FlightService::get_flight_info(self, request)
                    .await?
                    .into_inner();
                return Ok(Response::new(SchemaResult {
                    schema: info.schema,
                }));
            }
        };
        let session = self.session(&request)?;
        let described = self
            .on_workers(async move { prepared::describe(&session, &Template::new(&sql)?).await })
            .await?;
        let Some(rows) = described.rows else {
            let error = Error::invalid("the columns of this statement are known when it was run");
            return Err(status(&error.with_hint("GetSchema answers for queries")));
        };
        Ok(Response::new(SchemaResult {
            schema: encoded(&rows)?,
        }))
    }

    /// Runs a statement for what it does, and gives how many rows it changed, or -1.
    async fn update(&self, session: Headwater, sql: String) -> Result<i64, Status> {
        let is_query =
            parse(&sql).is_ok_and(|statements| statements.iter().any(prepared::is_query));
        let answer = self.statements.run(session, sql).await?;
        self.on_workers(async move {
            let mut batches = answer.execute()?;
            let (mut rows, mut changed) = (0, None);
            while let Some(batch) = batches.try_next().await? {
                rows += batch.num_rows();
                changed = changed.or(changed_rows(&batch));
            }
            Ok(match (is_query, rows) {
                (false, 1) => changed.unwrap_or(-1),
                _ => -1,
            })
        })
        .await
    }

    /// Where the rows of a listing are: they are made when they are fetched.
    fn listing<T>(
        request: Request<FlightDescriptor>,
        query: &T,
        schema: &Schema,
    ) -> Result<Response<FlightInfo>, Status>
    where
        T: ProstMessageExt,
    {
        let ticket = Ticket::new(query.as_any().encode_to_vec());
        let info = FlightInfo::new()
            .try_with_schema(schema)
            .map_err(|error| status(&Error::from(error)))?
            .with_endpoint(FlightEndpoint::new().with_ticket(ticket))
            .with_descriptor(request.into_inner());
        Ok(Response::new(info))
    }

    async fn cancel(&self, info: &FlightInfo) -> CancelStatus {
        let tickets = info
            .endpoint
            .iter()
            .filter_map(|endpoint| endpoint.ticket.as_ref());
        let descriptors = info
            .flight_descriptor
            .iter()
            .map(|descriptor| &descriptor.cmd);
        let names = tickets.map(|ticket| &ticket.ticket).chain(descriptors);
        for bytes in names {
            if let Ok(Command::TicketStatementQuery(ticket)) = command(bytes)
                && self.statements.cancel(&name(&ticket)).await
            {
                return CancelStatus::Cancelled;
            }
        }
        CancelStatus::NotCancellable
    }
}

/// The first poll of a statement. If the client goes away before it is answered, nobody knows the statement's name, and
/// it ends.
struct Unanswered<'a> {
    statements: &'a Statements,
    id: Option<&'a str>,
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.statements.drop_statement(id);
        }
    }
}

/// How many rows a statement says that it changed.
fn changed_rows(batch: &RecordBatch) -> Option<i64> {
    let schema = batch.schema();
    let is_ours = schema.column_with_name("statement").is_some();
    let column = match is_ours {
        true => batch.column_by_name("rows"),
        // COPY … TO.
        false => batch.column_by_name("count"),
    }?;
    let rows = column.as_primitive_opt::<UInt64Type>()?;
    let rows = rows.iter().next().flatten()?;
    i64::try_from(rows).ok()
}

fn ticket(id: &str) -> Vec<u8> {
    let ticket = TicketStatementQuery {
        statement_handle: Bytes::copy_from_slice(id.as_bytes()),
    };
    ticket.as_any().encode_to_vec()
}

fn name(ticket: &TicketStatementQuery) -> String {
    String::from_utf8_lossy(&ticket.statement_handle).into_owned()
}

/// What a descriptor or a ticket asks for.
fn command(bytes: &[u8]) -> Result<Command, Status> {
    let wrong = |message: String| {
        status_of(
            Code::InvalidArgument,
            &Error::invalid(format!("not a command of Flight SQL: {message}")),
        )
    };
    let any = Any::decode(bytes).map_err(|error| wrong(error.to_string()))?;
    Command::try_from(any).map_err(|error| wrong(error.to_string()))
}

/// A statement whose rows can be fetched.
fn fetchable(id: &str, schema: &SchemaRef, state: &StatementState) -> Result<FlightInfo, Status> {
    let info = FlightInfo::new()
        .try_with_schema(schema)
        .map_err(|error| status(&Error::from(error)))?;
    Ok(info
        .with_endpoint(FlightEndpoint::new().with_ticket(Ticket::new(ticket(id))))
        .with_app_metadata(state.to_bytes()))
}

fn encoded(schema: &Schema) -> Result<Bytes, Status> {
    let options = IpcWriteOptions::default();
    let message: IpcMessage = SchemaAsIpc::new(schema, &options)
        .try_into()
        .map_err(|error: arrow::error::ArrowError| status(&Error::from(error)))?;
    Ok(message.0)
}

/// Rows that are there already.
fn rows(batch: Result<RecordBatch>) -> Result<Response<Messages>, Status> {
    let batch = batch.map_err(|error| status(&error))?;
    let messages = FlightDataEncoderBuilder::new()
        .with_schema(batch.schema())
        .build(stream::iter([Ok(batch)]))
        .map_err(Status::from);
    Ok(Response::new(messages.boxed()))
}

/// The rows that a client binds to a prepared statement.
async fn bound(stream: PeekableFlightDataStream) -> Result<Vec<RecordBatch>, Status> {
    // The first message may bring nothing but the command.
    let messages = stream
        .try_filter(|message| ready(!message.data_header.is_empty()))
        .map_err(|status| FlightError::Tonic(Box::new(status)));
    let mut batches = FlightRecordBatchStream::new_from_flight_data(messages);
    let (mut bound, mut bytes) = (Vec::new(), 0);
    while let Some(batch) = batches.next().await {
        let batch = batch.map_err(Status::from)?;
        bytes += batch.get_array_memory_size();
        if bytes > BOUND_BYTES {
            let error = Error::invalid(format!("more than {BOUND_BYTES} bytes of parameters"))
                .with_hint("execute the statement several times, or INSERT from a file");
            return Err(status_of(Code::ResourceExhausted, &error));
        }
        bound.push(batch);
    }
    Ok(bound)
}

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
        let described = {
            let template = template.clone();
            self.on_workers(async move { prepared::describe(&session, &template).await })
                .await?
        };
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
