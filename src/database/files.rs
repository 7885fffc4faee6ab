//! The stores of files that statements name by URL.
//!
//! DataFusion reads and writes such files by itself, with a store that has to be registered before. It is
//! opened with the options of the database, where they are for a store of that kind; what they leave
//! open comes from the environment.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::common::DataFusionError;
use datafusion::datasource::listing::ListingTableUrl;
use datafusion::object_store::ObjectStore;
use datafusion_cli::object_storage::{
    AwsOptions, GcpOptions, get_gcs_object_store_builder, get_s3_object_store_builder,
};

use super::Database;
use crate::storage::refused;
use crate::{Error, Result};

impl Database {
    /// Registers the store that `path`, a path or URL, is in, if that is not done yet. Kinds of stores that
    /// are not known here are left alone.
    pub async fn register_store(&self, path: &str) -> Result<()> {
        let Ok(place) = ListingTableUrl::parse(path) else {
            // Who reads it says what is wrong.
            return Ok(());
        };
        let runtime = Arc::clone(self.session_state()?.runtime_env());
        let url = place.as_ref();
        if runtime.object_store_registry.get_store(url).is_ok() {
            return Ok(());
        }
        match place.scheme() {
            "s3" => {
                let options = s3_options(self.root().settings().options());
                let builder = get_s3_object_store_builder(url, &options, false).await;
                let store = builder.and_then(|builder| Ok(builder.build()?));
                let store = store.map_err(|error| cant_open(path, error.into()))?;
                runtime.register_object_store(url, Arc::new(store));
            }
            "gs" | "gcs" => {
                let builder = get_gcs_object_store_builder(url, &GcpOptions::default());
                let store = builder.and_then(|builder| Ok(builder.build()?));
                let store = store.map_err(|error| cant_open(path, error.into()))?;
                runtime.register_object_store(url, Arc::new(store));
            }
            _ => {}
        }
        Ok(())
    }

    /// Why the store that `path` is in does not say what is there; `None` if it does. DataFusion keeps that
    /// to itself: what it can't read is not there for it.
    pub async fn store_refusal(&self, path: &str) -> Option<Error> {
        let place = ListingTableUrl::parse(path).ok()?;
        // Other servers may have no listing.
        if !matches!(place.scheme(), "s3" | "gs" | "gcs") {
            return None;
        }
        let state = self.session_state().ok()?;
        let store = state.runtime_env().object_store(&place).ok()?;
        let listed = store.list_with_delimiter(Some(place.prefix())).await;
        let error = DataFusionError::from(listed.err()?);
        Some(refused(format!("'{path}'"), error.into()))
    }
}

fn cant_open(path: &str, error: Error) -> Error {
    refused(format!("can't open the store of '{path}'"), error)
}

/// The options of a database, as Lance names them, for files in S3.
fn s3_options(options: &HashMap<String, String>) -> AwsOptions {
    let mut known = AwsOptions::default();
    for (name, value) in options {
        let name = name.to_ascii_lowercase();
        let text = Some(value.clone());
        let flag = Some(matches!(
            value.to_ascii_lowercase().as_str(),
            "1" | "true" | "on" | "yes" | "y"
        ));
        match name.strip_prefix("aws_").unwrap_or(&name) {
            "access_key_id" => known.access_key_id = text,
            "secret_access_key" => known.secret_access_key = text,
            "session_token" | "token" => known.session_token = text,
            "region" | "default_region" => known.region = text,
            "endpoint" | "endpoint_url" => known.endpoint = text,
            "allow_http" => known.allow_http = flag,
            "skip_signature" => known.skip_signature = flag,
            _ => {}
        }
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_known_by_the_names_that_lance_has() {
        let options = [
            ("aws_access_key_id", "k"),
            ("AWS_SECRET_ACCESS_KEY", "s"),
            ("region", "eu-west-1"),
            ("aws_endpoint", "http://127.0.0.1:9000"),
            ("allow_http", "true"),
            ("google_service_account", "g"),
        ];
        let options = options.map(|(name, value)| (name.to_string(), value.to_string()));
        let known = s3_options(&options.into());
        assert_eq!(known.access_key_id.as_deref(), Some("k"));
        assert_eq!(known.secret_access_key.as_deref(), Some("s"));
        assert_eq!(known.region.as_deref(), Some("eu-west-1"));
        assert_eq!(known.endpoint.as_deref(), Some("http://127.0.0.1:9000"));
        assert_eq!(known.allow_http, Some(true));
        assert_eq!((known.session_token, known.skip_signature), (None, None));
    }
}
