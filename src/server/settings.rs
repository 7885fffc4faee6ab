//! What a server is told when it starts.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::engine::ballista::{Certificates as ClusterCertificates, Security, scheduler};
use crate::local_file::read;
use crate::protocol::DEFAULT_PORT;
use crate::{Error, Result};

/// How a server listens and whom it lets in.
#[derive(Clone, Default)]
pub struct Settings {
    /// Where it listens, as `host:port`; port 0 is any that is free. [`Settings::DEFAULT_BIND`] if nothing is said.
    pub bind: Option<String>,
    /// What clients have to bring. Without one, all are let in.
    pub token: Option<String>,
    /// The certificate of the server and those that vouch for it, PEM.
    pub tls_certificate: Option<PathBuf>,
    /// The key of the certificate, PEM.
    pub tls_key: Option<PathBuf>,
    /// Only clients with a certificate that one of these vouches for are let in, PEM.
    pub tls_client_ca: Option<PathBuf>,
    /// Whether it may listen to other machines without a token, and take executors from there without certificates.
    pub insecure: bool,
    /// Where it answers by HTTP whether it lives, and with its figures, as `host:port`; `None` for nowhere.
    pub http_bind: Option<String>,
    /// The cluster that it owns; `None` for a server that does all work itself.
    pub cluster: Option<ClusterSettings>,
}

/// How a server owns a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterSettings {
    /// Where executors, and programs that drive the cluster, reach the scheduler, as `host:port`.
    pub bind: String,
    /// The name that executors reach it by; that of `bind` if nothing is said.
    pub host: Option<String>,
    /// After this silence an executor counts as lost, and what it did is done by others. At least
    /// [`ClusterSettings::LEAST_TIMEOUT`].
    pub executor_timeout: Duration,
    /// How the processes of the cluster know one another; without it everything is open to whoever reaches the ports.
    pub certificates: Option<ClusterCertificates>,
}

impl ClusterSettings {
    /// After this silence an executor counts as lost unless something else is said.
    pub const EXECUTOR_TIMEOUT: Duration = Duration::from_secs(60);
    /// Executors say every 5 seconds that they live: after less silence living ones would be taken for lost.
    pub const LEAST_TIMEOUT: Duration = Duration::from_secs(10);

    /// The settings of the scheduler.
    ///
    /// # Errors
    ///
    /// If the address can't be understood, or others could reach it though they should not.
    pub(super) async fn scheduler(&self, insecure: bool) -> Result<scheduler::Settings> {
        let bind = resolve("--cluster-bind", &self.bind, "127.0.0.1:50060").await?;
        if self.executor_timeout < Self::LEAST_TIMEOUT {
            return Err(Error::invalid(format!(
                "--executor-timeout {:?} is less than {:?}",
                self.executor_timeout,
                Self::LEAST_TIMEOUT
            ))
            .with_hint("executors say every 5 seconds that they live"));
        }
        let security = Security::read(self.certificates.as_ref())?;
        if !insecure && !security.is_on() && !bind.ip().is_loopback() {
            return Err(Error::invalid(format!(
                "{bind} can be reached from other machines, and whoever reaches the scheduler can run anything on the cluster"
            ))
            .with_hint("give the cluster certificates with --cluster-ca, --cluster-certificate and --cluster-key; or give --insecure, where a network lets only executors reach this port"));
        }
        let host = match &self.host {
            Some(host) => host.clone(),
            None if bind.ip().is_unspecified() => {
                return Err(Error::invalid(format!(
                    "executors have to know by which name they reach {bind}"
                ))
                .with_hint("name it with --cluster-host"));
            }
            None => bind.ip().to_string(),
        };
        Ok(scheduler::Settings {
            bind,
            external_host: host,
            executor_timeout: self.executor_timeout,
            security,
        })
    }
}

