//! Docker, whose runtime `terok` is the shim before runc: the promises that `e2e/` shows on Podman, shown on the networks of Docker, and
//! what is Docker's own: labels, restart policies, a daemon that goes and comes.

use crate::expect::{
    all_arrived, is_protected, is_refused, nothing_arrived, reaches, refused_at_once, refused_in_one_line,
    steps, terok,
};
use terok_policy::layout;
use terok_tests::{
    Container, Engine, Lab, Mode, Recipe, Service, bad_addresses, eventually, host_port, kill, on_the_host,
    outside, seen_at, site,
};

const PROBE: &str = "/run/terok-probe";
const SERVE: [&str; 2] = [PROBE, "serve 7000"];

/// CAP_NET_RAW, as a bit of the masks in /proc/PID/status.
const NET_RAW: u64 = 1 << 13;

fn docker(arguments: &[&str]) -> terok_tests::Ended {
    Mode::Rootful.run(Engine::Docker.program(), arguments)
}

/// Without a card, the default bridge, a user's own network with IPv6.
fn networks() -> [&'static str; 3] {
    Engine::docker_networks();
    ["none", "bridge", "duo"]
}

/// The sets of capabilities of a further process in the container.
#[track_caller]
fn capabilities(container: &Container, process: &str) -> Vec<u64> {
    let status = container.exec(&["cat", &format!("/proc/{process}/status")]).succeeded();
    let sets = status.lines().filter(|line| line.starts_with("Cap"));
    sets.map(|line| u64::from_str_radix(line.split_whitespace().last().unwrap_or(""), 16).expect("a mask"))
        .collect()
}

#[test]
fn a_container_reaches_what_is_named_and_nothing_else() {
    let Some(_lab) = Lab::with(Engine::Docker) else { return };
    for network in networks() {
        let (site, (v4, v6)) = (site(), bad_addresses());
        let host = &site.name;
        // The first process's first step finds every verdict.
        let recipe = Recipe::docker(network, host);
        let (_gone, lines) =
            recipe.probe(&[&format!("http {host} 80 {host} /first"), &format!("tcp {v4} 80")]);
        assert_eq!(lines[0]["answers"][0]["status"], 200, "{network}: {lines:?}");
        refused_at_once(&lines[1]);
        let container = recipe.idle();
        all_arrived(&steps(
            &container,
            &[format!("http {host}%4 80 {host} /exec"), format!("tls {host} 443 {host}")],
        ));
        // Docker switches IPv6 off in a network that has none.
        let off = container.exec(&["cat", "/proc/sys/net/ipv6/conf/lo/disable_ipv6"]).stdout;
        assert!(network != "duo" || off.trim() == "0", "{off}");
        if off.trim() == "0" {
            all_arrived(&steps(&container, &[format!("http {host}%6 80 {host} /exec")]));
        }
        let tunnel = format!("open{}.tunnel.example.net", site.number);
        let tries = [
            format!("tcp {v4} 443"),
            format!("tcp {v6} 443"),
            format!("udp {v4} 443 quic"),
            format!("udp {v6} 443 quic"),
            format!("ping {v4}"),
            "tcp evil.example.net 80".to_owned(),
            "tcp 169.254.169.254 8080".to_owned(),
            "tcp 10.66.0.1 80".to_owned(),
            "tcp 192.0.2.10 8000".to_owned(),
            // VSOCK
            "socket 40 1 0".to_owned(),
            "io_uring".to_owned(),
        ];
        steps(&container, &tries).iter().for_each(refused_at_once);
        let asked = container.try_step(&format!("dns 203.0.113.53 {tunnel} A"));
        assert!(asked["answers"].as_array().is_none_or(Vec::is_empty), "{asked}");
        let line = container.try_step(&format!("tls {host} 443 evil.example.net"));
        assert_eq!(line["ok"], false, "{line}");
        nothing_arrived(&[
            v4.to_string(),
            v6.to_string(),
            "10.66.0.1".to_owned(),
            "169.254.169.254".to_owned(),
        ]);
        assert!(terok_tests::queries(&tunnel).is_empty());
        container.podman(&["stop", "--time=0"]).succeeded();
        container.is_left_alone();
    }
}

