//! The command `pocket own-pairs`, which writes judge data from a model's own samples.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use anyhow::Context;
use candle_core::Device;
use clap::Args;

use super::load;
use crate::evaluate::{self, OwnPairsOptions};
use crate::world::Kind;
use selfjudge::{
    cli::{fraction, positive},
    eval::EvalError,
};

#[derive(Debug, Args)]
pub struct OwnPairsArgs {
    /// A model directory or hub id. The default is the pocket model that is part of the program.
    #[arg(long)]
    model: Option<String>,
    /// The file to write (jsonl).
    #[arg(long)]
    out: PathBuf,
    /// Seed of the random draws.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The number of instructions to sample.
    #[arg(long, default_value_t = 10_000, value_parser = positive)]
    instructions: usize,
    /// Kinds of instructions, separated by commas; all by default.
    #[arg(long, value_delimiter = ',', value_parser = kind)]
    kinds: Vec<Kind>,
    /// Samples per instruction.
    #[arg(long, default_value_t = 8, value_parser = several)]
    samples: usize,
    /// The share that is kept of the pairs that the judge already gets right. Pairs that it gets wrong are all kept.
    #[arg(long, default_value_t = 1.0, value_parser = fraction)]
    easy: f64,
}

/// Parses a number of samples that is large enough for pairs.
fn several(text: &str) -> Result<usize, String> {
    match positive(text)? {
        1 => Err("it must be at least 2: a pair is made of two samples".to_owned()),
        samples => Ok(samples),
    }
}

fn kind(name: &str) -> Result<Kind, String> {
    let known = Kind::ALL.into_iter().find(|kind| kind.name() == name);
    known.ok_or_else(|| {
        let names = Kind::ALL.map(Kind::name);
        format!("no kind of instruction: {}", names.join(", "))
    })
}

pub fn own_pairs(args: &OwnPairsArgs, device: Device) -> anyhow::Result<String> {
    let mut loaded = load(args.model.as_deref(), None, device)?;
    let cannot = || format!("cannot write {}", args.out.display());
    let mut out = BufWriter::new(File::create(&args.out).with_context(cannot)?);
    let options = OwnPairsOptions {
        seed: args.seed,
        instructions: args.instructions,
        kinds: match args.kinds.as_slice() {
            [] => Kind::ALL.to_vec(),
            kinds => kinds.to_vec(),
        },
        samples: args.samples,
        easy: args.easy,
    };
    let count = evaluate::own_pairs(&mut loaded.subject, &options, |pair| {
        let line = serde_json::to_string(pair).map_err(std::io::Error::from)?;
        writeln!(out, "{line}").map_err(EvalError::Io)
    })?;
    out.flush().with_context(cannot)?;
    Ok(format!("{count} pairs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_own_pairs_make_pairs() {
        assert_eq!(several("2"), Ok(2));
        for none in ["0", "1", "-1"] {
            assert!(several(none).is_err(), "{none}");
        }
    }
}
