//! Disk space: the free space of a file system, and a reserve that is released so that records can be deleted from a full disk.
//!
//! A deletion writes before it frees space: overwritten pages go through SQLite's write-ahead log. Without a reserve it would fail on a
//! full disk, and a principal that filled the disk could prevent the deletion of all others' records.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bytes of a file system that records must leave free, or a 20th of the file system if that is less.
const FLOOR: u64 = 256 << 20;

/// The divisor of the free space that limits a reserve.
const RESERVE_PART: u64 = 16;

/// Returns the free and the total bytes of a directory's file system.
fn space(dir: &Path) -> io::Result<(u64, u64)> {
    let path = CString::new(dir.as_os_str().as_bytes())?;
    let mut found = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends with a zero byte, and the struct is valid memory to write to.
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

/// Returns whether a file system has too little free space for further records.
pub(super) fn is_low(dir: &Path) -> bool {
    // A file system that does not report its size has no lower limit.
    space(dir).is_ok_and(|(free, all)| free < FLOOR.min(all / 20))
}

/// A file that only occupies space.
#[derive(Debug)]
pub(super) struct Reserve {
    file: PathBuf,
    bytes: u64,
}

impl Reserve {
    /// Returns a reserve of `bytes` bytes beside a database's file, or fewer if there is little space. [`Self::fill`] creates the file.
    pub fn beside(database: &Path, bytes: u64) -> Self {
        let mut file = database.as_os_str().to_owned();
        file.push(".reserve");
        Self {
            file: file.into(),
            bytes,
        }
    }

    /// Allocates the space, unless it is already allocated.
    pub fn fill(&self) -> io::Result<()> {
        if self.bytes == 0 {
            return Ok(());
        }
        let dir = self.file.parent().unwrap_or(Path::new("."));
        let bytes = self.bytes.min(space(dir)?.0 / RESERVE_PART);
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
        let allocated = allocate(&file, bytes);
        if allocated.is_err() {
            self.release();
        }
        allocated
    }

    /// Frees the space. Returns whether there was any.
    pub fn release(&self) -> bool {
        fs::remove_file(&self.file).is_ok()
    }
}

/// Allocates a file's blocks.
fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    let bytes = libc::off_t::try_from(bytes).map_err(io::Error::other)?;
    // SAFETY: a system call on a descriptor that `file` keeps open.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, bytes) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserve_allocates_blocks_and_frees_them() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::beside(&dir.path().join("log.sqlite"), 1 << 20);
        assert!(!reserve.release());
        reserve.fill().unwrap();
        reserve.fill().unwrap();
        let there = fs::metadata(dir.path().join("log.sqlite.reserve")).unwrap();
        assert!(there.blocks() * 512 >= 1 << 20);
        assert_eq!(there.mode() & 0o777, 0o600);
        assert!(reserve.release());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_free_space_of_a_file_system_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let (free, all) = space(dir.path()).unwrap();
        assert!(free <= all && all > 0);
        assert!(space(Path::new("/nowhere/at/all")).is_err());
    }
}
