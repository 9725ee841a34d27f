//! Stop strings in streamed text, found independently of how the text is split into pieces.
//!
//! An Aho-Corasick automaton reads the text byte by byte; the depth of its state is the length of the longest suffix of the text that may
//! still become a stop string, and exactly that suffix is held back.

use std::ops::Range;
use std::sync::Arc;

use super::TextError;

/// Limit on the number of stop strings of one text.
pub const MAX_STOP_STRINGS: usize = 16;

/// Length limit of a stop string, in bytes.
pub const MAX_STOP_BYTES: usize = 1024;

/// A watcher of one text stream for stop strings.
///
/// The first stop string to be completed ends the text, the longest if several end at once: the result does not depend on how the text
/// was split into pieces. Clone a fresh one per stream; the automaton is shared.
#[derive(Clone)]
pub struct StopStrings {
    automaton: Arc<Automaton>,
    include: bool,
    state: u32,
    held: String,
    matched: Option<usize>,
}

impl std::fmt::Debug for StopStrings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StopStrings")
            .field("lengths", &self.automaton.lengths)
            .finish_non_exhaustive()
    }
}

/// The output of [`StopStrings::feed`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopOutput {
    /// Text that is certain to come before any stop string (with the stop string itself, if `include` is set).
    pub text: String,
    /// Index of the stop string that ended the text, now or earlier.
    pub stopped: Option<usize>,
}

/// The automaton of all stop strings. Nodes are stored level by level, so the children of a node are contiguous and a node needs no list
/// of them: 16 bytes for each byte of a stop string.
struct Automaton {
    nodes: Box<[Node]>,
    /// Length of each stop string, in bytes.
    lengths: Box<[usize]>,
}

#[derive(Clone, Copy)]
struct Node {
    /// The first child; the others follow, in order of their bytes.
    first_child: u32,
    /// The longest proper suffix of this node's string that is a node too.
    fallback: u32,
    children: u16,
    depth: u16,
    /// The longest stop string that ends here.
    stop: Option<u8>,
    /// The last byte of this node's string.
    byte: u8,
}

impl StopStrings {
    /// Creates a watcher. `include` keeps the stop string in the text.
    ///
    /// # Errors
    /// [`TextError::StopStrings`]: more than [`MAX_STOP_STRINGS`], one longer than [`MAX_STOP_BYTES`], or an empty one.
    pub fn new<S: AsRef<str>>(stops: &[S], include: bool) -> Result<Self, TextError> {
        check(stops)?;
        Ok(Self {
            automaton: Arc::new(Automaton::new(stops)),
            include,
            state: 0,
            held: String::new(),
            matched: None,
        })
    }

    /// Takes the next piece of text. After a match the output is empty.
    pub fn feed(&mut self, text: &str) -> StopOutput {
        if self.matched.is_some() {
            return self.output(String::new());
        }
        let mut seen = std::mem::take(&mut self.held);
        let before = seen.len();
        seen.push_str(text);
        for (at, &byte) in seen.as_bytes().iter().enumerate().skip(before) {
            self.state = self.automaton.step(self.state, byte);
            if let Some(stop) = self.automaton.node(self.state).stop {
                let stop = usize::from(stop);
                self.matched = Some(stop);
                let end = at + 1;
                let start = end - self.automaton.lengths[stop];
                seen.truncate(if self.include { end } else { start });
                return self.output(seen);
            }
        }
        // Stop strings are whole characters, so a possible beginning of one starts at a character.
        let growing = usize::from(self.automaton.node(self.state).depth);
        self.held = seen.split_off(seen.len() - growing);
        self.output(seen)
    }

    /// Takes a piece of text within which a stop string does not end the stream. One that begins here may end the stream later.
    pub fn pass(&mut self, text: &str) -> String {
        let mut seen = std::mem::take(&mut self.held);
        seen.push_str(text);
        for &byte in text.as_bytes() {
            self.state = self.automaton.step(self.state, byte);
        }
        let growing = usize::from(self.automaton.node(self.state).depth);
        self.held = seen.split_off(seen.len() - growing);
        seen
    }

    /// Ends the stream: returns the held-back text, which is not a stop string after all. The watcher is then ready for another stream.
    pub fn finish(&mut self) -> String {
        self.state = 0;
        self.matched = None;
        std::mem::take(&mut self.held)
    }

