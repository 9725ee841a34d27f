//! The format of the answers of `POST /v1/completions`, whole and streamed.

use super::answer::{CompletionAnswer, CompletionChoice, CompletionLogprobs};
use crate::http::answering::{About, AnswerFormat, Part, Piece};
use crate::http::openai::call::Call;
use crate::http::openai::prompt_logprobs::{PromptEntries, prompt_entries};
use crate::http::openai::usage::OpenAiUsage;
use text::{TokenPlace, TokenPlaces};

/// A prompt that is echoed, or whose log-probabilities are returned.
pub struct ShownPrompt {
    pub text: String,
    pub tokens: Vec<u32>,
}

/// Formats the answers of a call.
pub struct Format {
    pub call: Call,
    /// Number of choices per prompt.
    pub n: usize,
    pub prompts: Vec<ShownPrompt>,
    pub echo: bool,
    /// Number of most probable tokens returned with each token, if any.
    pub logprobs: Option<usize>,
    /// The same for `prompt_logprobs`.
    pub prompt_logprobs: Option<usize>,
}

impl Format {
    fn prompt(&self, index: usize) -> Option<&ShownPrompt> {
        self.prompts.get(index / self.n)
    }

    /// Returns the lists of a piece, beginning with those of the prompt if the piece does.
    fn logprobs(&self, piece: &Piece<'_>) -> Option<CompletionLogprobs> {
        let top = self.logprobs?;
        let mut list = CompletionLogprobs::new(Some(top));
        let texts = &self.call.texts;
        let mut before = 0;
        if let Some(prompt) = self.prompt(piece.index).filter(|_| self.echo) {
            let mut places = TokenPlaces::default();
            let scores = piece.prompt_logprobs.unwrap_or_default();
            let scores = std::iter::once(None).chain(scores.iter().map(Some));
            for (&id, score) in prompt.tokens.iter().zip(scores) {
                let place = places.next(id, texts);
                if piece.part != Part::Later {
                    let logprobs = score.map(|score| &score.logprobs);
                    list.push(id, place, logprobs, top, texts);
                }
            }
            before = prompt.text.chars().count();
        }
        for token in &piece.output.tokens {
            let place = TokenPlace {
                offset: before + token.place.offset,
                ..token.place
            };
            list.push(token.id, place, token.logprobs.as_ref(), top, texts);
        }
        Some(list)
    }

    /// Returns the separate field with the prompt's log-probabilities.
    fn prompt_logprobs(&self, piece: &Piece<'_>) -> Option<PromptEntries> {
        let top = self.prompt_logprobs.filter(|_| piece.part != Part::Later)?;
        let prompt = self.prompt(piece.index)?;
        let scores = piece.prompt_logprobs.unwrap_or_default();
        Some(prompt_entries(
            &prompt.tokens,
            scores,
            top,
            &self.call.texts,
        ))
    }
}

impl AnswerFormat for Format {
    type Choice = CompletionChoice;
    type Answer = CompletionAnswer;

    const USAGE_LAST: bool = false;

    fn choice(&self, piece: Piece<'_>) -> CompletionChoice {
        let (finish_reason, stop_reason) = self.call.ends.reasons(piece.output.finish);
        let (logprobs, prompt_logprobs) = (self.logprobs(&piece), self.prompt_logprobs(&piece));
        let echoed = self.echo && piece.part != Part::Later;
        let prompt = self.prompt(piece.index).filter(|_| echoed);
        CompletionChoice {
            index: piece.index,
            text: match prompt {
                Some(prompt) => format!("{}{}", prompt.text, piece.output.text),
                None => piece.output.text,
            },
            logprobs,
            finish_reason,
            stop_reason,
            prompt_logprobs,
        }
    }

    fn answer(&self, choices: Vec<CompletionChoice>, about: About) -> CompletionAnswer {
        CompletionAnswer {
            id: self.call.id.clone(),
            object: "text_completion",
            created: self.call.created,
            model: self.call.model.clone(),
            choices,
            system_fingerprint: about.weights,
            usage: about.usage.map(OpenAiUsage::from),
            tournaments: about.tournaments,
            warnings: about.warnings,
            kept: about.records.into(),
        }
    }
}
