//! Stop strings: found in streamed text wherever its pieces begin and end.
//!
//! An Aho-Corasick automaton reads the text byte by byte; the depth of its state is the length of the
//! longest end of the text that may still grow into a stop string, and just that much is held back.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::TextError;

/// Watches one text stream for stop strings.
///
/// The first stop string to be complete ends the text, the longest where several end at once: the outcome does
/// not depend on how the text was cut into pieces. Clone a fresh one per stream; the automaton is shared.
#[derive(Clone)]
pub struct StopStrings {
    automaton: Arc<Automaton>,
    include: bool,
    state: u32,
    held: String,
    matched: Option<usize>,
}

/// What [`StopStrings::feed`] lets through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopOutput {
    /// Text that is certain to lie before any stop string (with the stop string itself, if so asked).
    pub text: String,
    /// Index of the stop string that ended the text, now or earlier.
    pub stopped: Option<usize>,
}

struct Automaton {
    nodes: Vec<Node>,
    lengths: Vec<usize>,
}

#[derive(Default)]
struct Node {
    next: BTreeMap<u8, u32>,
    /// The longest proper end of this node's string that is a node too.
    fallback: u32,
    depth: usize,
    /// The longest stop string that ends here.
    stop: Option<usize>,
}

impl StopStrings {
    /// `include` keeps the stop string in the text.
    ///
    /// # Errors
    /// An empty stop string.
    pub fn new<S: AsRef<str>>(stops: &[S], include: bool) -> Result<Self, TextError> {
        Ok(Self {
            automaton: Arc::new(Automaton::new(stops)?),
            include,
            state: 0,
            held: String::new(),
            matched: None,
        })
    }

    /// Takes the next piece of text. After a match nothing more comes out.
    pub fn feed(&mut self, text: &str) -> StopOutput {
        if self.matched.is_some() {
            return self.output(String::new());
        }
        let mut seen = std::mem::take(&mut self.held);
        let before = seen.len();
        seen.push_str(text);
        for (at, &byte) in seen.as_bytes().iter().enumerate().skip(before) {
            self.state = self.automaton.step(self.state, byte);
            if let Some(stop) = self.automaton.nodes[self.state as usize].stop {
                self.matched = Some(stop);
                let end = at + 1;
                let start = end - self.automaton.lengths[stop];
                seen.truncate(if self.include { end } else { start });
                return self.output(seen);
            }
        }
        // Stop strings are whole characters, so what may begin one begins at a character.
        self.held = seen.split_off(seen.len() - self.automaton.nodes[self.state as usize].depth);
        self.output(seen)
    }

    /// Ends the stream: returns what was held back and is no stop string after all. Ready for another stream.
    pub fn finish(&mut self) -> String {
        self.state = 0;
        self.matched = None;
        std::mem::take(&mut self.held)
    }

    /// Index of the stop string that ended the text.
    pub fn stopped(&self) -> Option<usize> {
        self.matched
    }

    fn output(&self, text: String) -> StopOutput {
        StopOutput {
            text,
            stopped: self.matched,
        }
    }
}

impl Automaton {
    fn new<S: AsRef<str>>(stops: &[S]) -> Result<Self, TextError> {
        let mut nodes = vec![Node::default()];
        for (index, stop) in stops.iter().enumerate() {
            if stop.as_ref().is_empty() {
                return Err(TextError::EmptyStopString);
            }
            let mut at = 0;
            for &byte in stop.as_ref().as_bytes() {
                at = match nodes[at].next.get(&byte) {
                    Some(&next) => next as usize,
                    None => {
                        let new = nodes.len();
                        nodes[at].next.insert(byte, new as u32);
                        nodes.push(Node {
                            depth: nodes[at].depth + 1,
                            ..Node::default()
                        });
                        new
                    }
                };
            }
            nodes[at].stop.get_or_insert(index);
        }
        let mut automaton = Self {
            nodes,
            lengths: stops.iter().map(|stop| stop.as_ref().len()).collect(),
        };
        automaton.link();
        Ok(automaton)
    }

