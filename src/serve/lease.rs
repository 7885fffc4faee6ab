//! Who keeps the views of a database: one process at a time.
//!
//! The lease is the file `_headwater/serve-refresh/<n>` with the highest number; whoever makes the next one holds it. That
//! may be done once the holder is gone, or has not beaten for a while. As with [claims](crate::job::claim), it saves work
//! and makes nothing safe: two that hold it for a moment meet at the claims of the jobs.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::job::ledger::Ledger;
use crate::job::process::Process;
use crate::{Error, Result};

const FOLDER: &str = "serve-refresh";
const HEARTBEAT: &str = "serve-refresh/heartbeat.json";

/// How often the holder shows that it lives.
pub(super) const BEAT: Duration = Duration::from_secs(5);
/// How often one that waits looks again.
pub(super) const RETRY: Duration = Duration::from_millis(500);
/// How long a beat that is old is watched: somewhat longer than from one to the next.
const WATCH: Duration = Duration::from_millis(6500);
const WATCH_INTERVAL: Duration = Duration::from_millis(250);

/// What the file says, and the heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    process: Process,
    /// Tells it from others of the same process.
    token: String,
    /// When it wrote this, in milliseconds since 1970, UTC, by its own clock.
    at: i64,
}

/// The right to keep the views.
#[derive(Debug)]
pub(super) struct Lease {
    ledger: Ledger,
    number: u64,
    holder: Holder,
}

impl Lease {
    /// Takes the lease; or says who has it.
    pub(super) async fn acquire(ledger: &Ledger) -> Result<std::result::Result<Self, Process>> {
        let root = ledger.database().root();
        let numbers = numbers(ledger).await?;
        if let Some(newest) = numbers.last()
            && let Some(holder) = read(ledger, &path(*newest)).await?
            && is_alive(ledger, &holder).await?
        {
            return Ok(Err(holder.process));
        }
        let number = numbers.last().map_or(1, |number| number.saturating_add(1));
        let holder = Holder {
            process: Process::current(),
            token: uuid::Uuid::new_v4().simple().to_string(),
            at: ledger.now(),
        };
        if !root.create_own(&path(number), json(&holder)?).await? {
            // Another one was quicker.
            let other = read(ledger, &path(number)).await?;
            return Ok(Err(
                other.map_or_else(Process::current, |other| other.process)
            ));
        }
        for number in numbers {
            // What is left over does no harm.
            let _ = root.remove_own(&path(number)).await;
        }
        Ok(Ok(Self {
            ledger: ledger.clone(),
            number,
            holder,
        }))
    }

    /// Shows that it lives; false if another process has taken over.
    pub(super) async fn keep(&mut self) -> Result<bool> {
        let newest = numbers(&self.ledger).await?.last().copied();
        let there = read(&self.ledger, &path(self.number)).await?;
        // Numbers begin anew when nobody holds it.
        let is_own = there.is_some_and(|there| there.token == self.holder.token);
        if newest != Some(self.number) || !is_own {
            return Ok(false);
        }
        self.holder.at = self.ledger.now();
        let root = self.ledger.database().root();
        root.replace_own(HEARTBEAT, json(&self.holder)?).await?;
        Ok(true)
    }

    /// Lets go of it.
    pub(super) async fn release(self) {
        // Where it can't be removed, its process is gone soon.
        let root = self.ledger.database().root();
        let _ = root.remove_own(&path(self.number)).await;
    }
}

async fn is_alive(ledger: &Ledger, holder: &Holder) -> Result<bool> {
    if holder.process.is_gone() {
        return Ok(false);
    }
    let beat = read(ledger, HEARTBEAT).await?;
    let beat = beat.filter(|beat| beat.token == holder.token);
    if ledger.is_recent(beat.as_ref().map_or(holder.at, |beat| beat.at)) {
        return Ok(true);
    }
    // Clocks differ.
    let started = Instant::now();
    while started.elapsed() < WATCH {
        tokio::time::sleep(WATCH_INTERVAL).await;
        let now = read(ledger, HEARTBEAT).await?;
        if now.is_some_and(|now| now.token == holder.token && Some(&now) != beat.as_ref()) {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn numbers(ledger: &Ledger) -> Result<Vec<u64>> {
    let names = ledger.database().root().list_own(FOLDER).await?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| name.parse().ok()).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// What a file says; `None` if it is gone, or can't be read: then nobody is known to hold anything.
async fn read(ledger: &Ledger, path: &str) -> Result<Option<Holder>> {
    let found = ledger.database().root().read_own(path).await?;
    Ok(found.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

fn path(number: u64) -> String {
    format!("{FOLDER}/{number:08}")
}

fn json(holder: &Holder) -> Result<Vec<u8>> {
    serde_json::to_vec(holder)
        .map_err(|error| Error::internal(format!("a lease can't be written: {error}")))
}
