//! Keys and tokens that are known by how they begin, and addresses that are secrets themselves.

use crate::preference::log::redact::rule::RedactionRule;
use crate::preference::log::redact::scan::{Scan, is_word};
use crate::preference::log::redact::words::{Hits, Sign, Word, anywhere};

/// What a token is made of.
#[derive(Debug, Clone, Copy)]
enum Body {
    /// ASCII letters and digits.
    Alnum,
    /// And underscores.
    Name,
    /// And dashes.
    Word,
    /// And dots.
    Dotted,
    /// Capitals and digits.
    Capitals,
    /// Hexadecimal digits.
    Hex,
    /// Base64 and dots, colons and dashes.
    Base64,
}

impl Body {
    fn has(self, byte: u8) -> bool {
        match self {
            Self::Alnum => byte.is_ascii_alphanumeric(),
            Self::Name => is_word(byte),
            Self::Word => is_word(byte) || byte == b'-',
            Self::Dotted => is_word(byte) || matches!(byte, b'-' | b'.'),
            Self::Capitals => byte.is_ascii_uppercase() || byte.is_ascii_digit(),
            Self::Hex => byte.is_ascii_hexdigit(),
            Self::Base64 => {
                is_word(byte) || matches!(byte, b'-' | b'.' | b'+' | b'/' | b'=' | b':')
            }
        }
    }
}

