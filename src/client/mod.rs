//! A client of `headwater server`.
//!
//! ```no_run
//! # use futures::TryStreamExt;
//! # use headwater::client::{Client, Options};
//! # async fn example() -> headwater::Result<()> {
//! let client = Client::connect("grpc://localhost:50050", &Options::default()).await?;
//! let mut rows = client.execute("SELECT 1 AS one").await?;
//! while let Some(batch) = rows.try_next().await? {
//!     println!("{} row(s)", batch.num_rows());
//! }
//! for notice in rows.notices() {
//!     println!("{notice}");
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A client has a session of its own on the server: settings and tables of the session last as long as it. Statements are
//! polled while they run, so the server says how far they are, and cancels them when the client goes away.

mod rows;
mod url;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arrow::datatypes::{Schema, SchemaRef};
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::{CommandGetCatalogs, CommandStatementQuery, ProstMessageExt};
use arrow_flight::{Action, CancelFlightInfoRequest, FlightDescriptor, FlightInfo, IpcMessage};
use prost::Message;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};

pub use rows::Rows;
pub use url::is_server;

use crate::error::causes;
use crate::local_file::read;
use crate::protocol::{self, SESSION_COOKIE, StatementState};
use crate::tls::choose_cryptography;
use crate::{Error, ErrorKind, Result};
use url::ServerUrl;

/// How long a server may take to answer a new connection.
const CONNECT: Duration = Duration::from_secs(5);
/// How long it may take to answer the first call.
const GREETING: Duration = Duration::from_secs(8);
/// How often a server is asked whether it is there, and how long it has to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// How much is taken before it is confirmed, in bytes: of one result, and of all of a connection.
const WINDOWS: (u32, u32) = (2 << 20, 8 << 20);
/// What errors may take in a header, in bytes.
const HEADER_BYTES: u32 = 1 << 20;
/// How long a call may take that cancels a statement.
const CANCELLING: Duration = Duration::from_secs(3);

/// How a server is reached.
#[derive(Clone, Default)]
pub struct Options {
    /// The token that it asks for.
    pub token: Option<String>,
    /// Certificates that vouch for the server's, PEM; those of the system if nothing is said.
    pub tls_ca: Option<PathBuf>,
    /// The certificate of the client and its key, PEM, for a server that asks for one.
    pub tls_identity: Option<(PathBuf, PathBuf)>,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("tls_ca", &self.tls_ca)
            .field("tls_identity", &self.tls_identity)
            .finish()
    }
}

