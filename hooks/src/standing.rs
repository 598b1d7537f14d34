//! Where a container stands among those in its network namespace: it has it for itself, it is the first of a pod to be
//! protected, or it joins a network that has a guard already.

use crate::companions::{self, Companions};
use crate::guards::{self, Wanted};
use crate::origin::Origin;
use crate::records;
use crate::refusal::Refusal;
use crate::state::{Annotations, State};
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;
use terok_kernel::netns::NetNs;
use terok_kernel::pidfd::PidFd;
use terok_kernel::statedir::{Dir, Lock};
use terok_policy::control::Container;
use terok_policy::{Policy, layout};

/// In the configuration of a pod's member: the id of the pod's infra container.
const SANDBOX: &str = "/annotations/io.kubernetes.cri-o.SandboxID";
/// Two members that are started at once: the other one may wait for its supervisor.
const PATIENCE: Duration = Duration::from_secs(8);

/// Where the container stands.
#[derive(Debug)]
pub(crate) enum Standing {
    /// Nobody else is there.
    Alone,
    /// The first of a pod: the network is its infra container's, which gets the guard.
    First(Infra, #[allow(dead_code, reason = "held until the guard stands")] Lock),
    /// One more in the network of this guard.
    Member(Box<Container>),
}

/// The infra container of a pod, which keeps the network for its members.
#[derive(Debug)]
pub(crate) struct Infra {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) bundle: PathBuf,
    pub(crate) pid: i32,
    pub(crate) pidfd: PidFd,
}

/// What is known of the container that asks.
pub(crate) struct Asking<'a> {
    pub(crate) state: &'a State,
    pub(crate) ours: &'a Annotations,
    pub(crate) config: &'a Value,
    pub(crate) pid: i32,
    pub(crate) network: &'a NetNs,
    /// Of its policy.
    pub(crate) digest: &'a str,
}

/// Whether `create` will refuse a container that joins the network of process `holder`: at precreate it can still be said
/// where the person reads it.
pub(crate) fn foresee(
    config: &Value,
    holder: i32,
    policy: &Policy,
    ours: &Annotations,
    base: &Dir,
) -> Result<(), Refusal> {
    let network = NetNs::of(holder, &PidFd::open(holder)?)?;
    if network == NetNs::own()? {
        return Err(guards::host(config));
    }
    let companions = Companions::of(holder, false)?;
    let (members, _) = records::members(base, network.id())?;
    let is_pod = config.pointer(SANDBOX).is_some() && companions.is_infra(holder);
    if !is_pod && members.iter().all(|member| member.pid != holder) {
        return Err(companions::stranger(holder));
    }
    companions.refuse_strangers(&members, None)?;
    let digest = policy.digest();
    members.iter().try_for_each(|member| records::same_policy(member, &digest, ours))
}

/// Id of the container under whose name the supervisor of `holder`'s network stands or will stand: its guard's, or its infra
/// container's where it is a pod that has none yet.
pub(crate) fn guard_id(config: &Value, holder: i32, base: &Dir) -> Result<Option<String>, Refusal> {
    let network = NetNs::of(holder, &PidFd::open(holder)?)?;
    let (_, guard) = records::members(base, network.id())?;
    let infra = || config.pointer(SANDBOX).and_then(Value::as_str).filter(|id| layout::is_container_id(id));
    Ok(guard.map(|guard| guard.id).or_else(|| infra().map(str::to_owned)))
}

impl Asking<'_> {
    /// Finds out, and refuses what cannot be protected there. `base` is the folder of runtime folders.
    pub(crate) fn standing(&self, base: &Dir) -> Result<Standing, Refusal> {
        let (wanted, joins_pids) = (guards::wanted(self.config), guards::joins_pids(self.config));
        if wanted == Wanted::Own && !joins_pids {
            return Ok(Standing::Alone);
        }
        let companions = Companions::of(self.pid, joins_pids)?;
        if !matches!(wanted, Wanted::Joined { .. }) && companions.is_alone() {
            companions.refuse_strangers(&[], None)?;
            return Ok(Standing::Alone);
        }
        // Who comes second finds a guard that stands.
        let lock = base.lock(PATIENCE)?;
        let companions = Companions::of(self.pid, joins_pids)?;
        let (members, guard) = records::members(base, self.network.id())?;
        let infra = match wanted {
            Wanted::Joined { holder } => self.infra(holder, &companions)?,
            _ => None,
        };
        companions.refuse_strangers(&members, infra.as_ref().map(|infra| infra.pid))?;
        members.iter().try_for_each(|member| records::same_policy(member, self.digest, self.ours))?;
        match (guard, infra, members.into_iter().next()) {
            (Some(guard), _, _) => Ok(Standing::Member(Box::new(guard))),
            (None, Some(infra), _) => Ok(Standing::First(infra, lock)),
            (None, None, None) => Ok(Standing::Alone),
            (None, None, Some(member)) => Err(Refusal::Guard(format!(
                "the container joins the network of {}, whose supervisor has ended; start that one again first",
                if member.name.is_empty() { member.id } else { member.name }
            ))),
        }
    }

    /// The pod's infra container, if `holder` is it.
    fn infra(&self, holder: i32, companions: &Companions) -> Result<Option<Infra>, Refusal> {
        let id =
            self.config.pointer(SANDBOX).and_then(Value::as_str).filter(|id| layout::is_container_id(id));
        let Some(id) = id.filter(|_| companions.is_infra(holder)) else { return Ok(None) };
        let pidfd = PidFd::open(holder)?;
        if NetNs::of(holder, &pidfd)? != *self.network {
            return Ok(None);
        }
        // <root>/<driver>-containers/<id>/userdata, side by side
        let all = self.state.bundle.parent().and_then(|folder| folder.parent());
        let bundle = all.map(|all| all.join(id).join("userdata")).unwrap_or_default();
        // Podman 4.3 takes annotations from images too: only a container of the engine's own store is a pod's.
        let origin = Origin::of_bundle(&bundle, id, &Value::Null)?;
        if !matches!(origin, Origin::Storage(_)) {
            return Ok(None);
        }
        Ok(Some(Infra { id: id.to_owned(), name: origin.name(), bundle, pid: holder, pidfd }))
    }
}
