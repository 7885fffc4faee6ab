//! What the work of a job runs in.

use std::sync::Arc;

use datafusion::execution::SessionState;
use tokio::runtime::Handle;

use super::jobs::Jobs;
use crate::database::Database;
use crate::engine::ballista::Cluster;

/// What the work of a job runs in.
#[derive(Debug, Clone)]
pub struct Environment {
    /// The database.
    pub database: Arc<Database>,
    /// The session, for planning.
    pub state: SessionState,
    /// The jobs of this process.
    pub jobs: Arc<Jobs>,
    /// Where rows are computed.
    pub workers: Handle,
}

impl Environment {
    /// The cluster that work is given to; `None` if it is done in this process.
    pub fn cluster(&self) -> Option<Arc<Cluster>> {
        self.state.config().get_extension::<Cluster>()
    }
}