/// So that the test above can fail.
#[test]
fn without_terok_the_same_attempts_arrive() {
    let Some(_lab) = Lab::with(Engine::Docker) else { return };
    networks();
    let (v4, v6) = bad_addresses();
    let container = Recipe::docker_bare("duo").idle().settled();
    all_arrived(&steps(
        &container,
        &[
            format!("tcp {v4} 443"),
            format!("tcp {v6} 443"),
            format!("udp {v4} 443 quic"),
            "socket 2 3 255".to_owned(),
            "tcp 192.0.2.10 8000".to_owned(),
        ],
    ));
    // By the runtime, but without a word: as it would be without.
    let container = Recipe::docker_bare("bridge").option("--runtime=terok").idle();
    all_arrived(&steps(&container, &[format!("tcp {v4} 443"), "socket 2 3 255".to_owned()]));
    assert!(container.supervisors().is_empty());
}

#[test]
fn docker_run_says_in_one_line_why_it_starts_nothing() {
    let Some(_lab) = Lab::with(Engine::Docker) else { return };
    let name = "api.example.com";
    refused_in_one_line(&Recipe::docker("host", name), "network");
    for network in ["none", "bridge"] {
        refused_in_one_line(&Recipe::docker(network, name).annotate("sheild", "up"), "terok.shield");
        refused_in_one_line(&Recipe::docker(network, name).annotate("vault", "antropic"), "anthropic");
        refused_in_one_line(&Recipe::docker(network, name).option("--pid=host"), "pid");
        refused_in_one_line(
            &Recipe::docker(network, name).option("--volume=/run/docker.sock:/run/docker.sock"),
            "socket",
        );
    }
    for capability in ["NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_PTRACE"] {
        refused_in_one_line(
            &Recipe::docker("bridge", name).option(&format!("--cap-add={capability}")),
            capability,
        );
    }
    refused_in_one_line(&Recipe::docker("bridge", name).option("--cap-add=ALL"), "CAP_");
    refused_in_one_line(&Recipe::docker("bridge", name).option("--privileged"), "CAP_");
}

/// Docker gives every container CAP_NET_RAW unasked; nobody who did not ask for it misses it.
#[test]
fn beside_a_card_raw_sockets_are_taken_away_also_from_further_processes() {
    let Some(_lab) = Lab::with(Engine::Docker) else { return };
    for network in ["bridge", networks()[2]] {
        let container = Recipe::docker(network, "api.example.com").idle();
        for process in ["1", "self"] {
            assert!(
                capabilities(&container, process).iter().all(|set| set & NET_RAW == 0),
                "{network} {process}"
            );
        }
        // A raw socket, a packet socket.
        steps(&container, &["socket 2 3 255".to_owned(), "socket 17 3 768".to_owned()])
            .iter()
            .for_each(refused_at_once);
    }
    let plain = Recipe::docker_bare("bridge").idle();
    assert!(capabilities(&plain, "1").iter().any(|set| set & NET_RAW != 0));
}

#[test]
fn it_is_protected_again_after_stop_start_restart_and_kill() {
    let Some(_lab) = Lab::with(Engine::Docker) else { return };
    for network in networks() {
        let site = site();
        let container = Recipe::docker(network, &site.name).idle();
        terok(&container, &["deny", "api.example.com"]);
        for verb in [&["restart", "--time=0"][..], &["stop", "--time=0"], &["kill"]] {
            container.podman(verb).succeeded();
            if verb[0] != "restart" {
                container.is_left_alone();
                container.podman(&["start"]).succeeded();
            }
            is_protected(&container, &site.name);
            container.served_by();
        }
    }
}

