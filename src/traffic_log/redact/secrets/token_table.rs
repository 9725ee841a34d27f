//! Keys and tokens with a known prefix, as their issuers document them.

use crate::redact::scan::is_word;

/// The characters of a token.
#[derive(Debug, Clone, Copy)]
pub(super) enum Body {
    /// ASCII letters and digits.
    Alnum,
    /// As `Alnum`, and underscores.
    Name,
    /// As `Name`, and dashes.
    Word,
    /// As `Word`, and dots.
    Dotted,
    /// Capitals and digits.
    Capitals,
    /// Hexadecimal digits.
    Hex,
    /// Base64 and dots, colons and dashes.
    Base64,
    /// ASCII letters, digits, underscores and dashes; with at least one digit and one capital.
    Mixed,
    /// Password hashes with their salts.
    Hash,
    /// ASCII letters and digits, and percent escapes.
    Escaped,
}

impl Body {
    pub fn has(self, byte: u8) -> bool {
        match self {
            Self::Alnum => byte.is_ascii_alphanumeric(),
            Self::Name => is_word(byte),
            Self::Word | Self::Mixed => is_word(byte) || byte == b'-',
            Self::Dotted => is_word(byte) || matches!(byte, b'-' | b'.'),
            Self::Capitals => byte.is_ascii_uppercase() || byte.is_ascii_digit(),
            Self::Hex => byte.is_ascii_hexdigit(),
            Self::Escaped => byte.is_ascii_alphanumeric() || byte == b'%',
            Self::Hash => {
                is_word(byte) || matches!(byte, b'$' | b'.' | b'+' | b'/' | b'=' | b',' | b'-')
            }
            Self::Base64 => {
                is_word(byte) || matches!(byte, b'-' | b'.' | b'+' | b'/' | b'=' | b':')
            }
        }
    }
}

/// The tokens of one issuer: their prefix, the characters after it, and the minimum number of these.
pub(super) struct Token(pub &'static str, pub Body, pub usize);

pub(super) const TOKENS: &[Token] = &[
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
    Token("dp.pt.", Body::Alnum, 40),
    Token("dp.st.", Body::Dotted, 40),
    Token("dp.ct.", Body::Alnum, 40),
    Token("dp.sa.", Body::Alnum, 40),
    Token("dp.said.", Body::Alnum, 40),
    Token("dp.scim.", Body::Alnum, 40),
    Token("dp.audit.", Body::Alnum, 40),
    Token("fo1_", Body::Word, 30),
    Token("fm1r_", Body::Base64, 40),
    Token("fm1a_", Body::Base64, 40),
    Token("fm2_", Body::Base64, 40),
    Token("FlyV1 ", Body::Base64, 40),
    Token("sb_secret_", Body::Word, 20),
    Token("nfp_", Body::Alnum, 36),
    Token("pscale_tkn_", Body::Dotted, 30),
    Token("pscale_pw_", Body::Dotted, 30),
    Token("pscale_oauth_", Body::Dotted, 30),
    Token("dt0c01.", Body::Dotted, 60),
    Token("dt0s01.", Body::Dotted, 60),
    Token("dt0s02.", Body::Dotted, 60),
    Token("LTAI", Body::Alnum, 12),
    Token("AKID", Body::Alnum, 32),
    Token("AQVN", Body::Word, 30),
    Token("AKLT", Body::Alnum, 30),
    Token("t1.", Body::Base64, 100),
    Token("y0_", Body::Word, 40),
    Token("SCW", Body::Capitals, 17),
    Token("HRKU-", Body::Word, 30),
    Token("bkua_", Body::Hex, 40),
    Token("CCIPAT_", Body::Name, 40),
    Token("CCIPRJ_", Body::Name, 40),
    Token("AKCp", Body::Alnum, 60),
    Token("cmVmdGtuOj", Body::Alnum, 40),
    Token("oy2", Body::Alnum, 43),
    Token("cio", Body::Mixed, 32),
    Token("ATBB", Body::Alnum, 28),
    Token("ops_eyJ", Body::Base64, 60),
    Token("EAA", Body::Mixed, 60),
    Token("AAAAAAAAAAAAAAAAAAAA", Body::Escaped, 40),
    Token("tfp_", Body::Word, 40),
    Token("pnu_", Body::Alnum, 36),
    Token("pnb_", Body::Alnum, 36),
    Token("xsmtpsib-", Body::Word, 60),
    Token("NRII-", Body::Word, 32),
    Token("NRJS-", Body::Hex, 19),
    Token("re_", Body::Mixed, 24),
    Token("hvr.", Body::Word, 24),
    Token("vercel_", Body::Mixed, 24),
    Token("lin_oauth_", Body::Alnum, 30),
    Token("sk_", Body::Hex, 40),
    // Other tokens of GitLab
    Token("glft-", Body::Dotted, 20),
    Token("glffct-", Body::Dotted, 20),
    Token("glagent-", Body::Dotted, 20),
    Token("glimt-", Body::Dotted, 20),
    Token("glrtr-", Body::Dotted, 20),
    Token("glwt-", Body::Dotted, 20),
    Token("GR1348941", Body::Word, 20),
    // Model hosts and their tools
    Token("lsv2_pt_", Body::Name, 36),
    Token("lsv2_sk_", Body::Name, 36),
    Token("ls__", Body::Alnum, 30),
    Token("pcsk_", Body::Name, 40),
    Token("tvly-", Body::Word, 20),
    Token("e2b_", Body::Hex, 40),
    Token("tgp_v1_", Body::Word, 40),
    Token("csk-", Body::Alnum, 40),
    Token("fw_", Body::Mixed, 22),
    Token("rpa_", Body::Alnum, 40),
    Token("jina_", Body::Alnum, 40),
    Token("ABSK", Body::Base64, 100),
    Token("bedrock-api-key-", Body::Base64, 60),
    // Password hashes
    Token("$2a$", Body::Hash, 50),
    Token("$2b$", Body::Hash, 50),
    Token("$2x$", Body::Hash, 50),
    Token("$2y$", Body::Hash, 50),
    Token("$1$", Body::Hash, 23),
    Token("$5$", Body::Hash, 40),
    Token("$6$", Body::Hash, 60),
    Token("$y$", Body::Hash, 40),
    Token("$7$", Body::Hash, 40),
    Token("$apr1$", Body::Hash, 23),
    Token("$argon2", Body::Hash, 40),
    Token("$scrypt$", Body::Hash, 40),
    Token("$pbkdf2", Body::Hash, 40),
    Token("pbkdf2_sha", Body::Hash, 40),
    Token("pbkdf2:sha", Body::Base64, 12),
    Token("scrypt:", Body::Hash, 60),
    Token("{SSHA}", Body::Base64, 24),
    Token("{SHA}", Body::Base64, 24),
    Token("{SSHA512}", Body::Base64, 60),
    Token("{CRYPT}", Body::Hash, 12),
];
