//! Sets the `cfg`s by which tests that need more than the repository are ignored and counted.

fn main() {
    test_support::emit_cfgs();
}