/// A connection to a server, with a session of its own. Clones share both.
#[derive(Clone)]
pub struct Client {
    url: String,
    calls: FlightServiceClient<Channel>,
    token: Option<MetadataValue<Ascii>>,
    cookie: Arc<Mutex<Option<MetadataValue<Ascii>>>>,
    /// Calls that cancel statements nobody waits for any more.
    cancelling: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Connects to the server at `grpc://host:port` or `grpc+tls://host:port`.
    ///
    /// # Errors
    ///
    /// Within seconds: if nothing answers there, the certificate of the server is not vouched for, or it does not take
    /// the token.
    pub async fn connect(url: &str, options: &Options) -> Result<Self> {
        let parsed = ServerUrl::parse(url)?;
        let mut endpoint = Endpoint::from_shared(parsed.http.clone())
            .map_err(|error| {
                Error::invalid(format!("'{url}' is not the URL of a server: {error}"))
            })?
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOWS.0)
            .initial_connection_window_size(WINDOWS.1)
            .http2_max_header_list_size(HEADER_BYTES);
        if parsed.is_encrypted {
            choose_cryptography();
            endpoint = endpoint.tls_config(tls(options)?).map_err(|error| {
                Error::invalid(format!(
                    "the certificates can't be used: {}",
                    causes(&error)
                ))
            })?;
        } else if options.tls_ca.is_some() || options.tls_identity.is_some() {
            return Err(Error::invalid(format!(
                "certificates were given, and the connection to '{url}' is not encrypted"
            ))
            .with_hint("write grpc+tls://"));
        }
        let token = match &options.token {
            None => None,
            Some(token) => Some(format!("Bearer {token}").parse().map_err(|_| {
                Error::invalid("the token has characters that no token can have")
                    .with_hint("a token is letters, digits and signs of ASCII, without line breaks")
            })?),
        };
        let unreachable = |message: String| {
            let hint = match parsed.is_encrypted {
                false => {
                    "is it running, and is this its address? a server with TLS is reached at grpc+tls://"
                }
                true => {
                    "is it running with TLS? --tls-ca names the certificates that vouch for its own, --tls-certificate and --tls-key the client's"
                }
            };
            Error::new(
                ErrorKind::Storage,
                format!("can't connect to '{url}': {message}"),
            )
            .with_hint(hint)
        };
        let connected = tokio::time::timeout(2 * CONNECT, endpoint.connect()).await;
        let channel = match connected {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return Err(unreachable(causes(&error))),
            Err(_) => return Err(unreachable(format!("no answer within {:?}", 2 * CONNECT))),
        };
        let client = Self {
            url: url.to_string(),
            calls: FlightServiceClient::new(channel)
                // A row may be larger than the messages that a server aims at.
                .max_decoding_message_size(usize::MAX)
                .max_encoding_message_size(usize::MAX),
            token,
            cookie: Arc::default(),
            cancelling: Arc::default(),
        };
        // What is wrong with the token or the certificates shows with the first call; and the session begins.
        let greeting = client.describe(CommandGetCatalogs {}.as_any().encode_to_vec());
        match tokio::time::timeout(GREETING, greeting).await {
            Ok(Ok(_)) => Ok(client),
            Ok(Err(status)) => Err(protocol::error(&status).map_or_else(
                || unreachable(said(&status)),
                |error| error.context(format!("can't connect to '{url}'")),
            )),
            Err(_) => Err(unreachable(format!("no answer within {GREETING:?}"))),
        }
    }

    /// The URL of the server.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Runs a statement, and gives its rows: those of a query come as they are computed. Dropping the future, or the
    /// rows, cancels it.
    ///
    /// # Errors
    ///
    /// If the statement fails, or the server goes away.
    pub async fn execute(&self, sql: &str) -> Result<Rows> {
        self.execute_with(sql, |_| {}).await
    }

    /// As [`execute`](Self::execute). Several times a second until it is through, how far it is goes to `progress`.
    ///
    /// # Errors
    ///
    /// If the statement fails, or the server goes away.
    pub async fn execute_with(
        &self,
        sql: &str,
        mut progress: impl FnMut(&StatementState) + Send,
    ) -> Result<Rows> {
        let command = CommandStatementQuery {
            query: sql.to_string(),
            transaction_id: None,
        };
        let mut descriptor = FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
        let mut running = Running {
            client: self,
            info: None,
        };
        let info = loop {
            let request = self.request(descriptor);
            let answer = match self.calls.clone().poll_flight_info(request).await {
                Ok(answer) => answer,
                Err(status) => {
                    running.info = None;
                    return Err(self.failure(&status));
                }
            };
            self.keep_cookie(answer.metadata());
            let answer = answer.into_inner();
            let info = answer.info.unwrap_or_default();
            let Some(next) = answer.flight_descriptor else {
                running.info = None;
                break info;
            };
            progress(&StatementState::from_bytes(&info.app_metadata));
            running.info = Some(info);
            descriptor = next;
        };
        let state = StatementState::from_bytes(&info.app_metadata);
        let schema = self.schema_of(info.schema.clone())?;
        let ticket = info
            .endpoint
            .into_iter()
            .find_map(|endpoint| endpoint.ticket)
            .ok_or_else(|| Error::internal("the server says nothing of where the result is"))?;
        let request = self.request(ticket);
        let answer = self.calls.clone().do_get(request).await;
        let messages = answer.map_err(|status| self.failure(&status))?.into_inner();
        Ok(Rows::new(self.clone(), schema, messages, state))
    }

    /// The columns that a query would give.
    ///
    /// # Errors
    ///
    /// If it is not a query, or it can't be planned.
    pub async fn schema(&self, query: &str) -> Result<SchemaRef> {
        let command = CommandStatementQuery {
            query: query.to_string(),
            transaction_id: None,
        };
        let descriptor = FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
        let answer = self
            .calls
            .clone()
            .get_schema(self.request(descriptor))
            .await;
        let answer = answer.map_err(|status| self.failure(&status))?;
        self.schema_of(answer.into_inner().schema)
    }

    /// Waits until the server has heard of all statements that were cancelled, but not for long.
    pub async fn settled(&self) {
        let cancelling = std::mem::take(&mut *lock(&self.cancelling));
        for call in cancelling {
            let _ = call.await;
        }
    }

    /// Ends the session on the server; what it had is dropped there in any case when it is not used for a while.
    pub async fn close(&self) {
        let request = self.request(Action::new("CloseSession", Vec::new()));
        let _ = tokio::time::timeout(CANCELLING, self.calls.clone().do_action(request)).await;
    }

    async fn describe(&self, command: Vec<u8>) -> Result<FlightInfo, Status> {
        let request = self.request(FlightDescriptor::new_cmd(command));
        let answer = self.calls.clone().get_flight_info(request).await?;
        self.keep_cookie(answer.metadata());
        Ok(answer.into_inner())
    }

    async fn cancel(self, info: FlightInfo) {
        let body = CancelFlightInfoRequest { info: Some(info) }.encode_to_vec();
        let request = self.request(Action::new("CancelFlightInfo", body));
        let mut calls = self.calls.clone();
        let call = async {
            // The answer comes when it has ended.
            if let Ok(answer) = calls.do_action(request).await {
                let _ = answer.into_inner().message().await;
            }
        };
        let _ = tokio::time::timeout(CANCELLING, call).await;
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        if let Some(token) = &self.token {
            metadata.insert("authorization", token.clone());
        }
        if let Some(cookie) = &*lock(&self.cookie) {
            metadata.insert("cookie", cookie.clone());
        }
        request
    }

    fn keep_cookie(&self, metadata: &MetadataMap) {
        for header in metadata.get_all("set-cookie") {
            let pair = header.to_str().ok().and_then(|text| text.split(';').next());
            if let Some(pair) = pair
                && pair.trim().starts_with(&format!("{SESSION_COOKIE}="))
                && let Ok(cookie) = pair.trim().parse()
            {
                *lock(&self.cookie) = Some(cookie);
            }
        }
    }

    fn schema_of(&self, bytes: bytes::Bytes) -> Result<SchemaRef> {
        if bytes.is_empty() {
            return Ok(Arc::new(Schema::empty()));
        }
        Ok(Arc::new(Schema::try_from(IpcMessage(bytes))?))
    }

    /// What the server said, or that it said nothing.
    fn failure(&self, status: &Status) -> Error {
        self.keep_cookie(status.metadata());
        if let Some(error) = protocol::error(status) {
            return error;
        }
        Error::new(
            ErrorKind::Storage,
            format!("the connection to '{}' broke: {}", self.url, said(status)),
        )
        .with_hint("a refresh that was at work goes on when the server is started again, and SHOW JOBS tells of it; run other statements again")
    }
}

