//! `terok explain`: what annotations mean, with no effect on anything (A3).

use crate::{cli::Json, profiles, run, show};
use anyhow::{Context as _, bail};
use std::collections::BTreeMap;
use std::net::IpAddr;
use terok_install::host::Host;
use terok_policy::live::Live;
use terok_policy::plan::Network;
use terok_policy::policy::{Policy, Sourced};
use terok_policy::rule::Proto;
use terok_policy::{Name, Plan, Query, Verdict, annotation, judge};

/// Prints the plan, and the verdict on each question.
pub(crate) fn explain(
    host: &Host,
    given: &[String],
    asked: &[String],
    network: &str,
    json: Json,
) -> anyhow::Result<()> {
    let facts = run::facts(network)?;
    let mut annotations = BTreeMap::new();
    for text in given {
        let (key, value) = text.split_once('=').with_context(|| format!("{text:?}: write KEY=VALUE"))?;
        if !key.starts_with(annotation::PREFIX) {
            bail!("{key}: not a key of terok; they begin with {}", annotation::PREFIX);
        }
        if annotations.insert(key.to_owned(), value.to_owned()).is_some() {
            bail!("{key} is given twice");
        }
    }
    let policy = annotation::parse(&annotations, &profiles::catalog(host)?)?;
    let plan = Plan::new(policy, facts)?;
    let questions: Vec<Question> =
        asked.iter().map(|text| Question::parse(text)).collect::<Result<_, _>>()?;
    let verdicts = questions.iter().map(|question| {
        let query = question.query();
        judge(&plan.policy, &Live::default(), plan.policy.shield, &query)
    });
    if json.json {
        let verdicts: Vec<_> = asked
            .iter()
            .zip(verdicts)
            .zip(&questions)
            .map(|((text, verdict), question)| match question.port() {
                DNS => serde_json::json!({"ask": text, "answer": {"verdict": "dns"}}),
                _ => serde_json::json!({"ask": text, "answer": verdict}),
            })
            .collect();
        let value = serde_json::json!({"policy": plan.policy, "verdicts": verdicts});
        say!("{}", serde_json::to_string(&value)?)?;
        return Ok(());
    }
    say!("{}", plan.to_string().trim_end())?;
    if plan.facts.network == Network::Filtered {
        say!(
            "note        the card is an example: the networks and gateways of the real one are known at the start"
        )?;
    }
    for ((text, question), verdict) in asked.iter().zip(&questions).zip(verdicts) {
        // Redirected before any rule is asked (the table's first rules).
        let answer = match question.port() {
            DNS => "answered by terok's own DNS server, as every question to port 53 is".to_owned(),
            _ if waits(&plan.policy, question, &verdict) => show::toned(
                show::Tone::Notice,
                &format!(
                    "waits {} seconds for an operator's verdict if somebody listens, else refused",
                    plan.policy.hold
                ),
            ),
            _ => verdict_text(&verdict),
        };
        say!("{text}: {answer}")?;
    }
    Ok(())
}

/// Whatever the address, this port leads to the container's own DNS server.
const DNS: u16 = 53;

/// Something that `--ask` names.
#[derive(Debug, PartialEq, Eq)]
enum Question {
    Name(Name, u16, Proto),
    Literal(IpAddr, u16, Proto),
    Host(u16, Proto),
}

impl Question {
    /// `NAME:PORT`, `ADDRESS:PORT`, `[V6]:PORT`, `host:PORT`, each with an optional `/tcp` or `/udp`.
    fn parse(text: &str) -> anyhow::Result<Self> {
        let wrong =
            || format!("--ask {text:?}: write NAME:PORT, ADDRESS:PORT, [V6ADDRESS]:PORT or host:PORT");
        let (rest, proto) = match text.rsplit_once('/') {
            Some((rest, "tcp")) => (rest, Proto::Tcp),
            Some((rest, "udp")) => (rest, Proto::Udp),
            Some(_) => bail!(wrong()),
            None => (text, Proto::Tcp),
        };
        let (target, port) = rest.rsplit_once(':').with_context(wrong)?;
        let port: u16 = port.parse().ok().filter(|port| *port != 0).with_context(wrong)?;
        let unbracketed = target.strip_prefix('[').and_then(|target| target.strip_suffix(']'));
        if let Ok(ip) = unbracketed.unwrap_or(target).parse::<IpAddr>() {
            return Ok(Question::Literal(ip, port, proto));
        }
        if target == "host" || target == "host.terok.internal" {
            return Ok(Question::Host(port, proto));
        }
        Ok(Question::Name(Name::parse(target).with_context(wrong)?, port, proto))
    }

    fn port(&self) -> u16 {
        match self {
            Question::Name(_, port, _) | Question::Literal(_, port, _) | Question::Host(port, _) => *port,
        }
    }

    fn query(&self) -> Query<'_> {
        match self {
            Question::Name(name, port, proto) => Query::Name { name, port: *port, proto: *proto },
            Question::Literal(ip, port, proto) => Query::Literal { ip: *ip, port: *port, proto: *proto },
            Question::Host(port, proto) => Query::Host { port: *port, proto: *proto },
        }
    }
}

/// Whether such a connection would be held: by TCP, where only a rule is missing, and never to the host's own ports.
fn waits(policy: &Policy, question: &Question, verdict: &Verdict) -> bool {
    let carried = match question {
        Question::Name(_, _, proto) | Question::Literal(_, _, proto) => *proto == Proto::Tcp,
        Question::Host(..) => false,
    };
    let missing = matches!(verdict, Verdict::Refuse { reason, rule: None } if reason.is_open_question());
    policy.hold > 0 && carried && missing
}

fn verdict_text(verdict: &Verdict) -> String {
    let by = |rule: &Sourced| format!("{} ({})", rule.rule, show::source(&rule.source));
    match verdict {
        Verdict::Allow { rule } => format!("{} by {}", show::toned(show::Tone::Good, "allowed"), by(rule)),
        Verdict::Down => show::toned(show::Tone::Notice, "allowed, because the shield is down"),
        Verdict::Learn => show::toned(show::Tone::Notice, "allowed and recorded, because it is learning"),
        Verdict::Operator => show::toned(show::Tone::Notice, "allowed by an operator's verdict"),
        Verdict::Refuse { reason, rule } => {
            let by = rule.as_ref().map_or_else(String::new, |rule| format!(" by {}", by(rule)));
            format!("{}: {}{by}", show::toned(show::Tone::Bad, "refused"), show::word(reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_name_a_target_and_a_port() {
        let name = Name::parse("api.example.com").unwrap();
        assert_eq!(
            Question::parse("API.example.com.:443").unwrap(),
            Question::Name(name.clone(), 443, Proto::Tcp)
        );
        assert_eq!(Question::parse("api.example.com:53/udp").unwrap(), Question::Name(name, 53, Proto::Udp));
        assert_eq!(
            Question::parse("[::1]:80").unwrap(),
            Question::Literal("::1".parse().unwrap(), 80, Proto::Tcp)
        );
        assert_eq!(
            Question::parse("10.0.0.1:80").unwrap(),
            Question::Literal("10.0.0.1".parse().unwrap(), 80, Proto::Tcp)
        );
        assert_eq!(Question::parse("host:5432").unwrap(), Question::Host(5432, Proto::Tcp));
        for text in ["api.example.com", "api.example.com:0", "a b:1", ":1", "a:99999", "a:1/sctp"] {
            assert!(Question::parse(text).is_err(), "{text:?}");
        }
    }
}
