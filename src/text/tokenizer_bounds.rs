//! Limits on the growth of text in a `tokenizer.json`: a file from an unknown source must not turn a kilobyte into gigabytes.

use tokenizers::decoders::DecoderWrapper;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::normalizers::replace::Replace;

/// Limit on the factor by which all normalisers, or all decoders, together may lengthen a text.
const MOST_GROWTH: f64 = 64.0;

/// Length limit of a token, in bytes. The longest of known vocabularies has 512.
const LONGEST_TOKEN: usize = 4096;

/// Checks the limits of a tokenizer. Returns the length of its longest token, in bytes.
///
/// # Errors
/// If a limit is exceeded; the message names it.
pub(super) fn check(tokenizer: &tokenizers::Tokenizer) -> Result<usize, String> {
    let normalizer = tokenizer.get_normalizer().map_or(1.0, growth_of_normalizer);
    let decoder = tokenizer.get_decoder().map_or(1.0, growth_of_decoder);
    for (what, growth) in [("normalizer", normalizer), ("decoder", decoder)] {
        if growth > MOST_GROWTH {
            return Err(format!(
                "its {what} may make a text {growth:.0} times as long; the limit is {MOST_GROWTH:.0} times"
            ));
        }
    }
    let vocabulary = tokenizer.get_vocab(true);
    let longest = vocabulary.keys().map(String::len).max().unwrap_or(1);
    match longest <= LONGEST_TOKEN {
        true => Ok(longest.max(1)),
        false => Err(format!(
            "it has a token of {longest} bytes; the limit is {LONGEST_TOKEN}"
        )),
    }
}

fn growth_of_normalizer(normalizer: &NormalizerWrapper) -> f64 {
    match normalizer {
        NormalizerWrapper::Sequence(sequence) => {
            let parts: &[NormalizerWrapper] = sequence.as_ref();
            parts.iter().map(growth_of_normalizer).product()
        }
        NormalizerWrapper::Replace(replace) => growth_of_replace(replace),
        // Once per span of text, which has at least one byte.
        NormalizerWrapper::Prepend(prepend) => 1.0 + prepend.prepend.len() as f64,
        // The growth of the others comes from Unicode: less than 20 times.
        _ => 1.0,
    }
}

fn growth_of_decoder(decoder: &DecoderWrapper) -> f64 {
    match decoder {
        DecoderWrapper::Sequence(sequence) => sequence
            .get_decoders()
            .iter()
            .map(growth_of_decoder)
            .product(),
        DecoderWrapper::Replace(replace) => growth_of_replace(replace),
        _ => 1.0,
    }
}

/// Returns the factor by which a text grows if all of it is replaced.
fn growth_of_replace(replace: &Replace) -> f64 {
    let pattern = serde_json::to_value(replace).unwrap_or_default();
    // A regular expression may match a single byte.
    let matched = pattern["pattern"]["String"].as_str().map_or(1, str::len);
    (replace.content.len() as f64 / matched.max(1) as f64).max(1.0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::Tokenizer;

    fn load(normalizer: Value, decoder: Value, vocab: Value) -> Result<Tokenizer, String> {
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": normalizer, "pre_tokenizer": null, "post_processor": null, "decoder": decoder,
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false, "byte_fallback": false,
                      "vocab": vocab, "merges": []},
        });
        Tokenizer::from_bytes(file.to_string().as_bytes()).map_err(|error| error.to_string())
    }

    fn replace(pattern: &str, content: &str) -> Value {
        json!({"type": "Replace", "pattern": {"String": pattern}, "content": content})
    }

    #[test]
    fn what_lengthens_texts_beyond_measure_is_refused_at_load() {
        let tenfold = || replace("a", "aaaaaaaaaa");
        let ninefold: Vec<Value> = (0..9).map(|_| tenfold()).collect();
        let normalizers = json!({"type": "Sequence", "normalizers": ninefold});
        let decoders = json!({"type": "Sequence", "decoders": ninefold});
        let longest = |bytes: usize| json!({"a": 0, "b".repeat(bytes): 1});
        // Tokenizers within the limits, ones slightly beyond them, and a word of the error.
        let table = [
            (load(tenfold(), tenfold(), json!({"a": 0})), None),
            (
                load(replace("a", &"a".repeat(64)), Value::Null, json!({"a": 0})),
                None,
            ),
            (
                load(replace("a", &"a".repeat(65)), Value::Null, json!({"a": 0})),
                Some("normalizer"),
            ),
            (
                load(normalizers, Value::Null, json!({"a": 0})),
                Some("normalizer"),
            ),
            (
                load(Value::Null, decoders, json!({"a": 0})),
                Some("decoder"),
            ),
            (
                load(
                    json!({"type": "Prepend", "prepend": "x".repeat(64)}),
                    Value::Null,
                    json!({"a": 0}),
                ),
                Some("normalizer"),
            ),
            (load(Value::Null, Value::Null, longest(4096)), None),
            (
                load(Value::Null, Value::Null, longest(4097)),
                Some("token of 4097 bytes"),
            ),
        ];
        for (at, (loaded, refusal)) in table.into_iter().enumerate() {
            match (loaded, refusal) {
                (Ok(_), None) => {}
                (Err(error), Some(word)) => assert!(error.contains(word), "{at}: {error}"),
                (Ok(_), Some(word)) => panic!("{at}: it was loaded in spite of its {word}"),
                (Err(error), None) => panic!("{at}: {error}"),
            }
        }
    }

    #[test]
    fn replacements_of_equal_length_do_not_count_however_many_there_are() {
        let many: Vec<Value> = (0..100).map(|_| replace("、", "，")).collect();
        let normalizer = json!({"type": "Sequence", "normalizers": many});
        let tokenizer = load(normalizer, Value::Null, json!({"a": 0, "bcd": 1})).unwrap();
        assert_eq!(tokenizer.longest_token(), 3);
    }
}
