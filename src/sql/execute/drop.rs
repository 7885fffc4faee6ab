//! DROP TABLE and DROP VIEW.

use std::time::Instant;

use datafusion::prelude::DataFrame;

use super::Executor;
use super::report::Done;
use crate::sql::statement::{Drop, DropKind};
use crate::{Error, ErrorKind, Result};

impl Executor {
    pub(super) async fn drop_objects(&self, drop: Drop) -> Result<DataFrame> {
        let started = Instant::now();
        let statement = match drop.kind {
            DropKind::Table => "DROP TABLE",
            DropKind::View => "DROP VIEW",
            DropKind::MaterializedView => return self.drop_materialized_views(drop).await,
        };
        let mut names = Vec::new();
        for reference in &drop.names {
            let name = self.name_of(reference)?;
            if self.is_droppable(&name, drop.kind).await? {
                names.push(name);
            } else if drop.if_exists {
                self.notice(format!("'{name}' does not exist; nothing was done"));
            } else {
                return Err(self.nothing_to_drop(&name, drop.kind).await?);
            }
        }
        // Everything is checked before anything is dropped.
        let mut dependents = Vec::new();
        for name in &names {
            for view in self.database.views_reading(name).await? {
                if !names.contains(&view) && !dependents.contains(&view) {
                    dependents.push(view);
                }
            }
        }
        if !dependents.is_empty() && !drop.cascade {
            return Err(Error::new(
                ErrorKind::Dependents,
                format!(
                    "'{}' can't be dropped: view '{}' reads it",
                    names.join("', '"),
                    dependents.join("', '")
                ),
            )
            .with_hint("DROP … CASCADE drops them too"));
        }
        let mut done = Vec::new();
        for view in dependents {
            self.database.remove_view(&view).await?;
            done.push(Done::altered("DROP VIEW", view, None));
        }
        for name in names {
            match drop.kind {
                DropKind::View => self.database.remove_view(&name).await?,
                DropKind::Table if self.database.remove_session_table(&name) => {}
                DropKind::Table | DropKind::MaterializedView => {
                    self.database.root().remove_table(&name).await?
                }
            }
            done.push(Done::altered(statement, name, None));
        }
        self.done(done, started)
    }

    async fn is_droppable(&self, name: &str, kind: DropKind) -> Result<bool> {
        Ok(match kind {
            DropKind::View => self.database.view(name).await?.is_some(),
            DropKind::MaterializedView => self.database.root().has_table(name).await?,
            DropKind::Table => {
                self.database.session_table(name).is_some()
                    || self.database.root().has_table(name).await?
            }
        })
    }

    async fn nothing_to_drop(&self, name: &str, kind: DropKind) -> Result<Error> {
        let other = match kind {
            DropKind::View if self.database.root().has_table(name).await? => Some("TABLE"),
            DropKind::Table if self.database.view(name).await?.is_some() => Some("VIEW"),
            _ => None,
        };
        if let Some(other) = other {
            return Ok(
                Error::invalid(format!("'{name}' is a {}", other.to_lowercase()))
                    .with_hint(format!("DROP {other} {name}")),
            );
        }
        let (what, known) = match kind {
            DropKind::View => ("view", self.database.view_names().await?),
            DropKind::Table | DropKind::MaterializedView => {
                ("table", self.database.root().table_names().await?)
            }
        };
        Ok(Error::not_found(
            what,
            name,
            known.iter().map(String::as_str),
        ))
    }
}
