//! A store that answers as S3 does: moto's server, in a process of its own.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::harness::python::python_with_moto;
use crate::harness::scene::Outcome;

/// Serves a bucket until its standard input ends: when it is told to, or when whoever started it is gone.
const SERVER: &str = r#"
import logging, sys
import boto3
from moto.server import ThreadedMotoServer

logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
_, port = server.get_host_and_port()
boto3.client(
    "s3",
    endpoint_url=f"http://127.0.0.1:{port}",
    aws_access_key_id="key",
    aws_secret_access_key="secret",
    region_name="us-east-1",
).create_bucket(Bucket="bucket")
print(port, flush=True)
sys.stdin.read()
"#;

/// A server with an empty bucket named `bucket`. It ends when this is dropped.
#[derive(Debug)]
pub struct S3 {
    server: Child,
    endpoint: String,
}

impl S3 {
    /// One for all files that are there at the same time.
    pub fn shared() -> Outcome<Arc<Self>> {
        static SHARED: Mutex<Weak<S3>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(s3) = shared.upgrade() {
            return Ok(s3);
        }
        let s3 = Arc::new(Self::start()?);
        *shared = Arc::downgrade(&s3);
        Ok(s3)
    }

    /// Starts a server on a free port of this machine.
    pub fn start() -> Outcome<Self> {
        let mut server = Command::new(python_with_moto()?)
            .args(["-c", SERVER])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = server.stdout.take().ok_or("moto has no output")?;
        let mut s3 = Self {
            server,
            endpoint: String::new(),
        };
        let mut port = String::new();
        BufReader::new(stdout).read_line(&mut port)?;
        let port: u16 = port.trim().parse().map_err(|_| "moto did not start")?;
        s3.endpoint = format!("http://127.0.0.1:{port}");
        Ok(s3)
    }

    /// What has to be said to reach it.
    pub fn options(&self) -> HashMap<String, String> {
        let options = [
            ("aws_endpoint", self.endpoint.as_str()),
            ("aws_access_key_id", "key"),
            ("aws_secret_access_key", "secret"),
            ("aws_region", "us-east-1"),
            ("allow_http", "true"),
        ];
        options
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .into()
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
