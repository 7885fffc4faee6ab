//! What a store behind HTTP answered when it refused, in our terms.
//!
//! `object_store` keeps the status and the body of an answer to itself, but prints them; so they are read from
//! the text of its errors. What is not recognised stays as it is.

use std::sync::LazyLock;

use regex::Regex;

/// Why a store did not do what it was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The reason, without names of objects.
    pub(super) what: String,
    /// What helps.
    pub(super) mend: Option<&'static str>,
    /// Whether a second attempt would end the same way.
    pub(super) is_final: bool,
}

const CREDENTIALS: &str = "check the credentials, which come from the environment or from --option, and the rights \
                           of the account";
const REGION: &str = "check the region (--option aws_region=…) and the endpoint";
const BUCKET: &str = "make the bucket, or check its name, the endpoint and the region";
const ENDPOINT: &str = "check the endpoint (--option aws_endpoint=…) and the network";
const PLAIN_HTTP: &str = "for an endpoint without TLS, give --option allow_http=true";

const LATER: &str = "run the statement again later; what is finished is kept";

/// The refusal that `text`, an error of a store, tells of.
pub(super) fn refusal(text: &str) -> Option<Refusal> {
    if let Some(status) = found(&STATUS, text) {
        return Some(answered(&status, text));
    }
    let lower = text.to_lowercase();
    let has = |part: &str| lower.contains(part);
    if has("without location") {
        return Some(Refusal::last(
            "the store sends us elsewhere".to_string(),
            REGION,
        ));
    }
    if has("credentials") && (has("failed to") || has("error getting") || has("not loaded")) {
        return Some(Refusal::last(
            "no credentials were found for the store".to_string(),
            CREDENTIALS,
        ));
    }
    if has("resolve region") || has("parse the region") {
        return Some(Refusal::last(
            "the region of the bucket can't be found out".to_string(),
            REGION,
        ));
    }
    if has("http error: builder error") {
        return Some(Refusal::last(
            "the store's endpoint can't be asked in this way".to_string(),
            match has("http://") {
                true => PLAIN_HTTP,
                false => ENDPOINT,
            },
        ));
    }
    if has("http error:") {
        let endpoint = found(&ENDPOINT_OF, text).unwrap_or_else(|| "its endpoint".to_string());
        return Some(Refusal {
            what: format!("the store does not answer at {endpoint}"),
            mend: Some(ENDPOINT),
            is_final: false,
        });
    }
    None
}

impl Refusal {
    fn last(what: String, mend: &'static str) -> Self {
        Self {
            what,
            mend: Some(mend),
            is_final: true,
        }
    }
}

/// What an answer with a status that is no success says.
fn answered(status: &str, text: &str) -> Refusal {
    let code = found(&CODE, text).unwrap_or_default();
    let message = found(&MESSAGE, text).unwrap_or_default();
    let reason = match (message.is_empty(), code.is_empty()) {
        (false, false) => format!("{} ({code})", message.trim_end_matches('.')),
        (true, false) => code.clone(),
        _ => status.to_string(),
    };
    let mend = match code.as_str() {
        "NoSuchBucket" => Some(BUCKET),
        "PermanentRedirect"
        | "AuthorizationHeaderMalformed"
        | "IllegalLocationConstraintException" => Some(REGION),
        _ if status.starts_with("401") || status.starts_with("403") => Some(CREDENTIALS),
        // Not in the words of S3, where the place itself was asked for.
        "" if status.starts_with("404") => Some(ENDPOINT),
        _ if status.starts_with('5') || status.starts_with("429") => Some(LATER),
        _ => None,
    };
    let what = match found(&BUCKET_NAME, text) {
        Some(bucket) if code == "NoSuchBucket" => format!("there is no bucket '{bucket}'"),
        _ => format!("the store refuses: {reason}"),
    };
    // What may be otherwise soon: a time-out, a conflict with another request, too many requests.
    let may_pass = ["408", "409", "429"]
        .iter()
        .any(|passing| status.starts_with(passing));
    Refusal {
        what,
        mend,
        is_final: status.starts_with('4') && !may_pass,
    }
}

type Pattern = LazyLock<Option<Regex>>;

static STATUS: Pattern = LazyLock::new(|| Regex::new(r"non-2xx status code: (\d{3}[^:\n]*)").ok());
static CODE: Pattern = LazyLock::new(|| Regex::new(r"<Code>([^<]*)</Code>").ok());
static MESSAGE: Pattern = LazyLock::new(|| Regex::new(r"<Message>([^<]*)</Message>").ok());
static BUCKET_NAME: Pattern =
    LazyLock::new(|| Regex::new(r"<BucketName>([^<]*)</BucketName>").ok());
static ENDPOINT_OF: Pattern = LazyLock::new(|| Regex::new(r"(https?://[^/\s]+)").ok());

fn found(pattern: &Pattern, text: &str) -> Option<String> {
    let captures = pattern.as_ref()?.captures(text)?;
    Some(captures.get(1)?.as_str().trim().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: &str, body: &str) -> Refusal {
        refusal(&format!(
            "Generic S3 error: Error performing list request: Error performing GET \
             http://127.0.0.1:9000/shop?list-type=2 in 9ms - Server returned non-2xx status code: {status}: {body}"
        ))
        .unwrap()
    }

    #[test]
    fn a_bucket_that_is_not_there_is_named() {
        let body = "<Error><Code>NoSuchBucket</Code><Message>The specified bucket does not exist</Message>\
                    <BucketName>shop</BucketName></Error>";
        let refusal = answer("404 Not Found", body);
        assert_eq!(refusal.what, "there is no bucket 'shop'");
        assert_eq!(refusal.mend, Some(BUCKET));
        assert!(refusal.is_final);
    }

    #[test]
    fn wrong_credentials_are_said_in_the_words_of_the_store() {
        let body = "<Error><Code>InvalidAccessKeyId</Code><Message>The key is not known.</Message></Error>";
        let refusal = answer("403 Forbidden", body);
        assert_eq!(
            refusal.what,
            "the store refuses: The key is not known (InvalidAccessKeyId)"
        );
        assert_eq!(refusal.mend, Some(CREDENTIALS));
        assert!(refusal.is_final);
    }

    #[test]
    fn what_may_pass_is_not_final() {
        for status in [
            "429 Too Many Requests",
            "503 Service Unavailable",
            "409 Conflict",
        ] {
            assert!(!answer(status, "").is_final, "{status}");
        }
        let away = "Error performing GET http://127.0.0.1:1/shop in 6ms, after 3 retries, max_retries: 3, \
                    retry_timeout: 180s  - HTTP error: error sending request";
        let refusal = refusal(away).unwrap();
        assert_eq!(
            refusal.what,
            "the store does not answer at http://127.0.0.1:1"
        );
        assert!(!refusal.is_final);
    }

    #[test]
    fn http_without_tls_has_to_be_allowed() {
        let text =
            "Error performing GET http://127.0.0.1:9000/shop in 73.5µs - HTTP error: builder error";
        let refusal = refusal(text).unwrap();
        assert_eq!(refusal.mend, Some(PLAIN_HTTP));
        assert!(refusal.is_final);
    }

    #[test]
    fn credentials_that_are_missing_are_asked_for() {
        let text =
            "Generic N/A error: LanceError(IO): Failed to get AWS credentials: ProviderError(…)";
        assert_eq!(refusal(text).unwrap().mend, Some(CREDENTIALS));
    }

    #[test]
    fn other_errors_stay_as_they_are() {
        assert_eq!(refusal("No space left on device"), None);
    }
}
