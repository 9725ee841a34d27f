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

/// Returns the absolute path of an SQLite URL's file; none for a database in memory or PostgreSQL.
pub fn sqlite_file(url: &str) -> Option<PathBuf> {
    url.starts_with("sqlite:")
        .then(|| SqliteConnectOptions::from_str(url).ok())
        .flatten()
        .filter(|_| !url.contains(":memory:") && !url.contains("mode=memory"))
        .map(|options| {
            let file = options.get_filename();
            // A name alone has no folder, and files beside the database need one.
            std::path::absolute(file).unwrap_or_else(|_| file.to_owned())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_name_may_hold_what_a_url_would_read_as_its_own() {
        let url = sqlite_url(Path::new("/data/100%?#.db"));
        assert_eq!(url, "sqlite:/data/100%25%3F%23.db?mode=rwc");
        assert_eq!(sqlite_file(&url), Some("/data/100%?#.db".into()));
    }

    #[test]
    fn the_file_of_a_relative_url_has_a_folder() {
        let here = std::env::current_dir().unwrap();
        for (url, file) in [
            ("sqlite:x.db", here.join("x.db")),
            ("sqlite:logs/x.db?mode=rwc", here.join("logs/x.db")),
            ("sqlite:///data/x.db", "/data/x.db".into()),
        ] {
            assert_eq!(sqlite_file(url), Some(file), "{url}");
        }
        for none in ["sqlite::memory:", "sqlite:x?mode=memory", "postgres://db/x"] {
            assert_eq!(sqlite_file(none), None, "{none}");
        }
    }
}
