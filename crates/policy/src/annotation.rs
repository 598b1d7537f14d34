//! The public interface: the `terok.` annotation table and its strict parser (A1), both directions.

mod publish;
mod vault;

use crate::floor;
use crate::policy::{Labels, Policy, Shield, Source, Sourced};
use crate::profile::{Catalog, is_profile_name};
use crate::rule::{Rule, Target};
use crate::spelling;
use std::collections::{BTreeMap, HashSet};

/// Prefix of every key.
pub const PREFIX: &str = "terok.";
/// State of the firewall at start.
pub const SHIELD: &str = "terok.shield";
/// Profiles of egress rules.
pub const PROFILES: &str = "terok.shield.profiles";
/// Rules that allow.
pub const ALLOW: &str = "terok.shield.allow";
/// Rules that deny.
pub const DENY: &str = "terok.shield.deny";
/// How long a connection that no rule names waits for an operator.
pub const HOLD: &str = "terok.shield.hold";
/// Lets through and records what is not denied.
pub const LEARN: &str = "terok.shield.learn";
/// Ports of the container that the host listens for.
pub const PUBLISH: &str = "terok.publish";
/// Providers whose credentials the container may use through the broker.
pub const VAULT: &str = "terok.vault";
/// SSH keys whose signatures the container may have.
pub const SSH: &str = "terok.ssh";
/// Stricter confinement of the container itself.
pub const RESTRICTED: &str = "terok.restricted";
/// Label: project.
pub const PROJECT: &str = "terok.project";
/// Label: task.
pub const TASK: &str = "terok.task";
/// Label: name.
pub const NAME: &str = "terok.name";

/// One annotation key: parser, launcher, hook JSON, docs and man pages read this table.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Full key, `terok.shield.allow`.
    pub key: &'static str,
    /// Form of the value, `RULE…`.
    pub value: &'static str,
    /// What holds when absent.
    pub default: &'static str,
    /// An example value.
    pub example: &'static str,
    /// One sentence.
    pub help: &'static str,
    /// Whether the value can grant something, so that an image must not set it (A2); [`grant`] looks at the value.
    pub grants: bool,
    read: fn(&mut Draft, &str) -> Result<(), String>,
}

