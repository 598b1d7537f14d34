//! `terok run`: from a command line to the Podman command that starts a protected container, sealed where nothing is said.
//! Everything is checked before Podman is started; Podman then takes this program's place.

mod checks;
mod mounts;
mod network;
mod options;

use crate::vault::ephemeral::Given;
use crate::{profiles, vault};
use anyhow::{Context as _, anyhow, bail};
use clap::builder::OsStringValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command};
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

/// The raw arguments of `terok run`, described by the option table.
#[derive(Debug, Clone)]
pub(crate) struct RunArgs(ArgMatches);

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
    if of_the_vault && let Err(reason) = vault::unlock_silently(host) {
        eprintln!("terok: it starts without its credentials: {reason}");
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
    !policy.ssh.is_empty() || policy.vault.iter().any(|grant| !grant.credential.starts_with('@'))
}

impl clap::Args for RunArgs {
    fn augment_args(command: Command) -> Command {
        let names = |passes: fn(&Does) -> bool| {
            let of = OPTIONS.iter().filter(|option| passes(&option.does));
            of.map(|option| format!("--{}", option.long)).collect::<Vec<_>>().join(" ")
        };
        let passing = names(|does| matches!(does, Does::Pass | Does::Check(_) | Does::Capability));
        let with_card = names(|does| matches!(does, Does::Card(_)));
        let refused = names(|does| matches!(does, Does::Refuse(_)));
        let kept = KEPT_CAPABILITIES.join(", ");
        let mut command = command
            .disable_help_flag(true)
            .args_override_self(false)
            .arg(Arg::new("help").long("help").action(ArgAction::HelpLong).help("Print help"))
            .after_long_help(format!(
                "Podman options that pass, some of them only with values that keep the protection:\n{passing}\n\n\
                 Those that pass where --network gives the container a network card:\n{with_card}\n\n\
                 Refused, each with its reason:\n{refused}\n\n\
                 Every container is started with {}, with {SEALED} where neither --network nor --pod is given, and keeps the \
                 capabilities {kept}, with --publish also NET_BIND_SERVICE. --cap-drop takes these away; --cap-add adds {}; NET_RAW only without a network card.",
                PINNED.join(" "),
                ADDABLE_CAPABILITIES.join(", ")
            ));
        for option in OPTIONS {
            command = command.arg(option.arg());
        }
        command.arg(
            Arg::new("IMAGE")
                .value_names(["IMAGE", "COMMAND"])
                .num_args(1..)
                .required(true)
                .trailing_var_arg(true)
                .value_parser(OsStringValueParser::new())
                .help("The image, then the command and its arguments"),
        )
    }
    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for RunArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(RunArgs(matches.clone()))
    }
    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0 = matches.clone();
        Ok(())
    }
}

