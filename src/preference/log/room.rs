//! Room on a disk: how much is left, and a reserve that is given up so that records can be deleted where nothing is left.
//!
//! A deletion writes before it frees: what is overwritten goes through SQLite's write-ahead log. On a full disk it would fail, and who
//! filled the disk would have stopped the erasure of everybody's records.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bytes that a file system keeps free of records, or a 20th of it where that is less.
const FLOOR: u64 = 256 << 20;

/// The part of the room left that a reserve may take: 1 of so many.
const RESERVE_PART: u64 = 16;

/// Bytes that are free, and bytes in all, of the file system of a directory.
fn room(dir: &Path) -> io::Result<(u64, u64)> {
    let path = CString::new(dir.as_os_str().as_bytes())?;
    let mut found = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends with a zero, and the struct is the caller's to be written.
    if unsafe { libc::statvfs(path.as_ptr(), found.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so it wrote the struct.
    let found = unsafe { found.assume_init() };
    let block = found.f_frsize;
    Ok((
        block.saturating_mul(found.f_bavail),
        block.saturating_mul(found.f_blocks),
    ))
}

/// Whether a file system has so little room that nothing more should be kept on it.
pub(super) fn is_short(dir: &Path) -> bool {
    // A file system that does not say how large it is has no floor.
    room(dir).is_ok_and(|(free, all)| free < FLOOR.min(all / 20))
}

/// A file that only takes room.
#[derive(Debug)]
pub(super) struct Reserve {
    file: PathBuf,
    bytes: u64,
}

impl Reserve {
    /// A reserve of so many bytes beside a database's file, or of less where there is little room. It is made by [`Self::fill`].
    pub fn beside(database: &Path, bytes: u64) -> Self {
        let mut file = database.as_os_str().to_owned();
        file.push(".reserve");
        Self {
            file: file.into(),
            bytes,
        }
    }

    /// Takes the room, where it is not taken yet.
    pub fn fill(&self) -> io::Result<()> {
        if self.bytes == 0 {
            return Ok(());
        }
        let dir = self.file.parent().unwrap_or(Path::new("."));
        let bytes = self.bytes.min(room(dir)?.0 / RESERVE_PART);
        match fs::metadata(&self.file) {
            Ok(there) if there.len() >= bytes => return Ok(()),
            _ => {}
        }
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&self.file)?;
        let taken = take(&file, bytes);
        if taken.is_err() {
            self.give_up();
        }
        taken
    }

    /// Gives the room back. Whether there was any.
    pub fn give_up(&self) -> bool {
        fs::remove_file(&self.file).is_ok()
    }
}

/// Gives a file its blocks.
fn take(file: &File, bytes: u64) -> io::Result<()> {
    let bytes = libc::off_t::try_from(bytes).map_err(io::Error::other)?;
    // SAFETY: a system call on a descriptor that the file keeps open.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, bytes) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserve_takes_blocks_and_gives_them_back() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::beside(&dir.path().join("log.sqlite"), 1 << 20);
        assert!(!reserve.give_up());
        reserve.fill().unwrap();
        reserve.fill().unwrap();
        let there = fs::metadata(dir.path().join("log.sqlite.reserve")).unwrap();
        assert!(there.blocks() * 512 >= 1 << 20);
        assert_eq!(there.mode() & 0o777, 0o600);
        assert!(reserve.give_up());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_system_says_how_much_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let (free, all) = room(dir.path()).unwrap();
        assert!(free <= all && all > 0);
        assert!(room(Path::new("/nowhere/at/all")).is_err());
    }
}
