//! The control interface (design §10): Varlink on the container's own socket, for the user the supervisor runs as.
//! Framing and dispatch are zlink's, one server a connection, so that a subscriber who does not read holds up nobody.

use crate::context::Context;
use crate::operator::{Change, ChangeError, Operator};
use crate::readiness::{hung_up, readable};
use crate::remains::read_container;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;
use terok_kernel::socket::namespace_cookie;
use terok_policy::control::{Container, INTERFACE, RULES_AT_ONCE, Scope, Status};
use terok_policy::policy::{Shield, Source, Sourced};
use terok_policy::{Rule, layout};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;
use zlink::futures_util::{Stream, stream};
use zlink::service::{HandleResult, MethodReply, ReplyStreamItem};
use zlink::tokio::unix;
use zlink::{Call, Connection, Reply, Server, Service};

/// The interface in Varlink's own language.
pub(crate) const DESCRIPTION: &str = include_str!("io.terok.Supervisor.varlink");
/// Connections served at a time.
const CONNECTIONS: usize = 64;

/// What the interface shows and changes.
pub(crate) struct Desk {
    /// Shared state.
    pub(crate) context: Rc<Context>,
    /// Changes.
    pub(crate) operator: Rc<Operator>,
    /// Times the worker was restarted.
    pub(crate) restarts: u64,
    /// Confinement layers, as [`Status::confinement`].
    pub(crate) confinement: Vec<String>,
    /// Whose supervisor this is: real uid, as outside of a rootless engine's user namespace.
    pub(crate) owner: u32,
}

/// Serves the socket.
pub(crate) async fn serve(desk: Rc<Desk>, listener: UnixListener) {
    let open = Rc::new(Cell::new(0usize));
    // A container that the runtime folder was mounted into comes with the owner's uid, but from a namespace of its own.
    let home = namespace_cookie(&listener).ok();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let from_home = namespace_cookie(&stream).ok() == home;
        if open.get() >= CONNECTIONS || !from_home || !desk.context.is_owner(&stream) {
            continue;
        }
        open.set(open.get() + 1);
        let (desk, open) = (desk.clone(), open.clone());
        tokio::task::spawn_local(async move {
            // An error is a client that went away.
            let _ = converse(desk, stream).await;
            open.set(open.get() - 1);
        });
    }
}

async fn converse(desk: Rc<Desk>, stream: UnixStream) -> zlink::Result<()> {
    let stream = stream.into_std()?;
    // A subscriber that hangs up says so only here: the server reads no more from it.
    let watched = readable(stream.try_clone()?.into())?;
    let listener = zlink::ReadyListener::new(unix::Stream::try_from(stream)?);
    let server = Server::new(listener, Caller { desk });
    tokio::select! {
        served = server.run() => served,
        () = hung_up(&watched) => Ok(()),
    }
}

/// One connection's view.
struct Caller {
    desk: Rc<Desk>,
}

/// A call, with its parameters read once the method is known.
#[derive(Debug, Deserialize)]
struct Request {
    method: String,
    #[serde(default)]
    parameters: Value,
}

