//! One request and its outcome.

use std::time::Duration;

use serde_json::Value;

/// How the client reads the answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reading {
    /// One JSON document, read whole.
    Whole,
    /// Events, read as fast as they arrive.
    Stream,
    /// Events, read with a pause after each and with small buffers, so that the server has to wait.
    Slow(Duration),
    /// Events, of which the client reads `after` with a token and then closes the connection.
    Leave { after: usize },
    /// The client closes the connection after this time, at whatever point of the answer.
    HangUp(Duration),
}

/// A request to send.
#[derive(Debug, Clone)]
pub struct Call {
    /// The row of the report that counts it.
    pub kind: &'static str,
    pub path: &'static str,
    pub body: Value,
    pub reading: Reading,
}

/// The end of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// The client closed the connection, as `Reading` demands.
    Left,
    /// The status was 429. `retry_after`: whether the answer had a `Retry-After` header.
    Rejected {
        retry_after: bool,
    },
    Status(u16),
    /// The stream ended without its last event, or with an error.
    BrokenStream(String),
    Connection(String),
    Timeout,
}

impl Outcome {
    /// Returns the name under which a failure is counted, or none where nothing failed.
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

    /// Returns whether the server admitted the request and then did not answer it.
    pub fn broke_its_word(&self) -> bool {
        !matches!(self, Self::Done | Self::Left | Self::Rejected { .. })
    }
}

/// Token counts that the server reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub prompt: usize,
    pub completion: usize,
    pub cached: usize,
}

impl Usage {
    /// Reads an answer's `usage`, in the server's own shape or OpenAI's.
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

/// The measurements of one request. Times are in seconds since it was sent, and include connecting.
#[derive(Debug, Clone)]
pub struct Record {
    pub kind: &'static str,
    pub outcome: Outcome,
    /// The time to the first token. A whole answer has it at its end.
    pub ttft: Option<f64>,
    /// The times between one event with a token and the next.
    pub gaps: Vec<f64>,
    pub e2e: f64,
    /// The reported counts, or the number of events where the client left early.
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
