//! Values that are cut over two texts.

#[test]
fn placeholder() {}
