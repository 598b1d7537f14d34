//! terok.
fn main() {}
