//! The joint with the broker: which connections to a brokered host are its own, and that the others are no way past it (V3).

use super::*;
use terok_policy::policy::VaultGrant;
use terok_policy::profile::Catalog;
use terok_policy::provider;

/// Everything of `api.mistral.ai` is allowed, and it is brokered.
async fn rig() -> (TcpListener, Rig) {
    let (listener, settings) = upstream().await;
    let provider = provider::resolve(&Catalog::bundled(), "mistral").unwrap();
    let allow = Sourced { rule: "api.mistral.ai:1-65535".parse().unwrap(), source: Source::Annotation };
    let vault = vec![VaultGrant { provider, credential: "default".to_owned() }];
    let policy = Policy { allow: vec![allow], vault, ..Policy::default() };
    (listener, Rig::under(policy, Some(settings), ""))
}

#[tokio::test(flavor = "current_thread")]
async fn on_no_port_of_a_brokered_host_do_tls_or_http_pass_the_broker() {
    local! {
        let (outside, rig) = rig().await;
        let hello = client_hello(Some("api.mistral.ai"), 9999);
        let request = b"GET /v1 HTTP/1.1\r\nHost: api.mistral.ai\r\nAuthorization: Bearer own\r\n\r\n";
        for (port, bytes) in [(8080, &request[..]), (8443, &hello), (2083, &hello), (9000, b"\x00opaque")] {
            let mut client = rig.connect(name("api.mistral.ai"), port).await;
            // Servers of some protocols speak first, so there is a connection; nothing of the client goes into it.
            let (mut server, _) = asked_for(&outside).await;
            client.write_all(bytes).await.unwrap();
            assert_reset(&mut client).await;
            let mut got = Vec::new();
            let _ = timeout(PASSES, server.read_to_end(&mut got)).await.unwrap();
            assert!(got.is_empty(), "{port} {got:?}");
        }
        assert!(rig.lines(0).await.iter().any(|l| l["kind"] == "http" && l["detail"]["what"].as_str().unwrap().contains("brokered")));
        let mut client = rig.connect(name("api.mistral.ai"), 80).await;
        client.write_all(request).await.unwrap();
        assert_reset(&mut client).await;
        let mut client = rig.connect(name("api.mistral.ai"), 22).await;
        let (mut server, to) = asked_for(&outside).await;
        client.write_all(b"SSH-2.0-test\r\n").await.unwrap();
        let mut got = [0; 14];
        server.read_exact(&mut got).await.unwrap();
        assert_eq!((to.as_str(), &got), ("api.mistral.ai:22", b"SSH-2.0-test\r\n"));
    }
}
