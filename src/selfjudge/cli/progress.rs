//! Progress of a measurement on standard error: a bar on a terminal, otherwise a plain line at intervals.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Interval between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(15);

/// A counter of finished items out of a known number.
pub(super) struct Progress {
    what: &'static str,
    bar: Option<ProgressBar>,
    done: u64,
    total: u64,
    last_line: Instant,
}

impl Progress {
    pub fn new(what: &'static str, total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total);
            // The template is a constant; the default style is used if it does not parse.
            if let Ok(style) = ProgressStyle::with_template("{bar:32} {pos}/{len} {msg}  ETA {eta}")
            {
                bar.set_style(style);
            }
            bar.set_message(what);
            bar.tick();
            bar
        });
        Self {
            what,
            bar,
            done: 0,
            total,
            last_line: Instant::now(),
        }
    }

    pub fn add(&mut self, more: u64) {
        self.done = (self.done + more).min(self.total);
        match &self.bar {
            Some(bar) => bar.set_position(self.done),
            None if self.last_line.elapsed() >= LINE_EVERY => {
                eprintln!("{} of {} {}", self.done, self.total, self.what);
                self.last_line = Instant::now();
            }
            None => {}
        }
    }

    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
