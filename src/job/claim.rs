//! Claims: one job at a time works on an object.
//!
//! A claim is the file `claims/<object>/<n>` with the highest number; it names a job. The next number
//! can be created by one process only, and only if the job of the claim before has ended or its driver
//! is gone. A driver that was stopped for a while and comes back sees a higher number, and stops.
//!
//! Claims save work, they make nothing safe: between looking and committing another driver may take
//! over. What makes that harmless is in the commit itself.

use serde::{Deserialize, Serialize};

use super::driven::is_driver;
use super::ledger::{JobFiles, Ledger, json, last_state};
use super::process::Process;
use crate::{Error, ErrorKind, Result};

/// How often a claim that another process got first is tried again.
const ATTEMPTS: usize = 10;

/// A claim that is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    object: String,
    number: u64,
}

/// What a claim says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Claimant {
    job: String,
    driver: Process,
    /// Tells the driver from others of the same job.
    #[serde(default)]
    token: String,
    /// When, in milliseconds since 1970, UTC, by the driver's clock.
    #[serde(default)]
    at: i64,
}

/// What came of trying to claim objects.
#[derive(Debug)]
pub enum Claimed {
    /// All are claimed. The jobs are those that had not ended, but whose drivers are gone.
    Held(Vec<Claim>, Vec<JobFiles>),
    /// A job that is at work has one of them.
    Busy(Box<JobFiles>),
}

impl Ledger {
    /// Claims `objects` for `job`, all or none.
    pub(super) async fn claim(
        &self,
        objects: &[String],
        job: &str,
        driver: &Process,
        token: &str,
    ) -> Result<Claimed> {
        let claimant = Claimant {
            job: job.to_string(),
            driver: driver.clone(),
            token: token.to_string(),
            at: self.now(),
        };
        // In one order, so that of two that want the same objects one gets them all.
        let mut sorted = objects.to_vec();
        sorted.sort();
        sorted.dedup();
        let mut claims = Vec::with_capacity(sorted.len());
        let mut interrupted: Vec<JobFiles> = Vec::new();
        // Tokens of drivers that were watched and did not beat.
        let mut dead: Vec<String> = Vec::new();
        for object in sorted {
            match self.claim_one(&object, &claimant, &mut dead).await? {
                Ok((claim, before)) => {
                    claims.push(claim);
                    let before = before.filter(|files| {
                        interrupted
                            .iter()
                            .all(|other| other.record.id != files.record.id)
                    });
                    interrupted.extend(before);
                }
                Err(busy) => {
                    // Those claimed already name a job that never begins: it counts as ended.
                    return Ok(Claimed::Busy(Box::new(busy)));
                }
            }
        }
        Ok(Claimed::Held(claims, interrupted))
    }

    /// Claims one object. Gives the job that had it before, if that has not ended; or the job that has it.
    async fn claim_one(
        &self,
        object: &str,
        claimant: &Claimant,
        dead: &mut Vec<String>,
    ) -> Result<std::result::Result<(Claim, Option<JobFiles>), JobFiles>> {
        let content = json(claimant)?;
        for _ in 0..ATTEMPTS {
            let numbers = self.claim_numbers(object).await?;
            let newest = numbers.last().copied();
            let mut before = None;
            if let Some(number) = newest {
                let path = path(object, number);
                let held: Option<Claimant> = self.read_json(&path).await?;
                if held.as_ref() == Some(claimant) {
                    // The answer to an earlier attempt was lost.
                    let object = object.to_string();
                    return Ok(Ok((Claim { object, number }, None)));
                }
                // Asked after the claim was read: a job is listed before it claims anything.
                if let Some(held) = held
                    && self.active().await?.contains(&held.job)
                    && let Some(files) = self.read(&held.job).await?
                    && !last_state(&files.events).is_final()
                {
                    if self.is_at_work(&held, &files, dead).await? {
                        return Ok(Err(files));
                    }
                    // It may have ended while it was watched.
                    before = self.read(&held.job).await?.filter(|files| {
                        held.job != claimant.job && !last_state(&files.events).is_final()
                    });
                }
            }
            let number = newest.map_or(1, |number| number.saturating_add(1));
            if self
                .root()
                .create_own(&path(object, number), content.clone())
                .await?
            {
                for number in numbers {
                    // What is left over does no harm.
                    let _ = self.root().remove_own(&path(object, number)).await;
                }
                let claim = Claim {
                    object: object.to_string(),
                    number,
                };
                return Ok(Ok((claim, before)));
            }
        }
        Err(Error::new(
            ErrorKind::Conflict,
            format!("too many processes want to refresh '{object}' at once"),
        )
        .with_hint("run the statement again"))
    }

    /// Whether the driver that claimed something last, for a job that has not ended, is at work. If in doubt, it is watched for some
    /// seconds; once for all that it has claimed.
    async fn is_at_work(
        &self,
        held: &Claimant,
        files: &JobFiles,
        dead: &mut Vec<String>,
    ) -> Result<bool> {
        if held.driver.is_gone() {
            return Ok(false);
        }
        if held.driver.is_this() {
            return Ok(is_driver(&held.token));
        }
        // It claims before it beats.
        let at = match &files.heartbeat {
            Some(heartbeat) if heartbeat.driver == held.driver => heartbeat.at,
            _ => held.at,
        };
        if self.is_recent(at) {
            return Ok(true);
        }
        if dead.contains(&held.token) {
            return Ok(false);
        }
        let beats = self.beats(&files.record.id).await?;
        if !beats {
            dead.push(held.token.clone());
        }
        Ok(beats)
    }

    /// Whether no other driver has claimed one of these objects since.
    pub async fn holds(&self, claims: &[Claim]) -> Result<bool> {
        for claim in claims {
            let newest = self.claim_numbers(&claim.object).await?.last().copied();
            // A table that was dropped takes its claims along.
            if newest.is_some_and(|newest| newest > claim.number) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn claim_numbers(&self, object: &str) -> Result<Vec<u64>> {
        let names = self.root().list_own(&format!("claims/{object}")).await?;
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| name.parse().ok()).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }
}

fn path(object: &str, number: u64) -> String {
    format!("claims/{object}/{number:08}")
}
