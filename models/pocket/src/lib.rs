//! The pocket model's world: the instructions that it is trained on, its measurements, and the papers' claims on it.

pub mod claims;
pub mod cli;
pub mod evaluate;
pub mod world;
