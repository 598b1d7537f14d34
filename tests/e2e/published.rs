//! Ports that the outside may connect to: Podman's own `-p` where there is a card, `terok.publish` where there is none; and that
//! being connected to gives nothing to go out by.

use crate::expect::{nothing_arrived, refused_at_once};
use terok_tests::{
    Container, Mode, Net, Recipe, bad_addresses, both_modes, eventually, every_card, host_port, on_the_host,
    outside,
};

const SERVE: [&str; 2] = ["/run/terok-probe", "serve 7000"];

#[track_caller]
fn listening(container: Container) -> Container {
    eventually("it listens", || container.podman(&["logs"]).stdout.contains("open"));
    container
}

every_card! {
    /// The container answers whom Podman lets in, over TCP and UDP, and still cannot start anything itself.
    fn a_published_port_is_reached_and_opens_no_way_out(net: Net) {
        let (port, (v4, v6)) = (host_port(), bad_addresses());
        let container = listening(
            Recipe::on(net, "api.example.com")
                .option(&format!("--publish={port}:7000")).option(&format!("--publish={port}:7000/udp")).start(&SERVE),
        );
        eventually("the port is forwarded", || on_the_host(&format!("tcp 127.0.0.1 {port} hi"))["ok"] == true);
        let line = outside(&format!("tcp 192.0.2.10 {port} hi"));
        assert_eq!(line["ok"], true, "{line}");
        let line = outside(&format!("udp 192.0.2.10 {port} hi"));
        assert_eq!(line["ok"], true, "{line}");
        for step in [format!("tcp {v4} 80"), format!("udp {v4} 123 x"), format!("tcp {v6} 80"), "tcp 192.0.2.1 7000".to_owned()] {
            refused_at_once(&container.try_step(&step));
        }
        nothing_arrived(&[v4.to_string(), v6.to_string()]);
        // Blocked means both ways, also for rootlessport, which connects from inside the namespace.
        crate::expect::terok(&container, &["block"]);
        let line = outside(&format!("tcp 192.0.2.10 {port} hi"));
        assert!(line["got"].as_str().is_none_or(str::is_empty), "{line}");
    }
}

both_modes! {
    /// Without a card: the supervisor listens on the host's loopback and hands each connection to the container's.
    fn a_sealed_container_publishes_through_its_supervisor(mode: Mode) {
        let (port, any) = (host_port(), host_port());
        let container = listening(
            Recipe::sealed(mode, "api.example.com").annotate("publish", &format!("{port}:7000 0.0.0.0:{any}:7000")).start(&SERVE),
        );
        for _ in 0..3 {
            let line = on_the_host(&format!("tcp 127.0.0.1 {port} hi"));
            assert!(line["got"].as_str().is_some_and(|got| got.starts_with("tcp 127.0.0.1:")), "{line}");
        }
        assert_eq!(outside(&format!("tcp 192.0.2.10 {any} hi"))["ok"], true);
        assert_eq!(outside(&format!("tcp 192.0.2.10 {port} hi"))["errno"], 111, "loopback unless it says otherwise");
        container.audited("publish", "accept", "");
        crate::expect::terok(&container, &["block"]);
        let line = on_the_host(&format!("tcp 127.0.0.1 {port} hi"));
        assert_eq!(line["ok"], false, "{line}");
        crate::expect::terok(&container, &["up"]);
        assert_eq!(on_the_host(&format!("tcp 127.0.0.1 {port} hi"))["ok"], true);

        // A port that is taken refuses the start and names itself.
        let (_gone, ended) = Recipe::sealed(mode, "api.example.com").annotate("publish", &format!("{port}:7000")).run(&["true"]);
        let said = ended.failed();
        assert!(said.contains(&port.to_string()), "{said}");
        drop(container);
        eventually("the port goes with its container", || on_the_host(&format!("tcp 127.0.0.1 {port}"))["errno"] == 111);
    }
}
