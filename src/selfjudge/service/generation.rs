//! A running generation: the increments of its samples, and whole outputs as a fold over them.

use std::sync::Arc;

use futures::future::BoxFuture;

use super::output::{Finish, Output, TokenText};
use super::tally::Counter;
use super::writer::Writer;
use crate::call::{CallError, Usage};
use engine::{PromptLogprobs, RequestFailure, RequestStream, StreamEvent, SubmitError};
use model::WeightsName;
use text::{Detokenizer, StopStrings, TextError, TokenPlace, TokenPlaces, TokenTexts, Tokenizer};

/// The progress of a sample.
pub(super) enum Progress {
    /// No token yet; no memory is allocated.
    Waiting,
    Writing(Box<Writer>),
    Ended,
}

/// The source of a generation's tokens.
pub(super) enum Tokens {
    /// Waiting for a place in the queue.
    InTurn(BoxFuture<'static, Result<RequestStream, SubmitError>>),
    Running(RequestStream),
}

/// A generation that runs or waits for its place in the queue. Dropping it cancels it.
pub struct Generation {
    pub(super) stream: Tokens,
    pub(super) tokenizer: Tokenizer,
    pub(super) token_texts: Arc<TokenTexts>,
    /// The prompt, if the answers continue its text.
    pub(super) continued: Option<Vec<u32>>,
    pub(super) stop: Option<StopStrings>,
    /// Special tokens that are included in the text.
    pub(super) shown: Arc<[u32]>,
    /// One per sample.
    pub(super) progress: Vec<Progress>,
    pub(super) usage: Usage,
    pub(super) weights: Option<WeightsName>,
    /// Log-probabilities of the prompt's tokens except the first, if requested; complete once a sample has begun.
    pub(super) prompt_logprobs: Option<Arc<[PromptLogprobs]>>,
    pub(super) silent: bool,
    pub(super) min_tokens: usize,
    /// None for the server's own work.
    pub(super) counter: Option<Counter>,
}

impl Generation {
    /// Returns the token counts so far.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Returns the weights that answer; known once the generation has started.
    pub fn weights(&self) -> Option<WeightsName> {
        self.weights.clone()
    }

    /// Returns the log-probabilities of the prompt's tokens except the first, if requested; complete once a sample has begun.
    pub fn prompt_logprobs(&self) -> Option<Arc<[PromptLogprobs]>> {
        self.prompt_logprobs.clone()
    }

    /// Returns the next increment of a sample; `None` after the last increment of the last sample.
    ///
    /// # Errors
    /// Errors if the engine failed the request.
    pub async fn next(&mut self) -> Result<Option<Output>, CallError> {
        if let Tokens::InTurn(submit) = &mut self.stream {
            self.stream = Tokens::Running(submit.await?);
        }
        let event = loop {
            let event = match &mut self.stream {
                Tokens::Running(stream) => stream.next().await,
                Tokens::InTurn(_) => unreachable!("it was submitted above; this is a bug"),
            };
            match event {
                Some(StreamEvent::Prompt(tokens)) => self.prompt_logprobs = Some(tokens.into()),
                Some(StreamEvent::Started {
                    weights,
                    num_cached_tokens,
                }) => {
                    self.weights = Some(weights);
                    self.usage.cached_tokens = num_cached_tokens;
                }
                Some(StreamEvent::Failed(failure)) => {
                    self.count_failure(&failure);
                    return Err(failure.into());
                }
                Some(StreamEvent::Token {
                    index,
                    id,
                    logprobs,
                    finished,
                }) => break (index, id, logprobs, finished),
                None => return Ok(None),
            }
        };
        let (index, id, logprobs, finished) = event;
        if self.silent {
            return Ok(Some(Output {
                finish: finished.map(|_| Finish::Length),
                ..Output::empty(index)
            }));
        }
        self.usage.completion_tokens += 1;
        let texts = Arc::clone(&self.token_texts);
        let writer = self.writer(index)?;
        let place = match logprobs {
            Some(_) => writer.places.next(id, &texts),
            None => TokenPlace::default(),
        };
        let (text, finish) = writer.write(id, finished)?;
        if matches!(finish, Some(Finish::StopString(_)))
            && let Tokens::Running(stream) = &mut self.stream
        {
            stream.close(index);
        }
        if let Some(finish) = finish {
            self.count_end(index, finish);
        }
        let token = TokenText {
            id,
            logprobs,
            place,
        };
        Ok(Some(Output {
            index,
            text,
            tokens: vec![token],
            finish,
        }))
    }

    /// Returns the writer of a sample, and creates it at the sample's first token.
    fn writer(&mut self, index: usize) -> Result<&mut Writer, TextError> {
        let progress = &mut self.progress[index];
        if !matches!(progress, Progress::Writing(_)) {
            let (detokenizer, places) = match &self.continued {
                Some(prompt) => (
                    Detokenizer::after(&self.tokenizer, true, prompt)?,
                    TokenPlaces::continuing(),
                ),
                None => (self.tokenizer.detokenizer(true), TokenPlaces::default()),
            };
            let detokenizer = detokenizer.showing(Arc::clone(&self.shown));
            let writer = Writer::new(detokenizer, places, self.stop.clone(), self.min_tokens);
            *progress = Progress::Writing(Box::new(writer));
        }
        match progress {
            Progress::Writing(writer) => Ok(writer),
            _ => unreachable!("it was made above; this is a bug"),
        }
    }

    /// Counts the end of a sample in the tally of the weights that generated it.
    fn count_end(&mut self, index: usize, finish: Finish) {
        let ended = std::mem::replace(&mut self.progress[index], Progress::Ended);
        let Progress::Writing(writer) = ended else {
            return;
        };
        if let (Some(counter), Some(weights)) = (&self.counter, &self.weights) {
            counter.ended(weights, writer.tokens, finish);
        }
    }

    /// Counts the samples that have begun and will not end.
    fn count_failure(&self, failure: &RequestFailure) {
        if let (Some(counter), Some(weights)) = (&self.counter, &self.weights) {
            let open = self.progress.iter();
            let open = open.filter(|progress| !matches!(progress, Progress::Ended));
            counter.failed(weights, open.count(), failure);
        }
    }

    /// Returns all samples, complete.
    ///
    /// # Errors
    /// Errors as [`Self::next`] does.
    pub async fn outputs(&mut self) -> Result<Vec<Output>, CallError> {
        let outputs = self.outputs_while(|_| true).await?;
        Ok(outputs.unwrap_or_default())
    }

    /// Returns all samples, complete; `None` once `go_on` returns false for a token, which means that there is no room for it.
    ///
    /// # Errors
    /// Errors as [`Self::next`] does.
    pub async fn outputs_while(
        &mut self,
        mut go_on: impl FnMut(&TokenText) -> bool,
    ) -> Result<Option<Vec<Output>>, CallError> {
        let mut outputs: Vec<Output> = (0..self.progress.len()).map(Output::empty).collect();
        while let Some(increment) = self.next().await? {
            if !increment.tokens.iter().all(&mut go_on) {
                return Ok(None);
            }
            outputs[increment.index].add(increment);
        }
        Ok(Some(outputs))
    }
}