#[test]
fn a_restart_policy_brings_it_back_protected() {
    let Some(_lab) = Lab::with(Engine::Docker) else { return };
    let site = site();
    let container = Recipe::docker("bridge", &site.name).option("--restart=always").idle();
    let first = container.pid();
    kill("-KILL", first);
    let back = || {
        let pid = container.podman(&["inspect", "--format={{.State.Pid}}"]).stdout;
        pid.trim().parse::<u32>().is_ok_and(|pid| pid != 0 && pid != first)
            && container.exec(&["true"]).code == 0
    };
    eventually("Docker starts it again", back);
    is_protected(&container, &site.name);
}

/// `docker network connect`: the card comes after the hook and meets the same default deny.
#[test]
fn a_card_that_is_attached_later_is_filtered() {
    let Some(_lab) = Lab::with(Engine::Docker) else { return };
    Engine::docker_networks();
    let ((v4, v6), (other4, other6)) = (bad_addresses(), bad_addresses());
    let container = Recipe::docker("bridge", &format!("{v4}:80 [{v6}]:80")).idle();
    docker(&["network", "connect", "duo", &container.name]).succeeded();
    // Docker renames it when it is in the container: who looks in between guards it by both names.
    eventually("the new card has a chain of its own", || container.ruleset().contains("chain egress-eth1"));
    docker(&["network", "disconnect", "bridge", &container.name]).succeeded();
    let container = container.settled();
    all_arrived(&steps(&container, &[format!("tcp {v4} 80"), format!("tcp {v6} 80")]));
    let tries = [format!("tcp {other4} 80"), format!("udp {other4} 123 x"), format!("tcp {other6} 80")];
    steps(&container, &tries).iter().for_each(refused_at_once);
    nothing_arrived(&[other4.to_string(), other6.to_string()]);
}

#[track_caller]
fn listening(container: Container) -> Container {
    eventually("it listens", || container.podman(&["logs"]).stdout.contains("open"));
    container
}

/// Docker answers for the names of a network itself, inside the container's own network.
#[test]
fn a_neighbour_is_reached_by_name_where_a_rule_says_so() {
    let Some(_lab) = Lab::with(Engine::Docker) else { return };
    Engine::docker_networks();
    let neighbour = listening(Recipe::docker_bare("duo").start(&SERVE));
    let container = Recipe::docker("duo", &format!("{}:7000", neighbour.name)).idle().settled();
    let other = Recipe::docker("duo", "api.example.com").idle().settled();
    let step = format!("tcp {} 7000", neighbour.name);
    all_arrived(&steps(&container, std::slice::from_ref(&step)));
    refused_at_once(&other.try_step(&step));
    refused_at_once(&other.try_step(&format!("tcp {} 7000", neighbour.address(false))));
    refused_at_once(&container.try_step(&format!("udp {} 7000 x", neighbour.address(false))));
}

/// Where Docker's name server listens, by UDP and by TCP, for everybody inside to read.
#[track_caller]
fn name_server(container: &Container) -> [String; 2] {
    [("udp", " 07 "), ("tcp", " 0A ")].map(|(protocol, listening)| {
        let sockets = container.exec(&["cat", &format!("/proc/net/{protocol}")]).succeeded();
        let own = sockets.lines().filter(|line| line.contains(listening));
        let port = own.filter_map(|line| line.split_whitespace().nth(1)?.strip_prefix("0B00007F:")).next();
        let port = port.unwrap_or_else(|| panic!("Docker has no name server here: {sockets}"));
        format!("127.0.0.11:{}", u16::from_str_radix(port, 16).expect("a port"))
    })
}

