//! A conversation as the values that a chat template sees. Texts whose origin is tracked have slots of their own, so that they can be
//! exchanged between renderings.

use std::borrow::Cow;

use minijinja::Value;
use minijinja::value::Serde;
use serde_json::Value as Json;

use super::placeholder::Origin;
use super::rendered::OwnTrust;
use super::tools::{ToolCall, ToolChat, ToolTurn};
use crate::{Message, Role};

/// The template's view of a conversation.
pub(super) struct ChatValues<'a> {
    /// The texts and their origins.
    pub texts: Vec<(Cow<'a, str>, Origin)>,
    messages: Vec<Node>,
    tools: Option<Node>,
    /// Bytes of everything that has no text slot.
    other_bytes: usize,
}

/// The form in which arguments of earlier calls are passed to a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arguments {
    /// An object: transformers' own form.
    Object,
    /// JSON in a string, which some templates need.
    Text,
}

enum Node {
    Text(usize),
    Plain(Value),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl<'a> ChatValues<'a> {
    /// Converts a conversation without tools. `own` decides whether the model's turns are distinguished.
    pub fn of_messages(messages: &'a [Message], own: OwnTrust) -> Self {
        let mut values = Self::empty();
        for message in messages {
            let node = values.message(message, own);
            values.messages.push(node);
        }
        values
    }

    /// Converts a conversation with tools. Strings of tool definitions and of arguments have slots of their own if they are `doubtful`:
    /// if they could spell a control token. Others are plain data, which templates may inspect.
    pub fn of_tool_chat(
        chat: &'a ToolChat,
        own: OwnTrust,
        arguments: Arguments,
        doubtful: &dyn Fn(&str) -> bool,
    ) -> Self {
        let mut values = Self::empty();
        for turn in &chat.turns {
            let node = match turn {
                ToolTurn::Message(message) => values.message(message, own),
                ToolTurn::Called { content, calls } => {
                    let content = values.text(content, origin(Role::Assistant, own));
                    let calls = calls.iter();
                    let calls = calls.map(|call| values.call(call, arguments, doubtful));
                    let calls = Node::List(calls.collect());
                    map([
                        ("role", plain(Role::Assistant.as_str())),
                        ("content", content),
                        ("tool_calls", calls),
                    ])
                }
                ToolTurn::Answered { call, content } => {
                    let content = values.text(content, Origin::Outside);
                    let id = values.string(&call.id, doubtful);
                    map([
                        ("role", plain("tool")),
                        ("content", content),
                        ("tool_call_id", id),
                        ("name", plain(&call.name)),
                    ])
                }
            };
            values.messages.push(node);
        }
        if !chat.tools.is_empty() {
            let tools = chat.tools.iter();
            let tools = tools.map(|tool| values.json(&tool.to_json(), doubtful));
            values.tools = Some(Node::List(tools.collect()));
        }
        values
    }

    fn empty() -> Self {
        Self {
            texts: Vec::new(),
            messages: Vec::new(),
            tools: None,
            other_bytes: 0,
        }
    }

    /// Returns the number of messages and of bytes that a rendering reads, if the texts have `bytes`.
    pub fn size(&self, bytes: usize) -> (usize, usize) {
        (self.messages.len(), bytes + self.other_bytes)
    }

    /// Returns the variables of a rendering over these texts.
    pub fn variables(&self, texts: &[Value]) -> Vec<(String, Value)> {
        let messages: Vec<Value> = self
            .messages
            .iter()
            .map(|node| node.filled(texts))
            .collect();
        let tools = self.tools.iter();
        let tools = tools.map(|tools| ("tools".to_owned(), tools.filled(texts)));
        tools
            .chain([("messages".to_owned(), Value::from(messages))])
            .collect()
    }

    fn message(&mut self, message: &'a Message, own: OwnTrust) -> Node {
        let content = self.text(&message.content, origin(message.role, own));
        map([("role", plain(message.role.as_str())), ("content", content)])
    }

    fn call(
        &mut self,
        call: &ToolCall,
        arguments: Arguments,
        doubtful: &dyn Fn(&str) -> bool,
    ) -> Node {
        let arguments = match arguments {
            Arguments::Object => self.json(&Json::Object(call.arguments.clone()), doubtful),
            Arguments::Text => {
                let written = Json::Object(call.arguments.clone()).to_string();
                self.string(&written, doubtful)
            }
        };
        let function = map([("name", plain(&call.name)), ("arguments", arguments)]);
        let id = self.string(&call.id, doubtful);
        map([
            ("id", id),
            ("type", plain("function")),
            ("function", function),
        ])
    }

    /// Adds a text with a slot of its own.
    fn text(&mut self, text: impl Into<Cow<'a, str>>, origin: Origin) -> Node {
        self.texts.push((text.into(), origin));
        Node::Text(self.texts.len() - 1)
    }

    fn string(&mut self, text: &str, doubtful: &dyn Fn(&str) -> bool) -> Node {
        match doubtful(text) {
            true => self.text(text.to_owned(), Origin::Outside),
            false => {
                self.other_bytes += text.len();
                plain(text)
            }
        }
    }

    /// Adds data, whose doubtful strings get slots of their own.
    fn json(&mut self, value: &Json, doubtful: &dyn Fn(&str) -> bool) -> Node {
        match value {
            Json::String(text) => self.string(text, doubtful),
            Json::Array(values) => {
                let values = values.iter().map(|value| self.json(value, doubtful));
                Node::List(values.collect())
            }
            Json::Object(fields) => {
                let fields = fields.iter().map(|(key, value)| {
                    self.other_bytes += key.len();
                    (key.clone(), self.json(value, doubtful))
                });
                Node::Map(fields.collect())
            }
            other => {
                self.other_bytes += 8;
                Node::Plain(Value::from(Serde(other.clone())))
            }
        }
    }
}

impl Node {
    fn filled(&self, texts: &[Value]) -> Value {
        match self {
            Self::Text(at) => texts[*at].clone(),
            Self::Plain(value) => value.clone(),
            Self::List(nodes) => {
                let values: Vec<Value> = nodes.iter().map(|node| node.filled(texts)).collect();
                Value::from(values)
            }
            Self::Map(fields) => {
                let fields = fields.iter();
                Value::from_pairs(fields.map(|(key, node)| (key.clone(), node.filled(texts))))
            }
        }
    }
}

fn plain(text: &str) -> Node {
    Node::Plain(Value::from(text))
}

fn map<const N: usize>(fields: [(&str, Node); N]) -> Node {
    let fields = fields.into_iter();
    Node::Map(fields.map(|(key, node)| (key.to_owned(), node)).collect())
}

/// Returns the origin of a message with this role.
fn origin(role: Role, own: OwnTrust) -> Origin {
    match (own, role) {
        (OwnTrust::Markers | OwnTrust::All, Role::Assistant) => Origin::Own,
        _ => Origin::Outside,
    }
}
