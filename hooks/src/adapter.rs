//! What both adapters do with a configuration before the runtime gets it: `precreate` for Podman, the shim for any engine. What can
//! be refused is refused here already, because here the person who started the container still gets to read why.

use crate::argv::Request;
use crate::birth::{self, Birth};
use crate::guards::{self, Wanted};
use crate::origin::Origin;
use crate::place::Place;
use crate::refusal::{self, Refusal};
use crate::state::Annotations;
use crate::{asked, handover, publish, standing};
use serde_json::Value;
use terok_policy::plan::{HostFacts, Plan};
use terok_policy::provision::Provision;
use terok_policy::{Policy, amend, layout, provision};

/// Which container it is.
#[derive(Debug)]
pub(crate) struct Subject {
    /// Its id; why it is not known, where it is not.
    pub(crate) id: Result<String, String>,
    /// What its engine knows of it.
    pub(crate) origin: Origin,
}

/// The configuration as the runtime is to get it, or why the container does not start, left in its logs as well.
pub(crate) fn amended(
    request: &Request,
    config: Value,
    ours: &Annotations,
    subject: &Subject,
    place: &Place,
) -> Result<Value, Refusal> {
    judged(request, config, ours, subject, place).inspect_err(|refusal| {
        if let Ok(id) = &subject.id
            && layout::is_container_id(id)
            && let Ok(state) = place.state().and_then(|base| Ok(base.make_private(id)?))
        {
            refusal::record(&state, refusal);
        }
    })
}

fn judged(
    request: &Request,
    config: Value,
    ours: &Annotations,
    subject: &Subject,
    place: &Place,
) -> Result<Value, Refusal> {
    place.refuse_in_panic()?;
    let policy = asked::read(request, ours, place, &subject.origin)?.policy;
    // The other adapter may have been here already.
    let given = match provision::is_wanted(&policy) {
        true => birth::mounted(&config, &place.runtime()?),
        false => None,
    };
    let (config, carded) = without_defaults(config, &subject.origin)?;
    guards::check(&config, &place.keep(given.as_deref()), carded)?;
    if let Wanted::Joined { holder } = guards::wanted(&config) {
        standing::foresee(&config, holder, &policy, ours, &place.runtime()?)?;
    }
    // What `create` will need or find, where its refusal would be an exit code only.
    if !carded {
        Plan::new(policy.clone(), HostFacts::sealed(true))?;
    }
    place.check()?;
    handover::supervisor()?;
    if !matches!(guards::wanted(&config), Wanted::Joined { .. }) {
        publish::listen(&policy.publish)?;
    }
    let birth = born(&config, &policy, place, subject)?;
    let amended = edited(config, &policy, birth.as_ref().map(|birth| birth.provision(&policy)).as_ref());
    if let (Err(_), Some(birth)) = (&amended, &birth) {
        // The refusal is what matters; the next start replaces the folder anyway.
        let _ = birth.abandon();
    }
    Ok(amended?)
}

/// The configuration without what its engine gives to every container and no protected one may have; and whether there is, or will
/// be, a card.
pub(crate) fn without_defaults(config: Value, origin: &Origin) -> Result<(Value, bool), amend::AmendError> {
    let carded = guards::wanted(&config) != Wanted::Own || origin.brings_card(&config);
    match origin.has_raw_by_default() {
        true => Ok((amend::without_raw_sockets(config)?, carded)),
        false => Ok((config, carded)),
    }
}

/// The edit itself, of what has been judged: pure, so that it can be shown as well as done.
pub(crate) fn edited(
    config: Value,
    policy: &Policy,
    provision: Option<&Provision>,
) -> Result<Value, amend::AmendError> {
    let amended = amend::amend(config, policy)?;
    match provision {
        Some(provision) => amend::provide(amended, provision),
        None => Ok(amended),
    }
}

/// What the container is given, where its policy grants anything.
fn born(config: &Value, policy: &Policy, place: &Place, subject: &Subject) -> Result<Option<Birth>, Refusal> {
    if !provision::is_wanted(policy) {
        return Ok(None);
    }
    place.vault()?;
    let base = place.runtime()?;
    let guard = birth::guard_of(config, &base)?;
    let id = match &guard {
        Some(guard) => guard,
        None => subject.id.as_ref().map_err(|reason| {
            Refusal::Guard(format!("cannot tell which container this is, because {reason}; start it without terok.vault and terok.ssh"))
        })?,
    };
    let birth = match Birth::open(&base, id, policy)? {
        // Members of one network have its supervisor's tokens; two of them may be starting at once.
        Some(birth) if guard.is_some() || birth.is_in(config, policy) => birth,
        _ => Birth::make(&base, id, policy)?,
    };
    birth.foresee(&base, policy).inspect_err(|_| drop(birth.abandon()))?;
    Ok(Some(birth))
}