/// An error reply.
#[derive(Debug, Serialize)]
struct Failure {
    error: String,
    parameters: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rules {
    rules: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Skip {
    skip: usize,
}

/// Rules, and how many more there are.
type Page = (Vec<Sourced>, usize);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewState {
    state: Shield,
    #[serde(default)]
    seconds: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Revoked {
    #[serde(default)]
    grants: Vec<String>,
    #[serde(default)]
    undo: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Word {
    id: u64,
    allow: bool,
    scope: Scope,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Interface {
    interface: String,
}

type Events = Pin<Box<dyn Stream<Item = ReplyStreamItem<Value, Failure>>>>;

impl Service<unix::Stream> for Caller {
    type MethodCall<'de> = Request;
    type ReplyParams<'ser> = Value;
    type ReplyStreamParams = Value;
    type ReplyStreamError = Failure;
    type ReplyStream = Events;
    type ReplyError<'ser> = Failure;
    type Upgrade = ();

    async fn handle<'ser>(
        &'ser mut self,
        call: &'ser Call<Self::MethodCall<'_>>,
        _: &mut Connection<unix::Stream>,
        _: Vec<OwnedFd>,
    ) -> HandleResult<Value, Events, Failure> {
        let reply = match self.answer(call).await {
            Ok(Answer::One(value)) => MethodReply::Single(Some(value)),
            Ok(Answer::Many(events)) => MethodReply::Multi(events),
            Err(failure) => MethodReply::Error(failure),
        };
        (reply, Vec::new())
    }
}

enum Answer {
    One(Value),
    Many(Events),
}

impl Caller {
    async fn answer(&self, call: &Call<Request>) -> Result<Answer, Failure> {
        let Request { method, parameters } = call.method();
        let (interface, name) = method.rsplit_once('.').unwrap_or(("", method));
        let value = match (interface, name) {
            (INTERFACE, "Status") => json!({ "status": self.desk.status() }),
            (INTERFACE, "Rules") => {
                let Skip { skip } = read(parameters)?;
                let (allow, deny) = self.desk.rules(skip);
                json!({ "allow": allow.0, "deny": deny.0 })
            }
            (INTERFACE, "Allow") => self.change(Change::Allow(rules(parameters)?)).await?,
            (INTERFACE, "Deny") => self.change(Change::Deny(denies(parameters)?)).await?,
            (INTERFACE, "Forget") => self.change(Change::Forget(either(parameters)?)).await?,
            (INTERFACE, "SetState") => {
                let NewState { state, seconds } = read(parameters)?;
                self.change(Change::State(state, seconds)).await?
            }
            (INTERFACE, "Revoke") => {
                let Revoked { grants, undo } = read(parameters)?;
                let change = if undo { Change::Return(grants) } else { Change::Revoke(grants) };
                self.change(change).await?
            }
            (INTERFACE, "Waiting") => json!({ "waiting": self.desk.context.hold.waiting() }),
            (INTERFACE, "Verdict") => self.verdict(read(parameters)?).await?,
            (INTERFACE, "Subscribe") if call.more() => return Ok(Answer::Many(self.desk.events())),
            (INTERFACE, "Subscribe") => return Err(standard("ExpectedMore", json!({}))),
            ("org.varlink.service", "GetInfo") => json!({
                "vendor": "terok",
                "product": layout::SUPERVISOR,
                "version": env!("CARGO_PKG_VERSION"),
                "url": "",
                "interfaces": [INTERFACE, "org.varlink.service"],
            }),
            ("org.varlink.service", "GetInterfaceDescription") => {
                let Interface { interface } = read(parameters)?;
                if interface != INTERFACE {
                    return Err(standard("InterfaceNotFound", json!({ "interface": interface })));
                }
                json!({ "description": DESCRIPTION })
            }
            (INTERFACE | "org.varlink.service", _) => {
                return Err(standard("MethodNotFound", json!({ "method": method })));
            }
            _ => return Err(standard("InterfaceNotFound", json!({ "interface": interface }))),
        };
        Ok(Answer::One(value))
    }

    async fn verdict(&self, word: Word) -> Result<Value, Failure> {
        let Word { id, allow, scope } = word;
        match self.desk.operator.verdict(id, allow, scope, self.desk.owner).await {
            Ok((applied, rule)) => Ok(json!({ "applied": applied, "rule": rule })),
            Err(error) => Err(refused(&error)),
        }
    }

    async fn change(&self, change: Change) -> Result<Value, Failure> {
        match self.desk.operator.change(change, self.desk.owner).await {
            Ok(applied) => Ok(json!({ "applied": applied })),
            Err(error) => Err(refused(&error)),
        }
    }
}

impl Desk {
    fn status(&self) -> Status {
        let context = &self.context;
        let live = context.live();
        let (allow, deny) = self.rules(0);
        let state = context.shield();
        Status {
            container: self.container(),
            state,
            until: live.until.filter(|_| state == Shield::Down),
            more_rules: (allow.1 + deny.1) as u64,
            allow: allow.0,
            deny: deny.0,
            connections: context.flows.open() as u64,
            allowed: context.audit.allowed(),
            refused: context.audit.refused(),
            waiting: context.hold.waiting(),
            credentials: context.credentials(),
            tampered: context.tampered(),
            restarts: self.restarts,
            confinement: self.confinement.clone(),
        }
    }

    /// Allow and deny rules in force from the position `skip` on, each with how many follow.
    fn rules(&self, skip: usize) -> (Page, Page) {
        let context = &self.context;
        let live = context.live();
        let page = |written: &[Sourced], rules: &[Rule]| {
            let live = rules.iter().map(|rule| Sourced { rule: rule.clone(), source: Source::Live });
            let rest = (written.len() + rules.len()).saturating_sub(skip);
            let page = written.iter().cloned().chain(live).skip(skip).take(RULES_AT_ONCE).collect();
            (page, rest.saturating_sub(RULES_AT_ONCE))
        };
        let policy = &context.config.policy;
        (page(&policy.allow, &live.allow), page(&policy.deny, &live.deny))
    }

    /// What `create` wrote down; before it has, what the configuration tells.
    fn container(&self) -> Container {
        let config = &self.context.config;
        read_container(&self.context.run_dir).unwrap_or_else(|| Container {
            id: config.id.clone(),
            name: config.policy.labels.name.clone(),
            pid: 0,
            started: 0,
            bundle: String::new(),
            labels: config.policy.labels.clone(),
            ..Container::default()
        })
    }

    /// Audit lines from now on, each as `{"event": {…}}`.
    fn events(&self) -> Events {
        let lines = self.context.audit.subscribe();
        Box::pin(stream::unfold(lines, async |mut lines| {
            let event = match lines.recv().await {
                Ok(line) => serde_json::from_str(&line).unwrap_or(Value::Null),
                Err(RecvError::Lagged(count)) => {
                    json!({ "t": crate::context::unix_millis(), "kind": "lifecycle", "action": "lost", "count": count })
                }
                Err(RecvError::Closed) => return None,
            };
            let reply = Reply::new(Some(json!({ "event": event }))).set_continues(Some(true));
            Some(((Ok(reply), Vec::new()), lines))
        }))
    }
}

/// A name or address to deny without ports means every one of them.
fn denies(parameters: &Value) -> Result<Vec<Rule>, Failure> {
    let Rules { rules } = read(parameters)?;
    rules
        .iter()
        .map(|rule| Rule::parse_deny(rule).map_err(|error| refused(&ChangeError::Rule(error))))
        .collect()
}

/// What is to be forgotten may have been allowed or denied.
fn either(parameters: &Value) -> Result<Vec<Rule>, Failure> {
    let Rules { rules } = read(parameters)?;
    let mut both = Vec::new();
    for text in &rules {
        let denied = Rule::parse_deny(text).map_err(|error| refused(&ChangeError::Rule(error)))?;
        both.extend(text.parse().ok().filter(|allowed: &Rule| *allowed != denied));
        both.push(denied);
    }
    Ok(both)
}

fn rules(parameters: &Value) -> Result<Vec<Rule>, Failure> {
    let Rules { rules } = read(parameters)?;
    rules.iter().map(|rule| rule.parse().map_err(|error| refused(&ChangeError::Rule(error)))).collect()
}

fn read<T: serde::de::DeserializeOwned>(parameters: &Value) -> Result<T, Failure> {
    let parameters = if parameters.is_null() { &json!({}) } else { parameters };
    T::deserialize(parameters)
        .map_err(|error| standard("InvalidParameter", json!({ "parameter": error.to_string() })))
}

fn refused(error: &ChangeError) -> Failure {
    let name = match error {
        ChangeError::Partial(_) => "Partial",
        _ => "Refused",
    };
    Failure { error: format!("{INTERFACE}.{name}"), parameters: json!({ "reason": error.to_string() }) }
}

fn standard(name: &str, parameters: Value) -> Failure {
    Failure { error: format!("org.varlink.service.{name}"), parameters }
}
