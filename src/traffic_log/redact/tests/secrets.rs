//! Keys, tokens, passwords, credentials in addresses and headers.

use super::{RedactionRule, replaced_exactly};

/// Made-up tokens in their issuers' documented formats. Prefix and body are separate, so that scanners do not report this file as a leak.
const TOKENS: &[(&str, &str)] = &[
    ("sk-", "abcdefghijklmnopqrstuvwx1234"),
    ("sk-proj-", "abcDEF0123456789_-abcDEF0123456789"),
    ("sk-ant-api03-", "abcDEF0123456789_-abcDEF0123456789AA"),
    ("sk-or-v1-", "0123456789abcdef0123456789abcdef"),
    ("sk_live_", "4eC39HqLyjWDarjtT1zdp7dc"),
    ("rk_live_", "4eC39HqLyjWDarjtT1zdp7dc"),
    ("sk_test_", "4eC39HqLyjWDarjtT1zdp7dc"),
    ("whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
    ("ghp_", "16C7e42F292c6912E7710c838347Ae178B4a"),
    ("gho_", "16C7e42F292c6912E7710c838347Ae178B4a"),
    ("ghs_", "16C7e42F292c6912E7710c838347Ae178B4a"),
    (
        "github_pat_",
        "11AAAAAAA0abcdefghijkl_ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789",
    ),
    ("glpat-", "abcdEFGH1234567890xy"),
    ("AKIA", "IOSFODNN7EXAMPLE"),
    ("ASIA", "IOSFODNN7EXAMPLE"),
    ("AIza", "SyA1234567890abcdefghijklmnopqrstuv"),
    ("ya29.", "a0AfH6SMBx0123456789abcdefghij"),
    ("GOCSPX-", "0123456789abcdefghijklmnopqr"),
    ("xoxb-", "123456789012-1234567890123-abcdEFGH1234"),
    ("xoxp-", "123456789012-1234567890123-abcdEFGH1234"),
    ("xapp-", "1-A0123456789-1234567890123-abcdef"),
    ("SK", "0123456789abcdef0123456789abcdef"),
    ("AC", "0123456789abcdef0123456789abcdef"),
    (
        "SG.",
        "ngeVfQFYQlKU0ufo8x5d1A.TwL2iGABf9DHoTf-09kqeF8tAmbihYzrnopKc-1s5cr",
    ),
    ("npm_", "abcdefghijklmnopqrstuvwxyz0123456789"),
    ("pypi-", "AgEIcHlwaS5vcmcCJDAxMjM0NTY3LTg5YWItY2RlZi0"),
    ("hf_", "abcdefghijklmnopqrstuvwxyzABCDEFGH"),
    (
        "gsk_",
        "abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnop",
    ),
    ("r8_", "abcdefghijklmnopqrstuvwxyz0123456789a"),
    (
        "dop_v1_",
        "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    ),
    ("shpat_", "0123456789abcdef0123456789abcdef"),
    ("hvs.", "CAESIJ0123456789abcdefghijklmnop"),
    ("dckr_pat_", "0123456789abcdefghijklmnopq"),
    (
        "MTE5ODc2NTQzMjEwMTIzNDU2Nz",
        "g.GabcDE.0123456789abcdefghijklmnopqrstuvwxyz_A",
    ),
    (
        "0123456789abcd.atla",
        "sv1.0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopq",
    ),
    (
        "patAbCdEfGhIj",
        "KlMn.0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    ),
    ("dp.pt.", "0123456789abcdefghijklmnopqrstuvwxyzABCDEFG"),
    ("fo1_", "0123456789abcdefghijklmnopqrstuvwxyzABCDEFG"),
    (
        "FlyV1 ",
        "fm2_lJPECAAAAAAAAAAAxBCabcdefghijklmnopqrstuvwxyz0123456789",
    ),
    ("sb_secret_", "0123456789abcdefghijkl_mnopqrst"),
    ("nfp_", "0123456789abcdefghijklmnopqrstuvwxyzABCD"),
    ("pscale_tkn_", "0123456789abcdefghijklmnopqrstuvwxyzABCDEFG"),
    ("lsv2_pt_", "0123456789abcdef0123456789abcdef_0123456789"),
    (
        "pcsk_",
        "abcde_0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQ",
    ),
    ("tvly-", "0123456789abcdefghijABCDEFGHIJ01"),
    ("e2b_", "0123456789abcdef0123456789abcdef01234567"),
    ("re_", "AbCdEf12_0123456789abcdefghijklm"),
    ("LTAI", "5tAbCdEfGhIjKlMnOpQr"),
    ("AKID", "z8krbsJ5yKBZQpn74WFkmLPx3EXAMPLE1"),
    ("AQVN", "abcdefghijklmnopqrstuvwxyz0123456789ABCD"),
    (
        "dt0c01.",
        "ST2EY72KQINMH574WMNVI7YN.G3DFPBEJYMODIDAEX454M7YWBUVEFOWKPRVMWFASS64NFH52PX6BNDVFFM572RZM",
    ),
    (
        "EAA",
        "Ba0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789",
    ),
    (
        "AAAAAAAAAAAAAAAAAAAAA",
        "MLheAAAAAAA0%2BuSeid%2BULvsea4JtiGRiSDSJSI%3DEUifiRBkKG5E2XzMDjRfl76ZC9Ub0wnz4XsNiRVBChTYbJcE3F",
    ),
    ("glft-", "0123456789abcdefghij"),
    (
        "glagent-",
        "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMN",
    ),
    ("glimt-", "0123456789abcdefghijklmno"),
    ("HRKU-", "AA0123456789abcdefghijklmnopqrstuvwxyz"),
    ("bkua_", "0123456789abcdef0123456789abcdef01234567"),
    (
        "CCIPAT_",
        "0123456789abcdefghij_0123456789abcdef0123456789abcdef01234567",
    ),
    (
        "AKCp",
        "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456",
    ),
    (
        "cmVmdGtuOj",
        "AxOjE3MDAwMDAwMDA6YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4",
    ),
    ("oy2", "0123456789abcdefghijklmnopqrstuvwxyz0123456"),
    ("cio", "0123456789abcdefghijABCDEFGHIJ01"),
    ("ATBB", "0123456789abcdefghijklmnopqrABCD"),
    (
        "ops_eyJ",
        "zaWduSW5BZGRyZXNzIjoibXkuMXBhc3N3b3JkLmNvbSIsInVzZXJBdXRoIjp7Im1ldGhvZCI6IlNSUGctNDA5NiJ9",
    ),
    (
        "$2b$",
        "12$R9h/cIPz0gi.URNNX3kh2OPST9/PgBkqquzi.Ss7KIUgO2t0jWMUW",
    ),
    (
        "$6$",
        "rounds=5000$abcdefgh$0123456789abcdefghijklmnopqrstuvwxyz./0123456789abcdefghijklmnopqrstuvwxyz",
    ),
    ("$apr1$", "lZL6V/ci$eIMz/iKDkbtys/uU7LEK00"),
    ("$1$", "abcdefgh$0123456789abcdefghijkl"),
    (
        "$argon2id$",
        "v=19$m=65536,t=3,p=4$c29tZXNhbHQ$RdescudvJCsgt3ub+b27oA8r3Xk",
    ),
    (
        "ewogICJhbGciOiAi",
        "SFMyNTYiCn0.ewogICJzdWIiOiAiMTIzIgp9.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    ),
    (
        "eyJhbGciOiJIUzI1NiJ9.\neyJ",
        "zdWIiOiIxMjM0NTY3ODkwIn0.\ndozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    ),
    (
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6",
        "IkpvaG4g\n  RG9lIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    ),
    ("glsa_", "0123456789abcdefghijklmnopqrstuv_01234567"),
    (
        "eyJ",
        "hbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    ),
    ("eyJ", "hbGciOiJub25lIn0.eyJzdWIiOiIxMjM0NTY3ODkwIn0."),
    ("110201543:AA", "HdqTcvCH1vGWJxfSeofSAs0K5PALDsaw1"),
    ("abc8Q", "~0123456789abcdefghijklmnopqrstuvw"),
    (
        "AGE-SECRET-KEY-1",
        "QQPQZ0LL3Z5VZ0NQ6H0Q7Y9WQ3KZ0ZQ4W9Q5Y2KXQ0ZQ4W9Q5Y2KX",
    ),
];

#[test]
fn tokens_with_a_known_form_are_found() {
    for (prefix, body) in TOKENS {
        let token = format!("{prefix}{body}");
        // A dot may be part of some tokens.
        let token = token.trim_end_matches('.');
        let surroundings = [
            ("", ""),
            ("use ", " please"),
            ("(", ")"),
            ("see ", ", it works"),
            ("\"", "\""),
            ("`", "`"),
            ("[", "]"),
            ("鍵は", "です"),
        ];
        replaced_exactly(
            &[RedactionRule::Secret],
            surroundings.map(|(front, behind)| (front, token, behind)),
        );
    }
}

#[test]
fn webhooks_are_found() {
    replaced_exactly(
        &[RedactionRule::Secret],
        [
            (
                "https://hooks.slack.com/services/",
                "T00000000/B00000000/XXXXXXXXXXXXXXXXXXXXXXXX",
                "",
            ),
            (
                "post to https://discord.com/api/webhooks/",
                "123456789012345678/abcDEF-0123_456",
                " now",
            ),
            (
                "https://discordapp.com/api/webhooks/",
                "123456789012345678/abcDEF-0123_456",
                ")",
            ),
            (
                "https://acme.webhook.office.com/webhookb2/",
                "0-1@2/IncomingWebhook/3/4",
                "\"",
            ),
            (
                "https://maker.ifttt.com/trigger/",
                "x/with/key/abcdefghij",
                "",
            ),
            ("https://hooks.zapier.com/hooks/catch/", "123/abcdef/", ""),
            (
                "https://api.telegram.org/bot",
                "110201543:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw1/getMe",
                "",
            ),
        ],
    );
}

#[test]
fn credentials_in_addresses_are_found() {
    replaced_exactly(
        &[RedactionRule::Secret],
        [
            ("https://", "user:pass", "@host.example/x"),
            ("postgres://", "ann:s3cr:et", "@db:5432/app"),
            ("mongodb+srv://", "ann:p%40ss", "@cluster.example.net"),
            ("redis://", ":hunter2", "@cache:6379/0"),
            ("postgres://", "ann:p%40ss:w/0rdXY", "@db"),
            ("mysql://", "ann:pa/ss?w0rd", "@db/app"),
            ("amqps://", "ann:pa#ss", "@mq.example/v"),
            ("", "ann:hunter2", "@tcp(h:3306)/x"),
            ("dsn = \"", "ann:hunter2", "@unix(/tmp/m.sock)/x\""),
            ("jdbc:oracle:thin:", "ann/hunter2", "@h:1521:x"),
            ("sqlplus ", "ann/hunter2", "@h"),
            ("ftp://", "ann:p@ss", "@host"),
            ("amqp://", "guest:guest", "@localhost//"),
            ("https://", "0123456789abcdef0123", "@github.com/a/b.git"),
            ("curl -u ", "ann:hunter2", " https://host.example"),
            ("curl --user ", "ann:hunter2", " https://host.example"),
            (
                "https://host.example/x?token=",
                "abcdef0123456789abcd",
                "&y=1",
            ),
            (
                "https://host.example/x?api_key=",
                "abcdef0123456789",
                "&y=1",
            ),
            (
                "https://acme.blob.core.windows.net/c/f?sv=2020&sig=",
                "abc%2Bdef0123456789%3D",
                "&se=2030",
            ),
            ("https://host.example/?password=", "hunter", "&x=y"),
        ],
    );
}

#[test]
fn credentials_in_headers_are_found() {
    replaced_exactly(
        &[RedactionRule::Secret],
        [
            ("Authorization: Bearer ", "abcdef", ""),
            ("authorization: bearer ", "abcdefghijkl", "\nHost: x"),
            ("Authorization: Basic ", "dXNlcjpwYXNz", ""),
            ("\"Authorization\": \"Bearer ", "abc123def456", "\","),
            ("-H 'Authorization: token ", "abcdef0123", "'"),
            ("headers = {'Authorization': f'Bearer ", "abcdef0123", "'}"),
            ("Authorization: ", "abcdef0123456", ""),
            ("Proxy-Authorization: Basic ", "dXNlcjpwYXNz", ""),
            ("with Bearer ", "abcdef0123456789abcd", " as the token"),
            ("Cookie: ", "sessionid=abc123; csrftoken=xyz", ""),
            ("Set-Cookie: ", "sid=31d4d96e407aad42; Path=/", "; HttpOnly"),
            ("curl -H 'Cookie: ", "a=b; c=d", "' https://x"),
            ("X-Api-Key: ", "abcdef0123456789", ""),
            ("x-auth-token: ", "abcdef0123456789", ""),
        ],
    );
}

#[test]
fn values_that_a_name_marks_as_secret_are_found() {
    replaced_exactly(
        &[RedactionRule::Secret],
        [
            ("password: ", "hunter2", ""),
            ("Password: ", "swordfish", "\nuser: ann"),
            ("password:", "hunter2", ", user: ann"),
            ("My password is ", "hunter2", "."),
            ("password is: ", "hunter2", ""),
            ("Passwort: ", "geheim12", ""),
            ("Mein Passwort ist ", "geheim12", "!"),
            ("mot de passe : ", "azerty12", ""),
            ("contraseña: ", "clave123", ""),
            ("密码：", "hunter2", ""),
            ("パスワード: ", "hunter2", ""),
            ("пароль: ", "hunter2", ""),
            ("password ", "hunter2", " and user ann"),
            ("Password - ", "hunter2", ""),
            ("my password's ", "hunter2", ""),
            ("Das Passwort lautet ", "geheim12", "."),
            ("password: ", "p@ss(w0rd[1]{x", ""),
            ("export OPENAI_API_KEY=", "abcdef", ""),
            ("pwd=", "hunter2", ""),
            ("PASSWORD=", "swordfish", "\n"),
            ("DB_PASSWORD=", "swordfish", "\n"),
            ("Server=x;Uid=sa;Pwd=", "hunter2", ";Database=y"),
            ("\"password\": \"", "hunter2", "\""),
            ("{\"user\":\"ann\",\"password\":\"", "correct9 horse", "\"}"),
            ("{\\\"password\\\": \\\"", "hunter2", "\\\"}"),
            ("password = '", "hunter2", "'"),
            ("password => \"", "hunter2", "\""),
            ("config[\"password\"] = \"", "hunter2", "\""),
            ("<password>", "hunter2", "</password>"),
            ("mysql --password ", "hunter2", " -h x"),
            ("mysql --password=", "hunter2", " -h x"),
            ("api_key = \"", "abcdef0123456789", "\""),
            ("API_KEY=", "abcdef0123456789", ""),
            ("apikey: ", "abcdef0123456789", ""),
            ("api key: ", "abcdef0123456789", ""),
            ("my api key is ", "abcdef0123456789", ""),
            ("client_secret: ", "abcdef0123456789", ""),
            (
                "aws_secret_access_key = ",
                "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
                "",
            ),
            (
                "AWS_SECRET_ACCESS_KEY=",
                "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
                "",
            ),
            (
                "DefaultEndpointsProtocol=https;AccountName=x;AccountKey=",
                "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq==",
                ";Suffix=y",
            ),
            (
                "Endpoint=sb://x/;SharedAccessKey=",
                "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG=",
                "",
            ),
            ("access_token=", "abcdef0123456789", "&x=y"),
            ("refresh_token: '", "abcdef0123456789", "'"),
            ("token: ", "abcdef0123456789abcd", ""),
            ("secret: \"", "abcdefghijkl", "\""),
            ("PIN: ", "4469", ""),
            ("her pin is ", "4469", "."),
            ("CVC ", "123", ""),
            ("cvv: ", "1234", ""),
            ("OTP is ", "482913", ""),
            ("session_id=", "31d4d96e407aad42", ""),
            ("Driver={x};UID=sa;PWD={", "hunt;er2", "};"),
            ("PWD={", "hunter2", "}"),
            ("<add key=\"password\" value=\"", "hunter2", "\"/>"),
            ("<add name='DbPassword' value='", "hunter2", "' />"),
            ("<Password value=\"", "hunter2", "\"/>"),
            ("<password value=", "hunter2", " >"),
            ("{\"name\":\"password\",\"value\":\"", "hunter2", "\"}"),
            ("password:\n  ", "hunter2", ""),
            ("Password:\n", "hunter2", "\n\nThanks"),
            ("psk=\"", "hunter2x", "\""),
            ("wpa_passphrase=", "hunter2x", ""),
            ("WIFI:T:WPA;S:net;P:", "hunter2", ";;"),
            ("WIFI:S:net;T:WPA;P:", "hun\\;ter2", ";H:true;;"),
            ("كلمة المرور: ", "hunter2", ""),
            ("סיסמה: ", "hunter2", ""),
            ("パスワードは", "hunter2", "です"),
            ("密码是", "hunter2", "。"),
            ("비밀번호는 ", "hunter2", ""),
            ("apikey ", "abcdef0123456789", ""),
            ("my api key ", "abcdef0123456789abcd", " please"),
            ("encryption key ", "abcdef0123456789", ""),
            ("TOTP secret ", "JBSWY3DPEHPK3PXP", ""),
            ("signing key: ", "abcdef0123456789", ""),
            ("recovery code: ", "a1b2c3d4e5", ""),
            ("", "hunter2x", " is my password"),
            ("note: ", "hunter2x", " (password)"),
            ("", "4469", " is the PIN"),
            ("", "abcdef0123456789", " is our api key"),
        ],
    );
}
