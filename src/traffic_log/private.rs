//! Files that only their owner may read.

use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// The permission bits of all users but the owner.
const OTHERS: u32 = 0o077;

/// Creates an SQLite file, if missing, readable by its owner only, and removes other users' permissions from it and the files beside it.
/// SQLite gives new files beside it the same mode.
///
/// # Errors
/// Errors if the file cannot be created or used.
pub(super) fn database(file: &Path) -> io::Result<()> {
    if let Some(dir) = file.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        fs::metadata(dir)?;
    }
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(file)?;
    for suffix in ["", "-wal", "-shm"] {
        let mut beside = file.as_os_str().to_owned();
        beside.push(suffix);
        tighten(Path::new(&beside));
    }
    Ok(())
}

/// Removes other users' permissions from a file or directory. Returns whether that changed anything.
pub fn tighten(path: &Path) -> bool {
    let Ok(there) = fs::symlink_metadata(path) else {
        return false;
    };
    let mode = there.permissions().mode();
    if there.is_symlink() || mode & OTHERS == 0 {
        return false;
    }
    match fs::set_permissions(path, Permissions::from_mode(mode & !OTHERS)) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(
                "{} remains accessible to other users: {error}",
                path.display()
            );
            false
        }
    }
}

/// Applies [`tighten`] to a file or directory and everything in it. Returns the number of changed entries.
pub fn tighten_all(path: &Path) -> usize {
    let is_dir = fs::symlink_metadata(path).is_ok_and(|there| there.is_dir());
    let changed = usize::from(tighten(path));
    let inside = match is_dir {
        true => fs::read_dir(path).into_iter().flatten().flatten(),
        false => return changed,
    };
    inside
        .map(|entry| tighten_all(&entry.path()))
        .sum::<usize>()
        + changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_taken_from_others_and_links_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (inner, outside) = (dir.path().join("a/b"), dir.path().join("outside"));
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("file"), "x").unwrap();
        fs::write(&outside, "x").unwrap();
        std::os::unix::fs::symlink(&outside, inner.join("link")).unwrap();
        for path in [&dir.path().join("a"), &inner] {
            fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
        }
        for path in [&inner.join("file"), &outside] {
            fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
        }
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(tighten_all(&dir.path().join("a")), 3);
        assert_eq!(mode(&inner), 0o700);
        assert_eq!(mode(&inner.join("file")), 0o600);
        assert_eq!(mode(&outside), 0o644);
        assert_eq!(tighten_all(&dir.path().join("a")), 0);
        assert_eq!(tighten_all(&dir.path().join("nothing")), 0);
    }
}
