//! `terok run`: from a command line to the Podman command that starts a protected container, sealed where nothing is said.
//! Everything is checked before Podman is started; Podman then takes this program's place.

mod annotations;
mod checks;
mod line;
mod mounts;
mod network;
mod options;

use crate::vault::ephemeral::Given;
use crate::{profiles, vault};
use annotations::{annotations, grant};
use anyhow::{Context as _, anyhow, bail};
use clap::ArgMatches;
pub(crate) use line::RunArgs;
use mounts::Doors;
use network::Wanted;
use options::{ADDABLE_CAPABILITIES, Does, KEPT_CAPABILITIES, OPTIONS, Opt};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::Path;
use terok_install::host::Host;
use terok_install::{consulted, podman};
use terok_policy::plan::{Card, HostFacts, Network};
use terok_policy::{Plan, Policy, annotation, judge};

/// The network of a container about which nothing is said.
const SEALED: &str = "--network=none";

/// What every container is started with. Podman would pass the person's proxy variables on, and the socket of a service
/// manager that terok was started by.
const PINNED: [&str; 4] =
    ["--security-opt=no-new-privileges", "--http-proxy=false", "--sdnotify=conmon", "--cap-drop=all"];

/// What will be started.
#[derive(Debug, PartialEq, Eq)]
struct Start {
    /// Arguments of Podman, from `run` on.
    arguments: Vec<OsString>,
    annotations: BTreeMap<String, String>,
    network: Wanted,
}

/// Starts the container, or prints how with `--dry-run`.
pub(crate) fn run(host: &Host, args: &RunArgs) -> anyhow::Result<()> {
    let doors =
        Doors::of(host, std::env::current_dir().context("the current folder is gone: cd somewhere else")?);
    let credentials = credentials(host, &args.0, args.0.get_flag("dry-run"))?;
    let start = assemble(&args.0, &doors, &credentials)?;
    let policy = annotation::parse(&start.annotations, &profiles::catalog(host)?)?;
    let of_the_vault = needs_the_vault(&policy);
    for host in judge::unreached(&policy) {
        let port = judge::SSH;
        eprintln!(
            "terok: note: no rule opens {host}:{port}, where the granted SSH key would log in; add --allow {host}:{port}"
        );
    }
    // What keeps the vault from being read is told below.
    let missing = if of_the_vault { vault::missing(host, &policy) } else { Ok(Vec::new()) };
    match start.network {
        Wanted::Sealed => drop(Plan::new(policy, HostFacts::sealed(true))?),
        Wanted::Filtered => drop(Plan::new(policy, example())?),
        // Whether it has a card is known where it was made.
        Wanted::Shared => {}
    }
    if args.0.get_flag("dry-run") {
        let podman = podman::find().unwrap_or_else(|_| "podman".into());
        say!(
            "{}",
            quoted(
                std::iter::once(podman.as_os_str()).chain(start.arguments.iter().map(OsString::as_os_str))
            )
        )?;
        if !credentials.is_empty() {
            eprintln!(
                "terok: --credential is for terok run alone: the name of its file is made at each start, and is zeros here"
            );
        }
        return Ok(());
    }
    if let Some(marker) = host.panics().first() {
        let sudo = if *marker == host.panic_marker() { "" } else { "sudo " };
        bail!(
            "no protected container starts while {} is there: lift it with: {sudo}terok panic --clear",
            marker.display()
        );
    }
    consulted::consulted(host)?;
    let podman = podman::find()?;
    if of_the_vault {
        if let Err(reason) = vault::unlock_silently(host) {
            eprintln!("terok: it starts without its credentials: {reason}");
        }
        for what in missing.unwrap_or_default() {
            eprintln!("terok: it starts without a credential: {what}");
        }
    }
    for given in &credentials {
        given.write(host)?;
    }
    let error = command(&podman, &start.arguments, &credentials).exec();
    bail!("{}: {error}", podman.display())
}

/// Podman without the variables that credentials were read from: its monitor would keep them as long as the container lives, and `env_host` or
/// `env` in its settings, or `--env` of the same name, would pass them on.
fn command(podman: &Path, arguments: &[OsString], credentials: &[Given]) -> std::process::Command {
    let mut command = std::process::Command::new(podman);
    command.args(arguments);
    for given in credentials {
        command.env_remove(given.variable());
    }
    command
}

