//! Files of a model's folder and of an operator's settings, read with a bound: what lies there may come from anywhere.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result};
use std::path::Path;

/// Bytes of a file of settings at most: configurations, templates, tables, indices.
pub const SETTINGS: u64 = 64 << 20;

/// Bytes of a `tokenizer.json` at most; the largest known ones have 35 MB.
pub const TOKENIZER: u64 = 512 << 20;

/// Opens a regular file. A pipe would be waited for without end, and a device may have none.
///
/// # Errors
/// Of the kind [`ErrorKind::InvalidInput`] where it is another kind of file.
pub fn open(path: &Path) -> Result<File> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "not a regular file"));
    }
    File::open(path)
}

/// The bytes of a regular file.
///
/// # Errors
/// Of the kind [`ErrorKind::FileTooLarge`] where there are more than `most`; those of [`open`] and of reading.
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

/// Bytes of a file of an operator's at most: keys, certificates, a configuration.
pub const SMALL: u64 = 8 << 20;

/// The text of a small regular file: keys, a salt, a configuration of learning.
///
/// # Errors
/// As [`read`]; of the kind [`ErrorKind::InvalidData`] where it is no UTF-8.
pub fn read_small(path: &Path) -> Result<String> {
    read_text(path, SMALL)
}

/// What is said of a file that [`is_lfs_pointer`].
pub const LFS_POINTER: &str = "is a Git LFS pointer and not the file itself: fetch the files of the repository with `git lfs pull`";

/// Whether these are the bytes of what Git stores in place of a large file.
pub fn is_lfs_pointer(bytes: &[u8]) -> bool {
    bytes.starts_with(b"version https://git-lfs.github.com/spec/")
}

/// The text of a regular file of settings.
///
/// # Errors
/// As [`read`]; of the kind [`ErrorKind::InvalidData`] where it is no UTF-8.
pub fn read_settings(path: &Path) -> Result<String> {
    read_text(path, SETTINGS)
}

fn read_text(path: &Path, most: u64) -> Result<String> {
    // Without the bytes, which may be a secret.
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
