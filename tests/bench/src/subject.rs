//! What is compared: one user's containers on one kind of network, with or without terok.

use anyhow::bail;
use std::sync::atomic::{AtomicU32, Ordering};
use terok_tests::{Container, Mode};

/// Where the probe is in a container.
pub(crate) const PROBE: &str = "/run/terok-probe";

/// A network for a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    /// No card and no terok: the least a container can cost.
    None,
    Slirp,
    Bridge,
    /// From Podman 4.4 on.
    Pasta,
    /// No card, and terok.
    Sealed,
}

/// Containers of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) mode: Mode,
    pub(crate) network: Network,
    /// Options of `podman` itself.
    pub(crate) global: Vec<String>,
    /// Annotations, in full.
    pub(crate) annotations: Vec<String>,
    pub(crate) image: &'static str,
}

impl Subject {
    pub(crate) fn new(mode: Mode, network: Network) -> Self {
        let annotations = match network {
            Network::Sealed => vec!["terok.shield.allow=big.example.com:8081+8444".to_owned()],
            _ => Vec::new(),
        };
        Subject { mode, network, global: Vec::new(), annotations, image: "localhost/bb" }
    }

    /// Every network that this machine's Podman has.
    pub(crate) fn all(mode: Mode) -> anyhow::Result<Vec<Self>> {
        let mut networks = vec![Network::None, Network::Bridge, Network::Sealed];
        if mode == Mode::Rootless {
            networks.insert(1, Network::Slirp);
            if major()? >= 5 {
                networks.insert(2, Network::Pasta);
            }
        }
        Ok(networks.into_iter().map(|network| Subject::new(mode, network)).collect())
    }

    /// The same with terok.
    pub(crate) fn protected(&self, annotations: &[&str]) -> Self {
        let annotations = annotations.iter().map(ToString::to_string).collect();
        Subject { annotations, ..self.clone() }
    }

    pub(crate) fn label(&self) -> String {
        let network = match self.network {
            Network::None => "none",
            Network::Slirp => "slirp4netns",
            Network::Bridge => "bridge",
            Network::Pasta => "pasta",
            Network::Sealed => "sealed",
        };
        format!("{network} {}", user(self.mode))
    }

    /// `podman VERB` with this subject's options; the name and the image included, the command not.
    pub(crate) fn arguments(&self, verb: &[&str], name: &str) -> Vec<String> {
        let network = match self.network {
            Network::None | Network::Sealed => "none",
            Network::Slirp => "slirp4netns",
            Network::Bridge => "bridge",
            Network::Pasta => "pasta",
        };
        let mut arguments = self.global.clone();
        arguments.extend(verb.iter().map(ToString::to_string));
        arguments.push(format!("--name={name}"));
        arguments.push(format!("--network={network}"));
        arguments.push(format!("--volume=/run/lab/bin/terok-probe:{PROBE}:ro"));
        arguments.extend(self.annotations.iter().map(|pair| format!("--annotation={pair}")));
        arguments.push(self.image.to_owned());
        arguments
    }

    /// A running container that does nothing; removed when dropped.
    pub(crate) fn idle(&self) -> anyhow::Result<Container> {
        let mut container = Container {
            engine: terok_tests::Engine::Podman,
            mode: self.mode,
            name: name(),
            id: String::new(),
        };
        let mut arguments = self.arguments(&["run", "--detach"], &container.name);
        arguments.extend([PROBE.to_owned(), "sleep".to_owned()]);
        container.id = podman(self.mode, &arguments)?.trim().to_owned();
        Ok(container)
    }
}

/// A name no other container has.
pub(crate) fn name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("bench-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// How a user is called in the report.
pub(crate) fn user(mode: Mode) -> &'static str {
    if mode == Mode::Rootless { "rootless" } else { "rootful" }
}

/// Runs podman to its end and gives its output, or its error.
pub(crate) fn podman<A: AsRef<str>>(mode: Mode, arguments: &[A]) -> anyhow::Result<String> {
    let arguments: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
    let ended = mode.podman(&arguments);
    if ended.code != 0 {
        let said: String = arguments.iter().take(3).map(|a| format!("{a} ")).collect();
        bail!("podman {said}… ended with {}: {}", ended.code, ended.stderr.trim().replace('\n', "; "));
    }
    Ok(ended.stdout)
}

/// Podman's major version.
fn major() -> anyhow::Result<u32> {
    let version = podman(Mode::Rootful, &["version", "--format={{.Client.Version}}"])?;
    Ok(version.split('.').next().and_then(|major| major.trim().parse().ok()).unwrap_or(0))
}
