//! SHA-256 digests in hexadecimal.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::TrainError;
use super::checkpoint::entries;
use model::weights::GGUF_FILE;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Returns the digest of bytes in memory.
pub fn sha256_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Returns the concatenated digests of a model directory's configuration and, if requested, of its weights.
///
/// # Errors
/// Those of the file system.
pub fn model_digest(dir: &Path, weights: bool) -> Result<String, TrainError> {
    let mut files = vec![dir.join("config.json")];
    if weights {
        files.extend(weights_files(dir)?);
        files.sort();
    }
    files
        .iter()
        .map(|path| Ok(FileDigest::of(path)?.sha256))
        .collect()
}

/// Length and digest of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileDigest {
    pub bytes: u64,
    pub sha256: String,
}

impl FileDigest {
    /// Reads a file in chunks and computes its digest.
    ///
    /// # Errors
    /// Those of the file system.
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

/// Returns a digest that identifies the weights of a model directory: over its safetensors files, in the order of their names, or over its
/// GGUF file.
///
/// # Errors
/// Those of the file system.
pub fn weights_digest(dir: &Path) -> Result<String, TrainError> {
    let mut hash = Sha256::new();
    for path in weights_files(dir)? {
        hash.update(FileDigest::of(&path)?.sha256);
    }
    Ok(hex(&hash.finalize()))
}

/// Returns the safetensors files of a model directory, sorted; without any, its GGUF file.
fn weights_files(dir: &Path) -> Result<Vec<PathBuf>, TrainError> {
    let safetensors = |path: &PathBuf| path.extension().is_some_and(|e| e == "safetensors");
    let mut files: Vec<PathBuf> = entries(dir)?.into_iter().filter(safetensors).collect();
    let gguf = dir.join(GGUF_FILE);
    if files.is_empty() && gguf.exists() {
        files.push(gguf);
    }
    Ok(files)
}

/// A file of a directory, as listed in its manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedFile {
    pub name: String,
    pub bytes: u64,
    pub sha256: String,
}

impl ListedFile {
    /// Computes the entry of a file.
    ///
    /// # Errors
    /// If the name is not UTF-8; also those of the file system.
    pub fn of(path: &Path) -> Result<Self, TrainError> {
        let name = path.file_name().and_then(|name| name.to_str());
        let name =
            name.ok_or_else(|| TrainError::bad_file(path, "has a name that is not UTF-8"))?;
        let FileDigest { bytes, sha256 } = FileDigest::of(path)?;
        Ok(Self {
            name: name.to_owned(),
            bytes,
            sha256,
        })
    }

    /// Returns whether the directory holds exactly this file under its name.
    ///
    /// # Errors
    /// Those of the file system, including a missing file.
    pub fn is_in(&self, dir: &Path) -> Result<bool, TrainError> {
        let found = FileDigest::of(&dir.join(&self.name))?;
        Ok((found.bytes, &found.sha256) == (self.bytes, &self.sha256))
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
