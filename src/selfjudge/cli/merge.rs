//! `selfjudge merge`: merges an adapter into the weights of its base.

use std::path::PathBuf;

use clap::Args;

use crate::app::ModelFiles;
use train::merge::merge;

#[derive(Debug, Args)]
pub struct MergeArgs {
    /// The model that the adapter was trained on: a directory, a GGUF file or a hub id; by default the pocket model that is part of the program.
    #[arg(long)]
    model: Option<String>,
    /// The adapter (a PEFT directory).
    #[arg(long)]
    adapter: PathBuf,
    /// The new directory to write the merged model to.
    #[arg(long, alias = "output-dir")]
    out: PathBuf,
}

/// Merges, and returns a summary.
pub fn run(args: &MergeArgs) -> anyhow::Result<String> {
    let files = ModelFiles::resolve(args.model.as_deref())?;
    let layers = merge(files.path(), &args.adapter, &args.out)?;
    Ok(format!(
        "{layers} layers merged\nmodel: {}",
        args.out.display()
    ))
}
