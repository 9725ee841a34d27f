//! Prompts encoded in parts are compared with prompts encoded as a whole, over texts, templates and tokenizers.

use std::ops::Range;

use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::small_tokenizers::{
    CONTROL, byte_fallback, byte_level, llama_decoder, sentencepiece, unigram,
};
use super::{EncodedParts, OwnTrust, Rendered, Tokenizer};
use test_support::{data, shared_data};

/// Returns a byte-level BPE tokenizer with merges over a space, and another pre-tokenizer, normalizer and added tokens.
fn bpe(pre_tokenizer: Value, normalizer: Value, added: &[Value]) -> Tokenizer {
    let letters = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
    let mut letters: Vec<String> = letters.into_iter().map(String::from).collect();
    letters.sort_unstable();
    // `aĠ`, `Ġa` and `.Ġ` compete wherever a piece reaches over a seam.
    let merges = [
        ["a", "Ġ"],
        [".", "Ġ"],
        ["Ġ", "a"],
        ["Ġ", "b"],
        ["aĠ", "b"],
        ["Ġ", "Ġ"],
        ["a", "b"],
        ["Ġa", "b"],
        ["1", "2"],
    ];
    let tokens = letters.iter().cloned();
    let tokens = tokens.chain(merges.iter().map(|pair| pair.concat()));
    let vocab: serde_json::Map<String, Value> = tokens
        .enumerate()
        .map(|(id, token)| (token, json!(id)))
        .collect();
    let mut control: Vec<Value> = CONTROL.map(|token| added_token(token, true, &[])).to_vec();
    control.extend_from_slice(added);
    for (at, token) in control.iter_mut().enumerate() {
        token["id"] = json!(vocab.len() + at);
    }
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": control, "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": gpt2(),
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false, "byte_fallback": false,
                  "vocab": vocab, "merges": merges},
    });
    Tokenizer::from_bytes(tokenizer.to_string().as_bytes()).unwrap()
}

fn added_token(content: &str, special: bool, set: &[&str]) -> Value {
    let mut token = json!({"content": content, "special": special, "normalized": false,
        "single_word": false, "lstrip": false, "rstrip": false});
    set.iter().for_each(|flag| token[*flag] = json!(true));
    token
}

fn gpt2() -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true})
}

fn bytes_only(add_prefix_space: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": false})
}

fn sequence(steps: &[Value]) -> Value {
    json!({"type": "Sequence", "pretokenizers": steps})
}

fn split(pattern: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
}

/// Returns tokenizers that keep seams, by name.
fn keeping() -> Vec<(String, Tokenizer)> {
    let nfc = json!({"type": "NFC"});
    let digits = |individual: bool| json!({"type": "Digits", "individual_digits": individual});
    let prefixed = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let stripping = [
        added_token("<|strip|>", true, &["lstrip", "rstrip"]),
        added_token("<|word|>", true, &["single_word"]),
        added_token("  ", false, &[]),
        added_token("b\n", false, &["lstrip"]),
    ];
    let mut all = vec![
        ("gpt2's pattern".to_owned(), bpe(gpt2(), Value::Null, &[])),
        (
            "added tokens".to_owned(),
            bpe(gpt2(), nfc.clone(), &stripping),
        ),
        (
            "a prefix space".to_owned(),
            bpe(prefixed, nfc.clone(), &stripping),
        ),
        (
            "digits".to_owned(),
            bpe(sequence(&[digits(true), gpt2()]), Value::Null, &[]),
        ),
        (
            "runs of digits".to_owned(),
            bpe(sequence(&[digits(false), gpt2()]), nfc.clone(), &[]),
        ),
        ("unigram".to_owned(), unigram()),
    ];
    for (at, pattern) in super::encoded_parts::PATTERNS.into_iter().enumerate() {
        let steps = sequence(&[split(pattern), bytes_only(at % 2 == 1)]);
        all.push((format!("pattern {at}"), bpe(steps, nfc.clone(), &stripping)));
    }
    let minimind = data("tokenizers/minimind/tokenizer.json");
    all.push((
        "minimind".to_owned(),
        Tokenizer::from_file(&minimind).unwrap(),
    ));
    if cfg!(has_data) {
        for name in ["gpt2", "gpt-neox-20b"] {
            let file = shared_data("tokenizers").join(name).join("tokenizer.json");
            all.push((name.to_owned(), Tokenizer::from_file(&file).unwrap()));
        }
    }
    all
}

