//! containerd, whose client names the shim for its runtime: the promises on a container without a card, on one whose card comes after
//! everything else (`ctr run --cni`), and with a daemon that goes and comes.

use crate::expect::{
    all_arrived, is_protected, is_refused, nothing_arrived, refused_at_once, refused_in_one_line, steps,
    terok,
};
use terok_tests::{
    Container, Engine, Lab, Mode, Recipe, Service, bad_addresses, eventually, outside, queries, site,
};

const PROBE: &str = "/run/terok-probe";

/// Ends its first process and starts another one from the configuration that containerd keeps.
#[track_caller]
fn started_again(container: &Container) {
    container.podman(&["task", "rm", "--force"]);
    container.is_left_alone();
    container.podman(&["task", "start", "--detach"]).succeeded();
}

#[test]
fn a_container_reaches_what_is_named_and_nothing_else() {
    let Some(_lab) = Lab::with(Engine::Containerd) else { return };
    let (site, (v4, v6)) = (site(), bad_addresses());
    let host = &site.name;
    // Its first step finds every verdict.
    let recipe = Recipe::containerd(host);
    let (_gone, lines) = recipe.probe(&[&format!("http {host} 80 {host} /first"), &format!("tcp {v4} 80")]);
    assert_eq!(lines[0]["answers"][0]["status"], 200, "{lines:?}");
    refused_at_once(&lines[1]);
    let container = recipe.idle();
    let arrive = ["%4", "%6"].map(|family| format!("http {host}{family} 80 {host} /exec"));
    all_arrived(&steps(&container, &arrive));
    all_arrived(&steps(&container, &[format!("tls {host} 443 {host}")]));
    let tunnel = format!("open{}.tunnel.example.net", site.number);
    let tries = [
        format!("tcp {v4} 443"),
        format!("tcp {v6} 443"),
        format!("udp {v4} 443 quic"),
        format!("ping {v4}"),
        "tcp evil.example.net 80".to_owned(),
        "tcp 169.254.169.254 8080".to_owned(),
        "tcp 192.0.2.10 8000".to_owned(),
        // VSOCK
        "socket 40 1 0".to_owned(),
        "io_uring".to_owned(),
    ];
    steps(&container, &tries).iter().for_each(refused_at_once);
    container.try_step(&format!("dns 203.0.113.53 {tunnel} A"));
    let line = container.try_step(&format!("tls {host} 443 evil.example.net"));
    assert_eq!(line["ok"], false, "{line}");
    nothing_arrived(&[v4.to_string(), v6.to_string(), "169.254.169.254".to_owned()]);
    assert!(queries(&tunnel).is_empty());
}

/// So that the other tests can fail.
#[test]
fn without_terok_the_same_attempts_arrive() {
    let Some(_lab) = Lab::with(Engine::Containerd) else { return };
    let (v4, v6) = bad_addresses();
    let container = Recipe::containerd_bare().option("--cni").idle().settled();
    let tries = [
        format!("tcp {v4} 443"),
        format!("tcp {v6} 443"),
        format!("udp {v4} 443 quic"),
        "tcp 192.0.2.10 8000".to_owned(),
    ];
    all_arrived(&steps(&container, &tries));
    assert!(container.supervisors().is_empty());
}

/// The network is made when the hooks have long returned.
#[test]
fn a_card_that_comes_later_meets_the_same_default_deny() {
    let Some(_lab) = Lab::with(Engine::Containerd) else { return };
    let (site, (v4, v6)) = (site(), bad_addresses());
    let container = Recipe::containerd(&site.name).option("--cni").idle().settled();
    is_protected(&container, &site.name);
    let gateway = "tcp 10.93.0.1 8000".to_owned();
    let tries = [gateway, "udp 10.93.0.1 123 x".to_owned(), format!("ping {v4}"), format!("ping {v6}")];
    steps(&container, &tries).iter().for_each(refused_at_once);
    let line = outside(&format!("tcp {} 7000", container.address(false)));
    assert_eq!(line["ok"], false, "{line}");
    nothing_arrived(&[v4.to_string(), v6.to_string(), "10.93.0.1".to_owned()]);
}

