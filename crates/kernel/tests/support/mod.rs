//! What the tests share: throw-away network namespaces, and the rule that a test which cannot run says why and is skipped,
//! unless `TEROK_TEST_REQUIRE` (words separated by commas) names what it lacks.
#![allow(dead_code, unreachable_pub, reason = "every test binary uses a part")]

pub mod card;
pub mod libnftnl;
pub mod link;
pub mod table;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use std::io::Write;
use std::process::{Command, Output, Stdio};

/// Set in the process that a test started for itself in a user namespace.
const INNER: &str = "TEROK_TEST_INNER";

/// Runs `test` in a network namespace of its own. Who may not make one runs the test of that name again in a user namespace.
pub fn in_netns(test: impl FnOnce() + Send) {
    let this = std::thread::current();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| match unshare(CloneFlags::CLONE_NEWNET) {
            Ok(()) => test(),
            Err(Errno::EPERM) if std::env::var_os(INNER).is_none() => again(this.name()),
            Err(e) => missing("netns", format!("no network namespace: {e}")),
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn again(test: Option<&str>) {
    let Some(test) = test.filter(|name| *name != "main") else {
        return missing("netns", "the test has no thread of its own: run without --test-threads=1");
    };
    let works = Command::new("unshare").args(["-Urn", "true"]).output();
    if !works.as_ref().is_ok_and(|o| o.status.success()) {
        return missing("netns", format!("unshare -Urn does not work: {works:?}"));
    }
    let mut command = Command::new("unshare");
    command.arg("-Urn").arg(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture"]).env(INNER, "1");
    assert!(command.status().unwrap().success(), "{test} failed in a user namespace");
}

pub use terok_need::missing;

/// Segments of TCP that this thread's namespace had to send a second time: none where a refusal comes at once, on a machine
/// of any speed.
pub fn sent_again() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let mut rows = text.lines().filter(|line| line.starts_with("Tcp:")).map(str::split_whitespace);
    let (names, numbers) = (rows.next().unwrap(), rows.next().unwrap());
    let (_, number) = names.zip(numbers).find(|(name, _)| *name == "RetransSegs").unwrap();
    number.parse().unwrap()
}

/// Whether `program` is installed; says so if not.
pub fn has(program: &str) -> bool {
    terok_need::starts(program, program, &["-V"])
}

/// Runs a program in this thread's namespace, with `input`; its output if it succeeded.
pub fn run(program: &str, args: &[&str], input: &str) -> Result<String, String> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("{program}: {e}"))?;
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    match status.success() {
        true => Ok(String::from_utf8(stdout).unwrap()),
        false => Err(format!("{program} {args:?}: {}", String::from_utf8_lossy(&stderr))),
    }
}
