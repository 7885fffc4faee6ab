//! URLs of servers: `grpc://host:port` and `grpc+tls://host:port`.

use url::Url;

use crate::protocol::DEFAULT_PORT;
use crate::{Error, Result};

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServerUrl {
    /// Whether the connection is encrypted.
    pub(super) is_encrypted: bool,
    /// The same for HTTP.
    pub(super) http: String,
}

/// Whether a database's URL is that of a server.
pub fn is_server(url: &str) -> bool {
    let scheme = url.split_once("://").map(|(scheme, _)| scheme);
    scheme.is_some_and(|scheme| {
        scheme.eq_ignore_ascii_case("grpc")
            || scheme.to_ascii_lowercase().starts_with("grpc+")
            || scheme.eq_ignore_ascii_case("grpcs")
    })
}

impl ServerUrl {
    /// Reads a URL.
    ///
    /// # Errors
    ///
    /// If it is not one of a server.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let wrong = |message: String| {
            Error::invalid(format!("'{text}' is not the URL of a server: {message}")).with_hint(
                format!("write grpc://host:{DEFAULT_PORT}, or grpc+tls://host:{DEFAULT_PORT} for an encrypted connection"),
            )
        };
        let url = Url::parse(text).map_err(|error| wrong(error.to_string()))?;
        let is_encrypted = match url.scheme() {
            "grpc" | "grpc+tcp" => false,
            "grpc+tls" => true,
            other => return Err(wrong(format!("it begins with {other}://"))),
        };
        let host = match url.host_str() {
            Some(host) if !host.is_empty() => host,
            _ => return Err(wrong("it names no host".to_string())),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong(
                "a token is given by --token or HEADWATER_TOKEN".to_string(),
            ));
        }
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(wrong(
                "nothing follows the port; the server knows its database".to_string(),
            ));
        }
        let port = match url.port() {
            Some(0) => return Err(wrong("there is no port 0".to_string())),
            Some(port) => port,
            None => DEFAULT_PORT,
        };
        let scheme = if is_encrypted { "https" } else { "http" };
        Ok(Self {
            is_encrypted,
            http: format!("{scheme}://{host}:{port}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_a_host_and_a_port() {
        for (text, http) in [
            ("grpc://localhost:1234", "http://localhost:1234"),
            ("grpc://10.0.0.1", "http://10.0.0.1:50050"),
            ("grpc+tls://shop.example/", "https://shop.example:50050"),
            ("grpc://[::1]:7", "http://[::1]:7"),
        ] {
            assert_eq!(ServerUrl::parse(text).unwrap().http, http);
        }
    }

    #[test]
    fn other_urls_are_refused() {
        for text in [
            "grpc://",
            "grpc://host:99999",
            "grpc://host:0",
            "grpc://me:secret@host",
            "grpc://host/shop",
            "grpcs://host",
            "http://host",
            "host:50050",
        ] {
            let error = ServerUrl::parse(text).unwrap_err().to_string();
            assert!(error.contains("grpc+tls://"), "{error}");
        }
    }

    #[test]
    fn databases_are_told_from_servers() {
        for text in ["grpc://h", "GRPC://h", "grpc+tls://h", "grpcs://h"] {
            assert!(is_server(text), "{text}");
        }
        for text in ["shop", "./grpc", "s3://grpc/x", "grpc", "grpc:/x"] {
            assert!(!is_server(text), "{text}");
        }
    }
}