    /// Sets fallbacks level by level: a node's is one step on from its parent's.
    fn link(&mut self) {
        let mut level: Vec<u32> = vec![0];
        while !level.is_empty() {
            let mut below = Vec::new();
            for parent in level {
                for (byte, child) in self.nodes[parent as usize].next.clone() {
                    let fallback = if parent == 0 {
                        0
                    } else {
                        self.step(self.nodes[parent as usize].fallback, byte)
                    };
                    let inherited = self.nodes[fallback as usize].stop;
                    let node = &mut self.nodes[child as usize];
                    node.fallback = fallback;
                    node.stop = node.stop.or(inherited);
                    below.push(child);
                }
            }
            level = below;
        }
    }

    fn step(&self, mut state: u32, byte: u8) -> u32 {
        loop {
            let node = &self.nodes[state as usize];
            match node.next.get(&byte) {
                Some(&next) => return next,
                None if state == 0 => return 0,
                None => state = node.fallback,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn feed_all(stops: &[&str], include: bool, pieces: &[&str]) -> (Vec<String>, Option<usize>) {
        let mut watch = StopStrings::new(stops, include).unwrap();
        let mut out: Vec<String> = pieces.iter().map(|piece| watch.feed(piece).text).collect();
        let stopped = watch.stopped();
        out.push(watch.finish());
        (out, stopped)
    }

    #[test]
    fn only_what_may_become_a_stop_string_is_held_back() {
        let (out, stopped) = feed_all(
            &["\nHuman:"],
            false,
            &["Hi", "\n", "Hum", "mus", "\nHuman", "."],
        );
        assert_eq!(out, ["Hi", "", "", "\nHummus", "", "\nHuman.", ""]);
        assert_eq!(stopped, None);
        let (out, _) = feed_all(&["aab"], false, &["aaa", "a"]);
        assert_eq!(out, ["a", "a", "aa"]);
    }

    #[test]
    fn a_match_across_pieces_ends_the_text() {
        for (include, last) in [(false, ""), (true, "STOP")] {
            let (out, stopped) =
                feed_all(&["END", "STOP"], include, &["xS", "TO", "P tail", "more"]);
            assert_eq!(out, ["x", "", last, "", ""]);
            assert_eq!(stopped, Some(1));
        }
    }

    #[test]
    fn the_first_to_end_wins_and_of_those_the_longest() {
        assert_eq!(
            feed_all(&["abcd", "bc"], false, &["abcd"]),
            (vec!["a".to_owned(), String::new()], Some(1))
        );
        assert_eq!(
            feed_all(&["c", "abc"], false, &["xabc"]),
            (vec!["x".to_owned(), String::new()], Some(1))
        );
        assert!(matches!(
            StopStrings::new(&["a", ""], false),
            Err(TextError::EmptyStopString)
        ));
    }

    /// Reads the text one more byte at a time and looks for a stop string at its end.
    fn plain<'t>(stops: &[&str], text: &'t str) -> (&'t str, Option<usize>) {
        for end in 0..=text.len() {
            let ending = (0..stops.len())
                .filter(|&i| text.as_bytes()[..end].ends_with(stops[i].as_bytes()))
                .max_by_key(|&i| (stops[i].len(), std::cmp::Reverse(i)));
            if let Some(stop) = ending {
                return (&text[..end - stops[stop].len()], Some(stop));
            }
        }
        (text, None)
    }

    #[test]
    fn any_cutting_gives_the_same_as_a_plain_search() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let letters = ['a', 'b', 'é', '🙂'];
        let mut word = |max: usize| -> String {
            let len = rng.random_range(1..=max);
            (0..len)
                .map(|_| letters[rng.random_range(0..letters.len())])
                .collect()
        };
        let mut matches = 0;
        for _ in 0..2000 {
            let stops = [word(4), word(4), word(3)];
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let pieces: Vec<String> = (0..4).map(|_| word(4)).collect();
            let text = pieces.concat();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let (out, stopped) = feed_all(&stops, false, &pieces);
            assert_eq!(
                (out.concat().as_str(), stopped),
                plain(&stops, &text),
                "{stops:?} in {text:?}"
            );
            matches += usize::from(stopped.is_some());
        }
        assert!(matches > 500, "the test hardly ever met a stop string");
    }
}
