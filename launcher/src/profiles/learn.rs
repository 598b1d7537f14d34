//! `terok profile learn`: the smallest profile that allows what a container reached, from its audit log. What was refused
//! is in it as comments only, and nothing is ever widened.

use crate::audit;
use crate::containers::{self, Known};
use crate::profiles::Own;
use crate::show;
use anyhow::bail;
use clap::Args;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use terok_install::host::Host;
use terok_policy::Name;
use terok_policy::audit::{Event, Kind, Line};
use terok_policy::profile::is_profile_name;
use terok_policy::rule::{Cidr, Ports, Proto, Rule, Target};

/// From this many names below one domain on, a wildcard is worth a thought.
const MANY: usize = 3;

/// `terok profile learn`
#[derive(Debug, Args)]
pub(crate) struct LearnArgs {
    /// Name, id or the beginning of one; it may have ended
    container: String,
    /// Name of the profile; the container's own where it is not given
    #[arg(long)]
    name: Option<String>,
    /// Print it instead of writing ~/.config/terok/profiles/NAME.txt
    #[arg(long)]
    print: bool,
}

/// Prints or writes the profile.
pub(crate) fn learn(host: &Host, args: &LearnArgs) -> anyhow::Result<()> {
    let known = containers::find(host, &args.container)?;
    let text = audit::text(&known)?;
    let name = args.name.clone().unwrap_or_else(|| profile_name(&known));
    if !is_profile_name(&name) {
        bail!("{name:?} is no profile name: give one with --name, of a-z, 0-9, - and _");
    }
    let learned = Learned::of(text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok()));
    if learned.reached.is_empty() {
        bail!(
            "container {0} reached nothing, so there is nothing to learn; terok audit {0} --refused shows what it wanted",
            known.name()
        );
    }
    let profile = learned.profile(&name, known.name());
    if args.print {
        say!("{}", profile.trim_end())?;
        return Ok(());
    }
    let mut own = Own::open(host, &name)?;
    if own.exists() {
        bail!(
            "{} is there already: choose another name with --name, or look at the learned one with --print",
            own.path().display()
        );
    }
    own.write(profile)?;
    say!(
        "wrote {}: {} rules; read it, then use it with: terok run --profile {name}",
        own.path().display(),
        learned.rules().len()
    )?;
    Ok(())
}

/// The container's name as far as a profile may be called so.
fn profile_name(known: &Known) -> String {
    let name = known.name().to_ascii_lowercase();
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    let name: String = name.chars().map(|c| if fits(c) { c } else { '-' }).take(64).collect();
    name.trim_start_matches(['-', '_']).to_owned()
}

/// How often, and when last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Seen {
    count: u64,
    last: u64,
}

impl Seen {
    fn add(&mut self, count: u64, at: u64) {
        self.count += count;
        self.last = self.last.max(at);
    }

    fn text(&self, what: &str) -> String {
        let s = if self.count == 1 { "" } else { "s" };
        format!("{} {what}{s}, last {}", self.count, show::time(self.last))
    }
}

/// What decides which connections one rule stands for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    /// Labels of a name from the right, so that neighbours in the tree of names stand together; empty for addresses.
    labels: Vec<String>,
    target: Target,
    proto: Proto,
    direct: bool,
}

/// What a log says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Learned {
    reached: BTreeMap<Way, BTreeMap<u16, Seen>>,
    /// What passed that no rule can name.
    other: BTreeMap<String, Seen>,
    refused: BTreeMap<String, Seen>,
    rotated: bool,
}

impl Learned {
    fn of(lines: impl Iterator<Item = Line>) -> Self {
        let mut learned = Learned::default();
        for (at, line) in lines.enumerate() {
            learned.rotated |= at == 0 && line.n > 1;
            learned.take(&line.event);
        }
        learned
    }

