//! Size-limited reads of model files and of an operator's settings, as their contents may come from any source.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result};
use std::path::Path;

/// Size limit of a settings file (configuration, template, table, index), in bytes.
pub const SETTINGS: u64 = 64 << 20;

/// Size limit of a `tokenizer.json`, in bytes; the largest known ones have 35 MB.
pub const TOKENIZER: u64 = 512 << 20;

/// Opens a regular file. Other kinds are rejected: opening a pipe may block forever, and a device may have no end.
///
/// # Errors
/// Of the kind [`ErrorKind::InvalidInput`] if it is another kind of file.
pub fn open(path: &Path) -> Result<File> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "not a regular file"));
    }
    File::open(path)
}

/// Returns the bytes of a regular file.
///
/// # Errors
/// Of the kind [`ErrorKind::FileTooLarge`] if there are more than `most` bytes; those of [`open`] and of reading.
pub fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if is_lfs_pointer(&bytes) {
        return Err(Error::new(ErrorKind::InvalidData, LFS_POINTER));
    }
    match bytes.len() as u64 <= most {
        true => Ok(bytes),
        false => Err(Error::new(
            ErrorKind::FileTooLarge,
            format!("has more than {most} bytes"),
        )),
    }
}

/// Size limit of an operator's small file (keys, certificates, a configuration), in bytes.
pub const SMALL: u64 = 8 << 20;

/// Returns the text of a small regular file: keys, a salt, a learning configuration.
///
/// # Errors
/// As [`read`]; of the kind [`ErrorKind::InvalidData`] if it is not UTF-8.
pub fn read_small(path: &Path) -> Result<String> {
    read_text(path, SMALL)
}

/// The error message for a file that [`is_lfs_pointer`].
pub const LFS_POINTER: &str = "is a Git LFS pointer and not the file itself: fetch the files of the repository with `git lfs pull`";

/// Returns whether these bytes are a Git LFS pointer, which Git stores in place of a large file.
pub fn is_lfs_pointer(bytes: &[u8]) -> bool {
    bytes.starts_with(b"version https://git-lfs.github.com/spec/")
}

/// Returns the text of a regular settings file.
///
/// # Errors
/// As [`read`]; of the kind [`ErrorKind::InvalidData`] if it is not UTF-8.
pub fn read_settings(path: &Path) -> Result<String> {
    read_text(path, SETTINGS)
}

fn read_text(path: &Path, most: u64) -> Result<String> {
    // The error omits the bytes, which may be a secret.
    String::from_utf8(read(path, most)?)
        .map_err(|error| Error::new(ErrorKind::InvalidData, error.utf8_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_up_to_their_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read(&path, 5).unwrap(), b"12345");
        assert_eq!(read(&path, 4).unwrap_err().kind(), ErrorKind::FileTooLarge);
        assert_eq!(read_settings(&path).unwrap(), "12345");
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
        std::fs::write(&path, pointer).unwrap();
        let error = read(&path, 1000).unwrap_err();
        assert!(error.to_string().contains("git lfs pull"), "{error}");
        let gone = read(&dir.path().join("gone"), 4).unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::NotFound);
    }

    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        let name = std::ffi::CString::new(pipe.to_str().unwrap()).unwrap();
        // SAFETY: the name is a C string that lives until the call returns.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        for path in [&pipe, dir.path(), Path::new("/dev/zero")] {
            for read in [read_settings, read_small] {
                let error = read(path).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::InvalidInput, "{}", path.display());
            }
        }
    }
}
