//! The real supervisor with connections that wait, a proxy of the host's network, and published ports: under its own
//! confinement, from the container's namespace.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod rig;

use rig::{Rig, Wish, kill9, until};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use terok_policy::layout;

const SECONDS: Duration = Duration::from_secs(60);

/// A proxy at which every name says its own; the names asked for are told.
fn upstream() -> (u16, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (told, asked) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let first = lines.next().unwrap().unwrap();
            while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
            let name = first.split(' ').nth(1).unwrap().to_owned();
            write!(stream, "HTTP/1.1 200 OK\r\n\r\n{name}").unwrap();
            if told.send(name).is_err() {
                return;
            }
        }
    });
    (port, asked)
}

/// A subscriber, once it is told of what happens.
fn listener(rig: &Rig) -> UnixStream {
    let mut stream = UnixStream::connect(rig.run_dir().join(layout::CONTROL)).unwrap();
    stream.write_all(b"{\"method\":\"io.terok.Supervisor.Subscribe\",\"more\":true}\0").unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    until("a subscriber that is told", || {
        rig.resolve("nothing.terok.internal");
        stream.read(&mut [0]).ok()
    });
    stream
}

/// What a connection of the container's to `to` reads until it ends, and how long that takes.
fn inside_reads(rig: &Rig, to: (Ipv4Addr, u16)) -> mpsc::Receiver<(Result<String, ErrorKind>, Duration)> {
    let (told, told_of) = mpsc::channel();
    rig.inside(move || {
        let start = Instant::now();
        let stream = TcpStream::connect(to);
        std::thread::spawn(move || {
            let mut text = String::new();
            let read = stream.and_then(|mut stream| stream.read_to_string(&mut text));
            let _ = told.send((read.map(|_| text).map_err(|e| e.kind()), start.elapsed()));
        });
    });
    told_of
}

fn waiting(rig: &Rig) -> Vec<Value> {
    rig.ask("Waiting", json!({}))["parameters"]["waiting"].as_array().unwrap().clone()
}

#[test]
fn an_unlisted_name_waits_for_a_word_over_the_control_socket() {
    if !terok_need::network_namespaces() {
        return;
    }
    let (port, asked) = upstream();
    let rig = Rig::start(&Wish { hold: 600, upstream: Some(port), ..Wish::default() });
    assert_eq!(rig.resolve("new.example").0, 3, "nobody listens");
    let _listener = listener(&rig);
    let (code, addresses) = rig.resolve("new.example");
    assert_eq!((code, addresses.len()), (0, 1));
    let connection = inside_reads(&rig, (addresses[0], 25));
    let found = until("a question", || waiting(&rig).pop());
    assert_eq!((&found["target"], &found["rule"]), (&json!("new.example:25"), &json!("new.example:25")));
    assert_eq!(rig.ask("Status", json!({}))["parameters"]["status"]["waiting"], json!([found]));
    assert!(asked.try_recv().is_err(), "dialled");
    assert!(found["id"].as_u64().unwrap() > 100, "a number of this worker's own: {found}");
    let unknown = rig.ask("Verdict", json!({ "id": 99, "allow": true, "scope": "once" }));
    assert_eq!(unknown["error"], "io.terok.Supervisor.Refused");
    assert!(unknown["parameters"]["reason"].as_str().unwrap().contains("no connection waits under 99"));
    let word = json!({ "id": found["id"], "allow": true, "scope": "once" });
    let reply = rig.ask("Verdict", word);
    assert_eq!(reply["parameters"]["rule"], "new.example:25", "{reply}");
    assert_eq!(asked.recv_timeout(SECONDS).unwrap(), "new.example:25");
    let (read, _) = connection.recv_timeout(SECONDS).unwrap();
    assert_eq!(read.unwrap(), "new.example:25");

    let connection = inside_reads(&rig, (Ipv4Addr::new(203, 0, 113, 7), 2222));
    let found = until("a question", || waiting(&rig).pop());
    assert_eq!(found["rule"], "203.0.113.7:2222", "an address waits as well");
    rig.ask("Verdict", json!({ "id": found["id"], "allow": false, "scope": "always" }));
    assert!(connection.recv_timeout(SECONDS).unwrap().0.is_err());
    let live = rig.state(layout::LIVE);
    assert!(live.contains("203.0.113.7:2222"), "{live}");
}

#[test]
fn a_published_port_reaches_the_container_and_outlives_its_worker() {
    if !terok_need::network_namespaces() {
        return;
    }
    let rig = Rig::start(&Wish { publish: vec![7000, 7001], ..Wish::default() });
    let serve = |address: &'static str| {
        rig.inside(move || {
            let listener = TcpListener::bind(address).unwrap();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = stream.unwrap();
                    let mut text = String::new();
                    // The worker's death is a reset.
                    if stream.read_to_string(&mut text).is_ok() {
                        write!(stream, "{address} {text}").unwrap();
                    }
                }
            });
        });
    };
    serve("127.0.0.1:7000");
    serve("[::1]:7001");
    let ask = |port: u16| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(SECONDS)).unwrap();
        stream.write_all(b"hello").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    let both = || [ask(rig.ports[0]), ask(rig.ports[1])];
    let wanted = ["127.0.0.1:7000 hello", "[::1]:7001 hello"];
    for _ in 0..10 {
        assert_eq!(both(), wanted);
    }
    // One is open when the worker dies, and its socket is another's afterwards.
    let _open = TcpStream::connect(("127.0.0.1", rig.ports[0])).unwrap();
    until("it is accepted", || rig.audit().iter().filter(|l| l["action"] == "accept").nth(20).map(drop));
    kill9(rig.worker());
    for _ in 0..10 {
        assert_eq!(both(), wanted);
    }
    let audit = rig.audit();
    let close = audit.iter().find(|line| line["kind"] == "publish" && line["action"] == "close").unwrap();
    assert_eq!((&close["detail"]["bytes_in"], &close["detail"]["to"]), (&json!(5), &json!(7000)), "{close}");
    rig.ask("SetState", json!({ "state": "block" }));
    let mut refused = TcpStream::connect(("127.0.0.1", rig.ports[0])).unwrap();
    assert_eq!(refused.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}
