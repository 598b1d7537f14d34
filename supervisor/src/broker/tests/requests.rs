//! What a request must carry, and what goes on of it.

use super::*;
use terok_policy::policy::Shield;

#[tokio::test(flavor = "current_thread")]
async fn a_request_goes_out_with_the_real_key_and_every_octet_of_its_path() {
    local! {
        let rig = Rig::new();
        let seen = rig.replies(ok("fine")).await;
        let answer = rig.ask(&rig.get("/plain/v1/a%2Fb/%23%26%2B?q=%23%26%2B&q=2&e=//;", "X-Twice: 1\r\nX-Twice: 2\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("fine"), "{answer}");
        let request = seen.borrow()[0].clone();
        assert_eq!(request.lines().next(), Some("GET /base/v1/a%2Fb/%23%26%2B?q=%23%26%2B&q=2&e=//; HTTP/1.1"), "{request}");
        assert!(request.contains(SECRET) && !request.contains("terok"), "{request}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn locked_is_a_503_with_the_command_and_unlocked_the_next_one_passes() {
    local! {
        let rig = Rig::new();
        let seen = rig.replies(ok("fine")).await;
        let unlocked = rig.vault.replace(Err(Trouble::Locked("the vault is locked; run: terok vault unlock".to_owned())));
        let answer = rig.ask(&rig.get("/plain/v1", "")).await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.contains(r#""message":"terok: plain: the vault is locked; run: terok vault unlock""#), "{answer}");
        *rig.vault.borrow_mut() = unlocked;
        assert!(rig.ask(&rig.get("/plain/v1", "")).await.starts_with("HTTP/1.1 200"));
        assert_eq!(seen.borrow().len(), 1);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn anything_but_our_token_is_a_401_at_the_base_url_and_nobody_is_asked() {
    local! {
        let rig = Rig::new();
        let seen = rig.replies(ok("fine")).await;
        let other = rig.tokens[1].clone();
        for head in [
            String::new(),
            "Authorization: Bearer sk-evil\r\n".to_owned(),
            format!("Authorization: Bearer {other}\r\n"),
            format!("X-Test-Key: {0}\r\nAuthorization: Bearer {0}\r\n", rig.tokens[0]),
            "Authorization: Bearer sk-terok\r\n".to_owned(),
        ] {
            let request = format!("GET /plain/v1 HTTP/1.1\r\nHost: vault.terok.internal\r\nConnection: close\r\n{head}\r\n");
            let answer = rig.ask(&request).await;
            assert!(answer.starts_with("HTTP/1.1 401") && answer.contains("\r\nwww-authenticate: "), "{head}: {answer}");
        }
        assert!(seen.borrow().is_empty() && rig.errands.borrow().is_empty());
        let lines = rig.lines(5).await;
        assert!(lines.iter().all(|l| l["action"] == "refuse" && l["reason"] == "credential"), "{lines:?}");
        assert!(!rig.log().contains("sk-evil"));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn unknown_providers_forbidden_paths_and_overrides_are_told_apart() {
    local! {
        let rig = Rig::new();
        let seen = rig.replies(ok("fine")).await;
        for (path, head, status) in [
            ("/nobody/v1", "", "404"),
            ("/", "", "404"),
            ("/plain/keys/1", "", "403"),
            ("/plain/v1/%2e%2e/keys/1", "", "403"),
            ("/plain/v1", "X-HTTP-Method-Override: DELETE\r\n", "403"),
            ("/plain/v1", "X_HTTP_Method_Override: DELETE\r\n", "403"),
            ("/plain/v1", "X-Original-URL: /base/keys/1\r\n", "403"),
            ("/plain/v1", "X-Rewrite-Url: /base/keys/1\r\n", "403"),
            ("/plain/v1?a=1;%5fmethod=DELETE", "", "403"),
            ("/plain/v1?access_token=evil", "", "401"),
        ] {
            let answer = rig.ask(&rig.get(path, head)).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {answer}");
        }
        assert!(seen.borrow().is_empty());
    }
}

#[tokio::test(flavor = "current_thread")]
async fn fields_of_the_hop_credentials_and_cookies_stay_behind_and_all_others_go_in_order() {
    local! {
        let rig = Rig::new();
        let seen = rig.replies(ok("fine")).await;
        let head = "X-One: 1\r\nCookie: session=evil\r\nTE: trailers\r\nKeep-Alive: 5\r\nX-Two: a\r\nX-two: b\r\n\
            Accept-Encoding: br, gzip;q=0.5, zstd\r\nX-Forwarded-For: 192.0.2.1\r\nExpect: 100-continue\r\n";
        rig.ask(&rig.get("/plain/v1/x", head)).await;
        let request = seen.borrow()[0].clone();
        let expected = [
            "GET /base/v1/x HTTP/1.1",
            "host: 192.0.2.7:8080",
            "connection: te",
            "X-One: 1",
            "TE: trailers",
            "X-Two: a",
            "X-two: b",
            "X-Forwarded-For: 192.0.2.1",
            "accept-encoding: gzip;q=0.5",
            &format!("authorization: Bearer {SECRET}"),
        ];
        let lower = |text: &str| text.to_ascii_lowercase();
        let lines: Vec<String> = request.lines().filter(|l| !l.is_empty()).map(lower).collect();
        assert_eq!(lines, expected.map(lower), "{request}");
        assert!(request.contains("\r\nX-One: 1\r\n"), "{request}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_deny_rule_stands_above_a_grant() {
    local! {
        let rig = Rig::under(denying("192.0.2.7"));
        let seen = rig.replies(ok("fine")).await;
        let answer = rig.ask(&rig.get("/plain/v1", "")).await;
        assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("192.0.2.7"), "{answer}");
        assert!(seen.borrow().is_empty() && rig.errands.borrow().is_empty());
        let lines = rig.lines(1).await;
        assert_eq!(lines[0]["reason"], "denied");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_revoked_credential_is_a_401_at_once_and_back_with_the_word() {
    local! {
        let rig = Rig::new();
        rig.replies(ok("fine")).await;
        rig.context.set_live(Live { revoked: vec!["plain".to_owned()], ..Live::default() });
        assert!(rig.ask(&rig.get("/plain/v1", "")).await.starts_with("HTTP/1.1 401"));
        rig.context.set_live(Live { state: Some(Shield::Block), ..Live::default() });
        assert!(rig.ask(&rig.get("/plain/v1", "")).await.starts_with("HTTP/1.1 403"));
        rig.context.set_live(Live::default());
        assert!(rig.ask(&rig.get("/plain/v1", "")).await.starts_with("HTTP/1.1 200"));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn each_request_is_one_line_without_query_or_secret() {
    local! {
        let rig = Rig::new();
        rig.replies(ok("fine")).await;
        let token = rig.tokens[0].clone();
        let request = format!(
            "POST /plain/v1/x?q=private HTTP/1.1\r\nHost: vault.terok.internal\r\nX-Test-Key: {token}\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
        );
        rig.ask(&request).await;
        let lines = rig.lines(1).await;
        let detail = &lines[0]["detail"];
        assert_eq!(lines[0]["action"], "forward");
        assert_eq!(lines[0]["target"], "192.0.2.7:8080");
        for (key, value) in [("provider", "plain"), ("method", "POST"), ("path", "/plain/v1/x")] {
            assert_eq!(detail[key], value);
        }
        assert_eq!((&detail["status"], &detail["bytes_up"], &detail["bytes_down"]), (&200.into(), &5.into(), &4.into()));
        let log = rig.log();
        assert!(!log.contains("private") && !log.contains(SECRET) && !log.contains(&token), "{log}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_full_disk_refuses_before_anything_is_forwarded() {
    local! {
        let rig = Rig::new();
        let seen = rig.replies(ok("fine")).await;
        let real = rig.context.audit.fill();
        assert!(rig.ask(&rig.get("/plain/v1", "")).await.starts_with("HTTP/1.1 200"));
        // Its line could not be written: from now on each must be recordable first.
        let answer = rig.ask(&rig.get("/plain/v1", "")).await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("audit"), "{answer}");
        rig.context.audit.free(real);
        assert!(rig.ask(&rig.get("/plain/v1", "")).await.starts_with("HTTP/1.1 200"));
        assert_eq!(seen.borrow().len(), 2);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn more_requests_at_once_than_there_is_room_for_are_a_429() {
    local! {
        let rig = Rig::new();
        rig.replies(ok("fine")).await;
        rig.broker.open.set(AT_ONCE);
        let answer = rig.ask(&rig.get("/plain/v1", "")).await;
        assert!(answer.starts_with("HTTP/1.1 429") && answer.contains("\r\nretry-after: 1"), "{answer}");
        rig.broker.open.set(0);
        assert!(rig.ask(&rig.get("/plain/v1", "")).await.starts_with("HTTP/1.1 200"));
        assert_eq!(rig.broker.open.get(), 0);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn what_everybody_may_fetch_goes_out_without_a_credential_where_none_was_sent() {
    local! {
        let rig = Rig::new();
        let seen = rig.replies(ok("fine")).await;
        *rig.vault.borrow_mut() = Err(Trouble::Locked("the vault is locked".to_owned()));
        let request = |method: &str, path: &str, head: &str| {
            format!("{method} {path} HTTP/1.1\r\nHost: vault.terok.internal\r\nConnection: close\r\n{head}\r\n")
        };
        // The vault is not even asked.
        let answer = rig.ask(&request("GET", "/plain/open/a", "Cookie: session=evil\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(rig.errands.borrow().is_empty());
        let sent = seen.borrow()[0].to_ascii_lowercase();
        assert!(!sent.contains("authorization") && !sent.contains("cookie"), "{sent}");
        for (method, path, head) in [
            ("POST", "/plain/open/a", "Content-Length: 0\r\n"),
            ("GET", "/plain/v1", ""),
            ("GET", "/plain/open/a", "Authorization: Bearer sk-evil\r\n"),
            ("GET", "/plain/open/a", "Authorization: Bearer\r\n"),
            ("GET", "/plain/open/a?private_token=evil", ""),
        ] {
            let answer = rig.ask(&request(method, path, head)).await;
            assert!(answer.starts_with("HTTP/1.1 401"), "{method} {path} {head}: {answer}");
        }
        rig.context.set_live(Live { revoked: vec!["plain".to_owned()], ..Live::default() });
        assert!(rig.ask(&request("GET", "/plain/open/a", "")).await.starts_with("HTTP/1.1 401"));
        rig.context.set_live(Live { state: Some(Shield::Block), ..Live::default() });
        assert!(!rig.ask(&request("GET", "/plain/open/a", "")).await.starts_with("HTTP/1.1 200"));
        assert_eq!(seen.borrow().len(), 1);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn trailers_reach_a_client_that_says_so_of_this_hop_alone() {
    local! {
        let rig = Rig::new();
        let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n4\r\nbody\r\n0\r\nX-Sum: 7\r\n\r\n";
        let seen = rig.replies(answer).await;
        let request = rig.get("/plain/v1", "TE: trailers\r\n");
        for connection in ["Connection: close", "Connection: TE, close"] {
            let answer = rig.ask(&request.replace("Connection: close", connection)).await;
            assert!(answer.to_ascii_lowercase().ends_with("\r\n0\r\nx-sum: 7\r\n\r\n"), "{connection}: {answer}");
            assert!(seen.borrow().last().unwrap().to_ascii_lowercase().contains("te: trailers\r\n"));
        }
        let answer = rig.ask(&rig.get("/plain/v1", "TE: gzip\r\n").replace("Connection: close", "Connection: TE, close")).await;
        assert!(!answer.to_ascii_lowercase().contains("x-sum: 7"), "{answer}");
        assert!(!seen.borrow().last().unwrap().to_ascii_lowercase().contains("te: gzip"));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_target_that_is_no_uri_is_refused_in_words() {
    local! {
        let rig = Rig::new();
        let answer = rig.ask(&rig.get("/plain/v1?q=\"x\"", "")).await;
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("percent-encoded"), "{answer}");
        let long = format!("/plain/{}", "a".repeat(65_400));
        let answer = rig.ask(&format!("GET {long} HTTP/1.1\r\nHost: vault.terok.internal\r\nConnection: close\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
        let lines = rig.lines(1).await;
        assert_eq!((&lines[0]["action"], &lines[0]["detail"]["path"]), (&"refuse".into(), &"/plain/v1".into()), "{lines:?}");
    }
}
