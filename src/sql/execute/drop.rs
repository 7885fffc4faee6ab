//! DROP TABLE and DROP VIEW.

use std::time::Instant;

use datafusion::prelude::DataFrame;

use super::Executor;
use super::report::Done;
use crate::database::view::Reader;
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
            let is_of_session = self.database.session_table(&name).is_some();
            if drop.kind == DropKind::Table
                && !is_of_session
                && self.database.materialized_view(&name).await?.is_some()
            {
                return Err(Error::invalid(format!("'{name}' is a materialized view"))
                    .with_hint(format!("DROP MATERIALIZED VIEW {name}")));
            }
            if self.is_droppable(&name, drop.kind).await? {
                names.push(name);
            } else if drop.if_exists {
                self.notice(format!("'{name}' does not exist; nothing was done"));
            } else {
                return Err(self.nothing_to_drop(&name, drop.kind).await?);
            }
        }
        self.drop_with_dependents(statement, names, drop.cascade, started)
            .await
    }

    /// Drops objects, and with CASCADE what reads them. Everything is checked before anything is dropped.
    pub(super) async fn drop_with_dependents(
        &self,
        statement: &'static str,
        names: Vec<String>,
        cascade: bool,
        started: Instant,
    ) -> Result<DataFrame> {
        let mut dependents: Vec<Reader> = Vec::new();
        for name in &names {
            for reader in self.database.readers_of(name).await? {
                if !names.contains(&reader.name) && !dependents.contains(&reader) {
                    dependents.push(reader);
                }
            }
        }
        if !dependents.is_empty() && !cascade {
            let readers: Vec<String> = dependents.iter().map(ToString::to_string).collect();
            return Err(Error::new(
                ErrorKind::Dependents,
                format!(
                    "'{}' can't be dropped: {} reads it",
                    names.join("', '"),
                    readers.join(", ")
                ),
            )
            .with_hint("DROP … CASCADE drops them too"));
        }
        let mut done = Vec::new();
        // Those that read others go first.
        for reader in dependents.into_iter().rev() {
            self.remove_reader(&reader).await?;
            let statement = match reader.is_materialized {
                true => "DROP MATERIALIZED VIEW",
                false => "DROP VIEW",
            };
            done.push(Done::altered(statement, reader.name, None));
        }
        for name in names {
            match statement {
                "DROP VIEW" => self.database.remove_view(&name).await?,
                "DROP MATERIALIZED VIEW" => self.remove_materialized_view(&name).await?,
                _ if self.database.remove_session_table(&name) => {}
                _ => self.database.root().remove_table(&name).await?,
            }
            done.push(Done::altered(statement, name, None));
        }
        self.done(done, started)
    }

    /// Removes a view of either kind.
    pub(super) async fn remove_reader(&self, reader: &Reader) -> Result<()> {
        match reader.is_materialized {
            true => self.remove_materialized_view(&reader.name).await,
            false => self.database.remove_view(&reader.name).await,
        }
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
            DropKind::View if self.database.materialized_view(name).await?.is_some() => {
                Some("MATERIALIZED VIEW")
            }
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
