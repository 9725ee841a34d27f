//! The scenarios, one file each.

pub mod attack;
pub mod interference;
pub mod kills;
pub mod mixed;
pub mod overload;
pub mod replay;
pub mod slow;
pub mod soak;
pub mod steady;
pub mod swap;

use crate::server::Server;
use crate::summary::Limits;

/// The settings that all scenarios share.
#[derive(Debug, Clone)]
pub struct Context {
    pub server: Server,
    pub limits: Limits,
    pub vocab: u32,
    pub seed: u64,
}