/// The credentials that live with this container, read and not yet written.
fn credentials(host: &Host, matches: &ArgMatches, dry_run: bool) -> anyhow::Result<Vec<Given>> {
    let mut credentials: Vec<Given> = Vec::new();
    for text in matches.get_many::<String>("credential").into_iter().flatten() {
        let mut given = Given::read(host, text)?;
        if credentials.iter().any(|other| other.provider() == given.provider()) {
            bail!("--credential {} is given twice; give it once", given.provider());
        }
        if !dry_run {
            given.name()?;
        }
        credentials.push(given);
    }
    Ok(credentials)
}

/// Whether anything it grants comes out of the vault.
fn needs_the_vault(policy: &Policy) -> bool {
    !policy.ssh.is_empty() || policy.vault.iter().any(|grant| grant.reference().is_none())
}

fn assemble(matches: &ArgMatches, doors: &Doors, credentials: &[Given]) -> anyhow::Result<Start> {
    let network = network(matches)?;
    let mut annotations = annotations(matches)?;
    grant(&mut annotations, credentials)?;
    // Podman's options keep their order: later ones win.
    let mut passed: Vec<(usize, OsString)> = Vec::new();
    let mut capabilities: BTreeSet<String> = KEPT_CAPABILITIES.map(str::to_owned).into();
    // A server that is published often listens below 1024.
    if matches.contains_id("publish") {
        capabilities.insert("NET_BIND_SERVICE".to_owned());
    }
    if matches.get_flag("restricted") {
        capabilities.clear();
    }
    for option in OPTIONS {
        let long = option.long;
        match option.does {
            Does::Terok => {}
            Does::Refuse(reason) => {
                if matches.contains_id(long) {
                    bail!("--{long} is refused: {reason}");
                }
            }
            Does::Capability => {}
            Does::Card(reason) if network != Wanted::Filtered => {
                if matches.contains_id(long) {
                    bail!("--{long} is refused: {reason}");
                }
            }
            Does::Publish => {
                let values = matches.get_many::<String>(long).into_iter().flatten();
                let values: Vec<_> = values.zip(matches.indices_of(long).into_iter().flatten()).collect();
                match network {
                    Wanted::Filtered => {
                        passed
                            .extend(values.iter().map(|(value, at)| (*at, word(option, OsStr::new(value)))));
                    }
                    Wanted::Sealed => {
                        let mut words = Vec::new();
                        for (value, _) in values {
                            match network::published(value) {
                                Ok(word) => words.push(word),
                                Err(reason) => bail!("--publish {value} is refused: {reason}"),
                            }
                        }
                        if !words.is_empty() {
                            annotations.insert("terok.publish".to_owned(), words.join(" "));
                        }
                    }
                    Wanted::Shared if values.is_empty() => {}
                    Wanted::Shared => bail!(
                        "--publish is refused: the ports of a shared network are published where it is made, by podman pod create or the other container"
                    ),
                }
            }
            Does::Pass | Does::Card(_) => {
                let values = matches.get_many::<OsString>(long).into_iter().flatten();
                for (value, at) in values.zip(matches.indices_of(long).into_iter().flatten()) {
                    passed.push((at, word(option, value)));
                }
            }
            Does::Check(check) => {
                let values = matches.get_many::<String>(long).into_iter().flatten();
                for (value, at) in values.zip(matches.indices_of(long).into_iter().flatten()) {
                    if let Err(reason) = check(value, doors) {
                        bail!("--{long} {value} is refused: {reason}");
                    }
                    match value.split_once('=') {
                        Some((key, text)) if long == "annotation" && key.starts_with(annotation::PREFIX) => {
                            if annotations
                                .insert(key.to_owned(), text.to_owned())
                                .is_some_and(|other| other != text)
                            {
                                bail!(
                                    "{key} is given twice: by --annotation and by an option of terok; give it once"
                                );
                            }
                        }
                        // We write that ourselves.
                        _ if network == Wanted::Sealed && matches!(long, "network" | "net") => {}
                        _ => passed.push((at, word(option, OsStr::new(value)))),
                    }
                }
            }
        }
    }
    for name in matches.get_many::<String>("cap-drop").into_iter().flatten() {
        for name in capability_names(name) {
            if name == "ALL" {
                capabilities.clear();
            }
            capabilities.remove(&name);
        }
    }
    for name in matches.get_many::<String>("cap-add").into_iter().flatten() {
        for name in capability_names(name) {
            if !ADDABLE_CAPABILITIES.contains(&name.as_str()) && !KEPT_CAPABILITIES.contains(&name.as_str()) {
                bail!(
                    "--cap-add {name} is refused: it reaches beyond the container's own files and processes; {} pass",
                    ADDABLE_CAPABILITIES.join(", ")
                );
            }
            if name == "NET_RAW" && network != Wanted::Sealed {
                bail!(
                    "--cap-add NET_RAW is refused: raw sockets go round the firewall of a container with a network card; leave it out, or start it with --network none"
                );
            }
            if matches.get_flag("restricted") {
                bail!(
                    "--cap-add {name} is refused: --restricted means no capabilities; leave one of them out"
                );
            }
            capabilities.insert(name);
        }
    }
    passed.sort_by_key(|(at, _)| *at);

    let mut arguments: Vec<OsString> = vec!["run".into()];
    for (key, value) in &annotations {
        if let Err(reason) = checks::single(value) {
            bail!("{key}={value:?} is refused: {reason}");
        }
        arguments.push(format!("--annotation={key}={value}").into());
    }
    if network == Wanted::Sealed {
        arguments.push(SEALED.into());
    }
    arguments.extend(PINNED.map(OsString::from));
    arguments.extend(capabilities.iter().map(|name| format!("--cap-add={name}").into()));
    arguments.extend(passed.into_iter().map(|(_, word)| word));
    // An image that begins with a dash stays an image.
    arguments.push("--".into());
    arguments.extend(matches.get_many::<OsString>("IMAGE").into_iter().flatten().cloned());
    Ok(Start { arguments, annotations, network })
}

