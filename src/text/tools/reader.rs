//! Parsing of calls in an answer, complete or streamed.
//!
//! Text is passed on unless it may be the beginning of a call's marks; text that only resembled a call is passed on later. A mark
//! therefore never appears as content, and splitting an answer into other pieces changes only the pieces of the output.

use std::ops::Range;
use std::sync::Arc;

use serde_json::Value;

use super::format::ToolFormat;
use super::object_scan::{ObjectScan, Progress};
use super::opening::{self, Behind, Object, Opening, begun};

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    Text(String),
    /// The beginning of the answer's next call.
    Call {
        index: usize,
        name: String,
    },
    /// More of the arguments of that call, as the model wrote them.
    Arguments {
        index: usize,
        text: String,
    },
}

/// A parser of one answer.
#[derive(Debug)]
pub struct CallReader {
    format: ToolFormat,
    /// The names of the offered tools.
    names: Arc<[String]>,
    /// Whether a grammar makes every call well-formed: arguments are then passed on as they arrive. Otherwise a call is passed on when it
    /// is complete, since a malformed one is text.
    bound: bool,
    /// Limit on the calls that are passed on; later ones are dropped.
    most: usize,
    state: State,
    /// Text that is not decided yet.
    pending: String,
    /// White space that is passed on before the next text, and dropped before a call.
    space: String,
    /// Whether the last output is a call.
    after_call: bool,
    /// Whether any text was output.
    has_text: bool,
    /// Whether the text so far ends at the beginning of a line.
    at_line: bool,
    calls: usize,
}

#[derive(Debug)]
enum State {
    Start,
    /// Within reasoning, which may mention calls.
    Reasoning,
    Text,
    Call(Attempt),
    /// Within an object that is not part of a call.
    Passing(ObjectScan),
    /// After a call.
    Behind(Behind),
}

/// A possible call: `pending` begins with its marks.
#[derive(Debug)]
struct Attempt {
    /// The start of the object.
    object: usize,
    scan: ObjectScan,
    behind: Behind,
    /// Bytes of the object up to which arguments were passed on; none before the call itself was.
    sent: Option<usize>,
}

const THINK: [&str; 2] = ["<think>", "</think>"];

/// First keys of an object that may be a call, in formats without a mark.
const KEYS: [&str; 6] = [
    "\"name\"",
    "\"type\"",
    "\"id\"",
    "\"function\"",
    "\"arguments\"",
    "\"parameters\"",
];

/// Keys of arguments.
const ARGUMENTS: [&str; 2] = ["\"arguments\"", "\"parameters\""];

impl CallReader {
    /// Creates a parser of answers that may call the tools of these names, with at most `most` calls.
    pub fn new(format: ToolFormat, names: Arc<[String]>, most: usize) -> Self {
        Self {
            format,
            names,
            bound: false,
            most,
            state: State::Start,
            pending: String::new(),
            space: String::new(),
            after_call: false,
            has_text: false,
            at_line: true,
            calls: 0,
        }
    }

    /// Sets whether a grammar constrains the answer's calls.
    #[must_use]
    pub fn bound(self, bound: bool) -> Self {
        Self { bound, ..self }
    }

    /// Returns the number of calls passed on.
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// Takes more of the answer; returns the parts that are now certain.
    pub fn feed(&mut self, text: &str) -> Vec<Read> {
        self.pending.push_str(text);
        let mut out = Vec::new();
        while self.step(false, &mut out) {}
        out
    }

    /// Ends the answer; returns the rest of it.
    pub fn finish(&mut self) -> Vec<Read> {
        let mut out = Vec::new();
        while self.step(true, &mut out) {}
        if !self.after_call {
            let space = std::mem::take(&mut self.space);
            push_text(&mut out, &space);
        }
        out
    }

    /// Advances by one state. Returns whether the pending text allows a further step.
    fn step(&mut self, last: bool, out: &mut Vec<Read>) -> bool {
        match std::mem::replace(&mut self.state, State::Text) {
            State::Start => self.start(last),
            State::Reasoning => self.reasoning(last, out),
            State::Text => self.text(last, out),
            State::Call(attempt) => self.call(attempt, last, out),
            State::Passing(scan) => self.passing(scan, out),
            State::Behind(behind) => self.behind(behind, last),
        }
    }

    /// Changes to `state` and waits for more text.
    fn wait(&mut self, state: State) -> bool {
        self.state = state;
        false
    }

    /// Changes to `state` and continues with the pending text.
    fn go(&mut self, state: State) -> bool {
        self.state = state;
        true
    }

    fn start(&mut self, last: bool) -> bool {
        let text = self.pending.trim_start();
        match text.starts_with(THINK[0]) {
            true => self.go(State::Reasoning),
            false if THINK[0].starts_with(text) && !last => self.wait(State::Start),
            false => self.go(State::Text),
        }
    }

