//! Confinement of a long-lived process (L7), in the order in which the layers do not hinder one another. Each layer
//! that is missing is reported as such.

use crate::capabilities::{self, Kept};
use crate::landlock::{self, Allowed, Enforced};
use crate::seccomp::{self, Filter};

/// One layer and whether it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layer {
    /// In force; the text says what exactly, `landlock=6`.
    Holds(String),
    /// Missing: its name and the reason.
    Missing(&'static str, String),
}

/// What a process may keep.
#[derive(Debug)]
pub struct Confinement<'a> {
    /// Capabilities.
    pub keep: &'a [Kept],
    /// Files.
    pub files: Allowed<'a>,
    /// System calls.
    pub calls: Filter,
}

/// Confines the calling thread, which must be the only one. Reports every layer, the missing ones too; the caller
/// decides whether it goes on without one.
pub fn confine(confinement: &Confinement<'_>) -> Vec<Layer> {
    let holds = |name: &'static str, done: Result<(), String>| match done {
        Ok(()) => Layer::Holds(name.into()),
        Err(reason) => Layer::Missing(name, reason),
    };
    let text = |error: nix::errno::Errno| error.desc().to_owned();
    let mut layers = vec![
        holds("not-dumpable", nix::sys::prctl::set_dumpable(false).map_err(text)),
        holds(
            if confinement.keep.is_empty() { "no-capabilities" } else { "only-net-admin" },
            capabilities::keep_only(confinement.keep).map_err(|error| error.to_string()),
        ),
        holds("no-new-privs", nix::sys::prctl::set_no_new_privs().map_err(text)),
    ];
    layers.push(match landlock::restrict(&confinement.files) {
        Enforced::Full(abi) => Layer::Holds(format!("landlock={abi}")),
        Enforced::Partial(abi) => {
            Layer::Missing("landlock-scopes", format!("the kernel knows only ABI {abi}"))
        }
        Enforced::No(reason) => Layer::Missing("landlock", reason),
    });
    // Last: the filter does not allow the calls above.
    layers.push(holds("seccomp", seccomp::install(confinement.calls).map_err(|error| error.to_string())));
    layers
}

impl std::fmt::Display for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Layer::Holds(what) => f.write_str(what),
            Layer::Missing(name, reason) => write!(f, "no-{name}: {reason}"),
        }
    }
}
