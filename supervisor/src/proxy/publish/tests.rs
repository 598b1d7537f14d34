use super::super::relay::tests::local;
use super::super::tests::{Rig, assert_reset};
use super::*;
use crate::rig::PASSES;
use std::rc::Rc;
use terok_policy::live::Live;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Unconnected sockets, as the hook makes them.
fn sockets(count: usize, ipv6: bool) -> Vec<OwnedFd> {
    let make = |_| match ipv6 {
        true => TcpSocket::new_v6().unwrap(),
        false => TcpSocket::new_v4().unwrap(),
    };
    (0..count).map(make).map(|socket| socket.as_fd().try_clone_to_owned().unwrap()).collect()
}

/// A published port: where the host listens, and the program inside.
struct Port {
    rig: Rig,
    insides: Rc<Insides>,
    host: SocketAddr,
    program: TcpListener,
}

impl Port {
    async fn new(program: &str, count: usize, ipv6: bool) -> Self {
        let program = TcpListener::bind(program).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap();
        let to = program.local_addr().unwrap().port();
        let rig = Rig::new(&[], "");
        let insides = Rc::new(Insides::new(sockets(count, ipv6)).unwrap());
        let published = Publish { addr: host.ip(), port: host.port(), to };
        tokio::task::spawn_local(publish(rig.proxy.clone(), insides.clone(), listener, published));
        Port { rig, insides, host, program }
    }

    async fn connect(&self) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect(self.host).await.unwrap();
        let (server, _) = timeout(PASSES, self.program.accept()).await.unwrap().unwrap();
        (client, server)
    }

    async fn free(&self, count: usize) {
        until_free(&self.insides, count).await;
    }
}

async fn until_free(insides: &Insides, count: usize) {
    let start = Instant::now();
    while insides.free.borrow().len() != count {
        assert!(start.elapsed() < PASSES, "{}", insides.free.borrow().len());
        sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "current_thread")]
