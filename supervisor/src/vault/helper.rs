//! The helper: a process that lives for one errand. It confines itself, reads what its container was granted and nothing else, and writes one report to
//! the line whose other end only the worker holds. What it is handed comes as descriptors, so that nothing about a secret is in its arguments.

use super::reader::{Grants, Reader};
use super::{Errand, HELPER_FDS, Order, Report};
use crate::inherit::StoredConfig;
use crate::trust;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use terok_kernel::confine::{Confinement, confine};
use terok_kernel::landlock::Allowed;
use terok_kernel::program::set_name;
use terok_kernel::seccomp::Filter;
use terok_kernel::statedir::Dir;
use terok_kernel::{inherited, memfd};
use terok_policy::layout;
use zeroize::Zeroizing;

/// The longest order: a question of the worker's.
const ORDER_LIMIT: u64 = 64 << 10;

/// Runs one errand. `owner` is the real uid of the person whose container it is.
pub(crate) fn run(owner: u32) -> anyhow::Result<()> {
    set_name("terok-vault");
    let mut fds = inherited::take(3, HELPER_FDS)?.into_iter();
    let mut next = || fds.next().ok_or_else(|| anyhow::anyhow!("too few descriptors"));
    let config = StoredConfig::from(next()?);
    let (vault, base, state) = (folder(next()?)?, folder(next()?)?, folder(next()?)?);
    let line = UnixDatagram::from(next()?);
    let grants: Grants = config.read()?;
    let Order { number, errand } = serde_json::from_slice(&memfd::read_sealed(next()?, ORDER_LIMIT)?)?;

    let renews = matches!(errand, Errand::Credential { grant, .. } if grants.renews(grant));
    let mut read = vec![PathBuf::from("/dev/random"), PathBuf::from("/dev/urandom")];
    if renews {
        read.extend(crate::resolver_files(owner));
        read.extend(trust::files());
    }
    let reader = Reader { vault, base, state, grants };
    if matches!(errand, Errand::Sign { .. }) {
        read.extend(reader.known_hosts());
    }
    let Reader { vault, base, state, .. } = &reader;
    // Read only: the session, ephemeral credentials and what an operator took back.
    let beside = [base.private(layout::SESSION)?, base.private(layout::EPHEMERAL)?];
    let look = beside.iter().flatten().chain([state]).map(Dir::as_fd).collect();
    let layers = confine(&Confinement {
        keep: &[],
        files: Allowed { read, look, write: vec![vault.as_fd()], ..Allowed::default() },
        calls: if renews { Filter::Renewer } else { Filter::Reader },
    });
    crate::report(&layers)?;

    let (stamp, done) = (reader.stamp(&errand), reader.run(&errand));
    let text = Zeroizing::new(serde_json::to_vec(&Report { number, stamp, done })?);
    line.send(&text)?;
    Ok(())
}

/// A folder by descriptor, under the path it has now.
fn folder(fd: OwnedFd) -> std::io::Result<Dir> {
    let path = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    Ok(Dir::from_fd(fd, path))
}
