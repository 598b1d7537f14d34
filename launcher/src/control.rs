//! The client's end of a supervisor's control interface: Varlink on its unix socket.

use crate::containers::Known;
use anyhow::{Context as _, anyhow, bail};
use serde::Deserialize;
use std::time::Duration;
use terok_policy::audit::Line;
use terok_policy::control::{Applied, Scope, Status};
use terok_policy::policy::{Shield, Sourced};
use zlink::futures_util::stream::{Stream, StreamExt};
use zlink::tokio::unix;

/// How long an answer may take: longer than the worker itself waits for its parent. One that is being restarted answers within seconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// A supervisor's error reply, whichever it is.
#[derive(Debug, Deserialize)]
pub(crate) struct Fault {
    error: String,
    #[serde(default)]
    parameters: serde_json::Value,
}

#[derive(Debug, Deserialize)]
struct StatusReply {
    status: Status,
}

#[derive(Debug, Deserialize)]
struct AppliedReply {
    applied: Applied,
}

/// What a verdict did.
#[derive(Debug, Deserialize)]
pub(crate) struct VerdictReply {
    /// Live rules that changed, flows that were cut.
    pub(crate) applied: Applied,
    /// The rule that the verdict is about.
    pub(crate) rule: String,
}

#[derive(Debug, Deserialize)]
struct RulesReply {
    allow: Vec<Sourced>,
    deny: Vec<Sourced>,
}

#[derive(Debug, Deserialize)]
struct EventReply {
    event: Line,
}

#[zlink::proxy("io.terok.Supervisor")]
trait Supervisor {
    async fn status(&mut self) -> zlink::Result<Result<StatusReply, Fault>>;
    async fn rules(&mut self, skip: u64) -> zlink::Result<Result<RulesReply, Fault>>;
    async fn allow(&mut self, rules: &[String]) -> zlink::Result<Result<AppliedReply, Fault>>;
    async fn deny(&mut self, rules: &[String]) -> zlink::Result<Result<AppliedReply, Fault>>;
    async fn forget(&mut self, rules: &[String]) -> zlink::Result<Result<AppliedReply, Fault>>;
    async fn set_state(
        &mut self,
        state: Shield,
        seconds: Option<u64>,
    ) -> zlink::Result<Result<AppliedReply, Fault>>;
    async fn revoke(&mut self, grants: &[String], undo: bool) -> zlink::Result<Result<AppliedReply, Fault>>;
    async fn verdict(
        &mut self,
        id: u64,
        allow: bool,
        scope: Scope,
    ) -> zlink::Result<Result<VerdictReply, Fault>>;
    #[zlink(more)]
    async fn subscribe(
        &mut self,
    ) -> zlink::Result<impl Stream<Item = zlink::Result<Result<EventReply, Fault>>>>;
}

