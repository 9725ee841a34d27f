//! The SFT half of the mixture: the preferred dialogue, with every assistant turn supervised.

use std::ops::Range;

use super::{ExampleKind, Mixture, MixtureReport, Refusal, TrainExample};
use crate::turn::{shared_beginning, without_trailing_space};
use judge::{PROMPT_DATE, PreferencePair, tokens_within};
use text::{Encoded, Message, OwnTrust, RenderOptions, Rendered, Role};

/// A dialogue in tokens.
struct Dialogue {
    ids: Vec<u32>,
    supervised: Vec<bool>,
    /// Token ranges of messages before the last answer, which may be cut.
    contents: Vec<Range<usize>>,
    /// Tokens of the last answer.
    answer: Range<usize>,
    last_turn_only: bool,
}

impl Mixture {
    /// Returns the pair's imitation example, unless it must be dropped.
    pub(super) fn sft(
        &self,
        pair: &PreferencePair,
        report: &mut MixtureReport,
    ) -> Option<TrainExample> {
        if pair.chosen.trim().is_empty() {
            report.sft_empty += 1;
            return None;
        }
        match self.fit_dialogue(pair, report) {
            Ok(example) => Some(example),
            Err(refusal) => {
                report.sft_refused += 1;
                report.refuse(refusal);
                None
            }
        }
    }

    fn fit_dialogue(
        &self,
        pair: &PreferencePair,
        report: &mut MixtureReport,
    ) -> Result<TrainExample, Refusal> {
        let max = self.options.max_length;
        let mut messages = pair.messages.clone();
        messages.push(Message::new(Role::Assistant, &pair.chosen));
        let mut dialogue = match pair.plain {
            true => self.plain_dialogue(pair)?,
            false => self.dialogue(&messages)?,
        };
        let mut context_cut = false;
        while !pair.plain && dialogue.ids.len() > max && drop_oldest(&mut messages) {
            dialogue = self.dialogue(&messages)?;
            context_cut = true;
        }
        let mut answer_cut = false;
        if dialogue.ids.len() > max {
            let (context, answer) = shrink(&mut dialogue, max);
            context_cut |= context;
            answer_cut = answer;
        }
        self.check_ids(&dialogue.ids)?;
        report.sft_last_turn_only += u64::from(dialogue.last_turn_only);
        report.sft_context_cut += u64::from(context_cut);
        report.sft_answer_cut += u64::from(answer_cut);
        Ok(TrainExample {
            weights: dialogue
                .supervised
                .iter()
                .map(|&on| f32::from(on))
                .collect(),
            ids: dialogue.ids,
            kind: ExampleKind::Sft,
            label: None,
        })
    }

    fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Rendered, Refusal> {
        let options = RenderOptions {
            add_generation_prompt,
            now: Some(PROMPT_DATE),
            ..RenderOptions::default().with_own(OwnTrust::All)
        };
        Ok(self.chat.render(messages, &options)?)
    }

    /// Encodes a plain prompt and its answer without a template.
    fn plain_dialogue(&self, pair: &PreferencePair) -> Result<Dialogue, Refusal> {
        let texts: Vec<&str> = pair.messages.iter().map(|m| m.content.as_str()).collect();
        let text = texts.concat();
        let (tokenizer, end) = (&self.tokenizer, &self.plain_end);
        let mut ids = end.prompt(tokenizer, &text)?;
        let answer = end.answer(tokenizer, &text, &ids, &pair.chosen)?;
        // The tokens that the tokenizer adds before a text stay when the text is cut.
        let first = end.prompt(tokenizer, "")?.len().min(ids.len());
        let prompt = ids.len();
        ids.extend(answer);
        let mut supervised = vec![true; ids.len()];
        supervised[..prompt].fill(false);
        Ok(Dialogue {
            contents: std::iter::once(first..prompt).collect(),
            answer: prompt..ids.len(),
            last_turn_only: false,
            supervised,
            ids,
        })
    }