/// Every key this version accepts.
pub const KEYS: &[Key] = &[
    Key {
        key: SHIELD,
        value: "up | down | block",
        default: "up",
        example: "up",
        help: "State of the firewall at start: default deny, everything but the floor and the denies, or nothing.",
        grants: true,
        read: |draft, value| {
            draft.policy.shield = match value {
                "up" => Shield::Up,
                "down" => Shield::Down,
                "block" => Shield::Block,
                _ => return Err(choice(value, &["up", "down", "block"])),
            };
            Ok(())
        },
    },
    Key {
        key: PROFILES,
        value: "PROFILE…",
        default: "base",
        example: "dev-standard dev-python",
        help: "Profiles whose rules are allowed; `none` for no profile at all.",
        grants: true,
        read: |draft, value| {
            draft.policy.profiles = profiles(value)?;
            Ok(())
        },
    },
    Key {
        key: ALLOW,
        value: "RULE…",
        default: "none",
        example: "api.example.com:443 *.pkg.example.org",
        help: "Egress rules that allow, beside those of the profiles.",
        grants: true,
        read: |draft, value| {
            draft.policy.allow = rules(value, |text| text.parse())?;
            Ok(())
        },
    },
    Key {
        key: DENY,
        value: "RULE…",
        default: "none",
        example: "gist.github.com",
        help: "Egress rules that deny; they beat every allow, and what is written without ports is closed altogether, UDP and ICMP included.",
        grants: false,
        read: |draft, value| {
            draft.policy.deny = rules(value, Rule::parse_deny)?;
            Ok(())
        },
    },
    Key {
        key: HOLD,
        value: "TIME",
        default: "0s",
        example: "30s",
        help: "How long an unlisted connection waits for an operator's verdict, in seconds or minutes; 0s refuses at once.",
        grants: false,
        read: |draft, value| {
            draft.policy.hold = hold(value)?;
            Ok(())
        },
    },
    Key {
        key: LEARN,
        value: "true | false",
        default: "false",
        example: "true",
        help: "Lets through and records what is neither denied nor private, for `terok profile learn`.",
        grants: true,
        read: |draft, value| {
            draft.policy.learn = truth(value)?;
            Ok(())
        },
    },
    Key {
        key: PUBLISH,
        value: "[ADDR:]PORT:CONTAINER-PORT…",
        default: "none",
        example: "8080:80",
        help: "TCP ports of the container that the host listens for, on its loopback unless an address is written; neighbours on its networks reach them too.",
        grants: true,
        read: |draft, value| {
            draft.policy.publish = publish::parse(value)?;
            Ok(())
        },
    },
    Key {
        key: VAULT,
        value: "PROVIDER[=CREDENTIAL]…",
        default: "none",
        example: "anthropic github=work",
        help: "Providers whose API the container may use with a credential of the vault, which stays on the host; `default` where none is written.",
        grants: true,
        read: |draft, value| {
            draft.vault = vault::providers(value)?;
            Ok(())
        },
    },
    Key {
        key: SSH,
        value: "KEY[@HOST]…",
        default: "none",
        example: "work@github.com",
        help: "SSH keys of the vault that sign logins and commits for the container; with @HOST only for that host.",
        grants: true,
        read: |draft, value| {
            draft.policy.ssh = vault::keys(value)?;
            Ok(())
        },
    },
    Key {
        key: RESTRICTED,
        value: "true | false",
        default: "false",
        example: "true",
        help: "No new privileges, no capabilities and a stricter seccomp filter for what runs inside.",
        grants: false,
        read: |draft, value| {
            draft.policy.restricted = truth(value)?;
            Ok(())
        },
    },
    Key {
        key: PROJECT,
        value: "TEXT",
        default: "empty",
        example: "website",
        help: "Label for audit and prompts: the project.",
        grants: false,
        read: |draft, value| {
            draft.policy.labels.project = label(value)?;
            Ok(())
        },
    },
    Key {
        key: TASK,
        value: "TEXT",
        default: "empty",
        example: "fix-login",
        help: "Label for audit and prompts: the task.",
        grants: false,
        read: |draft, value| {
            draft.policy.labels.task = label(value)?;
            Ok(())
        },
    },
    Key {
        key: NAME,
        value: "TEXT",
        default: "the container's name",
        example: "agent-3",
        help: "Label for audit and prompts: the container.",
        grants: false,
        read: |draft, value| {
            draft.policy.labels.name = label(value)?;
            Ok(())
        },
    },
];

/// Keys of the interface that a later version of terok brings; refused until then, so that nobody believes in them.
pub const LATER: &[&str] = &["terok.gate"];

/// Why annotations are refused: key, value, reason and the nearest valid spelling (A1).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}={value:?}: {reason}")]
pub struct AnnotationError {
    /// The key as given.
    pub key: String,
    /// The value as given (cut to 200 characters).
    pub value: String,
    /// What is wrong, with a hint.
    pub reason: String,
}

/// Whether any key is ours.
pub fn concerns(annotations: &BTreeMap<String, String>) -> bool {
    annotations.keys().any(|key| key.starts_with(PREFIX))
}

/// Parses the `terok.` keys of `annotations` (others are ignored) and resolves profiles in `catalog`.
pub fn parse(annotations: &BTreeMap<String, String>, catalog: &Catalog) -> Result<Policy, AnnotationError> {
    let refuse = |key: &str, value: &str, reason: String| AnnotationError {
        key: key.chars().take(200).flat_map(char::escape_default).collect(),
        value: value.chars().take(200).collect(),
        reason,
    };
    let mut draft = Draft::default();
    draft.policy.profiles.push("base".to_owned());
    for (key, value) in annotations.iter().filter(|(key, _)| key.starts_with(PREFIX)) {
        let Some(known) = KEYS.iter().find(|known| known.key == key) else {
            if LATER.contains(&key.as_str()) {
                return Err(refuse(key, value, "not available in this version of terok; remove it".into()));
            }
            let hint = spelling::hint(key, KEYS.iter().map(|known| known.key).chain(LATER.iter().copied()));
            return Err(refuse(key, value, format!("unknown key{hint}")));
        };
        (known.read)(&mut draft, value).map_err(|reason| refuse(key, value, reason))?;
    }
    let Draft { mut policy, vault } = draft;
    policy.vault = vault::resolved(&vault, policy.restricted, catalog)
        .map_err(|reason| refuse(VAULT, annotations.get(VAULT).map_or("", String::as_str), reason))?;
    vault::add_rules(&mut policy);
    let from_profiles = catalog.resolve(&policy.profiles).map_err(|error| {
        let asked = annotations.get(PROFILES).map_or("base", String::as_str);
        refuse(PROFILES, asked, error.to_string())
    })?;
    if !from_profiles.is_empty() {
        let written: HashSet<&Rule> = policy.allow.iter().map(|sourced| &sourced.rule).collect();
        let mut more = from_profiles;
        more.retain(|sourced| !written.contains(&sourced.rule));
        drop(written);
        policy.allow.append(&mut more);
    }
    Ok(policy)
}

