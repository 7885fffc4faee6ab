//! A store that is asked again when it does not answer.
//!
//! Stores behind HTTP repeat a request whose answer got lost, but not for ever, and not one whose
//! outcome they can't tell. Everything that goes through this layer, Lance's files as well as
//! Headwater's own, is asked for again a few times, with growing pauses; so a store that fails now and then
//! costs time, and one that is away for longer is an error.
//!
//! Invariant: an operation that succeeds here has happened exactly once. A file that must not be there yet
//! may be there after all because an earlier attempt has made it: then it has our content.

use std::future::Future;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use backon::{ExponentialBuilder, Retryable};
use bytes::Bytes;
use futures::stream::BoxStream;
use lance_io::object_store::WrappingObjectStore;
use object_store::list::PaginatedListStore;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    RenameOptions, Result,
};

use super::answer::refusal;

/// How often an operation is tried again.
const RETRIES: usize = 4;
/// An operation that has failed for so long is not tried again: the store has been patient itself.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes stores patient.
#[derive(Debug, Default)]
pub(super) struct Patient;

impl WrappingObjectStore for Patient {
    fn wrap(&self, _: &str, original: Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
        Arc::new(PatientStore(original))
    }

    fn wrap_paginated(
        &self,
        _: &str,
        original: Arc<dyn PaginatedListStore>,
    ) -> Option<Arc<dyn PaginatedListStore>> {
        Some(original)
    }
}

#[derive(Debug)]
struct PatientStore(Arc<dyn ObjectStore>);

impl std::fmt::Display for PatientStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for PatientStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        // Only its caller knows what a replacement that is refused now was up against.
        if matches!(opts.mode, PutMode::Update(_)) {
            return self.0.put_opts(location, payload, opts).await;
        }
        let is_retry = AtomicBool::new(false);
        patiently(|| async {
            let again = is_retry.swap(true, Ordering::Relaxed);
            let (payload, opts) = (payload.clone(), opts.clone());
            match self.0.put_opts(location, payload.clone(), opts).await {
                Err(error @ (Error::AlreadyExists { .. } | Error::Precondition { .. }))
                    if again =>
                {
                    match self.content(location).await? {
                        Some((found, made)) if found == Bytes::from(payload) => Ok(made),
                        _ => Err(error),
                    }
                }
                result => result,
            }
        })
        .await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        patiently(|| async { self.0.put_multipart_opts(location, opts.clone()).await }).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        patiently(|| async { self.0.get_opts(location, options.clone()).await }).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        patiently(|| async { self.0.get_ranges(location, ranges).await }).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.0.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        patiently(|| async { self.0.list_with_delimiter(prefix).await }).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.0.rename_opts(from, to, options).await
    }
}

impl PatientStore {
    /// What is in a file, and what whoever made it was told; `None` if it is gone.
    async fn content(&self, location: &Path) -> Result<Option<(Bytes, PutResult)>> {
        match self.0.get(location).await {
            Ok(found) => {
                let made = PutResult {
                    e_tag: found.meta.e_tag.clone(),
                    version: found.meta.version.clone(),
                    extensions: Default::default(),
                };
                Ok(Some((found.bytes().await?, made)))
            }
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Runs `attempt` until it succeeds or fails for good, a bounded number of times.
pub(super) async fn patiently<T, F, Fut>(attempt: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let started = Instant::now();
    attempt
        .retry(
            ExponentialBuilder::default()
                .with_min_delay(Duration::from_millis(50))
                .with_max_times(RETRIES)
                .with_jitter(),
        )
        .when(|error| is_transient(error) && started.elapsed() < PATIENCE)
        .await
}

/// Whether a second attempt may fare better.
fn is_transient(error: &Error) -> bool {
    let Error::Generic { source, .. } = error else {
        return false;
    };
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(source.as_ref());
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return matches!(
                error.kind(),
                io::ErrorKind::TimedOut
                    | io::ErrorKind::Interrupted
                    | io::ErrorKind::WouldBlock
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::NotConnected
                    | io::ErrorKind::BrokenPipe
                    | io::ErrorKind::HostUnreachable
                    | io::ErrorKind::NetworkUnreachable
                    | io::ErrorKind::NetworkDown
                    | io::ErrorKind::ResourceBusy
                    | io::ErrorKind::StaleNetworkFileHandle
                    | io::ErrorKind::UnexpectedEof
                    | io::ErrorKind::Other
            );
        }
        next = error.source();
    }
    !refusal(&source.to_string()).is_some_and(|refusal| refusal.is_final)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use object_store::memory::InMemory;

    use super::*;

    fn lost(kind: io::ErrorKind) -> Error {
        Error::Generic {
            store: "test",
            source: Box::new(io::Error::from(kind)),
        }
    }

    /// Loses the answer to the first attempts to write.
    #[derive(Debug)]
    struct Forgetful {
        inner: InMemory,
        left: AtomicUsize,
    }

    impl std::fmt::Display for Forgetful {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Forgetful")
        }
    }

