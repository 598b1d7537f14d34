//! An OCI runtime that protects a container and then becomes the real one.
fn main() -> std::process::ExitCode {
    terok_shim::run()
}