    fn reasoning(&mut self, last: bool, out: &mut Vec<Read>) -> bool {
        if let Some(at) = self.pending.find(THINK[1]) {
            self.emit_text(at + THINK[1].len(), out);
            return self.go(State::Text);
        }
        let kept = match last {
            true => None,
            false => begun(&self.pending, THINK[1]),
        };
        self.emit_text(kept.unwrap_or(self.pending.len()), out);
        self.wait(State::Reasoning)
    }

    fn text(&mut self, last: bool, out: &mut Vec<Read>) -> bool {
        let begins = match self.format {
            ToolFormat::Llama3Json => !self.has_text,
            _ => self.at_line,
        };
        match opening::find(&self.pending, self.format, begins) {
            Opening::At {
                start,
                object,
                behind,
            } => {
                self.emit_text(start, out);
                self.go(State::Call(Attempt {
                    object: object - start,
                    scan: ObjectScan::default(),
                    behind,
                    sent: None,
                }))
            }
            Opening::Perhaps(at) if !last => {
                self.emit_text(at, out);
                self.wait(State::Text)
            }
            Opening::Perhaps(_) | Opening::Nowhere => {
                self.emit_text(self.pending.len(), out);
                self.wait(State::Text)
            }
        }
    }

    fn call(&mut self, mut attempt: Attempt, last: bool, out: &mut Vec<Read>) -> bool {
        let object = attempt.object;
        let progress = attempt.scan.look(&self.pending[object..]);
        if self.bound {
            self.pass_on(&mut attempt, out);
        }
        let whole = attempt.sent.is_some();
        match progress {
            Progress::Open if !whole && !self.may_be_call(&attempt) => {
                self.emit_text(object + attempt.scan.at(), out);
                self.wait(State::Passing(attempt.scan))
            }
            Progress::Open if !last => self.wait(State::Call(attempt)),
            // A truncated answer: a call that has begun is kept, as in OpenAI's API.
            Progress::Open => {
                match whole {
                    true => self.pending.clear(),
                    false => self.emit_text(self.pending.len(), out),
                }
                self.wait(State::Text)
            }
            Progress::Broken(at) => {
                match whole {
                    true => drop(self.pending.drain(..object + at)),
                    false => self.emit_text(object + at, out),
                }
                self.go(State::Text)
            }
            Progress::Done(end) => {
                if !whole {
                    let Some((name, arguments)) = self.whole_call(&attempt) else {
                        self.emit_text(object + end, out);
                        return self.go(State::Text);
                    };
                    self.open(name, out);
                    self.emit_arguments(&arguments, out);
                }
                self.pending.drain(..object + end);
                self.go(State::Behind(attempt.behind))
            }
        }
    }

    fn passing(&mut self, mut scan: ObjectScan, out: &mut Vec<Read>) -> bool {
        let before = scan.at();
        match scan.feed(&self.pending) {
            Progress::Open => {
                self.emit_text(self.pending.len(), out);
                self.wait(State::Passing(scan))
            }
            Progress::Done(end) | Progress::Broken(end) => {
                self.emit_text(end - before, out);
                self.go(State::Text)
            }
        }
    }

    /// Drops the marks after a call, and finds the next one of a list.
    fn behind(&mut self, behind: Behind, last: bool) -> bool {
        let marks = self.format.marks();
        let rest = self.pending.trim_start();
        let space = self.pending.len() - rest.len();
        let (mark, extra) = match (behind, self.format) {
            // Some models write an extra bracket.
            (Behind::Marks, ToolFormat::Hermes) => {
                let inner = rest.trim_start_matches(|c: char| c == '}' || c.is_whitespace());
                (marks.end, rest.len() - inner.len())
            }
            (Behind::Marks, ToolFormat::Llama3Json) => (";", 0),
            (Behind::Fence, _) => ("```", 0),
            (Behind::List, _) => {
                let after = space + 1;
                if rest.starts_with(',') {
                    match opening::object(&self.pending, after, None) {
                        Object::At(object, _) => {
                            return self.go(State::Call(Attempt {
                                object,
                                scan: ObjectScan::default(),
                                behind,
                                sent: None,
                            }));
                        }
                        Object::Perhaps if !last => return self.wait(State::Behind(behind)),
                        Object::Perhaps | Object::No => {}
                    }
                }
                ("]", 0)
            }
            (Behind::Marks, _) => return self.go(State::Text),
        };
        let at = space + extra;
        let rest = &self.pending[at..];
        if rest.starts_with(mark) {
            self.pending.drain(..at + mark.len());
            return self.go(State::Text);
        }
        match mark.starts_with(rest) && !last {
            true => self.wait(State::Behind(behind)),
            false => self.go(State::Text),
        }
    }

