//! E-mail addresses, including letters of all scripts, quoted local parts, and signs that are spelled out.

use std::ops::Range;

use super::rule::RedactionRule;
use super::scan::Scan;
use super::words::{Hits, Sign, Word, anywhere, whole};

/// The maximum length of a local part (RFC 5321: 64) in bytes.
const NAME: usize = 64;

/// The maximum length of a domain (RFC 5321: 255) in bytes.
const DOMAIN: usize = 255;

pub(super) fn words() -> impl Iterator<Item = Word> {
    anywhere(
        &[
            "@",
            "%40",
            "[at]",
            "(at)",
            "{at}",
            "<at>",
            " [at] ",
            " (at) ",
            " {at} ",
            " <at> ",
            "&#64;",
            "&#x40;",
            "&commat;",
            " at ",
            " @ ",
            "[@]",
            "(@)",
            "{@}",
            "<@>",
            " [@] ",
            " (@) ",
            " arroba ",
            " arobase ",
            " chiocciola ",
            " ät ",
            " małpa ",
            " собака ",
            "(ät)",
            "[ät]",
            "(arroba)",
            "[arroba]",
            "(a)",
            "[a]",
            "_at_",
            "-at-",
        ],
        Sign::At,
    )
    .chain(whole(
        &[
            "mail", "e-mail", "email", "mail me", "write to", "write me", "contact", "reach me",
            "correo", "courriel", "mailto", "address", "adresse",
        ],
        Sign::Mail,
    ))
}

pub(super) fn find(scan: &mut Scan, hits: &Hits<'_>) {
    let mut taken = 0;
    for (sign, ()) in hits.all(|sign| (sign == Sign::At).then_some(())) {
        if sign.start < taken {
            continue;
        }
        if let Some(found) = around(scan, hits, sign, taken) {
            let value = String::from_utf8_lossy(scan.bytes(found.clone())).to_lowercase();
            taken = found.end;
            scan.found(RedactionRule::Email, found, value);
        }
    }
}

fn around(scan: &Scan, hits: &Hits<'_>, sign: Range<usize>, taken: usize) -> Option<Range<usize>> {
    // A spelled-out sign like ` at ` also occurs in prose: it makes an address only if the dots are spelled out too or the context shows
    // it.
    let is_word = matches!(
        scan.bytes(sign.clone()),
        b" at " | b" AT " | b" At " | b"(a)" | b"[a]"
    ) || matches!(scan.byte(sign.start), b'_' | b'-');
    if is_word && scan.is(sign.end, "the ") {
        return None;
    }
    let start = name(scan, sign.start, taken)?;
    let joined = matches!(scan.byte(sign.start), b'_' | b'-');
    let spelled = is_word && (joined || !is_announced(scan, hits, start..sign.start));
    let end = domain(scan, sign.end, sign.len() > 1, spelled)?;
    Some(start..end)
}

/// Words of prose that precede `at` and the name of a site.
const PROSE: &[&str] = &[
    "look",
    "looking",
    "see",
    "visit",
    "hosted",
    "available",
    "found",
    "find",
    "us",
    "me",
    "it",
    "them",
    "is",
    "are",
    "was",
    "online",
    "live",
    "here",
    "more",
    "located",
    "read",
    "docs",
    "documentation",
    "site",
    "page",
    "website",
    "check",
    "be",
    "start",
    "join",
    "there",
    "out",
    "download",
    "downloads",
    "running",
    "published",
    "posted",
    "work",
    "works",
    "working",
    "code",
    "source",
    "repo",
    "project",
    "api",
    "server",
    "service",
    "click",
    "buy",
    "shop",
    "sold",
    "register",
    "sign",
    "login",
    "blog",
    "lives",
    "employee",
    "engineer",
    "developer",
    "info",
    "information",
    "details",
    "and",
    "or",
    "that",
    "all",
    "arrived",
    "up",
    "down",
    "app",
];

/// The maximum distance in bytes between an address and the word before it that announces it.
const REACH: usize = 24;

/// Returns whether, besides the `at` after it, the name is known to be part of an address: by its marks, a word before it, or because
/// nothing precedes it.
fn is_announced(scan: &Scan, hits: &Hits<'_>, name: Range<usize>) -> bool {
    let text = String::from_utf8_lossy(scan.bytes(name.clone())).to_lowercase();
    if PROSE.contains(&text.as_str()) {
        return false;
    }
    let marked = text
        .bytes()
        .any(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'+'));
    let space = scan.run_before(name.start, 2, |byte| byte == b' ');
    let front = scan.before(name.start - space);
    let first = matches!(front, 0 | b'\n' | b':' | b'<' | b'(' | b'[' | b'"');
    marked || first || hits.announce(name.start, REACH, |sign| sign == Sign::Mail)
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric()
        || matches!(
            c,
            '.' | '_'
                | '%'
                | '+'
                | '\''
                | '-'
                | '!'
                | '#'
                | '$'
                | '&'
                | '*'
                | '='
                | '^'
                | '`'
                | '{'
                | '|'
                | '}'
                | '~'
        )
}

