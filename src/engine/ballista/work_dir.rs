//! Where an executor keeps what one part of a query gives to the next.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::{Error, ErrorKind, Result};

/// The folder for what tasks give to one another. It goes with the executor; that of one which was killed, with the next
/// that begins beside it.
pub(super) struct WorkDir {
    folder: PathBuf,
    /// Locked as long as the process lives.
    _lock: File,
}

/// What names of such folders begin with.
const WORK_DIR: &str = "headwater-executor-";
/// The file in each that is locked.
const LOCK: &str = "lock";

impl WorkDir {
    /// Makes one in `parent`, or among temporary files, for the executor `id`.
    ///
    /// # Errors
    ///
    /// If it can't be made.
    pub(super) fn make(parent: Option<&Path>, id: &str) -> Result<Self> {
        let parent = match parent {
            Some(parent) => parent.to_path_buf(),
            None => std::env::temp_dir(),
        };
        Self::tidy(&parent);
        let folder = parent.join(format!("{WORK_DIR}{}", id.replace('~', "-")));
        let make = || {
            // Under another name until it is locked: others look for folders that are not.
            let new = parent.join(format!(".{WORK_DIR}{}", id.replace('~', "-")));
            std::fs::create_dir_all(&new)?;
            let lock = File::create(new.join(LOCK))?;
            lock.try_lock()?;
            std::fs::rename(&new, &folder)?;
            Ok(lock)
        };
        let lock = make().map_err(|error: std::io::Error| {
            Error::new(
                ErrorKind::Storage,
                format!("can't make the folder '{}': {error}", folder.display()),
            )
            .with_hint("another one is chosen with --work-dir")
            .with_source(error)
        })?;
        Ok(Self {
            folder,
            _lock: lock,
        })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.folder
    }

    /// Removes the folders of executors that were killed.
    fn tidy(parent: &Path) {
        let siblings = std::fs::read_dir(parent).into_iter().flatten().flatten();
        for sibling in siblings {
            let is_one = sibling.file_name().to_string_lossy().starts_with(WORK_DIR);
            let lock = File::open(sibling.path().join(LOCK)).ok();
            if let Some(lock) = lock.filter(|_| is_one)
                && lock.try_lock().is_ok()
                && let Err(error) = std::fs::remove_dir_all(sibling.path())
            {
                log::warn!("can't remove '{}': {error}", sibling.path().display());
            }
        }
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            log::warn!("can't remove '{}': {error}", self.folder.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_killed_executors_go() {
        let parent = tempfile::tempdir().unwrap();
        let make = |id| WorkDir::make(Some(parent.path()), id).unwrap();
        let killed = parent.path().join(format!("{WORK_DIR}-killed"));
        std::fs::create_dir(&killed).unwrap();
        File::create(killed.join(LOCK)).unwrap();
        let lives = make("gpu~1");
        let other = make("~2");
        assert!(!killed.exists());
        assert!(lives.folder.exists() && other.folder.exists());
        let folder = lives.folder.clone();
        drop(lives);
        assert!(!folder.exists());
    }
}
