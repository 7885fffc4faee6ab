//! How stores are opened: the options, and what is put around each.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use lance_io::object_store::{
    ChainedWrappingObjectStore, ObjectStoreParams, StorageOptionsAccessor, WrappingObjectStore,
};

use super::patience::Patient;

/// How the stores of a database are opened.
#[derive(Clone)]
pub struct StoreSettings {
    options: HashMap<String, String>,
    wrapper: Option<Arc<dyn WrappingObjectStore>>,
    /// For stores that may be away for a moment. One for all: Lance tells stores apart by it.
    patient: Arc<dyn WrappingObjectStore>,
}

impl fmt::Debug for StoreSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Storage options hold credentials.
        f.debug_struct("StoreSettings").finish_non_exhaustive()
    }
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self::new(HashMap::new(), None)
    }
}

impl StoreSettings {
    /// With `options`, as Lance names them, and with `wrapper` put around each store.
    pub fn new(
        options: HashMap<String, String>,
        wrapper: Option<Arc<dyn WrappingObjectStore>>,
    ) -> Self {
        let mut chain: Vec<Arc<dyn WrappingObjectStore>> = wrapper.iter().cloned().collect();
        chain.push(Arc::new(Patient));
        Self {
            options,
            wrapper,
            patient: Arc::new(ChainedWrappingObjectStore::new(chain)),
        }
    }

    /// Options of the object store.
    pub fn options(&self) -> &HashMap<String, String> {
        &self.options
    }

    /// The parameters for the store at `uri`.
    pub(super) fn params(&self, uri: &str) -> ObjectStoreParams {
        // An error of a disk is one; and Lance reads and writes local files past any store.
        let is_local = uri.starts_with("file://") || !uri.contains("://");
        let options = self.options.clone();
        ObjectStoreParams {
            object_store_wrapper: match is_local {
                true => self.wrapper.clone(),
                false => Some(Arc::clone(&self.patient)),
            },
            storage_options_accessor: (!options.is_empty())
                .then(|| Arc::new(StorageOptionsAccessor::with_static_options(options))),
            ..Default::default()
        }
    }
}
