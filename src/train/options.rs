//! How a run is driven, whatever it trains.

use candle_core::Device;

/// How a run is driven; none of it changes the result.
#[derive(Debug, Clone)]
pub struct RunOptions {
    pub device: Device,
    pub threads: usize,
    /// No progress bar.
    pub quiet: bool,
    /// Go on from the newest checkpoint in the output directory; without it, a directory that has one is refused.
    pub resume: bool,
    /// Stop after this many steps of this process, with a checkpoint: the schedule stays that of the whole run.
    pub stop_after: Option<u64>,
}
