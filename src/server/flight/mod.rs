//! Arrow Flight SQL.
//!
//! [`Calls`] are the calls of the protocol. [`Flight`] stands before them: it answers those that arrow-flight's trait
//! leaves out, of which `PollFlightInfo` is the way for long statements, and gives clients their cookie.
//!
//! `GetFlightInfo` runs a statement to its end, or to where its rows can be fetched, and is cancelled with the call.
//! `PollFlightInfo` answers soon, and says how far the statement is until it is through; see `statements`.

mod calls;
mod metadata;
mod parameters;
mod prepared;
mod sql;

use std::future::Future;
use std::sync::Arc;

use arrow_flight::flight_service_server::FlightService;
use arrow_flight::{
    Action, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest, PollInfo,
    SchemaResult, Ticket,
};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::sessions::Sessions;
use super::statements::Statements;
use crate::Result;
use calls::Calls;

/// The service as the port has it.
pub(super) struct Flight {
    calls: Calls,
}

impl Flight {
    pub(super) fn new(sessions: Arc<Sessions>, statements: Statements) -> Result<Self> {
        Ok(Self {
            calls: Calls::new(sessions, statements)?,
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
