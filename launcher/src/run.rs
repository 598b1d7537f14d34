//! `terok run`: from a command line to the Podman command that starts a sealed, protected container.
//! Everything is checked before Podman is started; Podman then takes this program's place.

mod checks;
mod mounts;
mod options;

use crate::profiles;
use anyhow::{Context as _, bail};
use clap::builder::OsStringValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command};
use mounts::Doors;
use options::{ADDABLE_CAPABILITIES, Does, KEPT_CAPABILITIES, OPTIONS, Opt};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use terok_install::host::Host;
use terok_install::{consulted, podman};
use terok_policy::plan::HostFacts;
use terok_policy::{Plan, annotation};

/// The raw arguments of `terok run`, described by the option table.
#[derive(Debug, Clone)]
pub(crate) struct RunArgs(ArgMatches);

/// What every container is started with. Podman would pass the person's proxy variables on, and the socket of a service
/// manager that terok was started by.
const PINNED: [&str; 5] = [
    "--network=none",
    "--security-opt=no-new-privileges",
    "--http-proxy=false",
    "--sdnotify=conmon",
    "--cap-drop=all",
];

/// What will be started.
#[derive(Debug, PartialEq, Eq)]
struct Start {
    /// Arguments of Podman, from `run` on.
    arguments: Vec<OsString>,
    annotations: BTreeMap<String, String>,
}

/// Starts the container, or prints how with `--dry-run`.
pub(crate) fn run(host: &Host, args: &RunArgs) -> anyhow::Result<()> {
    let doors =
        Doors::of(host, std::env::current_dir().context("the current folder is gone: cd somewhere else")?);
    let start = assemble(&args.0, &doors)?;
    let policy = annotation::parse(&start.annotations, &profiles::catalog(host)?)?;
    Plan::new(policy, HostFacts::sealed(true))?;
    if args.0.get_flag("dry-run") {
        let podman = podman::find().unwrap_or_else(|_| "podman".into());
        say!(
            "{}",
            quoted(
                std::iter::once(podman.as_os_str()).chain(start.arguments.iter().map(OsString::as_os_str))
            )
        )?;
        return Ok(());
    }
    if let Some(marker) = host.panics().first() {
        let sudo = if *marker == host.panic_marker() { "" } else { "sudo " };
        bail!(
            "no container starts while {} is there: lift it with: {sudo}terok panic --clear",
            marker.display()
        );
    }
    consulted::consulted(host)?;
    let podman = podman::find()?;
    let error = std::process::Command::new(&podman).args(&start.arguments).exec();
    bail!("{}: {error}", podman.display())
}

impl clap::Args for RunArgs {
    fn augment_args(command: Command) -> Command {
        let names = |passes: fn(&Does) -> bool| {
            let of = OPTIONS.iter().filter(|option| passes(&option.does));
            of.map(|option| format!("--{}", option.long)).collect::<Vec<_>>().join(" ")
        };
        let passing = names(|does| matches!(does, Does::Pass | Does::Check(_) | Does::Capability));
        let refused = names(|does| matches!(does, Does::Refuse(_)));
        let kept = KEPT_CAPABILITIES.join(", ");
        let mut command = command
            .disable_help_flag(true)
            .args_override_self(false)
            .arg(Arg::new("help").long("help").action(ArgAction::HelpLong).help("Print help"))
            .after_long_help(format!(
                "Podman options that pass, some of them only with values that keep the protection:\n{passing}\n\n\
                 Refused, each with its reason:\n{refused}\n\n\
                 Every container is started with {}, and keeps the capabilities {kept}. \
                 --cap-drop takes these away; --cap-add adds {}.",
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
        let mut arg = Arg::new(self.long).long(self.long).hide(!matches!(self.does, Does::Terok));
        if let Some(short) = self.short {
            arg = arg.short(short);
        }
        arg = match (self.does, self.value) {
            (Does::Terok, None) => arg.action(ArgAction::SetTrue).help(self.help),
            (Does::Terok, Some(name)) => arg.action(ArgAction::Append).value_name(name).help(self.help),
            // Podman's switches take `--rm=false`, never `--rm false`.
            (_, None) => arg
                .action(ArgAction::Append)
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true"),
            (_, Some(name)) => arg.action(ArgAction::Append).value_name(name).allow_hyphen_values(true),
        };
        if matches!(self.does, Does::Pass) { arg.value_parser(OsStringValueParser::new()) } else { arg }
    }
}

fn assemble(matches: &ArgMatches, doors: &Doors) -> anyhow::Result<Start> {
    let mut annotations = annotations(matches)?;
    // Podman's options keep their order: later ones win.
    let mut passed: Vec<(usize, OsString)> = Vec::new();
    let mut capabilities: BTreeSet<String> = KEPT_CAPABILITIES.map(str::to_owned).into();
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
            Does::Pass => {
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
                        // We write these ourselves.
                        _ if long == "network" || long == "net" => {}
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
    arguments.extend(PINNED.map(OsString::from));
    arguments.extend(capabilities.iter().map(|name| format!("--cap-add={name}").into()));
    arguments.extend(passed.into_iter().map(|(_, word)| word));
    // An image that begins with a dash stays an image.
    arguments.push("--".into());
    arguments.extend(matches.get_many::<OsString>("IMAGE").into_iter().flatten().cloned());
    Ok(Start { arguments, annotations })
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
    for (option, key) in
        [("allow", "terok.shield.allow"), ("deny", "terok.shield.deny"), ("profile", "terok.shield.profiles")]
    {
        if let Some(value) = list(option) {
            annotations.insert(key.to_owned(), value);
        }
    }
    for (option, key) in [("project", "terok.project"), ("task", "terok.task"), ("shield", "terok.shield")] {
        let mut values = matches.get_many::<String>(option).into_iter().flatten();
        if let Some(value) = values.next() {
            annotations.insert(key.to_owned(), value.clone());
        }
        if values.next().is_some() {
            bail!("--{option} is given twice; give it once");
        }
    }
    if matches.get_flag("restricted") {
        annotations.insert("terok.restricted".to_owned(), "true".to_owned());
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
        let start = assemble(&matches, &Doors::tests()).map_err(|error| error.to_string())?;
        Ok(quoted(start.arguments.iter().map(OsString::as_os_str)))
    }

    const SAFE: &str =
        "--network=none --security-opt=no-new-privileges --http-proxy=false --sdnotify=conmon --cap-drop=all";
    const CAPS: &str = "--cap-add=CHOWN --cap-add=DAC_OVERRIDE --cap-add=FOWNER --cap-add=FSETID --cap-add=KILL --cap-add=SETGID --cap-add=SETUID";

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
    }

    #[test]
    fn what_is_refused_is_refused_by_name_in_every_spelling() {
        for line in [
            &["--privileged", "i"][..],
            &["--privileged=true", "i"],
            &["--net", "host", "i"],
            &["--network=bridge", "i"],
            &["-p", "80:80", "i"],
            &["-P", "i"],
            &["-dp80:80", "i"],
            &["--pod", "x", "i"],
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
    fn network_none_passes_once() {
        assert_eq!(command(&["--network", "none", "i"]).unwrap().matches("--network").count(), 1);
        assert_eq!(command(&["--net=none", "i"]).unwrap().matches("--net").count(), 1);
    }
}
