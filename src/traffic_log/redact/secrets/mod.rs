//! Secrets: values that give access to something.

mod address;
mod command_line;
mod connection;
mod header;
mod key_parts;
mod named;
mod names;
pub(super) mod private_key;
mod token_table;
mod tokens;

use super::scan::Scan;
use super::words::{Hits, Word};

/// Returns the words that announce secrets.
pub(super) fn words() -> impl Iterator<Item = Word> {
    private_key::words()
        .chain(key_parts::words())
        .chain(address::words())
        .chain(connection::words())
        .chain(command_line::words())
        .chain(header::words())
        .chain(tokens::words())
        .chain(named::words())
}

/// Finds secrets. Each kind is hidden from the searches for later kinds, which could find a part of it.
pub(super) fn find(scan: &mut Scan, hits: &Hits<'_>) {
    private_key::find(scan, hits);
    key_parts::find(scan, hits);
    scan.hide();
    address::find(scan, hits);
    connection::find(scan, hits);
    scan.hide();
    command_line::find(scan, hits);
    scan.hide();
    header::find(scan, hits);
    scan.hide();
    tokens::find(scan, hits);
    scan.hide();
    named::find(scan, hits);
    scan.hide();
}
