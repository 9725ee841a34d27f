//! Keys and tokens with a known prefix, and addresses that are secrets themselves.

use std::ops::Range;

use super::token_table::{Body, TOKENS};
use crate::redact::rule::RedactionRule;
use crate::redact::scan::{Scan, is_word};
use crate::redact::words::{Hits, Sign, Word, anywhere};

/// Addresses that grant write access to anyone who knows them: the text after each of these is secret.
const WEBHOOKS: &[&str] = &[
    "hooks.slack.com/services/",
    "hooks.slack.com/workflows/",
    "hooks.slack.com/triggers/",
    "discord.com/api/webhooks/",
    "discordapp.com/api/webhooks/",
    "/api/v8/webhooks/",
    "/api/v9/webhooks/",
    "/api/v10/webhooks/",
    "outlook.office.com/webhook/",
    "webhook.office.com/webhookb2/",
    "logic.azure.com/workflows/",
    "logic.azure.com:443/workflows/",
    "hooks.zapier.com/hooks/catch/",
    "hook.integromat.com/",
    "maker.ifttt.com/trigger/",
    "api.telegram.org/bot",
    "chat.googleapis.com/v1/spaces/",
    "open.feishu.cn/open-apis/bot/",
    "open.larksuite.com/open-apis/bot/",
    "oapi.dingtalk.com/robot/send?",
    "qyapi.weixin.qq.com/cgi-bin/webhook/send?",
    "events.pagerduty.com/integration/",
    "webhook.site/",
];

/// Indices of prefixes whose tokens have a format of their own.
const JSON_WEB_TOKEN: usize = TOKENS.len();
const TELEGRAM: usize = TOKENS.len() + 1;
const AZURE_CLIENT: usize = TOKENS.len() + 2;
const DISCORD: usize = TOKENS.len() + 3;
const TERRAFORM: usize = TOKENS.len() + 4;
const AIRTABLE: usize = TOKENS.len() + 5;

/// Beginnings of a JSON web token's header in base64: `{"`, `{ `, and with line ends.
const HEADERS: [&str; 4] = ["eyJ", "eyA", "ewo", "ew0"];

/// Beginnings of a Discord bot's token: its number in base64.
const BOTS: [&str; 9] = ["MT", "Mj", "Mz", "ND", "NT", "Nj", "Nz", "OD", "OT"];

pub(super) fn words() -> impl Iterator<Item = Word> {
    let word = |text, place| Word {
        text,
        sign: Sign::Token(place),
        whole: false,
    };
    let tokens = TOKENS.iter().enumerate();
    tokens
        .map(move |(place, token)| word(token.0, place))
        .chain([
            word(":AA", TELEGRAM),
            word("Q~", AZURE_CLIENT),
            word(".atlasv1.", TERRAFORM),
            word("pat", AIRTABLE),
        ])
        .chain(HEADERS.map(|text| word(text, JSON_WEB_TOKEN)))
        .chain(BOTS.map(|text| word(text, DISCORD)))
        .chain(anywhere(WEBHOOKS, Sign::Webhook))
}

pub(super) fn find(scan: &mut Scan, hits: &Hits<'_>) {
    let mut taken = 0;
    for (range, sign) in
        hits.all(|sign| matches!(sign, Sign::Token(_) | Sign::Webhook).then_some(sign))
    {
        if range.start < taken {
            continue;
        }
        let found = match sign {
            Sign::Webhook => {
                let length = scan.run(range.end, usize::MAX, |byte| {
                    byte > b' '
                        && !matches!(
                            byte,
                            b'"' | b'\'' | b'<' | b'>' | b')' | b']' | b'}' | b'`' | b'\\' | b','
                        )
                });
                (length >= 8).then_some(range.end..range.end + length)
            }
            Sign::Token(JSON_WEB_TOKEN) => json_web_token(scan, range.start),
            Sign::Token(TELEGRAM) => telegram(scan, range.start),
            Sign::Token(AZURE_CLIENT) => azure_client(scan, range.start),
            Sign::Token(DISCORD) => discord(scan, range.start),
            Sign::Token(TERRAFORM) => terraform(scan, range),
            Sign::Token(AIRTABLE) => airtable(scan, range),
            Sign::Token(place) => TOKENS.get(place).and_then(|token| {
                // The words match without regard to case and also within other words.
                let exact = scan.bytes(range.clone()) == token.0.as_bytes()
                    && !scan.before(range.start).is_ascii_alphanumeric();
                if !exact {
                    return None;
                }
                let length = scan.run(range.end, usize::MAX, |byte| token.1.has(byte));
                // Punctuation after a hash belongs to the sentence.
                let marks = match token.1 {
                    Body::Hash => scan.run_before(range.end + length, length, |byte| {
                        matches!(byte, b',' | b'.')
                    }),
                    _ => 0,
                };
                let length = length - marks;
                let fits = match token.1 {
                    // These have a fixed length.
                    Body::Hex | Body::Capitals => length >= token.2 && length <= 2 * token.2,
                    Body::Mixed => {
                        let body = scan.bytes(range.end..range.end + length);
                        length >= token.2
                            && body.iter().any(u8::is_ascii_digit)
                            && body.iter().any(u8::is_ascii_uppercase)
                    }
                    _ => length >= token.2,
                };
                fits.then_some(range.start..range.end + length)
            }),
            _ => None,
        };
        if let Some(found) = found {
            taken = found.end;
            scan.found_as_is(RedactionRule::Secret, found);
        }
    }
}

