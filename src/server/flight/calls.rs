//! The calls of the protocol: what several of them need.

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
use arrow_flight::sql::server::PeekableFlightDataStream;
use arrow_flight::sql::{Any, Command, ProstMessageExt, TicketStatementQuery};
use arrow_flight::{
    CancelStatus, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, IpcMessage, PollInfo,
    SchemaAsIpc, SchemaResult, Ticket,
};
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use prost::Message;
use tokio::task::JoinHandle;
use tonic::{Code, Request, Response, Status};

use super::parameters::Template;
use super::prepared::Prepared;
use super::{metadata, prepared};
use crate::protocol::{StatementState, status, status_of};
use crate::server::sessions::Sessions;
use crate::server::statements::{Polling, Statements};
use crate::session::Headwater;
use crate::sql::parse;
use crate::{Error, Result};

/// How many bytes of values may be bound to a statement.
const BOUND_BYTES: usize = 64 << 20;

/// Rows on their way.
pub(super) type Messages = std::pin::Pin<Box<dyn Stream<Item = Result<FlightData, Status>> + Send>>;

/// The calls of the protocol.
pub(in crate::server) struct Calls {
    pub(super) sessions: Arc<Sessions>,
    pub(super) statements: Statements,
    pub(super) prepared: Prepared,
    pub(super) info: SqlInfoData,
    pub(super) types: XdbcTypeInfoData,
}

impl Calls {
    pub(super) fn new(sessions: Arc<Sessions>, statements: Statements) -> Result<Self> {
        Ok(Self {
            sessions,
            statements,
            prepared: Prepared::default(),
            info: metadata::sql_info()?,
            types: metadata::types()?,
        })
    }

    pub(super) fn session<T>(&self, request: &Request<T>) -> Result<Headwater, Status> {
        self.sessions.of(request.metadata())
    }

    /// Runs what looks at tables on the workers, as long as it is waited for.
    pub(super) async fn on_workers<T: Send + 'static>(
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
    pub(super) async fn info(
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

    pub(super) async fn poll(
        &self,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<PollInfo>, Status> {
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
    pub(super) async fn schema(
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
        let template = Template::new(&sql).map_err(|error| status(&error))?;
        let described = self.on_workers(prepared::describe(session, template));
        let Some(rows) = described.await?.rows else {
            let error = Error::invalid("the columns of this statement are known when it was run");
            return Err(status(&error.with_hint("GetSchema answers for queries")));
        };
        Ok(Response::new(SchemaResult {
            schema: encoded(&rows)?,
        }))
    }

    /// Runs a statement for what it does, and gives how many rows it changed, or -1.
    pub(super) async fn update(&self, session: Headwater, sql: String) -> Result<i64, Status> {
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
    pub(super) fn listing<T>(
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

    pub(super) async fn cancel(&self, info: &FlightInfo) -> CancelStatus {
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

pub(super) fn name(ticket: &TicketStatementQuery) -> String {
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

pub(super) fn encoded(schema: &Schema) -> Result<Bytes, Status> {
    let options = IpcWriteOptions::default();
    let message: IpcMessage = SchemaAsIpc::new(schema, &options)
        .try_into()
        .map_err(|error: arrow::error::ArrowError| status(&Error::from(error)))?;
    Ok(message.0)
}

/// Rows that are there already.
pub(super) fn rows(batch: Result<RecordBatch>) -> Result<Response<Messages>, Status> {
    let batch = batch.map_err(|error| status(&error))?;
    let messages = FlightDataEncoderBuilder::new()
        .with_schema(batch.schema())
        .build(stream::iter([Ok(batch)]))
        .map_err(Status::from);
    Ok(Response::new(messages.boxed()))
}

/// The rows that a client binds to a prepared statement.
pub(super) async fn bound(stream: PeekableFlightDataStream) -> Result<Vec<RecordBatch>, Status> {
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
