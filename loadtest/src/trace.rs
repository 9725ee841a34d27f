//! Recorded traffic: arrival times and lengths, scaled to a model and a server.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use flate2::read::GzDecoder;
use serde::Deserialize;

use crate::workload::{ids, rng};

/// The number of prompt tokens that one block hash of a trace stands for.
const BLOCK_TOKENS: f64 = 512.0;

/// One request of a trace.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Entry {
    /// Seconds since the first request.
    pub arrival_s: f64,
    pub prompt_tokens: usize,
    pub output_tokens: usize,
    /// The hashes of the prompt's blocks, where the trace has them. Prompts with the same first hashes begin with the same text.
    #[serde(default)]
    pub block_hashes: Vec<u64>,
}

/// A trace whose lengths were scaled.
#[derive(Debug, Clone)]
pub struct Scaled {
    pub entries: Vec<Entry>,
    /// The factor of the lengths.
    pub factor: f64,
}

/// Reads the first `take` requests of a `.csv` or `.jsonl` file, gzipped or not.
///
/// # Errors
/// Names the file where it cannot be read, or has fewer than two requests.
pub fn read(path: &Path, take: usize) -> anyhow::Result<Vec<Entry>> {
    let about = || format!("cannot read {}", path.display());
    let file = File::open(path).with_context(about)?;
    let name = path.to_string_lossy();
    let (inner, reader): (&str, Box<dyn Read>) = match name.strip_suffix(".gz") {
        Some(inner) => (inner, Box::new(GzDecoder::new(file))),
        None => (&name, Box::new(file)),
    };
    let entries = match inner.ends_with(".csv") {
        true => from_csv(reader, take),
        false => from_jsonl(reader, take),
    };
    let entries = entries.with_context(about)?;
    anyhow::ensure!(
        entries.len() > 1,
        "{} holds fewer than two requests",
        path.display()
    );
    Ok(entries)
}

fn from_csv(reader: impl Read, take: usize) -> anyhow::Result<Vec<Entry>> {
    let mut rows = csv::Reader::from_reader(reader);
    let rows = rows.deserialize::<(f64, usize, usize)>().take(take);
    rows.map(|row| {
        let (arrival_s, prompt_tokens, output_tokens) = row?;
        Ok(Entry {
            arrival_s,
            prompt_tokens,
            output_tokens,
            block_hashes: Vec::new(),
        })
    })
    .collect()
}

fn from_jsonl(reader: impl Read, take: usize) -> anyhow::Result<Vec<Entry>> {
    let lines = BufReader::new(reader).lines().take(take);
    lines
        .map(|line| Ok(serde_json::from_str(&line?)?))
        .collect()
}

/// Scales all lengths by one factor of at most 1, so that the longest sequence fits the context.
pub fn fit(mut entries: Vec<Entry>, max_context: usize) -> Scaled {
    let longest = entries
        .iter()
        .map(|entry| entry.prompt_tokens + entry.output_tokens)
        .max();
    let factor = (max_context as f64 / longest.unwrap_or(1).max(1) as f64).min(1.0);
    // Both lengths are rounded down, to at least 1.
    let scale = |tokens: usize| ((tokens as f64 * factor) as usize).max(1);
    for entry in &mut entries {
        entry.prompt_tokens = scale(entry.prompt_tokens);
        entry.output_tokens = scale(entry.output_tokens);
        entry.prompt_tokens = entry.prompt_tokens.min(max_context - 1);
        entry.output_tokens = entry.output_tokens.min(max_context - entry.prompt_tokens);
    }
    Scaled { entries, factor }
}

impl Scaled {
    /// Returns arrival times with the trace's rhythm at a mean rate of `rate` requests a second.
    pub fn arrivals(&self, rate: f64) -> Vec<Duration> {
        let last = self.entries.last().map_or(0.0, |entry| entry.arrival_s);
        let own_rate = (self.entries.len() - 1) as f64 / last.max(f64::MIN_POSITIVE);
        let stretch = own_rate / rate;
        let at = |entry: &Entry| Duration::from_secs_f64((entry.arrival_s * stretch).max(0.0));
        self.entries.iter().map(at).collect()
    }

    /// Returns the prompt of a request. Prompts are random, and equal block hashes give equal text.
    pub fn prompt(&self, number: usize, seed: u64, vocab: u32) -> Vec<u32> {
        let entry = &self.entries[number];
        let block = (BLOCK_TOKENS * self.factor).max(1.0) as usize;
        let mut prompt = Vec::with_capacity(entry.prompt_tokens);
        for &hash in &entry.block_hashes {
            prompt.extend(ids(&mut rng(seed, hash), block, vocab));
        }
        let missing = entry.prompt_tokens.saturating_sub(prompt.len());
        let own = number as u64 | 1 << 62;
        prompt.extend(ids(&mut rng(seed, own), missing, vocab));
        prompt.truncate(entry.prompt_tokens);
        prompt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CSV: &str =
        "arrival_s,prompt_tokens,output_tokens\n0.000,374,44\n4.000,3960,109\n5.0,1,1\n";

    #[test]
    fn lengths_fit_the_context_and_the_rate_is_kept() {
        let entries = from_csv(CSV.as_bytes(), 10).unwrap();
        assert_eq!(entries.len(), 3);
        let scaled = fit(entries.clone(), 512);
        assert!((scaled.factor - 512.0 / 4069.0).abs() < 1e-9);
        let longest = &scaled.entries[1];
        assert!((505..=512).contains(&(longest.prompt_tokens + longest.output_tokens)));
        assert_eq!(
            (
                scaled.entries[2].prompt_tokens,
                scaled.entries[2].output_tokens
            ),
            (1, 1)
        );
        // Two gaps in 5 seconds become two gaps in 1 second.
        let arrivals = scaled.arrivals(2.0);
        assert_eq!(arrivals[0], Duration::ZERO);
        assert!((arrivals[1].as_secs_f64() - 0.8).abs() < 1e-9);
        assert!((arrivals[2].as_secs_f64() - 1.0).abs() < 1e-9);
        assert_eq!(fit(entries, 10_000).factor, 1.0);
    }

    #[test]
    fn equal_blocks_are_equal_text() {
        let jsonl = "{\"arrival_s\":0.0,\"prompt_tokens\":1200,\"output_tokens\":5,\"block_hashes\":[0,1,2]}\n\
                     {\"arrival_s\":0.5,\"prompt_tokens\":1100,\"output_tokens\":5,\"block_hashes\":[0,1,3]}\n";
        let scaled = fit(from_jsonl(jsonl.as_bytes(), 9).unwrap(), 4096);
        let (one, two) = (scaled.prompt(0, 1, 370), scaled.prompt(1, 1, 370));
        assert_eq!((one.len(), two.len()), (1200, 1100));
        assert_eq!(one[..1024], two[..1024]);
        assert_ne!(one[1024..1100], two[1024..]);
    }

    #[test]
    fn only_the_first_requests_are_taken() {
        assert_eq!(from_csv(CSV.as_bytes(), 2).unwrap().len(), 2);
        assert!(from_csv("a,b,c\nx,1,2\n".as_bytes(), 2).is_err());
    }
}
