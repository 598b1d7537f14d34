//! The joint with the broker: connections that it serves, and its own way out.

use super::*;
use crate::broker::{Broker, Ca};
use crate::vault::{Credential, Fetched};
use terok_policy::phantom;
use terok_policy::policy::VaultGrant;
use terok_policy::profile::Catalog;
use terok_policy::provider::{self, CredentialType};
use terok_policy::rule::{self, Ports, Proto, Rule};

const SECRET: &str = "sk-real-0123456789abcdefghijklmnop";

/// A provider on the host itself: below the floor, as the operator wrote it.
fn definition(upstream: &str) -> String {
    format!(
        "title = \"Test API\"\nupstream = \"{upstream}\"\n[token]\nvariables = [\"TEST_KEY\"]\nprefix = \"sk-\"\nlength = 48\n\
         carriers = [\"bearer\"]\n[credential.key]\nheader = \"authorization\"\nprefix = \"Bearer \"\n"
    )
}

impl Rig {
    /// One whose container was granted what is at `upstream`, and the token it has.
    fn granted(mut policy: Policy, upstream: &str, hosts: &str) -> (Self, String) {
        let mut catalog = Catalog::bundled();
        catalog.providers.insert("test".to_owned(), definition(upstream));
        let provider = provider::resolve(&catalog, "test").unwrap();
        let token = phantom::token(&provider.token, &[5; phantom::MOST]);
        policy.vault.push(VaultGrant { provider, credential: "default".to_owned() });
        // What a grant brings, beside the hosts that the policy names already.
        let target = rule::Target::Name(terok_policy::name::VAULT.parse().unwrap());
        let rule =
            Rule { target, ports: Ports::new(vec![(80, 80), (443, 443)]), proto: Proto::Tcp, direct: false };
        policy.allow.push(Sourced { rule, source: Source::Provider("test".to_owned()) });
        let vault = Vault::answered_by(|_| {
            let (kind, user, secret) = (CredentialType::Key, String::new(), SECRET.to_owned().into());
            Ok(Fetched::Credential(Credential { kind, user, secret, revision: 1, until: None }))
        });
        let mut rig = Self::with(policy, None, hosts, Some(Issued { tokens: vec![token.clone()] }), vault);
        let state = Dir::base(rig.dir.path()).unwrap();
        let inside = state.make_private("inside").unwrap();
        let hosts = ["api.example".parse().unwrap()];
        let ca = Ca::open(&state, &inside, "0123456789abcdef", &hosts, b"").unwrap();
        let broker = Broker::new(rig.context.clone(), ca, b"").unwrap();
        Rc::get_mut(&mut rig.proxy).unwrap().broker = Some(broker);
        (rig, token)
    }

    /// What a connection to `port` of the broker's virtual address gets for `request`.
    async fn ask(&self, port: u16, request: &str) -> io::Result<String> {
        let address = SocketAddr::new(virt::addresses(virt::VAULT).0.into(), port);
        let Ok(target) = self.proxy.target(address) else { panic!("{address} is nobody's") };
        let mut client = self.connect(target.host, target.port).await;
        client.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        timeout(PASSES, client.read_to_string(&mut answer)).await.unwrap()?;
        Ok(answer)
    }
}

fn get(token: &str) -> String {
    format!(
        "GET /test/v1 HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n",
        terok_policy::name::VAULT
    )
}

#[tokio::test(flavor = "current_thread")]
async fn the_brokers_virtual_address_leads_to_it_and_what_went_over_it_is_recorded() {
    local! {
        let (listener, port) = listener().await;
        let (rig, token) = Rig::granted(Policy::default(), &format!("http://host:{port}"), "");
        tokio::task::spawn_local(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap().into());
            }
            assert!(head.starts_with("GET /v1 HTTP/1.1\r\n") && head.contains(SECRET), "{head}");
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine").await.unwrap();
        });
        let answer = rig.ask(80, &get(&token)).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("fine"), "{answer}");
        let lines = rig.lines(4).await;
        let of = |kind: &str| lines.iter().filter(|line| line["kind"] == kind).collect::<Vec<_>>();
        let [allow, close] = of("connect")[..] else { panic!("{lines:?}") };
        assert_eq!((&allow["action"], &allow["detail"]["proto"]), (&"allow".into(), &"broker".into()));
        assert_eq!((&close["action"], &close["target"]), (&"close".into(), &"vault.terok.internal:80".into()));
        assert_eq!(close["detail"]["bytes_down"], answer.len());
        assert_eq!((of("http").len(), &of("http")[0]["detail"]["status"]), (1, &200.into()), "{lines:?}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn the_clear_port_of_a_brokered_host_and_other_ports_of_the_broker_are_reset() {
    local! {
        let anything = Sourced { rule: "any".parse().unwrap(), source: Source::Annotation };
        let policy = Policy { allow: vec![anything], ..Policy::default() };
        let (rig, token) = Rig::granted(policy, "https://api.example", "192.0.2.1 api.example\n");
        assert_reset(&mut rig.connect(Host::Name("api.example".parse().unwrap()), 80).await).await;
        let lines = rig.lines(1).await;
        assert_eq!((&lines[0]["action"], &lines[0]["reason"]), (&"refuse".into(), &"bad-protocol".into()), "{lines:?}");
        assert!(rig.ask(22, &get(&token)).await.is_err());
        assert_eq!(rig.lines(2).await[1]["target"], "vault.terok.internal:22");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_brokered_host_is_spoken_to_by_the_broker_alone() {
    local! {
        let rule = Sourced { rule: "api.example".parse().unwrap(), source: Source::Annotation };
        let policy = Policy { allow: vec![rule], ..Policy::default() };
        let (rig, _) = Rig::granted(policy, "https://api.example", "127.0.0.1 api.example\n");
        let mut client = rig.connect(Host::Name("api.example".parse().unwrap()), 443).await;
        client.write_all(&client_hello(Some("api.example"), 1 << 14)).await.unwrap();
        // A server's handshake without anybody having been dialled: the broker's own certificate.
        let mut record = [0; 1];
        timeout(PASSES, client.read_exact(&mut record)).await.unwrap().unwrap();
        assert!(matches!(record, [0x16 | 0x15]), "{record:?}");
        let lines = rig.lines(1).await;
        assert_eq!((&lines[0]["action"], &lines[0]["detail"]["proto"]), (&"allow".into(), &"broker".into()), "{lines:?}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_name_that_leads_below_the_floor_is_no_upstream() {
    local! {
        let (rig, token) = Rig::granted(Policy::default(), "https://api.example", "10.0.0.1 api.example\n");
        let answer = rig.ask(80, &get(&token)).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("upstream"), "{answer}");
        assert!(!answer.contains(SECRET));
    }
}
