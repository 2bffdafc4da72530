//! Files and folders that are being written under hidden names beside their places.
//!
//! Whoever writes one holds a lock on it, which ends with the process, however that ends. What nobody holds is what a
//! killed process has left behind: the next one that writes into the folder removes it.

use super::plain;
use crate::error::Error;
use anyhow::{Result, bail};
use std::fs::{self, File};
use std::path::Path;
use tempfile::{Builder, NamedTempFile, TempDir};

const PREFIX: &str = ".onnx-gradients-";

/// A new file in a folder, under a lock.
///
/// # Errors
/// The folder cannot be written into.
pub fn file(folder: &Path) -> Result<NamedTempFile> {
    sweep(folder);
    let mut builder = Builder::new();
    builder.prefix(PREFIX);
    // As any new file, within the umask; temporary files are private otherwise.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    for _ in 0..ATTEMPTS {
        let file = builder.tempfile_in(folder).map_err(refused)?;
        if held(file.as_file(), file.path()) {
            return Ok(file);
        }
    }
    bail!("files vanish from it while they are written")
}

/// A new folder in a folder, with the lock on it.
///
/// # Errors
/// The folder cannot be written into.
pub fn folder(parent: &Path) -> Result<(TempDir, Option<File>)> {
    sweep(parent);
    let mut builder = Builder::new();
    builder.prefix(PREFIX);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755));
    for _ in 0..ATTEMPTS {
        let folder = builder.tempdir_in(parent).map_err(refused)?;
        // Where a folder cannot be opened it cannot be locked, nor be swept.
        let Ok(lock) = File::open(folder.path()) else { return Ok((folder, None)) };
        if held(&lock, folder.path()) {
            return Ok((folder, Some(lock)));
        }
    }
    bail!("folders vanish from it while they are written")
}

/// Why nothing can be made in a folder that there is.
fn refused(error: std::io::Error) -> anyhow::Error {
    match error.kind() {
        std::io::ErrorKind::NotFound => Error::io("the system makes no files there").into(),
        _ => plain(error),
    }
}

/// Between its creation and its lock another process may have taken the new one for a leftover.
const ATTEMPTS: usize = 100;

/// Locks what has just been made, and says whether it is still there. Where there are no locks, nothing is swept
/// either.
fn held(file: &File, path: &Path) -> bool {
    match file.try_lock() {
        Err(fs::TryLockError::WouldBlock) => false,
        _ => path.exists(),
    }
}

/// Removes what killed processes have left in a folder. What cannot be removed stays: it is in nobody's way.
fn sweep(folder: &Path) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries.filter(|e| e.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX))) {
        let path = entry.path();
        let Ok(kind) = entry.file_type() else { continue };
        // A link is none of ours.
        let Ok(file) = (if kind.is_symlink() { continue } else { File::open(&path) }) else { continue };
        if file.try_lock().is_ok() {
            let _ = if kind.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn what_nobody_holds_is_removed() -> Result<()> {
        let place = tempfile::tempdir()?;
        let left = [place.path().join(".onnx-gradients-a"), place.path().join(".onnx-gradients-b/c")];
        fs::write(&left[0], "half")?;
        fs::create_dir(left[1].parent().context("a folder")?)?;
        fs::write(&left[1], "half")?;
        let other = place.path().join(".onnx-gradient");
        fs::write(&other, "another's")?;
        let first = file(place.path())?;
        let (second, _lock) = folder(place.path())?;
        let third = file(place.path())?;
        assert!(left.iter().all(|path| !path.exists()));
        assert!([first.path(), second.path(), third.path(), &other].iter().all(|path| path.exists()));
        Ok(())
    }
}
