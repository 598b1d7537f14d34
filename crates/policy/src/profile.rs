//! Profiles: named lists of egress rules, one a line, `#` comments, `include NAME`.

use crate::policy::{Source, Sourced};
use crate::rule::Rule;
use crate::spelling;
use std::collections::{BTreeMap, HashSet};

/// Texts of profiles and providers by name. The bundled ones are compiled in; a user's own come from the caller.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    /// Egress lists.
    pub profiles: BTreeMap<String, String>,
    /// Provider definitions ([`crate::provider`]), TOML.
    pub providers: BTreeMap<String, String>,
}

/// What is wrong in a profile, with its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("profile {profile}{place}: {reason}", place = if *.line == 0 { String::new() } else { format!(" line {}", .line) })]
pub struct ProfileError {
    /// Profile name.
    pub profile: String,
    /// Line number from 1; 0 for the profile as a whole.
    pub line: usize,
    /// What is wrong and what to do.
    pub reason: String,
}

/// One meaningful line of a profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A rule that allows.
    Rule(Rule),
    /// `include NAME`
    Include(String),
}

const BUNDLED: &[(&str, &str)] = &[
    ("ai-apis", include_str!("../../../profiles/ai-apis.txt")),
    ("base", include_str!("../../../profiles/base.txt")),
    ("dev-go", include_str!("../../../profiles/dev-go.txt")),
    ("dev-node", include_str!("../../../profiles/dev-node.txt")),
    ("dev-python", include_str!("../../../profiles/dev-python.txt")),
    ("dev-rust", include_str!("../../../profiles/dev-rust.txt")),
    ("dev-standard", include_str!("../../../profiles/dev-standard.txt")),
    ("git-hosts", include_str!("../../../profiles/git-hosts.txt")),
    ("os-packages", include_str!("../../../profiles/os-packages.txt")),
];

impl Catalog {
    /// What ships with terok (`profiles/*.txt`, `profiles/providers/*.toml`).
    pub fn bundled() -> Self {
        let texts = |bundled: &[(&str, &str)]| {
            bundled.iter().map(|&(name, text)| (name.to_owned(), text.to_owned())).collect()
        };
        Catalog { profiles: texts(BUNDLED), providers: texts(crate::provider::BUNDLED) }
    }

    /// The rules of `names` with includes followed, duplicates removed, first source kept.
    /// An unknown name, an include cycle or a bad line is an error; the error hints at the nearest known name.
    pub fn resolve(&self, names: &[String]) -> Result<Vec<Sourced>, ProfileError> {
        let mut walk = Walk {
            catalog: self,
            open: Vec::new(),
            done: HashSet::new(),
            seen: HashSet::new(),
            rules: Vec::new(),
        };
        for name in names {
            walk.visit(name, None)?;
        }
        Ok(walk.rules)
    }
}

/// Reads the text of a profile into its lines, each with its number from 1.
pub fn parse(profile: &str, text: &str) -> Result<Vec<(usize, Entry)>, ProfileError> {
    let mut entries = Vec::new();
    for (line, text) in text.lines().enumerate().map(|(index, text)| (index + 1, text)) {
        let text = text.split('#').next().unwrap_or(text).trim();
        let refuse = |reason| ProfileError { profile: profile.to_owned(), line, reason };
        let entry = match text.strip_prefix("include").filter(|rest| rest.starts_with(char::is_whitespace)) {
            _ if text.is_empty() => continue,
            Some(name) if is_profile_name(name.trim()) => Entry::Include(name.trim().to_owned()),
            Some(name) => return Err(refuse(format!("{:?} is no profile name", name.trim()))),
            None => {
                Entry::Rule(text.parse().map_err(|error: crate::rule::RuleError| refuse(error.to_string()))?)
            }
        };
        entries.push((line, entry));
    }
    Ok(entries)
}

/// Whether `name` may name a profile: 1 to 64 of `[a-z0-9_-]`, starting with a letter or digit.
pub fn is_profile_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-'))
}

struct Walk<'a> {
    catalog: &'a Catalog,
    /// The profiles whose lines are being read, outermost first.
    open: Vec<&'a str>,
    done: HashSet<&'a str>,
    seen: HashSet<Rule>,
    rules: Vec<Sourced>,
}

