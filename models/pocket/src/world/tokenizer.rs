//! The default model's tokenizer and text files, in the format of Hugging Face's libraries.
//!
//! A byte-level BPE without merges and with `ignore_merges`: a pre-token in the vocabulary is one token,
//! any other is split into its bytes. `models/pocket` contains the output of this module; a test compares them.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::vocabulary::{SPECIAL_TOKENS, words};

/// The pattern of the pre-tokenizer. `vocabulary::pre_tokens` implements the same pattern without a regex.
pub const PATTERN: &str = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]|\s";

/// The chat template. An answer begins on a new line, like a candidate in the judge's prompt.
pub const CHAT_TEMPLATE: &str = "{% for message in messages %}\
{{ '<|' + message['role'] + '|>' }}\
{% if message['role'] == 'assistant' %}{{ '\\n' }}{% endif %}\
{{ message['content'] + '<|end|>' }}\
{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}";

/// Returns the vocabulary in the order of ids: bytes, words, special tokens, then spare entries up to a multiple of 32.
pub fn vocabulary() -> Vec<String> {
    let mut entries: Vec<String> = (0..=255u8).map(|b| byte_char(b).to_string()).collect();
    entries.extend(words().iter().map(|word| byte_level(word)));
    entries.extend(SPECIAL_TOKENS.map(String::from));
    for spare in 0..entries.len().next_multiple_of(32) - entries.len() {
        entries.push(format!("<|spare_{spare}|>"));
    }
    entries
}

/// Returns the id of one of the [`SPECIAL_TOKENS`].
pub fn special_id(token: &str) -> Option<usize> {
    vocabulary().iter().position(|entry| entry == token)
}

/// Returns the contents of `tokenizer.json`.
pub fn tokenizer_json() -> Value {
    let entries = vocabulary();
    let first_special = 256 + words().len();
    let vocab: Map<String, Value> = entries[..first_special]
        .iter()
        .enumerate()
        .map(|(id, entry)| (entry.clone(), json!(id)))
        .collect();
    let added: Vec<Value> = entries
        .iter()
        .enumerate()
        .skip(first_special)
        .map(|(id, entry)| {
            json!({
                "id": id, "content": entry, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            })
        })
        .collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": false},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
            ],
        },
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
            "vocab": vocab, "merges": [],
        },
    })
}

/// Returns every text file of the model directory that belongs to the tokenizer: name and content.
pub fn files() -> Vec<(&'static str, String)> {
    let end = "<|end|>";
    let pad = "<|pad|>";
    let specials: Vec<&str> = SPECIAL_TOKENS[1..4].to_vec();
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 512,
        "eos_token": end,
        "pad_token": pad,
        "additional_special_tokens": specials,
        "clean_up_tokenization_spaces": false,
        "chat_template": CHAT_TEMPLATE,
    });
    let map = json!({
        "eos_token": end, "pad_token": pad, "additional_special_tokens": specials,
    });
    let generation = json!({
        "eos_token_id": special_id(end), "pad_token_id": special_id(pad),
        "do_sample": true, "temperature": 1.0, "max_new_tokens": 64,
    });
    let pretty = |value: &Value| {
        let mut text =
            serde_json::to_string_pretty(value).expect("a JSON value prints: this is a bug");
        text.push('\n');
        text
    };
    vec![
        ("tokenizer.json", pretty(&tokenizer_json())),
        ("tokenizer_config.json", pretty(&config)),
        ("special_tokens_map.json", pretty(&map)),
        ("generation_config.json", pretty(&generation)),
    ]
}

/// Writes [`files`] into a directory, which is created if needed.
///
/// # Errors
/// Returns errors of the file system.
pub fn write(dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    for (name, content) in files() {
        std::fs::write(dir.join(name), content)?;
    }
    Ok(())
}

/// Returns GPT-2's printable character for a byte: the byte itself if printable, otherwise the next free one from 256 on.
fn byte_char(byte: u8) -> char {
    let prints = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if prints(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !prints(b)).count() as u32;
    char::from_u32(256 + before).expect("below the surrogates: this is a bug")
}

fn byte_level(text: &str) -> String {
    text.bytes().map(byte_char).collect()
}

#[cfg(test)]
mod tests {
    use super::super::dice::Dice;
    use super::super::style::Style;
    use super::super::task::{Split, Task};
    use super::super::vocabulary::pre_tokens;
    use super::*;

    fn loaded() -> tokenizers::Tokenizer {
        let json = serde_json::to_vec(&tokenizer_json()).unwrap();
        tokenizers::Tokenizer::from_bytes(json).unwrap()
    }

