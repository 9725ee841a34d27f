//! Prompts of conversations that are not opened for a next answer: they end with a closed turn or within the last message.

use super::Service;
use crate::call::{CallError, spawn_blocking};
use text::{Message, RenderOptions, Rendered, Variables};

/// The end of a conversation's prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The end of the last message's turn.
    Closed,
    /// The text of the last message, which the answer continues.
    Continued,
}

impl Service {
    /// Encodes a conversation as a prompt with this ending.
    ///
    /// # Errors
    /// Errors as [`Self::read_chat`] does, and with [`CallError::Invalid`] for `continue_final_message` if the last message has no
    /// text that the chat template writes unchanged.
    pub async fn read_ended_chat(
        &self,
        messages: &[Message],
        ending: Ending,
        variables: Variables,
    ) -> Result<Vec<u32>, CallError> {
        let options = RenderOptions {
            add_generation_prompt: false,
            ..self.render_options(variables)?
        };
        let most = self.engine().capacity().max_context;
        self.check_messages(messages, self.tokenizer().most_bytes(most))?;
        let (chat, tokenizer) = (self.chat_template().clone(), self.tokenizer().clone());
        let messages = messages.to_vec();
        spawn_blocking(move || {
            let mut rendered = chat.render(&messages, &options)?;
            if ending == Ending::Continued {
                let last = messages.last().map_or("", |message| &message.content);
                cut_behind(&mut rendered, last)?;
            }
            Ok(tokenizer.encode_rendered_within(&rendered, most)?.ids)
        })
        .await
    }
}

/// Cuts a rendering after the last occurrence of `content`. White space that the template trimmed from its end is not restored.
fn cut_behind(rendered: &mut Rendered, content: &str) -> Result<(), CallError> {
    let refused = |message: &str| CallError::invalid("continue_final_message", message);
    let own = content.trim();
    if own.is_empty() {
        return Err(refused("needs a last message with text to continue"));
    }
    let start = rendered.text.rfind(own).ok_or_else(|| {
        refused("is not possible: the chat template changes the text of the last message")
    })?;
    let space = &content[content.trim_end().len()..];
    let mut end = start + own.len();
    if rendered.text[end..].starts_with(space) {
        end += space.len();
    }
    rendered.text.truncate(end);
    for ranges in [&mut rendered.untrusted, &mut rendered.own] {
        ranges.retain_mut(|range| {
            range.end = range.end.min(end);
            range.start < range.end
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(parts: &[(&str, bool)], content: &str) -> Result<Rendered, CallError> {
        let mut rendered = Rendered::new();
        for (text, trusted) in parts {
            match trusted {
                true => rendered.push_trusted(text),
                false => drop(rendered.push_untrusted(text)),
            }
        }
        cut_behind(&mut rendered, content).map(|()| rendered)
    }

    #[test]
    fn a_rendering_ends_with_the_last_message() {
        let frame = |text: &'static str| (text, true);
        let own = |text: &'static str| (text, false);
        for (parts, content, text) in [
            (&[frame("<a>"), own("6"), frame("<end>")][..], "6", "<a>6"),
            (
                &[own("6"), frame("<a>"), own("6 "), frame("<end>")],
                "6 ",
                "6<a>6 ",
            ),
            // The template has trimmed the white space.
            (&[frame("<a>"), own("6"), frame("<end>\n")], " 6\n", "<a>6"),
            (&[frame("<a>"), own("6"), frame("\n<end>")], "6\n", "<a>6\n"),
        ] {
            let cut = cut(parts, content).unwrap();
            assert_eq!(cut.text, text);
            assert!(untrusted_is_within(&cut), "{cut:?}");
        }
        for (parts, content) in [
            (&[frame("<a>"), frame("<end>")][..], "6"),
            (&[frame("<a>"), own(" "), frame("<end>")], " "),
        ] {
            assert!(cut(parts, content).is_err());
        }
    }

    fn untrusted_is_within(rendered: &Rendered) -> bool {
        let ranges = rendered.untrusted.iter();
        let mut ends = ranges.map(|range| range.end);
        ends.all(|end| end <= rendered.text.len())
    }
}