    fn take(&mut self, event: &Event) {
        let count = event.count.unwrap_or(1);
        let proto = event.detail.get("proto").and_then(serde_json::Value::as_str).unwrap_or_default();
        match (event.kind, event.action.as_str()) {
            (Kind::Connect | Kind::Kernel, "allow") => {
                let by_card = event.kind == Kind::Kernel;
                match way(&event.target, proto, by_card) {
                    Some((way, port)) => {
                        self.reached.entry(way).or_default().entry(port).or_default().add(count, event.t);
                    }
                    None => {
                        let what = format!("{} {proto}", show::printable(&event.target));
                        self.other.entry(what.trim().to_owned()).or_default().add(count, event.t);
                    }
                }
            }
            (Kind::Dns | Kind::Connect | Kind::Http | Kind::Kernel, "refuse") if !event.target.is_empty() => {
                let reason = event.reason.map(|reason| show::word(&reason)).unwrap_or_default();
                let udp = if proto == "udp" && event.kind == Kind::Kernel { "/udp" } else { "" };
                let what = format!("{}{udp} ({reason})", show::printable(&event.target));
                self.refused.entry(what).or_default().add(count, event.t);
            }
            _ => {}
        }
    }

    /// A rule for each way, with the connections it stands for.
    fn rules(&self) -> Vec<(Rule, Seen)> {
        let rule = |(way, ports): (&Way, &BTreeMap<u16, Seen>)| {
            let mut seen = Seen::default();
            ports.values().for_each(|each| seen.add(each.count, each.last));
            let rule = Rule {
                target: way.target.clone(),
                ports: Ports::new(ports.keys().map(|port| (*port, *port)).collect()),
                proto: way.proto,
                direct: way.direct,
            };
            (rule, seen)
        };
        self.reached.iter().map(rule).collect()
    }

    fn profile(&self, name: &str, container: &str) -> String {
        let mut text = format!(
            "# {name}: what {} reached.\n# Learned from its audit log: read it before you use it.\n",
            show::printable(container)
        );
        if self.rotated {
            text += "# The log is not whole: what was reached before its first line is missing here.\n";
        }
        let rules = self.rules();
        let width = rules.iter().map(|(rule, _)| rule.to_string().len()).max().unwrap_or(0);
        let mut suggested = Vec::new();
        for (rule, seen) in &rules {
            if let Some((parent, names)) = self.many_below(&rule.target)
                && !suggested.contains(&parent)
            {
                text += &format!(
                    "# {names} names below {parent}: *.{parent} would allow these and every other one.\n"
                );
                suggested.push(parent);
            }
            text += &format!("{:width$}  # {}\n", rule.to_string(), seen.text("connection"));
        }
        for (title, what) in [
            ("Passed, but is nothing a rule can name:", &self.other),
            ("Refused, so not in it:", &self.refused),
        ] {
            if !what.is_empty() {
                text += &format!("\n# {title}\n");
                for (what, seen) in what {
                    text += &format!("# {what}: {}\n", seen.text("time"));
                }
            }
        }
        text
    }

    /// The domain just above `target`, and how many reached names are just below it, where they are many.
    fn many_below(&self, target: &Target) -> Option<(String, usize)> {
        let parent = |target: &Target| match target {
            Target::Name(name) => name.as_str().split_once('.').map(|(_, parent)| parent.to_owned()),
            _ => None,
        };
        let own = parent(target).filter(|own| may_be_ones_own(own))?;
        let mut names: Vec<&Target> = self
            .reached
            .keys()
            .map(|way| &way.target)
            .filter(|other| parent(other).as_ref() == Some(&own))
            .collect();
        names.dedup();
        (names.len() >= MANY).then_some((own, names.len()))
    }
}

/// Not `com`, nor what looks like `co.uk`, below which strangers live.
fn may_be_ones_own(domain: &str) -> bool {
    let labels: Vec<&str> = domain.split('.').collect();
    match labels.as_slice() {
        [] | [_] => false,
        [second, top] => top.len() > 2 || second.len() > 3,
        _ => true,
    }
}

