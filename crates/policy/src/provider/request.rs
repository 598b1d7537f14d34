//! Which requests a provider forwards, and where: paths as they are sent, compared as any server might read them (A12, A15, A18).

use super::endpoint::Endpoint;
use super::{Provider, RequestRule};
use crate::name::Name;

/// Headers that ask a server to take a request for one of another method or path. Where a provider has rules, they are refused.
pub const OVERRIDES: [&str; 5] =
    ["x-http-method", "x-http-method-override", "x-method-override", "x-original-url", "x-rewrite-url"];

/// A pattern's word for one segment.
const ONE: &str = "*";
/// A pattern's word for any number of segments, none among them; once in a pattern.
const REST: &str = "**";
/// How often an encoded path is decoded to see what it may come to mean; more layers than that are refused.
const LAYERS: usize = 3;

/// Why a request is not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refused {
    /// A rule refuses it, by its position.
    Rule(usize),
    /// No rule fits.
    Unlisted,
    /// Servers could read the path in more than one way; the words say what is in it.
    Ambiguous(&'static str),
    /// It is not below the upstream's own path, and no rule says more.
    Outside,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refused::Rule(_) => f.write_str("the provider's rules refuse this request"),
            Refused::Unlisted => f.write_str("no rule of the provider allows this request"),
            Refused::Ambiguous(what) => {
                write!(f, "the path has {what}, which servers read in different ways")
            }
            Refused::Outside => f.write_str("the path is not below the one of the provider's upstream"),
        }
    }
}

impl Provider {
    /// Where a request to the base URL goes: `path` is what follows the provider's name, with or without a query, and comes
    /// back octet for octet behind the upstream's own.
    pub fn upstream_for(&self, path: &str) -> (&Endpoint, String) {
        let plain = path.split('?').next().unwrap_or_default();
        let routes = self.route.iter().filter(|route| is_below(&route.path, plain));
        let (endpoint, rest) = match routes.max_by_key(|route| route.path.len()) {
            Some(route) => (&route.upstream, &path[route.path.len()..]),
            None => (&self.upstream, path),
        };
        let slash = if endpoint.path.is_empty() && !rest.starts_with('/') { "/" } else { "" };
        (endpoint, [&endpoint.path, slash, rest].concat())
    }

    /// Whether a request is forwarded: `method`, the upstream's name where it has one, and the path as it will be sent, without
    /// its query. The first rule that fits decides; without any rule everything is forwarded that stays below the upstream's path.
    pub fn judge(&self, method: &str, host: Option<&Name>, path: &str) -> Result<(), Refused> {
        self.deciding(method, host, path).map(|_| ())
    }

    /// Whether a request without any credential is forwarded as it is, of those that [`Provider::judge`] lets through: what everybody
    /// may fetch. Any other one without a credential is asked for it.
    pub fn lets_anonymous(&self, method: &str, host: Option<&Name>, path: &str) -> bool {
        matches!(self.deciding(method, host, path), Ok(Some(rule)) if rule.anonymous)
    }

    /// The rule that allows a request, where there are any.
    fn deciding(
        &self,
        method: &str,
        host: Option<&Name>,
        path: &str,
    ) -> Result<Option<&RequestRule>, Refused> {
        if self.rule.is_empty() {
            let upstreams =
                || std::iter::once(&self.upstream).chain(self.route.iter().map(|route| &route.upstream));
            if upstreams().any(|upstream| !upstream.path.is_empty()) && climbs(path) {
                return Err(Refused::Ambiguous("a segment of dots"));
            }
            // In the place of an upstream's host any path could be asked for, another customer's of a gateway too.
            let mut there =
                upstreams().filter(|upstream| host.is_some() && upstream.name() == host).peekable();
            if there.peek().is_some() && !there.any(|upstream| is_below(&upstream.path, path)) {
                return Err(Refused::Outside);
            }
            return Ok(None);
        }
        let readings = readings(path).map_err(Refused::Ambiguous)?;
        let Some((plain, others)) = readings.split_first() else { return Err(Refused::Unlisted) };
        let first = |segments: &[String]| {
            let fits = |(_, rule): &(usize, &RequestRule)| fits(rule, method, host, segments);
            self.rule.iter().enumerate().find(fits)
        };
        // However else a server may read it, it must not be something that a rule refuses.
        for segments in others {
            if let Some((at, _)) = first(segments).filter(|(_, rule)| !rule.allow) {
                return Err(Refused::Rule(at));
            }
        }
        match first(plain) {
            Some((at, rule)) if !rule.allow => Err(Refused::Rule(at)),
            Some((_, rule)) => Ok(Some(rule)),
            None => Err(Refused::Unlisted),
        }
    }
}

