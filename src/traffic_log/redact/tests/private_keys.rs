//! Private keys, whole and cut off, and their numbers.

use super::{RedactionRule, replaced_exactly, rules};

#[test]
fn private_keys_are_found_whole_and_cut_off() {
    let line = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj";
    for label in [
        "PRIVATE KEY",
        "RSA PRIVATE KEY",
        "EC PRIVATE KEY",
        "ENCRYPTED PRIVATE KEY",
        "OPENSSH PRIVATE KEY",
        "PGP PRIVATE KEY BLOCK",
    ] {
        let begin = format!("-----BEGIN {label}-----");
        let end = format!("-----END {label}-----");
        for (value, behind) in [
            (
                format!("{begin}\n{line}\n{line}\nMzEfYyji\n{end}"),
                "\nThat is all.",
            ),
            (
                format!(
                    "{begin}\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,0123\n\n{line}\n{end}"
                ),
                "",
            ),
            (format!("{begin}\\n{line}\\n{line}\\n{end}\\n"), ""),
            (format!("{begin} {line} {line} {end}"), " and more"),
            (
                format!("{begin}\nwhatever stands here, it is a key\n{end}"),
                "",
            ),
            // Keys without their ends.
            (
                format!("{begin}\n{line}\n{line}\nMzEfYyji"),
                "\nThat was my key, do you see it?",
            ),
            (format!("{begin}\n{line}"), ""),
            (format!("{begin}\\n{line}\\n{line}"), "\", more"),
            (format!("{begin} {line} {line}"), " and more"),
            (
                format!("{begin}\nVersion: GnuPG v2\n\n{line}\n=abcd"),
                "\n\nThat was it.",
            ),
        ] {
            replaced_exactly(
                &[RedactionRule::Secret],
                [
                    ("", value.trim_end_matches("\\n"), behind),
                    ("key: ", value.trim_end_matches("\\n"), behind),
                ]
                .map(|(front, value, after)| {
                    (front, value, if after.is_empty() { "" } else { after })
                }),
            );
        }
    }
    let ssh = format!(
        "---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----\n{line}\n---- END SSH2 ENCRYPTED PRIVATE KEY ----"
    );
    replaced_exactly(&[RedactionRule::Secret], [("", ssh, "\nThat is all.")]);
    // The remaining part of a key.
    for end in ["-----END PRIVATE KEY-----", "-----END RSA PRIVATE KEY-----"] {
        for rest in [
            format!("{line}\n{line}\nMzEfYyji\n{end}"),
            format!("{line}\n{end}"),
            format!("{line}\\n{line}\\n{end}"),
        ] {
            replaced_exactly(&[RedactionRule::Secret], [("", rest, "\nThat is all.")]);
        }
    }
    // A key without an end does not hide the text between it and the next.
    let text = format!(
        "-----BEGIN PRIVATE KEY-----\n{line}\nkeep this\n-----BEGIN PRIVATE KEY-----\n{line}\n-----END PRIVATE KEY-----\nand this"
    );
    let redacted = rules().apply(&text).unwrap();
    assert!(
        redacted.contains("\nkeep this\n") && redacted.ends_with("\nand this"),
        "{redacted}"
    );
    assert!(!redacted.contains("MII"), "{redacted}");
    let public = format!("-----BEGIN PUBLIC KEY-----\n{line}\n-----END PUBLIC KEY-----");
    assert_eq!(rules().apply(&public), None);
    let putty = format!(
        "PuTTY-User-Key-File-2: ssh-rsa\nEncryption: none\nPrivate-Lines: 2\n{line}\n{line}\nPrivate-MAC: 0123\n\nThat was it."
    );
    let redacted = rules().apply(&putty).unwrap();
    assert!(
        !redacted.contains("MII") && redacted.ends_with("That was it."),
        "{redacted}"
    );
}

#[test]
fn numbers_of_private_keys_are_found() {
    replaced_exactly(
        &[RedactionRule::Secret],
        [
            (
                "<Exponent>AQAB</Exponent><D>",
                "Ww9rDmFzc2RmZ2hqa2w3ODk=",
                "</D></RSAKeyValue>",
            ),
            ("<RSAKeyValue><P>", "0abcdefghijk123=", "</P>"),
            ("<InverseQ>\n", "abcdefgh/1234+56=", "\n</InverseQ>"),
            (
                "{\"kty\":\"EC\",\"d\":\"",
                "870MB6gfuTJ4HtUnUvYMyJpr5eUZNP4Bk43bVdj3eAE",
                "\"}",
            ),
            (
                "{\"kty\": \"oct\", \"k\": \"",
                "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T",
                "\"}",
            ),
        ],
    );
}
