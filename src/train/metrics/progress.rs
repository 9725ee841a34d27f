//! The progress of a run: a bar on a terminal, otherwise a plain line at intervals.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Interval between plain lines.
const LINE_EVERY: Duration = Duration::from_secs(15);

/// A progress display on standard error.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    total: u64,
    /// Steps taken before this process started.
    resumed: u64,
    began: Instant,
    tokens: u64,
    last_line: Option<Instant>,
    quiet: bool,
}

impl Progress {
    /// Creates a display for a run of `total` steps, `done` of which are taken. With `quiet` nothing is shown.
    pub fn new(total: u64, done: u64, quiet: bool) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(total).with_position(done);
            // The template is a constant; if it did not parse, the default style would be used.
            if let Ok(style) = ProgressStyle::with_template("{bar:32} {pos}/{len}  {msg}") {
                bar.set_style(style);
            }
            bar
        });
        Self {
            bar,
            total,
            resumed: done,
            began: Instant::now(),
            tokens: 0,
            last_line: None,
            quiet,
        }
    }

    /// Updates the display after an optimizer step: `step` is the number of steps taken, `tokens` the number of tokens of this step.
    pub fn update(&mut self, step: u64, loss: f64, tokens: u64) {
        self.tokens += tokens;
        if self.quiet {
            return;
        }
        let message = self.message(step, loss, self.began.elapsed());
        if let Some(bar) = &self.bar {
            bar.set_position(step);
            bar.set_message(message);
        } else if self.last_line.is_none_or(|t| t.elapsed() >= LINE_EVERY) || step >= self.total {
            eprintln!("step {step}/{}  {message}", self.total);
            self.last_line = Some(Instant::now());
        }
    }

    /// Returns the tokens per second since this process started.
    pub fn tokens_per_second(&self) -> f64 {
        per_second(self.tokens, self.began.elapsed())
    }

    /// Leaves the bar on the terminal and ends its line.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }

    fn message(&self, step: u64, loss: f64, elapsed: Duration) -> String {
        let done = step.saturating_sub(self.resumed).max(1);
        let left = self.total.saturating_sub(step);
        let eta = elapsed.as_secs_f64() / done as f64 * left as f64;
        format!(
            "loss {loss:.4}  {} tokens/s  ETA {}",
            thousands(per_second(self.tokens, elapsed)),
            clock(eta)
        )
    }
}

fn per_second(tokens: u64, elapsed: Duration) -> f64 {
    tokens as f64 / elapsed.as_secs_f64().max(1e-9)
}

fn thousands(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{:.2}M", v / 1e6),
        v if v >= 1e4 => format!("{:.1}k", v / 1e3),
        v => format!("{v:.0}"),
    }
}

fn clock(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match (s / 3600, s / 60 % 60, s % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s:02}s"),
        (h, m, _) => format!("{h}h{m:02}m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_counts_from_the_resume() {
        let mut progress = Progress::new(100, 40, true);
        progress.update(50, 1.5, 20_000);
        // 10 steps in 20 s give 100 s for the 50 that remain; the 40 before the resume are not counted.
        assert_eq!(
            progress.message(50, 1.5, Duration::from_secs(20)),
            "loss 1.5000  1000 tokens/s  ETA 1m40s"
        );
    }

    #[test]
    fn units() {
        assert_eq!(thousands(123.4), "123");
        assert_eq!(thousands(12_345.0), "12.3k");
        assert_eq!(thousands(2_500_000.0), "2.50M");
        assert_eq!(clock(59.6), "1m00s");
        assert_eq!(clock(7.0), "7s");
        assert_eq!(clock(7384.0), "2h03m");
    }
}
