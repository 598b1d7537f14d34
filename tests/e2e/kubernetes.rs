//! Pods through containerd's CRI, as a kubelet makes them, under the handler `terok`: the sandbox has the guard, the pod's containers
//! join its network as members of one pod.

use std::path::Path;
use terok_policy::layout;
use terok_tests::kubernetes::{KubePod, Member, MemberRecipe, PodRecipe, kubelet, kubelet_restart};
use terok_tests::{
    Ended, Lab, Mode, Service, bad_addresses, eventually, headers, host_port, kill, on_the_host, seen_at,
    set_up, site,
};

const INSTALL: &str = include_str!("../../install/kubernetes/install.yaml");
const UNINSTALL: &str = include_str!("../../install/kubernetes/uninstall.yaml");
const IMAGE: &str = "localhost/terok-of-the-daemonsets";

#[track_caller]
fn is_protected(container: &Member, allowed: &str) {
    let (v4, v6) = bad_addresses();
    let lines = container.probe(&[
        &format!("http {allowed} 80 {allowed} /pod"),
        &format!("tcp {v4} 80"),
        &format!("tcp {v6} 80"),
        "socket 40 1 0",
        "socket 17 3 0",
    ]);
    assert_eq!(lines[0]["answers"][0]["status"], 200, "{lines:?}");
    assert_eq!(lines[1]["errno"], 111, "{lines:?}");
    assert_eq!(lines[2]["errno"], 111, "{lines:?}");
    assert_eq!(lines[3]["errno"], 1, "{lines:?}");
    assert_eq!(lines[4]["errno"], 1, "{lines:?}");
    assert!(seen_at(v4).is_empty() && seen_at(v6).is_empty());
}

/// Nothing of terok serves a sandbox or a container any more.
#[track_caller]
fn is_left_alone(ids: &[&str]) {
    let served = |id: &str| {
        let log = Mode::Rootful.state(id).join(layout::LOG);
        let processes = std::fs::read_dir("/proc").expect("proc is mounted").flatten();
        let mut outputs = processes.filter_map(|entry| std::fs::read_link(entry.path().join("fd/2")).ok());
        outputs.any(|output| output == log)
    };
    for id in ids {
        eventually("the supervisor ends with its pod", || !served(id));
        eventually("the runtime folder goes with its pod", || !Mode::Rootful.runtime(id).exists());
    }
}

fn networks() -> usize {
    std::fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("cni-"))
        .count()
}

#[test]
fn a_pod_reaches_what_its_annotations_name_and_its_containers_share_that() {
    let Some(_lab) = Lab::open().filter(|_| kubelet()) else { return };
    let site = site();
    let pod = PodRecipe::allowing(&site.name).start();
    let first = pod.container();
    is_protected(&first, &site.name);
    // What is said of one container alone is not passed on: the pod's word holds for all.
    let other = terok_tests::site();
    let second =
        pod.run(&MemberRecipe::default().annotate("shield.allow", &other.name)).expect("a second container");
    is_protected(&second, &site.name);
    let lines = second.probe(&[&format!("http {0} 80 {0} /other", other.name)]);
    assert_ne!(lines[0]["ok"], true, "{lines:?}");
    assert!(other.seen().is_empty());
    assert_eq!(pod.ruleset().matches("table inet terok").count(), 1);
    // A container that comes again, as after a crash.
    first.remove();
    is_protected(&pod.container(), &site.name);
    is_protected(&second, &site.name);
}