    /// Returns the index of the stop string that ended the text.
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

/// Returns an error for stop strings beyond the limits.
fn check<S: AsRef<str>>(stops: &[S]) -> Result<(), TextError> {
    let refused = |reason: String| Err(TextError::StopStrings(reason));
    if stops.len() > MAX_STOP_STRINGS {
        return refused(format!(
            "must be at most {MAX_STOP_STRINGS} strings, not {}",
            stops.len()
        ));
    }
    for stop in stops {
        match stop.as_ref().len() {
            0 => return refused("must not be empty".to_owned()),
            1..=MAX_STOP_BYTES => {}
            bytes => {
                return refused(format!(
                    "must be strings of at most {MAX_STOP_BYTES} bytes, not {bytes}"
                ));
            }
        }
    }
    Ok(())
}

impl Automaton {
    /// Builds the automaton of `stops`, which are within their limits, in time and memory proportional to their bytes.
    fn new<S: AsRef<str>>(stops: &[S]) -> Self {
        // Strings with a common prefix are adjacent; the first of equal ones comes first.
        let mut sorted: Vec<(&[u8], u8)> = stops
            .iter()
            .map(|stop| stop.as_ref().as_bytes())
            .zip(0..)
            .collect();
        sorted.sort_unstable();
        let mut automaton = Vec::new();
        // The strings that begin with each node's string, as ranges of `sorted`.
        let mut below: Vec<Range<usize>> = Vec::from([Range {
            start: 0,
            end: sorted.len(),
        }]);
        automaton.push(Node {
            first_child: 0,
            fallback: 0,
            children: 0,
            depth: 0,
            stop: None,
            byte: 0,
        });
        let mut at = 0;
        while at < automaton.len() {
            let depth = usize::from(automaton[at].depth);
            let ending = |&(stop, _): &(&[u8], u8)| stop.len() == depth;
            let range = below[at].clone();
            let ended = sorted[range.clone()].partition_point(ending);
            let mut start = range.start + ended;
            automaton[at].first_child = automaton.len() as u32;
            while start < range.end {
                let byte = sorted[start].0[depth];
                let same = |&(stop, _): &(&[u8], u8)| stop[depth] == byte;
                let end = start + sorted[start..range.end].partition_point(same);
                let fallback = match at {
                    0 => 0,
                    _ => step(&automaton, automaton[at].fallback, byte),
                };
                let (first, index) = sorted[start];
                let own = (first.len() == depth + 1).then_some(index);
                automaton.push(Node {
                    first_child: 0,
                    fallback,
                    children: 0,
                    depth: depth as u16 + 1,
                    stop: own.or(automaton[fallback as usize].stop),
                    byte,
                });
                below.push(start..end);
                automaton[at].children += 1;
                start = end;
            }
            at += 1;
        }
        Self {
            nodes: automaton.into(),
            lengths: stops.iter().map(|stop| stop.as_ref().len()).collect(),
        }
    }

    fn node(&self, state: u32) -> &Node {
        &self.nodes[state as usize]
    }

    fn step(&self, state: u32, byte: u8) -> u32 {
        step(&self.nodes, state, byte)
    }
}

/// Returns the state after `byte`; all nodes above the state's children must be complete.
fn step(nodes: &[Node], mut state: u32, byte: u8) -> u32 {
    loop {
        let node = &nodes[state as usize];
        let first = node.first_child as usize;
        let children = &nodes[first..first + usize::from(node.children)];
        match children.binary_search_by_key(&byte, |child| child.byte) {
            Ok(child) => return node.first_child + child as u32,
            Err(_) if state == 0 => return 0,
            Err(_) => state = node.fallback,
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
    fn stop_strings_that_end_too_early_are_text() {
        let mut watch = StopStrings::new(&["ab", "bcd", "d"], false).unwrap();
        let early: String = ["a", "b", "abc"].map(|text| watch.pass(text)).concat();
        assert_eq!((early.as_str(), watch.stopped()), ("aba", None));
        // Begun before, ended now.
        assert_eq!(watch.feed("d").text, "");
        assert_eq!(watch.stopped(), Some(1));
        let mut watch = StopStrings::new(&["ab"], false).unwrap();
        assert_eq!(watch.pass("ab") + &watch.feed("c").text, "abc");
        assert_eq!(
            (watch.feed("xab").text, watch.stopped()),
            ("x".to_owned(), Some(0))
        );
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
    }

    #[test]
    fn bounds_are_kept_to_the_byte() {
        let longest = "x".repeat(MAX_STOP_BYTES);
        let most: Vec<String> = (0..MAX_STOP_STRINGS)
            .map(|at| format!("{}{at:02}", "y".repeat(MAX_STOP_BYTES - 2)))
            .collect();
        let accepted: [&[String]; 3] = [&[], std::slice::from_ref(&longest), &most];
        for stops in accepted {
            assert!(StopStrings::new(stops, false).is_ok());
        }
        let more: Vec<String> = (0..=MAX_STOP_STRINGS).map(|at| at.to_string()).collect();
        let refused: [(&[String], &str); 3] = [
            (&more, "at most 16 strings, not 17"),
            (&[longest + "x"], "at most 1024 bytes, not 1025"),
            (&["a".into(), String::new()], "must not be empty"),
        ];
        for (stops, why) in refused {
            let error = StopStrings::new(stops, false).err().unwrap().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn clones_share_one_automaton_of_sixteen_bytes_for_each_byte() {
        let watch = StopStrings::new(&["ab".repeat(500), "abc".to_owned()], false).unwrap();
        let clone = watch.clone();
        assert!(Arc::ptr_eq(&watch.automaton, &clone.automaton));
        // The root, 1,000 bytes, and one more after the `ab` that both begin with.
        assert_eq!(watch.automaton.nodes.len(), 1 + 1000 + 1);
        assert_eq!(size_of::<Node>(), 16);
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
