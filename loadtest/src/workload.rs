//! Requests of the load: random prompts of a given length, and a mix of all the server's calls.

use std::time::Duration;

use anyhow::Context;
use pocket::world::corpus::{CurriculumOptions, held_out_tasks};
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::call::{Call, Reading};
use crate::client::Client;

/// The lowest token id of a prompt. In most vocabularies control tokens come first.
const FIRST_ID: u32 = 10;

const WORDS: [&str; 32] = [
    "sun", "river", "seven", "plus", "letter", "green", "house", "because", "small", "winter",
    "answer", "number", "name", "quick", "table", "three", "under", "garden", "paper", "list",
    "what", "stone", "right", "music", "after", "morning", "bread", "only", "write", "summer",
    "north", "ten",
];

/// Returns the random generator of one part of the work, so that the results do not depend on the order of the parts.
pub fn rng(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}

/// Draws `count` token ids.
pub fn ids(rng: &mut ChaCha8Rng, count: usize, vocab: u32) -> Vec<u32> {
    (0..count)
        .map(|_| rng.random_range(FIRST_ID..vocab))
        .collect()
}

/// Returns a streamed completion of exactly `max_tokens` tokens.
pub fn completion(kind: &'static str, prompt: &[u32], max_tokens: usize) -> Call {
    Call {
        kind,
        path: "/v1/completions",
        body: json!({
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": true,
            "stream": true,
            "stream_options": {"include_usage": true},
        }),
        reading: Reading::Stream,
    }
}

/// Returns instructions of the default model's domain, which give a learner differences to learn from.
pub fn questions(seed: u64, count: usize) -> Vec<String> {
    let world = CurriculumOptions::default();
    let tasks = held_out_tasks(seed, count, &world.kinds, &world.last_levels);
    tasks.into_iter().map(|task| task.prompt).collect()
}

/// Returns the `log` field with consent to keep the record and to train on it.
fn consent() -> Value {
    json!({"retain": true, "train": true})
}

/// Returns a call for a logged answer.
pub fn logged(prompt: &str, seed: u64) -> Call {
    Call {
        kind: "logged",
        path: "/generate",
        body: json!({"prompt": prompt, "max_tokens": 32, "seed": seed, "log": consent()}),
        reading: Reading::Whole,
    }
}

/// Returns a call for a logged verdict.
pub fn logged_pair(prompt: &str) -> Call {
    Call {
        kind: "logged verdict",
        path: "/judge",
        body: json!({"prompt": prompt, "candidates": ["62", "I do not know."], "log": consent()}),
        reading: Reading::Whole,
    }
}

/// A generator of random text of about a given number of tokens of the server's model.
#[derive(Debug, Clone)]
pub struct Texts {
    tokens_per_word: f64,
    /// The longest sequence of the model.
    pub max_context: usize,
}

impl Texts {
    /// Asks the server for the length of the words in tokens.
    ///
    /// # Errors
    /// If the server has no `/tokenize`.
    pub async fn of(client: &Client) -> anyhow::Result<Self> {
        let text = WORDS.join(" ");
        let answer = client.post("/tokenize", &json!({"text": text})).await?;
        let count = answer["count"]
            .as_f64()
            .context("/tokenize gives no count")?;
        let max_context = answer["max_model_len"].as_u64();
        Ok(Self {
            tokens_per_word: count / WORDS.len() as f64,
            max_context: max_context.context("/tokenize gives no max_model_len")? as usize,
        })
    }

    pub fn text(&self, rng: &mut ChaCha8Rng, tokens: usize) -> String {
        let words = (tokens as f64 / self.tokens_per_word).ceil() as usize;
        words_of(rng, words.max(1))
    }
}

/// Returns `count` random words.
pub fn words_of(rng: &mut ChaCha8Rng, count: usize) -> String {
    let words: Vec<&str> = (0..count)
        .map(|_| *WORDS.choose(rng).expect("there are words; this is a bug"))
        .collect();
    words.join(" ")
}

/// The lengths and shares of a mixed load.
#[derive(Debug, Clone, clap::Args)]
pub struct Mix {
    /// The share of calls that generate an answer, in parts.
    #[arg(long, default_value_t = 6)]
    generate: u32,
    /// The share of calls that judge a pair, in parts.
    #[arg(long, default_value_t = 2)]
    judge: u32,
    /// The share of calls that judge a tournament, in parts.
    #[arg(long, default_value_t = 1)]
    tournament: u32,
    /// The share of calls that ask for the best of several answers, in parts.
    #[arg(long, default_value_t = 1)]
    best_of: u32,
    /// The number of candidates of a tournament and of best-of-N.
    #[arg(long, default_value_t = 4)]
    candidates: usize,
    /// The length of a question in tokens.
    #[arg(long, default_value_t = 48)]
    question_tokens: usize,
    /// The length of an answer in tokens.
    #[arg(long, default_value_t = 48)]
    answer_tokens: usize,
}

