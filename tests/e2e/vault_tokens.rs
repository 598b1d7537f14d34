//! A phantom token is good for one container, one provider and one start; an attacker's own key is good for nothing (A13, A28).

use serde_json::Value;
use terok_policy::layout;
use terok_tests::{Answer, Container, Mode, Net, Recipe, Service, both_modes, eventually, every_network};

/// With this token, at the base URL and at the service's own name.
#[track_caller]
fn both_ways(
    container: &Container,
    service: &Service,
    provider: &str,
    token: &str,
    path: &str,
) -> [Answer; 2] {
    let base = format!("http://vault.terok.internal/{provider}");
    [base, format!("https://{}", service.site.name)]
        .map(|way| container.curl(&format!("{way}{path} -H 'Authorization: Bearer {token}'")))
}

#[track_caller]
fn all_refused(answers: &[Answer], status: u16) {
    for answer in answers {
        assert_eq!(answer.status, status, "{answer:?}");
        let body: Value = serde_json::from_str(&answer.body).unwrap_or_default();
        assert!(body.is_object(), "a client can show it: {answer:?}");
    }
}

/// Refusals of requests to this provider, as the audit log has them.
fn refusals(container: &Container, status: u64) -> u64 {
    let lines = container.audit();
    let ours = lines.iter().filter(|line| line["kind"] == "http" && line["detail"]["status"] == status);
    ours.map(|line| line["count"].as_u64().unwrap_or(1)).sum()
}

every_network! {
    fn another_containers_token_is_refused_here(net: Net) {
        let service = Service::new(net.mode());
        let (a, b) = (service.recipe(net).idle().settled(), service.recipe(net).idle().settled());
        let (of_a, of_b) = (a.variable("LAB_TOKEN"), b.variable("LAB_TOKEN"));
        assert_ne!(of_a, of_b);
        assert!([&of_a, &of_b].iter().all(|token| token.starts_with("lab-") && token.len() == 60), "{of_a} {of_b}");
        for (container, own) in [(&a, &of_a), (&b, &of_b)] {
            let answers = both_ways(container, &service, &service.provider, own, "/v1/own");
            assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
        }
        all_refused(&both_ways(&b, &service, &service.provider, &of_a, "/v1/foreign"), 401);
        eventually("both refusals are in the audit log", || refusals(&b, 401) >= 2);
        a.podman(&["rm", "--force", "--time=0"]).succeeded();
        all_refused(&both_ways(&b, &service, &service.provider, &of_a, "/v1/dead"), 401);
        assert_eq!(service.requests("/v1/own").len(), 4);
        assert!(service.requests("/v1/foreign").is_empty() && service.requests("/v1/dead").is_empty());
    }
}

