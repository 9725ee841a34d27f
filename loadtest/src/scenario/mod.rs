//! The loads, a file each.

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

/// What every scenario is told.
#[derive(Debug, Clone)]
pub struct Context {
    pub server: Server,
    pub limits: Limits,
    pub vocab: u32,
    pub seed: u64,
}
