//! A runtime's own tests with the shim before it, one by one: crun's, of its Debian source, on crun and on runc (`lab/conformance.py`).

use crate::shim::{put_shim, runtimes, take_shim};
use std::collections::BTreeMap;
use std::path::Path;
use std::thread;
use terok_tests::{Lab, Mode, install, major};

const TESTS: &str = "/run/lab/home/crun-tests";

/// What a protected container cannot do that these tests want of one.
const OTHERWISE: [(&str, &str); 5] = [
    // Refused.
    ("test_exec/exec-root-netns-with-userns", "it is in the host's network namespace"),
    ("test_pid/pid", "it is in the host's network namespace"),
    ("test_mounts/mount-ro-cgroup", "it is in the host's network namespace, in half of the test"),
    ("test_start/start-override-config", "its configuration is not the bundle's config.json"),
    // crun 1.8 calls the bundle `/` to the hooks of a container with a user namespace, where no --bundle is given.
    ("test_devices/owner-device", "the hook does not find the bundle"),
];

/// Outcome of each test, and the end of what was said.
type Outcomes = BTreeMap<String, (String, String)>;

fn outcomes(runtime: &str, annotations: &[&str]) -> Outcomes {
    let mut words = vec!["1800", "python3", "/run/lab/scripts/conformance.py", TESTS, runtime];
    words.extend(annotations);
    let said = Mode::Rootful.run("timeout", &words).succeeded();
    // Tests print as well.
    serde_json::from_str(said.lines().last().unwrap_or_default()).expect("outcomes")
}

/// The tests that ended otherwise.
fn differences<'a>(
    alone: &'a Outcomes,
    through: &'a Outcomes,
) -> Vec<(&'a str, &'a str, &'a (String, String))> {
    assert!(alone.keys().eq(through.keys()), "not the same tests");
    let pairs = alone.iter().zip(through.values());
    let other = pairs.filter(|((_, alone), through)| alone.0 != through.0);
    other.map(|((test, alone), through)| (test.as_str(), alone.0.as_str(), through)).collect()
}

#[test]
fn a_runtimes_own_tests_end_as_without_the_shim() {
    let Some(_lab) = Lab::alone() else { return };
    if !Path::new(TESTS).join(".ready").exists() || major() > 4 {
        return terok_need::missing("crun-tests", "crun's tests are not here, or not those of this crun");
    }
    put_shim();
    for (runtime, _) in runtimes() {
        let name = runtime.rsplit('/').next().expect("a name");
        let shim = format!("/usr/libexec/terok/terok-shim-{name}");
        Mode::Rootful.run("ln", &["-sf", "terok-shim", &shim]).succeeded();
        // They mostly wait.
        let [alone, through, annotated] = thread::scope(|scope| {
            let runs = [(&runtime, &[][..]), (&shim, &[]), (&shim, &["terok.shield=up"])];
            runs.map(|(runtime, annotations)| scope.spawn(move || outcomes(runtime, annotations)))
                .map(|run| run.join().expect("outcomes"))
        });
        let passed = alone.values().filter(|(outcome, _)| outcome == "ok").count();
        assert!(passed >= 60, "{runtime} alone passes {passed} of its tests only: {alone:?}");
        assert_eq!(differences(&alone, &through), [], "{runtime}");
        let unexplained: Vec<_> = differences(&alone, &annotated)
            .into_iter()
            .filter(|(test, alone, (through, _))| {
                let known = OTHERWISE.iter().any(|(known, _)| known == test);
                !(known && *alone == "ok" && through == "failed")
            })
            .collect();
        assert_eq!(unexplained, [], "{runtime}, protected");
    }
    take_shim();
    install();
}
