//! The OCI hooks of terok: `terok-hook precreate | create | stop`.
fn main() -> std::process::ExitCode {
    terok_hook::run()
}
