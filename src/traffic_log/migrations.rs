//! The changes of the schema, each a file in `migrations/`.
//!
//! `sqlx::migrate!` would do the same, but its crate of macros compiles SQLite a second time.

use std::sync::LazyLock;

use sqlx::SqlStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};

/// A file of a change, by its name: the version, an underscore and a description.
macro_rules! file {
    ($name:literal) => {
        ($name, include_str!(concat!("migrations/", $name, ".sql")))
    };
}

/// All changes. One that was released is never edited: every database keeps its digest and refuses another.
const FILES: [(&str, &str); 6] = [
    file!("0001_traffic_log"),
    file!("0002_stage_feedback"),
    file!("0003_learning_switch"),
    file!("0004_requests_and_bytes"),
    file!("0010_learning_bounds"),
    file!("0011_stage_progress"),
];

pub(super) static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    let migrations = FILES.map(|(name, sql)| {
        let (version, description) = name.split_once('_').expect("a version before `_`");
        Migration::new(
            version.parse().expect("a number before `_`"),
            description.replace('_', " ").into(),
            MigrationType::Simple,
            SqlStr::from_static(sql),
            false,
        )
    });
    Migrator::with_migrations(migrations.to_vec())
});

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_file_is_a_change_of_the_schema() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
        let entries = std::fs::read_dir(dir).unwrap();
        let mut found: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        found.sort();
        assert_eq!(FILES.map(|(name, _)| format!("{name}.sql")).to_vec(), found);
        let versions: Vec<i64> = MIGRATIONS.iter().map(|one| one.version).collect();
        assert_eq!(versions, [1, 2, 3, 4, 10, 11]);
    }
}
