//! However a container starts, stops or loses a process: protected again, or gone. And nothing is left over.

use std::collections::BTreeSet;
use terok_tests::{
    Container, Mode, Net, Recipe, bad_addresses, both_modes, eventually, every_network, kill, seen_at, site,
};

#[track_caller]
fn is_protected(container: &Container, allowed: &str) {
    let (v4, _) = bad_addresses();
    let lines = container.probe(&[
        &format!("http {allowed} 80 {allowed} /protected"),
        &format!("tcp {v4} 80"),
        "dns - evil.example.net A",
    ]);
    assert_eq!(lines[0]["answers"][0]["status"], 200, "{lines:?}");
    assert_eq!(lines[1]["errno"], 111, "{lines:?}");
    assert_eq!(lines[2]["rcode"], 3, "{lines:?}");
    assert!(seen_at(v4).is_empty());
    let ruleset = container.ruleset();
    assert!(ruleset.contains("table inet terok") && ruleset.contains("policy drop"), "{ruleset}");
}

/// What a container may leave behind on the machine, by kind.
fn leftovers(mode: Mode) -> [BTreeSet<String>; 4] {
    let run = |script: &str| -> BTreeSet<String> {
        Mode::Rootful.run("sh", &["-c", script]).stdout.lines().map(str::to_owned).collect()
    };
    [
        run(
            "for p in /proc/[0-9]*; do case $(readlink $p/exe) in *terok-*|*conmon*) echo ${p#/proc/} $(tr '\\0' ' ' < $p/cmdline);; esac; done",
        ),
        run(&format!(
            "ls {0}",
            mode.runtime("x").parent().map(|p| p.display().to_string()).unwrap_or_default()
        )),
        run("cut -d' ' -f2 /proc/mounts | grep -e terok -e overlay-containers"),
        run("for p in /proc/[0-9]*; do readlink $p/ns/net; done | sort -u"),
    ]
}

every_network! {
    fn stop_and_start_protect_again(net: Net) {
        let site = site();
        let container = Recipe::on(net, &site.name).idle();
        is_protected(&container, &site.name);
        for verb in [&["stop", "--time=0"][..], &["restart", "--time=0"], &["kill"]] {
            container.podman(verb).succeeded();
            if verb[0] != "restart" {
                container.is_left_alone();
                container.podman(&["start"]).succeeded();
            }
            is_protected(&container, &site.name);
        }
    }

    fn the_restart_policy_protects_again(net: Net) {
        let site = site();
        let container = Recipe::on(net, &site.name).option("--restart=always").idle();
        let pid = container.pid();
        kill("-KILL", pid);
        eventually("podman restarts it", || {
            container.podman(&["inspect", "--format={{.State.Pid}} {{.State.Status}}"]).stdout.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
                .as_slice()
                .first()
                .is_some_and(|now| *now != pid.to_string() && *now != "0")
        });
        eventually("it can be entered", || container.podman(&["exec"]).code >= 0 && container.mode.podman(&["exec", &container.name, "true"]).code == 0);
        is_protected(&container, &site.name);
    }

    /// L5: one crash is an event, not an outage.
    fn a_killed_worker_comes_back_on_the_same_sockets(net: Net) {
        let site = site();
        let container = Recipe::on(net, &site.name).idle();
        for _ in 0..3 {
            let (_, worker) = container.served_by();
            kill("-KILL", worker);
            let line = container.try_step(&format!("http {0} 80 {0} /during", site.name));
            assert_eq!(line["answers"][0]["status"], 200, "clients wait in the backlog: {line}");
            container.next_worker(worker);
        }
        is_protected(&container, &site.name);
        container.audited("lifecycle", "worker-restart", "");
    }

    fn killed_parent_and_worker_leave_it_shut(net: Net) {
        let site = site();
        let container = Recipe::on(net, &site.name).idle();
        let (v4, v6) = bad_addresses();
        container.loses_its_supervisor();
        let steps = [format!("http {0} 80 {0} /shut", site.name), format!("tcp {v4} 80"), format!("tcp {v6} 80"), format!("udp {v4} 123 x")];
        let steps: Vec<&str> = steps.iter().map(String::as_str).collect();
        for line in container.probe(&steps) {
            assert_eq!(line["ok"], false, "{line}");
        }
        assert!(site.seen().is_empty() && seen_at(v4).is_empty() && seen_at(v6).is_empty());
    }
}