#[test]
fn nothing_is_left_of_a_pod_that_ended_even_if_its_sandbox_died_first() {
    let Some(_lab) = Lab::alone().filter(|_| kubelet()) else { return };
    let before = networks();
    for killed in [false, true] {
        let site = site();
        let pod = PodRecipe::allowing(&site.name).start();
        let (one, two) = (pod.container(), pod.container());
        is_protected(&one, &site.name);
        if killed {
            kill("-KILL", pod.pid());
            is_left_alone(&[&pod.id]);
            // The network that is left has its rules, and nobody who lets anything through.
            let (v4, _) = bad_addresses();
            let lines = two.probe(&[&format!("http {0} 80 {0} /after", site.name), &format!("tcp {v4} 80")]);
            assert!(lines.iter().all(|line| line["ok"] != true), "{lines:?}");
            assert!(seen_at(v4).is_empty() && !site.paths().contains(&"/after".to_owned()));
        }
        let ids = [pod.id.clone(), one.id.clone(), two.id.clone()];
        pod.stop();
        is_left_alone(&ids.each_ref().map(String::as_str));
        drop(pod);
        eventually("the pod's network goes", || networks() == before);
    }
}

#[test]
fn a_pod_without_annotations_is_left_as_it_is() {
    let Some(_lab) = Lab::open().filter(|_| kubelet()) else { return };
    for handler in ["terok", ""] {
        let (v4, v6) = bad_addresses();
        let pod = PodRecipe::plain().handler(handler).start();
        let container = pod.container();
        let lines = container.probe(&[&format!("tcp {v4} 80"), &format!("tcp {v6} 80"), "socket 17 3 0"]);
        assert!(lines.iter().all(|line| line["ok"] == true), "{lines:?}");
        eventually("both arrived", || (seen_at(v4).len(), seen_at(v6).len()) == (1, 1));
        assert!(!pod.ruleset().contains("terok"));
        for config in [pod.config_json(), container.config_json()] {
            assert!(!config.to_string().contains("terok-hook"), "{config}");
        }
    }
}

/// The kubelet shows it among the pod's events.
#[test]
fn a_pod_that_is_refused_says_why_to_the_kubelet() {
    let Some(_lab) = Lab::alone().filter(|_| kubelet()) else { return };
    let before = networks();
    let said = PodRecipe::allowing("").host_network().refused();
    assert!(said.contains("terok: ") && said.contains("host"), "{said}");
    let said = PodRecipe::plain().annotate("sheild", "up").refused();
    assert!(said.contains("terok.sheild") && said.contains("terok.shield"), "{said}");
    let said = PodRecipe::plain().annotate("vault", "nonesuch").refused();
    assert!(said.contains("nonesuch"), "{said}");
    assert_eq!(networks(), before, "of a refused pod no network is left");
    let pod = PodRecipe::allowing("").start();
    for (recipe, name) in [
        (MemberRecipe::default().capability("NET_ADMIN"), "CAP_NET_ADMIN"),
        (MemberRecipe::default().capability("SYS_PTRACE"), "CAP_SYS_PTRACE"),
    ] {
        let said = pod.run(&recipe).expect_err(name);
        assert!(said.contains("terok: ") && said.contains(name), "{said}");
    }
    let privileged = PodRecipe::allowing("").privileged().start();
    let said = privileged.run(&MemberRecipe::default().privileged()).expect_err("privileged");
    assert!(said.contains("terok: ") && said.contains("CAP_NET_ADMIN"), "{said}");
    let member = pod.container();
    let lines = member.probe(&["socket 17 3 0"]);
    assert_eq!(lines[0]["errno"], 1, "{lines:?}");
}

#[test]
fn the_pods_containers_are_restricted_and_so_is_what_is_started_in_them() {
    let Some(_lab) = Lab::open().filter(|_| kubelet()) else { return };
    let pod = PodRecipe::allowing("").annotate("restricted", "true").start();
    let container = pod.container();
    for process in ["1", "self"] {
        let status = container.exec(&["cat", &format!("/proc/{process}/status")]).succeeded();
        for line in
            ["NoNewPrivs:\t1", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "Seccomp:\t2"]
        {
            assert!(status.contains(line), "{process} {line}: {status}");
        }
    }
}