/// A statement that runs on the server. It is cancelled when this is dropped before it ended.
struct Running<'a> {
    client: &'a Client,
    info: Option<FlightInfo>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(info) = self.info.take()
            && let Ok(runtime) = Handle::try_current()
        {
            let call = runtime.spawn(self.client.clone().cancel(info));
            lock(&self.client.cancelling).push(call);
        }
    }
}

fn tls(options: &Options) -> Result<ClientTlsConfig> {
    let mut tls = ClientTlsConfig::new();
    tls = match &options.tls_ca {
        Some(path) => tls.ca_certificate(Certificate::from_pem(read(path, "the certificates")?)),
        None => tls.with_native_roots(),
    };
    if let Some((certificate, key)) = &options.tls_identity {
        let certificate = read(certificate, "the certificate")?;
        tls = tls.identity(Identity::from_pem(certificate, read(key, "the key")?));
    }
    Ok(tls)
}

/// What a status that is none of ours says, with what is below it.
fn said(status: &Status) -> String {
    let text = match std::error::Error::source(status) {
        Some(source) => format!("{}: {}", status.message(), causes(source)),
        None => status.message().to_string(),
    };
    match status.code() {
        _ if text.is_empty() => status.code().description().to_string(),
        Code::Unavailable | Code::Unknown | Code::Internal => text,
        _ => format!("{}: {text}", status.code().description()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
