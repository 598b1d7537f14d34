//! The real supervisor of a container with a card: whose tables somebody changes, whose disk is full, and whose supervisor
//! dies.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod rig;

use rig::card::{SERVER, sh};
use rig::{Rig, Wish, kill9, until};
use serde_json::{Value, json};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};
use terok_kernel::rtnl::Rtnl;
use terok_policy::layout;

fn status(rig: &Rig) -> Value {
    rig.ask("Status", json!({}))["parameters"]["status"].clone()
}

fn cards(rig: &Rig) -> usize {
    rig.inside(|| Rtnl::open().unwrap().cards().unwrap().len())
}

fn filtered(allow: &[&'static str]) -> Wish {
    Wish { card: true, ..Wish::allow(allow) }
}

/// An echo server outside, for as long as the test runs.
fn serve(rig: &Rig) {
    let at: SocketAddr = format!("{SERVER}:443").parse().unwrap();
    let udp = rig.router.as_ref().unwrap().run(move || UdpSocket::bind(at).unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 16];
        while let Ok((length, from)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(&buffer[..length], from);
        }
    });
}

fn client(rig: &Rig) -> UdpSocket {
    let socket = rig.inside(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    socket.connect((SERVER, 443)).unwrap();
    socket
}

fn echo(socket: &UdpSocket) -> bool {
    // The refusal of the packet before may be reported now.
    let _ = socket.take_error();
    socket.send(b"ping").and_then(|_| socket.recv(&mut [0; 4])).is_ok()
}

#[test]
fn a_changed_table_cuts_the_container_off_until_it_is_started_again() {
    if !terok_need::network_namespaces() {
        return;
    }
    let rig = Rig::start(&filtered(&["a.example", "198.51.100.1:443/udp"]));
    serve(&rig);
    assert!(echo(&client(&rig)));
    assert_eq!((rig.resolve("a.example").0, cards(&rig)), (0, 1));
    assert_eq!(status(&rig)["tampered"], Value::Null);
    rig.inside(|| sh("nft insert rule inet terok out accept"));
    until("the cut", || (cards(&rig) == 0).then_some(()));
    let line =
        until("the audit's line", || rig.audit().into_iter().find(|line| line["action"] == "tampered"));
    assert!(line["detail"]["difference"].as_str().unwrap().contains("chain out"), "{line}");
    let cut_off = |rig: &Rig| {
        let status = status(rig);
        assert_eq!((&status["state"], &status["tampered"]), (&json!("block"), &line["detail"]["difference"]));
        assert_ne!(rig.resolve("a.example").0, 0);
        let up = rig.ask("SetState", json!({ "state": "down" }));
        assert!(up["parameters"]["reason"].as_str().unwrap().contains("start it again"), "{up}");
    };
    cut_off(&rig);
    kill9(rig.worker());
    cut_off(&rig);
    assert!(!echo(&client(&rig)));
    let rig = Rig::start_in(rig.end(), &filtered(&["a.example"]));
    assert_eq!((rig.resolve("a.example").0, &status(&rig)["state"]), (0, &json!("up")));
}

#[test]
fn a_full_disk_does_not_keep_a_card_open_to_an_operator_who_blocks() {
    if !terok_need::network_namespaces() {
        return;
    }
    let rig = Rig::start(&filtered(&["198.51.100.1:443/udp"]));
    serve(&rig);
    let socket = client(&rig);
    assert!(echo(&socket));
    // What stands where the temporary file goes is as good as no space.
    let obstacle = rig.root.path().join("state/c1").join(format!(".{}.new", layout::LIVE));
    std::fs::create_dir_all(obstacle.join("full")).unwrap();
    let told = rig.ask("SetState", json!({ "state": "block" }));
    assert_eq!(told["error"], "io.terok.Supervisor.Partial", "{told}");
    assert!(told["parameters"]["reason"].as_str().unwrap().contains("live.json"), "{told}");
    assert_eq!(status(&rig)["state"], "block");
    assert!(!echo(&socket) && !echo(&client(&rig)));
    std::fs::remove_dir_all(obstacle).unwrap();
    let up = rig.ask("SetState", json!({ "state": "up" }));
    assert!(up["error"].is_null(), "{up}");
    assert!(echo(&client(&rig)));
}

#[test]
fn a_change_is_noticed_while_no_worker_runs() {
    if !terok_need::network_namespaces() {
        return;
    }
    let rig = Rig::start(&filtered(&["a.example"]));
    // The wait before a worker's restart doubles each time.
    for _ in 0..6 {
        kill9(rig.worker());
    }
    rig.inside(|| sh("nft delete table inet terok"));
    until("the cut", || (cards(&rig) == 0).then_some(()));
    until("the next worker", || (!status(&rig)["tampered"].is_null()).then_some(()));
}

#[test]
fn a_change_is_noticed_during_a_large_one_of_our_own() {
    if !terok_need::network_namespaces() {
        return;
    }
    let block = |n: u32| -> &'static str { format!("100.{}.{}.1", 128 + n / 256, n % 256).leak() };
    let rules: Vec<&'static str> = (0..10_000).map(block).collect();
    let rig = Rig::start(&filtered(&rules));
    let control = rig.run_dir().join(layout::CONTROL);
    let allowing = std::thread::spawn(move || {
        let call = json!({ "method": "io.terok.Supervisor.Allow", "parameters": { "rules": ["192.0.2.1"] } });
        let mut stream = std::os::unix::net::UnixStream::connect(control).unwrap();
        std::io::Write::write_all(&mut stream, format!("{call}\0").as_bytes()).unwrap();
        rig::read_message(&mut std::io::BufReader::new(stream))
    });
    until("the rule on disk", || rig.state(layout::LIVE).contains("192.0.2.1").then_some(()));
    rig.inside(|| sh("nft insert rule inet terok out accept"));
    let changed = Instant::now();
    until("the cut", || (cards(&rig) == 0).then_some(()));
    eprintln!("cut off after {:?}", changed.elapsed());
    // Whichever came first.
    let answer = allowing.join().unwrap();
    assert!(answer["error"] == "io.terok.Supervisor.Refused" || answer["error"].is_null(), "{answer}");
    until("the worker to know", || rig.audit().into_iter().find(|line| line["action"] == "tampered"));
}

#[test]
fn what_a_container_without_a_card_does_to_its_own_table_is_recorded_once_and_harms_nobody() {
    if !terok_need::network_namespaces() {
        return;
    }
    let rig = Rig::start(&Wish::allow(&["a.example"]));
    rig.inside(|| sh("nft insert rule inet terok out accept"));
    let tampered = |rig: &Rig| rig.audit().into_iter().filter(|line| line["action"] == "tampered").count();
    until("the audit's line", || (tampered(&rig) > 0).then_some(()));
    rig.inside(|| sh("nft insert rule inet terok out accept"));
    let status = status(&rig);
    assert_eq!(status["state"], "up");
    assert!(status["tampered"].as_str().unwrap().contains("chain out"));
    rig.ask("Deny", json!({ "rules": ["192.0.2.1"] }));
    assert_eq!((rig.resolve("a.example").0, tampered(&rig)), (0, 1));
}

#[test]
fn the_containers_end_is_no_tampering() {
    if !terok_need::network_namespaces() {
        return;
    }
    let rig = Rig::start(&filtered(&["a.example"]));
    // What an engine does when it takes a network apart.
    rig.router.as_ref().unwrap().run(|| sh("ip link delete out0"));
    let root = rig.end();
    let log = std::fs::read_to_string(root.path().join("state/c1").join(layout::AUDIT)).unwrap();
    assert!(!log.contains("tampered"), "{log}");
    assert!(!root.path().join("run/c1").exists());
}

#[test]
fn a_lowered_shield_rises_in_the_kernel_when_everybody_is_dead() {
    if !terok_need::network_namespaces() {
        return;
    }
    let mut rig = Rig::start(&filtered(&["a.example"]));
    serve(&rig);
    let socket = client(&rig);
    assert!(!echo(&socket));
    let asked = Instant::now();
    let lowered = rig.ask("SetState", json!({ "state": "down", "seconds": 6 }));
    assert_eq!(lowered["parameters"]["applied"]["changed"], json!(["down"]), "{lowered}");
    until("the lowered shield", || echo(&socket).then_some(()));
    let worker = rig.worker();
    rig.parent.kill().unwrap();
    rig.parent.wait().unwrap();
    kill9(worker);
    assert!(echo(&socket) || asked.elapsed() > Duration::from_secs(5));
    until("the kernel's own end of it", || (!echo(&socket)).then_some(()));
    // And a connection that the proxy would have made finds nobody.
    let to: SocketAddr = format!("{SERVER}:443").parse().unwrap();
    assert!(rig.inside(move || TcpStream::connect_timeout(&to, Duration::from_secs(1))).is_err());
}

#[test]
fn a_card_that_is_attached_later_is_told_to_the_worker_and_the_log() {
    if !terok_need::network_namespaces() {
        return;
    }
    let rig = Rig::start(&filtered(&["a.example"]));
    let pid = rig.container.id();
    rig.router
        .as_ref()
        .unwrap()
        .run(move || sh(&format!("ip link add out1 type veth peer name eth1 netns {pid}")));
    let line = until("the log's line", || {
        rig.audit().into_iter().find(|line| line["action"] == "cards" && line["target"] == "eth0 eth1")
    });
    assert_eq!(line["kind"], "lifecycle");
    assert_eq!(status(&rig)["tampered"], Value::Null);
}