/// Tokens of one issuer: how they begin, what follows, and how much of it at least.
struct Token(&'static str, Body, usize);

const TOKENS: &[Token] = &[
    // OpenAI, Anthropic, OpenRouter, DeepSeek
    Token("sk-", Body::Word, 20),
    Token("sess-", Body::Alnum, 32),
    // Stripe, Razorpay
    Token("sk_live_", Body::Name, 10),
    Token("sk_test_", Body::Name, 10),
    Token("rk_live_", Body::Name, 10),
    Token("rk_test_", Body::Name, 10),
    Token("whsec_", Body::Base64, 16),
    Token("rzp_live_", Body::Alnum, 14),
    Token("rzp_test_", Body::Alnum, 14),
    // GitHub, GitLab
    Token("ghp_", Body::Alnum, 30),
    Token("gho_", Body::Alnum, 30),
    Token("ghu_", Body::Alnum, 30),
    Token("ghs_", Body::Alnum, 30),
    Token("ghr_", Body::Alnum, 30),
    Token("github_pat_", Body::Name, 22),
    Token("glpat-", Body::Dotted, 20),
    Token("gldt-", Body::Dotted, 20),
    Token("glrt-", Body::Dotted, 20),
    Token("glptt-", Body::Dotted, 20),
    Token("glcbt-", Body::Dotted, 20),
    Token("glsoat-", Body::Dotted, 20),
    Token("gloas-", Body::Dotted, 20),
    // Amazon
    Token("AKIA", Body::Capitals, 16),
    Token("ASIA", Body::Capitals, 16),
    Token("ABIA", Body::Capitals, 16),
    Token("ACCA", Body::Capitals, 16),
    // Google
    Token("AIza", Body::Word, 35),
    Token("ya29.", Body::Dotted, 20),
    Token("GOCSPX-", Body::Word, 20),
    Token("1//0", Body::Word, 30),
    // Slack
    Token("xoxa-", Body::Word, 10),
    Token("xoxb-", Body::Word, 10),
    Token("xoxc-", Body::Word, 10),
    Token("xoxd-", Body::Word, 10),
    Token("xoxe-", Body::Word, 10),
    Token("xoxe.", Body::Dotted, 10),
    Token("xoxo-", Body::Word, 10),
    Token("xoxp-", Body::Word, 10),
    Token("xoxr-", Body::Word, 10),
    Token("xoxs-", Body::Word, 10),
    Token("xapp-", Body::Word, 10),
    // Twilio, SendGrid, Mailgun, Mailchimp
    Token("SK", Body::Hex, 32),
    Token("AC", Body::Hex, 32),
    Token("SG.", Body::Dotted, 40),
    Token("key-", Body::Hex, 32),
    Token("xkeysib-", Body::Word, 60),
    // Package registries, containers
    Token("npm_", Body::Alnum, 30),
    Token("pypi-", Body::Word, 20),
    Token("rubygems_", Body::Hex, 48),
    Token("dckr_pat_", Body::Word, 20),
    Token("dckr_oat_", Body::Word, 20),
    // Model hosts
    Token("hf_", Body::Alnum, 30),
    Token("r8_", Body::Alnum, 30),
    Token("gsk_", Body::Alnum, 40),
    Token("xai-", Body::Alnum, 40),
    Token("pplx-", Body::Alnum, 40),
    Token("nvapi-", Body::Word, 40),
    Token("dapi", Body::Hex, 32),
    // Clouds and services
    Token("dop_v1_", Body::Hex, 60),
    Token("doo_v1_", Body::Hex, 60),
    Token("dor_v1_", Body::Hex, 60),
    Token("shpat_", Body::Hex, 32),
    Token("shpca_", Body::Hex, 32),
    Token("shppa_", Body::Hex, 32),
    Token("shpss_", Body::Hex, 32),
    Token("sq0atp-", Body::Word, 22),
    Token("sq0csp-", Body::Word, 40),
    Token("EAAAE", Body::Word, 50),
    Token("EAACEdEose0cBA", Body::Alnum, 10),
    Token("glsa_", Body::Name, 32),
    Token("glc_", Body::Base64, 32),
    Token("hvs.", Body::Word, 24),
    Token("hvb.", Body::Word, 24),
    Token("sntrys_", Body::Base64, 30),
    Token("sntryu_", Body::Hex, 60),
    Token("ATATT3", Body::Base64, 60),
    Token("ATCTT3", Body::Base64, 60),
    Token("PMAK-", Body::Word, 40),
    Token("lin_api_", Body::Alnum, 30),
    Token("ntn_", Body::Alnum, 40),
    Token("secret_", Body::Alnum, 40),
    Token("NRAK-", Body::Capitals, 24),
    Token("sbp_", Body::Hex, 40),
    Token("pul-", Body::Hex, 40),
    Token("tskey-", Body::Word, 16),
    Token("figd_", Body::Word, 30),
    Token("AGE-SECRET-KEY-1", Body::Capitals, 40),
    Token("access_token$production$", Body::Name, 32),
    Token("phx_", Body::Alnum, 40),
    Token("sl.", Body::Word, 120),
];

/// Addresses that let all write who know them: what stands behind one of these is secret.
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

/// The prefixes whose tokens have a form of their own.
const JSON_WEB_TOKEN: usize = TOKENS.len();
const TELEGRAM: usize = TOKENS.len() + 1;
const AZURE_CLIENT: usize = TOKENS.len() + 2;

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
            word("eyJ", JSON_WEB_TOKEN),
            word(":AA", TELEGRAM),
            word("Q~", AZURE_CLIENT),
        ])
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
            Sign::Token(place) => TOKENS.get(place).and_then(|token| {
                // Prefixes are in the words without regard to capitals, and may stand within other words.
                let exact = scan.bytes(range.clone()) == token.0.as_bytes()
                    && !scan.before(range.start).is_ascii_alphanumeric();
                if !exact {
                    return None;
                }
                let length = scan.run(range.end, usize::MAX, |byte| token.1.has(byte));
                let fits = match token.1 {
                    // Those have one length.
                    Body::Hex | Body::Capitals => length >= token.2 && length <= 2 * token.2,
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

/// `header.payload.signature`, each in base64 for addresses; the signature may be empty or cut off.
fn json_web_token(scan: &Scan, start: usize) -> Option<std::ops::Range<usize>> {
    let is_part = |byte: u8| is_word(byte) || byte == b'-';
    let exact = scan.bytes(start..start + 3) == b"eyJ" && !is_part(scan.before(start));
    let header = scan.run(start, if exact { usize::MAX } else { 0 }, is_part);
    if header < 12 || scan.byte(start + header) != b'.' {
        return None;
    }
    let payload = scan.run(start + header + 1, usize::MAX, is_part);
    let mut end = start + header + 1 + payload;
    // Encrypted ones have five parts.
    for _ in 0..3 {
        if scan.byte(end) == b'.' {
            let part = scan.run(end + 1, usize::MAX, is_part);
            end += if part > 0 { part + 1 } else { 0 };
        }
    }
    (end - start - header > 10).then_some(start..end)
}

/// `123456789:AA` and 33 characters more: a bot of Telegram's; `at` is the colon.
fn telegram(scan: &Scan, at: usize) -> Option<std::ops::Range<usize>> {
    let digits = scan.run_before(at, 11, |byte| byte.is_ascii_digit());
    let secret = scan.run(at + 1, 64, |byte| is_word(byte) || byte == b'-');
    ((8..=10).contains(&digits) && (30..64).contains(&secret))
        .then_some(at - digits..at + 1 + secret)
}

/// Three characters, a digit, `Q~` and 31 to 34 characters: a client's secret of Azure's; `at` is the `Q`.
fn azure_client(scan: &Scan, at: usize) -> Option<std::ops::Range<usize>> {
    let is_part = |byte: u8| is_word(byte) || matches!(byte, b'-' | b'.' | b'~');
    let front = scan.run_before(at, 5, is_part);
    let behind = scan.run(at + 2, 40, is_part);
    (front == 4 && scan.before(at).is_ascii_digit() && (31..=34).contains(&behind))
        .then_some(at - front..at + 2 + behind)
}
