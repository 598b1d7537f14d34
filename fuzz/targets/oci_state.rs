//! What a runtime hands to a hook: parsing never panics, and a state that is accepted cannot lead out of terok's folders.
#![no_main]

use libfuzzer_sys::fuzz_target;
use terok_hook::state::{State, parse_config};

fuzz_target!(|json: &[u8]| {
    if let Ok(state) = State::parse(json) {
        assert!(state.bundle.is_absolute());
        assert!(!state.id.contains('/') && !state.id.starts_with('.') && !state.id.is_empty());
        assert_ne!(state.pid, Some(0));
    }
    if let Ok((config, annotations)) = parse_config(json) {
        assert!(config.is_object());
        let _ = terok_policy::amend::is_amended(&config);
        assert!(annotations.len() <= json.len());
    }
});