impl<'a> Walk<'a> {
    fn visit(&mut self, name: &str, from: Option<(&str, usize)>) -> Result<(), ProfileError> {
        let refuse = |reason: String| match from {
            Some((profile, line)) => ProfileError { profile: profile.to_owned(), line, reason },
            None => ProfileError { profile: name.to_owned(), line: 0, reason },
        };
        let Some((name, text)) = self.catalog.profiles.get_key_value(name) else {
            let hint = spelling::hint(name, self.catalog.profiles.keys().map(String::as_str));
            return Err(refuse(match from {
                Some(_) => format!("include {name}: there is no such profile{hint}"),
                None => format!("there is no such profile{hint}"),
            }));
        };
        if self.open.contains(&name.as_str()) {
            return Err(refuse(format!(
                "include {name} goes round in a circle: {} → {name}",
                self.open.join(" → ")
            )));
        }
        if !self.done.insert(name) {
            return Ok(());
        }
        self.open.push(name);
        for (line, entry) in parse(name, text)? {
            match entry {
                Entry::Include(other) => self.visit(&other, Some((name, line)))?,
                Entry::Rule(rule) => {
                    if self.seen.insert(rule.clone()) {
                        self.rules.push(Sourced { rule, source: Source::Profile(name.clone()) });
                    }
                }
            }
        }
        self.open.pop();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::Target;

    fn catalog(profiles: &[(&str, &str)]) -> Catalog {
        let profiles = profiles.iter().map(|&(name, text)| (name.to_owned(), text.to_owned())).collect();
        Catalog { profiles, ..Catalog::default() }
    }

    fn resolve(profiles: &[(&str, &str)], names: &[&str]) -> Result<Vec<String>, String> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let rules = catalog(profiles).resolve(&names).map_err(|error| error.to_string())?;
        Ok(rules.iter().map(Sourced::to_string).collect())
    }

    #[test]
    fn includes_are_followed_and_the_first_source_of_a_rule_is_kept() {
        let profiles = [
            ("a", "# A\ninclude b\nx.example:443 # why\n"),
            ("b", "y.example:443\nx.example:443"),
            ("c", ""),
        ];
        assert_eq!(
            resolve(&profiles, &["c", "a", "b", "a"]).unwrap(),
            ["y.example:443 (profile b)", "x.example:443 (profile b)"]
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let profiles = [
            ("a", "\ninclude d\n"),
            ("b", "include c"),
            ("c", "include b"),
            ("dev", "x.example\nhttp://y"),
            ("e", "include E!"),
        ];
        let wrong = |name| resolve(&profiles, &[name]).unwrap_err();
        assert_eq!(wrong("a"), "profile a line 2: include d: there is no such profile; did you mean \"a\"?");
        assert_eq!(wrong("b"), "profile c line 1: include b goes round in a circle: b → c → b");
        assert_eq!(wrong("dev"), "profile dev line 2: \"http://y\": write the host name alone: y");
        assert_eq!(wrong("dew"), "profile dew: there is no such profile; did you mean \"dev\"?");
        assert_eq!(wrong("e"), "profile e line 1: \"E!\" is no profile name");
    }

    #[test]
    fn every_bundled_profile_can_be_used_alone_and_together() {
        let catalog = Catalog::bundled();
        let names: Vec<String> = catalog.profiles.keys().cloned().collect();
        assert_eq!(names.len(), BUNDLED.len());
        for name in &names {
            catalog.resolve(std::slice::from_ref(name)).unwrap();
        }
        let rules = catalog.resolve(&names).unwrap();
        let distinct: HashSet<_> = rules.iter().map(|sourced| &sourced.rule).collect();
        assert_eq!(distinct.len(), rules.len());
    }

    #[test]
    fn every_profile_in_the_folder_is_bundled() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../profiles");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .filter_map(|entry| {
                entry.unwrap().file_name().to_str().unwrap().strip_suffix(".txt").map(str::to_owned)
            })
            .collect();
        files.sort();
        assert_eq!(files, Catalog::bundled().profiles.into_keys().collect::<Vec<_>>());
    }

    #[test]
    fn bundled_profiles_say_whom_they_serve_name_every_port_and_hold_no_wildcard() {
        for (name, text) in Catalog::bundled().profiles {
            assert!(is_profile_name(&name));
            assert!(text.starts_with(&format!("# {name}: ")), "{name}: no header");
            assert!(
                text.lines().take(4).any(|line| line.starts_with("# For ")),
                "{name}: does not say whom it serves"
            );
            for (line, entry) in parse(&name, &text).unwrap() {
                let Entry::Rule(rule) = entry else { continue };
                let written = text.lines().nth(line - 1).unwrap().split('#').next().unwrap().trim();
                assert!(written.contains(':'), "{name} line {line}: no port in {written:?}");
                assert!(
                    matches!(rule.target, Target::Name(_)),
                    "{name} line {line}: {written:?} is no single host"
                );
                assert_ne!(rule.ports, crate::rule::Ports::all(), "{name} line {line}: every port");
                assert!(
                    !rule.direct && rule.proto == crate::rule::Proto::Tcp,
                    "{name} line {line}: needs a card"
                );
            }
        }
    }
}
