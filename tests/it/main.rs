//! The one integration binary.

mod floors;
mod support;
