//! The text of one sample: detokenisation and stop strings.

use super::output::Finish;
use engine::FinishReason;
use text::{Detokenizer, StopStrings, TextError, TokenPlaces};

/// The state of a sample's text.
pub(super) struct Writer {
    detokenizer: Detokenizer,
    pub places: TokenPlaces,
    stop: Option<StopStrings>,
    /// The number of tokens before which no stop string ends the text.
    min_tokens: usize,
    /// The number of tokens so far.
    pub tokens: usize,
}

impl Writer {
    /// Creates the text of a sample.
    pub fn new(
        detokenizer: Detokenizer,
        places: TokenPlaces,
        stop: Option<StopStrings>,
        min_tokens: usize,
    ) -> Self {
        Self {
            detokenizer,
            places,
            stop,
            min_tokens,
            tokens: 0,
        }
    }

    /// Takes a token. Returns the text that is now final, and the reason if the sample has ended.
    pub fn write(
        &mut self,
        id: u32,
        finished: Option<FinishReason>,
    ) -> Result<(String, Option<Finish>), TextError> {
        self.tokens += 1;
        // A token that ends an answer is not part of its text.
        let mut new = match finished {
            Some(FinishReason::Stop) => String::new(),
            _ => self.detokenizer.push(id)?,
        };
        if finished.is_some() {
            new.push_str(&self.detokenizer.finish()?);
        }
        let mut text = new;
        if let Some(stop) = &mut self.stop {
            if self.tokens < self.min_tokens {
                text = stop.pass(&text);
            } else {
                let fed = stop.feed(&text);
                text = fed.text;
                if let Some(stop) = fed.stopped {
                    return Ok((text, Some(Finish::StopString(stop))));
                }
            }
            if finished.is_some() {
                text.push_str(&stop.finish());
            }
        }
        let finish = finished.map(|reason| match reason {
            FinishReason::Stop => Finish::EndToken(id),
            FinishReason::Complete => Finish::Complete,
            FinishReason::Length => Finish::Length,
        });
        Ok((text, finish))
    }
}
