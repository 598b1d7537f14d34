//! `linux.seccomp` objects: an amended configuration is amended, and amending it again changes nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use terok_policy::amend::{amend, is_amended};
use terok_policy::policy::Policy;

fuzz_target!(|text: &str| {
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
