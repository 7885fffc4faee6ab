//! The root of a database: where its tables and Headwater's own files are.
//!
//! Tables are folders `<name>.lance` directly below the root, as LanceDB lays
//! them out; Headwater's own files are below `_headwater/`.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use lance::Dataset;
use lance::io::ObjectStore;
use lance::session::Session;
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStoreExt};

use super::blob::BlobReader;
use super::open;
use super::open::store_error;
use super::patience::patiently;
use super::store::StoreSettings;
use crate::{Error, ErrorKind, Result};

const TABLE_SUFFIX: &str = ".lance";
const OWN_FOLDER: &str = "_headwater";
/// What the name of a local file contains that is being written: it gets its own name when it is whole.
const UNFINISHED: &str = ".tmp.";
const A_PLACE: &str = "give a folder, or a URL such as s3://bucket/path; credentials come from the \
                       environment or from --option";
/// How long a store may take to answer when a database is opened.
const FIRST_ANSWER: Duration = Duration::from_secs(20);
/// Bytes of decoded index pages that all tables of a database may keep in memory.
const INDEX_CACHE_BYTES: usize = 256 << 20;
/// Bytes of manifests and file footers that all tables of a database may keep in memory.
const METADATA_CACHE_BYTES: usize = 128 << 20;
/// Bytes of each of the caches of somebody who commits.
const COMMIT_CACHE_BYTES: usize = 4 << 20;

/// One of Headwater's own files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnFile {
    /// Its name in its folder.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// When it was written, in milliseconds since 1970, UTC.
    pub modified_millis: i64,
}

/// A place that holds a database: a local folder or a prefix of an object store.
pub struct Root {
    url: String,
    settings: StoreSettings,
    store: Arc<ObjectStore>,
    base: Path,
    session: RwLock<Arc<Session>>,
    blobs: Arc<BlobReader>,
}

impl std::fmt::Debug for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Storage options hold credentials.
        f.debug_struct("Root").field("url", &self.url).finish()
    }
}

impl Root {
    /// Opens the root at `url` (a folder, or a URL with a scheme). Nothing is created; a store behind a
    /// network is asked whether it answers.
    ///
    /// # Errors
    ///
    /// If the URL can't be understood, or is a file; if a store does not answer, or refuses.
    pub async fn open(url: &str, settings: StoreSettings) -> Result<Self> {
        let url = absolute(url)?;
        let session = new_session();
        let parameters = settings.params(&url);
        let (store, base) =
            ObjectStore::from_uri_and_params(session.store_registry(), &url, &parameters)
                .await
                .map_err(|error| cant_open(&url, error))?;
        if is_remote(&store) {
            first_answer(&url, &store, &base).await?;
        }
        let blobs = BlobReader::new(settings.clone(), Arc::clone(&session));
        Ok(Self {
            url,
            settings,
            store,
            base,
            session: RwLock::new(session),
            blobs: Arc::new(blobs),
        })
    }

    /// The absolute URL or folder.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// How its store, and others that a statement names, are opened.
    pub fn settings(&self) -> &StoreSettings {
        &self.settings
    }