/// It answers for the network, and asks outside for whom it does not know: terok alone asks it, at whichever port.
#[test]
fn dockers_own_name_server_answers_nobody_inside() {
    let Some(_lab) = Lab::with(Engine::Docker) else { return };
    Engine::docker_networks();
    let (number, neighbour) = (site().number, Recipe::docker_bare("duo").idle());
    let questions = |container: &Container| {
        let [udp, tcp] = name_server(container);
        [format!("dns {udp} {} A", neighbour.name), format!("dns {tcp} {} A tcp", neighbour.name)]
    };
    let plain = Recipe::docker_bare("duo").idle().settled();
    all_arrived(&steps(&plain, &questions(&plain)));

    let container = Recipe::docker("duo", "api.example.com").idle().settled();
    steps(&container, &questions(&container)).iter().for_each(refused_at_once);
    let [real, _] = name_server(&container);
    let tunnel = format!("inside{number}.tunnel.example.net");
    steps(&container, &[format!("dns {real} {tunnel} TXT")]).iter().for_each(refused_at_once);
    // Connected to that network while it runs: Docker's translation comes when ours is there.
    let late = |network: &str| {
        let late = Recipe::docker(network, "api.example.com").idle();
        docker(&["network", "disconnect", network, &late.name]).succeeded();
        docker(&["network", "connect", "duo", &late.name]).succeeded();
        steps(&late, &questions(&late)).iter().for_each(refused_at_once);
        late
    };
    // At its usual port everybody is answered by terok.
    for container in [container, late("none"), late("bridge")] {
        for name in [&tunnel, &neighbour.name] {
            for by in ["", " tcp"] {
                let answer = container.try_step(&format!("dns 127.0.0.11 {name} A{by}"));
                assert_eq!((&answer["ok"], &answer["errno"]), (&false.into(), &0.into()), "{answer}");
            }
        }
    }
    assert!(terok_tests::queries(&tunnel).is_empty());
}

#[test]
fn a_container_that_joins_has_the_same_policy_or_is_refused() {
    let Some(_lab) = Lab::with(Engine::Docker) else { return };
    for network in networks() {
        let (site, (v4, _)) = (site(), bad_addresses());
        let ours = Recipe::docker(network, &site.name).idle();
        let joined = format!("container:{}", ours.name);
        let same = Recipe::docker(&joined, &site.name).idle();
        is_protected(&same, &site.name);
        let (_gone, ended) = Recipe::docker(&joined, "other.example.com").run(&["true"]);
        let said = ended.failed();
        assert!(said.contains("policy"), "{said}");
        // Of Docker's own runtime: the rules are the network's.
        let plain = Recipe::docker_bare(&joined).idle();
        refused_at_once(&plain.try_step(&format!("tcp {v4} 80")));
        let open = Recipe::docker_bare(network).idle();
        let (_gone, ended) = Recipe::docker(&format!("container:{}", open.name), &site.name).run(&["true"]);
        ended.failed();
        nothing_arrived(&[v4.to_string()]);
    }
}

/// The operator's verbs find it by Docker's name.
#[test]
fn the_operators_verbs_know_it_by_its_name() {
    let Some(_lab) = Lab::with(Engine::Docker) else { return };
    for network in ["none", "bridge"] {
        let (site, other, (v4, _)) = (site(), site(), bad_addresses());
        let container = Recipe::docker(network, &site.name).idle();
        let listed = Mode::Rootful.terok(&["ps"]).succeeded();
        assert!(listed.contains(&container.name), "{listed}");
        assert!(terok(&container, &["status"]).contains(&container.name));
        terok(&container, &["deny", &site.name]);
        is_refused(&container, &site.name);
        terok(&container, &["allow", &other.name]);
        reaches(&container, &other.name);
        terok(&container, &["down"]);
        reaches(&container, &v4.to_string());
        terok(&container, &["block"]);
        is_refused(&container, &other.name);
        terok(&container, &["up"]);
        reaches(&container, &other.name);
        is_refused(&container, &site.name);
        let audit = terok(&container, &["audit"]);
        assert!(audit.contains(&site.name) && audit.contains(&other.name), "{audit}");
        // What was said lasts.
        container.podman(&["restart", "--time=0"]).succeeded();
        reaches(&container, &other.name);
        is_refused(&container, &site.name);
    }
}