fn network(matches: &ArgMatches) -> anyhow::Result<Wanted> {
    let of = |long| matches.get_many::<String>(long).into_iter().flatten().map(String::as_str);
    let values: Vec<&str> = of("network").chain(of("net")).collect();
    let pod = matches.contains_id("pod") || matches.contains_id("pod-id-file");
    network::wanted(&values, pod)
        .map_err(|reason| anyhow!("--network {} is refused: {reason}", values.join(" ")))
}

/// The facts to explain a container by that `--network` describes; the card is an example.
pub(crate) fn facts(network: &str) -> anyhow::Result<HostFacts> {
    match network::wanted(&[network], false).map_err(|reason| anyhow!("--network {network}: {reason}"))? {
        Wanted::Sealed => Ok(HostFacts::sealed(true)),
        Wanted::Filtered => Ok(example()),
        Wanted::Shared => {
            bail!("--network {network}: name the network that the other container was started with")
        }
    }
}

/// A card that stands for the real one, whose networks are known at the start.
pub(crate) fn example() -> HostFacts {
    let card =
        Card { index: 2, name: "eth0".to_owned(), shared: false, nets: Vec::new(), gateways: Vec::new() };
    HostFacts { network: Network::Filtered, cards: vec![card], ..HostFacts::sealed(true) }
}

/// `cap_net_raw,chown` → `NET_RAW`, `CHOWN`.
fn capability_names(value: &str) -> Vec<String> {
    let names = value.split(',').map(|name| name.trim().to_ascii_uppercase());
    names.map(|name| name.strip_prefix("CAP_").map(str::to_owned).unwrap_or(name)).collect()
}

fn word(option: &Opt, value: &OsStr) -> OsString {
    let mut word = OsString::from(format!("--{}", option.long));
    if option.value.is_some() || value != "true" {
        word.push("=");
        word.push(value);
    }
    word
}

/// The words as a shell would read them back.
fn quoted<'a>(words: impl Iterator<Item = &'a OsStr>) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    let quote = |word: &OsStr| {
        let text = word.to_string_lossy();
        if !text.is_empty() && text.chars().all(plain) {
            text.into_owned()
        } else {
            format!("'{}'", text.replace('\'', r"'\''"))
        }
    };
    words.map(quote).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
