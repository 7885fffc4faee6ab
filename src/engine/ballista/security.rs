//! TLS between the processes of a cluster.
//!
//! Each process has a certificate, shows it to whoever connects, and asks for one of whoever connects: only those
//! that one authority has signed are let in. Processes come and go at addresses that nobody knows before, so a
//! certificate does not say at which one its process is, but that it is [of a cluster](NAME).

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ballista_core::extension::EndpointOverrideFn;
use rustls::RootCertStore;
use rustls::client::verify_server_name;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ParsedCertificate, ServerConfig, WebPkiClientVerifier};
use tokio_rustls::TlsAcceptor;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity, ServerTlsConfig};

use crate::local_file::read;
use crate::tls::choose_cryptography;
use crate::{Error, Result};

/// The name that every certificate of a cluster has among its subject's alternative names.
pub const NAME: &str = "headwater-cluster";
/// How long an answer may take that Ballista waits for: it begins at once, however long it is.
const ANSWER: Duration = Duration::from_secs(20);

/// How the processes of a cluster know one another. Without certificates everything is open to whoever reaches the
/// ports.
#[derive(Clone, Default)]
pub struct Security(Option<Arc<Files>>);

struct Files {
    authority: Vec<u8>,
    certificate: Vec<u8>,
    key: Vec<u8>,
    /// For ports that Ballista opens.
    acceptor: TlsAcceptor,
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
    /// The certificates of the authorities, PEM.
    pub authority: PathBuf,
    /// The certificate of this process, PEM. Among its names is [`NAME`].
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
}

impl Certificates {
    /// All three, or none of them.
    ///
    /// # Errors
    ///
    /// If some are missing.
    pub fn all(
        authority: Option<PathBuf>,
        certificate: Option<PathBuf>,
        key: Option<PathBuf>,
    ) -> Result<Option<Self>> {
        match (authority, certificate, key) {
            (Some(authority), Some(certificate), Some(key)) => Ok(Some(Self {
                authority,
                certificate,
                key,
            })),
            (None, None, None) => Ok(None),
            _ => Err(Error::invalid(
                "--cluster-ca, --cluster-certificate and --cluster-key go together",
            )),
        }
    }
}

impl Security {
    /// Reads the certificates; without any there is no TLS.
    ///
    /// # Errors
    ///
    /// If a file can't be read, is no PEM, or the key is not that of the certificate.
    pub fn read(certificates: Option<&Certificates>) -> Result<Self> {
        let Some(certificates) = certificates else {
            return Ok(Self::default());
        };
        choose_cryptography();
        let read = |path: &Path| read(path, "the certificate");
        let authority = read(&certificates.authority)?;
        let certificate = read(&certificates.certificate)?;
        let key = read(&certificates.key)?;
        let acceptor = acceptor(&authority, &certificate, &key).map_err(|(what, why)| {
            let path = match what {
                Part::Authority => &certificates.authority,
                Part::Certificate => &certificates.certificate,
                Part::Key => &certificates.key,
            };
            Error::invalid(format!("'{}' can't be used for TLS: {why}", path.display())).with_hint(
                "--cluster-ca, --cluster-certificate and --cluster-key name PEM files that belong together",
            )
        })?;
        Ok(Self(Some(Arc::new(Files {
            authority,
            certificate,
            key,
            acceptor,
        }))))
    }

    /// Whether there is TLS.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// The scheme of URLs of schedulers.
    pub(super) fn scheme(&self) -> &'static str {
        match self.is_on() {
            true => "df+tls",
            false => "df",
        }
    }

    /// How a process shows itself to those that connect to it, and what it asks of them.
    pub(super) fn server(&self) -> Option<ServerTlsConfig> {
        self.0.as_ref().map(|files| {
            ServerTlsConfig::new()
                .identity(Identity::from_pem(&files.certificate, &files.key))
                .client_ca_root(Certificate::from_pem(&files.authority))
        })
    }

    /// The same for a port before which TLS has to be.
    pub(super) fn acceptor(&self) -> Option<TlsAcceptor> {
        self.0.as_ref().map(|files| files.acceptor.clone())
    }

    /// Sets up the connections to others, also those of Ballista, which knows only the scheme `http` for some of them.
    pub(super) fn endpoints(&self) -> Option<EndpointOverrideFn> {
        let security = self.clone();
        self.is_on().then(|| {
            Arc::new(move |endpoint: Endpoint| {
                let address = endpoint.uri().to_string();
                Ok(security.endpoint(&address)?.timeout(ANSWER))
            }) as EndpointOverrideFn
        })
    }

    /// How a process at `address` is reached.
    ///
    /// # Errors
    ///
    /// If that is no address.
    pub(super) fn endpoint(&self, address: &str) -> Result<Endpoint> {
        let not_one = |error: &dyn fmt::Display| {
            Error::invalid(format!("'{address}' is not an address: {error}"))
        };
        let secured = match (self.is_on(), address.strip_prefix("http://")) {
            (true, Some(rest)) => format!("https://{rest}"),
            _ => address.to_string(),
        };
        let endpoint = Endpoint::from_shared(secured).map_err(|error| not_one(&error))?;
        let endpoint = endpoint
            .connect_timeout(Duration::from_secs(5))
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(15))
            .keep_alive_while_idle(true);
        let Some(files) = &self.0 else {
            return Ok(endpoint);
        };
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&files.authority))
            .identity(Identity::from_pem(&files.certificate, &files.key))
            .domain_name(NAME);
        endpoint
            .tls_config(tls)
            .map_err(|error| Error::invalid(format!("TLS can't be set up: {error}")))
    }
}

/// One of the files.
enum Part {
    Authority,
    Certificate,
    Key,
}

fn acceptor(
    authority: &[u8],
    certificate: &[u8],
    key: &[u8],
) -> std::result::Result<TlsAcceptor, (Part, String)> {
    let certificates = |pem: &[u8]| -> std::result::Result<Vec<CertificateDer<'static>>, String> {
        let all = CertificateDer::pem_slice_iter(pem).collect::<std::result::Result<Vec<_>, _>>();
        let all = all.map_err(|error| error.to_string())?;
        match all.is_empty() {
            true => Err("there is no certificate in it".to_string()),
            false => Ok(all),
        }
    };
    let mut roots = RootCertStore::empty();
    for root in certificates(authority).map_err(|why| (Part::Authority, why))? {
        roots
            .add(root)
            .map_err(|error| (Part::Authority, error.to_string()))?;
    }
    let own = certificates(certificate).map_err(|why| (Part::Certificate, why))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| (Part::Key, error.to_string()))?;
    if let Some(first) = own.first() {
        let unfit = |error: rustls::Error| (Part::Certificate, error.to_string());
        let first = ParsedCertificate::try_from(first).map_err(unfit)?;
        let name =
            ServerName::try_from(NAME).map_err(|error| (Part::Certificate, error.to_string()))?;
        // Others would not connect to this process, and it would not know why.
        verify_server_name(&first, &name).map_err(|_| {
            let why = format!("'{NAME}' is not among its subject's alternative names");
            (Part::Certificate, why)
        })?;
    }
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots))
        .build()
        .map_err(|error| (Part::Authority, error.to_string()))?;
    let mut config = ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(own, key)
        .map_err(|error| (Part::Key, error.to_string()))?;
    // What speaks gRPC says so.
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