#[test]
fn published_ports_are_reached_and_open_no_way_out() {
    let Some(_lab) = Lab::with(Engine::Docker) else { return };
    let (port, own, (v4, _)) = (host_port(), host_port(), bad_addresses());
    let container = listening(
        Recipe::docker("bridge", "api.example.com").option(&format!("--publish={port}:7000")).start(&SERVE),
    );
    let line = outside(&format!("tcp 192.0.2.10 {port} hi"));
    assert_eq!(line["ok"], true, "{line}");
    refused_at_once(&container.try_step(&format!("tcp {v4} 80")));
    refused_at_once(&container.try_step("tcp 192.0.2.1 7000"));
    let sealed = listening(
        Recipe::docker("none", "api.example.com").annotate("publish", &format!("{own}:7000")).start(&SERVE),
    );
    let line = on_the_host(&format!("tcp 127.0.0.1 {own} hi"));
    assert_eq!(line["ok"], true, "{line}");
    drop(sealed);
    eventually("the port goes with its container", || {
        on_the_host(&format!("tcp 127.0.0.1 {own}"))["errno"] == 111
    });
    nothing_arrived(&[v4.to_string()]);
}

#[test]
fn the_real_key_goes_upstream_and_never_in() {
    let Some(_lab) = Lab::with(Engine::Docker) else { return };
    let service = Service::new(Mode::Rootful);
    for network in networks() {
        let container = service.granted(Recipe::docker(network, "").image("localhost/demo")).idle();
        for way in ["$LAB_BASE_URL", &format!("https://{}", service.site.name)] {
            let answer = container.curl(&format!("{way}/v1/docker -H \"Authorization: Bearer $LAB_TOKEN\""));
            assert_eq!(answer.status, 200, "{network} {way}: {answer:?}");
        }
        let token = container.variable("LAB_TOKEN");
        assert!(token.starts_with("lab-") && token != service.secret, "{token}");
        // The shim gives a further process what the first one has.
        let first = container.exec(&["cat", "/proc/1/environ"]).succeeded();
        let further = container.exec(&["cat", "/proc/self/environ"]).succeeded();
        for environ in [&first, &further] {
            assert!(environ.contains(&format!("LAB_TOKEN={token}")), "{network}: {environ}");
        }
        let inspected = container.podman(&["inspect"]).succeeded();
        assert!(!inspected.contains(&token) && !inspected.contains(&service.secret));
        container.podman(&["restart", "--time=0"]).succeeded();
        let answer = container.curl("$LAB_BASE_URL/v1/docker -H \"Authorization: Bearer $LAB_TOKEN\"");
        assert_eq!(answer.status, 200, "{network}: {answer:?}");
    }
    service.got_the_real_key("/v1/docker");
}

#[test]
fn the_agents_socket_has_the_granted_key() {
    let Some(_lab) = Lab::with(Engine::Docker) else { return };
    let (key, _) = crate::vault_clients::key(Mode::Rootful, "ed25519");
    let recipe = Recipe::docker("bridge", "github.com:22").annotate("ssh", &format!("{key}@github.com"));
    let container = recipe.idle();
    // SSH_AGENTC_REQUEST_IDENTITIES is answered with the key and its comment, which is its name.
    let socket = container.sh("printf %s $SSH_AUTH_SOCK").succeeded();
    let line = container.try_step(&format!(r"unix {socket} \x00\x00\x00\x01\x0b"));
    let got = line["got"].as_str().unwrap_or_default();
    assert!(got.contains("ssh-ed25519") && got.contains(&key), "{line}");
}

/// A2: labels are the person's only where the image does not have them.
#[test]
fn an_image_that_labels_itself_is_refused() {
    let Some(_lab) = Lab::with(Engine::Docker) else { return };
    let number = site().number;
    let image = format!("localhost/labelled-{number}");
    for label in ["terok.shield.allow=evil.example.net", "terok.shield=down", "terok.vault=anthropic"] {
        docker(&["import", "--change", &format!("LABEL {label}"), "/run/lab/home/bb.tar", &image])
            .succeeded();
        for network in ["none", "bridge"] {
            let own = Recipe::docker_bare(network).option("--runtime=terok").image(&image);
            refused_in_one_line(&own, "image");
            refused_in_one_line(&own.annotate("name", "n"), "image");
        }
        docker(&["rmi", "--force", &image]).succeeded();
    }
}

