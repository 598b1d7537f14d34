//! What comes back: every octet of it, but never the credential.

use super::*;
use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::Write as _;

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap().1
}

#[tokio::test(flavor = "current_thread")]
async fn a_secret_that_comes_back_is_covered_in_fields_and_in_bodies() {
    use base64::Engine as _;
    local! {
        let rig = Rig::new();
        let coded = base64::engine::general_purpose::STANDARD.encode(format!("user:{SECRET}"));
        let text = format!("you sent {SECRET}; {coded} too");
        let answer = format!(
            "HTTP/1.1 400 Bad Request\r\nX-Echo: Bearer {SECRET}\r\nSet-Cookie: session=real\r\nContent-Length: {}\r\n\r\n{text}",
            text.len()
        );
        rig.replies(answer).await;
        let answer = rig.ask(&rig.get("/plain/v1", "")).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
        assert!(answer.contains(&format!("Bearer {}\r\n", "*".repeat(SECRET.len()))), "{answer}");
        assert!(!answer.contains(SECRET) && !answer.to_ascii_lowercase().contains("set-cookie"), "{answer}");
        assert_eq!(body(&answer).len(), text.len());
        assert!(body(&answer).starts_with("you sent ****") && !answer.contains(&coded[10..30]), "{answer}");
        let lines = rig.lines(1).await;
        assert_eq!(lines[0]["detail"]["redacted"], 3, "{lines:?}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_secret_cut_into_chunks_is_covered() {
    local! {
        let rig = Rig::new();
        let mut chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n".to_owned();
        for piece in format!("a {SECRET} b").as_bytes().chunks(3) {
            chunked += &format!("{:x}\r\n{}\r\n", piece.len(), std::str::from_utf8(piece).unwrap());
        }
        chunked += &format!("0\r\nX-Sum: {SECRET}\r\n\r\n");
        rig.replies(chunked).await;
        let answer = rig.ask(&rig.get("/plain/v1", "TE: trailers\r\n")).await;
        let plain: String = body(&answer).split("\r\n").enumerate().filter(|(n, _)| n % 2 == 1).map(|(_, l)| l).collect();
        assert!(plain.contains("a ***") && plain.contains(" b"), "{answer}");
        assert!(!plain.contains("0123") && !answer.contains(SECRET), "{answer}");
        assert!(answer.to_ascii_lowercase().contains(&format!("x-sum: {}", "*".repeat(SECRET.len()))), "{answer}");
    }
}

fn gzip(text: &str) -> Vec<u8> {
    let mut coder = GzEncoder::new(Vec::new(), Compression::default());
    coder.write_all(text.as_bytes()).unwrap();
    coder.finish().unwrap()
}

async fn raw(rig: &Rig, request: String) -> Vec<u8> {
    let mut client = rig.base().await;
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // What is cut off may end in a reset.
    let _ = timeout(PASSES, client.read_to_end(&mut answer)).await.unwrap();
    answer
}

#[tokio::test(flavor = "current_thread")]
async fn a_compressed_answer_passes_as_it_is_and_ends_where_the_secret_would_be() {
    local! {
        for (text, passes) in [("a harmless text".repeat(99), true), (format!("you sent {SECRET}"), false)] {
            let rig = Rig::new();
            let coded = gzip(&text);
            let head = format!("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n", coded.len());
            rig.replies([head.as_bytes(), &coded].concat()).await;
            let answer = raw(&rig, rig.get("/plain/v1", "Accept-Encoding: gzip\r\n")).await;
            assert_eq!(answer.ends_with(&coded), passes, "{text}");
            let lines = rig.lines(1).await;
            assert_eq!(lines[0]["action"], if passes { "forward" } else { "cut" }, "{lines:?}");
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn an_answer_in_a_coding_that_nobody_can_read_is_a_502() {
    local! {
        for coding in ["br", "zstd", "gzip, gzip", "compress"] {
            let rig = Rig::new();
            rig.replies(format!("HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nContent-Length: 4\r\n\r\nabcd")).await;
            let answer = rig.ask(&rig.get("/plain/v1", "")).await;
            assert!(answer.starts_with("HTTP/1.1 502") && answer.contains(coding.split(',').next().unwrap()), "{answer}");
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_redirect_is_relayed_and_never_followed() {
    local! {
        for to in ["http://127.0.0.1/", "https://evil.example/x", "//169.254.169.254/", "/other"] {
            let rig = Rig::new();
            let seen = rig.replies(format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nETag: \"1\"\r\nContent-Length: 0\r\n\r\n")).await;
            let answer = rig.ask(&rig.get("/plain/v1", "")).await.to_ascii_lowercase();
            assert!(answer.starts_with("http/1.1 302") && answer.contains(&format!("location: {to}\r\n")), "{answer}");
            assert!(answer.contains("etag: \"1\""), "{answer}");
            assert_eq!((seen.borrow().len(), rig.dialled().len()), (1, 1));
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn an_oauth_token_that_is_refused_is_renewed_once_and_the_request_sent_again() {
    local! {
        let rig = Rig::new();
        *rig.vault.borrow_mut() = Ok((CredentialType::OAuth, 1, SECRET.to_owned()));
        let seen = Rc::new(RefCell::new(Vec::new()));
        let told = seen.clone();
        rig.upstream(move |mut stream| {
            let seen = told.clone();
            async move {
                while let Some(request) = read_request(&mut stream).await {
                    let good = request.contains("Bearer renewed-2");
                    let status = if good { "200 OK" } else { "401 Unauthorized" };
                    seen.borrow_mut().push(request);
                    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nok");
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        })
        .await;
        let post = |body: &str| {
            let head = format!("Content-Length: {}\r\n", body.len());
            rig.get("/plain/v1", &head).replacen("GET", "POST", 1) + body
        };
        let answer = rig.ask(&post("hello")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(seen.borrow().len(), 2);
        assert!(seen.borrow().iter().all(|request| request.ends_with("hello")), "{seen:?}");
        assert!(matches!(rig.errands.borrow()[1], Errand::Credential { grant: 0, refused: Some(1) }));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn what_cannot_be_sent_again_gets_the_refusal_and_the_next_request_the_new_token() {
    local! {
        let rig = Rig::new();
        *rig.vault.borrow_mut() = Ok((CredentialType::OAuth, 1, SECRET.to_owned()));
        let seen = rig.replies("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n").await;
        let chunked = rig.get("/plain/v1", "Transfer-Encoding: chunked\r\n").replacen("GET", "POST", 1) + "5\r\nhello\r\n0\r\n\r\n";
        assert!(rig.ask(&chunked).await.starts_with("HTTP/1.1 401"));
        assert_eq!((seen.borrow().len(), rig.errands.borrow().len()), (1, 2));
        rig.ask(&rig.get("/plain/v1", "")).await;
        assert!(seen.borrow()[1].contains("Bearer renewed-2"), "{seen:?}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn an_upstream_that_cannot_be_reached_is_a_502_that_says_why() {
    local! {
        let rig = Rig::new();
        let answer = rig.ask(&rig.get("/plain/v1", "")).await;
        assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("nobody"), "{answer}");
        rig.upstream(|stream| async move { drop(stream) }).await;
        assert!(rig.ask(&rig.get("/plain/v1", "")).await.starts_with("HTTP/1.1 502"));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn an_answer_in_a_transfer_coding_that_nobody_asked_for_is_a_502() {
    local! {
        let coded = gzip(&format!("you sent {SECRET}"));
        for coding in ["gzip, chunked", "gzip\r\nTransfer-Encoding: chunked"] {
            let rig = Rig::new();
            let head = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: {coding}\r\n\r\n{:x}\r\n", coded.len());
            rig.replies([head.as_bytes(), &coded, b"\r\n0\r\n\r\n"].concat()).await;
            let answer = raw(&rig, rig.get("/plain/v1", "")).await;
            assert!(answer.starts_with(b"HTTP/1.1 502"), "{coding}: {}", String::from_utf8_lossy(&answer));
        }
    }
}
