//! Detection of a call's possible beginning in a growing text.

use super::format::ToolFormat;

/// The result of a search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opening {
    /// An object begins at `object`, after the marks of a call that begin at `start`.
    At {
        start: usize,
        object: usize,
        behind: Behind,
    },
    /// A call may begin at this byte: the following text decides.
    Perhaps(usize),
    Nowhere,
}

/// The enclosure of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Behind {
    /// The format's marks.
    Marks,
    /// The brackets of a list, within the marks.
    List,
    /// A Markdown code fence, in which chat models often put JSON.
    Fence,
}

/// Llama's mark before calls of built-in tools, which it also writes before other calls.
const PYTHON_TAG: &str = "<|python_tag|>";

const FENCE: &str = "```";

/// Returns the first place at which a call may begin.
///
/// `begins` states whether the text is at the beginning of a line; in Llama's format, at the beginning of the answer.
pub(super) fn find(text: &str, format: ToolFormat, begins: bool) -> Opening {
    let marks = format.marks();
    match format {
        ToolFormat::Hermes | ToolFormat::Mistral => {
            marked(text, marks.begin, marks.list.map(|(open, _)| open))
        }
        ToolFormat::Llama3Json if begins => leading(text),
        ToolFormat::Llama3Json => Opening::Nowhere,
        ToolFormat::Json => on_a_line(text, begins),
    }
}

/// Searches after a mark.
fn marked(text: &str, mark: &str, list: Option<&str>) -> Opening {
    for (start, _) in text.match_indices(mark) {
        match object(text, start + mark.len(), list) {
            Object::At(object, listed) => {
                let behind = if listed { Behind::List } else { Behind::Marks };
                return Opening::At {
                    start,
                    object,
                    behind,
                };
            }
            Object::Perhaps => return Opening::Perhaps(start),
            Object::No => {}
        }
    }
    match begun(text, mark) {
        Some(start) => Opening::Perhaps(start),
        None => Opening::Nowhere,
    }
}

/// Searches at the beginning of the text.
fn leading(text: &str) -> Opening {
    let trimmed = text.trim_start();
    let start = text.len() - trimmed.len();
    if PYTHON_TAG.starts_with(trimmed) {
        return Opening::Perhaps(start);
    }
    let behind = trimmed.strip_prefix(PYTHON_TAG).unwrap_or(trimmed);
    match object(text, text.len() - behind.len(), None) {
        Object::At(object, _) => Opening::At {
            start,
            object,
            behind: Behind::Marks,
        },
        Object::Perhaps => Opening::Perhaps(start),
        Object::No => Opening::Nowhere,
    }
}

/// Searches at the beginning of a line, possibly in a fence.
fn on_a_line(text: &str, begins: bool) -> Opening {
    let first = begins.then_some(0);
    let lines = text.match_indices('\n').map(|(at, _)| at + 1);
    for line in first.into_iter().chain(lines) {
        let rest = text[line..].trim_start_matches([' ', '\t']);
        let start = text.len() - rest.len();
        if rest.starts_with('{') {
            return Opening::At {
                start,
                object: start,
                behind: Behind::Marks,
            };
        }
        if FENCE.starts_with(rest) {
            return Opening::Perhaps(start);
        }
        let Some(fenced) = rest.strip_prefix(FENCE) else {
            continue;
        };
        let Some((language, _)) = fenced.split_once('\n') else {
            match "json".starts_with(fenced.trim()) {
                true => return Opening::Perhaps(start),
                false => continue,
            }
        };
        if !matches!(language.trim(), "" | "json") {
            continue;
        }
        match object(text, start + FENCE.len() + language.len(), None) {
            Object::At(object, _) => {
                return Opening::At {
                    start,
                    object,
                    behind: Behind::Fence,
                };
            }
            Object::Perhaps => return Opening::Perhaps(start),
            Object::No => {}
        }
    }
    Opening::Nowhere
}