/// By the label, which every Docker has, and by the annotation, which newer ones have; not by both in two words.
#[test]
fn labels_and_annotations_say_the_same() {
    let Some(_lab) = Lab::with(Engine::Docker) else { return };
    let site = site();
    let labelled =
        |name: &str| Recipe::docker_bare("none").option("--runtime=terok").label("shield.allow", name);
    is_protected(&labelled(&site.name).idle(), &site.name);
    if Engine::docker_major() < 24 {
        eprintln!("skipped: this Docker's command line has no annotations (cargo xtask test --podman5)");
        return;
    }
    is_protected(&labelled(&site.name).annotate("shield.allow", &site.name).idle(), &site.name);
    refused_in_one_line(
        &labelled("other.example.com").annotate("shield.allow", &site.name),
        "terok.shield.allow",
    );
}

/// With `live-restore` containers outlive the daemon, without it they end with it; protected in both, and then again.
#[test]
fn the_daemon_may_go_and_come() {
    let Some(_lab) = Lab::alone().filter(|_| Engine::Docker.starts()) else { return };
    let (site, other) = (site(), site());
    let file = "/etc/docker/daemon.json";
    let before = std::fs::read_to_string(file).expect("terok setup made it");
    let always = |name: &str| Recipe::docker("bridge", name).option("--restart=always").idle();

    let ended = always(&site.name);
    let first = ended.pid();
    Engine::Docker.restart();
    eventually("Docker starts it again", || {
        let pid = ended.podman(&["inspect", "--format={{.State.Pid}}"]).stdout;
        pid.trim().parse::<u32>().is_ok_and(|pid| pid != 0 && pid != first) && ended.exec(&["true"]).code == 0
    });
    is_protected(&ended, &site.name);
    drop(ended);

    let mut settings: serde_json::Value = serde_json::from_str(&before).expect("JSON");
    settings["live-restore"] = true.into();
    std::fs::write(file, settings.to_string()).expect("/etc is the lab's own");
    Engine::Docker.restart();
    let kept = always(&other.name);
    let (first, supervisors) = (kept.pid(), kept.served_by());
    Engine::Docker.stop();
    let net = kept_reaches(first, &other.name);
    assert!(net, "it lost its network with the daemon");
    Engine::Docker.restart();
    assert_eq!((kept.pid(), kept.served_by()), (first, supervisors));
    is_protected(&kept, &other.name);
    drop(kept);
    std::fs::write(file, before).expect("/etc is the lab's own");
    Engine::Docker.restart();
}

/// Whether a process in the network of `pid` reaches `host`, asked while there is no engine to ask; its DNS is where the container's is.
fn kept_reaches(pid: u32, host: &str) -> bool {
    let step = format!("http {host} 80 {host} /kept");
    let root = format!("/proc/{pid}/root");
    let line = Mode::Rootful
        .run("nsenter", &[&format!("--net=/proc/{pid}/ns/net"), &format!("--root={root}"), PROBE, &step])
        .stdout;
    line.contains("\"status\":200")
}

/// When the last container is gone, nothing is left of it but its log.
#[test]
fn nothing_is_left_of_a_container_that_is_removed() {
    let Some(_lab) = Lab::with(Engine::Docker) else { return };
    let service = Service::new(Mode::Rootful);
    let container =
        service.granted(Recipe::docker("bridge", "api.example.com").image("localhost/demo")).idle();
    let id = container.id.clone();
    container.served_by();
    let supervisors = container.supervisors();
    assert!(Mode::Rootful.runtime(&id).join(layout::CONTAINER).exists());
    drop(container);
    eventually("the processes end", || {
        supervisors.iter().all(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists())
    });
    eventually("the runtime folder goes", || !Mode::Rootful.runtime(&id).exists());
    let cards = Mode::Rootful.run("ip", &["-o", "link"]).succeeded();
    assert!(!cards.contains(&id[..12]), "{cards}");
    assert!(seen_at("203.0.113.1").is_empty());
}
