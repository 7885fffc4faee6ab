//! A process of this binary that runs until it is told to end: `serve-refresh`, or a server.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::scene::Outcome;

/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

/// A process that runs until it is told to end, and what it has said on standard error.
pub struct Daemon {
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
}

impl Daemon {
    /// Listens to a process whose standard error is piped.
    pub fn new(mut child: Child) -> Outcome<Self> {
        let said: Arc<Mutex<Vec<String>>> = Arc::default();
        if let Some(stderr) = child.stderr.take() {
            let said = Arc::clone(&said);
            thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    said.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(line);
                }
            });
        }
        Ok(Self { child, said })
    }

    /// The lines that it has said.
    pub fn said(&self) -> Vec<String> {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.clone()
    }

    /// Waits until it has said a line with all of `words`; gives that.
    pub async fn until(&self, words: &[&str]) -> Outcome<String> {
        let started = Instant::now();
        loop {
            let said = self.said();
            let has_all = |line: &&String| words.iter().all(|word| line.contains(word));
            if let Some(line) = said.iter().find(has_all) {
                return Ok(line.clone());
            }
            if started.elapsed() > PATIENCE {
                return Err(format!("it never said {words:?}, but {said:#?}").into());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Sends it SIG`name`.
    pub fn signal(&self, name: &str) -> Outcome<()> {
        let sent = Command::new("kill")
            .args(["-s", name, &self.child.id().to_string()])
            .status()?;
        match sent.success() {
            true => Ok(()),
            false => Err(format!("SIG{name} could not be sent").into()),
        }
    }

    /// Waits for its end.
    pub async fn end(&mut self) -> Outcome<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if started.elapsed() > PATIENCE {
                return Err(format!("it never ended, but said {:#?}", self.said()).into());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Ends it with SIGTERM; fails unless that is a clean end.
    pub async fn terminate(&mut self) -> Outcome<()> {
        self.signal("TERM")?;
        let status = self.end().await?;
        match status.code() {
            Some(0) => Ok(()),
            _ => Err(format!("{status}: {:#?}", self.said()).into()),
        }
    }
}

impl Daemon {
    /// Where a server listens, once it does.
    pub async fn url(&self) -> Outcome<String> {
        let line = self.until(&["Listening on "]).await?;
        let url = line.split_whitespace().nth(2);
        Ok(url.ok_or("it does not say where it listens")?.to_string())
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) -> Outcome<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
