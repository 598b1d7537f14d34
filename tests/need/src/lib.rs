//! What tests need of the machine they run on: said aloud where it lacks something, and a failure where it is required.

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::fmt::Display;
use std::process::{Command, Stdio};

/// Words separated by commas: what a test may not be skipped for the want of. `.ci/run` sets it.
const REQUIRED: &str = "TEROK_TEST_REQUIRE";

/// Says why a test is skipped; fails where `TEROK_TEST_REQUIRE` names `what`.
#[track_caller]
pub fn missing(what: &str, why: impl Display) {
    let required = std::env::var(REQUIRED).unwrap_or_default();
    assert!(!required.split([',', ' ']).any(|word| word == what), "required: {what}: {why}");
    eprintln!("skipped: {what}: {why}");
}

/// Whether `program` starts at all with `arguments`, as part of `what`.
#[track_caller]
pub fn starts(what: &str, program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().map_err(|error| missing(what, format!("{program}: {error}"))).is_ok()
}

/// Whether network namespaces can be made.
#[track_caller]
pub fn network_namespaces() -> bool {
    let made = std::thread::scope(|scope| scope.spawn(|| unshare(CloneFlags::CLONE_NEWNET)).join());
    match made {
        Ok(Ok(())) => true,
        Ok(Err(errno)) => {
            missing("netns", format!("no network namespace ({errno}); run as root or under `unshare -Ur`"));
            false
        }
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Runs `test` on a thread that sees an empty `/run` and an empty `/var/lib`; needs root.
pub fn with_empty_folders(test: impl FnOnce() + Send) {
    let isolated = || -> nix::Result<()> {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS)?;
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        for folder in ["/run", "/var/lib"] {
            mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let ran = scope.spawn(|| match isolated() {
            Ok(()) => test(),
            Err(errno) => missing("netns", format!("cannot make a mount namespace: {errno}")),
        });
        if let Err(panic) = ran.join() {
            std::panic::resume_unwind(panic);
        }
    });
}