/// `NAME:PORT`, `ADDRESS:PORT` or `host:PORT`, as audit lines name what was reached.
fn way(target: &str, proto: &str, by_card: bool) -> Option<(Way, u16)> {
    let proto = match proto {
        "udp" => Proto::Udp,
        // What the proxy carries is TCP, whatever is spoken in it.
        "tcp" => Proto::Tcp,
        _ if !by_card => Proto::Tcp,
        _ => return None,
    };
    if let Ok(address) = target.parse::<SocketAddr>() {
        let target = Target::Net(Cidr::host(address.ip()));
        return Some((Way { labels: Vec::new(), target, proto, direct: false }, address.port()));
    }
    let (host, port) = target.rsplit_once(':')?;
    let port = port.parse().ok()?;
    if host == "host" {
        return Some((Way { labels: Vec::new(), target: Target::Host, proto, direct: false }, port));
    }
    let name = Name::parse(host).ok().filter(|name| !name.is_reserved())?;
    let labels = name.as_str().rsplit('.').map(str::to_owned).collect();
    // A UDP rule is direct by itself.
    let direct = by_card && proto == Proto::Tcp;
    Some((Way { labels, target: Target::Name(name), proto, direct }, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use terok_policy::profile::{Entry, parse};

    fn lines(texts: &[&str]) -> Vec<Line> {
        let line = |(at, text): (usize, &&str)| {
            let text = format!(r#"{{"n":{},"t":{},{text},"prev":""}}"#, at + 1, (at + 1) * 1000);
            serde_json::from_str(&text).unwrap()
        };
        texts.iter().enumerate().map(line).collect()
    }

    const LOG: &[&str] = &[
        r#""kind":"lifecycle","action":"start""#,
        r#""kind":"dns","action":"answer","target":"never.connected.example""#,
        r#""kind":"connect","action":"allow","target":"api.example.com:443","rule":"learn","detail":{"proto":"tls"}"#,
        r#""kind":"connect","action":"close","target":"api.example.com:443""#,
        r#""kind":"connect","action":"allow","target":"api.example.com:80","detail":{"proto":"http"}"#,
        r#""kind":"connect","action":"allow","target":"git.example.net:22","detail":{"proto":"ssh"}"#,
        r#""kind":"connect","action":"allow","target":"host:5432","detail":{"proto":"tcp"}"#,
        r#""kind":"connect","action":"allow","target":"[2001:db8::1]:8443","detail":{"proto":"tcp"}"#,
        r#""kind":"kernel","action":"allow","target":"192.0.2.7:53123","count":12,"detail":{"proto":"udp"}"#,
        r#""kind":"kernel","action":"allow","target":"time.example.org:123","detail":{"proto":"udp"}"#,
        r#""kind":"kernel","action":"allow","target":"db.example.org:5432","detail":{"proto":"tcp"}"#,
        r#""kind":"kernel","action":"allow","target":"192.0.2.7","detail":{"proto":"icmp"}"#,
        r#""kind":"connect","action":"refuse","target":"evil.example.net:443","reason":"unlisted","count":3"#,
        r#""kind":"dns","action":"refuse","target":"x\n*.evil","reason":"unlisted""#,
    ];

    #[test]
    fn the_profile_names_what_was_reached_and_nothing_more() {
        let profile = Learned::of(lines(LOG).into_iter()).profile("mine", "agent");
        assert_eq!(
            profile,
            "# mine: what agent reached.\n\
             # Learned from its audit log: read it before you use it.\n\
             192.0.2.7:53123/udp         # 12 connections, last 1970-01-01T00:00:09.000Z\n\
             [2001:db8::1]:8443          # 1 connection, last 1970-01-01T00:00:08.000Z\n\
             host:5432                   # 1 connection, last 1970-01-01T00:00:07.000Z\n\
             api.example.com             # 2 connections, last 1970-01-01T00:00:05.000Z\n\
             git.example.net:22          # 1 connection, last 1970-01-01T00:00:06.000Z\n\
             db.example.org:5432 direct  # 1 connection, last 1970-01-01T00:00:11.000Z\n\
             time.example.org:123/udp    # 1 connection, last 1970-01-01T00:00:10.000Z\n\
             \n# Passed, but is nothing a rule can name:\n\
             # 192.0.2.7 icmp: 1 time, last 1970-01-01T00:00:12.000Z\n\
             \n# Refused, so not in it:\n\
             # evil.example.net:443 (unlisted): 3 times, last 1970-01-01T00:00:13.000Z\n\
             # x\u{fffd}*.evil (unlisted): 1 time, last 1970-01-01T00:00:14.000Z\n"
        );
    }

    #[test]
    fn what_is_written_reads_back_as_the_same_rules_whatever_order_the_lines_had() {
        let learned = Learned::of(lines(LOG).into_iter());
        let read = parse("mine", &learned.profile("mine", "agent")).unwrap();
        let rules: Vec<Entry> = learned.rules().into_iter().map(|(rule, _)| Entry::Rule(rule)).collect();
        assert_eq!(read.into_iter().map(|(_, entry)| entry).collect::<Vec<_>>(), rules);
        let mut backwards: Vec<Line> = lines(LOG);
        backwards.reverse();
        let again = Learned { rotated: false, ..Learned::of(backwards.into_iter()) };
        assert_eq!(again.profile("mine", "agent"), learned.profile("mine", "agent"));
    }

    #[test]
    fn a_host_that_is_called_like_a_word_of_the_rules_is_no_rule() {
        let log = [
            r#""kind":"connect","action":"allow","target":"any:443","rule":"learn","detail":{"proto":"tls"}"#,
            r#""kind":"connect","action":"allow","target":"direct:8443","rule":"learn","detail":{"proto":"tcp"}"#,
            r#""kind":"kernel","action":"allow","target":"any:123","rule":"learn","detail":{"proto":"udp"}"#,
        ];
        let learned = Learned::of(lines(&log).into_iter());
        assert_eq!((learned.rules(), learned.other.len()), (Vec::new(), 3));
    }

    #[test]
    fn many_names_below_one_domain_are_listed_and_a_wildcard_only_suggested() {
        let names =
            ["a.cdn.example.com", "b.cdn.example.com", "c.cdn.example.com", "x.co.uk", "y.co.uk", "z.co.uk"];
        let log: Vec<String> = names
            .iter()
            .map(|name| {
                format!(
                    r#""kind":"connect","action":"allow","target":"{name}:443","detail":{{"proto":"tls"}}"#
                )
            })
            .collect();
        let log: Vec<&str> = log.iter().map(String::as_str).collect();
        let profile = Learned::of(lines(&log).into_iter()).profile("mine", "agent");
        let suggestions: Vec<&str> = profile.lines().filter(|line| line.contains('*')).collect();
        assert_eq!(
            suggestions,
            ["# 3 names below cdn.example.com: *.cdn.example.com would allow these and every other one."]
        );
        assert_eq!(parse("mine", &profile).unwrap().len(), 6);
    }

    #[test]
    fn a_log_that_lost_its_beginning_says_so() {
        let mut log = lines(LOG);
        log[0].n = 900;
        assert!(Learned::of(log.into_iter()).profile("mine", "agent").contains("not whole"));
    }

    #[test]
    fn a_container_that_ended_is_learned_from_and_an_older_profile_stays() {
        let root = tempfile::tempdir().unwrap();
        let host = containers::host_at(root.path());
        let state = host.state_dir().join("abc123");
        std::fs::create_dir_all(&state).unwrap();
        let log: Vec<String> = lines(LOG).iter().map(|line| serde_json::to_string(line).unwrap()).collect();
        std::fs::write(state.join("audit.jsonl"), log.join("\n") + "\n").unwrap();
        let args = |name: &str| LearnArgs { container: "abc".into(), name: Some(name.into()), print: false };
        learn(&host, &args("mine")).unwrap();
        let catalog = crate::profiles::catalog(&host).unwrap();
        assert_eq!(catalog.resolve(&["mine".to_owned()]).unwrap().len(), 7);
        assert!(learn(&host, &args("mine")).unwrap_err().to_string().contains("is there already"));
        assert!(learn(&host, &args("base")).unwrap_err().to_string().contains("include base"));
        std::fs::write(state.join("audit.jsonl"), "").unwrap();
        assert!(learn(&host, &args("other")).unwrap_err().to_string().contains("reached nothing"));
    }

    #[test]
    fn a_profile_is_called_like_the_container_as_far_as_it_can_be() {
        let known = |name: &str| {
            Known { id: "abc".into(), record: None, run: None, state: "/".into() }.called(name.into())
        };
        assert_eq!(profile_name(&known("Agent.3_x")), "agent-3_x");
        assert_eq!(profile_name(&known("__")), "");
    }
}
