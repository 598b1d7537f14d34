//! The supervisor of one container.

fn main() -> std::process::ExitCode {
    terok_supervisor::main()
}