impl Mix {
    /// Checks the shares and the number of candidates.
    ///
    /// # Errors
    /// If no call has a share, or a tournament has no match.
    pub fn check(&self) -> anyhow::Result<()> {
        let all = self.generate + self.judge + self.tournament + self.best_of;
        anyhow::ensure!(all > 0, "all shares are 0");
        anyhow::ensure!(self.candidates >= 2, "--candidates must be at least 2");
        Ok(())
    }

    /// Returns the call of a number.
    pub fn call(&self, texts: &Texts, seed: u64, number: usize) -> Call {
        let mut rng = rng(seed, number as u64);
        let question = texts.text(&mut rng, self.question_tokens);
        let answers = |rng: &mut ChaCha8Rng, count| -> Vec<String> {
            (0..count)
                .map(|_| texts.text(rng, self.answer_tokens))
                .collect()
        };
        let all = self.generate + self.judge + self.tournament + self.best_of;
        let pick = rng.random_range(0..all);
        if pick < self.generate {
            return Call {
                kind: "generate",
                path: "/generate",
                body: json!({
                    "prompt": question, "max_tokens": self.answer_tokens, "ignore_eos": true, "seed": number, "stream": true
                }),
                reading: Reading::Stream,
            };
        }
        let (kind, path, body) = if pick < self.generate + self.judge {
            let pair = answers(&mut rng, 2);
            (
                "judge",
                "/judge",
                json!({"prompt": question, "candidates": pair}),
            )
        } else if pick < self.generate + self.judge + self.tournament {
            let field = answers(&mut rng, self.candidates);
            let body = json!({"prompt": question, "candidates": field, "method": "tournament"});
            ("tournament", "/judge", body)
        } else {
            let body = json!({
                "prompt": question, "max_tokens": self.answer_tokens, "ignore_eos": true, "seed": number,
                "best_of": self.candidates,
            });
            ("best-of-n", "/generate", body)
        };
        Call {
            kind,
            path,
            body,
            reading: Reading::Whole,
        }
    }

    /// Returns the call of a number. About a fifth of the clients leave early, and a tenth read slowly.
    pub fn unruly_call(&self, texts: &Texts, seed: u64, number: usize) -> Call {
        let mut call = self.call(texts, seed, number);
        let mut rng = rng(seed, number as u64 | 1 << 63);
        let streams = call.reading == Reading::Stream;
        match rng.random_range(0..10) {
            0 | 1 if streams => {
                let after = rng.random_range(0..self.answer_tokens / 2 + 1);
                call.reading = Reading::Leave { after };
            }
            0 | 1 => {
                call.reading = Reading::HangUp(Duration::from_millis(rng.random_range(1..100)))
            }
            2 if streams => call.reading = Reading::Slow(Duration::from_millis(10)),
            _ => {}
        }
        call
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mix() -> Mix {
        Mix {
            generate: 2,
            judge: 1,
            tournament: 1,
            best_of: 1,
            candidates: 3,
            question_tokens: 8,
            answer_tokens: 8,
        }
    }

    #[test]
    fn a_number_always_gives_the_same_call_and_all_kinds_come() {
        let texts = Texts {
            tokens_per_word: 2.0,
            max_context: 512,
        };
        let mix = mix();
        let calls: Vec<Call> = (0..100).map(|n| mix.call(&texts, 3, n)).collect();
        assert_eq!(calls[7].body, mix.call(&texts, 3, 7).body);
        assert_ne!(calls[7].body, mix.call(&texts, 4, 7).body);
        for (kind, least) in [
            ("generate", 20),
            ("judge", 8),
            ("tournament", 8),
            ("best-of-n", 8),
        ] {
            let count = calls.iter().filter(|call| call.kind == kind).count();
            assert!(count >= least, "{count} of {kind}");
        }
        let leaving = |n: &usize| {
            let reading = mix.unruly_call(&texts, 3, *n).reading;
            matches!(reading, Reading::Leave { .. } | Reading::HangUp(_))
        };
        let left = (0..1000).filter(leaving).count();
        assert!((150..250).contains(&left), "{left}");
    }

    #[test]
    fn prompts_have_their_length() {
        let prompt = ids(&mut rng(1, 2), 33, 370);
        assert_eq!(prompt.len(), 33);
        assert!(prompt.iter().all(|id| (FIRST_ID..370).contains(id)));
        assert_eq!(words_of(&mut rng(1, 2), 5).split(' ').count(), 5);
    }
}
