//! Questions and answers of exact lengths, and the judge's prompts for them.

use std::path::Path;

use judge::{Comparison, Judge};
use model::ModelConfig;
use rand_chacha::ChaCha8Rng;
use text::{ChatTemplate, Message, Role, Tokenizer};

use crate::workload::{rng, words_of};

/// The parts of the judge that need no model: its tokenizer and its template.
pub struct Material {
    tokenizer: Tokenizer,
    judge: Judge,
}

/// A question with its candidates.
#[derive(Debug, Clone)]
pub struct Candidates {
    pub question: String,
    pub answers: Vec<String>,
}

impl Material {
    /// Loads the tokenizer and the judge's template of a model's directory.
    ///
    /// # Errors
    /// Names the file that is missing or broken.
    pub fn load(dir: &Path) -> anyhow::Result<Self> {
        let tokenizer = Tokenizer::from_file(&dir.join("tokenizer.json"))?;
        let judge = Judge::from_model_dir(
            dir,
            tokenizer.clone(),
            ChatTemplate::from_model_dir(dir)?,
            ModelConfig::from_dir(dir)?.spec.max_context(),
        )?;
        Ok(Self { tokenizer, judge })
    }

    /// Draws a question and its candidates.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn candidates(
        &self,
        seed: u64,
        n: usize,
        question: usize,
        answer: usize,
    ) -> anyhow::Result<Candidates> {
        let mut rng = rng(seed, n as u64);
        Ok(Candidates {
            question: self.text(&mut rng, question)?,
            answers: (0..n)
                .map(|_| self.text(&mut rng, answer))
                .collect::<anyhow::Result<_>>()?,
        })
    }

    /// Returns random words of `tokens` tokens, or the smallest larger number.
    fn text(&self, rng: &mut ChaCha8Rng, tokens: usize) -> anyhow::Result<String> {
        let mut text = words_of(rng, 1);
        loop {
            let missing = tokens.saturating_sub(self.tokenizer.encode_text(&text)?.len());
            if missing == 0 {
                return Ok(text);
            }
            // A word has a few tokens at most, so the last words are added one by one.
            text.push(' ');
            text.push_str(&words_of(rng, (missing / 8).max(1)));
        }
    }

    /// Returns the judge's prompts of both orders.
    ///
    /// # Errors
    /// If the judge's template fails.
    pub fn prompts(&self, of: &Candidates, [a, b]: [usize; 2]) -> anyhow::Result<Vec<Vec<u32>>> {
        let comparison = Comparison {
            context: vec![Message::new(Role::User, &of.question)],
            a: of.answers[a].clone(),
            b: of.answers[b].clone(),
            principles: Vec::new(),
        };
        Ok(self.judge.encode(&comparison)?.prompts)
    }

    /// Returns the token ids of the two labels.
    pub fn label_ids(&self) -> [u32; 2] {
        self.judge.labels().ids
    }

    /// Returns the two labels as the server writes tokens.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn label_texts(&self) -> anyhow::Result<[String; 2]> {
        let [a, b] = self.label_ids();
        Ok([
            self.tokenizer.decode(&[a], false)?,
            self.tokenizer.decode(&[b], false)?,
        ])
    }
}
