//! Sessions of clients.
//!
//! A client that sends back the cookie which every first answer brings has a session of its own: settings and
//! tables that last from statement to statement. One that does not has a new session for each statement. A session
//! is made when its cookie comes back for the first time, so clients without cookies leave nothing behind.
//!
//! A cookie says when it was given, and by which process: what came back too late, or after a restart, is told so,
//! once, and gets a new one. Settings that are gone are not to go unnoticed.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::Error;
use crate::protocol::{SESSION_COOKIE, status, status_of};
use crate::session::Headwater;

/// How long a session lasts that is not used.
pub(super) const IDLE: Duration = Duration::from_secs(3600);
/// How many there may be.
const MOST: usize = 10_000;

/// The sessions of a server.
pub(super) struct Sessions {
    base: Headwater,
    /// Of this process.
    instance: String,
    started: Instant,
    known: Mutex<HashMap<String, Session>>,
}

struct Session {
    headwater: Headwater,
    used: Instant,
}

/// What a request says of its session.
#[derive(Debug, PartialEq, Eq)]
enum Cookie {
    /// It has none.
    None,
    /// One that this server gave.
    Valid(String),
    /// One that is of no use any more.
    Gone,
}

impl Sessions {
    /// None yet; those to come are made like `base`.
    pub(super) fn new(base: Headwater) -> Self {
        Self {
            base,
            instance: Uuid::new_v4().simple().to_string(),
            started: Instant::now(),
            known: Mutex::default(),
        }
    }

    /// The first session, which no client has.
    pub(super) fn base(&self) -> &Headwater {
        &self.base
    }

    /// The session in which a statement of this request runs, for this statement alone.
    ///
    /// # Errors
    ///
    /// If its session is gone.
    pub(super) fn of(&self, metadata: &MetadataMap) -> Result<Headwater, Status> {
        let fresh = || self.base.new_session().map_err(|error| status(&error));
        let id = match self.cookie(metadata) {
            Cookie::None => return fresh(),
            Cookie::Valid(id) => id,
            Cookie::Gone => {
                let error = Error::invalid("the session is gone: it was not used for an hour, or the server was started again")
                    .with_hint("a new one begins with the next statement; settings and tables of the session have to be made again");
                return Err(status_of(Code::FailedPrecondition, &error));
            }
        };
        let mut known = self.lock();
        if let Some(session) = known.get_mut(&id) {
            session.used = Instant::now();
            return Ok(session.headwater.for_statement());
        }
        if known.len() >= MOST {
            let error = Error::invalid(format!("the server has {MOST} sessions already"))
                .with_hint("close sessions that are not used, or connect without cookies");
            return Err(status_of(Code::ResourceExhausted, &error));
        }
        let headwater = fresh()?;
        let statement = headwater.for_statement();
        known.insert(
            id,
            Session {
                headwater,
                used: Instant::now(),
            },
        );
        Ok(statement)
    }

    /// The cookie that the answer to this request is to bring, if any.
    pub(super) fn offer(&self, metadata: &MetadataMap) -> Option<String> {
        match self.cookie(metadata) {
            Cookie::Valid(_) => None,
            Cookie::None | Cookie::Gone => {
                let given = self.started.elapsed().as_secs();
                let id = Uuid::new_v4().simple().to_string();
                Some(format!(
                    "{SESSION_COOKIE}={}.{given}.{id}; Path=/; HttpOnly",
                    self.instance
                ))
            }
        }
    }

    /// Ends the session of this request; false if it had none.
    pub(super) fn close(&self, metadata: &MetadataMap) -> bool {
        match self.cookie(metadata) {
            Cookie::Valid(id) => self.lock().remove(&id).is_some(),
            _ => false,
        }
    }

    /// Ends those that are not used.
    pub(super) fn tidy(&self) {
        self.lock()
            .retain(|_, session| session.used.elapsed() < IDLE);
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }

    fn cookie(&self, metadata: &MetadataMap) -> Cookie {
        let headers = metadata.get_all("cookie");
        let id = headers.iter().find_map(|header| {
            let pairs = header.to_str().ok()?.split(';');
            let mut named = pairs.filter_map(|pair| pair.trim().split_once('='));
            named
                .find(|(name, _)| *name == SESSION_COOKIE)
                .map(|(_, value)| value.trim_matches('"').to_string())
        });
        let Some(id) = id else { return Cookie::None };
        let mut parts = id.splitn(3, '.');
        let instance = parts.next().unwrap_or_default();
        let given = parts.next().and_then(|given| given.parse::<u64>().ok());
        match (given, parts.next()) {
            (Some(given), Some(rest)) if instance == self.instance && rest.len() <= 64 => {
                let age = self.started.elapsed().as_secs().saturating_sub(given);
                if age >= IDLE.as_secs() && !self.lock().contains_key(&id) {
                    return Cookie::Gone;
                }
                Cookie::Valid(id)
            }
            _ => Cookie::Gone,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Session>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