/// Returns tokenizers whose prompts are encoded as a whole, by name.
fn others() -> Vec<(&'static str, Tokenizer)> {
    let (null, digits) = (
        Value::Null,
        json!({"type": "Digits", "individual_digits": true}),
    );
    let added = |content, set| bpe(gpt2(), Value::Null, &[added_token(content, false, set)]);
    let lookbehind = r" ?\p{L}+|(?<=a) | |[^ \p{L}]+";
    vec![
        ("byte-level without a pattern", byte_level()),
        (
            "bytes, then a pattern",
            bpe(
                sequence(&[bytes_only(false), split(r"Ġ?\p{L}+")]),
                null.clone(),
                &[],
            ),
        ),
        (
            "digits alone",
            bpe(sequence(&[digits, bytes_only(false)]), null.clone(), &[]),
        ),
        (
            "a pattern that looks back",
            bpe(
                sequence(&[split(lookbehind), bytes_only(false)]),
                null.clone(),
                &[],
            ),
        ),
        ("no pre-tokenizer", bpe(null.clone(), null.clone(), &[])),
        (
            "a lower-casing normalizer",
            bpe(gpt2(), json!({"type": "Lowercase"}), &[]),
        ),
        ("a token over a seam", added("a b", &[])),
        ("a token that ends behind a seam", added("b ", &[])),
        ("a token that strips to its right", added("ab", &["rstrip"])),
        (
            "a word that begins with a space",
            added(" b", &["single_word"]),
        ),
        ("SentencePiece, prepended", byte_fallback()),
        (
            "SentencePiece, first",
            sentencepiece("first", llama_decoder()),
        ),
        (
            "SentencePiece, always",
            sentencepiece("always", llama_decoder()),
        ),
        (
            "SentencePiece, never",
            sentencepiece("never", llama_decoder()),
        ),
        (
            "stories260k",
            Tokenizer::from_file(&data("stories260k/tokenizer.json")).unwrap(),
        ),
    ]
}

/// Draws a text of words, white space, punctuation, Unicode and control tokens' names.
fn text(rng: &mut ChaCha8Rng, most: usize) -> String {
    const WORDS: [&str; 33] = [
        "a",
        "b",
        "ab",
        "hello",
        "it's",
        "we'LL",
        "'",
        "1",
        "12",
        "345",
        "x=1;",
        ".",
        "...",
        ",",
        "-",
        "(",
        "é",
        "e\u{301}",
        "\u{301}",
        "漢字",
        "🙂",
        "\u{200d}",
        "ﬁ",
        "\u{a0}",
        "\u{212a}",
        "ß",
        "▁",
        "<0x20>",
        "<|im_end|>",
        "<think>",
        "</s>",
        "<|strip|>",
        "<|word|>",
    ];
    const SPACES: [&str; 9] = [" ", " ", " ", " ", "", "  ", "\n", "\n ", "\t "];
    let mut text = String::new();
    for _ in 0..rng.random_range(0..=most) {
        text.push_str(WORDS.choose(rng).unwrap());
        text.push_str(SPACES.choose(rng).unwrap());
    }
    text
}

/// A prompt, and its slots.
fn prompt(frame: &[String; 4], slots: [&str; 3], system: &str) -> (Rendered, Vec<Range<usize>>) {
    let mut rendered = Rendered::new();
    rendered.push_trusted("<|im_start|> system a ");
    rendered.push_untrusted(system);
    rendered.push_trusted("<|im_end|><|word|>\n<|im_start|> user ");
    let mut places = Vec::new();
    for (frame, slot) in frame.iter().zip(slots) {
        rendered.push_untrusted(frame);
        places.push(rendered.push_untrusted(slot));
    }
    rendered.push_untrusted(&frame[3]);
    rendered.push_trusted("<|strip|> <|im_end|><|im_start|>assistant\nThe better one is");
    (rendered, places)
}

