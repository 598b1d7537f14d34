//! A login that many containers share is renewed once, before its end or when the service says so, and its new tokens are never lost.

use std::collections::BTreeMap;
use std::sync::Barrier;
use terok_tests::{Answer, Container, Mode, Net, Service, Vault, both_modes, eventually, seen, site};

/// Containers at once, each of which asks five times at once.
const CROWD: usize = 24;

/// A service with a login instead of a key; the account by which the lab's service knows it.
fn login(mode: Mode, access: &str, seconds: i64) -> (Service, String) {
    let service = Service::defined(mode, "LAB", "", "");
    let account = format!("a{}", site().number);
    service.vault.add_login(&service.provider, &account, &access.replace('@', &account), seconds);
    (service, account)
}

/// Renewals the service was asked for, and how many of them it refused.
fn renewals(account: &str) -> (usize, usize) {
    let lines: Vec<_> =
        seen().into_iter().filter(|line| line["proto"] == "oauth" && line["account"] == account).collect();
    (lines.len(), lines.iter().filter(|line| line["ok"] != true).count())
}

#[track_caller]
fn ask(container: &Container) -> Answer {
    container.curl("$LAB_BASE_URL/oauth/api -H \"Authorization: Bearer $LAB_TOKEN\"")
}

both_modes! {
    /// The token is over: all ask at once, in containers of their own.
    fn concurrent_renewals_of_one_login_are_one(mode: Mode) {
        let (service, account) = login(mode, "at-REAL-@-over", -60);
        let recipe = service.recipe(Net::sealed(mode)).image("localhost/bb");
        let containers: Vec<Container> = (0..CROWD).map(|_| recipe.idle()).collect();
        let together = Barrier::new(CROWD);
        let script = "for n in 1 2 3 4 5; do wget -q -O /tmp/$n --header \"Authorization: Bearer $LAB_TOKEN\" \"$LAB_BASE_URL/oauth/api\" & done; wait; cat /tmp/1 /tmp/2 /tmp/3 /tmp/4 /tmp/5";
        let answers: Vec<String> = std::thread::scope(|scope| {
            let threads: Vec<_> = containers.iter().map(|container| {
                let together = &together;
                scope.spawn(move || { together.wait(); container.sh(script).stdout })
            }).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or_default()).collect()
        });
        let mut counts = BTreeMap::new();
        for text in answers {
            *counts.entry(text.matches("\"ok\": true").count()).or_insert(0) += 1;
        }
        assert_eq!(renewals(&account), (1, 0), "by containers whose requests were answered: {counts:?}");
        assert_eq!(counts, BTreeMap::from([(5, CROWD)]), "containers by how many of their five requests were answered");
        assert!(!seen().iter().any(|line| line.to_string().contains(&format!("at-REAL-{account}-over"))), "the old token was sent");
    }

    fn a_login_is_renewed_before_its_end_and_what_it_became_is_kept(mode: Mode) {
        let (service, account) = login(mode, "at-REAL-@-0", 6);
        let container = service.sealed();
        eventually("it is renewed", || {
            let answer = ask(&container);
            assert_eq!(answer.status, 200, "{answer:?}");
            renewals(&account) == (1, 0)
        });
        // The next container gets what was stored.
        assert_eq!(ask(&service.sealed()).status, 200);
        assert_eq!(renewals(&account), (1, 0));
        let tokens: Vec<String> = service.requests("/oauth/api").iter().flat_map(|request| terok_tests::headers(request, "authorization")).collect();
        assert_eq!(tokens.last(), Some(&format!("Bearer at-REAL-{account}-1")));
    }

    fn a_login_that_has_time_left_is_not_renewed(mode: Mode) {
        let (service, account) = login(mode, "at-REAL-@-0", 7200);
        assert_eq!(ask(&service.sealed()).status, 200);
        assert_eq!(renewals(&account), (0, 0));
    }

    /// The service knows better than the clock: one renewal, and the request is sent once more.
    fn a_401_of_the_service_renews_once(mode: Mode) {
        let (service, account) = login(mode, "at-REAL-@-stale", 7200);
        let container = service.sealed();
        let answer = container.curl("$LAB_BASE_URL/oauth/api -H \"Authorization: Bearer $LAB_TOKEN\" -d small=body");
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(renewals(&account), (1, 0));
        assert_eq!(service.requests("/oauth/api").len(), 2);
        assert_eq!(ask(&container).status, 200);
        assert_eq!(renewals(&account), (1, 0));
    }

    /// Told in the answer, in the audit log and by `terok vault status`; the service is not asked again and again.
    fn a_renewal_that_fails_is_seen_and_not_hammered(mode: Mode) {
        let (service, account) = login(mode, "at-REAL-@-over", -60);
        let path = format!("/run/home/tester/broken-{account}.json");
        std::fs::write(&path, format!(r#"{{"access":"at-REAL-{account}-over","refresh":"rt-REAL-{account}-gone","end":1}}"#)).expect("the home is writable");
        let vault = Vault::open(mode);
        vault.says(&["add", &service.provider, "--oauth", &path, "--replace"], "").succeeded();
        let container = service.sealed();
        let since = std::time::Instant::now();
        for _ in 0..5 {
            let answer = ask(&container);
            assert!([502, 503].contains(&answer.status), "{answer:?}");
            assert!(answer.body.contains("terok vault add") && answer.body.contains(&service.provider), "{answer:?}");
        }
        // One that failed is not tried again for five seconds.
        let (asked, refused) = renewals(&account);
        let most = 1 + since.elapsed().as_secs() / 5;
        assert!(asked == refused && (1..=most).contains(&(asked as u64)), "{asked} in {:?}", since.elapsed());
        assert!(vault.says(&["status"], "").stdout.contains(&service.provider));
        eventually("the failure is in the audit log", || container.audit().iter().any(|line| line.to_string().contains("was not renewed")));
        let log: String = container.audit().iter().map(ToString::to_string).collect();
        assert!(!log.contains("rt-REAL") && !log.contains("at-REAL"), "{log}");
        // Logging in again repairs it at once.
        vault.add_login(&service.provider, &account, &format!("at-REAL-{account}-0"), 7200);
        assert_eq!(ask(&container).status, 200);
    }
}
