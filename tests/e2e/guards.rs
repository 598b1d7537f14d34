//! What is refused before anything runs, because no packet filter could hold it: capabilities beside a card, the host's namespaces,
//! sockets of engines and sessions (A20, A22).

use crate::expect::{all_arrived, nothing_arrived, refused_at_once, steps};
use terok_tests::{Mode, Net, Recipe, bad_addresses, every_card, every_network, site};

#[track_caller]
fn refused(recipe: &Recipe, what: &str) {
    let (container, ended) = recipe.run(&["true"]);
    assert_ne!(ended.code, 0, "{what} was let through");
    let said = ended.stderr.to_lowercase();
    assert!(said.contains(&what.to_lowercase()), "{what} is not named: {said}");
    container.is_left_alone();
}

every_card! {
    fn capabilities_that_could_change_the_rules_are_refused(net: Net) {
        for capability in ["NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_PTRACE"] {
            refused(&Recipe::on(net, "api.example.com").option(&format!("--cap-add={capability}")), capability);
        }
        refused(&Recipe::on(net, "api.example.com").option("--privileged"), "CAP_");
        let (_gone, ended) = Recipe::on(net, "api.example.com").option("--cap-add=SYS_TIME").run(&["true"]);
        ended.succeeded();
    }
}

every_card! {
    /// Podman gives a container with users of its own its card only when the hooks have long returned.
    fn a_card_that_comes_to_a_user_namespace_is_one_from_the_start(net: Net) {
        let users = if net.mode() == Mode::Rootful { "--uidmap=0:100000:65536" } else { "--userns=keep-id" };
        for capability in ["NET_ADMIN", "NET_RAW"] {
            let recipe = Recipe::on(net, "api.example.com").option(users);
            refused(&recipe.option(&format!("--cap-add={capability}")), capability);
        }
        let (site, ((v4, _), (other, other6))) = (site(), (bad_addresses(), bad_addresses()));
        let container = Recipe::on(net, &format!("{} {v4}:80", site.name)).option(users).idle().settled();
        all_arrived(&steps(&container, &[format!("http {0} 80 {0} /in", site.name), format!("http {v4} 80 any /in")]));
        let tries = [format!("tcp {other} 80"), format!("tcp {other6} 80"), format!("udp {other} 123 x")];
        steps(&container, &tries).iter().for_each(refused_at_once);
        nothing_arrived(&[other.to_string(), other6.to_string()]);
        let sealed = Recipe::sealed(net.mode(), &site.name).option(users).option("--cap-add=NET_ADMIN").idle();
        all_arrived(&steps(&sealed, &[format!("http {0} 80 {0} /in", site.name)]));
    }
}

every_network! {
    fn engine_and_session_sockets_are_refused(net: Net) {
        let (mode, folder) = (net.mode(), if net.mode() == Mode::Rootful { "/run/podman" } else { "/run/user/1001/podman" });
        mode.run("mkdir", &["-p", folder]).succeeded();
        let socket = format!("{folder}/podman.sock");
        // Tests beside this one make it, too.
        let made = format!("import socket,os,sys; s=socket.socket(socket.AF_UNIX); sys.exit(s.connect_ex('{socket}') == 2 and s.bind('{socket}'))");
        mode.run("python3", &["-c", &made]);
        assert!(std::path::Path::new(&socket).exists(), "{socket}");
        for mount in [format!("{socket}:/s"), format!("{folder}:/run/podman"), format!("{}:/host", if mode == Mode::Rootful { "/run" } else { "/run/user/1001" })] {
            let (container, ended) = Recipe::on(net, "api.example.com").option(&format!("--volume={mount}")).run(&["true"]);
            assert_ne!(ended.code, 0, "{mount} was let through");
            assert!(ended.stderr.contains("socket"), "{mount}: {}", ended.stderr);
            drop(container);
        }
    }
}

/// `ns:` of the host, under whatever name. A user cannot name it: the kernel refuses before terok is asked.
#[test]
fn the_hosts_namespace_by_path_is_refused() {
    let Some(_lab) = terok_tests::Lab::open() else { return };
    let (_gone, ended) =
        Recipe::sealed(Mode::Rootful, "api.example.com").network("ns:/proc/1/ns/net").run(&["true"]);
    let said = ended.failed();
    assert!(said.contains("terok") || said.contains("hook"), "{said}");
}

/// As a user: the machine of the lab cannot give root's containers control groups, without which Podman refuses by itself.
#[test]
fn the_hosts_processes_are_refused() {
    let Some(_lab) = terok_tests::Lab::open() else { return };
    for net in [Net::Sealed, Net::Slirp, Net::Bridge] {
        let shared = |recipe: Recipe| recipe.option("--pid=host").option("--cgroups=enabled");
        shared(Recipe::unprotected(net)).run(&["true"]).1.succeeded();
        refused(&shared(Recipe::on(net, "api.example.com")), "pid");
    }
}