#[test]
fn the_pods_containers_use_a_credential_that_is_in_none_of_them() {
    let Some(_lab) = Lab::open().filter(|_| kubelet()) else { return };
    let service = Service::new(Mode::Rootful);
    let pod = PodRecipe::allowing("").annotate("vault", &service.provider).start();
    let demo = MemberRecipe::default().image("localhost/demo:latest");
    for name in ["one", "two"] {
        let container = pod.run(&demo).expect("a container");
        let path = format!("/v1/{name}");
        let script = format!("curl -sS $LAB_BASE_URL{path} -H \"Authorization: Bearer $LAB_TOKEN\"; env");
        let said = container.exec(&["sh", "-ec", &script]).succeeded();
        assert!(said.contains("\"ok\": true") && !said.contains(&service.secret), "{said}");
        let request = service.requests(&path).pop().expect("it arrived");
        assert_eq!(headers(&request, "authorization"), [format!("Bearer {}", service.secret)]);
        let config = container.config_json().to_string() + &pod.config_json().to_string();
        assert!(!config.contains(&service.secret));
    }
}

#[test]
fn its_name_is_the_kubelets_and_orders_are_followed_at_once() {
    let Some(_lab) = Lab::open().filter(|_| kubelet()) else { return };
    let site = site();
    let pod = PodRecipe::allowing(&site.name).start();
    let container = pod.container();
    is_protected(&container, &site.name);
    let listed = Mode::Rootful.terok(&["ps"]).succeeded();
    assert!(listed.contains(&pod.name), "{listed}");
    Mode::Rootful.terok(&["deny", &pod.id, &site.name]).succeeded();
    let lines = container.probe(&[&format!("http {0} 80 {0} /denied", site.name)]);
    assert_ne!(lines[0]["ok"], true, "{lines:?}");
    let audit = Mode::Rootful.terok(&["audit", &pod.id]).succeeded();
    assert!(audit.contains(&site.name), "{audit}");
}

/// Pods live on while the daemon that made them is another one.
#[test]
fn a_restart_of_containerd_changes_nothing_and_the_handler_can_be_the_default() {
    let Some(_lab) = Lab::alone().filter(|_| kubelet()) else { return };
    let file = Path::new("/etc/containerd/config.toml");
    // Other tests uninstall.
    set_up(&["--engine", "containerd"]);
    let named = std::fs::read(file).expect("the configuration");
    let site = site();
    let old = PodRecipe::allowing(&site.name).start();
    let member = old.container();
    set_up(&["--engine", "containerd", "--default-runtime"]);
    kubelet_restart();
    is_protected(&member, &site.name);
    is_protected(&old.container(), &site.name);
    let unnamed: KubePod = PodRecipe::allowing(&site.name).handler("").start();
    is_protected(&unnamed.container(), &site.name);
    // What was the default goes by its name.
    let (v4, _) = bad_addresses();
    let runc = PodRecipe::allowing(&site.name).handler("runc").start();
    assert_eq!(runc.container().probe(&[&format!("tcp {v4} 80")])[0]["ok"], true);
    drop((old, unnamed, runc));
    set_up(&["--engine", "containerd", "--no-default-runtime"]);
    assert_eq!(std::fs::read(file).expect("the configuration"), named);
    kubelet_restart();
}

/// What the DaemonSet of `manifest` runs on a node whose root is below a folder, in their image; the kubelet does so again where it fails.
fn daemon_set(manifest: &str) -> Ended {
    let arguments = manifest.lines().find_map(|line| line.trim().strip_prefix("args: [")?.strip_suffix(']'));
    let arguments: Vec<_> = arguments.expect("its arguments").split(", ").collect();
    let node = ["run", "--rm", "--privileged", "--read-only", "--network=none", "--volume=/:/host", IMAGE];
    Mode::Rootful.podman(&[&node, &arguments[..]].concat())
}

