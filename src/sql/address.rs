//! The URL of a database, and the file that an SQLite URL names.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use sqlx::sqlite::SqliteConnectOptions;

/// Returns the URL of an SQLite file, which is created if it does not exist.
pub fn sqlite_url(file: &Path) -> String {
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let path = file.to_string_lossy();
    // Characters with a meaning in URLs are escaped.
    let path = path
        .replace('%', "%25")
        .replace('?', "%3F")
        .replace('#', "%23");
    format!("sqlite:{path}?mode=rwc")
}

/// Returns the file of an SQLite URL; none for a database in memory or PostgreSQL.
pub fn sqlite_file(url: &str) -> Option<PathBuf> {
    url.starts_with("sqlite:")
        .then(|| SqliteConnectOptions::from_str(url).ok())
        .flatten()
        .filter(|_| !url.contains(":memory:") && !url.contains("mode=memory"))
        .map(|options| options.get_filename().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_name_may_hold_what_a_url_would_read_as_its_own() {
        let url = sqlite_url(Path::new("/data/100%?#.db"));
        assert_eq!(url, "sqlite:/data/100%25%3F%23.db?mode=rwc");
    }
}
