//! Where the program computes: CPU or GPU, on how many threads; and who may, when several want to.

mod arbiter;
mod memory;
pub mod team;
mod trainer_pool;

use std::fmt;
use std::str::FromStr;

use candle_core::Device;
use serde::{Deserialize, Serialize};

pub use arbiter::{ArbiterConfig, ArbiterUsage, DeviceArbiter, make_way};
pub use memory::{Available, MemoryBound, available};
pub use trainer_pool::trainer_pool;

/// What choosing a device can fail with.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("`{0}` is no device: auto, cpu, cuda or cuda:N")]
    Unknown(String),
    #[error("this build has no CUDA: build with `--features cuda`")]
    NoCuda,
    #[error("cannot open CUDA device {ordinal}: {source}")]
    Cuda {
        ordinal: usize,
        source: candle_core::Error,
    },
    #[error("{0}")]
    Threads(String),
    #[error("the trainer's share of the device must be between 0 and 1, not {0}")]
    Share(f64),
}

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// The first GPU where the build has CUDA and there is one, else the CPU.
    #[default]
    Auto,
    Cpu,
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| DeviceError::Unknown(text.to_owned())),
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = DeviceError;

    fn try_from(text: String) -> Result<Self, DeviceError> {
        text.parse()
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> Self {
        choice.to_string()
    }
}

impl DeviceChoice {
    /// Opens the device.
    ///
    /// # Errors
    /// A GPU that was asked for by name and cannot be had; `auto` takes the CPU then.
    pub fn open(self) -> Result<Device, DeviceError> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(ordinal) if cfg!(feature = "cuda") => {
                Device::new_cuda(ordinal).map_err(|source| DeviceError::Cuda { ordinal, source })
            }
            Self::Cuda(_) => Err(DeviceError::NoCuda),
            Self::Auto if cfg!(feature = "cuda") => {
                Ok(Self::Cuda(0).open().unwrap_or_else(|error| {
                    tracing::warn!("computing on the CPU: {error}");
                    Device::Cpu
                }))
            }
            Self::Auto => Ok(Device::Cpu),
        }
    }
}

/// Sizes every thread pool: rayon's global one, and the number of parts candle lets `gemm` cut a product into (which
/// would otherwise be the number of *physical* cores, whatever the container may use). Returns the number.
///
/// Candle also has a pool for large elementwise operations, which the whole process takes turns at and whose threads spin:
/// serving would wait there for a trainer that is not let run. It gets no threads, and whoever computes such an operation
/// does so itself.
///
/// Unless said (`requested`, or `RAYON_NUM_THREADS`), it is what the process may use:
/// [`std::thread::available_parallelism`] reads the affinity mask and the CPU quota of cgroup v1 and v2.
///
/// # Errors
/// Called after other threads were started: the number travels in an environment variable, and changing the environment
/// is only sound while nothing else reads it. So: first thing in `main`.
pub fn init_threads(requested: Option<usize>) -> Result<usize, DeviceError> {
    if !is_single_threaded() {
        return Err(DeviceError::Threads(
            "the number of threads must be set before any thread is started".to_owned(),
        ));
    }
    let threads = thread_count(
        requested,
        std::env::var("RAYON_NUM_THREADS").ok().as_deref(),
    );
    // SAFETY: no other thread exists that could read the environment meanwhile; checked above.
    unsafe {
        std::env::set_var("RAYON_NUM_THREADS", threads.to_string());
        std::env::set_var("CANDLE_NUM_THREADS", "1");
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .map_err(|e| DeviceError::Threads(e.to_string()))?;
    Ok(threads)
}

/// What was asked for, else what the environment says, else what the process may use.
fn thread_count(requested: Option<usize>, environment: Option<&str>) -> usize {
    let said = requested.or_else(|| environment?.parse().ok());
    match said {
        Some(n) if n > 0 => n,
        _ => std::thread::available_parallelism().map_or(1, usize::from),
    }
}

#[cfg(target_os = "linux")]
fn is_single_threaded() -> bool {
    std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1)
}

#[cfg(not(target_os = "linux"))]
fn is_single_threaded() -> bool {
    // Not to be asked portably; the caller's contract stands alone.
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices() {
        for (text, choice) in [
            ("auto", DeviceChoice::Auto),
            ("cpu", DeviceChoice::Cpu),
            ("cuda:3", DeviceChoice::Cuda(3)),
        ] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap(), choice);
            assert_eq!(choice.to_string(), text);
        }
        assert_eq!(
            "cuda".parse::<DeviceChoice>().unwrap(),
            DeviceChoice::Cuda(0)
        );
        for text in ["", "gpu", "cuda:", "cuda:x"] {
            assert!(text.parse::<DeviceChoice>().is_err());
        }
        assert!(DeviceChoice::Auto.open().is_ok());
        if !cfg!(feature = "cuda") {
            assert!(matches!(
                DeviceChoice::Cuda(0).open(),
                Err(DeviceError::NoCuda)
            ));
        }
    }

    #[test]
    fn what_is_said_goes_before_what_is_found() {
        assert_eq!(thread_count(Some(3), Some("5")), 3);
        assert_eq!(thread_count(None, Some("5")), 5);
        let found = thread_count(None, None);
        assert!(found >= 1);
        assert_eq!(thread_count(Some(0), None), found);
        assert_eq!(thread_count(None, Some("many")), found);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn threads_cannot_be_set_once_others_run() {
        // The test harness is such another thread.
        assert!(init_threads(Some(1)).is_err());
    }
}