    /// The Lance session whose caches all tables of this database share.
    pub fn session(&self) -> Arc<Session> {
        Arc::clone(&self.session.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the blobs of tables.
    pub fn blobs(&self) -> &Arc<BlobReader> {
        &self.blobs
    }

    /// Forgets what is cached. Some of Lance's caches know a version of a table by its number alone,
    /// and a table that is made anew counts from 1 again.
    pub fn forget(&self) {
        let session = new_session();
        self.blobs.forget(Arc::clone(&session));
        *self.session.write().unwrap_or_else(PoisonError::into_inner) = session;
    }

    /// Whether the database is in a local folder.
    pub fn is_local(&self) -> bool {
        self.store.is_local()
    }

    /// The URI of a table.
    pub fn table_uri(&self, name: &str) -> String {
        format!("{}/{name}{TABLE_SUFFIX}", self.url.trim_end_matches('/'))
    }

    /// Opens a table at its newest version, or at `version`.
    pub async fn open_table(&self, name: &str, version: Option<u64>) -> Result<Dataset> {
        open(
            &self.table_uri(name),
            version,
            &self.settings,
            Some(self.session()),
        )
        .await
    }

    /// Opens a table at its newest version for somebody who commits more than once. What comes of that has caches of its
    /// own, which hold little: the manifest of each version would stay in those of the database, and nobody reads it.
    pub async fn open_for_commits(&self, name: &str) -> Result<Dataset> {
        let registry = self.session().store_registry();
        let session = Session::new(COMMIT_CACHE_BYTES, COMMIT_CACHE_BYTES, registry);
        let (uri, session) = (self.table_uri(name), Some(Arc::new(session)));
        open(&uri, None, &self.settings, session).await
    }

    /// Whether a table of that name is there, by its folder of versions.
    pub async fn has_table(&self, name: &str) -> Result<bool> {
        let versions = self.table_path(name).join("_versions");
        let mut listing = self.store.list(Some(versions));
        match listing.try_next().await {
            Ok(first) => Ok(first.is_some()),
            Err(error) => Err(store_error(
                format!("can't look for table '{name}' in '{}'", self.url),
                error,
            )),
        }
    }

    /// Names of all tables, sorted.
    pub async fn table_names(&self) -> Result<Vec<String>> {
        let listing = match self.store.list_with_delimiter(Some(&self.base)).await {
            Ok(listing) => listing,
            Err(error) if is_not_found(&error) => return Ok(Vec::new()),
            Err(error) => {
                return Err(store_error(
                    format!("can't list the tables of '{}'", self.url),
                    error,
                ));
            }
        };
        let mut names: Vec<String> = listing
            .common_prefixes
            .iter()
            .filter_map(|path| path.filename())
            .filter_map(|name| name.strip_suffix(TABLE_SUFFIX))
            .map(str::to_string)
            .collect();
        names.sort();
        Ok(names)
    }

    /// Removes a table with all its versions.
    pub async fn remove_table(&self, name: &str) -> Result<()> {
        self.forget();
        self.store
            .remove_dir_all(self.table_path(name))
            .await
            .map_err(|error| store_error(format!("can't remove table '{name}'"), error))
    }

    /// Gives a table another name. In a local folder this is one rename; in an object
    /// store every object is copied and the old ones are removed afterwards, so that a
    /// crash in between leaves the table under its old name.
    pub async fn rename_table(&self, from: &str, to: &str) -> Result<()> {
        self.forget();
        if self.is_local() {
            let (from_folder, to_folder) = (self.table_uri(from), self.table_uri(to));
            let renamed = tokio::fs::rename(local_path(&from_folder), local_path(&to_folder)).await;
            return renamed.map_err(|error| {
                Error::new(
                    ErrorKind::Storage,
                    format!("can't rename table '{from}' to '{to}': {error}"),
                )
                .with_source(error)
            });
        }
        let (from_path, to_path) = (self.table_path(from), self.table_path(to));
        let failed = |error| store_error(format!("can't rename table '{from}' to '{to}'"), error);
        let objects = self.store.list(Some(from_path.clone()));
        let objects: Vec<_> = objects.try_collect().await.map_err(failed)?;
        // Versions last: the table is there under its new name only when it is whole.
        let (versions, rest): (Vec<_>, Vec<_>) = objects
            .into_iter()
            .partition(|object| object.location.as_ref().contains("/_versions/"));
        for object in rest.into_iter().chain(versions) {
            let Some(parts) = object.location.prefix_match(&from_path) else {
                continue;
            };
            let target = Path::from_iter(to_path.parts().chain(parts));
            let copied = self.store.copy(&object.location, &target).await;
            copied.map_err(failed)?;
        }
        self.remove_table(from).await
    }

    /// Reads one of Headwater's own files; `None` if it is not there.
    pub async fn read_own(&self, path: &str) -> Result<Option<Bytes>> {
        match self.store.inner.get(&self.own_path(path)).await {
            Ok(found) => {
                let bytes = found.bytes().await;
                Ok(Some(bytes.map_err(|error| own_error(path, error))?))
            }
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(own_error(path, error)),
        }
    }

    /// Makes one of Headwater's own files, whole or not at all. Returns false, and
    /// changes nothing, if it is there already.
    pub async fn create_own(&self, path: &str, content: impl Into<Bytes>) -> Result<bool> {
        let content: Bytes = content.into();
        match self
            .store
            .put_if_absent(&self.own_path(path), content.into())
            .await
        {
            Ok(()) => Ok(true),
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => Ok(false),
            Err(error) => Err(own_error(path, error)),
        }
    }

    /// Writes one of Headwater's own files, replacing what is there.
    pub async fn replace_own(&self, path: &str, content: impl Into<Bytes>) -> Result<()> {
        let content: Bytes = content.into();
        self.store
            .inner
            .put(&self.own_path(path), content.into())
            .await
            .map_err(|error| own_error(path, error))?;
        Ok(())
    }

    /// Removes one of Headwater's own files; it is no error if it is not there.
    pub async fn remove_own(&self, path: &str) -> Result<()> {
        self.remove(&self.own_path(path))
            .await
            .map_err(|error| own_error(path, error))
    }

    /// Names of Headwater's own files directly below `folder`, sorted.
    pub async fn list_own(&self, folder: &str) -> Result<Vec<String>> {
        let files = self.list_own_files(folder).await?;
        let names = files.into_iter().map(|file| file.name);
        Ok(names.filter(|name| !name.contains(UNFINISHED)).collect())
    }

    /// Headwater's own files directly below `folder`, by name.
    pub async fn list_own_files(&self, folder: &str) -> Result<Vec<OwnFile>> {
        let path = self.own_path(folder);
        let listing = match self.store.list_with_delimiter(Some(&path)).await {
            Ok(listing) => listing,
            Err(error) if is_not_found(&error) => return Ok(Vec::new()),
            Err(error) => return Err(own_error(folder, error)),
        };
        let mut files: Vec<OwnFile> = listing
            .objects
            .iter()
            .filter_map(|object| {
                Some(OwnFile {
                    name: object.location.filename()?.to_string(),
                    bytes: object.size,
                    modified_millis: object.last_modified.timestamp_millis(),
                })
            })
            .collect();
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(files)
    }

    /// Removes one of Headwater's own folders with all that is in it; it is no error if it is not there.
    pub async fn remove_own_folder(&self, folder: &str) -> Result<()> {
        let path = self.own_path(folder);
        if self.is_local() {
            let local = self.local_own(folder);
            return match tokio::fs::remove_dir_all(&local).await {
                Ok(()) => Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(Error::new(
                    ErrorKind::Storage,
                    format!("can't remove '{}': {error}", local.display()),
                )
                .with_source(error)),
            };
        }
        let mut objects = self.store.list(Some(path));
        while let Some(object) = objects
            .try_next()
            .await
            .map_err(|error| own_error(folder, error))?
        {
            self.remove(&object.location)
                .await
                .map_err(|error| own_error(folder, error))?;
        }
        Ok(())
    }

    /// Removes a file, which may be gone already.
    async fn remove(&self, path: &Path) -> Result<(), StoreError> {
        match patiently(|| async { self.store.inner.delete(path).await }).await {
            Err(StoreError::NotFound { .. }) => Ok(()),
            removed => removed,
        }
    }

    /// Removes those of Headwater's own files directly below `folder` whose names begin with `prefix`, also
    /// what processes left that died while they wrote them.
    pub async fn remove_own_files(&self, folder: &str, prefix: &str) -> Result<()> {
        let mut names: Vec<String> = Vec::new();
        if self.is_local() {
            // A listing of the store leaves out what is not whole.
            if let Ok(mut entries) = tokio::fs::read_dir(self.local_own(folder)).await {
                while let Ok(Some(entry)) = entries.next_entry().await {
                    names.extend(entry.file_name().into_string().ok());
                }
            }
            for name in names.iter().filter(|name| name.starts_with(prefix)) {
                // It may be gone by now.
                let _ = tokio::fs::remove_file(self.local_own(folder).join(name)).await;
            }
            return Ok(());
        }
        for name in self.list_own(folder).await? {
            if name.starts_with(prefix) {
                self.remove_own(&format!("{folder}/{name}")).await?;
            }
        }
        Ok(())
    }

    /// Where one of Headwater's own folders is on this machine.
    fn local_own(&self, folder: &str) -> std::path::PathBuf {
        std::path::Path::new(local_path(&self.url))
            .join(OWN_FOLDER)
            .join(folder)
    }

    fn table_path(&self, name: &str) -> Path {
        self.base.clone().join(format!("{name}{TABLE_SUFFIX}"))
    }

    fn own_path(&self, path: &str) -> Path {
        path.split('/')
            .fold(self.base.clone().join(OWN_FOLDER), |base, part| {
                base.join(part)
            })
    }
}

/// What is cached of the tables that a process has open.
pub(super) fn new_session() -> Arc<Session> {
    Arc::new(Session::new(
        INDEX_CACHE_BYTES,
        METADATA_CACHE_BYTES,
        Default::default(),
    ))
}

/// Whether a store is behind a network.
fn is_remote(store: &ObjectStore) -> bool {
    store.is_cloud() && !store.scheme().starts_with("file")
}

/// Asks a store that may be anywhere for a little: what is wrong with its name or the credentials is said
/// once and soon, and not by every statement in its own way.
async fn first_answer(url: &str, store: &ObjectStore, base: &Path) -> Result<()> {
    let own = base.clone().join(OWN_FOLDER);
    match tokio::time::timeout(FIRST_ANSWER, store.list_with_delimiter(Some(&own))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) if is_not_found(&error) => Ok(()),
        Ok(Err(error)) => Err(cant_open(url, error)),
        Err(_) => Err(Error::new(
            ErrorKind::Storage,
            format!(
                "can't open the database '{url}': the store has not answered for {} seconds",
                FIRST_ANSWER.as_secs()
            ),
        )
        .with_hint("check the endpoint and the network")),
    }
}

fn cant_open(url: &str, error: lance::Error) -> Error {
    let failed = format!("can't open the database '{url}'");
    let (scheme, _) = url.split_once("://").unwrap_or(("", url));
    let feature = match scheme {
        "s3" => Some("s3"),
        "gs" => Some("gcs"),
        "az" | "abfss" => Some("azure"),
        _ => None,
    };
    if error.to_string().contains("No object store provider") {
        let ours = Error::new(
            ErrorKind::Storage,
            format!("{failed}: this build knows no store of the kind '{scheme}'"),
        )
        .with_source(error);
        return match feature {
            Some(feature) => ours.with_hint(format!("build it with --features {feature}")),
            None => ours.with_hint(A_PLACE),
        };
    }
    let ours = store_error(failed, error);
    match ours.hint() {
        Some(_) => ours,
        None => ours.with_hint(A_PLACE),
    }
}

/// The error for one of Headwater's own files or folders.
fn own_error(path: &str, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    store_error(format!("'{OWN_FOLDER}/{path}'"), error)
}

fn is_not_found(error: &lance::Error) -> bool {
    matches!(error, lance::Error::NotFound { .. })
        || error.to_string().to_lowercase().contains("no such file")
}

/// The folder behind a local URI.
fn local_path(uri: &str) -> &str {
    uri.strip_prefix("file://").unwrap_or(uri)
}

/// Makes a local folder absolute, so that the database does not move when the
/// process changes its working directory; leaves URLs alone.
fn absolute(url: &str) -> Result<String> {
    if url.is_empty() {
        return Err(Error::invalid("the database's path is empty"));
    }
    if url.contains("://") && !url.starts_with("file://") {
        // What has no bucket is shown as it was written.
        let trimmed = url.trim_end_matches('/');
        let has_place = trimmed.contains("://");
        return Ok(if has_place { trimmed } else { url }.to_string());
    }
    let path = local_path(url);
    let absolute = std::path::absolute(path).map_err(|error| {
        Error::invalid(format!("'{path}' is not a usable path: {error}")).with_source(error)
    })?;
    if absolute.is_file() {
        return Err(
            Error::invalid(format!("the database '{path}' is a file, not a folder"))
                .with_hint("name a folder; it is made when the first table is"),
        );
    }
    match absolute.to_str() {
        Some(text) if text.len() > 1 => Ok(text.trim_end_matches('/').to_string()),
        Some(text) => Ok(text.to_string()),
        None => Err(Error::invalid(format!("'{path}' is not valid UTF-8"))),
    }
}
