//! An external redactor.

use std::path::PathBuf;
use std::time::Duration;

/// A program that reads a JSON array of texts on its input and writes an array of the same length, redacted, on its output.
/// Whatever else happens (a timeout, an exit status, another length) the record is not written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedactCommand {
    pub program: PathBuf,
    pub arguments: Vec<String>,
    pub timeout: Duration,
}