#[test]
fn ctr_says_in_one_line_why_it_starts_nothing() {
    let Some(_lab) = Lab::with(Engine::Containerd) else { return };
    let name = "api.example.com";
    refused_in_one_line(&Recipe::containerd(name).annotate("sheild", "up"), "terok.shield");
    refused_in_one_line(&Recipe::containerd(name).annotate("vault", "antropic"), "anthropic");
    refused_in_one_line(&Recipe::containerd(name).option("--net-host"), "network");
    let socket = "--mount=type=bind,src=/run/containerd/containerd.sock,dst=/s,options=rbind:rw";
    refused_in_one_line(&Recipe::containerd(name).option(socket), "socket");
}

/// Whether a card will come cannot be told, so that the capabilities which could undo its protection are refused.
#[test]
fn capabilities_that_could_change_the_rules_of_a_later_card_are_refused() {
    let Some(_lab) = Lab::with(Engine::Containerd) else { return };
    for capability in ["CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE"] {
        let recipe = Recipe::containerd("api.example.com").option(&format!("--cap-add={capability}"));
        refused_in_one_line(&recipe, capability);
        refused_in_one_line(&recipe.option("--cni"), capability);
    }
}

#[test]
fn it_is_protected_again_when_its_task_is_started_again() {
    let Some(_lab) = Lab::with(Engine::Containerd) else { return };
    let (site, other) = (site(), site());
    let container = Recipe::containerd(&format!("{} {}", site.name, other.name)).idle();
    is_protected(&container, &site.name);
    terok(&container, &["deny", &other.name]);
    started_again(&container);
    is_protected(&container, &site.name);
    // What was said lasts.
    is_refused(&container, &other.name);
    container.served_by();
    let audit = terok(&container, &["audit"]);
    assert!(audit.contains(&site.name) && audit.contains(&other.name), "{audit}");
    let listed = Mode::Rootful.terok(&["ps"]).succeeded();
    assert!(listed.contains(&container.name), "{listed}");
}

/// containerd's containers outlive it.
#[test]
fn the_daemon_may_go_and_come() {
    let Some(_lab) = Lab::alone().filter(|_| Engine::Containerd.starts()) else { return };
    let site = site();
    let container = Recipe::containerd(&site.name).idle();
    let (first, supervisors) = (container.pid(), container.served_by());
    Engine::Containerd.stop();
    let step = format!("http {0} 80 {0} /kept", site.name);
    let (net, root) = (format!("--net=/proc/{first}/ns/net"), format!("--root=/proc/{first}/root"));
    let kept = Mode::Rootful.run("nsenter", &[&net, &root, PROBE, &step]).stdout;
    Engine::Containerd.restart();
    assert!(kept.contains("\"status\":200"), "it lost its network with the daemon: {kept}");
    assert_eq!((container.pid(), container.served_by()), (first, supervisors));
    is_protected(&container, &site.name);
    started_again(&container);
    is_protected(&container, &site.name);
}

#[test]
fn the_real_key_goes_upstream_and_never_in() {
    let Some(_lab) = Lab::with(Engine::Containerd) else { return };
    let service = Service::new(Mode::Rootful);
    let container = service.granted(Recipe::containerd("").image("localhost/demo:latest")).idle();
    let answer = container.curl("$LAB_BASE_URL/v1/ctr -H \"Authorization: Bearer $LAB_TOKEN\"");
    assert_eq!(answer.status, 200, "{answer:?}");
    let token = container.variable("LAB_TOKEN");
    assert!(token.starts_with("lab-") && token != service.secret, "{token}");
    let further = container.exec(&["cat", "/proc/self/environ"]).succeeded();
    assert!(further.contains(&format!("LAB_TOKEN={token}")), "{further}");
    service.got_the_real_key("/v1/ctr");
    let supervisors = container.supervisors();
    let id = container.id.clone();
    drop(container);
    let gone = |pid: &u32| !std::path::Path::new(&format!("/proc/{pid}")).exists();
    eventually("the processes end with it", || supervisors.iter().all(gone));
    eventually("the runtime folder goes with it", || !Mode::Rootful.runtime(&id).exists());
}
