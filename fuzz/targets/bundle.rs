//! Whole configurations of a bundle through everything the shim does to one: once is enough, nothing of it is lost that terok does not
//! speak of, and it never comes out weaker than it went in.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value};
use terok_hook::preview::Container;
use terok_hook::state::parse_config;
use terok_policy::amend::{self, hooks::Installed};
use terok_policy::policy::Policy;
use terok_policy::provision::Provision;

fuzz_target!(|json: &[u8]| {
    let Ok((before, annotations)) = parse_config(json) else { return };
    let installed = Installed { program: "/usr/libexec/terok/terok-hook".into(), home: None, all: false };
    let pair = |name: &str| vec![(name.to_owned(), "x".to_owned())];
    let provision = Provision {
        folder: Some("/run/terok/.birth/c1/inside".into()),
        env: pair("A"),
        defaults: pair("B"),
        git: pair("c.d"),
    };
    for restricted in [false, true] {
        let policy = Policy { restricted, ..Policy::default() };
        let amended = |config: &Value| {
            Container::new(None, config.clone(), &annotations)?.amended(&policy, &provision, &installed)
        };
        let Ok(after) = amended(&before) else { continue };
        assert_eq!(amended(&after).as_ref(), Ok(&after), "once is enough");
        let written = serde_json::to_vec(&after).expect("JSON");
        let (read, annotations) = parse_config(&written).expect("a configuration");
        assert_eq!(read, after);
        assert_eq!(amend::is_amended(&after), Ok(()));
        assert_eq!(amend::is_restricted(&after), restricted);
        assert!(annotations.contains_key(amend::MARK));
        kept("", &before, &after, restricted);
        not_weaker(&before, &after);
    }
});

/// Where values are replaced or go: the rest only grows.
const OURS: [&str; 4] = ["/linux/seccomp/syscalls", "/annotations/io.terok.amended", "/process/env", "/linux/seccomp/architectures"];
const RESTRICTED: [&str; 3] = ["/process/capabilities", "/process/noNewPrivileges", "/linux/resources/pids/limit"];

fn kept(place: &str, before: &Value, after: &Value, restricted: bool) {
    if OURS.contains(&place) || (restricted && RESTRICTED.contains(&place)) {
        return;
    }
    match (before, after) {
        (Value::Object(was), Value::Object(is)) => {
            for (key, value) in was {
                let place = format!("{place}/{key}");
                // Null stands for what is absent.
                kept(&place, value, is.get(key).unwrap_or_else(|| panic!("{place} is lost")), restricted);
            }
        }
        (Value::Array(was), Value::Array(is)) => assert!(is.starts_with(was), "{place}: {was:?} is not how {is:?} begins"),
        (Value::Null, Value::Object(_) | Value::Array(_)) => {}
        _ => assert_eq!(before, after, "{place}"),
    }
}

fn not_weaker(before: &Value, after: &Value) {
    let empty = Map::new();
    let sets = |config: &Value| {
        config.pointer("/process/capabilities").and_then(Value::as_object).unwrap_or(&empty).clone()
    };
    let (was, is) = (sets(before), sets(after));
    for (set, capabilities) in &is {
        let had = was.get(set).and_then(Value::as_array).cloned().unwrap_or_default();
        let more = capabilities.as_array().into_iter().flatten().find(|one| !had.contains(one));
        assert_eq!(more, None, "{set}");
    }
    let default = |config: &Value| config.pointer("/linux/seccomp/defaultAction").cloned();
    if let Some(action) = default(before) {
        assert_eq!(default(after), Some(action));
    }
    if before.pointer("/process/noNewPrivileges") == Some(&Value::Bool(true)) {
        assert_eq!(after.pointer("/process/noNewPrivileges"), Some(&Value::Bool(true)));
    }
    // Of the sockets that pass none is new.
    if let (Ok(Some(was)), Ok(Some(is))) = (amend::sockets(before), amend::sockets(after)) {
        let more: Vec<_> = is.iter().filter(|socket| !was.contains(socket)).collect();
        assert!(more.is_empty(), "{more:?}");
    }
}
