//! Passwords on the command lines of programs whose options do not name them: `mysql -phunter2`, `sshpass -p hunter2`.

use std::ops::Range;

use super::address::is_placeholder;
use crate::redact::rule::RedactionRule;
use crate::redact::scan::Scan;
use crate::redact::words::{Hits, Sign, Word};

/// The maximum length in bytes of a command line that is read after the program.
const LONGEST: usize = 256;

/// The position of a value relative to its option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// `-phunter2`
    Attached,
    /// `-a hunter2`
    Apart,
    Either,
}

/// A program, its options, the value's position, and whether the value is `user:password`.
struct Program(&'static str, &'static [&'static str], Place, bool);

const PROGRAMS: &[Program] = &[
    Program("mysql", &["-p"], Place::Attached, false),
    Program("mysqldump", &["-p"], Place::Attached, false),
    Program("mysqladmin", &["-p"], Place::Attached, false),
    Program("mysqlimport", &["-p"], Place::Attached, false),
    Program("mariadb", &["-p"], Place::Attached, false),
    Program("mariadb-dump", &["-p"], Place::Attached, false),
    Program("sshpass", &["-p"], Place::Either, false),
    Program("redis-cli", &["-a", "--pass"], Place::Either, false),
    Program("docker login", &["-p"], Place::Either, false),
    Program("podman login", &["-p"], Place::Either, false),
    Program("buildah login", &["-p"], Place::Either, false),
    Program("skopeo login", &["-p"], Place::Either, false),
    Program("registry login", &["-p"], Place::Either, false),
    Program("az login", &["-p"], Place::Either, false),
    Program("oc login", &["-p"], Place::Either, false),
    Program("cf login", &["-p"], Place::Either, false),
    Program("mongo", &["-p"], Place::Either, false),
    Program("mongosh", &["-p"], Place::Either, false),
    Program("mongodump", &["-p"], Place::Either, false),
    Program("mongorestore", &["-p"], Place::Either, false),
    Program("sqlcmd", &["-P"], Place::Either, false),
    Program("bcp", &["-P"], Place::Either, false),
    Program("mosquitto_pub", &["-P"], Place::Either, false),
    Program("mosquitto_sub", &["-P"], Place::Either, false),
    Program("zip", &["-P"], Place::Either, false),
    Program("unzip", &["-P"], Place::Either, false),
    Program("7z", &["-p"], Place::Attached, false),
    Program("rar", &["-p", "-hp"], Place::Attached, false),
    Program("ldapsearch", &["-w"], Place::Either, false),
    Program("ldapmodify", &["-w"], Place::Either, false),
    Program("ldapadd", &["-w"], Place::Either, false),
    Program("keytool", &["-storepass", "-keypass"], Place::Apart, false),
    Program("ipmitool", &["-P"], Place::Either, false),
    Program("xfreerdp", &["/p:"], Place::Attached, false),
    Program("rdesktop", &["-p"], Place::Either, false),
    Program("openssl", &["pass:"], Place::Attached, false),
    Program(
        "curl",
        &["-u", "-U", "--user", "--proxy-user"],
        Place::Either,
        true,
    ),
    Program("http", &["-a", "--auth"], Place::Either, true),
    Program("https", &["-a", "--auth"], Place::Either, true),
    Program("smbclient", &["-U"], Place::Either, true),
    Program("lftp", &["-u"], Place::Either, true),
];

pub(super) fn words() -> impl Iterator<Item = Word> {
    PROGRAMS.iter().enumerate().map(|(place, program)| Word {
        text: program.0,
        sign: Sign::Program(place),
        whole: true,
    })
}

pub(super) fn find(scan: &mut Scan, hits: &Hits<'_>) {
    let named = |sign| match sign {
        Sign::Program(place) => PROGRAMS.get(place),
        _ => None,
    };
    let mut taken = 0;
    for (range, program) in hits.all(named) {
        // `mysql-client` and `https://` are not commands.
        if range.end < taken || scan.byte(range.end) != b' ' {
            continue;
        }
        let (found, end) = values(scan, program, range.end);
        taken = end;
        for value in found {
            scan.found_as_is(RedactionRule::Secret, value);
        }
    }
}

/// Returns the secrets of a command line whose program ends at `at`, and the end of the line.
fn values(scan: &Scan, program: &Program, at: usize) -> (Vec<Range<usize>>, usize) {
    let Program(_, options, place, pair) = program;
    let mut found = Vec::new();
    let end = at
        + scan.run(at, LONGEST, |byte| {
            !matches!(byte, b'\n' | b'|' | b';' | b'`')
        });
    let mut from = at;
    let mut is_value = false;
    while from < end {
        from += scan.run(from, end - from, |byte| byte == b' ' || byte == b'\t');
        let word = word(scan, from, end);
        let value = match is_value {
            true => Some(word.clone()),
            false => None,
        };
        is_value = false;
        let option = options
            .iter()
            .find(|option| scan.bytes(from..from + option.len()) == option.as_bytes());
        let value = value.or_else(|| {
            let behind = from + option?.len();
            match scan.byte(behind) {
                b' ' | b'\t' => {
                    is_value = *place != Place::Attached;
                    None
                }
                _ if *place == Place::Apart => None,
                _ => {
                    let assigned = usize::from(scan.byte(behind) == b'=');
                    Some(self::word(scan, behind + assigned, end))
                }
            }
        });
        let mut next = word.end.max(from + 1);
        if let Some(value) = value {
            let value = unquoted(scan, value);
            if is_secret(scan.bytes(value.clone()), *pair) {
                next = next.max(value.end);
                found.push(value);
            }
        }
        from = next;
    }
    (found, end)
}

/// Returns the word of a command line that starts at `at`, with its quotes.
fn word(scan: &Scan, at: usize, end: usize) -> Range<usize> {
    let quote = scan.byte(at);
    if matches!(quote, b'"' | b'\'') {
        let length = scan.run(at + 1, end.saturating_sub(at + 1), |byte| byte != quote);
        return at..(at + length + 2).min(end.max(at));
    }
    let length = scan.run(at, end.saturating_sub(at), |byte| byte > b' ');
    at..at + length
}

fn unquoted(scan: &Scan, word: Range<usize>) -> Range<usize> {
    let quote = scan.byte(word.start);
    let quoted = word.len() > 1 && matches!(quote, b'"' | b'\'') && scan.before(word.end) == quote;
    let word = match quoted {
        true => word.start + 1..word.end - 1,
        false => word,
    };
    let closing = scan.run_before(word.end, word.len(), |byte| {
        matches!(byte, b'"' | b'\'' | b')' | b',')
    });
    word.start..word.end - closing
}

fn is_secret(value: &[u8], pair: bool) -> bool {
    let secret = match pair {
        true => value
            .iter()
            .position(|byte| matches!(byte, b':' | b'%' | b','))
            .filter(|mark| *mark > 0)
            .map_or(&[][..], |mark| &value[mark + 1..]),
        false => value,
    };
    // In `-u 1000:1000` the numbers are ids of a user and a group.
    let numbers = pair
        && value
            .iter()
            .all(|byte| byte.is_ascii_digit() || *byte == b':');
    secret.len() > 2 && !numbers && !is_placeholder(secret) && !matches!(secret[0], 0 | b'$' | b'-')
}
