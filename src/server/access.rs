//! Who may use the server: the bearer token.
//!
//! It is looked at before any service of the port sees a request.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Status};

use crate::Error;
use crate::protocol::status_of;

/// The header that carries the token.
pub(super) const AUTHORIZATION: &str = "authorization";

/// Lets requests through that bring the token.
#[derive(Clone)]
pub(super) struct Access {
    /// Of the token, so that how long a comparison takes tells nothing of it; `None` lets everybody in.
    digest: Option<[u8; 32]>,
}

impl Access {
    /// Asks for `token`, if there is one.
    pub(super) fn new(token: Option<&str>) -> Self {
        Self {
            digest: token.map(|token| Sha256::digest(token).into()),
        }
    }

    /// Lets a request through, or refuses it.
    pub(super) fn check(&self, request: Request<()>) -> Result<Request<()>, Status> {
        let Some(digest) = self.digest else {
            return Ok(request);
        };
        let refuse = |message: &str| {
            let error = Error::invalid(message).with_hint(
                "the headwater command takes the token of --token or HEADWATER_TOKEN; other clients send the header 'authorization: Bearer …'",
            );
            Err(status_of(Code::Unauthenticated, &error))
        };
        match token(request.metadata()) {
            Some(token) if <[u8; 32]>::from(Sha256::digest(&token)) == digest => Ok(request),
            Some(_) => refuse("the server does not take this token"),
            None => refuse("the server asks for a token"),
        }
    }
}

/// The token of a request: a bearer token, or the password of a client that knows only passwords.
pub(super) fn token(metadata: &MetadataMap) -> Option<String> {
    let header = metadata.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, value) = header.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(value.trim().to_string());
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let text = String::from_utf8(BASE64_STANDARD.decode(value.trim()).ok()?).ok()?;
        return text
            .split_once(':')
            .map(|(_, password)| password.to_string());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(access: &Access, header: Option<&str>) -> Result<(), Status> {
        let mut request = Request::new(());
        if let Some(header) = header {
            let value = header.parse().unwrap();
            request.metadata_mut().insert(AUTHORIZATION, value);
        }
        access.check(request).map(|_| ())
    }

    #[test]
    fn the_token_opens_and_nothing_else_does() {
        let access = Access::new(Some("secret"));
        ask(&access, Some("Bearer secret")).unwrap();
        ask(&access, Some("bearer secret")).unwrap();
        // Any user with the token as password.
        ask(&access, Some("Basic YW55OnNlY3JldA==")).unwrap();
        for wrong in [
            "Bearer",
            "Bearer Secret",
            "Bearer ",
            "secret",
            "Basic secret",
            "Basic YW55",
        ] {
            let status = ask(&access, Some(wrong)).unwrap_err();
            assert_eq!(status.code(), Code::Unauthenticated, "{wrong}");
        }
        let status = ask(&access, None).unwrap_err();
        assert!(status.message().contains("HEADWATER_TOKEN"), "{status}");
    }

    #[test]
    fn without_a_token_all_are_let_in() {
        ask(&Access::new(None), None).unwrap();
        ask(&Access::new(None), Some("Bearer any")).unwrap();
    }
}
