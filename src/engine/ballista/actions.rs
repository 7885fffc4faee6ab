//! The Flight actions by which executors and drivers speak with the [board](super::board) of a cluster.

use std::time::Duration;

use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::flight_service_server::FlightService;
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo,
    HandshakeRequest, HandshakeResponse, PollInfo, PutResult, Result as FlightResult, SchemaResult,
    Ticket,
};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use super::board::{Answer, Board, Inquiry, Orders, Report};
use crate::{Error, ErrorKind, Result};

/// An executor reports.
const REPORT: &str = "headwater.report";
/// An executor ends.
const GOODBYE: &str = "headwater.goodbye";
/// A driver asks.
const INQUIRE: &str = "headwater.inquire";
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers the actions.
#[derive(Debug, Clone)]
pub struct Actions(pub Board);

type Answers<T> = BoxStream<'static, Result<T, Status>>;

fn not_here<T>() -> Result<T, Status> {
    Err(Status::unimplemented(
        "this port is for executors and drivers of the cluster; statements go to the port of --bind",
    ))
}

#[tonic::async_trait]
impl FlightService for Actions {
    type HandshakeStream = Answers<HandshakeResponse>;
    type ListFlightsStream = Answers<FlightInfo>;
    type DoGetStream = Answers<FlightData>;
    type DoPutStream = Answers<PutResult>;
    type DoActionStream = Answers<FlightResult>;
    type ListActionsStream = Answers<ActionType>;
    type DoExchangeStream = Answers<FlightData>;

    async fn handshake(
        &self,
        _: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        not_here()
    }

    async fn list_flights(
        &self,
        _: Request<Criteria>,
    ) -> Result<Response<Self::ListFlightsStream>, Status> {
        not_here()
    }

    async fn get_flight_info(
        &self,
        _: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        not_here()
    }

    async fn poll_flight_info(
        &self,
        _: Request<FlightDescriptor>,
    ) -> Result<Response<PollInfo>, Status> {
        not_here()
    }

    async fn get_schema(
        &self,
        _: Request<FlightDescriptor>,
    ) -> Result<Response<SchemaResult>, Status> {
        not_here()
    }

    async fn do_get(&self, _: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        not_here()
    }

    async fn do_put(
        &self,
        _: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoPutStream>, Status> {
        not_here()
    }

    async fn do_exchange(
        &self,
        _: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoExchangeStream>, Status> {
        not_here()
    }

    async fn list_actions(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<Self::ListActionsStream>, Status> {
        let actions = [REPORT, GOODBYE, INQUIRE].map(|name| {
            Ok(ActionType {
                r#type: name.to_string(),
                description: String::new(),
            })
        });
        Ok(Response::new(stream::iter(actions).boxed()))
    }

    async fn do_action(
        &self,
        request: Request<Action>,
    ) -> Result<Response<Self::DoActionStream>, Status> {
        let from = request.remote_addr();
        let action = request.into_inner();
        let body = match action.r#type.as_str() {
            REPORT => {
                let mut report = read::<Report>(&action.body)?;
                if let Some(from) = from.filter(|_| report.executor.host.is_empty()) {
                    // It does not know by which name it is reached.
                    report.executor.host = from.ip().to_string();
                }
                write(&self.0.report(report))
            }
            INQUIRE => write(&self.0.inquire(read::<Inquiry>(&action.body)?)),
            GOODBYE => {
                self.0.goodbye(&read::<String>(&action.body)?);
                write(&())
            }
            other => return Err(Status::invalid_argument(format!("no action '{other}'"))),
        };
        let answer = FlightResult { body: body?.into() };
        Ok(Response::new(stream::iter([Ok(answer)]).boxed()))
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Status> {
    serde_json::from_slice(body).map_err(|error| {
        Status::invalid_argument(format!(
            "this can't be read, is it of another release of headwater? {error}"
        ))
    })
}

fn write(answer: &impl Serialize) -> Result<Vec<u8>, Status> {
    serde_json::to_vec(answer).map_err(|error| Status::internal(error.to_string()))
}

/// Speaks with the board of a cluster.
#[derive(Debug, Clone)]
pub struct BoardClient(FlightServiceClient<Channel>);

impl BoardClient {
    /// Through `channel`.
    pub fn new(channel: Channel) -> Self {
        Self(FlightServiceClient::new(channel).max_decoding_message_size(super::MESSAGE_BYTES))
    }

    /// Reports, and hears what is ordered.
    pub async fn report(&self, report: &Report) -> Result<Orders> {
        self.call(REPORT, report).await
    }

    /// Says that an executor ends.
    pub async fn goodbye(&self, executor: &str) -> Result<()> {
        self.call(GOODBYE, &executor).await
    }

    /// Says what jobs are told, and hears how far they are.
    pub async fn inquire(&self, inquiry: &Inquiry) -> Result<Answer> {
        self.call(INQUIRE, inquiry).await
    }

    async fn call<T: DeserializeOwned>(&self, name: &str, body: &impl Serialize) -> Result<T> {
        let body = serde_json::to_vec(body)
            .map_err(|error| Error::internal(format!("an action can't be written: {error}")))?;
        let action = Action {
            r#type: name.to_string(),
            body: body.into(),
        };
        let mut client = self.0.clone();
        let answer = async {
            let mut answers = client.do_action(action).await?.into_inner();
            let answer = answers.message().await?;
            answer.ok_or_else(|| Status::internal("no answer"))
        };
        let answer = match tokio::time::timeout(PATIENCE, answer).await {
            Ok(answer) => answer.map_err(|status| unreachable(status.message()))?,
            Err(_) => return Err(unreachable("no answer in time")),
        };
        serde_json::from_slice(&answer.body)
            .map_err(|error| unreachable(&format!("its answer can't be read: {error}")))
    }
}

fn unreachable(why: &str) -> Error {
    Error::new(
        ErrorKind::Cluster,
        format!("the server of the cluster does not answer: {why}"),
    )
}
