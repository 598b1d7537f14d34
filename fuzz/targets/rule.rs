//! One rule: what parses is printed in a form that parses back, as an allow and as a deny.
#![no_main]

use libfuzzer_sys::fuzz_target;
use terok_policy::Rule;

fuzz_target!(|text: &str| {
    match text.parse::<Rule>() {
        Ok(rule) => {
            assert_eq!(rule.to_string().parse::<Rule>().as_ref(), Ok(&rule));
            assert_eq!(Rule::parse_deny(&rule.to_deny_string()).as_ref(), Ok(&rule));
        }
        Err(error) => assert!(!error.to_string().contains('\n'), "{error:?}"),
    }
    if let Ok(rule) = Rule::parse_deny(text) {
        assert_eq!(Rule::parse_deny(&rule.to_deny_string()).as_ref(), Ok(&rule));
        assert_eq!(rule.to_string().parse::<Rule>().as_ref(), Ok(&rule));
    }
});
