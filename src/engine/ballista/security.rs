//! TLS between the processes of a cluster.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ballista_core::extension::EndpointOverrideFn;
use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

use crate::{Error, ErrorKind, Result};

/// How the processes of a cluster know one another: each has a certificate, and trusts those that one authority has
/// signed. Without it everything is open to whoever reaches the ports.
#[derive(Clone, Default)]
pub struct Security(Option<Arc<Files>>);

struct Files {
    authority: Vec<u8>,
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // It holds a key.
        f.debug_struct("Security")
            .field("is_on", &self.is_on())
            .finish()
    }
}

/// Where the certificates are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificates {
    /// The certificate of the authority, in PEM.
    pub authority: PathBuf,
    /// The certificate of this process, in PEM.
    pub certificate: PathBuf,
    /// Its key, in PEM.
    pub key: PathBuf,
}

impl Security {
    /// Reads the certificates.
    ///
    /// # Errors
    ///
    /// If a file can't be read.
    pub fn read(certificates: &Certificates) -> Result<Self> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|error| {
                Error::new(
                    ErrorKind::Storage,
                    format!("can't read the certificate '{}': {error}", path.display()),
                )
                .with_source(error)
            })
        };
        Ok(Self(Some(Arc::new(Files {
            authority: read(&certificates.authority)?,
            certificate: read(&certificates.certificate)?,
            key: read(&certificates.key)?,
        }))))
    }

    /// Whether there is TLS.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// How a process shows itself to those that connect to it, and what it asks of them.
    pub fn server(&self) -> Option<ServerTlsConfig> {
        self.0.as_ref().map(|files| {
            ServerTlsConfig::new()
                .identity(Identity::from_pem(&files.certificate, &files.key))
                .client_ca_root(Certificate::from_pem(&files.authority))
        })
    }

    /// Sets up the connections to others.
    pub(super) fn endpoints(&self) -> Option<EndpointOverrideFn> {
        let files = Arc::clone(self.0.as_ref()?);
        Some(Arc::new(move |endpoint| {
            let tls = ClientTlsConfig::new()
                .ca_certificate(Certificate::from_pem(&files.authority))
                .identity(Identity::from_pem(&files.certificate, &files.key));
            Ok(endpoint.tls_config(tls)?)
        }))
    }
}
