//! How things end that do not end by themselves: refused requests whose client still sends, connections nobody uses, clients that say or take nothing.

use super::strict::Strict;
use super::*;
use crate::proxy::http::Requests;
use tokio::io::{AsyncRead, AsyncWrite, duplex};

const HOUR: Duration = Duration::from_secs(3600);

/// Time goes by, for timers alone.
pub(super) async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

impl Rig {
    /// `client` is a connection of the container to the base URL.
    fn serve(&self, client: impl AsyncRead + AsyncWrite + Unpin + 'static) {
        let target = Target { host: Host::Name("vault.terok.internal".parse().unwrap()), port: 80 };
        let Some(Meets::Broker(entrance)) = self.broker.meets(&target) else { panic!("nobody's") };
        let (broker, outward) = (self.broker.clone(), self.outward.clone());
        tokio::task::spawn_local(async move { broker.serve(outward, client, &target, entrance).await });
    }
}

fn refused(rig: &Rig, length: usize) -> String {
    let head = rig.get("/plain/v1", &format!("Content-Length: {length}\r\n")).replacen("GET", "POST", 1);
    head.replace("Bearer sk-", "Bearer xx-").replace("Connection: close\r\n", "")
}

#[tokio::test(flavor = "current_thread")]
async fn a_refused_request_with_a_small_body_leaves_its_connection_good() {
    local! {
        let rig = Rig::new();
        rig.replies(ok("fine")).await;
        let mut client = rig.base().await;
        client.write_all(refused(&rig, 40_000).as_bytes()).await.unwrap();
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(5)).await;
            client.write_all(&[b'x'; 10_000]).await.unwrap();
        }
        client.write_all(rig.get("/plain/v1", "").as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        let statuses: Vec<&str> = answer.split("HTTP/1.1 ").skip(1).map(|part| &part[..3]).collect();
        assert_eq!(statuses, ["401", "200"], "{answer}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_refused_request_with_a_large_body_is_answered_before_its_connection_ends() {
    local! {
        let rig = Rig::new();
        let mut client = rig.base().await;
        client.write_all(refused(&rig, 1 << 30).as_bytes()).await.unwrap();
        // More than the broker reads of it before it answers; a reset would come back to who still sends.
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            client.write_all(&[b'x'; 50_000]).await.unwrap();
        }
        let mut answer = String::new();
        timeout(PASSES, client.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 401") && answer.ends_with("}}"), "{answer}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_refused_request_whose_client_sends_nothing_is_answered_all_the_same() {
    local! {
        let rig = Rig::new();
        let mut client = rig.base().await;
        client.write_all(refused(&rig, 5).as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(PASSES, client.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 401") && answer.ends_with("}}"), "{answer}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn an_upstream_that_cannot_be_reached_leaves_the_connection_good_too() {
    local! {
        let rig = Rig::new();
        let request = rig.get("/plain/v1", "Content-Length: 9\r\n").replacen("GET", "POST", 1);
        let mut client = rig.base().await;
        for _ in 0..2 {
            client.write_all(request.replace("Connection: close\r\n", "").as_bytes()).await.unwrap();
            let mut buffer = vec![0; 4096];
            tokio::time::sleep(Duration::from_millis(5)).await;
            client.write_all(b"some body").await.unwrap();
            let mut text = String::new();
            while !text.ends_with("}}") {
                let length = timeout(PASSES, client.read(&mut buffer)).await.unwrap().unwrap();
                assert_ne!(length, 0, "{text}");
                text += std::str::from_utf8(&buffer[..length]).unwrap();
            }
            assert!(text.starts_with("HTTP/1.1 502"), "{text}");
        }
    }
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn a_head_has_ten_seconds_and_a_connection_without_requests_a_minute() {
    local! {
        let rig = Rig::new();
        for (sent, seconds) in [("", 10), ("GET /plain/v1 HTT", 10), (refused(&rig, 0).as_str(), 60)] {
            let (mut client, served) = duplex(1 << 16);
            rig.serve(served);
            client.write_all(sent.as_bytes()).await.unwrap();
            let began = tokio::time::Instant::now();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            assert_eq!(began.elapsed().as_secs(), seconds, "{sent}");
            assert_eq!(answer.is_empty(), seconds == 10);
        }
    }
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn a_client_that_takes_nothing_for_two_minutes_is_gone() {
    let (mut client, served) = duplex(64);
    let requests = Requests::new("vault.terok.internal".parse().unwrap(), 80);
    let mut strict = Strict::new(served, requests, Rc::default());
    let began = tokio::time::Instant::now();
    // Slow is not gone.
    let slow = async {
        tokio::time::sleep(Duration::from_secs(100)).await;
        client.read_exact(&mut [0; 64]).await.unwrap();
    };
    let (failed, ()) = tokio::join!(strict.write_all(&[b'x'; 1000]), slow);
    assert_eq!(failed.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    assert_eq!(began.elapsed().as_secs(), 220);
}

#[tokio::test(flavor = "current_thread")]
async fn an_answer_may_take_as_long_as_it_takes() {
    local! {
        let rig = Rig::new();
        let more = Rc::new(tokio::sync::Notify::new());
        let told = more.clone();
        rig.upstream(move |mut stream| {
            let told = told.clone();
            async move {
                read_request(&mut stream).await.unwrap();
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n1234").await.unwrap();
                told.notified().await;
                stream.write_all(b"5678").await.unwrap();
            }
        })
        .await;
        let mut client = rig.base().await;
        client.write_all(rig.get("/plain/v1", "").as_bytes()).await.unwrap();
        let mut answer = [0; 4096];
        let mut length = 0;
        while !answer[..length].ends_with(b"1234") {
            length += client.read(&mut answer[length..]).await.unwrap();
        }
        pass(HOUR).await;
        more.notify_one();
        let mut rest = String::new();
        timeout(PASSES, client.read_to_string(&mut rest)).await.unwrap().unwrap();
        assert_eq!(rest, "5678");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn an_upstream_connection_that_nobody_uses_ends() {
    local! {
        let rig = Rig::new();
        let ended = rig.answers("fine").await;
        for _ in 0..3 {
            assert!(rig.ask(&rig.get("/plain/v1", "")).await.starts_with("HTTP/1.1 200"));
        }
        // One was enough for all.
        assert_eq!((rig.dialled().len(), ended.get()), (1, 0));
        pass(Duration::from_secs(91)).await;
        until(|| ended.get() != 0).await;
        assert!(rig.ask(&rig.get("/plain/v1", "")).await.starts_with("HTTP/1.1 200"));
        assert_eq!(rig.dialled().len(), 2);
    }
}

/// An upstream that answers at once and then counts what still comes, and tells when its client has gone.
async fn hasty(rig: &Rig) -> (Rc<Cell<usize>>, Rc<Cell<bool>>) {
    let (came, gone) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
    let told = (came.clone(), gone.clone());
    rig.upstream(move |mut stream| {
        let (came, gone) = told.clone();
        async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(ok("soon").as_bytes()).await.unwrap();
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                came.set(came.get() + length);
            }
            gone.set(true);
        }
    })
    .await;
    (came, gone)
}

/// A client that has its answer and has sent 5 octets of its body, of 10.
async fn answered(rig: &Rig, came: &Cell<usize>) -> TcpStream {
    let mut client = rig.base().await;
    let head = rig.get("/plain/v1", "Content-Length: 10\r\n").replacen("GET", "POST", 1);
    client.write_all(head.replace("Connection: close\r\n", "").as_bytes()).await.unwrap();
    client.write_all(b"fi").await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"soon") {
        answer.push(timeout(PASSES, client.read_u8()).await.unwrap().unwrap());
    }
    client.write_all(b"rst").await.unwrap();
    until(|| came.get() == 5).await;
    client
}

/// Waits for it.
pub(super) async fn until(holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PASSES);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_body_may_take_as_long_as_it_takes_when_its_answer_is_there_already() {
    local! {
        let rig = Rig::new();
        let (came, _) = hasty(&rig).await;
        let mut client = answered(&rig, &came).await;
        pass(HOUR).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        client.write_all(b"after").await.unwrap();
        until(|| came.get() == 10).await;
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_body_whose_answer_is_there_already_is_cut_with_the_right_to_it() {
    local! {
        let rig = Rig::new();
        let (came, gone) = hasty(&rig).await;
        let mut client = answered(&rig, &came).await;
        rig.context.set_live(Live { revoked: vec!["plain".to_owned()], ..Live::default() });
        assert_eq!(rig.context.recheck(), 1);
        until(|| gone.get()).await;
        let _ = client.write_all(b"after").await;
        assert_eq!(came.get(), 5);
    }
}
