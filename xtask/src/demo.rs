//! What terok does, shown in one run: in the lab, or on the user's own Podman where that works without.

use crate::dist;
use crate::lab::{self, Lab};
use crate::process::{code, is_root, must, status, workspace};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

/// `cargo xtask demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// In the lab even where this user's own Podman would do
    #[arg(long)]
    lab: bool,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    println!("Building terok …");
    let bin = dist::build_here()?;
    if !options.lab && own_podman_works()? {
        return direct(&bin);
    }
    let lab = Lab { rootless: true, ..Default::default() };
    lab.prepare()?;
    println!("Opening the lab: a throw-away machine with Podman and a small internet of its own.");
    let arguments =
        ["api.example.com", "https://api.example.com/", "https://evil.example.net/", "/run/inet/bundle.pem"];
    Ok(code(status(lab.open(&bin, &[])?.arg("/run/lab/scripts/demo.sh").args(arguments))?))
}

/// On the host's Podman, with a home of its own for storage, configuration and hooks, so that nothing stays behind.
fn direct(bin: &Path) -> anyhow::Result<ExitCode> {
    let scripts = workspace().join("tests/lab");
    must(Command::new(scripts.join("prepare.sh")).arg("--direct").env("TEROK_LAB_HOME", lab::home()?))?;
    println!("Using your own Podman, with a throw-away configuration and storage.");
    let script = scripts.join("demo-direct.sh");
    Ok(code(status(Command::new(script).arg(bin).env("TEROK_LAB_HOME", lab::home()?))?))
}

/// Whether this is a user whose Podman starts containers by itself: unified cgroups and a user namespace of their own.
fn own_podman_works() -> anyhow::Result<bool> {
    if is_root()? || !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return Ok(false);
    }
    let mut unshare = Command::new("podman");
    unshare.args(["unshare", "true"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(unshare.status().is_ok_and(|status| status.success()))
}