/// Whether a rule speaks of a request. `GET` is `HEAD` too. What is refused is refused in any case: servers there are that
/// read `patch` as `PATCH`.
fn fits(rule: &RequestRule, method: &str, host: Option<&Name>, segments: &[String]) -> bool {
    let is = |known: &str, other: &str| known == other || !rule.allow && known.eq_ignore_ascii_case(other);
    let named = |known: &String| is(known, method) || known == "GET" && is("HEAD", method);
    if !rule.methods.is_empty() && !rule.methods.iter().any(named) {
        return false;
    }
    if rule.host.is_some() && rule.host.as_ref() != host {
        return false;
    }
    let same = |word: &str, segment: &str| match rule.allow {
        true => word == segment,
        // Rails and Grape take an extension for a wish for a format.
        false => {
            let stem = segment.get(..word.len()).unwrap_or(segment);
            let format =
                segment.get(word.len()..).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
            word.eq_ignore_ascii_case(stem) && format
        }
    };
    let all = |words: &[&str], segments: &[String]| {
        words.iter().zip(segments).all(|(word, segment)| *word == ONE || same(word, segment))
    };
    let words: Vec<&str> = words(&rule.path).collect();
    match words.iter().position(|word| *word == REST) {
        None => segments.len() == words.len() && all(&words, segments),
        Some(at) => {
            let (front, back) = (&words[..at], &words[at + 1..]);
            segments.len() >= front.len() + back.len()
                && all(front, segments)
                && all(back, &segments[segments.len() - back.len()..])
        }
    }
}

/// Whether `path`, without a query, is `prefix` or begins with its segments.
fn is_below(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn words(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|word| !word.is_empty())
}

/// Whether some server could take a part of the path for one that leads upwards.
fn climbs(path: &str) -> bool {
    let mut text = path.to_owned();
    for _ in 0..=LAYERS {
        let dots = |word: &str| matches!(word.split(';').next(), Some("." | ".."));
        if text.split(['/', '\\']).any(dots) {
            return true;
        }
        let next = String::from_utf8_lossy(&octets_of(&text)).into_owned();
        if next == text {
            return false;
        }
        text = next;
    }
    true
}

/// The segments of a path, first as they stand with what is encoded in them decoded, then as a server has them that decodes a
/// slash before it splits, or decodes once more. A slash at the end counts for nothing.
fn readings(path: &str) -> Result<Vec<Vec<String>>, &'static str> {
    let mut path = path.strip_prefix('/').ok_or("no slash at its beginning")?;
    let unwritten = |b: u8| !b.is_ascii_graphic() || b"\"#<>?[\\]^`{|}".contains(&b);
    if path.bytes().any(unwritten) {
        return Err("characters that no path has");
    }
    path = path.strip_suffix('/').unwrap_or(path);
    if path.is_empty() {
        return Ok(vec![Vec::new()]);
    }
    let mut segments = Vec::new();
    for raw in path.split('/') {
        segments.push(checked(decoded(raw)?)?);
    }
    let mut readings = vec![segments.clone()];
    for layer in 0.. {
        let mut other = Vec::new();
        for segment in &segments {
            // After the first split nothing may be left out: an encoded `//` or `..` is no name of anything.
            for part in segment.split('/') {
                other.push(checked(if layer == 0 { part.to_owned() } else { again(part)? })?);
            }
        }
        if layer > 0 && other == segments {
            break;
        }
        if layer > LAYERS {
            return Err("a character encoded again and again");
        }
        if readings.last() != Some(&other) {
            readings.push(other.clone());
        }
        segments = other;
    }
    Ok(readings)
}

