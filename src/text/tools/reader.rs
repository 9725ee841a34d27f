//! Calls read out of an answer, whole or as it comes.
//!
//! Text is passed on unless it may be the beginning of a call's marks; what only looked like a call is passed on later. So no mark is
//! ever seen as content, and how an answer is cut into pieces changes nothing but the pieces.

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
    /// A call begins, the next one of the answer.
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

/// Reads one answer.
#[derive(Debug)]
pub struct CallReader {
    format: ToolFormat,
    /// The tools that were offered.
    names: Arc<[String]>,
    /// Whether a grammar makes every call well-formed: arguments are passed on as they come. Otherwise a call is passed on when it is
    /// whole, since what turns out malformed is text.
    bound: bool,
    /// Calls that are passed on; later ones are left out.
    most: usize,
    state: State,
    /// What is not decided yet.
    pending: String,
    /// White space that is passed on before the next text, and left out before a call.
    space: String,
    /// Whether the last that was passed on is a call.
    after_call: bool,
    /// Whether any text was passed on.
    said: bool,
    /// Whether the text so far ends at the beginning of a line.
    at_line: bool,
    calls: usize,
}

#[derive(Debug)]
enum State {
    Start,
    /// Within reasoning, which may talk about calls.
    Reasoning,
    Text,
    Call(Attempt),
    /// Within an object that is none of a call.
    Passing(ObjectScan),
    /// Behind a call.
    Behind(Behind),
}

/// What may become a call: `pending` begins with its marks.
#[derive(Debug)]
struct Attempt {
    /// Where the object begins.
    object: usize,
    scan: ObjectScan,
    behind: Behind,
    /// Bytes of the object whose arguments have been passed on, once the call has.
    sent: Option<usize>,
}

const THINK: [&str; 2] = ["<think>", "</think>"];

