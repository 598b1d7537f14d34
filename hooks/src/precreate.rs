//! `precreate`: the configuration in, the amended one out. What can be refused is refused here already, because here
//! the person who started the container still gets to read why. Any refusal: nothing on stdout.

use crate::argv::Request;
use crate::birth::{self, Birth};
use crate::guards::{self, Wanted};
use crate::image::Found;
use crate::place::Place;
use crate::refusal::{self, Refusal};
use crate::state::{self, Annotations, ours};
use crate::{asked, handover, image, publish, standing};
use serde_json::Value;
use std::io::Write;
use std::path::Path;
use terok_policy::plan::{HostFacts, Plan};
use terok_policy::{Policy, amend, provision};

/// Reads `config.json` from stdin and writes it, amended, to stdout; without a `terok.` annotation octet by octet.
pub(crate) fn run(request: &Request) -> Result<(), Refusal> {
    let read =
        state::read_config(std::io::stdin().lock()).map_err(|error| Refusal::input("config.json", error))?;
    let (config, annotations) =
        state::parse_config(&read).map_err(|error| Refusal::input("config.json", error))?;
    let ours = ours(&annotations);
    let written = if ours.is_empty() && !request.all { read } else { amended(request, config, &ours)? };
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&written).and_then(|()| stdout.flush()).map_err(Refusal::io("write config.json"))
}

/// What the container is given, where its policy grants anything.
fn born(
    config: &Value,
    policy: &Policy,
    place: &Place,
    container: &Result<Found, String>,
) -> Result<Option<Birth>, Refusal> {
    if !provision::is_wanted(policy) {
        return Ok(None);
    }
    place.vault()?;
    let base = place.runtime()?;
    let birth = match birth::guard_of(config, &base)? {
        // Members of one network have its supervisor's tokens; two of them may be starting at once.
        Some(guard) => match Birth::open(&base, &guard, policy)? {
            Some(birth) => birth,
            None => Birth::make(&base, &guard, policy)?,
        },
        None => {
            let found = container.as_ref().map_err(|reason| {
                Refusal::Guard(format!("cannot tell which container this is, because {reason}; start it without terok.vault and terok.ssh"))
            })?;
            Birth::make(&base, &found.record.id, policy)?
        }
    };
    birth.foresee(&base, policy).inspect_err(|_| drop(birth.remove()))?;
    Ok(Some(birth))
}

fn amended(request: &Request, config: Value, ours: &Annotations) -> Result<Vec<u8>, Refusal> {
    let place = Place::find(request)?;
    let rootfs = config.pointer("/root/path").and_then(Value::as_str).unwrap_or_default();
    let container = image::by_rootfs(Path::new(rootfs));
    let amended = (|| {
        place.refuse_in_panic()?;
        let policy = asked::read(request, ours, &place, &container)?.policy;
        guards::check(&config, &place.keep(None))?;
        if let Wanted::Joined { holder } = guards::wanted(&config) {
            standing::foresee(&config, holder, &policy, ours, &place.runtime()?)?;
        }
        // What `create` will need or find, where its refusal would be an exit code only.
        if guards::wanted(&config) == Wanted::Own {
            Plan::new(policy.clone(), HostFacts::sealed(true))?;
        }
        place.check()?;
        handover::supervisor()?;
        if !matches!(guards::wanted(&config), Wanted::Joined { .. }) {
            publish::listen(&policy.publish)?;
        }
        let birth = born(&config, &policy, &place, &container)?;
        let amended = amend::amend(config, &policy).and_then(|amended| match &birth {
            Some(birth) => amend::provide(amended, &birth.provision(&policy)),
            None => Ok(amended),
        });
        if let (Err(_), Some(birth)) = (&amended, &birth) {
            // The refusal is what matters; the next start replaces the folder anyway.
            let _ = birth.remove();
        }
        serde_json::to_vec(&amended?).map_err(|error| Refusal::input("config.json", error))
    })();
    if let (Err(refusal), Ok(found)) = (&amended, &container)
        && terok_policy::layout::is_container_id(&found.record.id)
        && let Ok(state) = place.state().and_then(|base| Ok(base.make_private(&found.record.id)?))
    {
        refusal::record(&state, refusal);
    }
    amended
}
