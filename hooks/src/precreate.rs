//! `precreate`: the configuration in, the amended one out. Any refusal: nothing on stdout.

use crate::adapter::{self, Subject};
use crate::argv::Request;
use crate::origin::Origin;
use crate::place::Place;
use crate::refusal::Refusal;
use crate::state::{self, Annotations, ours};
use serde_json::Value;
use std::io::Write;

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

fn amended(request: &Request, config: Value, ours: &Annotations) -> Result<Vec<u8>, Refusal> {
    let origin = Origin::of_config(&config);
    let subject = Subject { id: origin.id(), origin };
    let amended = adapter::amended(request, config, ours, &subject, &Place::find(request)?)?;
    serde_json::to_vec(&amended).map_err(|error| Refusal::input("config.json", error))
}