#[test]
fn the_daemonsets_set_a_node_up_and_take_terok_off_it_again() {
    let Some(_lab) = Lab::alone().filter(|_| kubelet()) else { return };
    let (told, fails) = (Path::new("/run/systemctl.told"), Path::new("/run/systemctl.fails"));
    let (systemctl, socket) = ("/usr/local/bin/systemctl", Path::new("/run/containerd/containerd.sock"));
    let (shim, handler) = (Path::new("/usr/libexec/terok").join(layout::SHIM), "/etc/containerd/config.toml");
    let root = |script: &str| Mode::Rootful.run("sh", &["-ec", script]).succeeded();
    let recipe = include_str!("../../install/kubernetes/Containerfile");
    root(&format!("printf %s '{recipe}' | podman build -q -t {IMAGE} -f - /run/lab/bin"));
    Mode::Rootful.terok(&["uninstall", "--system"]).succeeded();
    // A containerd that starts again makes its socket anew; here is one only where Docker runs.
    let ours = !socket.exists();
    let script = format!(
        "#!/bin/sh\necho \"$*\" >> {}\n[ ! -e {} ] || exit 1\ntouch {}\n",
        told.display(),
        fails.display(),
        socket.display()
    );
    std::fs::write(systemctl, script).expect("/usr is the lab's own");
    root(&format!(
        "chmod 755 {systemctl}; mkdir -p /run/containerd; touch {0} {1}",
        socket.display(),
        fails.display()
    ));
    let heard = || std::fs::read_to_string(told).unwrap_or_default().lines().count();
    let has_handler = || std::fs::read_to_string(handler).expect("it is there").contains(layout::SHIM);

    let said = daemon_set(INSTALL).failed();
    assert!(said.contains("systemctl restart containerd: exit status: 1"), "{said}");
    assert!(shim.exists() && has_handler());
    std::fs::remove_file(fails).expect("it fails no more");
    let said = daemon_set(INSTALL).succeeded();
    assert!(said.contains("already set up") && said.contains("done: systemctl restart containerd"), "{said}");
    daemon_set(INSTALL).succeeded();
    assert_eq!(heard(), 2, "one that has read its file is left alone");
    kubelet_restart();
    let site = site();
    is_protected(&PodRecipe::allowing(&site.name).start().container(), &site.name);

    root(&format!("touch {}", fails.display()));
    let said = daemon_set(UNINSTALL).failed();
    assert!(said.contains("do this again"), "{said}");
    assert!(shim.exists() && !has_handler(), "what knows the shim finds it");
    std::fs::remove_file(fails).expect("it fails no more");
    let said = daemon_set(UNINSTALL).succeeded();
    assert!(said.contains("done: systemctl restart containerd") && !shim.exists(), "{said}");
    let said = daemon_set(UNINSTALL).succeeded();
    assert!(said.contains("nothing is installed here"), "{said}");
    assert_eq!(heard(), 4);

    root(&format!("rm -f {systemctl} {}; podman rmi {IMAGE}", told.display()));
    if ours {
        std::fs::remove_file(socket).expect("it is ours");
    }
    terok_tests::install();
}

/// The kubelet's HTTP and TCP probes come from the node, by the pod's own link; other pods are neighbours on it.
#[test]
fn the_kubelets_probes_arrive_and_other_pods_reach_what_is_published() {
    let Some(_lab) = Lab::open().filter(|_| kubelet()) else { return };
    let other = PodRecipe::plain().start();
    let stranger = other.container();
    for published in [false, true] {
        let port = host_port();
        let recipe = PodRecipe::allowing("");
        let to = format!("127.0.0.1:{port}:8080");
        let pod = if published { recipe.annotate("publish", &to) } else { recipe }.start();
        let container = pod.container();
        let serve = "/run/terok-probe 'serve 8080' </dev/null >/dev/null 2>&1 &";
        container.exec(&["sh", "-c", serve]).succeeded();
        eventually("it serves", || container.probe(&["tcp 127.0.0.1 8080"])[0]["ok"] == true);
        let step = format!("tcp {} 8080", pod.address());
        assert_eq!(on_the_host(&step)["ok"], true);
        let line = &stranger.probe(&[&step])[0];
        assert_eq!(line["ok"], published, "{line}");
    }
}
