//! Tests of the papers' claims on the pocket model. One command makes one report, measured by the model's checker.
//!
//! Every variant runs a complete server: traffic arrives through `POST /generate`, is logged, judged by the model itself and
//! learned from. The checker grades the served answers. The trainer does not use it. Compared variants differ in one setting.
//!
//! | file | contents |
//! |---|---|
//! | `variant` | the variants and their differences |
//! | `run` | one variant under one seed: replay, learn, measure |
//! | `offline` | DPO on given pairs, without a server |
//! | `measure` | accuracy, style and best of N of served weights on held-out instructions |
//! | `report`, `draw` | claims, numbers, intervals over seeds, plots |

mod draw;
mod measure;
mod offline;
mod report;
mod run;
mod variant;

use std::path::PathBuf;

use candle_core::Device;
use serde::{Deserialize, Serialize};

pub use report::Report;
pub use variant::Variant;

use run::RunResult;

use selfjudge::{app::AppError, call::CallError, eval::EvalError, learn::LearnError};
use traffic_log::LogError;
use train::TrainError;

/// An error in a run of the claims.
#[derive(Debug, thiserror::Error)]
pub enum ClaimsError {
    #[error(transparent)]
    App(Box<AppError>),
    #[error(transparent)]
    Learn(#[from] LearnError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Service(#[from] CallError),
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error(transparent)]
    Eval(#[from] EvalError),
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    /// The server answered a call with an error.
    #[error("{call} was answered with {status}: {body}")]
    Refused {
        call: &'static str,
        status: u16,
        body: String,
    },
    #[error("{0}")]
    Failed(String),
}

impl From<AppError> for ClaimsError {
    fn from(error: AppError) -> Self {
        Self::App(Box::new(error))
    }
}

/// The size of the run.
#[derive(Debug, Clone)]
pub struct ClaimsOptions {
    /// Directory for reports and plots, and for the variants' data during the run.
    pub out: PathBuf,
    pub seeds: Vec<u64>,
    /// Variants to run; empty means all.
    pub only: Vec<Variant>,
    /// Instructions per stage.
    pub stage_prompts: usize,
    pub yardstick: Yardstick,
    pub learning_rate: f64,
    /// Number of threads of the trainer.
    pub threads: usize,
    pub device: Device,
}

/// The size of an evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Yardstick {
    /// Number of held-out instructions.
    pub instructions: usize,
    /// Samples per instruction; at least `best_of` are drawn.
    pub samples: usize,
    /// The largest N of best of N, a power of two.
    pub best_of: usize,
}

/// Runs every variant under every seed. Finished runs, whose result files are in `out`, are not repeated.
///
/// # Errors
/// Returns the first failure; finished results stay. Fails if results in `out` were made with other settings.
pub async fn run(options: &ClaimsOptions) -> Result<Report, ClaimsError> {
    let io = |path: &std::path::Path| {
        let path = path.to_owned();
        move |source| ClaimsError::Io { path, source }
    };
    std::fs::create_dir_all(&options.out).map_err(io(&options.out))?;
    let mut results = Vec::new();
    for &seed in &options.seeds {
        for variant in Variant::ALL {
            if !options.only.is_empty() && !options.only.contains(&variant) {
                continue;
            }
            let path = options.out.join(format!("{}-{seed}.json", variant.name()));
            let result = match std::fs::read(&path) {
                Ok(text) => read(&text, options).map_err(|why| {
                    ClaimsError::Failed(format!("{}: {why}; give another --out", path.display()))
                })?,
                Err(_) => {
                    tracing::warn!("claims: {} under seed {seed}", variant.name());
                    let result = run::run(options, variant, seed).await?;
                    let text = serde_json::to_vec_pretty(&result)
                        .map_err(|error| ClaimsError::Failed(error.to_string()))?;
                    std::fs::write(&path, text).map_err(io(&path))?;
                    result
                }
            };
            results.push(result);
        }
    }
    let report = Report::new(results);
    report.write(&options.out)?;
    Ok(report)
}

/// Parses an earlier result and checks that it matches the requested settings.
fn read(text: &[u8], options: &ClaimsOptions) -> Result<RunResult, String> {
    let result: RunResult = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let settings = result.variant.config(options, result.seed);
    if result.settings != settings || result.yardstick != options.yardstick {
        return Err("it came of other settings".to_owned());
    }
    Ok(result)
}