/// Finds `header.payload.signature`, each in base64url; the signature may be empty or cut off, and line ends may occur within.
fn json_web_token(scan: &Scan, start: usize) -> Option<Range<usize>> {
    let is_part = |byte: u8| is_word(byte) || byte == b'-';
    let first = scan.bytes(start..start + 3);
    let exact = HEADERS.iter().any(|header| header.as_bytes() == first);
    if !exact || is_part(scan.before(start)) {
        return None;
    }
    let header = part(scan, start);
    let dot = header + wrap(scan, header, |next| scan.byte(next) == b'.');
    if header - start < 12 || scan.byte(dot) != b'.' {
        return None;
    }
    let mut end = dot;
    // Encrypted ones have five parts.
    for _ in 0..4 {
        let dot = end + wrap(scan, end, |next| scan.byte(next) == b'.');
        if scan.byte(dot) != b'.' {
            break;
        }
        let next = dot + 1;
        let long = |next: usize| scan.run(next, 16, is_part) == 16;
        let next = next + wrap(scan, next, long);
        end = match part(scan, next) {
            to if to > next => to,
            _ if end == header => next,
            _ => break,
        };
    }
    (end - header > 10).then_some(start..end)
}

/// Returns the end of the part of a token that starts at `at`, across line ends if long lines follow each other.
fn part(scan: &Scan, at: usize) -> usize {
    /// The minimum length of a wrapped line.
    const LINE: usize = 40;
    /// The maximum number of lines of one part.
    const LINES: usize = 24;
    let is_part = |byte: u8| is_word(byte) || byte == b'-';
    let mut end = at;
    for _ in 0..LINES {
        let line = scan.run(end, usize::MAX, is_part);
        end += line;
        // A word of the next sentence is shorter than this. A shorter rest counts only with a dot of the token after it.
        let goes_on = |next: usize| {
            let rest = scan.run(next, LINE, is_part);
            rest > 19
                || (rest > 0
                    && scan.byte(next + rest) == b'.'
                    && is_part(scan.byte(next + rest + 1)))
        };
        let gap = match line >= LINE {
            true => wrap(scan, end, goes_on),
            false => 0,
        };
        if gap == 0 {
            break;
        }
        end += gap;
    }
    end
}

/// Returns the length of the line end at `at` and the spaces after it, if the text after these is `wanted`.
fn wrap(scan: &Scan, at: usize, wanted: impl Fn(usize) -> bool) -> usize {
    let gap = scan.run(at, 10, |byte| matches!(byte, b'\n' | b'\r' | b' ' | b'\t'));
    let line = scan.bytes(at..at + gap).contains(&b'\n');
    match line && wanted(at + gap) {
        true => gap,
        false => 0,
    }
}

/// Finds a Discord bot's token: the bot's number in base64, six characters of a time, and 27 or more of a signature.
fn discord(scan: &Scan, start: usize) -> Option<Range<usize>> {
    let is_part = |byte: u8| is_word(byte) || byte == b'-';
    let exact = BOTS
        .iter()
        .any(|bot| bot.as_bytes() == scan.bytes(start..start + 2));
    if !exact || is_part(scan.before(start)) {
        return None;
    }
    let number = scan.run(start, 32, |byte| byte.is_ascii_alphanumeric());
    let time = scan.run(start + number + 1, 8, is_part);
    let behind = start + number + time + 2;
    let signature = scan.run(behind, 64, is_part);
    let fits = (22..=28).contains(&number)
        && (5..=7).contains(&time)
        && (25..64).contains(&signature)
        && scan.byte(start + number) == b'.'
        && scan.byte(behind - 1) == b'.';
    fits.then_some(start..behind + signature)
}

/// Finds fourteen characters, `.atlasv1.`, and about sixty characters.
fn terraform(scan: &Scan, sign: Range<usize>) -> Option<Range<usize>> {
    let front = scan.run_before(sign.start, 24, |byte| byte.is_ascii_alphanumeric());
    let behind = scan.run(sign.end, 128, |byte| is_word(byte) || byte == b'-');
    ((10..24).contains(&front) && (40..128).contains(&behind))
        .then_some(sign.start - front..sign.end + behind)
}

/// Finds `pat`, fourteen characters, a dot, and 64 hexadecimal digits.
fn airtable(scan: &Scan, sign: Range<usize>) -> Option<Range<usize>> {
    if is_word(scan.before(sign.start)) {
        return None;
    }
    let name = scan.run(sign.end, 15, |byte| byte.is_ascii_alphanumeric());
    let secret = sign.end + name + 1;
    let length = scan.run(secret, 65, |byte| byte.is_ascii_hexdigit());
    (name == 14 && scan.byte(secret - 1) == b'.' && length == 64)
        .then_some(sign.start..secret + length)
}

/// Finds a Telegram bot's token: `123456789:AA` and 33 more characters; `at` is the colon.
fn telegram(scan: &Scan, at: usize) -> Option<Range<usize>> {
    let digits = scan.run_before(at, 11, |byte| byte.is_ascii_digit());
    let secret = scan.run(at + 1, 64, |byte| is_word(byte) || byte == b'-');
    ((8..=10).contains(&digits) && (30..64).contains(&secret))
        .then_some(at - digits..at + 1 + secret)
}

/// Finds an Azure client secret: three characters, a digit, `Q~` and 31 to 34 characters; `at` is the `Q`.
fn azure_client(scan: &Scan, at: usize) -> Option<Range<usize>> {
    let is_part = |byte: u8| is_word(byte) || matches!(byte, b'-' | b'.' | b'~');
    let front = scan.run_before(at, 5, is_part);
    let behind = scan.run(at + 2, 40, is_part);
    (front == 4 && scan.before(at).is_ascii_digit() && (31..=34).contains(&behind))
        .then_some(at - front..at + 2 + behind)
}