both_modes! {
    fn kill_and_forced_removal_end_everything(mode: Mode) {
        let container = Recipe::sealed(mode, "api.example.com").idle();
        container.served_by();
        container.podman(&["rm", "--force", "--time=0"]).succeeded();
        container.is_left_alone();
        container.audited("lifecycle", "end", "");
    }

    fn a_container_that_removes_itself_leaves_its_audit_log_only(mode: Mode) {
        let container = Recipe::sealed(mode, "api.example.com").option("--rm").idle();
        container.podman(&["stop", "--time=0"]).succeeded();
        eventually("it is removed", || container.podman(&["inspect"]).code != 0);
        container.is_left_alone();
        container.audited("lifecycle", "end", "");
        assert!(mode.terok(&["audit", &container.id, "--json"]).succeeded().contains("lifecycle"));
    }

    fn a_killed_parent_leaves_the_container_served_and_protected(mode: Mode) {
        let site = site();
        let container = Recipe::sealed(mode, &site.name).idle();
        let (parent, worker) = container.served_by();
        kill("-KILL", parent);
        eventually("the worker is alone", || container.supervisors() == [worker]);
        is_protected(&container, &site.name);
        container.podman(&["rm", "--force", "--time=0"]).succeeded();
        eventually("the worker ends with the container", || container.supervisors().is_empty());
    }

    fn a_killed_conmon_does_not_open_anything(mode: Mode) {
        let site = site();
        let container = Recipe::sealed(mode, &site.name).idle();
        let conmon = container.podman(&["inspect", "--format={{.State.ConmonPid}}"]).succeeded();
        let init = container.pid();
        kill("-KILL", conmon.trim().parse().expect("a pid"));
        let net = format!("--net=/proc/{init}/ns/net");
        let ruleset = Mode::Rootful.run("nsenter", &[&net, "nft", "list", "ruleset"]).succeeded();
        assert!(ruleset.contains("policy drop"), "{ruleset}");
        kill("-KILL", init);
        container.is_left_alone();
    }

    fn a_refused_start_leaves_nothing(mode: Mode) {
        let attempts = [
            (Recipe::sealed(mode, "api.example.com").annotate("shield.alow", "x"), "true"),
            (Recipe::sealed(mode, "api.example.com:99999"), "true"),
            (Recipe::sealed(mode, "api.example.com"), "/no/such/program"),
        ];
        for (sealed, program) in attempts {
            let (container, ended) = sealed.run(&[program]);
            ended.failed();
            assert!(!container.id.is_empty(), "podman keeps a container that failed to start");
            container.is_left_alone();
        }
    }
}

/// Alone, because it counts what is on the machine.
fn fifty_cycles_leave_nothing_over(mode: Mode) {
    let warm = Recipe::sealed(mode, "api.example.com").idle();
    drop(warm);
    eventually("quiet before", || leftovers(mode)[0].iter().all(|line| !line.contains("terok-supervisor")));
    let before = leftovers(mode);
    let container = Recipe::sealed(mode, "api.example.com").idle();
    for cycle in 0..50 {
        match cycle % 3 {
            0 => drop(container.podman(&["restart", "--time=0"]).succeeded()),
            1 => {
                container.podman(&["stop", "--time=0"]).succeeded();
                container.podman(&["start"]).succeeded();
            }
            _ => {
                container.podman(&["kill"]).succeeded();
                eventually("it is down", || {
                    container.podman(&["inspect", "--format={{.State.Running}}"]).stdout.trim() == "false"
                });
                container.podman(&["start"]).succeeded();
            }
        }
    }
    let state = mode.state(&container.id);
    container.served_by();
    container.podman(&["rm", "--force", "--time=0"]).succeeded();
    container.is_left_alone();
    let descriptors = std::fs::read_dir(&state).map(|entries| entries.count()).unwrap_or(0);
    assert!(descriptors < 10, "the state folder grows: {descriptors} files");
    for (kind, was) in before.into_iter().enumerate() {
        eventually("what was added is gone again", || {
            leftovers(mode)[kind].difference(&was).next().is_none()
        });
    }
}

#[test]
fn fifty_cycles_leave_nothing_over_rootless() {
    let Some(_lab) = terok_tests::Lab::alone() else { return };
    fifty_cycles_leave_nothing_over(Mode::Rootless);
}

#[test]
fn fifty_cycles_leave_nothing_over_rootful() {
    let Some(_lab) = terok_tests::Lab::alone() else { return };
    fifty_cycles_leave_nothing_over(Mode::Rootful);
}

/// A29: what cannot be written down does not happen; and it happens again once it can.
#[test]
fn a_full_disk_refuses_connections_until_there_is_room() {
    let Some(_lab) = terok_tests::Lab::alone() else { return };
    let site = site();
    let folder = terok_policy::layout::STATE_ROOTFUL;
    let full = format!("{folder}/full");
    Mode::Rootful.run("mkdir", &["-p", folder]).succeeded();
    Mode::Rootful.run("mount", &["-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", folder]).succeeded();
    let small = Unmounted(folder);
    let container = Recipe::sealed(Mode::Rootful, &site.name).idle();
    let step = format!("http {0} 80 {0} /disk", site.name);
    assert_eq!(container.try_step(&step)["ok"], true);
    Mode::Rootful.run("sh", &["-c", &format!("cat /dev/zero > {full} 2>/dev/null; true")]).succeeded();
    // What fits into the log's last page is still written.
    eventually("a full disk refuses", || container.try_step(&step)["ok"] == false);
    let before = site.paths().len();
    for _ in 0..5 {
        assert_eq!(container.try_step(&step)["ok"], false);
    }
    assert_eq!(site.paths().len(), before, "dialled without a line");
    Mode::Rootful.run("rm", &[&full]).succeeded();
    eventually("room again, connections again", || container.try_step(&step)["ok"] == true);
    assert_eq!(Mode::Rootful.terok(&["audit", &container.name, "--verify"]).code, 0);
    drop(container);
    drop(small);
}

/// A mount that ends with the test.
struct Unmounted(&'static str);

impl Drop for Unmounted {
    fn drop(&mut self) {
        Mode::Rootful.run("umount", &["-l", self.0]);
    }
}