    /// Returns whether an object may still be a call, from the part seen so far.
    fn may_be_call(&self, attempt: &Attempt) -> bool {
        let marked = !self.format.marks().begin.is_empty();
        let key = attempt.scan.first_key();
        marked || key.is_none_or(|key| KEYS.contains(&self.of(attempt, &key)))
    }

    /// Returns a part of an attempt's object.
    fn of(&self, attempt: &Attempt, range: &Range<usize>) -> &str {
        &self.pending[attempt.object + range.start..attempt.object + range.end]
    }

    /// Returns the name in an object, if such a tool was offered.
    fn name(&self, attempt: &Attempt) -> Option<String> {
        let members = attempt.scan.members().iter();
        let mut named = members.filter(|(key, _)| self.of(attempt, key) == "\"name\"");
        let (_, value) = named.next()?;
        let name: String = serde_json::from_str(self.of(attempt, value)).ok()?;
        self.names.contains(&name).then_some(name)
    }

    /// Returns the range of an object's arguments, as far as they have arrived.
    fn arguments(&self, attempt: &Attempt) -> Option<Range<usize>> {
        let is_arguments = |key: &Range<usize>| ARGUMENTS.contains(&self.of(attempt, key));
        let mut members = attempt.scan.members().iter();
        let whole = members.find(|(key, _)| is_arguments(key));
        match whole {
            Some((_, value)) => Some(value.clone()),
            None => {
                let (key, start) = attempt.scan.open_value()?;
                is_arguments(&key).then(|| start..attempt.scan.at())
            }
        }
    }

    /// Returns the name and the arguments of an object that is a call, as the model wrote them.
    fn whole_call(&self, attempt: &Attempt) -> Option<(String, String)> {
        let name = self.name(attempt)?;
        let written = self.of(attempt, &self.arguments(attempt)?).to_owned();
        match serde_json::from_str(&written).ok()? {
            Value::Object(_) => Some((name, written)),
            // Some models write them as in OpenAI's API.
            Value::String(inner) => {
                let object = serde_json::from_str::<Value>(&inner).ok()?.is_object();
                object.then_some((name, inner))
            }
            _ => None,
        }
    }

    /// Passes on a call that is known to be well-formed, with the arguments that have arrived.
    fn pass_on(&mut self, attempt: &mut Attempt, out: &mut Vec<Read>) {
        let Some(range) = self.arguments(attempt) else {
            return;
        };
        let sent = match attempt.sent {
            Some(sent) => sent,
            None => {
                let Some(name) = self.name(attempt) else {
                    return;
                };
                self.open(name, out);
                range.start
            }
        };
        let more = self.of(attempt, &(sent..range.end)).to_owned();
        self.emit_arguments(&more, out);
        attempt.sent = Some(range.end);
    }

    /// Begins a call.
    fn open(&mut self, name: String, out: &mut Vec<Read>) {
        if !self.has_text {
            self.space.clear();
        }
        (self.after_call, self.at_line) = (true, true);
        let index = self.calls;
        self.calls += 1;
        if index < self.most {
            out.push(Read::Call { index, name });
        }
    }

    /// Outputs arguments of the last call.
    fn emit_arguments(&mut self, text: &str, out: &mut Vec<Read>) {
        let index = self.calls - 1;
        if text.is_empty() || index >= self.most {
            return;
        }
        match out.last_mut() {
            Some(Read::Arguments {
                index: last,
                text: sent,
            }) if *last == index => {
                sent.push_str(text);
            }
            _ => out.push(Read::Arguments {
                index,
                text: text.to_owned(),
            }),
        }
    }

    /// Outputs the first bytes of the pending text as text.
    fn emit_text(&mut self, bytes: usize, out: &mut Vec<Read>) {
        let text: String = self.pending.drain(..bytes).collect();
        self.at_line = match text.rfind('\n') {
            Some(at) => text[at..].trim().is_empty(),
            None => self.at_line && text.trim().is_empty(),
        };
        self.has_text |= !text.trim().is_empty();
        let text = match self.after_call {
            true => text.trim_start(),
            false => &text,
        };
        if text.is_empty() {
            return;
        }
        self.after_call = false;
        self.space.push_str(text);
        let end = self.space.trim_end().len();
        let text: String = self.space.drain(..end).collect();
        push_text(out, &text);
    }
}

fn push_text(out: &mut Vec<Read>, text: &str) {
    match out.last_mut() {
        _ if text.is_empty() => {}
        Some(Read::Text(sent)) => sent.push_str(text),
        _ => out.push(Read::Text(text.to_owned())),
    }
}
