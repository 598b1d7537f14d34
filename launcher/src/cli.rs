//! The command line: raw arguments to one call. Exit codes: 0 done, 1 refused or failed, 64 usage.

use crate::{
    audit, explain, generate, maintain, operate, panic, profiles, providers, run, show, ssh, vault, verdict,
    watch,
};
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use terok_install::host::Host;
use terok_policy::annotation;
use terok_policy::policy::Shield;

/// sysexits.h EX_USAGE
const USAGE: u8 = 64;

/// Run containers that reach what you named and nothing else.
#[derive(Debug, Parser)]
#[command(name = "terok", version, max_term_width = 110, infer_long_args = false)]
pub(crate) struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start a protected container: podman run behind a default-deny egress firewall, without a network card unless one is asked for
    Run(run::RunArgs),
    /// List the protected containers that run
    Ps {
        /// Those that ended or were refused as well, as long as their audit logs are kept
        #[arg(long, short)]
        all: bool,
        #[command(flatten)]
        json: Json,
    },
    /// Show a container's state, rules and counters
    Status {
        /// Name, id or the beginning of one
        container: String,
        #[command(flatten)]
        json: Json,
    },
    /// Let a running container reach more, at once and until it is removed
    Allow(Rules),
    /// Stop a running container from reaching something; cuts live connections
    Deny(Rules),
    /// Put the shield up again: default deny
    Up(One),
    /// Take the shield down: everything but private addresses and what is denied passes, audited
    Down {
        #[command(flatten)]
        one: One,
        /// How long, as 90s, 10m or 1h30m; then the shield goes up by itself
        #[arg(long = "for", value_name = "TIME", value_parser = show::parse_duration)]
        time: Option<std::time::Duration>,
    },
    /// Let nothing pass and cut every connection
    Block(One),
    /// Stop everything: no protected container starts, and those that run reach nothing; as root for all users
    Panic(panic::PanicArgs),
    /// Decide about a connection that waits (terok.shield.hold)
    Verdict(verdict::VerdictArgs),
    /// Show a container's audit log; works for removed containers too
    Audit(audit::AuditArgs),
    /// Follow what all containers, or these, do, including containers started later
    Watch {
        /// Names, ids or beginnings of them
        containers: Vec<String>,
        /// Ask about each connection that waits for a verdict; needs a terminal
        #[arg(long, conflicts_with = "json")]
        ask: bool,
        #[command(flatten)]
        json: Json,
    },
    /// Print what annotations mean, or what would be done to a bundle's config.json, without doing anything
    #[command(after_long_help = keys())]
    Explain(explain::ExplainArgs),
    /// Look at the egress lists that --profile names
    #[command(subcommand)]
    Profile(Profile),
    /// Real credentials stay in the vault; containers use them without having them
    #[command(subcommand)]
    Vault(vault::Vault),
    /// SSH keys for containers, which get signatures from them and never the keys
    #[command(subcommand)]
    Ssh(ssh::Ssh),
    /// Look at the services whose credentials terok can hold, and define your own
    #[command(subcommand)]
    Provider(Provider),
    /// Install terok and make podman consult its hooks
    Setup {
        #[command(flatten)]
        place: maintain::Place,
        #[command(flatten)]
        which: maintain::Which,
        #[command(flatten)]
        engines: maintain::Engines,
    },
    /// Take terok away; audit logs stay unless --purge, the vault stays always
    Uninstall {
        #[command(flatten)]
        place: maintain::Place,
        #[command(flatten)]
        removed: maintain::Removed,
    },
    /// Prove that podman consults the hooks, and look for what is missing
    Doctor(Json),
    /// Write man pages, shell completions and a systemd unit for the vault into a folder
    Generate {
        /// The folder
        folder: PathBuf,
    },
    /// Look around inside a container, for terok doctor
    #[command(hide = true, name = terok_install::probe::PROBE)]
    Probe,
}

