//! What two implementations could read in two ways reaches no upstream (A16).

use super::*;

/// Sends `bytes` and returns the answer, whatever way the connection ends.
async fn sent(rig: &Rig, bytes: &[u8]) -> String {
    let mut client = rig.base().await;
    client.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(PASSES, client.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "current_thread")]
async fn ambiguous_requests_are_refused_and_nobody_is_asked() {
    local! {
        let rig = Rig::new();
        let seen = rig.replies(ok("fine")).await;
        let auth = format!("Authorization: Bearer {}\r\n", rig.tokens[0]);
        let host = "Host: vault.terok.internal\r\n";
        let inner = "GET /plain/v1/inner HTTP/1.1\r\nHost: vault.terok.internal\r\n\r\n";
        for (what, request) in [
            ("both framings", format!("POST /plain/v1 HTTP/1.1\r\n{host}{auth}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}")),
            ("two lengths", format!("POST /plain/v1 HTTP/1.1\r\n{host}{auth}Content-Length: 0\r\nContent-Length: {}\r\n\r\n{inner}", inner.len())),
            ("a list of lengths", format!("POST /plain/v1 HTTP/1.1\r\n{host}{auth}Content-Length: 5, 5\r\n\r\nhello")),
            ("a signed length", format!("POST /plain/v1 HTTP/1.1\r\n{host}{auth}Content-Length: +5\r\n\r\nhello")),
            ("another coding", format!("POST /plain/v1 HTTP/1.1\r\n{host}{auth}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n")),
            ("a folded field", format!("GET /plain/v1 HTTP/1.1\r\n{host}{auth}X-A: 1\r\n 2\r\n\r\n")),
            ("a space before the colon", format!("GET /plain/v1 HTTP/1.1\r\n{host}{auth}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n")),
            ("two hosts", format!("GET /plain/v1 HTTP/1.1\r\n{host}{host}{auth}\r\n")),
            ("another host", format!("GET /plain/v1 HTTP/1.1\r\nHost: evil.example\r\n{auth}\r\n")),
            ("no host", format!("GET /plain/v1 HTTP/1.1\r\n{auth}\r\n")),
            ("another host in the target", format!("GET http://evil.example/plain/v1 HTTP/1.1\r\n{host}{auth}\r\n")),
            ("connect", format!("CONNECT vault.terok.internal:80 HTTP/1.1\r\n{host}{auth}\r\n")),
            ("bare line feeds", format!("GET /plain/v1 HTTP/1.1\n{host}{auth}\n")),
            ("a nul", format!("GET /plain/v1 HTTP/1.1\r\n{host}{auth}X-A: a\0b\r\n\r\n")),
            ("a bare return", format!("GET /plain/v1 HTTP/1.1\r\n{host}{auth}X-A: a\rX-B: b\r\n\r\n")),
            ("http/2 in the clear", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned()),
            ("framing in a trailer", format!("POST /plain/v1 HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n")),
            ("a connection option that hides the host", format!("GET /plain/v1 HTTP/1.1\r\n{host}{auth}Connection: host\r\n\r\n")),
        ] {
            let answer = sent(&rig, request.as_bytes()).await;
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{what}: {answer}");
            assert!(seen.borrow().is_empty(), "{what}: {:?}", seen.borrow());
        }
        let lines = rig.lines(16).await;
        assert!(lines.iter().all(|line| line["action"] == "refuse"), "{lines:?}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_body_that_looks_like_a_request_stays_a_body() {
    local! {
        let rig = Rig::new();
        let seen = rig.replies(ok("fine")).await;
        let inner = "GET /plain/keys HTTP/1.1\r\nHost: vault.terok.internal\r\n\r\n";
        let request = rig.get("/plain/v1", &format!("Content-Length: {}\r\n", inner.len())).replacen("GET", "POST", 1) + inner;
        assert!(rig.ask(&request).await.starts_with("HTTP/1.1 200"));
        let chunked = rig.get("/plain/v1", "Transfer-Encoding: chunked\r\n").replacen("GET", "POST", 1)
            + &format!("{:x};ext=1\r\n{inner}\r\n0\r\n\r\n", inner.len());
        assert!(rig.ask(&chunked).await.starts_with("HTTP/1.1 200"));
        assert_eq!(seen.borrow().len(), 2);
        assert!(seen.borrow()[0].ends_with(inner));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn an_absolute_target_for_the_broker_goes_on_as_a_path() {
    local! {
        let rig = Rig::new();
        let seen = rig.replies(ok("fine")).await;
        let request = rig.get("http://vault.terok.internal/plain/v1?a=b", "");
        assert!(rig.ask(&request).await.starts_with("HTTP/1.1 200"));
        assert!(seen.borrow()[0].starts_with("GET /base/v1?a=b HTTP/1.1\r\n"), "{seen:?}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn pipelined_requests_are_answered_in_order_and_each_is_judged() {
    local! {
        let rig = Rig::new();
        let seen = rig.replies(ok("fine")).await;
        let token = &rig.tokens[0];
        let one = |path: &str, key: &str| format!("GET {path} HTTP/1.1\r\nHost: vault.terok.internal\r\nAuthorization: Bearer {key}\r\n\r\n");
        let all = one("/plain/v1/1", token) + &one("/plain/v1/2", "sk-evil") + &one("/plain/v1/3", token);
        let mut client = rig.base().await;
        client.write_all(all.as_bytes()).await.unwrap();
        let (mut answer, mut buffer) = (String::new(), [0; 4096]);
        while answer.matches("HTTP/1.1 ").count() < 3 || !answer.ends_with("fine") {
            let length = timeout(PASSES, client.read(&mut buffer)).await.unwrap().unwrap();
            assert_ne!(length, 0, "{answer}");
            answer += std::str::from_utf8(&buffer[..length]).unwrap();
        }
        let statuses: Vec<&str> = answer.split("HTTP/1.1 ").skip(1).map(|part| &part[..3]).collect();
        assert_eq!(statuses, ["200", "401", "200"]);
        let paths: Vec<String> = seen.borrow().iter().map(|r| r.split(' ').nth(1).unwrap().to_owned()).collect();
        assert_eq!(paths, ["/base/v1/1", "/base/v1/3"]);
    }
}
