//! The shim's half of the adapters: a bundle that a runtime is about to create, a further process of a container that runs. The shim
//! itself only finds them on the runtime's command line, puts back what comes out of here, and becomes the runtime.

use crate::adapter::{self, Subject};
use crate::argv::Request;
use crate::birth::Birth;
use crate::origin::Origin;
use crate::place::Place;
use crate::refusal::{self, Refusal};
use crate::state::{self, ours};
use crate::{asked, guards, records};
use serde_json::Value;
use std::path::Path;
use terok_kernel::program::Program;
use terok_kernel::statedir::Dir;
use terok_policy::amend::{self, hooks};
use terok_policy::control::Container;
use terok_policy::plan::Network;
use terok_policy::{layout, provision};

/// Why a container or a process of it does not start: one line.
#[derive(Debug)]
pub struct Refused(Refusal);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&refusal::one_line(&self.0.to_string()))
    }
}

impl Refused {
    /// 1: refused; 2: the host cannot.
    pub fn exit_code(&self) -> u8 {
        self.0.exit_code()
    }
}

/// What is to stand in place of `config`, the `config.json` of container `id` in the folder `bundle`; `None` where it is none of terok's.
/// `folder` is where the hook is installed.
pub fn bundle(
    request: &Request,
    id: &str,
    bundle: &Path,
    config: &[u8],
    folder: &Path,
) -> Result<Option<Vec<u8>>, Refused> {
    amended(request, id, bundle, config, folder).map_err(Refused)
}

fn amended(
    request: &Request,
    id: &str,
    bundle: &Path,
    config: &[u8],
    folder: &Path,
) -> Result<Option<Vec<u8>>, Refusal> {
    let what = || bundle.join("config.json").display().to_string();
    let Some(Wanted { config, ours, origin }) = wanted(request, id, bundle, config)? else { return Ok(None) };
    if !layout::is_container_id(id) {
        return Err(Refusal::input("the container's id", format!("{id:?} cannot name a folder")));
    }
    // Before the other one's tokens are replaced.
    let place = Place::find(request)?;
    if let Some(base) = place.existing_runtime()? {
        records::refuse_namesake(&base, id, bundle)?;
    }
    Program::sibling(layout::HOOK).map_err(Refusal::missing)?;
    let installed = hooks::Installed {
        program: folder.join(layout::HOOK).display().to_string(),
        home: request.home.as_ref().map(|home| home.display().to_string()),
        all: request.all,
    };
    let subject = Subject { id: Ok(id.to_owned()), origin };
    let said = amend::annotate(config, &ours)?;
    let amended = adapter::amended(request, said, &ours, &subject, &place)?;
    let amended = hooks::inject(amended, &installed)?;
    serde_json::to_vec(&amended).map(Some).map_err(|error| Refusal::input(what(), error))
}

/// Whether container `id` in the folder `bundle` with this configuration is one that [`bundle`] would protect.
pub fn is_wanted(request: &Request, id: &str, bundle: &Path, config: &[u8]) -> Result<bool, Refused> {
    wanted(request, id, bundle, config).map(|wanted| wanted.is_some()).map_err(Refused)
}

/// A container that is to be protected.
struct Wanted {
    config: Value,
    ours: state::Annotations,
    origin: Origin,
}

fn wanted(request: &Request, id: &str, bundle: &Path, config: &[u8]) -> Result<Option<Wanted>, Refusal> {
    let (config, annotations) = state::parse_config(config)
        .map_err(|error| Refusal::input(bundle.join("config.json").display().to_string(), error))?;
    if ours(&annotations).is_empty() && !request.all && !Origin::has_labels(bundle, id, &config) {
        return Ok(None);
    }
    let origin = Origin::of_bundle(bundle, id, &config)?;
    let ours = origin.ours(&annotations)?;
    Ok((request.all || !ours.is_empty()).then_some(Wanted { config, ours, origin }))
}

/// Rights that the line of a further process gives it beyond those of the container's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given {
    /// By name.
    pub capabilities: Vec<String>,
    /// It may gain privileges where the container may not.
    pub new_privileges: bool,
}

