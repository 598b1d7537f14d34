//! What a request carries in a credential's place: whatever the header fields and the query are, only the token itself passes, once, and whoever sends
//! anything else beside it does not.
#![no_main]

use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use terok_policy::provider::{Alphabet, Carrier, Token};
use terok_supervisor::broker::request::{Standing, standing};

const OURS: &str = "sk-terokABCDEFGHIJKLMNOPQRSTUVWXYZ012345";

fuzz_target!(|input: &[u8]| {
    let shape = Token {
        variables: vec![],
        prefix: "sk-".into(),
        also: vec![],
        suffix: String::new(),
        length: OURS.len(),
        alphabet: Alphabet::Base62,
        carriers: vec![Carrier::Bearer, Carrier::Basic, Carrier::Header("x-own-key".into())],
    };
    let mut lines = input.split(|octet| *octet == b'\n');
    let query = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
    let mut headers = HeaderMap::new();
    for line in lines {
        let mut parts = line.splitn(2, |octet| *octet == b':');
        let (Some(name), Some(value)) = (parts.next(), parts.next()) else { continue };
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    let before = standing(&shape, OURS, &headers, &query);
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    if before == Standing::Ours {
        // Written out, or within what Basic codes.
        let whole = headers.values().any(|value| text(value).contains(OURS));
        let login = headers.get_all("authorization").iter().count() == 1;
        assert!(whole || login);
    }
    headers.append("x-own-key", HeaderValue::from_static(OURS));
    let with_ours = standing(&shape, OURS, &headers, &query);
    assert_eq!(with_ours == Standing::Ours, before == Standing::Nothing);
    headers.append("x-api-key", HeaderValue::from_static("somebody's own"));
    assert_eq!(standing(&shape, OURS, &headers, &query), Standing::Foreign);
});
