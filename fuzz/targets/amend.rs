//! `linux.seccomp` objects: an amended configuration is amended, and amending it again changes nothing. And whole configurations that
//! are given a mount and variables: once is enough.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use terok_policy::amend::{amend, is_amended, provide};
use terok_policy::policy::Policy;
use terok_policy::provision::Provision;

fuzz_target!(|text: &str| {
    given(text);
    let Ok(seccomp) = serde_json::from_str::<Value>(text) else { return };
    let config = json!({ "process": {}, "linux": { "seccomp": seccomp } });
    for restricted in [false, true] {
        let policy = Policy { restricted, ..Policy::default() };
        if let Ok(amended) = amend(config.clone(), &policy) {
            assert_eq!(is_amended(&amended), Ok(()));
            assert_eq!(amend(amended.clone(), &policy).as_ref(), Ok(&amended));
        }
    }
});

fn given(text: &str) {
    let Ok(config) = serde_json::from_str::<Value>(text) else { return };
    let pair = |name: &str| vec![(name.to_owned(), "x".to_owned())];
    let provision =
        Provision { folder: Some("/f".into()), env: pair("A"), defaults: pair("B"), git: pair("c.d") };
    if let Ok(once) = provide(config, &provision) {
        assert_eq!(provide(once.clone(), &provision).as_ref(), Ok(&once));
    }
}