/// Returns whether the character's script has no spaces between words. Before a Latin name, such characters are not a part of it.
fn is_unspaced(c: char) -> bool {
    matches!(c, '\u{e00}'..='\u{eff}' | '\u{3040}'..='\u{9fff}' | '\u{ac00}'..='\u{d7af}' | '\u{20000}'..='\u{3ffff}')
}

/// Returns the start of the local part that ends at `end`.
fn name(scan: &Scan, end: usize, taken: usize) -> Option<usize> {
    let least = end.saturating_sub(NAME).max(taken);
    if scan.before(end) == b'"' {
        // "ann lee"@example.org
        let mut at = end - 1;
        while at > least {
            at -= 1;
            match scan.byte(at) {
                b'"' if at + 2 < end && scan.before(at) != b'\\' => return Some(at),
                0 | b'\n' => return None,
                _ => {}
            }
        }
        return None;
    }
    let mut start = end;
    let mut latin = false;
    while start > least {
        let Some(c) = scan.char_before(start).filter(|c| is_name(*c)) else {
            break;
        };
        if latin && is_unspaced(c) {
            break;
        }
        latin |= c.is_ascii_alphanumeric();
        start -= c.len_utf8();
    }
    // Punctuation before the name belongs to the sentence.
    while start < end
        && !scan
            .char_at(start)
            .is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '+')
    {
        start += scan.char_at(start).map_or(1, char::len_utf8);
    }
    (start < end && scan.before(end) != b'.').then_some(start)
}

/// Returns the end of the domain that starts at `start`. Its dots may be spelled out if `may_spell`, and must be if `spelled`.
fn domain(scan: &Scan, start: usize, may_spell: bool, spelled: bool) -> Option<usize> {
    if scan.byte(start) == b'[' {
        let inside = scan.run(start + 1, 48, |byte| {
            byte.is_ascii_hexdigit() || matches!(byte, b'.' | b':' | b'I' | b'P' | b'v')
        });
        return (inside > 6 && scan.byte(start + 1 + inside) == b']').then_some(start + inside + 2);
    }
    let (mut at, mut end) = (start, None);
    loop {
        let label = at;
        let (mut letters, mut digits) = (0, false);
        while at - start < DOMAIN {
            let Some(c) = scan
                .char_at(at)
                .filter(|c| c.is_alphanumeric() || *c == '-' || *c == '_')
            else {
                break;
            };
            if !letters.eq(&0)
                && at - label > 1
                && c.is_alphabetic()
                && is_unspaced(c)
                && scan.bytes(label..at).is_ascii()
            {
                break;
            }
            letters += usize::from(c.is_alphabetic());
            digits |= c.is_ascii_digit();
            at += c.len_utf8();
        }
        // Dashes after a label belong to the sentence.
        let close = at - scan.run_before(at, at - label, |byte| byte == b'-' || byte == b'_');
        if close == label {
            return end;
        }
        let punycode = scan.is(label, "xn--");
        if label > start && letters > 1 && (!digits || punycode) {
            end = Some(close);
        }
        match dot(scan, at, may_spell).filter(|_| close == at) {
            Some((length, word)) if word || !spelled => at += length,
            _ => return end,
        }
    }
}

/// Returns the length of the dot at `at` and whether it is spelled out.
fn dot(scan: &Scan, at: usize, may_spell: bool) -> Option<(usize, bool)> {
    if scan.byte(at) == b'.' {
        return Some((1, false));
    }
    let spellings = [
        " [dot] ",
        " (dot) ",
        " {dot} ",
        "[dot]",
        "(dot)",
        "{dot}",
        "<dot>",
        " <dot> ",
        " dot ",
        "[.]",
        "(.)",
        "{.}",
        "<.>",
        " [.] ",
        " (.) ",
        " . ",
        " punkt ",
        " punto ",
        " point ",
        " ponto ",
        " punt ",
        " kropka ",
        " точка ",
        "(punkt)",
        "[punkt]",
        "(punto)",
        "[punto]",
        "(point)",
        "_dot_",
        "-dot-",
    ];
    let spelling = spellings.into_iter().find(|spelling| scan.is(at, spelling));
    spelling
        .filter(|spelling| may_spell || spelling.trim_start().starts_with(['[', '(', '{', '<']))
        .map(|spelling| (spelling.len(), true))
}
