//! Profile texts that include each other and a bundled one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use terok_policy::profile::Catalog;

fuzz_target!(|text: &str| {
    let mut catalog = Catalog::bundled();
    let (first, second) = text.split_once('\0').unwrap_or((text, ""));
    catalog.profiles.insert("a".to_owned(), first.to_owned());
    catalog.profiles.insert("b".to_owned(), second.to_owned());
    match catalog.resolve(&["a".to_owned(), "b".to_owned()]) {
        Ok(rules) => assert!(rules.len() <= text.lines().count() + 200),
        Err(error) => assert!(!error.to_string().contains('\n'), "{error:?}"),
    }
});
