//! What one caller can throw at a server, and the caller that throws it. Blocking sockets and threads of its own: who is measured
//! beside it must not wait for it. The integration tests throw the same, smaller.
//!
//! | file | what |
//! |---|---|
//! | `attacks` | the list: names, findings, how they are thrown |
//! | `bodies` | the requests, byte by byte |
//! | `attacker` | connections that throw them until told to stop |

#![allow(dead_code, unused_imports)] // the load test and the integration tests each use some of it

mod attacker;
mod attacks;
mod bodies;

pub use attacker::{Attacker, Heard};
pub use attacks::{ATTACKS, Attack, Size, Way};
