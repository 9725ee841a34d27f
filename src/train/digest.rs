//! SHA-256, as hexadecimal.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::TrainError;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The digest of what is in memory.
pub fn sha256_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The digests of a model directory's configuration and, if asked for, of its weights, end to end.
///
/// # Errors
/// The file system's.
pub fn model_digest(dir: &Path, weights: bool) -> Result<String, TrainError> {
    let mut files = vec![dir.join("config.json")];
    if weights {
        for entry in std::fs::read_dir(dir).map_err(TrainError::io("cannot list", dir))? {
            let path = entry.map_err(TrainError::io("cannot list", dir))?.path();
            if path.extension().is_some_and(|e| e == "safetensors") {
                files.push(path);
            }
        }
        files.sort();
    }
    files
        .iter()
        .map(|path| Ok(FileDigest::of(path)?.sha256))
        .collect()
}

/// Length and digest of a file, read in pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileDigest {
    pub bytes: u64,
    pub sha256: String,
}

impl FileDigest {
    /// # Errors
    /// The file system's.
    pub fn of(path: &Path) -> Result<Self, TrainError> {
        let mut file = File::open(path).map_err(TrainError::io("cannot open", path))?;
        let (mut hash, mut bytes) = (Sha256::new(), 0);
        let mut piece = vec![0; 1 << 18];
        loop {
            let n = file
                .read(&mut piece)
                .map_err(TrainError::io("cannot read", path))?;
            if n == 0 {
                break;
            }
            hash.update(&piece[..n]);
            bytes += n as u64;
        }
        Ok(Self {
            bytes,
            sha256: hex(&hash.finalize()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_as_sha256sum_does() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256_bytes(b"abc"), abc);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, "abc").unwrap();
        let digest = FileDigest::of(&path).unwrap();
        assert_eq!((digest.sha256.as_str(), digest.bytes), (abc, 3));
        assert!(FileDigest::of(&dir.path().join("absent")).is_err());
    }
}