impl Opt {
    fn arg(&self) -> Arg {
        let mut arg = Arg::new(self.long).long(self.long).hide(self.help.is_empty()).help(self.help);
        if let Some(short) = self.short {
            arg = arg.short(short);
        }
        arg = match (self.does, self.value) {
            (Does::Terok, None) => arg.action(ArgAction::SetTrue),
            (Does::Terok | Does::Publish, Some(name)) => arg.action(ArgAction::Append).value_name(name),
            // Podman's switches take `--rm=false`, never `--rm false`.
            (_, None) => arg
                .action(ArgAction::Append)
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true"),
            (_, Some(name)) => arg.action(ArgAction::Append).value_name(name).allow_hyphen_values(true),
        };
        if matches!(self.does, Does::Pass | Does::Card(_)) {
            arg.value_parser(OsStringValueParser::new())
        } else {
            arg
        }
    }
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
fn example() -> HostFacts {
    let card =
        Card { index: 2, name: "eth0".to_owned(), shared: false, nets: Vec::new(), gateways: Vec::new() };
    HostFacts { network: Network::Filtered, cards: vec![card], ..HostFacts::sealed(true) }
}

/// The annotations that terok's own options stand for. One is always written: any of them summons the hooks.
fn annotations(matches: &ArgMatches) -> anyhow::Result<BTreeMap<String, String>> {
    let mut annotations = BTreeMap::new();
    let list = |option: &str| -> Option<String> {
        // Spaces, because Podman up to 4.9 splits --annotation at commas.
        let values = matches.get_many::<String>(option)?;
        let words: Vec<&str> =
            values.flat_map(|value| value.split([' ', ','])).filter(|word| !word.is_empty()).collect();
        Some(words.join(" "))
    };
    for (option, key) in [
        ("allow", "terok.shield.allow"),
        ("deny", "terok.shield.deny"),
        ("profile", "terok.shield.profiles"),
        ("vault", annotation::VAULT),
        ("ssh", annotation::SSH),
    ] {
        if let Some(value) = list(option) {
            annotations.insert(key.to_owned(), value);
        }
    }
    for (option, key) in [
        ("project", "terok.project"),
        ("task", "terok.task"),
        ("shield", "terok.shield"),
        ("hold", "terok.shield.hold"),
    ] {
        let mut values = matches.get_many::<String>(option).into_iter().flatten();
        if let Some(value) = values.next() {
            annotations.insert(key.to_owned(), value.clone());
        }
        if values.next().is_some() {
            bail!("--{option} is given twice; give it once");
        }
    }
    for (option, key) in [("restricted", "terok.restricted"), ("learn", "terok.shield.learn")] {
        if matches.get_flag(option) {
            annotations.insert(key.to_owned(), "true".to_owned());
        }
    }
    if let Some(name) = matches.get_many::<OsString>("name").and_then(Iterator::last) {
        let name = name.to_str().context("--name is not UTF-8")?;
        annotations.insert("terok.name".to_owned(), name.to_owned());
    }
    if !annotations.contains_key("terok.shield")
        && !matches
            .get_many::<String>("annotation")
            .into_iter()
            .flatten()
            .any(|a| a.starts_with("terok.shield="))
    {
        annotations.insert("terok.shield".to_owned(), "up".to_owned());
    }
    Ok(annotations)
}

/// Adds the credentials that live with this container to what the vault gives it; a provider has one credential.
fn grant(annotations: &mut BTreeMap<String, String>, credentials: &[Given]) -> anyhow::Result<()> {
    if credentials.is_empty() {
        return Ok(());
    }
    let vault = annotations.entry(annotation::VAULT.to_owned()).or_default();
    let mut words: Vec<String> = vault.split_whitespace().map(str::to_owned).collect();
    for given in credentials {
        let same = |word: &String| word.split('=').next() == Some(given.provider());
        if words.iter().any(same) {
            bail!(
                "--credential {0} and --vault {0}: a provider has one credential; leave one of them out",
                given.provider()
            );
        }
        words.push(given.grant());
    }
    *vault = words.join(" ");
    Ok(())
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
mod tests {
    use super::*;

    fn command(line: &[&str]) -> Result<String, String> {
        let command = <RunArgs as clap::Args>::augment_args(Command::new("terok run").no_binary_name(true));
        let matches = command.try_get_matches_from(line).map_err(|error| error.to_string())?;
        let start = assemble(&matches, &Doors::tests(), &[]).map_err(|error| error.to_string())?;
        Ok(quoted(start.arguments.iter().map(OsString::as_os_str)))
    }

    const SAFE: &str =
        "--network=none --security-opt=no-new-privileges --http-proxy=false --sdnotify=conmon --cap-drop=all";
    const CARD: &str = "--security-opt=no-new-privileges --http-proxy=false --sdnotify=conmon --cap-drop=all";
    const CAPS: &str = "--cap-add=CHOWN --cap-add=DAC_OVERRIDE --cap-add=FOWNER --cap-add=FSETID --cap-add=KILL --cap-add=SETGID --cap-add=SETUID";

    const BIND: &str = "--cap-add=CHOWN --cap-add=DAC_OVERRIDE --cap-add=FOWNER --cap-add=FSETID --cap-add=KILL --cap-add=NET_BIND_SERVICE --cap-add=SETGID --cap-add=SETUID";

    #[test]
    fn a_bare_run_is_sealed_and_shielded() {
        let expected = format!("run --annotation=terok.shield=up {SAFE} {CAPS} -- debian:12");
        assert_eq!(command(&["debian:12"]).unwrap(), expected);
    }

    #[test]
    fn podman_options_keep_their_order_and_the_command_its_dashes() {
        let line = [
            "-it",
            "--rm",
            "-e",
            "A=1",
            "--name=x",
            "-v",
            "/srv:/w",
            "-eB=2",
            "--tty=false",
            "alpine",
            "sh",
            "-c",
            "echo 'hi' --privileged",
        ];
        let expected = format!(
            "run --annotation=terok.name=x --annotation=terok.shield=up {SAFE} {CAPS} --interactive --tty --rm --env=A=1 --name=x \
             --volume=/srv:/w --env=B=2 --tty=false -- alpine sh -c 'echo '\\''hi'\\'' --privileged'"
        );
        assert_eq!(command(&line).unwrap(), expected);
    }

    #[test]
    fn lists_are_joined_by_spaces() {
        let line = [
            "--allow",
            "a.example:443,b.example",
            "--allow=10.0.0.1:5432",
            "--deny",
            "c.example",
            "--profile",
            "dev-python",
            "--shield",
            "block",
            "--restricted",
            "i",
        ];
        let expected = format!(
            "run '--annotation=terok.restricted=true' --annotation=terok.shield=block \
             '--annotation=terok.shield.allow=a.example:443 b.example 10.0.0.1:5432' --annotation=terok.shield.deny=c.example \
             --annotation=terok.shield.profiles=dev-python {SAFE} -- i"
        )
        .replace("'--annotation=terok.restricted=true'", "--annotation=terok.restricted=true");
        assert_eq!(command(&line).unwrap(), expected);
    }

    #[test]
    fn capabilities_are_computed_from_the_documented_set() {
        assert!(command(&["--cap-drop=all", "i"]).unwrap().ends_with(&format!("{SAFE} -- i")));
        assert!(
            command(&["--cap-drop", "cap_kill", "i"]).unwrap().contains("--cap-add=FSETID --cap-add=SETGID")
        );
        assert!(command(&["--cap-add", "net_raw", "i"]).unwrap().contains("--cap-add=NET_RAW"));
        for name in ["NET_ADMIN", "sys_admin", "CAP_SYS_PTRACE", "ALL", "CHOWN,SYS_MODULE", "BPF", ""] {
            assert!(command(&["--cap-add", name, "i"]).unwrap_err().contains("refused"), "{name}");
        }
        assert!(command(&["--restricted", "--cap-add=CHOWN", "i"]).is_err());
        assert!(!command(&["--restricted", "-p", "8080:80", "i"]).unwrap().contains("--cap-add"));
    }

    #[test]
    fn what_is_refused_is_refused_by_name_in_every_spelling() {
        for line in [
            &["--privileged", "i"][..],
            &["--privileged=true", "i"],
            &["--net", "host", "i"],
            &["--network=bridge", "--network", "host", "i"],
            &["--pod", "x", "--network", "host", "i"],
            &["-p", "80", "i"],
            &["-P", "i"],
            &["-dp53:53/udp", "i"],
            &["--network=container:x", "-p", "80:80", "i"],
            &["--pod", "x", "--ip", "10.0.0.1", "i"],
            &["--ip", "10.0.0.1", "i"],
            &["--network=bridge", "--cap-add=NET_RAW", "i"],
            &["--pod=x", "--cap-add=NET_RAW", "i"],
            &["--hooks-dir=/x", "i"],
            &["--runtime", "x", "i"],
            &["--dns=1.1.1.1", "i"],
            &["--volumes-from", "x", "i"],
            &["-v/run/podman:/x", "i"],
            &["--env-host", "i"],
            &["--userns=container:x", "i"],
            &["--security-opt", "seccomp=unconfined", "i"],
            &["--gpus", "all", "i"],
            &["--rootfs", "/"],
            &["--remote", "i"],
            &["--pid", "host", "i"],
        ] {
            let error = command(line).unwrap_err();
            assert!(error.contains("is refused:"), "{line:?}: {error}");
        }
    }

    #[test]
    fn an_unknown_option_is_refused_with_a_hint() {
        assert!(command(&["--privilegd", "i"]).unwrap_err().contains("--privileged"));
        assert!(command(&["--bogus", "i"]).unwrap_err().contains("--bogus"));
        assert!(command(&["-X", "i"]).is_err());
        assert!(command(&["--rm"]).unwrap_err().contains("IMAGE"));
    }

    #[test]
    fn annotations_of_ours_are_merged_and_a_contradiction_is_refused() {
        let line = ["--annotation", "terok.task=t", "--annotation=a=b", "i"];
        let expected = format!(
            "run --annotation=terok.shield=up --annotation=terok.task=t {SAFE} {CAPS} --annotation=a=b -- i"
        );
        assert_eq!(command(&line).unwrap(), expected);
        assert!(command(&["--annotation=terok.shield=down", "i"]).unwrap().contains("=terok.shield=down"));
        let error = command(&["--allow", "a.example", "--annotation", "terok.shield.allow=b.example", "i"])
            .unwrap_err();
        assert!(error.contains("given twice"), "{error}");
    }

    #[test]
    fn a_label_cannot_carry_a_second_annotation() {
        // Podman up to 4.9 reads --annotation as a line of CSV.
        for option in ["--project", "--task", "--name", "--shield"] {
            let error = command(&[option, "a,run.oci.handler=krun", "i"]).unwrap_err();
            assert!(error.contains("is refused:"), "{option}: {error}");
        }
    }

    #[test]
    fn with_a_card_podmans_own_network_options_pass() {
        let line =
            ["--network=bridge", "--net", "mynet:ip=10.89.0.7", "-p", "80:80/udp", "--network-alias=a", "i"];
        let expected = format!(
            "run --annotation=terok.shield=up {CARD} {BIND} --network=bridge --net=mynet:ip=10.89.0.7 --publish=80:80/udp --network-alias=a -- i"
        );
        assert_eq!(command(&line).unwrap(), expected);
        let expected = format!("run --annotation=terok.shield=up {CARD} {CAPS} --pod=x -- i");
        assert_eq!(command(&["--pod", "x", "i"]).unwrap(), expected);
        let pod = command(&["--pod", "new:x", "--network=none", "i"]).unwrap();
        assert!(pod.contains("--pod=new:x --network=none"), "{pod}");
        let expected = format!("run --annotation=terok.shield=up {CARD} {CAPS} --network=container:x -- i");
        assert_eq!(command(&["--network", "container:x", "i"]).unwrap(), expected);
    }

    #[test]
    fn without_a_card_published_ports_become_an_annotation() {
        let line = ["-p", "8080:80", "--publish=[::1]:22:2222/tcp", "--hold", "30s", "--learn", "i"];
        let expected = format!(
            "run '--annotation=terok.publish=8080:80 [::1]:22:2222' --annotation=terok.shield=up \
             --annotation=terok.shield.hold=30s --annotation=terok.shield.learn=true {SAFE} {BIND} -- i"
        );
        assert_eq!(command(&line).unwrap(), expected);
    }

    #[test]
    fn podman_has_no_variable_that_a_credential_was_read_from() {
        let host = crate::containers::host_at(std::path::Path::new("/nowhere"));
        // HOME is as good a value as any: one line of ASCII.
        let given = Given::read(&host, "anthropic=env:HOME").unwrap();
        let command = super::command(Path::new("/usr/bin/podman"), &["run".into()], &[given]);
        assert_eq!(command.get_envs().collect::<Vec<_>>(), [(OsStr::new("HOME"), None)]);
    }

    #[test]
    fn granted_credentials_and_keys_become_annotations() {
        let line = ["--vault", "anthropic github=work", "--vault=mistral", "--ssh", "work@github.com", "i"];
        let expected = format!(
            "run --annotation=terok.shield=up '--annotation=terok.ssh=work@github.com' \
             '--annotation=terok.vault=anthropic github=work mistral' {SAFE} {CAPS} -- i"
        )
        .replace("'--annotation=terok.ssh=work@github.com'", "--annotation=terok.ssh=work@github.com");
        assert_eq!(command(&line).unwrap(), expected);
    }

    #[test]
    fn network_none_passes_once() {
        assert_eq!(command(&["--network", "none", "i"]).unwrap().matches("--network").count(), 1);
        assert_eq!(command(&["--net=none", "i"]).unwrap().matches("--net").count(), 1);
    }
}
