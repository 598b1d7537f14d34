//! A canonical DNS name: IDNA A-labels, lower case, no trailing dot (E2). Nothing else compares names.

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};
use serde::{Deserialize, Serialize};

/// The zone of terok's own services.
pub const INTERNAL: &str = "terok.internal";
/// The credential broker, on ports 80 and 443, where `terok.vault` grants anything.
pub const VAULT: &str = "vault.terok.internal";
/// The host's loopback, per allowed port.
pub const HOST: &str = "host.terok.internal";

/// Words of the rule language: no rule can name a host that is called so, and whatever wrote its name into one would mean
/// something else.
pub const WORDS: [&str; 3] = ["any", "direct", "host"];

/// Every ASCII character that is no letter, digit, dot, hyphen or underscore.
const DENIED: AsciiDenyList = AsciiDenyList::new(true, "!\"#$%&'()*+,/:;<=>?@[\\]^`{|}~");

/// A host name in canonical form; at least one label, at most 253 octets, labels of 1 to 63 octets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Why a text is not a host name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Nothing, or only a dot.
    #[error("empty name")]
    Empty,
    /// IDNA (UTS 46) or host-name rules refuse it.
    #[error("{0:?} is not a host name")]
    Invalid(String),
}

impl Name {
    /// Canonicalises `text` (UTS 46 non-transitional, STD3 rules, `_` allowed), refusing IP literals and control characters.
    ///
    /// `_` is allowed because service and verification records use it; a last label that is a number in any of the
    /// forms `inet_aton` reads (`127.1`, `0x7f.1`, `017700000001`) is refused, since resolvers take it for an address.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let invalid = || NameError::Invalid(text.chars().take(300).collect());
        if matches!(text, "" | ".") {
            return Err(NameError::Empty);
        }
        let ascii = Uts46::new()
            .to_ascii(text.as_bytes(), DENIED, Hyphens::CheckFirstLast, DnsLength::VerifyAllowRootDot)
            .map_err(|_| invalid())?;
        let name = ascii.strip_suffix('.').unwrap_or(&ascii);
        let last = name.rsplit('.').next().unwrap_or(name);
        if ends_in_number(last) || name.len() > 253 {
            return Err(invalid());
        }
        Ok(Name(name.to_owned()))
    }
    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// Whether this is `terok.internal` or below: names of terok's own services, never resolved.
    pub fn is_internal(&self) -> bool {
        self.0.strip_suffix(INTERNAL).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }
    /// Whether no rule can name this: terok's own zone, and the [`WORDS`] of the rule language.
    pub fn is_reserved(&self) -> bool {
        self.is_internal() || WORDS.contains(&self.as_str())
    }
    /// Whether `self` is a proper subdomain of `parent`.
    pub fn is_under(&self, parent: &Name) -> bool {
        self.0.strip_suffix(parent.as_str()).is_some_and(|rest| rest.ends_with('.') && rest.len() > 1)
    }
}

/// The URL standard's test for an IPv4 address in disguise.
fn ends_in_number(last: &str) -> bool {
    last.bytes().all(|b| b.is_ascii_digit())
        || last.strip_prefix("0x").is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::str::FromStr for Name {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Name::parse(text)
    }
}
impl TryFrom<String> for Name {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        Name::parse(&text)
    }
}
impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str) -> String {
        Name::parse(text).map_or_else(|error| format!("refused: {error}"), |name| name.to_string())
    }

    #[test]
    fn case_trailing_dot_and_unicode_have_one_canonical_form() {
        assert_eq!(parsed("API.Example.COM"), "api.example.com");
        assert_eq!(parsed("api.example.com."), "api.example.com");
        assert_eq!(parsed("bücher.example"), "xn--bcher-kva.example");
        assert_eq!(parsed("XN--BCHER-KVA.example"), "xn--bcher-kva.example");
        assert_eq!(parsed("example。com"), "example.com");
        assert_eq!(parsed("straße.example"), "xn--strae-oqa.example");
        assert_eq!(parsed("_dmarc.example.com"), "_dmarc.example.com");
        assert_eq!(parsed("r3---sn-4g5e.example"), "r3---sn-4g5e.example");
        assert_eq!(parsed("localhost"), "localhost");
        assert_eq!(parsed("1.2.3.4.example"), "1.2.3.4.example");
    }

    #[test]
    fn what_is_no_host_name_is_refused() {
        let label = "a".repeat(64);
        let long = format!("{}com", "abcdefg.".repeat(32));
        for text in [
            "",
            ".",
            "..",
            "a..b",
            ".a",
            "a..",
            "a b",
            "a\0b",
            "a%00b",
            "a%b",
            "fe80::1%eth0",
            "::1",
            "[::1]",
            "a:80",
            "a/b",
            "*.a",
            "-a.com",
            "a-.com",
            "http://a",
            "user@a",
            "a\n",
            "a\u{7f}",
            "xn--a",
            "xn--",
            "a\u{ad}..b",
            &label,
            &long,
        ] {
            assert!(Name::parse(text).is_err(), "{text:?} was taken for {}", parsed(text));
        }
    }

    #[test]
    fn an_address_in_any_spelling_is_no_name() {
        for text in [
            "127.0.0.1",
            "127.1",
            "127.0.0.1.",
            "2130706433",
            "0x7f.1",
            "0x7f000001",
            "0X7F.1",
            "017700000001",
            "1.0x",
            "１２７.０.０.１",
            "example.1",
            "10.0.0.1",
        ] {
            assert!(Name::parse(text).is_err(), "{text:?} was taken for {}", parsed(text));
        }
    }

    #[test]
    fn a_subdomain_is_under_its_parent_and_nothing_else_is() {
        let name = |text| Name::parse(text).unwrap();
        assert!(name("a.example.com").is_under(&name("example.com")));
        assert!(name("a.b.example.com").is_under(&name("example.com")));
        assert!(!name("example.com").is_under(&name("example.com")));
        assert!(!name("badexample.com").is_under(&name("example.com")));
        assert!(!name("example.com.evil.net").is_under(&name("example.com")));
    }

    proptest! {
        #[test]
        fn a_canonical_name_is_its_own_canonical_form(text in "\\PC{0,40}") {
            if let Ok(name) = Name::parse(&text) {
                prop_assert_eq!(Name::parse(name.as_str()), Ok(name));
            }
        }

        #[test]
        fn a_canonical_name_is_lower_case_ascii_within_dns_limits(text in "[a-zA-Z0-9_.ü。ß-]{1,80}") {
            if let Ok(name) = Name::parse(&text) {
                let name = name.as_str();
                prop_assert!(name.len() <= 253 && !name.ends_with('.'));
                prop_assert!(name.split('.').all(|label| (1..=63).contains(&label.len())));
                prop_assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b)));
            }
        }
    }
}
