//! Attacks that one caller can send to a server, and the client that sends them. The client has blocking sockets and threads of
//! its own, so that it does not delay the clients that are measured beside it. The integration tests send the same attacks at a
//! smaller size.
//!
//! | file | contents |
//! |---|---|
//! | `attacks` | the table: names, findings, how they are sent |
//! | `bodies` | the requests, byte by byte |
//! | `attacker` | connections that send the requests until they are stopped |

#![allow(dead_code, unused_imports)] // the load test and the integration tests each use some of it

mod attacker;
mod attacks;
mod bodies;

pub use attacker::{Attacker, Heard};
pub use attacks::{ATTACKS, Attack, Size, Way};