    /// Encodes a dialogue that ends with an assistant turn.
    ///
    /// The span of an assistant turn reaches from the end of the prompt for it to the end of the conversation with it. Both must be
    /// prefixes of the whole conversation's rendering, except for text with which the template opens an answer (`<think>`): see
    /// [`shared_beginning`]. If that fails for an earlier turn (templates that treat the last turn specially), only the last one is
    /// supervised; if it fails for the last one, the model could never be prompted for this answer in this form.
    fn dialogue(&self, messages: &[Message]) -> Result<Dialogue, Refusal> {
        let full = self.render(messages, false)?;
        let last = messages.len() - 1;
        let asked = self.render(&messages[..last], true)?;
        let head = shared_beginning(&asked, &full.text).ok_or(Refusal::Prefix)?;
        let answer = without_trailing_space(&full, head..full.text.len());
        let mut spans = vec![answer.clone()];
        let mut last_turn_only = false;
        for turn in (0..last).filter(|turn| messages[*turn].role == Role::Assistant) {
            match self.earlier_turn(messages, turn, &full) {
                Some(span) => spans.push(span),
                None => last_turn_only = true,
            }
        }
        if last_turn_only {
            spans.truncate(1);
        }
        let encoded = self.encode_behind_prompt(&asked, &full, head)?;
        let mut supervised = vec![false; encoded.ids.len()];
        // In earlier turns, which are history, a token that straddles the seam between prompt and answer is the first of the answer: it
        // ends within the span.
        let tokens = |span: &Range<usize>| {
            let start = encoded
                .offsets
                .partition_point(|token| token.end <= span.start);
            start..tokens_within(&encoded, span).end.max(start)
        };
        for span in &spans {
            supervised[tokens(span)].fill(true);
        }
        let contents = full
            .contents()
            .iter()
            .filter(|range| range.end <= head)
            .map(|range| tokens_within(&encoded, range))
            .collect();
        let answer = tokens(&answer);
        Ok(Dialogue {
            ids: encoded.ids,
            supervised,
            contents,
            answer,
            last_turn_only,
        })
    }

    /// Encodes a dialogue as the model sees and writes it: the prompt's own tokens, followed by the answer's, which begins at byte
    /// `head`. This equals the encoding of the whole text only if no token straddles that seam.
    fn encode_behind_prompt(
        &self,
        asked: &Rendered,
        full: &Rendered,
        head: usize,
    ) -> Result<Encoded, Refusal> {
        let whole = self.tokenizer.encode_rendered(full)?;
        let mut prompt = self.tokenizer.encode_rendered(asked)?;
        // If the template opens the answer, the answer is trained without the opening: there is no such prompt.
        if head < asked.text.len() || whole.ids.starts_with(&prompt.ids) {
            return Ok(whole);
        }
        let behind = self.tokenizer.encode_behind(full, head)?;
        prompt.ids.extend(behind.ids);
        prompt.offsets.extend(behind.offsets);
        Ok(prompt)
    }

    /// Returns the byte range of an assistant turn that is not the last.
    fn earlier_turn(
        &self,
        messages: &[Message],
        turn: usize,
        full: &Rendered,
    ) -> Option<Range<usize>> {
        // Templates may reject a conversation that is empty or starts with the assistant.
        let head = self.render(&messages[..turn], true).ok()?;
        let through = self.render(&messages[..=turn], false).ok()?.text;
        let head = shared_beginning(&head, &through)?;
        let nested = full.text.starts_with(&through);
        nested.then(|| without_trailing_space(full, head..through.len()))
    }
}

/// Drops the oldest exchange, so that the rest starts with a user turn again; returns false if only one is left.
fn drop_oldest(messages: &mut Vec<Message>) -> bool {
    let first = messages
        .iter()
        .position(|message| message.role != Role::System)
        .unwrap_or(0);
    let next_user = messages
        .iter()
        .enumerate()
        .skip(first + 1)
        .find(|(_, message)| message.role == Role::User);
    match next_user {
        Some((next, _)) => {
            messages.drain(first..next);
            true
        }
        None => false,
    }
}

/// Cuts a dialogue of one exchange to `max` tokens: first the beginnings of the messages before the answer, of which a quarter of `max`
/// is kept; then the answer's end. Returns which of the two were cut.
fn shrink(dialogue: &mut Dialogue, max: usize) -> (bool, bool) {
    let total = dialogue.ids.len();
    let answer = dialogue.answer.clone();
    let prompt = answer.start;
    let keep_answer = answer.len().min(max - prompt.min(max / 4));
    // White space after the end-of-turn mark is removed first: an answer that just fits is not cut.
    let end = answer.start + keep_answer;
    let mut excess = (prompt + keep_answer).saturating_sub(max);
    let context_cut = excess > 0;
    let mut keep = vec![true; total];
    keep[end..].fill(false);
    if keep_answer == answer.len() {
        let room = max.saturating_sub(prompt + keep_answer);
        keep[end..]
            .iter_mut()
            .take(room)
            .for_each(|kept| *kept = true);
    }
    for content in &dialogue.contents {
        let gone = content.len().min(excess);
        keep[content.start..content.start + gone].fill(false);
        excess -= gone;
    }
    // A frame that is too long by itself is also cut from the left.
    for kept in &mut keep[..prompt] {
        if excess > 0 && *kept {
            *kept = false;
            excess -= 1;
        }
    }
    let mut kept = keep.iter();
    dialogue.ids.retain(|_| kept.next() == Some(&true));
    let mut kept = keep.iter();
    dialogue.supervised.retain(|_| kept.next() == Some(&true));
    (context_cut, keep_answer < answer.len())
}
