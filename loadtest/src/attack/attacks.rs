//! The table of the attacks.

use super::bodies;

/// The scale of an attack. 1 is the size that was reported.
#[derive(Debug, Clone, Copy)]
pub struct Size(pub f64);

impl Size {
    /// Returns `count` times the scale, and at least 1.
    pub fn of(self, count: usize) -> usize {
        ((count as f64 * self.0) as usize).max(1)
    }
}

/// How the requests of an attack are sent, and how their answers are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// A connection sends one request after the other and reads each answer to its end.
    Read,
    /// The answer is never read. A connection that the server closes is opened again.
    Unread,
    /// The request makes a record. Requests for this record follow, whose answers are never read.
    UnreadRecord,
    /// The request is never finished. A connection that the server closes is opened again.
    Unfinished,
}

/// One attack: its requests, and how they are sent.
#[derive(Clone, Copy)]
pub struct Attack {
    pub name: &'static str,
    /// The number of the finding in the security review.
    pub finding: &'static str,
    pub way: Way,
    /// The number of connections at size 1.
    pub connections: usize,
    /// Returns the requests, which the connections send in turn, with the attacker's key.
    pub requests: fn(size: Size, key: &str) -> Vec<Vec<u8>>,
}

const fn read(
    name: &'static str,
    finding: &'static str,
    connections: usize,
    requests: fn(Size, &str) -> Vec<Vec<u8>>,
) -> Attack {
    Attack {
        name,
        finding,
        way: Way::Read,
        connections,
        requests,
    }
}

const fn by(way: Way, attack: Attack) -> Attack {
    Attack { way, ..attack }
}

/// The table of all attacks.
pub const ATTACKS: &[Attack] = &[
    read("stop strings x prompts", "C1", 2, bodies::stop_strings),
    read("many stop strings", "C1", 2, bodies::many_stop_strings),
    read("known prefixes", "C2", 4, bodies::known_prefixes),
    read("private keys to redact", "C3", 2, bodies::private_keys),
    read(
        "1,024 prompts x 128 samples",
        "H1",
        2,
        bodies::prompts_and_samples,
    ),
    read("128 samples of a prompt", "H1", 8, bodies::samples),
    read("a flood of small calls", "H1", 128, bodies::small_calls),
    read("a flood of tournaments", "H1", 8, bodies::tournaments),
    read("stop ids", "H2", 4, bodies::stop_ids),
    read("prompts of 8 MB", "H3", 6, bodies::long_prompts),
    read(
        "judge: 64 principles x long candidates",
        "H3",
        2,
        bodies::long_candidates,
    ),
    read(
        "judge: candidates of 4 MB",
        "H3",
        2,
        bodies::huge_candidates,
    ),
    read(
        "judge: 20,000 candidates",
        "code M10",
        2,
        bodies::many_candidates,
    ),
    by(
        Way::Unfinished,
        read("slow headers", "H4", 600, bodies::half_a_head),
    ),
    by(
        Way::Unfinished,
        read("silent connections", "H4", 600, bodies::nothing),
    ),
    by(
        Way::Unfinished,
        read("slow bodies", "H5", 1100, bodies::half_a_body),
    ),
    by(
        Way::Unread,
        read("unread streams", "H5", 64, bodies::streams),
    ),
    by(
        Way::Unread,
        read("unread answers", "H6", 16, bodies::large_answers),
    ),
    by(
        Way::UnreadRecord,
        read("unread records", "H6", 40, bodies::large_records),
    ),
    read("a full disk", "H7", 4, bodies::large_sampling),
    read("wide JSON", "M9", 4, bodies::wide_json),
    read("deep JSON", "M9", 4, bodies::deep_json),
    read("many small parts", "M9", 4, bodies::many_parts),
    read("large choices", "M10", 2, bodies::choices),
    read(
        "large grammars x samples",
        "M10",
        2,
        bodies::grammars_and_samples,
    ),
    read(
        "grammars without an end",
        "M11",
        2,
        bodies::hopeless_grammars,
    ),
    read("wrong keys", "L3", 16, bodies::wrong_keys),
    read("long names of requests", "L2", 8, bodies::long_request_ids),
];
