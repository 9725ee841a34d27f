//! The end of an answer, as defined by tokenizer and chat template.

use super::{ChatTemplate, OwnTrust, RenderOptions, SpecialTokens, Tokenizer};
use crate::{Message, Role};

/// Returns the token that a chat template writes after an assistant turn, or `None` if the turn ends without one.
pub fn turn_end(chat: &ChatTemplate, tokenizer: &Tokenizer) -> Option<u32> {
    let options = RenderOptions {
        now: Some(0),
        ..RenderOptions::default().with_own(OwnTrust::All)
    };
    let turns = [
        Message::new(Role::System, "s"),
        Message::new(Role::User, "q"),
        Message::new(Role::Assistant, "a"),
    ];
    // Some templates require a system message, others reject one.
    let rendered = [&turns[1..], &turns[..]]
        .into_iter()
        .find_map(|turns| chat.render(turns, &options).ok())?;
    let end = rendered.own.last()?.end;
    let encoded = tokenizer.encode_rendered(&rendered).ok()?;
    let behind = encoded.ids.into_iter().zip(encoded.offsets);
    behind
        .filter(|(_, at)| at.start >= end)
        .map(|(id, _)| id)
        .find(|&id| tokenizer.is_control(id) && !tokenizer.is_marker(id))
}

/// Returns the tokens that end an answer according to the tokenizer and the chat template: `eos_token`, and the token that the template
/// writes after a turn.
pub fn end_ids(special: &SpecialTokens, chat: &ChatTemplate, tokenizer: &Tokenizer) -> Vec<u32> {
    let eos = special.eos().and_then(|token| tokenizer.token_to_id(token));
    let mut ids: Vec<u32> = eos.into_iter().collect();
    ids.extend(turn_end(chat, tokenizer).filter(|id| Some(*id) != eos));
    ids
}