/// The annotations that parse back to `policy`: rules from profiles are left to the profiles key.
pub fn render(policy: &Policy) -> BTreeMap<String, String> {
    let Policy {
        shield,
        profiles,
        allow,
        deny,
        restricted,
        labels: Labels { project, task, name },
        hold,
        learn,
        publish,
        vault,
        ssh,
    } = policy;
    let own = |sourced: &&Sourced| sourced.source == Source::Annotation;
    let allow: Vec<String> = allow.iter().filter(own).map(|sourced| sourced.rule.to_string()).collect();
    let deny: Vec<String> = deny.iter().filter(own).map(|sourced| sourced.rule.to_deny_string()).collect();
    let profiles = match profiles.as_slice() {
        [] => "none".to_owned(),
        [only] if only == "base" => String::new(),
        several => several.join(" "),
    };
    let hold = match hold {
        0 => String::new(),
        seconds if seconds % 60 == 0 => format!("{}m", seconds / 60),
        seconds => format!("{seconds}s"),
    };
    fn joined<T: ToString>(items: &[T]) -> String {
        items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }
    let truth = |value: bool| if value { "true".to_owned() } else { String::new() };
    // The state is always written, so that even the default policy summons the hook.
    let values = [
        (SHIELD, shield.to_string()),
        (PROFILES, profiles),
        (ALLOW, allow.join(" ")),
        (DENY, deny.join(" ")),
        (HOLD, hold),
        (LEARN, truth(*learn)),
        (PUBLISH, joined(publish)),
        (VAULT, joined(vault)),
        (SSH, joined(ssh)),
        (RESTRICTED, truth(*restricted)),
        (PROJECT, project.clone()),
        (TASK, task.clone()),
        (NAME, name.clone()),
    ];
    let given = values.into_iter().filter(|(_, value)| !value.is_empty());
    given.map(|(key, value)| (key.to_owned(), value)).collect()
}

/// What in `policy` opens more than public names, as `key=value`: an image must never be the one who says it (A2).
pub fn grant(policy: &Policy) -> Option<String> {
    if policy.shield == Shield::Down {
        return Some(format!("{SHIELD}=down"));
    }
    if policy.learn {
        return Some(format!("{LEARN}=true"));
    }
    if let Some(publish) = policy.publish.first() {
        return Some(format!("{PUBLISH}={publish}"));
    }
    if let Some(grant) = policy.vault.first() {
        return Some(format!("{VAULT}={grant}"));
    }
    if let Some(grant) = policy.ssh.first() {
        return Some(format!("{SSH}={grant}"));
    }
    let blocks = floor::blocks();
    let private = |rule: &Rule| match rule.target {
        Target::Host => true,
        Target::Net(net) => {
            let (first, last) = net.range();
            blocks
                .iter()
                .map(|block| block.range())
                .any(|(from, to)| from.is_ipv4() == first.is_ipv4() && from <= last && first <= to)
        }
        _ => false,
    };
    let own = policy.allow.iter().filter(|sourced| sourced.source == Source::Annotation);
    own.map(|sourced| &sourced.rule).find(|rule| private(rule)).map(|rule| format!("{ALLOW}={rule}"))
}

#[derive(Default)]
struct Draft {
    policy: Policy,
    /// Provider and credential, before the providers are looked up.
    vault: Vec<(String, String)>,
}

