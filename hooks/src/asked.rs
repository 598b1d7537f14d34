//! What is asked for: the container's annotations, and the host's settings.

use crate::argv::Request;
use crate::catalog;
use crate::place::Place;
use crate::refusal::Refusal;
use crate::state::Annotations;
use terok_policy::settings::Upstream;
use terok_policy::{Policy, annotation};

/// A policy, and how the host reaches the outside.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) policy: Policy,
    pub(crate) upstream: Option<Upstream>,
}

/// Reads both for the owner of `place`.
pub(crate) fn read(_request: &Request, ours: &Annotations, place: &Place) -> Result<Asked, Refusal> {
    let policy = annotation::parse(ours, &catalog::read(place.home())?)?;
    Ok(Asked { policy, upstream: None })
}
