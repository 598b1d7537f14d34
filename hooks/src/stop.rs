//! `stop` (poststop): a courtesy (L4). The supervisor sees the container's death by itself; this only tidies up behind
//! one that was killed. It waits for nothing and never fails.

use crate::argv::Request;
use crate::place::Place;
use crate::refusal::Refusal;
use crate::state::State;
use terok_policy::layout;

/// Removes the runtime folder of the container that stdin describes, if nobody serves it any more.
pub(crate) fn run(request: &Request) {
    // Nobody reads it, and nothing of a stop depends on it.
    let _ = tidy(request);
}

fn tidy(request: &Request) -> Result<(), Refusal> {
    let state =
        State::read(std::io::stdin().lock()).map_err(|error| Refusal::input("the OCI state", error))?;
    if let Some(folder) = Place::find(request)?.runtime()?.private(&state.id)?
        && !folder.is_served(layout::CONTROL)?
    {
        folder.remove_self()?;
    }
    Ok(())
}
