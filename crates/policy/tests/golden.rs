//! Golden cases: `tests/golden/<case>/annotations` (a `KEY=VALUE` a line) and what becomes of them, as reviewable text:
//! `policy`, `plan`, `ruleset` or `error`; with `facts`, those of the host (else a sealed container's), and the table at the
//! cards, `egress`; with `grants`, a `NAME ADDRESS UNTIL` a line; with `questions`, their `verdicts`; with `live`, the
//! operator's state in force at Unix second 1000; with `config` (the name of a fixture), `amended`: what the edit changes, Docker's
//! default CAP_NET_RAW over a card included.
//! `UPDATE_GOLDEN=1` rewrites the results.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use terok_policy::grants::Grants;
use terok_policy::live::Live;
use terok_policy::plan::{HostFacts, Network, Now, Plan, Wiring};
use terok_policy::policy::VaultGrant;
use terok_policy::profile::Catalog;
use terok_policy::provision::Issued;
use terok_policy::rule::Proto;
use terok_policy::{Policy, Query, Verdict, amend, annotation, judge, phantom, provision};

const NOW: u64 = 1_000;
const WIRING: Wiring =
    Wiring { dns_udp: 40_001, dns_tcp: 40_002, proxy: 40_003, peers: 40_004, mark: 0x7465_726f };
const RESULTS: [&str; 7] = ["policy", "plan", "ruleset", "egress", "error", "verdicts", "amended"];

#[test]
fn every_golden_case_gives_what_is_written() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut cases: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(cases.len() >= 12);
    let mut wrong = Vec::new();
    for case in cases {
        let results = results(&case);
        for name in RESULTS {
            let file = case.join(name);
            let written = std::fs::read_to_string(&file).ok();
            let result = results.get(name);
            if written.as_ref() == result {
                continue;
            }
            match (update, result) {
                (true, Some(result)) => std::fs::write(&file, result).unwrap(),
                (true, None) => std::fs::remove_file(&file).unwrap(),
                (false, _) => wrong.push(format!("{}: {}", file.display(), difference(written, result))),
            }
        }
    }
    assert!(wrong.is_empty(), "{}\n(UPDATE_GOLDEN=1 rewrites)", wrong.join("\n"));
}

fn difference(written: Option<String>, result: Option<&String>) -> String {
    let (Some(written), Some(result)) = (written.as_ref(), result) else {
        return if result.is_some() { "is missing".into() } else { "should not be there".into() };
    };
    let pair = written.lines().zip(result.lines()).find(|(a, b)| a != b);
    pair.map_or("differs in length".into(), |(a, b)| format!("\n  written {a}\n  is      {b}"))
}

fn results(case: &Path) -> BTreeMap<&'static str, String> {
    let read = |name: &str| std::fs::read_to_string(case.join(name)).ok();
    let annotations: BTreeMap<String, String> = read("annotations")
        .unwrap()
        .lines()
        .map(|line| line.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned())).unwrap())
        .collect();
    let live: Live = read("live").map_or_else(Live::default, |text| serde_json::from_str(&text).unwrap());
    let policy = match annotation::parse(&annotations, &Catalog::bundled()) {
        Ok(policy) => policy,
        Err(error) => return [("error", format!("{error}\n"))].into(),
    };
    let mut results = BTreeMap::new();
    results.insert("policy", serde_json::to_string_pretty(&policy).unwrap() + "\n");
    let facts = read("facts");
    let facts: HostFacts =
        facts.map_or_else(|| HostFacts::sealed(true), |text| serde_json::from_str(&text).unwrap());
    let grants = grants(&read("grants").unwrap_or_default());
    match Plan::new(policy.clone(), facts.clone()) {
        Ok(plan) => {
            let now = Now { live: &live, grants: &grants, unix: NOW };
            results.insert("plan", plan.to_string());
            results.insert("ruleset", plan.ruleset(&WIRING, &now).to_string());
            results.extend(plan.egress(&WIRING).map(|egress| ("egress", egress.to_string())));
        }
        Err(error) => {
            results.insert("error", format!("{error}\n"));
        }
    }
    if let Some(questions) = read("questions") {
        results.insert("verdicts", verdicts(&policy, &live, &questions));
    }
    if let Some(fixture) = read("config") {
        results.insert("amended", amended(&policy, &facts, fixture.trim()));
    }
    results
}

fn grants(text: &str) -> Grants {
    let mut grants = Grants::default();
    for line in text.lines() {
        let mut words = line.split(' ');
        let mut word = || words.next().unwrap();
        grants.grant(&word().parse().unwrap(), &[word().parse().unwrap()], word().parse().unwrap());
    }
    grants
}

