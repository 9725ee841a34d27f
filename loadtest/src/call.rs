//! One request and what became of it.

use std::time::Duration;

use serde_json::Value;

/// How the client takes the answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reading {
    /// One JSON document.
    Whole,
    /// Events, as fast as they come.
    Stream,
    /// Events, with a pause after each and small buffers, so that the server feels it.
    Slow(Duration),
    /// Goes away after so many events with a token.
    Leave { after: usize },
    /// Goes away after this time, whatever has come.
    HangUp(Duration),
}

/// A request to be sent.
#[derive(Debug, Clone)]
pub struct Call {
    /// Which row of the report it counts in.
    pub kind: &'static str,
    pub path: &'static str,
    pub body: Value,
    pub reading: Reading,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// The client went away, as it meant to.
    Left,
    /// 429; whether it said when to come back.
    Rejected {
        retry_after: bool,
    },
    Status(u16),
    /// The stream ended without its last event, or said that it failed.
    BrokenStream(String),
    Connection(String),
    Timeout,
}

impl Outcome {
    /// The name it is counted under; none where nothing went wrong.
    pub fn failure(&self) -> Option<String> {
        match self {
            Self::Done | Self::Left => None,
            Self::Rejected { retry_after: true } => Some("429".into()),
            Self::Rejected { retry_after: false } => Some("429 without Retry-After".into()),
            Self::Status(status) => Some(format!("HTTP {status}")),
            Self::BrokenStream(why) => Some(format!("broken stream: {why}")),
            Self::Connection(why) => Some(format!("connection: {why}")),
            Self::Timeout => Some("timeout".into()),
        }
    }

    /// Whether the server took the request and then did not answer it.
    pub fn broke_its_word(&self) -> bool {
        !matches!(self, Self::Done | Self::Left | Self::Rejected { .. })
    }
}

/// Token counts the server reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub prompt: usize,
    pub completion: usize,
    pub cached: usize,
}

impl Usage {
    /// From an answer's `usage`, ours or OpenAI's.
    pub fn read(usage: &Value) -> Option<Self> {
        let count = |value: &Value| value.as_u64().map(|n| n as usize);
        let details = &usage["prompt_tokens_details"]["cached_tokens"];
        Some(Self {
            prompt: count(&usage["prompt_tokens"])?,
            completion: count(&usage["completion_tokens"])?,
            cached: count(&usage["cached_tokens"])
                .or(count(details))
                .unwrap_or(0),
        })
    }

    pub fn add(&mut self, other: Self) {
        self.prompt += other.prompt;
        self.completion += other.completion;
        self.cached += other.cached;
    }
}

/// What was seen of one request. Times in seconds from the moment it was sent, connecting included.
#[derive(Debug, Clone)]
pub struct Record {
    pub kind: &'static str,
    pub outcome: Outcome,
    /// To the first token; an answer that comes whole has it when it is there.
    pub ttft: Option<f64>,
    /// Between one event with a token and the next.
    pub gaps: Vec<f64>,
    pub e2e: f64,
    /// As reported, or the events counted where the answer was left early.
    pub usage: Usage,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_shapes_of_usage_are_read() {
        let expected = Usage {
            prompt: 7,
            completion: 2,
            cached: 3,
        };
        let ours = json!({"prompt_tokens": 7, "completion_tokens": 2, "cached_tokens": 3});
        let theirs = json!({
            "prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}
        });
        assert_eq!(Usage::read(&ours), Some(expected));
        assert_eq!(Usage::read(&theirs), Some(expected));
        assert_eq!(Usage::read(&json!(null)), None);
    }

    #[test]
    fn only_what_was_taken_and_not_answered_breaks_a_word() {
        assert!(!Outcome::Left.broke_its_word());
        assert!(!Outcome::Rejected { retry_after: true }.broke_its_word());
        for outcome in [
            Outcome::Status(500),
            Outcome::Timeout,
            Outcome::BrokenStream("end".into()),
        ] {
            assert!(outcome.broke_its_word() && outcome.failure().is_some());
        }
    }
}