/// A segment with its percent-encodings decoded.
fn decoded(raw: &str) -> Result<String, &'static str> {
    let mut octets = Vec::with_capacity(raw.len());
    let mut rest = raw.bytes();
    while let Some(octet) = rest.next() {
        octets.push(match octet {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                let value = digit().zip(digit()).map(|(high, low)| (high * 16 + low) as u8);
                value.ok_or("a % that is no encoding")?
            }
            plain => plain,
        });
    }
    String::from_utf8(octets).map_err(|_| "an encoding of no character")
}

/// As a server has it that decodes what was decoded: a `%` that begins no encoding stays what it is.
fn again(text: &str) -> Result<String, &'static str> {
    String::from_utf8(octets_of(text)).map_err(|_| "an encoding of no character")
}

fn octets_of(text: &str) -> Vec<u8> {
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        octets.extend_from_slice(&rest.as_bytes()[..at]);
        let encoded = rest.get(at + 1..at + 3).filter(|pair| pair.bytes().all(|b| b.is_ascii_hexdigit()));
        match encoded.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(octet) => {
                octets.push(octet);
                rest = &rest[at + 3..];
            }
            None => {
                octets.push(b'%');
                rest = &rest[at + 1..];
            }
        }
    }
    octets.extend_from_slice(rest.as_bytes());
    octets
}

fn checked(segment: String) -> Result<String, &'static str> {
    if segment.is_empty() || segment.starts_with('/') || segment.ends_with('/') || segment.contains("//") {
        return Err("an empty segment");
    }
    if segment.split('/').any(|part| matches!(part, "." | "..")) {
        return Err("a segment of dots");
    }
    match segment.chars().find(|c| c.is_control() || matches!(c, '\\' | ';')) {
        Some('\\') => Err("a backslash"),
        Some(';') => Err("a semicolon"),
        Some(_) => Err("a control character"),
        None => Ok(segment),
    }
}

/// A path that others begin with, without a slash at its end.
pub(super) fn check_prefix(path: &str) -> Result<String, String> {
    let path = path.strip_suffix('/').unwrap_or(path);
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    let segment = |word: &str| !matches!(word, "" | "." | "..") && word.bytes().all(plain);
    match path.strip_prefix('/') {
        Some(rest) if rest.split('/').all(segment) => Ok(path.to_owned()),
        _ => Err(format!("{path:?}: write /WORD or /WORD/WORD, of letters, digits and -._~")),
    }
}