/// The address that `text` names.
pub(crate) async fn resolve(option: &str, text: &str, example: &str) -> Result<SocketAddr> {
    let addresses = tokio::net::lookup_host(text).await.map_err(|error| {
        Error::invalid(format!("{option} '{text}' is not an address: {error}"))
            .with_hint(format!("write host:port, such as {example}"))
    })?;
    let first = addresses.into_iter().next();
    first.ok_or_else(|| Error::invalid(format!("{option} '{text}' is no address of this machine")))
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("bind", &self.bind)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("tls_certificate", &self.tls_certificate)
            .field("tls_client_ca", &self.tls_client_ca)
            .field("insecure", &self.insecure)
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

/// The certificates of a server, read.
pub(super) struct Certificates {
    pub(super) certificate: Vec<u8>,
    pub(super) key: Vec<u8>,
    pub(super) client_ca: Option<Vec<u8>>,
}

impl Settings {
    /// Where a server listens when nobody says: to this machine only.
    pub const DEFAULT_BIND: &'static str = "127.0.0.1:50050";

    /// The address to listen on.
    ///
    /// # Errors
    ///
    /// If it can't be understood, or others could reach it without a token.
    pub(super) async fn address(&self) -> Result<SocketAddr> {
        let text = self.bind.as_deref().unwrap_or(Self::DEFAULT_BIND);
        let example = format!("127.0.0.1:{DEFAULT_PORT} or 0.0.0.0:{DEFAULT_PORT}");
        let address = resolve("--bind", text, &example).await?;
        if self.token.is_none() && !self.insecure && !address.ip().is_loopback() {
            return Err(Error::invalid(format!(
                "without a token the server listens to this machine only, and {address} can be reached from others: whoever connects could read and change the database, and files of this machine"
            ))
            .with_hint("set HEADWATER_TOKEN or --token-file, and --tls-certificate with --tls-key; or give --insecure, where a network keeps others out"));
        }
        Ok(address)
    }

    /// Reads the certificates; `None` for a server without TLS.
    pub(super) fn certificates(&self) -> Result<Option<Certificates>> {
        match (&self.tls_certificate, &self.tls_key) {
            (None, None) if self.tls_client_ca.is_some() => Err(Error::invalid(
                "--tls-client-ca needs --tls-certificate and --tls-key",
            )),
            (None, None) => Ok(None),
            (Some(_), None) => Err(Error::invalid("--tls-certificate needs --tls-key")),
            (None, Some(_)) => Err(Error::invalid("--tls-key needs --tls-certificate")),
            (Some(certificate), Some(key)) => Ok(Some(Certificates {
                certificate: read(certificate, "the certificate")?,
                key: read(key, "the key")?,
                client_ca: match &self.tls_client_ca {
                    Some(path) => Some(read(path, "the certificates of clients")?),
                    None => None,
                },
            })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(bind: &str) -> Settings {
        Settings {
            bind: Some(bind.to_string()),
            ..Settings::default()
        }
    }

    #[tokio::test]
    async fn others_are_not_let_in_without_a_token() {
        for bind in ["127.0.0.1:0", "[::1]:0", "localhost:0"] {
            settings(bind).address().await.unwrap();
        }
        let error = settings("0.0.0.0:0").address().await.unwrap_err();
        assert!(error.to_string().contains("--insecure"), "{error}");
        let insecure = Settings {
            insecure: true,
            ..settings("0.0.0.0:0")
        };
        insecure.address().await.unwrap();
        let guarded = Settings {
            token: Some("secret".to_string()),
            ..settings("0.0.0.0:0")
        };
        guarded.address().await.unwrap();
        assert!(!format!("{guarded:?}").contains("secret"));
        assert!(settings("nowhere").address().await.is_err());
    }

    #[test]
    fn a_certificate_needs_its_key() {
        let alone = Settings {
            tls_certificate: Some("a.pem".into()),
            ..Settings::default()
        };
        assert!(alone.certificates().is_err());
        assert!(Settings::default().certificates().unwrap().is_none());
    }
}
