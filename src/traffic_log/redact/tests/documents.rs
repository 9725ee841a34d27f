//! The document names every form that can be found.

use super::super::numbers::national;

#[test]
fn the_document_lists_every_form_by_country() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/privacy.md");
    let document = std::fs::read_to_string(file).unwrap();
    for (country, name) in national::names() {
        let mut rows = document
            .lines()
            .filter(|line| line.starts_with(&format!("| {country} |")));
        assert!(
            rows.any(|row| row.contains(name)),
            "{country}: {name} is not in {file}"
        );
    }
}