    #[test]
    fn the_library_loads_it_and_text_comes_back() {
        let tokenizer = loaded();
        assert_eq!(tokenizer.get_vocab_size(true), vocabulary().len());
        assert_eq!(vocabulary().len() % 32, 0);
        assert!(vocabulary().len() <= 640, "{}", vocabulary().len());
        for text in [
            "Reverse the word planet.",
            "Grüße, 世界!\n\t🦀  x",
            "What is 34+28?",
        ] {
            let ids = tokenizer.encode(text, false).unwrap();
            assert_eq!(tokenizer.decode(ids.get_ids(), false).unwrap(), text);
        }
        let ids = tokenizer
            .encode("<|user|>Add 3 and 4.<|end|>", false)
            .unwrap();
        assert_eq!(
            ids.get_tokens(),
            ["<|user|>", "Add", "Ġ3", "Ġand", "Ġ4", ".", "<|end|>"]
        );
        assert_eq!(ids.get_ids()[6] as usize, special_id("<|end|>").unwrap());
    }

    #[test]
    fn the_hand_written_cut_is_the_library_s() {
        let tokenizer = loaded();
        let mut dice = Dice::new(1, 0);
        let vocabulary = words();
        for _ in 0..500 {
            let task = Task::sample(Split::Train, &mut dice);
            let text = format!(
                "{}\n{}  é 世 1",
                task.prompt,
                task.right(Style::draw(0.5, 0.5, 0.5, &mut dice), &mut dice)
            );
            let expected: Vec<String> = pre_tokens(&text)
                .into_iter()
                .flat_map(|piece| {
                    if vocabulary.contains(piece) {
                        vec![byte_level(piece)]
                    } else {
                        piece.bytes().map(|b| byte_char(b).to_string()).collect()
                    }
                })
                .collect();
            assert_eq!(
                tokenizer.encode(text, false).unwrap().get_tokens(),
                expected
            );
        }
    }

    #[test]
    fn every_word_the_world_writes_is_one_token() {
        // Instructions about numbers spell nothing: all their letters belong to words of the vocabulary.
        use super::super::content::Kind;
        let tokenizer = loaded();
        let mut dice = Dice::new(2, 0);
        let kinds = [
            Kind::Add,
            Kind::Subtract,
            Kind::Pair,
            Kind::Sort,
            Kind::Largest,
        ];
        for _ in 0..2000 {
            let task = Task::sample_from(Split::Train, &kinds, &[1.0; 4], &mut dice);
            let answer = task.right(Style::draw(0.5, 0.5, 0.5, &mut dice), &mut dice);
            for text in [task.prompt, answer] {
                let encoded = tokenizer.encode(text.as_str(), false).unwrap();
                for token in encoded.get_tokens() {
                    let spelled = token.len() == 1 && token.as_bytes()[0].is_ascii_alphabetic();
                    assert!(!spelled && token != "Ġ", "{text}: {token}");
                }
            }
        }
        for principle in super::super::principle::Principle::ALL {
            for text in [
                principle.request().to_string(),
                format!("{} {}", principle.opposite(), principle.request()),
                format!("Which answer is {} and brief?", principle.name()),
            ] {
                let encoded = tokenizer.encode(text.as_str(), false).unwrap();
                assert!(
                    encoded
                        .get_tokens()
                        .iter()
                        .all(|t| t.len() > 1 || ".?".contains(t)),
                    "{:?}",
                    encoded.get_tokens()
                );
            }
        }
    }

    #[test]
    fn the_committed_files_are_what_this_module_writes() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR"));
        for (name, content) in files() {
            let committed = std::fs::read_to_string(dir.join(name)).unwrap_or_default();
            assert!(committed == content, "models/pocket/{name} differs");
        }
    }

    #[test]
    fn the_committed_judge_template_has_the_frame_of_the_vocabulary() {
        use super::super::principle::*;
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("judge_template.toml");
        let text = std::fs::read_to_string(path).unwrap();
        for line in [
            format!("user = \"\"\"\n{JUDGE_FRAME}\"\"\""),
            format!("lead_in = {JUDGE_LEAD_IN:?}"),
            format!("labels = {JUDGE_LABELS:?}"),
            format!("default_principle = {:?}", Principle::Correct.name()),
            format!("principle_separator = {PRINCIPLE_JOIN:?}"),
        ] {
            assert!(text.contains(&line), "{line}");
        }
    }
}
