//! The operators: each a plain version on candle ops beside a fused one, under one dispatch rule.

pub mod linear;
