//! Becoming another program: what this one was started with goes on to the next as it came.

use crate::error::Error;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::stat::{Mode, umask};
use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What a program changes of what it inherited, kept for the one that it becomes. Descriptors, environment, working directory, limits
/// and the signal mask it must leave alone; its own descriptors are close-on-exec, as all of the standard library's are.
#[derive(Debug)]
pub struct Inherited {
    umask: Mode,
}

impl Inherited {
    /// Files made from now on are their owner's alone.
    pub fn set_aside() -> Self {
        Inherited { umask: umask(Mode::S_IRWXG | Mode::S_IRWXO) }
    }

    /// Becomes the program at `path`, an absolute one. Returns only with the kernel's refusal.
    pub fn become_program(self, path: &Path, arguments: &[OsString]) -> Error {
        let subject = path.display().to_string();
        let c = |text: &std::ffi::OsStr| CString::new(text.as_bytes());
        let (Ok(program), Ok(arguments)) =
            (c(path.as_os_str()), arguments.iter().map(|word| c(word)).collect::<Result<Vec<_>, _>>())
        else {
            return Error::call("exec", subject)(nix::errno::Errno::EINVAL);
        };
        umask(self.umask);
        // SAFETY: sets no handler of ours. The standard library has ignored SIGPIPE since the start, which the next program would
        // inherit; engines start runtimes with the default.
        #[allow(unsafe_code, reason = "resets a disposition")]
        let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
        match nix::unistd::execv(&program, &arguments) {
            Ok(never) => match never {},
            Err(errno) => Error::call("exec", subject)(errno),
        }
    }
}
