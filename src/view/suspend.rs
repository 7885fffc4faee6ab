//! Suspends a view for a reason: one that fails again and again is not tried for ever.

use super::refresh::open_view;
use crate::Result;
use crate::database::Database;
use crate::database::materialized_view::MATERIALIZED_VIEW;
use crate::storage::schema::{MetadataChanges, change_metadata};
use crate::storage::{Properties, with_retries};

/// Suspends the view whose definition has the id `definition`, as `ALTER MATERIALIZED VIEW … SUSPEND` does, and writes down
/// why. Does nothing, and gives false, if it is suspended already or is another one by now.
///
/// # Errors
///
/// If the view can't be opened or changed.
pub async fn suspend(
    database: &Database,
    view: &str,
    definition: &str,
    because: &str,
) -> Result<bool> {
    with_retries(|| async {
        let (table, mut found) = open_view(database, view).await?;
        if found.suspended || found.id != definition {
            return Ok(false);
        }
        found.suspended = true;
        found.suspended_because = Some(because.to_string());
        let changes = MetadataChanges::from([(MATERIALIZED_VIEW.to_string(), Some(found.text()?))]);
        let none = Default::default();
        change_metadata(view, &table.dataset, none, changes, Properties::new()).await?;
        database.store_materialized_view(view, &found).await?;
        Ok(true)
    })
    .await
}