/// First keys of an object that may be a call, where no mark says that it is one.
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
    /// Makes a reader of answers that may call the tools of these names, `most` calls of them.
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
            said: false,
            at_line: true,
            calls: 0,
        }
    }

    /// The same for answers whose calls a grammar binds.
    #[must_use]
    pub fn bound(self, bound: bool) -> Self {
        Self { bound, ..self }
    }

    /// Returns how many calls have been passed on.
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// Takes more of the answer; returns what is certain now.
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

    /// Goes on by one state. Returns whether there is more to do with what has come.
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

    /// Goes to `state` and waits for more.
    fn wait(&mut self, state: State) -> bool {
        self.state = state;
        false
    }

    /// Goes to `state` with what there is.
    fn go(&mut self, state: State) -> bool {
        self.state = state;
        true
    }

    fn start(&mut self, last: bool) -> bool {
        let said = self.pending.trim_start();
        match said.starts_with(THINK[0]) {
            true => self.go(State::Reasoning),
            false if THINK[0].starts_with(said) && !last => self.wait(State::Start),
            false => self.go(State::Text),
        }
    }

    fn reasoning(&mut self, last: bool, out: &mut Vec<Read>) -> bool {
        if let Some(at) = self.pending.find(THINK[1]) {
            self.say(at + THINK[1].len(), out);
            return self.go(State::Text);
        }
        let kept = match last {
            true => None,
            false => begun(&self.pending, THINK[1]),
        };
        self.say(kept.unwrap_or(self.pending.len()), out);
        self.wait(State::Reasoning)
    }

    fn text(&mut self, last: bool, out: &mut Vec<Read>) -> bool {
        let begins = match self.format {
            ToolFormat::Llama3Json => !self.said,
            _ => self.at_line,
        };
        match opening::find(&self.pending, self.format, begins) {
            Opening::At {
                start,
                object,
                behind,
            } => {
                self.say(start, out);
                self.go(State::Call(Attempt {
                    object: object - start,
                    scan: ObjectScan::default(),
                    behind,
                    sent: None,
                }))
            }
            Opening::Perhaps(at) if !last => {
                self.say(at, out);
                self.wait(State::Text)
            }
            Opening::Perhaps(_) | Opening::Nowhere => {
                self.say(self.pending.len(), out);
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
                self.say(object + attempt.scan.at(), out);
                self.wait(State::Passing(attempt.scan))
            }
            Progress::Open if !last => self.wait(State::Call(attempt)),
            // An answer that was cut off: a call that has begun stays, as OpenAI's API has it.
            Progress::Open => {
                match whole {
                    true => self.pending.clear(),
                    false => self.say(self.pending.len(), out),
                }
                self.wait(State::Text)
            }
            Progress::Broken(at) => {
                match whole {
                    true => drop(self.pending.drain(..object + at)),
                    false => self.say(object + at, out),
                }
                self.go(State::Text)
            }
            Progress::Done(end) => {
                if !whole {
                    let Some((name, arguments)) = self.whole_call(&attempt) else {
                        self.say(object + end, out);
                        return self.go(State::Text);
                    };
                    self.open(name, out);
                    self.argue(&arguments, out);
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
                self.say(self.pending.len(), out);
                self.wait(State::Passing(scan))
            }
            Progress::Done(end) | Progress::Broken(end) => {
                self.say(end - before, out);
                self.go(State::Text)
            }
        }
    }

    /// Leaves out the marks behind a call, and finds the next one of a list.
    fn behind(&mut self, behind: Behind, last: bool) -> bool {
        let marks = self.format.marks();
        let rest = self.pending.trim_start();
        let space = self.pending.len() - rest.len();
        let (mark, extra) = match (behind, self.format) {
            // Some models write a bracket too many.
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

    /// Whether what is known of an object leaves it possible that it is a call.
    fn may_be_call(&self, attempt: &Attempt) -> bool {
        let marked = !self.format.marks().begin.is_empty();
        let key = attempt.scan.first_key();
        marked || key.is_none_or(|key| KEYS.contains(&self.of(attempt, &key)))
    }

    /// A part of an attempt's object.
    fn of(&self, attempt: &Attempt, range: &Range<usize>) -> &str {
        &self.pending[attempt.object + range.start..attempt.object + range.end]
    }

    /// The name that an object's member gives, if such a tool was offered.
    fn name(&self, attempt: &Attempt) -> Option<String> {
        let members = attempt.scan.members().iter();
        let mut named = members.filter(|(key, _)| self.of(attempt, key) == "\"name\"");
        let (_, value) = named.next()?;
        let name: String = serde_json::from_str(self.of(attempt, value)).ok()?;
        self.names.contains(&name).then_some(name)
    }

    /// Where an object's arguments lie, as far as they have come.
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

    /// The name and the arguments of an object that is a call, as the model wrote them.
    fn whole_call(&self, attempt: &Attempt) -> Option<(String, String)> {
        let name = self.name(attempt)?;
        let written = self.of(attempt, &self.arguments(attempt)?).to_owned();
        match serde_json::from_str(&written).ok()? {
            Value::Object(_) => Some((name, written)),
            // Some models write them as OpenAI's API does.
            Value::String(inner) => {
                let object = serde_json::from_str::<Value>(&inner).ok()?.is_object();
                object.then_some((name, inner))
            }
            _ => None,
        }
    }

    /// Passes on a call whose well-formedness is known, and what has come of its arguments.
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
        self.argue(&more, out);
        attempt.sent = Some(range.end);
    }

    /// Begins a call.
    fn open(&mut self, name: String, out: &mut Vec<Read>) {
        if !self.said {
            self.space.clear();
        }
        (self.after_call, self.at_line) = (true, true);
        let index = self.calls;
        self.calls += 1;
        if index < self.most {
            out.push(Read::Call { index, name });
        }
    }

    /// Passes on arguments of the last call.
    fn argue(&mut self, text: &str, out: &mut Vec<Read>) {
        let index = self.calls - 1;
        if text.is_empty() || index >= self.most {
            return;
        }
        match out.last_mut() {
            Some(Read::Arguments {
                index: last,
                text: said,
            }) if *last == index => {
                said.push_str(text);
            }
            _ => out.push(Read::Arguments {
                index,
                text: text.to_owned(),
            }),
        }
    }

    /// Passes on the first bytes of what is pending as text.
    fn say(&mut self, bytes: usize, out: &mut Vec<Read>) {
        let text: String = self.pending.drain(..bytes).collect();
        self.at_line = match text.rfind('\n') {
            Some(at) => text[at..].trim().is_empty(),
            None => self.at_line && text.trim().is_empty(),
        };
        self.said |= !text.trim().is_empty();
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
        Some(Read::Text(said)) => said.push_str(text),
        _ => out.push(Read::Text(text.to_owned())),
    }
}
