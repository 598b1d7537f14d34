//! Annotations, `KEY=VALUE` a line, a digit standing for a key of the table: what parses is written back to the same policy, and every error is one clean line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use terok_policy::annotation::{KEYS, parse, render};
use terok_policy::live::Live;
use terok_policy::grants::Grants;
use terok_policy::plan::{HostFacts, Network, Now, Plan, Wiring};
use terok_policy::profile::Catalog;

static CATALOG: LazyLock<Catalog> = LazyLock::new(Catalog::bundled);

fuzz_target!(|text: &str| {
    let key = |written: &str| match written.parse().ok().and_then(|index: usize| KEYS.get(index)) {
        Some(known) => known.key.to_owned(),
        None => format!("terok.{written}"),
    };
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    let annotations = pairs.map(|(written, value)| (key(written), value.to_owned())).collect();
    let catalog = &*CATALOG;
    match parse(&annotations, catalog) {
        Ok(policy) => {
            assert_eq!(parse(&render(&policy), catalog).as_ref(), Ok(&policy));
            let filtered = HostFacts { network: Network::Filtered, ..HostFacts::sealed(true) };
            for facts in [HostFacts::sealed(true), filtered] {
                let Ok(plan) = Plan::new(policy.clone(), facts) else { continue };
                let wiring = Wiring { dns_udp: 1, dns_tcp: 2, proxy: 3, peers: 0, mark: 1 };
                let now = Now { live: &Live::default(), grants: &Grants::default(), unix: 0 };
                assert!(plan.ruleset(&wiring, &now).to_string().ends_with("}\n"));
            }
        }
        Err(error) => assert!(!error.to_string().chars().any(char::is_control), "{error:?}"),
    }
});
