//! What several modules expect of a step: refused at once, arrived, cut, and the operator's verbs.

use serde_json::Value;
use std::time::Duration;
use terok_tests::{Container, Recipe, Running, bad_addresses, seen_at};

/// EPERM, EACCES, ECONNREFUSED, ECONNRESET, ENETUNREACH, EHOSTUNREACH, EAFNOSUPPORT, EPROTONOSUPPORT, ENOSYS, EADDRNOTAVAIL (a network
/// whose engine switched IPv6 off)
pub(crate) const REFUSALS: [i64; 10] = [1, 13, 111, 104, 101, 113, 97, 93, 38, 99];

/// A refusal that the program inside could tell at once; never a time-out.
#[track_caller]
pub(crate) fn refused_at_once(line: &Value) {
    assert_eq!(line["ok"], false, "got out: {line}");
    let errno = line["errno"].as_i64().unwrap_or(-1);
    let no_such_name = line["error"].as_str().unwrap_or_default().starts_with("no address for");
    assert!(REFUSALS.contains(&errno) || no_such_name, "not a refusal: {line}");
    at_once(line);
}

/// Not after a time-out of the probe's or anybody's; how fast exactly is measured without other tests beside it, by the median.
#[track_caller]
pub(crate) fn at_once(line: &Value) {
    assert!(line["ms"].as_f64().is_some_and(|ms| ms < 8000.0), "not at once: {line}");
}

/// Waits a little, so that something that did get out has arrived, then asks the servers.
#[track_caller]
pub(crate) fn nothing_arrived(addresses: &[String]) {
    std::thread::sleep(Duration::from_millis(100));
    for address in addresses {
        let seen = seen_at(address);
        assert!(seen.is_empty(), "{address} was reached: {seen:?}");
    }
}

/// Long enough that only a cut ends it within a test.
pub(crate) const FOREVER: &str = "/bytes/109951162777600";

/// A download that has begun.
#[track_caller]
pub(crate) fn download(container: &Container, step: &str) -> Running {
    let mut running = container.spawn(step);
    let line = running.line();
    assert_eq!(line["open"], true, "the download never began: {line}");
    running
}

/// That `running` is cut, by a reset; gives how long it took. Where that is to be at once, see [`soonest`].
#[track_caller]
pub(crate) fn is_cut(mut running: Running) -> Duration {
    let started = std::time::Instant::now();
    let line = running.line();
    let took = started.elapsed();
    assert_eq!(
        (line["ok"].as_bool(), line["errno"].as_i64()),
        (Some(false), Some(104)),
        "not a reset: {line}"
    );
    assert!(line["bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{line}");
    took
}

/// That the best of several attempts took less than a second, of a machine that has nothing else to do: where more programs want to run than
/// there are processors for, each has its turn the later.
#[track_caller]
pub(crate) fn soonest(times: &[Duration]) {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0);
    let cores = std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64);
    let limit = Duration::from_secs_f64(1.0 + load / cores);
    assert!(times.iter().any(|time| *time < limit), "never within {limit:?}: {times:?}");
}

#[track_caller]
pub(crate) fn reaches(container: &Container, host: &str) {
    let line = container.try_step(&format!("http {host} 80 {host} /reached"));
    assert_eq!(line["answers"][0]["status"], 200, "{line}");
}

#[track_caller]
pub(crate) fn is_refused(container: &Container, host: &str) {
    let line = container.try_step(&format!("http {host} 80 {host} /refused"));
    assert_eq!(line["ok"], false, "{line}");
}

#[track_caller]
pub(crate) fn terok(container: &Container, verb: &[&str]) -> String {
    let (first, rest) = verb.split_first().expect("a verb");
    container.mode.terok(&[&[*first, &container.name], rest].concat()).succeeded()
}

/// Steps of the probe, each given as a `String`.
#[track_caller]
pub(crate) fn steps(container: &Container, steps: &[String]) -> Vec<Value> {
    container.probe(&steps.iter().map(String::as_str).collect::<Vec<_>>())
}

/// That each line is an attempt that arrived and was answered.
#[track_caller]
pub(crate) fn all_arrived(lines: &[Value]) {
    for line in lines {
        assert_eq!(line["ok"], true, "{line}");
    }
}

/// That it may reach this name and nothing else.
#[track_caller]
pub(crate) fn is_protected(container: &Container, allowed: &str) {
    let (v4, v6) = bad_addresses();
    reaches(container, allowed);
    let tries = [
        format!("tcp {v4} 80"),
        format!("tcp {v6} 80"),
        format!("udp {v4} 123 x"),
        "tcp evil.example.net 80".to_owned(),
    ];
    steps(container, &tries).iter().for_each(refused_at_once);
    nothing_arrived(&[v4.to_string(), v6.to_string()]);
}

/// That this is not started, for a reason that names `what` in one line that the person at the terminal reads.
#[track_caller]
pub(crate) fn refused_in_one_line(recipe: &Recipe, what: &str) {
    let (container, ended) = recipe.run(&["true"]);
    let shown = ended.stderr.replace(&container.log(), "");
    assert_ne!(ended.code, 0, "{what} was let through");
    let said: Vec<&str> = shown.lines().filter(|line| line.contains("terok")).collect();
    assert_eq!(said.len(), 1, "not one line: {shown}");
    assert!(shown.to_lowercase().contains(&what.to_lowercase()), "{what} is not named: {shown}");
    container.is_left_alone();
}
