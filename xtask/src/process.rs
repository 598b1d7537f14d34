//! Running programs: the workspace's paths, root by way of sudo, and errors that name the command.

use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};

/// The workspace's folder.
pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// Cargo's target folder.
pub(crate) fn target() -> PathBuf {
    let folder = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    workspace().join(folder)
}

/// The cargo that runs us, in the workspace.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

/// Whether this process is root.
pub(crate) fn is_root() -> anyhow::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata("/proc/self").context("reading /proc/self")?.uid() == 0)
}

/// A command that runs as root: directly, or by way of a sudo that keeps `keep` of the environment.
pub(crate) fn as_root(program: &Path, keep: &[(&str, &Path)]) -> anyhow::Result<Command> {
    if is_root()? {
        let mut command = Command::new(program);
        command.envs(keep.iter().copied());
        return Ok(command);
    }
    let able = Command::new("sudo").args(["-n", "true"]).stderr(std::process::Stdio::null()).status();
    if !able.is_ok_and(|status| status.success()) {
        bail!("the lab needs root: run this as root, or as a user whose sudo asks no password");
    }
    let mut command = Command::new("sudo");
    command.args(["-n", "env"]);
    for (name, value) in keep {
        let mut pair = std::ffi::OsString::from(format!("{name}="));
        pair.push(value);
        command.arg(pair);
    }
    command.arg(program);
    Ok(command)
}

/// Runs `command` and fails, naming it, unless it ends with 0.
pub(crate) fn must(command: &mut Command) -> anyhow::Result<()> {
    let status = status(command)?;
    if !status.success() {
        bail!("{} ended with {status}", shown(command));
    }
    Ok(())
}

/// Runs `command` to its end.
pub(crate) fn status(command: &mut Command) -> anyhow::Result<ExitStatus> {
    command.status().with_context(|| format!("starting {}", shown(command)))
}

/// Runs `command` to its end; its standard output is passed on, and `each` sees every line of it.
pub(crate) fn read(command: &mut Command, mut each: impl FnMut(&str)) -> anyhow::Result<ExitStatus> {
    use std::io::BufRead;
    let mut child = command
        .stdout(std::process::Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", shown(command)))?;
    if let Some(stdout) = child.stdout.take() {
        for line in std::io::BufReader::new(stdout).split(b'\n') {
            let line = line.with_context(|| format!("reading what {} prints", shown(command)))?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            each(&line);
        }
    }
    child.wait().with_context(|| format!("waiting for {}", shown(command)))
}

/// Runs `command` and gives its standard output.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .stderr(std::process::Stdio::inherit())
        .output()
        .with_context(|| format!("starting {}", shown(command)))?;
    if !output.status.success() {
        bail!("{} ended with {}", shown(command), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The exit code that stands for `status`, 128 + signal for a killed program.
pub(crate) fn code(status: ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// The program and its first arguments.
fn shown(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args().take(6)).collect();
    words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