/// Checks how a rule is written.
pub(super) fn check_rule(rule: &RequestRule) -> Result<(), (&'static str, String)> {
    let method =
        |text: &String| !text.is_empty() && text.len() <= 32 && text.bytes().all(|b| b.is_ascii_uppercase());
    if let Some(wrong) = rule.methods.iter().find(|text| !method(text)) {
        return Err(("methods", format!("{wrong:?} is no method in capitals")));
    }
    let Some(rest) = rule.path.strip_prefix('/') else {
        return Err(("path", format!("{:?}: write /WORD/*/WORD or /WORD/**", rule.path)));
    };
    let words: Vec<&str> = if rest.is_empty() { Vec::new() } else { rest.split('/').collect() };
    for (at, word) in words.iter().enumerate() {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()+,=:@".contains(&b);
        match *word {
            ONE => {}
            REST if !words[..at].contains(&REST) => {}
            REST => return Err(("path", "`**` stands once in a path".into())),
            "" | "." | ".." => {
                return Err(("path", format!("{:?} has an empty segment or one of dots", rule.path)));
            }
            word if word.contains('*') => {
                return Err(("path", format!("{word:?}: `*` stands for a whole segment")));
            }
            word if !word.bytes().all(plain) => {
                return Err(("path", format!("{word:?}: write a segment as it reads once decoded")));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::{Definition, parse};
    use proptest::prelude::*;

    fn provider(rest: &str) -> Provider {
        let text = format!(
            "title = \"X\"\nupstream = \"https://api.x.example/base\"\nhosts = [\"git.x.example\"]\n{rest}\n[token]\nlength = 40\n[credential.key]\nheader = \"x-key\"\n"
        );
        match parse("x", &text).unwrap() {
            Definition::Provider(provider) => *provider,
            Definition::Template(_) => panic!("has an upstream"),
        }
    }

    fn rules(rules: &[(&str, &str, bool)]) -> Provider {
        let line = |(methods, path, allow): &(&str, &str, bool)| {
            let methods: Vec<String> =
                methods.split_whitespace().map(|method| format!("{method:?}")).collect();
            format!("{{ methods = [{}], path = {path:?}, allow = {allow} }}", methods.join(", "))
        };
        provider(&format!("rule = [{}]", rules.iter().map(line).collect::<Vec<_>>().join(", ")))
    }

    fn ask(provider: &Provider, method: &str, path: &str) -> String {
        provider.judge(method, None, path).map_or_else(|refused| format!("{refused:?}"), |()| "allow".into())
    }

    #[test]
    fn the_base_url_leads_to_the_longest_route_and_every_octet_of_the_path_survives() {
        let routed = provider(
            "route = [{ path = \"/up\", upstream = \"https://up.x.example\" }, { path = \"/up/load\", upstream = \"http://host:9/l\" }]",
        );
        for (path, upstream, sent) in [
            ("", "https://api.x.example/base", "/base"),
            ("/", "https://api.x.example/base", "/base/"),
            ("?q=1", "https://api.x.example/base", "/base?q=1"),
            ("/a%2Fb/%23?x=%26%2B&x=/up", "https://api.x.example/base", "/base/a%2Fb/%23?x=%26%2B&x=/up"),
            ("/upper", "https://api.x.example/base", "/base/upper"),
            ("/up", "https://up.x.example", "/"),
            ("/up?q", "https://up.x.example", "/?q"),
            ("/up//a", "https://up.x.example", "//a"),
            ("/up/loa", "https://up.x.example", "/loa"),
            ("/up/load/a?b", "http://host:9/l", "/l/a?b"),
        ] {
            let (endpoint, out) = routed.upstream_for(path);
            assert_eq!((endpoint.to_string().as_str(), out.as_str()), (upstream, sent), "{path}");
        }
    }

    #[test]
    fn without_rules_every_path_is_forwarded_that_stays_below_the_upstreams() {
        let plain = Provider { upstream: Endpoint::parse("https://api.x.example").unwrap(), ..provider("") };
        for path in ["/", "//a/../b;c", "/%zz", "*"] {
            assert_eq!(plain.judge("ANY", None, path), Ok(()), "{path}");
        }
        for path in ["/base", "/base//a;b", "/base/%zz", "/base/a..b/.git", "/base/%2525", "/base/%ff"] {
            assert_eq!(provider("").judge("ANY", None, path), Ok(()), "{path}");
        }
        for path in [
            "/base/../x",
            "/base/%2e%2E/x",
            "/base/.%252e/x",
            "/base/..;/x",
            "/base/a%2f..%5cx",
            "/base/..",
            "/base/%ff/%2e./x",
        ] {
            assert!(provider("").judge("ANY", None, path).is_err(), "{path}");
        }
    }

    #[test]
    fn without_rules_an_upstreams_host_is_served_below_the_upstreams_path_alone() {
        let routed = provider("route = [{ path = \"/up\", upstream = \"https://up.x.example\" }]");
        for (host, path, answer) in [
            ("api.x.example", "/base", Ok(())),
            ("api.x.example", "/base/", Ok(())),
            ("api.x.example", "/base//a", Ok(())),
            ("api.x.example", "/", Err(Refused::Outside)),
            ("api.x.example", "/other/v1", Err(Refused::Outside)),
            ("api.x.example", "/baseline", Err(Refused::Outside)),
            ("api.x.example", "/BASE/a", Err(Refused::Outside)),
            ("api.x.example", "//base/a", Err(Refused::Outside)),
            // All of it is the route's, and what is only intercepted has no path of its own.
            ("up.x.example", "/anything", Ok(())),
            ("git.x.example", "/anything", Ok(())),
        ] {
            let host = host.parse().unwrap();
            assert_eq!(routed.judge("GET", Some(&host), path), answer, "{host}{path}");
        }
        let open = rules(&[("", "/**", true)]);
        assert_eq!(open.judge("GET", Some(&"api.x.example".parse().unwrap()), "/other/v1"), Ok(()));
    }

    #[test]
    fn what_everybody_may_fetch_needs_no_credential() {
        let open = provider(
            "rule = [{ methods = [\"GET\"], path = \"/open/**\", allow = true, anonymous = true }, { path = \"/**\", allow = true }]",
        );
        for (method, path, anonymous) in [
            ("GET", "/open/a", true),
            ("HEAD", "/open/a", true),
            ("POST", "/open/a", false),
            ("GET", "/closed", false),
            ("GET", "/open/../closed", false),
        ] {
            assert_eq!(open.lets_anonymous(method, None, path), anonymous, "{method} {path}");
        }
        assert!(!provider("").lets_anonymous("GET", None, "/base"));
    }

    #[test]
    fn the_first_rule_that_fits_decides_and_the_rest_is_refused() {
        let provider = rules(&[
            ("GET", "/keys/public", true),
            ("", "/keys/**", false),
            ("GET POST", "/v1/*/items", true),
            ("GET", "/", true),
        ]);
        for (method, path, answer) in [
            ("GET", "/keys/public", "allow"),
            ("HEAD", "/keys/public", "allow"),
            ("POST", "/keys/public", "Rule(1)"),
            ("GET", "/keys", "Rule(1)"),
            ("GET", "/keys/", "Rule(1)"),
            ("GET", "/keys/a/b", "Rule(1)"),
            ("GET", "/KEYS/a", "Rule(1)"),
            ("GET", "/keysx", "Unlisted"),
            ("POST", "/v1/a%2Fb/items", "allow"),
            ("POST", "/v1/a/b/items", "Unlisted"),
            ("POST", "/v1/a/ITEMS", "Unlisted"),
            ("DELETE", "/v1/a/items", "Unlisted"),
            ("get", "/v1/a/items", "Unlisted"),
            ("GET", "/", "allow"),
        ] {
            assert_eq!(ask(&provider, method, path), answer, "{method} {path}");
        }
    }

    #[test]
    fn a_method_is_refused_in_any_case_and_allowed_as_it_is_written() {
        let provider =
            rules(&[("DELETE GET", "/keys/**", false), ("GET", "/v1", true), ("", "/keys/**", true)]);
        for (method, path, answer) in [
            ("delete", "/keys/1", "Rule(0)"),
            ("Delete", "/keys/1", "Rule(0)"),
            ("head", "/keys/1", "Rule(0)"),
            ("POST", "/keys/1", "allow"),
            ("get", "/v1", "Unlisted"),
        ] {
            assert_eq!(ask(&provider, method, path), answer, "{method} {path}");
        }
    }

    #[test]
    fn a_rule_for_one_host_says_nothing_of_another() {
        let provider = provider("rule = [{ host = \"git.x.example\", path = \"/**\", allow = true }]");
        let name: Name = "git.x.example".parse().unwrap();
        assert_eq!(provider.judge("GET", Some(&name), "/a"), Ok(()));
        assert_eq!(
            provider.judge("GET", Some(&"api.x.example".parse().unwrap()), "/a"),
            Err(Refused::Unlisted)
        );
        assert_eq!(provider.judge("GET", None, "/a"), Err(Refused::Unlisted));
    }

    #[test]
    fn a_path_that_servers_read_differently_is_refused_where_there_are_rules() {
        let provider = rules(&[("", "/keys", false), ("", "/**", true)]);
        for path in [
            "//keys",
            "/a//keys",
            "/./keys",
            "/a/../keys",
            "/a/%2e%2e/keys",
            "/a/.%2E/keys",
            "/%2e/keys",
            "/a/%2e%2e%2fkeys",
            "/a%2f..%2fkeys",
            "/%2fkeys",
            "/keys%2f",
            "/a%2f%2fkeys",
            "/a/%252e%252e/keys",
            "/keys;x",
            "/keys%3bx",
            "/keys%253bx",
            "/a\\keys",
            "/a%5ckeys",
            "/a%255ckeys",
            "/keys%00",
            "/keys%0a",
            "/keys%zz",
            "/keys%",
            "/keys%2",
            "/keys%c0%ae",
            "/keys%ff",
            "/keys#x",
            "/keys?x",
            "/keys x",
            "/k\u{e9}ys",
            "keys",
            "",
            "*",
            "http://x/keys",
            "/%25252525252e",
        ] {
            assert!(
                ask(&provider, "GET", path).starts_with("Ambiguous"),
                "{path}: {}",
                ask(&provider, "GET", path)
            );
        }
        for path in ["/keys", "/keys/", "/KEYS", "/%6beys", "/%4bEYS", "/%6Beys/", "/%256beys", "/%25256beys"]
        {
            assert_eq!(ask(&provider, "GET", path), "Rule(0)", "{path}");
        }
        for path in [
            "/",
            "/keys/a",
            "/100%25.md",
            "/a%20b",
            "/a%2520b",
            "/%C3%BC",
            "/...",
            "/.git",
            "/a..b",
            "/x%2fkeys",
            "/a+b:c@d",
        ] {
            assert_eq!(ask(&provider, "GET", path), "allow", "{path}");
        }
    }

    /// What servers do to a path before they look it up, each on its own; a test's `steps` are any number of them in any order.
    fn normalised(path: &str, step: u8) -> String {
        match step {
            // Decode once, slashes included.
            0 => {
                let octets = path.as_bytes();
                let (mut out, mut at) = (Vec::new(), 0);
                while at < octets.len() {
                    let pair = path.get(at + 1..at + 3).and_then(|pair| u8::from_str_radix(pair, 16).ok());
                    match pair.filter(|_| octets[at] == b'%') {
                        Some(octet) => (out.push(octet), at += 3).0,
                        None => (out.push(octets[at]), at += 1).0,
                    }
                }
                String::from_utf8_lossy(&out).into_owned()
            }
            // Merge slashes.
            1 => path
                .split('/')
                .filter(|word| !word.is_empty())
                .fold(String::new(), |out, word| out + "/" + word),
            // Remove dot segments (RFC 3986 §5.2.4).
            2 => {
                let mut out: Vec<&str> = Vec::new();
                for word in path.split('/').skip(1) {
                    match word {
                        "." => {}
                        ".." => drop(out.pop()),
                        word => out.push(word),
                    }
                }
                format!("/{}", out.join("/"))
            }
            // Matrix parameters.
            3 => {
                path.split('/').map(|word| word.split(';').next().unwrap_or("")).collect::<Vec<_>>().join("/")
            }
            4 => path.replace('\\', "/"),
            5 => path.to_ascii_lowercase(),
            6 => path.split(['\0', '?', '#']).next().unwrap_or("").to_owned(),
            _ => path.trim_end_matches('/').to_owned(),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]
        #[test]
        fn no_path_that_a_server_may_take_for_a_refused_one_is_allowed(
            path in "(/|//|/\\.|/\\.\\.|%2[fF]|%252f|%5[cC]|\\\\|;x|%3b|%00|#|\\?|%2e|%252e|a|b|/keys|/k%65ys|keys|KEYS|%6[bB]eys|/a/keys|/%25)(/|//|/\\.|/\\.\\.|%2[fF]|%252f|%5[cC]|\\\\|;x|%3b|%00|#|\\?|%2e|%252e|a|/b|/keys|/k%65ys|keys|KEYS|%6[bB]eys|/a/keys|/%25){0,5}",
            steps in proptest::collection::vec(0u8..8, 0..5),
        ) {
            let provider = rules(&[("", "/keys", false), ("", "/a/keys/**", false), ("", "/**", true)]);
            let mut read = path.clone();
            for step in steps {
                read = normalised(&read, step);
            }
            let read = read.trim_end_matches('/');
            if read == "/keys" || read == "/a/keys" || read.starts_with("/a/keys/") {
                prop_assert!(provider.judge("GET", None, &path).is_err(), "{} is {}", path, read);
            }
        }

        #[test]
        fn no_path_panics(path in "\\PC{0,40}", encoded in "/([a-z/]|%[0-9a-f]{2}){0,20}") {
            let provider = rules(&[("", "/keys/**", false), ("", "/**", true)]);
            let _ = provider.judge("GET", None, &path);
            let _ = provider.judge("GET", None, &encoded);
            let _ = provider.upstream_for(&path);
        }
    }
}
