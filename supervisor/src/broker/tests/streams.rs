//! Bodies and connections that last: streamed both ways, ended when either side goes, cut when the right to them is gone.

use super::*;
use terok_policy::policy::Shield;

/// Reads until `end` has come.
async fn until(client: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.contains(end) {
        let length = timeout(PASSES, client.read(&mut buffer)).await.expect(&text).unwrap();
        assert_ne!(length, 0, "{text}");
        text += &String::from_utf8_lossy(&buffer[..length]);
    }
    text
}

/// An upstream that sends one event and then what it is told to; dropped senders end it. Also tells when its client has gone.
async fn events(rig: &Rig) -> Rc<Cell<bool>> {
    let gone = Rc::new(Cell::new(false));
    let told = gone.clone();
    rig.upstream(move |mut stream| {
        let gone = told.clone();
        async move {
            read_request(&mut stream).await.unwrap();
            let head =
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(b"9\r\ndata: 1\n\n\r\n").await.unwrap();
            let _ = stream.read_u8().await;
            gone.set(true);
        }
    })
    .await;
    gone
}

async fn gone(flag: &Cell<bool>) {
    let start = Instant::now();
    while !flag.get() {
        assert!(start.elapsed() < PASSES);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "current_thread")]
async fn an_event_comes_at_once_and_a_client_that_leaves_ends_the_upstreams_work() {
    local! {
        let rig = Rig::new();
        let flag = events(&rig).await;
        let mut client = rig.base().await;
        client.write_all(rig.get("/plain/v1", "").as_bytes()).await.unwrap();
        until(&mut client, "data: 1\n\n").await;
        assert!(!flag.get());
        drop(client);
        gone(&flag).await;
        let lines = rig.lines(1).await;
        assert_eq!(lines[0]["detail"]["error"], "the client has gone", "{lines:?}");
        assert_eq!(rig.broker.open.get(), 0);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_client_that_leaves_before_the_answer_ends_the_request_too() {
    local! {
        let rig = Rig::new();
        let (flag, arrived) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
        let (left, came) = (flag.clone(), arrived.clone());
        rig.upstream(move |mut stream| {
            let (left, came) = (left.clone(), came.clone());
            async move {
                read_request(&mut stream).await.unwrap();
                came.set(true);
                let _ = stream.read_u8().await;
                left.set(true);
            }
        })
        .await;
        let mut client = rig.base().await;
        client.write_all(rig.get("/plain/v1", "").as_bytes()).await.unwrap();
        gone(&arrived).await;
        drop(client);
        gone(&flag).await;
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_stream_is_cut_by_block_by_a_deny_and_by_a_revocation() {
    local! {
        let denied = Live { deny: vec![Rule::parse_deny("192.0.2.7").unwrap()], ..Live::default() };
        let blocked = Live { state: Some(Shield::Block), ..Live::default() };
        let revoked = Live { revoked: vec!["plain".to_owned()], ..Live::default() };
        let other = Live { revoked: vec!["named".to_owned()], ..Live::default() };
        for (live, cuts) in [(denied, 1), (blocked, 1), (revoked, 1), (other, 0)] {
            let rig = Rig::new();
            let flag = events(&rig).await;
            let mut client = rig.base().await;
            client.write_all(rig.get("/plain/v1", "").as_bytes()).await.unwrap();
            until(&mut client, "data: 1\n\n").await;
            rig.context.set_live(live);
            assert_eq!(rig.context.recheck(), cuts);
            if cuts == 0 {
                continue;
            }
            gone(&flag).await;
            let mut rest = Vec::new();
            let _ = timeout(PASSES, client.read_to_end(&mut rest)).await.unwrap();
            assert_eq!(rig.lines(1).await[0]["action"], "cut");
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn locked_in_the_middle_of_a_stream_it_goes_on_and_the_next_request_does_not() {
    local! {
        let rig = Rig::new();
        let flag = events(&rig).await;
        let mut client = rig.base().await;
        client.write_all(rig.get("/plain/v1", "").as_bytes()).await.unwrap();
        until(&mut client, "data: 1\n\n").await;
        *rig.vault.borrow_mut() = Err(Trouble::Locked("locked".to_owned()));
        assert!(rig.ask(&rig.get("/plain/v1", "")).await.starts_with("HTTP/1.1 503"));
        assert!(!flag.get());
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_websocket_passes_both_ways_and_a_secret_in_it_is_covered() {
    local! {
        let rig = Rig::new();
        rig.upstream(|mut stream| async move {
            let request = read_request(&mut stream).await.unwrap();
            assert!(request.contains(SECRET) && !request.to_ascii_lowercase().contains("permessage"), "{request}");
            let answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\nfirst";
            stream.write_all(answer.as_bytes()).await.unwrap();
            let mut got = [0; 9];
            stream.read_exact(&mut got).await.unwrap();
            assert_eq!(&got, b"earlyping");
            stream.write_all(format!("pong {SECRET} end").as_bytes()).await.unwrap();
        })
        .await;
        let token = &rig.tokens[0];
        let head = format!(
            "GET /plain/v1/ws HTTP/1.1\r\nHost: vault.terok.internal\r\nAuthorization: Bearer {token}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Key: k\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\nearly"
        );
        let mut client = rig.base().await;
        client.write_all(head.as_bytes()).await.unwrap();
        let head = until(&mut client, "first").await.to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 101") && head.contains("sec-websocket-accept: x") && head.contains("upgrade: websocket"), "{head}");
        client.write_all(b"ping").await.unwrap();
        let text = until(&mut client, "end").await;
        assert_eq!(text, format!("pong {} end", "*".repeat(SECRET.len())));
        drop(client);
        let lines = rig.lines(1).await;
        assert_eq!((&lines[0]["detail"]["status"], &lines[0]["detail"]["bytes_up"]), (&101.into(), &9.into()), "{lines:?}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn an_upstream_that_does_not_change_the_protocol_answers_as_usual() {
    local! {
        let rig = Rig::new();
        rig.replies(ok("no")).await;
        let head = rig.get("/plain/v1/ws", "Upgrade: websocket\r\n").replace("Connection: close", "Connection: Upgrade");
        let mut client = rig.base().await;
        client.write_all(head.as_bytes()).await.unwrap();
        assert!(until(&mut client, "no").await.starts_with("HTTP/1.1 200"));
        // And the connection stays good.
        client.write_all(rig.get("/plain/v1", "").as_bytes()).await.unwrap();
        assert!(until(&mut client, "no").await.starts_with("HTTP/1.1 200"));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_client_that_waits_for_100_is_told_and_a_refused_one_is_not() {
    local! {
        let rig = Rig::new();
        rig.replies(ok("fine")).await;
        let head = rig.get("/plain/v1", "Content-Length: 5\r\nExpect: 100-continue\r\n").replacen("GET", "POST", 1);
        let mut client = rig.base().await;
        client.write_all(head.as_bytes()).await.unwrap();
        assert!(until(&mut client, "\r\n\r\n").await.starts_with("HTTP/1.1 100"));
        client.write_all(b"hello").await.unwrap();
        assert!(until(&mut client, "fine").await.starts_with("HTTP/1.1 200"));
        let mut client = rig.base().await;
        client.write_all(head.replace("Bearer sk-", "Bearer xx-").as_bytes()).await.unwrap();
        assert!(until(&mut client, "\r\n\r\n").await.starts_with("HTTP/1.1 401"));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn large_bodies_pass_octet_for_octet_and_wait_for_who_is_slow() {
    local! {
        const SIZE: usize = 48 << 20;
        let rig = Rig::new();
        let (taken, word) = (Rc::new(Cell::new(0usize)), Rc::new(tokio::sync::Notify::new()));
        let (counted, told) = (taken.clone(), word.clone());
        rig.upstream(move |mut stream| {
            let (taken, told) = (counted.clone(), told.clone());
            async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                // Nothing is taken until then: what is on its way must be bounded.
                told.notified().await;
                stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n").as_bytes()).await.unwrap();
                let mut buffer = vec![0; 64 << 10];
                while taken.get() < SIZE {
                    let length = stream.read(&mut buffer).await.unwrap();
                    taken.set(taken.get() + length);
                    stream.write_all(&buffer[..length]).await.unwrap();
                }
            }
        })
        .await;
        let head = rig.get("/plain/v1", &format!("Content-Length: {SIZE}\r\n")).replacen("GET", "POST", 1);
        let client = rig.base().await;
        let (mut from, mut to) = client.into_split();
        let sent = Rc::new(Cell::new(0usize));
        let sending = sent.clone();
        tokio::task::spawn_local(async move {
            to.write_all(head.as_bytes()).await.unwrap();
            let piece: Vec<u8> = (0..65_536u32).map(|n| (n % 251) as u8).collect();
            while sending.get() < SIZE {
                to.write_all(&piece).await.unwrap();
                sending.set(sending.get() + piece.len());
            }
            std::future::pending::<()>().await;
        });
        tokio::time::sleep(Duration::from_millis(250)).await;
        // Socket buffers of both connections, and the broker's own.
        assert!(sent.get() < SIZE / 2, "{}", sent.get());
        word.notify_one();
        let mut answer = Vec::new();
        timeout(10 * PASSES, from.read_to_end(&mut answer)).await.unwrap().unwrap();
        let body = answer.split_off(answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4);
        assert_eq!(body.len(), SIZE);
        assert!(body.iter().enumerate().all(|(n, b)| *b == ((n % 65_536) % 251) as u8));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_websocket_may_follow_other_requests_and_what_comes_behind_it_is_never_taken_for_one() {
    local! {
        let rig = Rig::new();
        rig.upstream(|mut stream| async move {
            while let Some(request) = read_request(&mut stream).await {
                if !request.to_ascii_lowercase().contains("upgrade: websocket") {
                    // Long enough for everything behind it to have come.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    stream.write_all(ok("slow").as_bytes()).await.unwrap();
                    continue;
                }
                let answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nopen";
                stream.write_all(answer.as_bytes()).await.unwrap();
                let mut got = vec![0; 5];
                stream.read_exact(&mut got).await.unwrap();
                stream.write_all(&[b"got ", &got[..], b" end"].concat()).await.unwrap();
                return;
            }
        })
        .await;
        let plain = rig.get("/plain/v1", "").replace("Connection: close\r\n", "");
        let socket = rig.get("/plain/ws", "Upgrade: websocket\r\n").replace("close", "Upgrade");
        let mut client = rig.base().await;
        client.write_all(plain.as_bytes()).await.unwrap();
        until(&mut client, "slow").await;
        // Another that is not answered yet, the one for WebSocket, and its first octets.
        client.write_all(format!("{plain}{socket}GET /").as_bytes()).await.unwrap();
        let text = until(&mut client, "end").await;
        let statuses: Vec<&str> = text.split("HTTP/1.1 ").skip(1).map(|part| &part[..3]).collect();
        assert_eq!(statuses, ["200", "101"], "{text}");
        assert!(text.ends_with("opengot GET / end"), "{text}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_client_that_leaves_while_a_change_of_the_protocol_is_awaited_ends_the_request() {
    local! {
        let rig = Rig::new();
        let (flag, arrived) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
        let (left, came) = (flag.clone(), arrived.clone());
        rig.upstream(move |mut stream| {
            let (left, came) = (left.clone(), came.clone());
            async move {
                read_request(&mut stream).await.unwrap();
                came.set(true);
                let _ = stream.read_u8().await;
                left.set(true);
            }
        })
        .await;
        let mut client = rig.base().await;
        let socket = rig.get("/plain/ws", "Upgrade: websocket\r\n").replace("close", "Upgrade");
        client.write_all(socket.as_bytes()).await.unwrap();
        gone(&arrived).await;
        drop(client);
        gone(&flag).await;
        super::ends::until(|| rig.broker.open.get() == 0).await;
    }
}
