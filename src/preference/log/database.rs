//! The connections: one that writes, a few that read.

use std::path::Path;

/// The URL of an SQLite file that is made if it is not there.
pub(super) fn sqlite_url(file: &Path) -> String {
    format!("sqlite://{}?mode=rwc", file.display())
}
