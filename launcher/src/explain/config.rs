//! `terok explain --config`: what terok would do to the `config.json` of a bundle.

use super::{changes, patch};
use crate::show::{self, Tone};
use anyhow::{Context as _, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::fs::File;
use std::path::Path;
use terok_hook::preview::{Container, Network};
use terok_hook::state::{self, Annotations};
use terok_install::hook_json::Containers;
use terok_install::host::Host;
use terok_install::settings;
use terok_install::setup;
use terok_install::target::Target;
use terok_policy::amend::{self, hooks::Installed};
use terok_policy::layout;
use terok_policy::policy::Policy;
use terok_policy::provision::{self, Issued, Provision};

/// A configuration that was read.
#[derive(Debug)]
pub(super) struct Config {
    /// How it is called in messages.
    name: String,
    container: Container,
    installed: Installed,
}

/// What would become of it.
#[derive(Debug)]
pub(super) struct Outcome {
    after: Value,
    /// Why it would not start.
    pub(super) refused: Option<String>,
    /// The host's sockets that are mounted.
    doors: Vec<String>,
}

impl Config {
    /// Reads `path`, or standard input where it is `-`. Of a key that is given beside it the given value counts.
    pub(super) fn read(host: &Host, path: &Path, given: &Annotations) -> anyhow::Result<Self> {
        let name =
            if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() };
        let read = match path == Path::new("-") {
            true => state::read_config(std::io::stdin().lock()),
            false => state::read_config(File::open(path).with_context(|| name.clone())?),
        };
        let (value, mut annotations) =
            read.and_then(|json| state::parse_config(&json)).map_err(|error| anyhow!("{name} {error}"))?;
        annotations.extend(given.clone());
        let place = Some(path).filter(|path| *path != Path::new("-"));
        let container =
            Container::new(place, value, &annotations).map_err(|reason| anyhow!("{name}: {reason}"))?;
        Ok(Config { name, container, installed: installed(host) })
    }

    /// What is said to terok in it, and was given beside it.
    pub(super) fn annotations(&self) -> &Annotations {
        &self.container.annotations
    }

    /// Whether terok has anything to do with it.
    pub(super) fn is_ours(&self) -> bool {
        !self.annotations().is_empty() || self.installed.all
    }

    /// Where every container is protected, the annotations that all have.
    pub(super) fn default(&self, host: &Host) -> anyhow::Result<Option<Annotations>> {
        if !self.installed.all {
            return Ok(None);
        }
        Ok(Some(settings::read(host).map_err(anyhow::Error::msg)?.all_containers))
    }

    /// The network that it asks for.
    pub(super) fn network(&self) -> Network {
        self.container.network()
    }

    /// Nothing is done to it and nothing is made for it.
    pub(super) fn outcome(&self, host: &Host, policy: &Policy) -> Outcome {
        let provision = placeholders(policy, &host.run_dir());
        let guarded = self.container.guard(policy, host.uid, &host.vault_dir());
        let amended = self.container.amended(policy, &provision, &self.installed);
        let (doors, guard) = match guarded {
            Ok(doors) => (doors, None),
            Err(reason) => (Vec::new(), Some(reason)),
        };
        let (after, refused) = match amended {
            Ok(after) => (after, guard),
            Err(reason) => (self.container.config.clone(), guard.or(Some(reason))),
        };
        Outcome { after, refused, doors }
    }

    fn is_amended(&self) -> bool {
        amend::is_amended(&self.container.config).is_ok()
            && self.container.config.pointer("/annotations").is_some_and(|all| all.get(amend::MARK).is_some())
    }

    /// In lines, behind those of the plan.
    pub(super) fn say(&self, outcome: &Outcome) -> anyhow::Result<()> {
        if let Network::Joined { holder } = self.network() {
            say!(
                "note        it joins the network of process {holder}, whose container has to be under the same policy"
            )?;
        }
        if let Some(reason) = self.container.doubt() {
            say!("note        whose word the annotations are is not asked: {}", show::printable(reason))?;
        }
        for (index, door) in outcome.doors.iter().enumerate() {
            let title = if index == 0 { "doors" } else { "" };
            say!(
                "{title:<10}  {}, a socket of the host: it is let be and goes into the audit log",
                show::printable(door)
            )?;
        }
        if let Some(reason) = &outcome.refused {
            say!("start       {}: {}", show::toned(Tone::Bad, "refused"), show::printable(reason))?;
        }
        say!(
            "config      {}{}",
            show::printable(&self.name),
            if self.is_amended() { ", amended already" } else { "" }
        )?;
        let lines = changes::between(&self.container.config, &outcome.after);
        if lines.is_empty() {
            return Ok(say!("changes     none")?);
        }
        say!("changes     - goes, + comes; what is in <> is made at the start")?;
        lines.iter().try_for_each(|line| say!("{line}"))?;
        Ok(())
    }

    /// For programs; `patch` is RFC 6902.
    pub(super) fn json(&self, outcome: &Outcome) -> Value {
        let network = match self.network() {
            Network::Own => "own",
            Network::Prepared => "prepared",
            Network::Joined { .. } => "joined",
            Network::Host => "host",
        };
        json!({
            "file": self.name,
            "amended": self.is_amended(),
            "network": network,
            "refused": outcome.refused,
            "doors": outcome.doors,
            "patch": patch::between(&self.container.config, &outcome.after),
        })
    }

    /// One that terok has nothing to do with.
    pub(super) fn pass(&self, json: bool) -> anyhow::Result<()> {
        if json {
            let config = json!({ "file": self.name, "amended": false, "patch": [] });
            say!("{}", json!({ "policy": null, "verdicts": [], "config": config }))?;
        } else {
            say!("config      {}", show::printable(&self.name))?;
            say!("changes     none: it has no terok. annotation, so that it is not protected")?;
        }
        Ok(())
    }
}

/// The hook as it is installed: the person's own installation counts before the machine's.
fn installed(host: &Host) -> Installed {
    let targets = [Target::of(host, false, None), Target::of(host, true, None)];
    let there = |target: &&Target| target.at(&target.bin_dir().join(layout::HOOK)).exists();
    let target = targets.iter().find(there).unwrap_or(&targets[0]);
    let all = targets.iter().any(|target| setup::installed_for(target) == Containers::All);
    let system = Target::of(host, true, None).scope == target.scope;
    Installed {
        program: target.bin_dir().join(layout::HOOK).display().to_string(),
        home: (!system).then(|| host.home.display().to_string()),
        all,
    }
}

/// What a container with `policy` is given, with words for what is made at its start.
fn placeholders(policy: &Policy, run: &Path) -> Provision {
    let token = |provider: &str| format!("<token for {provider}>");
    let issued = Issued { tokens: policy.vault.iter().map(|grant| token(&grant.provider.name)).collect() };
    let folder = run.join(layout::BIRTH).join("<id>").join(layout::INSIDE);
    let mut provision = provision::provision(policy, &issued, &folder.display().to_string());
    let lists = [&mut provision.env, &mut provision.defaults, &mut provision.git];
    for (_, value) in lists.into_iter().flatten() {
        *value = value.split(' ').map(readable).collect::<Vec<_>>().join(" ");
    }
    provision
}

/// A placeholder that was encoded with a user's name before it (`basic:`) is written out.
fn readable(word: &str) -> String {
    let decoded = STANDARD.decode(word).ok().and_then(|octets| String::from_utf8(octets).ok());
    match decoded.filter(|text| text.contains(":<token for ")) {
        Some(text) => format!("<base64 of {}>", text.replace(['<', '>'], "")),
        None => word.to_owned(),
    }
}
