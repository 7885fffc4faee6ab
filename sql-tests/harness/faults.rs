//! A store that fails, answers slowly or is full, and a clock that can be set.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use headwater::job::clock::{Clock, SystemClock};
use lance_io::object_store::WrappingObjectStore;
use object_store::list::PaginatedListStore;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    RenameOptions, Result,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// "No space left on device".
const ENOSPC: i32 = 28;

/// What is wrong with a store. Clones are of one store.
#[derive(Debug, Clone)]
pub struct Faults(Arc<State>);

#[derive(Debug)]
struct State {
    random: Mutex<StdRng>,
    one_in: AtomicU64,
    least_millis: AtomicU64,
    most_millis: AtomicU64,
    is_full: AtomicBool,
    is_away: AtomicBool,
    failed: AtomicU64,
}

/// When a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It works.
    Works,
    /// Nothing has happened.
    Lost,
    /// What was asked for has happened, but whoever asked does not hear of it.
    Unheard,
}

impl Faults {
    /// A store without faults; chance is ruled by `seed`.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(State {
            random: Mutex::new(StdRng::seed_from_u64(seed)),
            one_in: AtomicU64::new(0),
            least_millis: AtomicU64::new(0),
            most_millis: AtomicU64::new(0),
            is_full: AtomicBool::new(false),
            is_away: AtomicBool::new(false),
            failed: AtomicU64::new(0),
        }))
    }

    /// One call in `calls` fails; none if that is 0.
    pub fn fail_one_in(&self, calls: u64) {
        self.0.one_in.store(calls, Ordering::Relaxed);
    }

    /// Each call takes so many milliseconds longer.
    pub fn delay(&self, least: u64, most: u64) {
        self.0.least_millis.store(least, Ordering::Relaxed);
        self.0.most_millis.store(most, Ordering::Relaxed);
    }

    /// Whether there is no space left.
    pub fn full(&self, is_full: bool) {
        self.0.is_full.store(is_full, Ordering::Relaxed);
    }

    /// Whether each call fails.
    pub fn away(&self, is_away: bool) {
        self.0.is_away.store(is_away, Ordering::Relaxed);
    }

    /// How many calls have failed.
    pub fn failed(&self) -> u64 {
        self.0.failed.load(Ordering::Relaxed)
    }

    fn random(&self, range: std::ops::RangeInclusive<u64>) -> u64 {
        let mut random = self.0.random.lock().unwrap_or_else(PoisonError::into_inner);
        random.random_range(range)
    }

    async fn fate(&self) -> Fate {
        let most = self.0.most_millis.load(Ordering::Relaxed);
        if most > 0 {
            let millis = self.random(self.0.least_millis.load(Ordering::Relaxed)..=most);
            tokio::time::sleep(Duration::from_millis(millis)).await;
        }
        if self.0.is_away.load(Ordering::Relaxed) {
            return Fate::Lost;
        }
        match self.0.one_in.load(Ordering::Relaxed) {
            0 => Fate::Works,
            one_in => match self.random(1..=one_in * 2) {
                1 => Fate::Lost,
                2 => Fate::Unheard,
                _ => Fate::Works,
            },
        }
    }

    /// A call that changes nothing.
    async fn read<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        match self.fate().await {
            Fate::Works => call.await,
            Fate::Lost | Fate::Unheard => Err(self.lost()),
        }
    }

    /// A call that changes something.
    async fn change<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        match self.fate().await {
            Fate::Works => call.await,
            Fate::Lost => Err(self.lost()),
            Fate::Unheard => {
                call.await?;
                Err(self.lost())
            }
        }
    }

    /// A call that needs space.
    async fn write<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        if self.0.is_full.load(Ordering::Relaxed) {
            return Err(generic(io::Error::from_raw_os_error(ENOSPC)));
        }
        self.change(call).await
    }

    fn lost(&self) -> Error {
        self.0.failed.fetch_add(1, Ordering::Relaxed);
        generic(io::Error::new(io::ErrorKind::TimedOut, "the test lost it"))
    }
}

fn generic(error: io::Error) -> Error {
    Error::Generic {
        store: "Faults",
        source: Box::new(error),
    }
}

impl WrappingObjectStore for Faults {
    fn wrap(&self, _: &str, original: Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
        Arc::new(FaultyStore {
            inner: original,
            faults: self.clone(),
        })
    }

    fn wrap_paginated(
        &self,
        _: &str,
        _: Arc<dyn PaginatedListStore>,
    ) -> Option<Arc<dyn PaginatedListStore>> {
        None
    }
}

#[derive(Debug)]
struct FaultyStore {
    inner: Arc<dyn ObjectStore>,
    faults: Faults,
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        let call = self.inner.put_opts(location, payload, opts);
        self.faults.write(call).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let call = self.inner.put_multipart_opts(location, opts);
        self.faults.write(call).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.faults
            .read(self.inner.get_opts(location, options))
            .await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let (inner, faults) = (Arc::clone(&self.inner), self.faults.clone());
        locations
            .and_then(move |location| {
                let (inner, faults) = (Arc::clone(&inner), faults.clone());
                async move {
                    faults.change(inner.delete(&location)).await?;
                    Ok(location)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let faults = self.faults.clone();
        let listing = self.inner.list(prefix);
        stream::once(async move { faults.read(async { Ok(listing) }).await })
            .try_flatten()
            .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.faults
            .read(self.inner.list_with_delimiter(prefix))
            .await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.faults
            .write(self.inner.copy_opts(from, to, options))
            .await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.faults
            .change(self.inner.rename_opts(from, to, options))
            .await
    }
}

/// The clock of this machine, set forward or back.
#[derive(Debug, Default)]
pub struct SetClock(AtomicI64);

impl SetClock {
    /// A clock that is `seconds` ahead.
    pub fn ahead(seconds: i64) -> Self {
        let clock = Self::default();
        clock.set(seconds);
        clock
    }

    /// From now on it is `seconds` ahead.
    pub fn set(&self, seconds: i64) {
        self.0.store(seconds * 1000, Ordering::Relaxed);
    }
}

impl Clock for SetClock {
    fn now_millis(&self) -> i64 {
        SystemClock.now_millis() + self.0.load(Ordering::Relaxed)
    }
}
