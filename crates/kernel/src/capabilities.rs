//! Giving up capabilities, for good: also what a later exec could bring back.

use crate::error::{Error, Result};
use caps::{CapSet, Capability, CapsHashSet};
use nix::errno::Errno;

/// A capability that a part of terok keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// Changing the sets of the table.
    NetAdmin,
}

/// Drops every capability but `kept` from all sets of this thread, the bounding set first: root's exec regains what is
/// in it. Where the bounding set may not be changed it is left (no-new-privileges then keeps exec from gaining).
pub fn keep_only(kept: &[Kept]) -> Result<()> {
    let kept: CapsHashSet = kept.iter().map(|Kept::NetAdmin| Capability::CAP_NET_ADMIN).collect();
    let failed = |what: &'static str| move |_| Error::call("capset", what)(Errno::EPERM);
    for capability in caps::runtime::thread_all_supported() {
        let held = caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false);
        if held && !kept.contains(&capability) && caps::drop(None, CapSet::Bounding, capability).is_err() {
            break;
        }
    }
    // A kernel without ambient capabilities has none to drop.
    let _ = caps::clear(None, CapSet::Ambient);
    caps::clear(None, CapSet::Inheritable).map_err(failed("inheritable"))?;
    let permitted = caps::read(None, CapSet::Permitted).map_err(failed("permitted"))?;
    let remaining: CapsHashSet = permitted.intersection(&kept).copied().collect();
    caps::set(None, CapSet::Effective, &remaining).map_err(failed("effective"))?;
    caps::set(None, CapSet::Permitted, &remaining).map_err(failed("permitted"))?;
    Ok(())
}

/// Whether this thread may change network settings of namespaces that its user namespace owns.
pub fn has_net_admin() -> bool {
    caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap_or(false)
}

/// The names of the capabilities in force, sorted.
pub fn effective() -> Result<Vec<String>> {
    let held = caps::read(None, CapSet::Effective).map_err(|_| Error::call("capget", "")(Errno::EPERM))?;
    let mut names: Vec<String> = held.iter().map(ToString::to_string).collect();
    names.sort();
    Ok(names)
}
