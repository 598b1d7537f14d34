//! The OCI hooks of terok. `create` is where a container gets its protection or does not start; read it first.

mod adapter;
pub mod argv;
mod asked;
mod birth;
mod catalog;
mod companions;
mod create;
mod doors;
mod guards;
mod handover;
mod inside;
mod mounts;
mod origin;
mod place;
mod precreate;
pub mod preview;
mod publish;
mod records;
mod refusal;
pub mod shim;
mod standing;
pub mod state;
mod stop;

use argv::{Request, Stage};
use std::process::ExitCode;

/// Runs the stage that the command line names. Clean birth first (L3): nothing inherited is used before.
pub fn run() -> ExitCode {
    if let Err(error) = terok_kernel::birth::clean().and_then(|()| terok_kernel::birth::close_from(3)) {
        return refusal::report(&error.into(), None);
    }
    let request = match Request::parse(std::env::args_os().skip(1)) {
        Ok(request) => request,
        Err(usage) => return refusal::report(&usage.into(), None),
    };
    let done = match request.stage {
        Stage::Precreate => precreate::run(&request),
        Stage::Create => create::run(&request),
        Stage::Stop => {
            stop::run(&request);
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(refusal) => refusal::report(&refusal, Some(request.stage)),
    }
}
