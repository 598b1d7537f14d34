//! What the kernel refused, with the call and its object, so that one line tells where to look.

use nix::errno::Errno;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A refusal by the kernel, or something found that must not be trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error("{call} {subject}: {}", .errno.desc())]
    Call {
        /// Name of the system call or operation.
        call: &'static str,
        /// Its object: path, pid, descriptor.
        subject: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// A file or folder that must not be used as it is.
    #[error("{path}: {reason}")]
    Untrusted {
        /// The path, as far as it is known.
        path: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The process ended meanwhile, or its number belongs to another one now.
    #[error("process {pid} is gone")]
    Gone {
        /// Its number.
        pid: i32,
    },
}

impl Error {
    /// For `map_err` behind a system call.
    pub fn call(call: &'static str, subject: impl std::fmt::Display) -> impl FnOnce(Errno) -> Error {
        move |errno| Error::Call { call, subject: subject.to_string(), errno }
    }

    /// For `map_err` behind a standard-library call.
    pub fn io(call: &'static str, subject: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Error {
        move |error| Error::Call {
            call,
            subject: subject.to_string(),
            errno: error.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
        }
    }

    /// Whether the object is simply not there.
    pub fn is_missing(&self) -> bool {
        self.errno() == Some(Errno::ENOENT)
    }

    /// The kernel's error number, where there is one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Error::Call { errno, .. } => Some(*errno),
            Error::Gone { .. } => Some(Errno::ESRCH),
            Error::Untrusted { .. } => None,
        }
    }
}