async fn bytes_go_both_ways_and_the_log_tells_from_whom() {
    local! {
        for (program, ipv6) in [("127.0.0.1:0", false), ("127.0.0.1:0", true), ("[::1]:0", true)] {
            let port = Port::new(program, 8, ipv6).await;
            // More than there are sockets: each is used again.
            for round in 0..20 {
                let (mut client, mut server) = port.connect().await;
                client.write_all(b"question").await.unwrap();
                let mut got = [0; 8];
                server.read_exact(&mut got).await.unwrap();
                assert_eq!(&got, b"question", "{program} {round}");
                server.write_all(b"a long answer").await.unwrap();
                drop(server);
                let mut got = Vec::new();
                client.read_to_end(&mut got).await.unwrap();
                assert_eq!(got, b"a long answer");
                drop(client);
                port.free(8).await;
            }
            let lines = port.rig.lines(40).await;
            let actions: Vec<_> = lines.iter().map(|line| line["action"].as_str().unwrap()).collect();
            assert_eq!((actions[0], actions[1], lines.len()), ("accept", "close", 40));
            let detail = &lines[1]["detail"];
            assert_eq!((&lines[1]["kind"], &lines[1]["target"]), (&"publish".into(), &port.host.to_string().into()));
            assert_eq!((&detail["bytes_in"], &detail["bytes_out"]), (&8.into(), &13.into()));
            assert!(detail["peer"].as_str().unwrap().starts_with("127.0.0.1:"));
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn what_was_sent_before_an_orderly_end_arrives_however_slowly_it_is_read() {
    local! {
        let port = Port::new("127.0.0.1:0", 1, false).await;
        let (mut client, mut server) = port.connect().await;
        const WHOLE: usize = 8 << 20;
        let sent = tokio::task::spawn_local(async move {
            client.write_all(&vec![7; WHOLE]).await.unwrap();
            client.shutdown().await.unwrap();
            client.read(&mut [0]).await.unwrap()
        });
        server.shutdown().await.unwrap();
        let (mut got, mut buffer) = (0, vec![0; 64 << 10]);
        loop {
            match server.read(&mut buffer).await.unwrap() {
                0 => break,
                length => got += length,
            }
            sleep(Duration::from_millis(1)).await;
        }
        assert_eq!((got, sent.await.unwrap()), (WHOLE, 0));
        port.free(1).await;
    }
}

#[tokio::test(flavor = "current_thread")]
async fn without_a_free_socket_connections_wait_in_the_backlog() {
    local! {
        // Of four that can do both, the fourth is of no use to a program that listens for IPv4.
        for (count, ipv6) in [(3, false), (4, true)] {
            let port = Port::new("127.0.0.1:0", count, ipv6).await;
            let mut served = Vec::new();
            for _ in 0..3 {
                served.push(port.connect().await);
            }
            let mut waiting = Vec::new();
            for n in 0..20 {
                let mut client = TcpStream::connect(port.host).await.unwrap();
                client.write_all(&[n]).await.unwrap();
                waiting.push(client);
            }
            assert!(timeout(Duration::from_millis(100), port.program.accept()).await.is_err(), "no socket");
            assert_eq!((port.insides.pending.get(), port.rig.context.flows.open()), (0, 3));
            for n in 0..20 {
                drop(served.remove(0));
                let accepted = timeout(PASSES, port.program.accept()).await;
                let (mut server, _) = accepted.unwrap().unwrap();
                assert_eq!(server.read_u8().await.unwrap(), n);
                served.push((waiting.remove(0), server));
            }
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_port_that_nobody_listens_on_inside_is_a_reset() {
    local! {
        for ipv6 in [false, true] {
            let Port { rig, insides, host, program } = Port::new("127.0.0.1:0", 4, ipv6).await;
            let port = program.local_addr().unwrap();
            drop(program);
            // Bound, so that nobody else listens there.
            let held = tokio::net::TcpSocket::new_v4().unwrap();
            held.set_reuseaddr(true).unwrap();
            held.bind(port).unwrap();
            assert_reset(&mut TcpStream::connect(host).await.unwrap()).await;
            let lines = rig.lines(1).await;
            assert_eq!((&lines[0]["action"], &lines[0]["reason"]), (&"refuse".into(), &"unreachable".into()));
            until_free(&insides, 4).await;
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn block_cuts_both_ends_and_lets_nobody_in_until_it_is_lifted() {
    local! {
        let port = Port::new("127.0.0.1:0", 2, true).await;
        let context = &port.rig.context;
        let (mut client, mut server) = port.connect().await;
        client.write_all(b"x").await.unwrap();
        server.read_u8().await.unwrap();
        context.set_live(Live { deny: vec!["any".parse().unwrap()], ..Live::default() });
        assert_eq!(context.recheck(), 0, "what goes out is not what comes in");
        context.set_live(Live { state: Some(Shield::Block), ..Live::default() });
        assert_eq!(context.recheck(), 1);
        assert_reset(&mut client).await;
        assert_reset(&mut server).await;
        assert_reset(&mut TcpStream::connect(port.host).await.unwrap()).await;
        let lines = port.rig.lines(3).await;
        assert_eq!((&lines[1]["action"], &lines[2]["reason"]), (&"cut".into(), &"blocked".into()));
        context.set_live(Live::default());
        port.free(2).await;
        port.connect().await;
    }
}

#[tokio::test(flavor = "current_thread")]
async fn sockets_that_a_worker_left_connected_serve_the_next_one() {
    local! {
        let program = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = program.local_addr().unwrap().port();
        let kept = sockets(4, true);
        let again = || kept.iter().map(|fd| fd.try_clone().unwrap()).collect::<Vec<_>>();
        let (first, last) = (Insides::new(again()).unwrap(), Cell::new(Family::V4));
        let (lease, stream) = reach(&first, &last, to).await.unwrap();
        let (mut server, _) = program.accept().await.unwrap();
        // A process that is killed runs none of this.
        std::mem::forget(lease);
        drop(stream);
        let next = Insides::new(again()).unwrap();
        assert_reset(&mut server).await;
        for _ in 0..3 {
            let (lease, _stream) = reach(&next, &last, to).await.unwrap();
            program.accept().await.unwrap();
            std::mem::forget(lease);
        }
    }
}
