//! Provider definitions, and requests judged by one: never a panic, every error one clean line, no path loses an octet, and no
//! path that a server may take for a refused one is forwarded.
#![no_main]

use libfuzzer_sys::fuzz_target;
use terok_policy::phantom;
use terok_policy::provider::{Definition, parse};

const RULES: &str = "title = \"X\"\nupstream = \"https://x.example/base\"\n[token]\nlength = 40\n[credential.key]\nheader = \"x-key\"\n\
    [[rule]]\npath = \"/keys\"\nallow = false\n[[rule]]\npath = \"/**\"\nallow = true\n";

fuzz_target!(|text: &str| {
    let (first, second) = text.split_once('\0').unwrap_or((text, ""));
    match parse("x", first) {
        Ok(definition) => {
            let token = phantom::token(definition.token(), &[7; phantom::MOST]);
            assert!(phantom::is_phantom(definition.token(), &token) && phantom::is_marked(&token));
            if let Definition::Provider(provider) = definition {
                let json = serde_json::to_string(&provider).expect("a provider is JSON");
                assert_eq!(serde_json::from_str::<Box<_>>(&json).ok(), Some(provider));
            }
        }
        Err(error) => assert!(!error.to_string().chars().any(char::is_control), "{error:?}"),
    }
    let Ok(Definition::Provider(provider)) = parse("x", RULES) else { panic!("the rules are right") };
    let (_, sent) = provider.upstream_for(second);
    assert!(sent.ends_with(second) && sent.starts_with("/base"));
    if provider.judge("GET", None, second).is_ok() {
        let path = second.trim_matches('/');
        assert!(!path.eq_ignore_ascii_case("keys") && !path.contains("//"), "{second:?}");
    }
    let _ = phantom::is_marked(second);
});