/// `NAME?`, `NAME:PORT`, `IP:PORT` or `host:PORT`, one a line.
fn verdicts(policy: &Policy, live: &Live, questions: &str) -> String {
    let state = live.shield(policy.shield, NOW);
    let proto = Proto::Tcp;
    let mut answers = String::new();
    for question in questions.lines() {
        let verdict = match (question.strip_suffix('?'), question.rsplit_once(':')) {
            (Some(name), _) => judge(policy, live, state, &Query::Resolve(&name.parse().unwrap())),
            (None, Some((target, port))) => {
                let port = port.parse().unwrap();
                match target.trim_matches(['[', ']']).parse() {
                    Ok(ip) => judge(policy, live, state, &Query::Literal { ip, port, proto }),
                    Err(_) if target == "host" => judge(policy, live, state, &Query::Host { port, proto }),
                    Err(_) => judge(
                        policy,
                        live,
                        state,
                        &Query::Name { name: &target.parse().unwrap(), port, proto },
                    ),
                }
            }
            (None, None) => panic!("{question:?} is no question"),
        };
        let answer = match verdict {
            Verdict::Allow { rule } => format!("allow   {rule}"),
            Verdict::Down => "allow   the shield is down".to_owned(),
            Verdict::Learn => "allow   learning".to_owned(),
            Verdict::Operator => unreachable!("not a verdict of the policy"),
            Verdict::Refuse { reason, rule } => {
                let reason = serde_json::to_value(reason).unwrap();
                let rule = rule.map(|rule| format!(": {rule}")).unwrap_or_default();
                format!("refuse  {}{rule}", reason.as_str().unwrap())
            }
        };
        writeln!(answers, "{question:<40} {answer}").unwrap();
    }
    answers
}

/// What `amend` changes in a captured configuration: system calls that lost or won a rule, and every other value.
fn amended(policy: &Policy, facts: &HostFacts, fixture: &str) -> String {
    let path = format!("{}/tests/fixtures/{fixture}.json", env!("CARGO_MANIFEST_DIR"));
    let mut before: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let token = |grant: &VaultGrant| phantom::token(&grant.provider.token, &[7; phantom::MOST]);
    let issued = Issued { tokens: policy.vault.iter().map(token).collect() };
    let provision = provision::provision(policy, &issued, "/run/user/1000/terok/.birth/x/inside");
    let drops = ["docker", "containerd"].iter().any(|engine| fixture.starts_with(engine));
    let given = match facts.network == Network::Filtered && drops {
        true => amend::without_raw_sockets(before.clone()).unwrap(),
        false => before.clone(),
    };
    let amended = match amend::amend(given, policy) {
        Ok(amended) => amended,
        Err(refusal) => return format!("refused: {refusal}\n"),
    };
    let mut after = amend::provide(amended, &provision).unwrap();
    let (rules_before, rules_after) = (take_rules(&mut before), take_rules(&mut after));
    let (mut values_before, mut values_after) = (BTreeSet::new(), BTreeSet::new());
    leaves("", &before, &mut values_before);
    leaves("", &after, &mut values_after);
    let mut changes = String::new();
    for (was, is) in [(&values_before, &values_after), (&rules_before, &rules_after)] {
        was.difference(is).for_each(|gone| writeln!(changes, "- {gone}").unwrap());
        is.difference(was).for_each(|new| writeln!(changes, "+ {new}").unwrap());
    }
    changes
}

fn take_rules(config: &mut Value) -> BTreeSet<String> {
    let Some(seccomp) = config["linux"]["seccomp"].as_object_mut() else { return BTreeSet::new() };
    let rules = seccomp.remove("syscalls").unwrap();
    let mut lines = BTreeSet::new();
    for rule in rules.as_array().unwrap() {
        let action = rule["action"].as_str().unwrap().trim_start_matches("SCMP_ACT_");
        let errno = rule["errnoRet"].as_u64().map(|errno| format!("({errno})")).unwrap_or_default();
        let conditions: Vec<String> = rule["args"].as_array().into_iter().flatten().map(condition).collect();
        for name in rule["names"].as_array().unwrap() {
            lines.insert(format!("{}({}) {action}{errno}", name.as_str().unwrap(), conditions.join(" and ")));
        }
    }
    lines
}

fn condition(arg: &Value) -> String {
    let (index, value, two) = (&arg["index"], &arg["value"], &arg["valueTwo"]);
    match arg["op"].as_str().unwrap().trim_start_matches("SCMP_CMP_") {
        "MASKED_EQ" => format!("{index} & {:#x} = {two}", value.as_u64().unwrap()),
        op => format!("{index} {op} {value}"),
    }
}

fn leaves(place: &str, value: &Value, lines: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(key, value)| leaves(&format!("{place}/{key}"), value, lines))
        }
        value => {
            lines.insert(format!("{place} {value}"));
        }
    }
}