/// The result of looking for an object after white space.
pub(super) enum Object {
    /// The object begins at this byte; the flag is whether it is in a list.
    At(usize, bool),
    Perhaps,
    No,
}

/// Looks for an object at `from`, possibly in a list that opens with `list`.
pub(super) fn object(text: &str, from: usize, list: Option<&str>) -> Object {
    let rest = text[from..].trim_start();
    let inner = list.and_then(|open| rest.strip_prefix(open));
    let (rest, listed) = match inner {
        Some(inner) => (inner.trim_start(), true),
        None => (rest, false),
    };
    match rest.chars().next() {
        None => Object::Perhaps,
        Some('{') => Object::At(text.len() - rest.len(), listed),
        Some(_) => Object::No,
    }
}

/// Returns the start of a suffix of the text that may become `mark`.
pub(super) fn begun(text: &str, mark: &str) -> Option<usize> {
    let ends = (1..mark.len())
        .rev()
        .filter(|&end| mark.is_char_boundary(end));
    let mut begun = ends.filter(|&end| text.ends_with(&mark[..end]));
    begun.next().map(|end| text.len() - end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openings_are_found_or_waited_for() {
        let at = |start, object, behind| Opening::At {
            start,
            object,
            behind,
        };
        for (format, begins, text, expected) in [
            (
                ToolFormat::Hermes,
                false,
                "a <tool_call>\n{",
                at(2, 14, Behind::Marks),
            ),
            (
                ToolFormat::Hermes,
                true,
                "a <tool_call>\n",
                Opening::Perhaps(2),
            ),
            (ToolFormat::Hermes, true, "a <tool_", Opening::Perhaps(2)),
            (ToolFormat::Hermes, true, "a <tool_call>x", Opening::Nowhere),
            (
                ToolFormat::Hermes,
                true,
                "<tool_call>x<tool_call>{",
                at(12, 23, Behind::Marks),
            ),
            (ToolFormat::Hermes, true, "{\"name\"", Opening::Nowhere),
            (
                ToolFormat::Mistral,
                true,
                "[TOOL_CALLS] [ {",
                at(0, 15, Behind::List),
            ),
            (
                ToolFormat::Mistral,
                true,
                "[TOOL_CALLS]{",
                at(0, 12, Behind::Marks),
            ),
            (
                ToolFormat::Mistral,
                true,
                "[TOOL_CALLS][",
                Opening::Perhaps(0),
            ),
            (ToolFormat::Mistral, true, "x [", Opening::Perhaps(2)),
            (ToolFormat::Llama3Json, true, " {", at(1, 1, Behind::Marks)),
            (
                ToolFormat::Llama3Json,
                true,
                "<|python_tag|>{",
                at(0, 14, Behind::Marks),
            ),
            (ToolFormat::Llama3Json, true, "<|pyth", Opening::Perhaps(0)),
            (ToolFormat::Llama3Json, false, "{", Opening::Nowhere),
            (ToolFormat::Llama3Json, true, "x\n{", Opening::Nowhere),
            (ToolFormat::Json, true, "{", at(0, 0, Behind::Marks)),
            (ToolFormat::Json, false, "{", Opening::Nowhere),
            (ToolFormat::Json, false, "x\n  {", at(4, 4, Behind::Marks)),
            (
                ToolFormat::Json,
                false,
                "x\n```json\n{",
                at(2, 10, Behind::Fence),
            ),
            (ToolFormat::Json, true, "```\n\n{", at(0, 5, Behind::Fence)),
            (ToolFormat::Json, true, "x\n``", Opening::Perhaps(2)),
            (ToolFormat::Json, true, "```js", Opening::Perhaps(0)),
            (
                ToolFormat::Json,
                true,
                "```python\n{",
                at(10, 10, Behind::Marks),
            ),
            (ToolFormat::Json, true, "a {", Opening::Nowhere),
        ] {
            assert_eq!(find(text, format, begins), expected, "{format:?} {text:?}");
        }
    }
}
