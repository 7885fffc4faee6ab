//! What a job is told while it runs, seen by all that work for it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Why a job stops before it is through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// CANCEL JOB, Ctrl-C, or a client that went away.
    Cancelled,
    /// The option `timeout`.
    TimedOut,
    /// The option `max_seconds`: not an error, what is left stays pending.
    OutOfTime,
    /// Another driver has taken over.
    Superseded,
    /// Part of it failed, so the rest has no use.
    Failed,
    /// The process ends. The job has not: another process goes on with it.
    Interrupted,
}

/// What a job should do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signal {
    /// Work.
    Run,
    /// Wait.
    Pause,
    /// Write down what is computed, and end.
    Stop(Stop),
}

/// Tells a job what to do. Clones tell the same job.
#[derive(Debug, Clone)]
pub struct Signaller(Arc<watch::Sender<Signal>>);

impl Default for Signaller {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Signal::Run)))
    }
}

impl Signaller {
    /// Says something else from now on. Once a job was told to stop it stays so.
    pub fn tell(&self, signal: Signal) {
        self.0.send_if_modified(|now| {
            if matches!(now, Signal::Stop(_)) || *now == signal {
                return false;
            }
            *now = signal;
            true
        });
    }

    /// What it says now.
    pub fn now(&self) -> Signal {
        *self.0.borrow()
    }

    /// Waits while it says to wait; then says what to do.
    pub async fn proceed(&self) -> Option<Stop> {
        let mut receiver = self.0.subscribe();
        let signal = receiver.wait_for(|signal| *signal != Signal::Pause).await;
        match signal.as_deref() {
            Ok(Signal::Stop(stop)) => Some(*stop),
            _ => None,
        }
    }

    /// Waits until it says to stop.
    pub async fn stopped(&self) -> Stop {
        let mut receiver = self.0.subscribe();
        loop {
            if let Signal::Stop(stop) = *receiver.borrow_and_update() {
                return stop;
            }
            // The sender lives as long as `self`.
            let _ = receiver.changed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_job_waits_until_it_is_told_to_go_on() {
        let signaller = Signaller::default();
        assert_eq!(signaller.proceed().await, None);
        signaller.tell(Signal::Pause);
        let waiting = tokio::spawn({
            let signaller = signaller.clone();
            async move { signaller.proceed().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        signaller.tell(Signal::Run);
        assert_eq!(waiting.await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_stop_is_final() {
        let signaller = Signaller::default();
        signaller.tell(Signal::Stop(Stop::Cancelled));
        signaller.tell(Signal::Run);
        signaller.tell(Signal::Stop(Stop::TimedOut));
        assert_eq!(signaller.stopped().await, Stop::Cancelled);
        assert_eq!(signaller.proceed().await, Some(Stop::Cancelled));
    }
}