/// What an operator asks for.
#[derive(Debug)]
pub(crate) enum Order<'a> {
    /// Live allow rules.
    Allow(&'a [String]),
    /// Live deny rules.
    Deny(&'a [String]),
    /// Takes live rules back.
    Forget(&'a [String]),
    /// A state, and for how long.
    State(Shield, Option<Duration>),
    /// Takes granted credentials back, all where none is named, or with `true` gives them again.
    Revoke(&'a [String], bool),
}

impl Fault {
    fn into_error(self) -> anyhow::Error {
        let name = self.error.rsplit('.').next().unwrap_or_default().to_owned();
        match self.parameters.get("reason").and_then(serde_json::Value::as_str) {
            Some(reason) if name == "Refused" => anyhow!("{reason}"),
            Some(reason) => anyhow!("{name}: {reason}"),
            None => anyhow!("the supervisor answered {}", self.error),
        }
    }
}

/// One thread's event loop.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work))
}

/// The container's status.
pub(crate) async fn status(known: &Known) -> anyhow::Result<Status> {
    let ask = async {
        let mut connection = connect(known).await?;
        let reply = connection.status().await?;
        Ok(reply.map_err(Fault::into_error)?.status)
    };
    in_time(known, ask).await
}

/// The container's status with all of its rules.
pub(crate) async fn whole_status(known: &Known) -> anyhow::Result<Status> {
    let mut whole = status(known).await?;
    let ask = async {
        let mut connection = connect(known).await?;
        while whole.more_rules > 0 {
            let skip = whole.allow.len().max(whole.deny.len()) as u64;
            let RulesReply { allow, deny } = connection.rules(skip).await?.map_err(Fault::into_error)?;
            let more = (allow.len() + deny.len()) as u64;
            whole.allow.extend(allow);
            whole.deny.extend(deny);
            // Rules that were taken back meanwhile are not waited for.
            whole.more_rules = if more == 0 { 0 } else { whole.more_rules.saturating_sub(more) };
        }
        Ok(whole)
    };
    in_time(known, ask).await
}

/// Gives `order` and returns what changed.
pub(crate) async fn give(known: &Known, order: Order<'_>) -> anyhow::Result<Applied> {
    let ask = async {
        let mut connection = connect(known).await?;
        let reply = match order {
            Order::Allow(rules) => connection.allow(rules).await?,
            Order::Deny(rules) => connection.deny(rules).await?,
            Order::Forget(rules) => connection.forget(rules).await?,
            Order::Revoke(grants, undo) => connection.revoke(grants, undo).await?,
            Order::State(state, time) => connection.set_state(state, time.map(|time| time.as_secs())).await?,
        };
        Ok(reply.map_err(Fault::into_error)?.applied)
    };
    in_time(known, ask).await
}

/// Decides about the connections that wait under `id`.
pub(crate) async fn verdict(
    known: &Known,
    id: u64,
    allow: bool,
    scope: Scope,
) -> anyhow::Result<VerdictReply> {
    let ask = async {
        let mut connection = connect(known).await?;
        connection.verdict(id, allow, scope).await?.map_err(Fault::into_error)
    };
    in_time(known, ask).await
}

/// Hands every audit line from now on to `each`, until the supervisor hangs up.
pub(crate) async fn subscribe(known: &Known, mut each: impl FnMut(Line)) -> anyhow::Result<()> {
    let mut connection = connect(known).await?;
    let stream = connection.subscribe().await?;
    let mut stream = std::pin::pin!(stream);
    while let Some(reply) = stream.next().await {
        each(reply?.map_err(Fault::into_error)?.event);
    }
    Ok(())
}

async fn connect(known: &Known) -> anyhow::Result<zlink::tokio::unix::Connection> {
    let Some(socket) = known.socket() else {
        bail!("container {} does not run: terok ps lists those that do", known.name())
    };
    unix::connect(&socket).await.with_context(|| format!("{}: no supervisor answers", socket.display()))
}

async fn in_time<T>(known: &Known, ask: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    match tokio::time::timeout(PATIENCE, ask).await {
        Ok(answer) => answer.with_context(|| format!("container {}", known.name())),
        Err(_) => bail!(
            "container {}: its supervisor does not answer (it stays protected); see {}",
            known.name(),
            known.state.join(terok_policy::layout::LOG).display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    /// A supervisor that answers one call with `reply` and returns what it was asked.
    fn answering(
        reply: &'static str,
    ) -> (Known, std::thread::JoinHandle<serde_json::Value>, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join(terok_policy::layout::CONTROL)).unwrap();
        let known = Known {
            id: "abc".into(),
            record: None,
            run: Some(folder.path().into()),
            state: folder.path().into(),
        };
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut call = Vec::new();
            let mut byte = [0];
            while stream.read(&mut byte).unwrap() == 1 && byte[0] != 0 {
                call.push(byte[0]);
            }
            for part in reply.split('\n') {
                stream.write_all(part.as_bytes()).unwrap();
                stream.write_all(&[0]).unwrap();
            }
            serde_json::from_slice(&call).unwrap()
        });
        (known, server, folder)
    }

    #[test]
    fn calls_are_those_of_the_contract() {
        let (known, server, _folder) =
            answering(r#"{"parameters":{"applied":{"changed":["a.example"],"cut":2}}}"#);
        let rules = ["a.example".to_owned()];
        let applied = block_on(give(&known, Order::Deny(&rules))).unwrap().unwrap();
        assert_eq!((applied.changed.len(), applied.cut), (1, 2));
        let call = server.join().unwrap();
        assert_eq!(call["method"], format!("{}.Deny", terok_policy::control::INTERFACE));
        assert_eq!(call["parameters"]["rules"][0], "a.example");
    }

    #[test]
    fn a_state_carries_its_seconds_only_where_there_are_any() {
        let reply = r#"{"parameters":{"applied":{"changed":[],"cut":0}}}"#;
        let (known, server, _folder) = answering(reply);
        block_on(give(&known, Order::State(Shield::Down, Some(Duration::from_secs(600))))).unwrap().unwrap();
        let call = server.join().unwrap();
        assert_eq!(call["parameters"], serde_json::json!({"state": "down", "seconds": 600}));
        let (known, server, _folder) = answering(reply);
        block_on(give(&known, Order::State(Shield::Block, None))).unwrap().unwrap();
        assert_eq!(server.join().unwrap()["parameters"], serde_json::json!({"state": "block"}));
    }

    #[test]
    fn a_revocation_names_what_it_takes_back() {
        let (known, server, _folder) =
            answering(r#"{"parameters":{"applied":{"changed":["anthropic"],"cut":1}}}"#);
        let applied =
            block_on(give(&known, Order::Revoke(&["anthropic".to_owned()], false))).unwrap().unwrap();
        assert_eq!((applied.changed.len(), applied.cut), (1, 1));
        let call = server.join().unwrap();
        assert_eq!(call["method"], format!("{}.Revoke", terok_policy::control::INTERFACE));
        assert_eq!(call["parameters"], serde_json::json!({"grants": ["anthropic"], "undo": false}));
    }

    #[test]
    fn a_verdict_names_the_waiting_connection_and_how_long_it_holds() {
        let (known, server, _folder) = answering(
            r#"{"parameters":{"applied":{"changed":["a.example:443"],"cut":0},"rule":"a.example:443"}}"#,
        );
        let reply = block_on(verdict(&known, 7, true, Scope::Always)).unwrap().unwrap();
        assert_eq!((reply.rule.as_str(), reply.applied.changed.len()), ("a.example:443", 1));
        let call = server.join().unwrap();
        assert_eq!(call["method"], format!("{}.Verdict", terok_policy::control::INTERFACE));
        assert_eq!(call["parameters"], serde_json::json!({"id": 7, "allow": true, "scope": "always"}));
    }

    #[test]
    fn a_refusal_is_told_with_its_reason() {
        let (known, server, _folder) = answering(
            r#"{"error":"io.terok.Supervisor.Refused","parameters":{"reason":"\"a b\": not a rule"}}"#,
        );
        let error = block_on(give(&known, Order::Allow(&[]))).unwrap().unwrap_err();
        assert_eq!(format!("{error:#}"), "container abc: \"a b\": not a rule");
        server.join().unwrap();
    }

    #[test]
    fn a_subscription_yields_every_line_until_the_supervisor_hangs_up() {
        let line = r#"{"continues":true,"parameters":{"event":{"n":1,"t":5,"kind":"dns","action":"refuse","target":"x.example","prev":"0"}}}"#;
        let (known, server, _folder) = answering(Box::leak(format!("{line}\n{line}").into_boxed_str()));
        let mut seen = Vec::new();
        let _hung_up = block_on(subscribe(&known, |line| seen.push(line.event.target))).unwrap();
        assert_eq!(seen, ["x.example", "x.example"]);
        assert_eq!(server.join().unwrap()["more"], true);
    }

    #[test]
    fn a_missing_supervisor_is_named() {
        let known =
            Known { id: "abc".into(), record: None, run: Some("/nowhere".into()), state: "/nowhere".into() };
        let error = block_on(status(&known)).unwrap().unwrap_err();
        assert!(format!("{error:#}").contains("/nowhere/control.sock"));
    }
}