#[test]
fn prompts_in_parts_are_prompts_as_a_whole() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let keeping = keeping()
        .into_iter()
        .map(|(name, tokenizer)| (name, tokenizer, true));
    let others = others().into_iter();
    let others = others.map(|(name, tokenizer)| (name.to_owned(), tokenizer, false));
    for (name, tokenizer, keeps) in keeping.chain(others) {
        assert_eq!(tokenizer.keeps_seams(), keeps, "{name}");
        let mut bytes = 0;
        let mut encoded = 0;
        for round in 0..24 {
            let frame = std::array::from_fn(|_| text(&mut rng, 8));
            let texts: Vec<String> = (0..4).map(|_| text(&mut rng, 20)).collect();
            let (context, system) = (text(&mut rng, 30), text(&mut rng, 3));
            let parts = EncodedParts::new();
            for a in &texts {
                for b in &texts {
                    let (mut rendered, slots) = prompt(&frame, [&context, a, b], &system);
                    if round % 3 == 1 {
                        rendered.own.push(slots[0].clone());
                        rendered.untrusted = rendered
                            .untrusted
                            .iter()
                            .flat_map(|range| match range.contains(&slots[0].start) {
                                true => vec![range.start..slots[0].start, slots[0].end..range.end],
                                false => vec![range.clone()],
                            })
                            .collect();
                        rendered.own_trust = [OwnTrust::All, OwnTrust::Markers][round % 2];
                    }
                    let whole = tokenizer.encode_rendered(&rendered);
                    let joined = tokenizer.encode_cut(&rendered, &slots, &parts, round % 4);
                    let (Ok(whole), Ok(joined)) = (&whole, &joined) else {
                        assert_eq!(
                            whole.as_ref().map_err(ToString::to_string),
                            joined.as_ref().map_err(ToString::to_string)
                        );
                        continue;
                    };
                    assert_eq!(whole, joined, "{name}: {rendered:?}");
                    let least = tokenizer.encode_with_parts(&rendered, &slots, &parts);
                    assert_eq!(*whole, least.unwrap(), "{name}");
                    bytes += 2 * rendered.text.len() as u64;
                }
            }
            encoded += parts.encoded_bytes();
        }
        match keeps {
            true => assert!(
                encoded < bytes * 2 / 3,
                "{name}: {encoded} of {bytes} bytes"
            ),
            false => assert_eq!(encoded, bytes, "{name}"),
        }
    }
}

#[test]
fn other_tokenizers_would_not_keep_seams() {
    // The text after the seam is encoded otherwise behind the text before it.
    for (name, text, seam) in [
        ("bytes, then a pattern", "a b", 1),
        ("no pre-tokenizer", "a b", 1),
        ("a token over a seam", "a b", 1),
        ("a token that ends behind a seam", "b b", 1),
        ("a token that strips to its right", "ab b", 2),
        ("a word that begins with a space", "x b", 1),
        ("SentencePiece, prepended", "a b", 1),
    ] {
        let all = others();
        let (_, tokenizer) = all.iter().find(|(other, _)| *other == name).unwrap();
        let encode = |text: &str| tokenizer.encode_text(text).unwrap();
        let parts = [encode(&text[..seam]), encode(&text[seam..])].concat();
        assert_ne!(encode(text), parts, "{name}");
    }
}

#[test]
fn stored_parts_are_bounded() {
    let tokenizer = bpe(gpt2(), Value::Null, &[]);
    let parts = EncodedParts::new();
    let long = "ab ".repeat(100_000);
    for at in 0..8 {
        let mut rendered = Rendered::new();
        rendered.push_untrusted(&format!("{at} "));
        let slot = rendered.push_untrusted(&format!("{at} {long}"));
        rendered.push_untrusted("b b b");
        let encoded = tokenizer
            .encode_with_parts(&rendered, &[slot], &parts)
            .unwrap();
        assert_eq!(encoded, tokenizer.encode_rendered(&rendered).unwrap());
    }
    assert!(parts.stored_bytes() <= 1 << 20);
}
