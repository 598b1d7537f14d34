//! The lab: set-up and the door to it. What it is made of is in tests/lab.

use crate::dist;
use crate::process::{as_root, code, must, status, workspace};
use anyhow::Context;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// `cargo xtask lab`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// A Debian 13 machine with Podman 5 instead of this one's Podman
    #[arg(long)]
    podman5: bool,
    /// Run the command as a user without privileges
    #[arg(long)]
    rootless: bool,
    /// Load the workload image localhost/wl (Debian with curl, git, ssh, Python, Node)
    #[arg(long)]
    image: bool,
    /// Command to run; a shell when none is given
    #[arg(last = true)]
    command: Vec<String>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let lab =
        Lab { podman5: options.podman5, rootless: options.rootless, image: options.image, bench: false };
    lab.prepare()?;
    let bin = dist::build_here()?;
    let shell = vec!["bash".to_owned()];
    let command = if options.command.is_empty() { &shell } else { &options.command };
    Ok(code(status(lab.open(&bin, &[])?.args(command))?))
}

/// Which lab.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Lab {
    /// Debian 13 with Podman 5.
    pub(crate) podman5: bool,
    /// Run as `tester`.
    pub(crate) rootless: bool,
    /// With the workload image.
    pub(crate) image: bool,
    /// With what terok is measured against.
    pub(crate) bench: bool,
}

impl Lab {
    /// Installs and builds what is missing; says one line for each thing it does.
    pub(crate) fn prepare(self) -> anyhow::Result<()> {
        let mut command = as_root(&script("prepare.sh"), &[("TEROK_LAB_HOME", &home()?)])?;
        command.args(self.image.then_some("--image")).args(self.podman5.then_some("--podman5"));
        command.args(self.bench.then_some("--bench"));
        must(&mut command)
    }

    /// The command that opens the lab with the programs of `bin` on the PATH and the folders `show` visible; add what is to run in it.
    pub(crate) fn open(self, bin: &Path, show: &[&Path]) -> anyhow::Result<Command> {
        let shown = show.iter().map(|path| path.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let require = std::env::var("TEROK_TEST_REQUIRE").unwrap_or_default();
        let environment: [(&str, &Path); 4] = [
            ("TEROK_LAB_HOME", &home()?),
            ("TEROK_LAB_DIST", bin),
            ("TEROK_LAB_SHOW", Path::new(&shown)),
            ("TEROK_TEST_REQUIRE", Path::new(&require)),
        ];
        let mut command = as_root(&script("lab.sh"), &environment)?;
        command
            .args(self.podman5.then_some("--podman5"))
            .args(self.rootless.then_some("--rootless"))
            .args(self.image.then_some("--image"));
        Ok(command)
    }
}

/// Where packages, images and container storage of the lab are kept.
pub(crate) fn home() -> anyhow::Result<PathBuf> {
    if let Some(home) = std::env::var_os("TEROK_LAB_HOME") {
        return Ok(home.into());
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let own = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    Ok(cache
        .or_else(own)
        .context("HOME is not set: say where the lab lives with TEROK_LAB_HOME")?
        .join("terok-lab"))
}

fn script(name: &str) -> PathBuf {
    workspace().join("tests/lab").join(name)
}
