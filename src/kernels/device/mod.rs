//! Compute resources: the device (CPU or GPU), the number of threads, and the sharing between serving and training.

mod arbiter;
mod memory;
mod pacing;
pub mod team;
mod threads;
mod trainer_pool;

use std::fmt;
use std::str::FromStr;

use candle_core::Device;
use serde::{Deserialize, Serialize};

pub use arbiter::{DeviceArbiter, yield_to_serving};
pub use memory::{Available, MemoryBound, PROGRAM, available, size};
pub use pacing::{ArbiterConfig, ArbiterUsage};
pub use threads::{init_threads, most_threads, threads_can_be_had};
pub use trainer_pool::trainer_pool;

/// Errors of choosing a device or threads.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("unknown device `{0}`; use auto, cpu, cuda or cuda:N")]
    Unknown(String),
    #[error("this build does not support CUDA; build with `--features cuda`")]
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

/// The requested device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// The first GPU, if the build has CUDA and there is one; otherwise the CPU.
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
    /// Errors if a GPU was requested by name and is not available; `auto` falls back to the CPU.
    pub fn open(self) -> Result<Device, DeviceError> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(ordinal) if cfg!(feature = "cuda") => {
                Device::new_cuda(ordinal).map_err(|source| DeviceError::Cuda { ordinal, source })
            }
            Self::Cuda(_) => Err(DeviceError::NoCuda),
            Self::Auto if cfg!(feature = "cuda") => {
                Ok(Self::Cuda(0).open().unwrap_or_else(|error| {
                    tracing::warn!("the GPU cannot be used, so the CPU is used: {error}");
                    Device::Cpu
                }))
            }
            Self::Auto => Ok(Device::Cpu),
        }
    }
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
}