/// What is to stand in place of `process`, a further process of container `id` as the engine describes it; `None` where it stays as
/// it is. In a restricted container it is restricted, in one with a card it has no capability that could undo its protection, and
/// it finds vault and signer as the container's first one does.
pub fn process(request: &Request, id: &str, process: &[u8]) -> Result<Option<Vec<u8>>, Refused> {
    further(request, id, process).map_err(Refused)
}

/// Whether a further process of container `id` may have what the runtime's own command line gives it; the rest it has from the
/// container's configuration.
pub fn described(request: &Request, id: &str, given: &Given) -> Result<(), Refused> {
    let judged = || match given {
        Given { capabilities, new_privileges: false } if capabilities.is_empty() => Ok(()),
        _ => match Running::find(&Place::find(request)?, id)? {
            Some(running) => running.judge(given),
            None => Ok(()),
        },
    };
    judged().map_err(Refused)
}

fn further(request: &Request, id: &str, process: &[u8]) -> Result<Option<Vec<u8>>, Refusal> {
    let place = Place::find(request)?;
    let Some(running) = Running::find(&place, id)? else { return Ok(None) };
    let before: Value =
        serde_json::from_slice(process).map_err(|error| Refusal::input("the process to start", error))?;
    let mut after = before.clone();
    if amend::is_without_raw_sockets(&running.config) {
        after = amend::process_without_raw_sockets(after)?;
    }
    if running.is_restricted() {
        after = amend::restrict_process(after)?;
    }
    let guard = running.container.served_by.as_deref().unwrap_or(id);
    if let Some(provision) = provision(request, &place, &running.base, guard, &running.ours) {
        after = amend::provide_process(after, &provision)?;
    }
    if running.has_a_card() {
        guards::further(&after)?;
    }
    if after == before {
        return Ok(None);
    }
    serde_json::to_vec(&after).map(Some).map_err(|error| Refusal::input("the process to start", error))
}

/// A container that `create` protects.
struct Running {
    /// What it wrote of it.
    container: Container,
    /// The folder of runtime folders.
    base: Dir,
    /// As the runtime got it.
    config: Value,
    ours: state::Annotations,
}

impl Running {
    fn find(place: &Place, id: &str) -> Result<Option<Self>, Refusal> {
        let Some((container, base)) = running(place, id)? else { return Ok(None) };
        let (config, annotations) = state::of_bundle(Path::new(&container.bundle))?;
        Ok(Some(Running { container, base, config, ours: ours(&annotations) }))
    }

    fn is_restricted(&self) -> bool {
        amend::is_restricted(&self.config)
    }

    fn has_a_card(&self) -> bool {
        self.container.network == Some(Network::Filtered)
    }

    fn judge(&self, given: &Given) -> Result<(), Refusal> {
        if self.is_restricted() {
            return Err(Refusal::Guard(
                "the container is restricted, and so is every process in it; leave out --cap and --no-new-privs=false"
                    .into(),
            ));
        }
        if self.has_a_card() {
            given
                .capabilities
                .iter()
                .try_for_each(|name| guards::undoes(name, &format!("without --cap {name}")))?;
        }
        Ok(())
    }
}

/// What `create` wrote of a container that it protects, and the folder of runtime folders.
fn running(place: &Place, id: &str) -> Result<Option<(Container, Dir)>, Refusal> {
    if !layout::is_container_id(id) {
        return Ok(None);
    }
    let Some(base) = place.existing_runtime()? else { return Ok(None) };
    let Some(folder) = base.private(id)? else { return Ok(None) };
    Ok(records::read(&folder)?.map(|container| (container, base)))
}

/// The variables that the container was born with. Where they cannot be told any more (a provider's file has changed since) the
/// process does without: it gets less, and nothing else depends on them.
fn provision(
    request: &Request,
    place: &Place,
    base: &Dir,
    guard: &str,
    ours: &state::Annotations,
) -> Option<provision::Provision> {
    // Whether the image spoke was asked when the container started.
    let policy = asked::policy(request, ours, place).ok()?;
    let birth = provision::is_wanted(&policy).then(|| Birth::open(base, guard, &policy).ok()?)??;
    Some(birth.provision(&policy))
}