fn choice(value: &str, choices: &[&str]) -> String {
    format!("write {}{}", choices.join(" or "), spelling::hint(value, choices.iter().copied()))
}

fn truth(value: &str) -> Result<bool, String> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(choice(value, &["true", "false"])),
    }
}

/// Seconds.
fn hold(value: &str) -> Result<u32, String> {
    const LONGEST: u32 = 600;
    let (number, unit) = match (value.strip_suffix('s'), value.strip_suffix('m')) {
        (Some(number), _) => (number, 1),
        (_, Some(number)) => (number, 60),
        _ => (value, 0),
    };
    let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    match number.parse::<u32>() {
        Ok(number) if digits && unit > 0 => match number.checked_mul(unit) {
            Some(seconds) if seconds <= LONGEST => Ok(seconds),
            _ => Err(format!("a connection waits at most {} minutes: write {}m", LONGEST / 60, LONGEST / 60)),
        },
        Ok(_) if digits => Err(format!("write a unit: {number}s or {number}m")),
        _ => Err("write seconds or minutes, such as 30s or 2m".into()),
    }
}

fn items(value: &str) -> impl Iterator<Item = &str> {
    value.split(|c: char| c == ',' || c.is_ascii_whitespace()).filter(|item| !item.is_empty())
}

fn profiles(value: &str) -> Result<Vec<String>, String> {
    let mut names: Vec<String> = Vec::new();
    for name in items(value) {
        if !is_profile_name(name) {
            return Err(format!("{name:?} is no profile name: a to z, 0 to 9, - and _"));
        }
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    match names.iter().position(|name| name == "none") {
        None => Ok(names),
        Some(_) if names.len() == 1 => Ok(Vec::new()),
        Some(_) => Err("`none` stands alone: remove it or the profiles beside it".into()),
    }
}

fn rules(
    value: &str,
    parse: impl Fn(&str) -> Result<Rule, crate::rule::RuleError>,
) -> Result<Vec<Sourced>, String> {
    let mut rules = Vec::new();
    let mut items = items(value).peekable();
    while let Some(item) = items.next() {
        let direct = items.next_if_eq(&"direct").map(|_| format!("{item} direct"));
        if item == "direct" {
            return Err("`direct` follows the rule it belongs to".into());
        }
        let rule = parse(direct.as_deref().unwrap_or(item));
        // A list of one rule is in the message already.
        rules.push(rule.map_err(|error| if error.text == value { error.reason } else { error.to_string() })?);
    }
    let first = {
        let mut seen = HashSet::with_capacity(rules.len());
        rules.iter().map(|rule| seen.insert(rule)).collect::<Vec<bool>>()
    };
    let sourced = |rule| Sourced { rule, source: Source::Annotation };
    Ok(rules.into_iter().zip(first).filter_map(|(rule, first)| first.then(|| sourced(rule))).collect())
}

/// Labels appear in prompts and on terminals, so nothing in them may move the cursor or turn the reading direction.
fn label(value: &str) -> Result<String, String> {
    let unseen = |c: char| {
        c.is_control()
            || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
            || matches!(c, '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
    };
    if let Some(c) = value.chars().find(|&c| unseen(c)) {
        return Err(format!("a label is printable text; remove {}", c.escape_default()));
    }
    match value.chars().count() {
        0..=128 => Ok(value.to_owned()),
        long => Err(format!("a label has at most 128 characters; this one has {long}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    fn read(pairs: &[(&str, &str)]) -> Result<Policy, String> {
        parse(&map(pairs), &Catalog::bundled()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_table_says_each_key_once_and_its_examples_parse() {
        let keys: HashSet<_> = KEYS.iter().map(|known| known.key).chain(LATER.iter().copied()).collect();
        assert_eq!(keys.len(), KEYS.len() + LATER.len());
        for known in KEYS {
            assert!(known.key.starts_with(PREFIX));
            assert!(known.help.ends_with('.'));
            read(&[(known.key, known.example)]).unwrap();
        }
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_spelling() {
        assert_eq!(
            read(&[("terok.sheild.allow", "a.example")]).unwrap_err(),
            r#"terok.sheild.allow="a.example": unknown key; did you mean "terok.shield.allow"?"#
        );
        assert_eq!(read(&[("terok.", "")]).unwrap_err(), r#"terok.="": unknown key"#);
        assert_eq!(read(&[("terok.\n\u{1b}[2J", "")]).unwrap_err(), r#"terok.\n\u{1b}[2J="": unknown key"#);
    }

    #[test]
    fn a_key_of_a_later_version_is_refused_as_such() {
        for key in LATER {
            assert!(read(&[(key, "x")]).unwrap_err().contains("not available in this version"), "{key}");
        }
    }

    #[test]
    fn a_bad_value_is_refused_with_key_value_and_hint() {
        for (key, value, hint) in [
            (SHIELD, "dwon", r#"did you mean "down"?"#),
            (SHIELD, "UP", r#"did you mean "up"?"#),
            (SHIELD, "", "write up or down or block"),
            (RESTRICTED, "yes", "write true or false"),
            (PROFILES, "dev-pyton", r#"did you mean "dev-python"?"#),
            (PROFILES, "none base", "stands alone"),
            (PROFILES, "../etc", "no profile name"),
            (ALLOW, "https://a.example", "write the host name alone: a.example"),
            (ALLOW, "direct a.example", "follows the rule"),
            (ALLOW, "a.example direct direct", "follows the rule"),
            (DENY, "10.0.0.1/8", "write 10.0.0.0/8"),
            (HOLD, "30", "write a unit: 30s or 30m"),
            (HOLD, "1h", "such as 30s"),
            (HOLD, "+5s", "such as 30s"),
            (HOLD, "11m", "at most 10 minutes"),
            (HOLD, "71582789m", "at most 10 minutes"),
            (LEARN, "ture", r#"did you mean "true"?"#),
            (PUBLISH, "80", "PORT:CONTAINER-PORT"),
            (PUBLISH, "8080:80 127.0.0.1:8080:81", "8080 on 127.0.0.1 twice"),
            (NAME, "a\u{1b}[2J", "printable"),
            (NAME, "a\u{202e}b", "printable"),
        ] {
            let error = read(&[(key, value)]).unwrap_err();
            assert!(error.starts_with(key) && error.contains(hint), "{error}");
            assert!(!error.contains('\n') && !error.contains('\u{1b}'), "{error:?}");
        }
        assert!(read(&[(TASK, &"x".repeat(129))]).is_err());
    }

    #[test]
    fn other_annotations_are_nobodys_business() {
        let others = map(&[("io.podman.x", "y"), ("terokx", "y")]);
        assert!(!concerns(&others));
        assert_eq!(parse(&others, &Catalog::bundled()).unwrap(), read(&[]).unwrap());
        assert!(concerns(&map(&[("terok.nonsense", "")])));
    }

    #[test]
    fn the_word_direct_in_other_letters_is_no_host_name() {
        for value in ["a.example dirEct", "a.example Direct:443", "DIRECT"] {
            assert!(read(&[(ALLOW, value)]).unwrap_err().contains("small letters"), "{value}");
        }
        assert_eq!(read(&[(ALLOW, "*.direct")]).unwrap().allow.len(), 1);
    }

    #[test]
    fn lists_are_separated_by_spaces_or_commas_and_direct_belongs_to_the_rule_before_it() {
        let spaced = read(&[(ALLOW, "a.example:443 direct  b.example 192.0.2.0/24:22")]).unwrap();
        let commas = read(&[(ALLOW, "a.example:443 direct,b.example, 192.0.2.0/24:22,")]).unwrap();
        assert_eq!(spaced, commas);
        let rules: Vec<String> = spaced.allow.iter().map(|sourced| sourced.rule.to_string()).collect();
        assert_eq!(rules, ["a.example:443 direct", "b.example", "192.0.2.0/24:22"]);
    }

    #[test]
    fn no_profile_at_all_can_be_asked_for() {
        assert_eq!(read(&[]).unwrap().profiles, ["base"]);
        for value in ["", "none", " none "] {
            assert!(read(&[(PROFILES, value)]).unwrap().profiles.is_empty());
        }
    }

    #[test]
    fn what_opens_more_than_public_names_is_a_grant() {
        for (key, value) in [
            (SHIELD, "down"),
            (LEARN, "true"),
            (PUBLISH, "8080:80"),
            (ALLOW, "10.0.0.1"),
            (ALLOW, "host:80"),
            (ALLOW, "a.example 169.254.0.0/16:80"),
            (ALLOW, "0.0.0.0/0"),
            (ALLOW, "fd00::1"),
        ] {
            assert!(grant(&read(&[(key, value)]).unwrap()).is_some(), "{key}={value}");
        }
        let modest = [(ALLOW, "a.example any 198.51.100.10"), (DENY, "10.0.0.0/8"), (HOLD, "30s")];
        assert_eq!(grant(&read(&modest).unwrap()), None);
    }

    fn annotations() -> impl Strategy<Value = BTreeMap<String, String>> {
        let rule = prop_oneof![
            "(\\*\\.)?[a-z]{1,6}\\.example(:[1-9][0-9]{0,3}([+-][1-9][0-9]{0,3})?)?(/udp)?( direct)?",
            any::<[u8; 4]>().prop_map(|[a, b, c, d]| format!("{}.{b}.{c}.{d}:22", a.max(1))),
            any::<u16>().prop_map(|low| format!("2001:db8::{low:x}")),
            "host:[1-9][0-9]{0,3}|any|any:[1-9][0-9]{0,3}",
        ];
        let list = proptest::collection::vec(rule, 0..6).prop_map(|rules| rules.join(", "));
        let profiles = prop_oneof![
            Just("none".to_owned()),
            Just("base".to_owned()),
            Just("dev-rust,git-hosts".to_owned())
        ];
        (
            proptest::option::of("up|down|block"),
            proptest::option::of(profiles),
            (proptest::option::of(list.clone()), proptest::option::of(list)),
            (
                proptest::option::of("true|false"),
                proptest::option::of("true|false"),
                proptest::option::of("[0-9]{1,3}s|([0-9]|10)m"),
                proptest::option::of(
                    "(127\\.0\\.0\\.1:|\\[::1\\]:)?[1-9][0-9]{0,3}:80, 0\\.0\\.0\\.0:[1-9]:1",
                ),
            ),
            proptest::collection::vec(proptest::option::of("[a-zA-Z0-9 ,=ü-]{0,20}"), 3),
            (
                proptest::option::of("(anthropic(=[a-z]{1,4})?|)( |,)(github|gitlab|openai=@[0-9a-f]{32})"),
                proptest::option::of("[a-z]{1,3}(@[a-z]{1,3}\\.example)?( ,?[a-z]@x)?"),
            ),
        )
            .prop_map(
                |(
                    shield,
                    profiles,
                    (allow, deny),
                    (restricted, learn, hold, publish),
                    labels,
                    (vault, ssh),
                )| {
                    let mut labels = labels.into_iter();
                    let mut label = || labels.next().flatten();
                    [
                        (SHIELD, shield),
                        (PROFILES, profiles),
                        (ALLOW, allow),
                        (DENY, deny),
                        (RESTRICTED, restricted),
                        (LEARN, learn),
                        (HOLD, hold),
                        (PUBLISH, publish),
                        (VAULT, vault),
                        (SSH, ssh),
                        (PROJECT, label()),
                        (TASK, label()),
                        (NAME, label()),
                    ]
                    .into_iter()
                    .filter_map(|(key, value)| Some((key.to_owned(), value?)))
                    .collect()
                },
            )
    }

    proptest! {
        #[test]
        fn a_policy_survives_being_written_as_annotations(annotations in annotations()) {
            let catalog = Catalog::bundled();
            if let Ok(policy) = parse(&annotations, &catalog) {
                let rendered = render(&policy);
                prop_assert_eq!(&parse(&rendered, &catalog).unwrap(), &policy);
                prop_assert_eq!(render(&policy), rendered);
            }
        }

        #[test]
        fn no_annotation_panics(key in "(terok\\.)?[a-z.]{0,12}", value in "\\PC{0,60}") {
            let annotations = [(key, value.clone()), (ALLOW.to_owned(), value.clone()), (NAME.to_owned(), value)].into();
            let _ = parse(&annotations, &Catalog::bundled());
        }
    }
}
