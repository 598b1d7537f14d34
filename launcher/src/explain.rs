//! `terok explain`: what annotations mean, and what becomes of a configuration, with no effect on anything (A3).

mod changes;
mod config;
mod patch;

use crate::{cli::Json, profiles, run, show};
use anyhow::{Context as _, bail};
use config::{Config, Outcome};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use terok_hook::preview::Network as Seen;
use terok_install::host::Host;
use terok_policy::live::Live;
use terok_policy::plan::{HostFacts, Network};
use terok_policy::policy::{Policy, Sourced};
use terok_policy::rule::Proto;
use terok_policy::{Name, Plan, Query, Verdict, annotation, judge, tighten};

/// What is to be explained.
#[derive(Debug, clap::Args)]
pub(crate) struct ExplainArgs {
    /// KEY=VALUE
    #[arg(value_name = "ANNOTATION")]
    annotations: Vec<String>,
    /// Whether this could be reached: NAME:PORT, ADDRESS:PORT or host:PORT
    #[arg(long, value_name = "TARGET")]
    ask: Vec<String>,
    /// The network it would be started with: none, bridge, slirp4netns, pasta or the name of one
    #[arg(long, value_name = "MODE", default_value = "none")]
    network: String,
    /// What terok would do to this config.json of an OCI bundle, `-` for standard input: annotations and network are those in it.
    /// Annotations beside it count as if they stood there
    #[arg(long, value_name = "FILE", conflicts_with = "network")]
    config: Option<PathBuf>,
    #[command(flatten)]
    json: Json,
}

/// Prints the plan, what becomes of a configuration, and the verdict on each question.
pub(crate) fn explain(host: &Host, args: &ExplainArgs) -> anyhow::Result<()> {
    let ExplainArgs { ask: asked, json, .. } = args;
    let given = given(&args.annotations)?;
    let config = args.config.as_ref().map(|path| Config::read(host, path, &given)).transpose()?;
    if let Some(config) = config.as_ref().filter(|config| !config.is_ours()) {
        return config.pass(json.json);
    }
    let catalog = profiles::catalog(host)?;
    let plan = match &config {
        None => Plan::new(annotation::parse(&given, &catalog)?, run::facts(&args.network)?)?,
        Some(config) => {
            let policy = match config.default(host)? {
                Some(default) => tighten::under(&default, config.annotations(), &catalog)?,
                None => annotation::parse(config.annotations(), &catalog)?,
            };
            plan(policy, config.network())?
        }
    };
    let outcome = config.as_ref().map(|config| (config, config.outcome(host, &plan.policy)));
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
        let mut value = serde_json::json!({"policy": plan.policy, "verdicts": verdicts});
        if let Some((config, outcome)) = &outcome {
            value["config"] = config.json(outcome);
        }
        say!("{}", serde_json::to_string(&value)?)?;
        return ended(outcome.as_ref());
    }
    say!("{}", plan.to_string().trim_end())?;
    if plan.facts.network == Network::Filtered {
        say!(
            "note        the card is an example: the networks and gateways of the real one are known at the start"
        )?;
    }
    if let Some((config, outcome)) = &outcome {
        config.say(outcome)?;
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
    ended(outcome.as_ref())
}

/// Annotations of the command line.
fn given(words: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
    let mut annotations = BTreeMap::new();
    for text in words {
        let (key, value) = text.split_once('=').with_context(|| format!("{text:?}: write KEY=VALUE"))?;
        if !key.starts_with(annotation::PREFIX) {
            bail!("{key}: not a key of terok; they begin with {}", annotation::PREFIX);
        }
        if annotations.insert(key.to_owned(), value.to_owned()).is_some() {
            bail!("{key} is given twice");
        }
    }
    Ok(annotations)
}

/// Of a network that others made it cannot be told whether a card is in it: none if the policy can do without.
fn plan(policy: Policy, network: Seen) -> anyhow::Result<Plan> {
    let sealed = Plan::new(policy.clone(), HostFacts::sealed(true));
    match network {
        Seen::Own => Ok(sealed?),
        Seen::Joined { .. } if sealed.is_ok() => Ok(sealed?),
        Seen::Prepared | Seen::Joined { .. } | Seen::Host => Ok(Plan::new(policy, run::example())?),
    }
}

/// A start that would be refused is a failure here as well.
fn ended(outcome: Option<&(&Config, Outcome)>) -> anyhow::Result<()> {
    match outcome.and_then(|(_, outcome)| outcome.refused.as_ref()) {
        Some(reason) => bail!("the start would be refused: {}", show::printable(reason)),
        None => Ok(()),
    }
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