#[derive(Debug, Subcommand)]
enum Profile {
    /// The profiles there are
    List(Json),
    /// The rules of profiles, with includes followed
    Show {
        /// Profile names
        #[arg(required = true)]
        names: Vec<String>,
        #[command(flatten)]
        json: Json,
    },
    /// Write a profile of what a container reached, from its audit log
    Learn(profiles::learn::LearnArgs),
    /// Whether files are profiles
    Check {
        /// NAME.txt
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
enum Provider {
    /// The providers there are
    List(Json),
    /// What a provider is: where requests go, how a credential is sent, what a container gets in its place
    Show {
        /// Its name
        name: String,
        #[command(flatten)]
        json: Json,
    },
    /// Whether files are definitions
    Check {
        /// NAME.toml
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Write a definition of your own: another one, with your upstream
    New {
        /// What to call it
        name: String,
        /// The definition it is like: openai for any endpoint that speaks as OpenAI's does, bearer or basic for others
        #[arg(long, value_name = "PROVIDER")]
        like: String,
        /// Where requests go: https://HOST[:PORT][/PATH], or http:// to an address or `host`
        #[arg(long, value_name = "URL")]
        upstream: String,
    },
}

/// `--json`
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Json {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// One container and how to answer.
#[derive(Debug, Args)]
pub(crate) struct One {
    /// Name, id or the beginning of one
    pub(crate) container: String,
    #[command(flatten)]
    pub(crate) json: Json,
}

/// A container and rules for it.
#[derive(Debug, Args)]
pub(crate) struct Rules {
    /// Name, id or the beginning of one
    pub(crate) container: String,
    /// NAME[:PORTS], *.NAME, ADDRESS[/BITS], host:PORT or any
    #[arg(required = true, value_name = "RULE")]
    pub(crate) rules: Vec<String>,
    /// Take back live rules equal to these instead
    #[arg(long)]
    pub(crate) forget: bool,
    #[command(flatten)]
    pub(crate) json: Json,
}

pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
            match unknown_run_option(&error) {
                Some(option) => eprintln!(
                    "terok: {option} is no option of terok run: it passes those that `terok run --help` lists; \
                     options of the container's command stand behind the image"
                ),
                // Nobody is left to tell where the terminal is gone.
                None => drop(error.print()),
            }
            return code;
        }
    };
    match call(cli.verb) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("terok: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The option that `terok run` does not know. The parser's own hint, to put `--` before it, is wrong there: Podman would
/// take it for the image.
fn unknown_run_option(error: &clap::Error) -> Option<String> {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    let run = std::env::args_os().nth(1).is_some_and(|verb| verb == "run");
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(option)) if run && error.kind() == ErrorKind::UnknownArgument => {
            let near = match error.get(ContextKind::SuggestedArg) {
                Some(ContextValue::String(near)) => format!(" (did you mean {near}?)"),
                _ => String::new(),
            };
            Some(format!("{option}{near}"))
        }
        _ => None,
    }
}

fn call(verb: Verb) -> anyhow::Result<ExitCode> {
    if let Verb::Probe = verb {
        terok_install::probe::probe()?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Verb::Generate { folder } = verb {
        generate::generate(&folder)?;
        return Ok(ExitCode::SUCCESS);
    }
    let host = Host::current()?;
    // Not earlier: who this is, is told by the owner of /proc/self, which this changes.
    if matches!(verb, Verb::Vault(_) | Verb::Ssh(_)) {
        terok_kernel::program::hide_memory()?;
    }
    match verb {
        Verb::Run(args) => run::run(&host, &args)?,
        Verb::Ps { all, json } => operate::ps(&host, all, json)?,
        Verb::Status { container, json } => operate::status(&host, &container, json)?,
        Verb::Allow(rules) => operate::allow(&host, &rules)?,
        Verb::Deny(rules) => operate::deny(&host, &rules)?,
        Verb::Up(one) => operate::set_state(&host, &one, Shield::Up, None)?,
        Verb::Down { one, time } => operate::set_state(&host, &one, Shield::Down, time)?,
        Verb::Block(one) => operate::set_state(&host, &one, Shield::Block, None)?,
        Verb::Audit(args) => audit::audit(&host, &args)?,
        Verb::Verdict(args) => verdict::verdict(&host, &args)?,
        Verb::Watch { containers, ask, json } => watch::watch(&host, &containers, ask, json)?,
        Verb::Explain(args) => explain::explain(&host, &args)?,
        Verb::Profile(Profile::List(json)) => profiles::list(&host, json.json)?,
        Verb::Profile(Profile::Show { names, json }) => profiles::show(&host, &names, json.json)?,
        Verb::Profile(Profile::Learn(args)) => profiles::learn::learn(&host, &args)?,
        Verb::Profile(Profile::Check { files }) => profiles::check(&host, &files)?,
        Verb::Ssh(verb) => ssh::ssh(&host, verb)?,
        Verb::Vault(verb) => return vault::vault(&host, verb),
        Verb::Provider(Provider::List(json)) => providers::list(&host, json.json)?,
        Verb::Provider(Provider::Show { name, json }) => providers::show(&host, &name, json.json)?,
        Verb::Provider(Provider::Check { files }) => providers::check(&host, &files)?,
        Verb::Provider(Provider::New { name, like, upstream }) => {
            providers::new(&host, &name, &like, &upstream)?;
        }
        Verb::Setup { place, which, engines } => maintain::setup(&host, &place, &which, &engines)?,
        Verb::Uninstall { place, removed } => maintain::uninstall(&host, &place, &removed)?,
        Verb::Panic(args) => return panic::panic(&host, &args),
        Verb::Doctor(json) => return maintain::doctor(&host, json),
        Verb::Generate { .. } | Verb::Probe => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// The annotation table as help text.
fn keys() -> String {
    let row = |key: &annotation::Key| {
        let (name, value, help, default) = (key.key, key.value, key.help, key.default);
        format!("  {name}={value}\n          {help} Default: {default}.\n")
    };
    format!("Annotations:\n{}", annotation::KEYS.iter().map(row).collect::<String>())
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_annotation_is_in_the_help_of_explain() {
        let mut command = Cli::command();
        let help = command.find_subcommand_mut("explain").unwrap().render_long_help().to_string();
        for key in annotation::KEYS {
            assert!(help.contains(key.key), "{}", key.key);
        }
    }

    #[test]
    fn every_verb_says_what_it_does() {
        for verb in Cli::command().get_subcommands() {
            assert!(verb.get_about().is_some(), "{}", verb.get_name());
        }
    }
}