both_modes! {
    fn a_token_dies_with_its_start(mode: Mode) {
        let service = Service::new(mode);
        let container = service.sealed();
        let first = container.variable("LAB_TOKEN");
        container.podman(&["stop", "--time=0"]).succeeded();
        container.is_left_alone();
        container.podman(&["start"]).succeeded();
        let second = container.variable("LAB_TOKEN");
        assert_ne!(first, second);
        assert!(both_ways(&container, &service, &service.provider, &second, "/v1/new").iter().all(|answer| answer.status == 200));
        all_refused(&both_ways(&container, &service, &service.provider, &first, "/v1/old"), 401);
        assert!(service.requests("/v1/old").is_empty());
    }

    fn a_token_of_one_provider_is_refused_by_another(mode: Mode) {
        let (one, two) = (Service::new(mode), Service::second(mode));
        let both = one.recipe(Net::sealed(mode)).annotate("vault", &format!("{} {}", one.provider, two.provider)).idle();
        let (of_one, of_two) = (both.variable("LAB_TOKEN"), both.variable("OTHER_TOKEN"));
        assert!(both_ways(&both, &two, &two.provider, &of_two, "/v1/own").iter().all(|answer| answer.status == 200));
        all_refused(&both_ways(&both, &two, &two.provider, &of_one, "/v1/other"), 401);
        all_refused(&both_ways(&both, &one, &one.provider, &of_two, "/v1/other"), 401);

        let (a, b) = (one.sealed(), two.sealed());
        all_refused(&both_ways(&b, &two, &two.provider, &a.variable("LAB_TOKEN"), "/v1/other"), 401);
        // A provider that was not granted is not there at all.
        let own = b.variable("OTHER_TOKEN");
        let answer = b.curl(&format!("http://vault.terok.internal/{}/v1/other -H 'Authorization: Bearer {own}'", one.provider));
        assert!([401, 404].contains(&answer.status), "{answer:?}");
        let answer = b.curl(&format!("https://{}/v1/other -H 'Authorization: Bearer {own}'", one.site.name));
        assert_eq!(answer.status, 0, "its host is not even a name here: {answer:?}");
        assert!(one.requests("/v1/other").is_empty() && two.requests("/v1/other").is_empty());
    }

    /// The real key of the anthropic provider, a constant of a predecessor, ours with one character changed, nothing at all.
    fn no_constant_and_no_near_miss_is_accepted(mode: Mode) {
        let service = Service::new(mode);
        let container = service.sealed();
        let own = container.variable("LAB_TOKEN");
        let changed = |at: usize| {
            let mut octets = own.clone().into_bytes();
            octets[at] = if octets[at] == b'a' { b'b' } else { b'a' };
            String::from_utf8(octets).expect("ASCII")
        };
        let near = [changed(own.len() - 1), changed(30), own[..own.len() - 1].to_owned(), format!("{own}a"), own.to_uppercase()];
        for token in near.iter().map(String::as_str).chain(["terok", "phantom", "dummy", "test", "x", "Bearer", "null"]) {
            let answers = both_ways(&container, &service, &service.provider, token, "/v1/guess");
            assert_eq!(answers[0].status, 401, "{token}: {answers:?}");
            assert!([401, 403].contains(&answers[1].status), "{token}: {answers:?}");
        }
        for way in ["$LAB_BASE_URL", &format!("https://{}", service.site.name)] {
            assert_eq!(container.curl(&format!("{way}/v1/guess")).status, 401);
            let empty = container.curl(&format!("{way}/v1/guess -H 'Authorization: Bearer '"));
            assert!([401, 403].contains(&empty.status), "{empty:?}");
        }
        assert!(service.requests("/v1/guess").is_empty());
    }

    fn an_attackers_own_key_on_a_brokered_host_is_refused(mode: Mode) {
        let service = Service::new(mode);
        let container = service.sealed();
        let host = format!("https://{}", service.site.name);
        let own = "Authorization: Bearer $LAB_TOKEN";
        let theirs = [
            "-H 'Authorization: Bearer sk-attacker-REAL'",
            "-H 'Authorization: token sk-attacker-REAL'",
            "-H 'x-api-key: sk-attacker-REAL'",
            "-u attacker:sk-attacker-REAL",
            "-H 'Authorization: Negotiate YII='",
        ];
        for carrier in theirs {
            let answer = container.curl(&format!("{host}/v1/stolen {carrier} -d secret=1"));
            all_refused(&[answer], 403);
        }
        // Beside our own token it is refused just so: which one the service would take is not ours to guess.
        for carrier in ["-H 'x-api-key: sk-attacker-REAL'", "-H 'Authorization: Bearer sk-attacker-REAL'"] {
            for way in ["$LAB_BASE_URL", &host] {
                let answer = container.curl(&format!("{way}/v1/stolen -H \"{own}\" {carrier}"));
                assert!([400, 401, 403].contains(&answer.status), "{way} {carrier}: {answer:?}");
            }
        }
        for query in ["api_key=sk-attacker-REAL", "key=sk-attacker-REAL", "access_token=sk-attacker-REAL"] {
            let answer = container.curl(&format!("'{host}/v1/stolen?{query}'"));
            assert!([401, 403].contains(&answer.status), "{query}: {answer:?}");
        }
        eventually("the refusals are in the audit log", || refusals(&container, 403) >= theirs.len() as u64);
        let arrived = service.site.paths();
        assert!(arrived.iter().all(|path| !path.contains("stolen")), "{arrived:?}");
        let said = container.audit().iter().map(Value::to_string).collect::<String>();
        assert!(!said.contains("sk-attacker"), "a credential is in the audit log");
    }

    /// Another way to the host than the broker: plain HTTP, TLS of its own, ports that the rules opened.
    fn a_brokered_host_has_no_way_around_the_broker(mode: Mode) {
        let service = Service::new(mode);
        let name = &service.site.name;
        let allow = format!("{name}:80 {name}:443 {name}:8080 {name}:8443");
        let container = Recipe::sealed(mode, &allow).image("localhost/wl").annotate("vault", &service.provider).idle();
        let own = "Authorization: Bearer sk-attacker-REAL";
        let around = [format!("http://{name}"), format!("http://{name}:8080"), format!("--insecure https://{name}:8443")];
        let passed: Vec<_> = around.iter().filter(|way| container.curl(&format!("{way}/v1/around -H '{own}'")).status == 200).collect();
        assert!(passed.is_empty(), "{passed:?}");
        let answer = container.curl(&format!("--insecure https://{name}/v1/tls -H '{own}'"));
        assert_eq!(answer.status, 403, "{answer:?}");
        let issuer = container.sh(&format!("openssl s_client -connect {name}:443 -servername {name} </dev/null 2>/dev/null | openssl x509 -noout -issuer || true"));
        assert!(!issuer.stdout.contains("terok lab CA"), "TLS went through: {issuer:?}");
        assert!(service.site.seen().iter().all(|line| line["path"].is_null()), "{:?}", service.site.seen());
        // Without the vault the same rules lead there: they are no reason why nothing arrived.
        let plain = Recipe::sealed(mode, &allow).image("localhost/wl").idle();
        for way in &around {
            let ended = mode.podman(&["exec", &plain.name, "sh", "-c", &format!("curl -sS --max-time 30 -o /dev/null -w '%{{http_code}}' {way}/v1/plain -H '{own}'")]);
            assert_eq!(ended.stdout, "200", "{way}: {ended:?}");
        }
    }

    /// The folder in which another container has its tokens and its signer's socket, by any name, with and without a grant of its own.
    fn another_containers_folder_is_no_volume(mode: Mode) {
        let service = Service::new(mode);
        let (key, _) = crate::vault_clients::key(mode, "ed25519");
        let a = service.recipe(Net::sealed(mode)).annotate("ssh", &format!("{key}@github.com")).idle();
        let inside = mode.runtime(layout::BIRTH).join(&a.id).join(layout::INSIDE);
        assert!(inside.join("env").exists() && inside.join("ssh-agent.sock").exists(), "{inside:?}");
        for (source, target) in [("", "/mnt"), ("", "/run/terok"), ("/ssh-agent.sock", "/mnt"), ("/env", "/mnt")] {
            let volume = format!("--volume={}{source}:{target}", inside.display());
            for recipe in [Recipe::sealed(mode, "api.example.com").image("localhost/wl"), service.recipe(Net::sealed(mode))] {
                let (_gone, ended) = recipe.option(&volume).run(&["true"]);
                let said = ended.failed();
                assert!(said.contains("terok"), "{volume}: {said}");
            }
        }
        assert!(both_ways(&a, &service, &service.provider, &a.variable("LAB_TOKEN"), "/v1/own").iter().all(|answer| answer.status == 200));
    }

    fn without_a_grant_there_is_no_vault(mode: Mode) {
        let service = Service::new(mode);
        let a = service.sealed();
        let token = a.variable("LAB_TOKEN");
        let stranger = Recipe::sealed(mode, &service.site.name).image("localhost/wl").idle();
        let script = format!("ls /run/terok 2>&1; env | grep -i -e LAB_ -e SSH_AUTH; curl -sS --max-time 5 http://vault.terok.internal/{}/v1/x -H 'Authorization: Bearer {token}' 2>&1", service.provider);
        let said = stranger.podman(&["inspect", "--format={{.State.Status}}"]).succeeded();
        assert_eq!(said.trim(), "running");
        let ended = mode.podman(&["exec", &stranger.name, "sh", "-c", &script]);
        assert!(ended.stdout.contains("Could not resolve host: vault.terok.internal"), "{ended:?}");
        assert!(!ended.stdout.contains("LAB_TOKEN"), "{ended:?}");
        assert!(service.requests("/v1/x").is_empty());
    }
}