    #[async_trait]
    impl ObjectStore for Forgetful {
        async fn put_opts(
            &self,
            location: &Path,
            payload: PutPayload,
            opts: PutOptions,
        ) -> Result<PutResult> {
            let result = self.inner.put_opts(location, payload, opts).await;
            let left = self.left.load(Ordering::Relaxed);
            self.left.store(left.saturating_sub(1), Ordering::Relaxed);
            match left {
                0 => result,
                _ => Err(lost(io::ErrorKind::TimedOut)),
            }
        }

        async fn put_multipart_opts(
            &self,
            location: &Path,
            opts: PutMultipartOptions,
        ) -> Result<Box<dyn MultipartUpload>> {
            self.inner.put_multipart_opts(location, opts).await
        }

        async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
            self.inner.get_opts(location, options).await
        }

        fn delete_stream(
            &self,
            locations: BoxStream<'static, Result<Path>>,
        ) -> BoxStream<'static, Result<Path>> {
            self.inner.delete_stream(locations)
        }

        fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
            self.inner.list(prefix)
        }

        async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
            self.inner.list_with_delimiter(prefix).await
        }

        async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
            self.inner.copy_opts(from, to, options).await
        }
    }

    fn store(left: usize) -> PatientStore {
        PatientStore(Arc::new(Forgetful {
            inner: InMemory::new(),
            left: AtomicUsize::new(left),
        }))
    }

    async fn create(store: &PatientStore, content: &'static str) -> Result<PutResult> {
        let create = PutOptions::from(PutMode::Create);
        store
            .put_opts(&Path::from("a"), content.into(), create)
            .await
    }

    #[tokio::test]
    async fn a_file_that_an_attempt_made_whose_answer_was_lost_is_ours() {
        let patient = store(2);
        create(&patient, "mine").await.unwrap();
        let error = create(&patient, "theirs").await.unwrap_err();
        assert!(matches!(error, Error::AlreadyExists { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_file_of_others_is_not_ours_after_a_lost_answer_either() {
        let forgetful = Forgetful {
            inner: InMemory::new(),
            left: AtomicUsize::new(1),
        };
        forgetful
            .inner
            .put(&Path::from("a"), "theirs".into())
            .await
            .unwrap();
        let error = create(&PatientStore(Arc::new(forgetful)), "mine")
            .await
            .unwrap_err();
        assert!(matches!(error, Error::AlreadyExists { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_store_that_is_away_is_an_error_in_the_end() {
        let error = create(&store(usize::MAX), "mine").await.unwrap_err();
        assert!(matches!(error, Error::Generic { .. }), "{error}");
    }

    #[test]
    fn what_will_not_get_better_is_not_tried_again() {
        for kind in [
            io::ErrorKind::StorageFull,
            io::ErrorKind::QuotaExceeded,
            io::ErrorKind::PermissionDenied,
            io::ErrorKind::ReadOnlyFilesystem,
        ] {
            assert!(!is_transient(&lost(kind)), "{kind:?}");
        }
        assert!(is_transient(&lost(io::ErrorKind::TimedOut)));
    }
}
