//! A request from its arrival to its answer's head, in the order of the security argument: whom it is for, whether that stands, whose token it carries,
//! whether the provider's rules let it pass, and only then the real credential.

use super::body::{Lent, Outgoing, Reader, Relayed, Unread, dropped};
use super::headers;
use super::ledger::{Entry, Place};
use super::redact::{Patterns, Redactor};
use super::refusal::Refusal;
use super::request::{Standing, overrides_method, spelled, standing};
use super::strict::Talk;
use super::upstream::{self, Switched, Way};
use super::watch::Watch;
use super::{AT_ONCE, Broker, Entrance, Outward};
use crate::audit::{Facts as _, event};
use crate::flows::{FlowGuard, Grounds, Target};
use crate::proxy::http;
use crate::vault::{Credential, Granted, Trouble};
use ::http::request::Parts;
use ::http::uri::PathAndQuery;
use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use terok_policy::audit::Kind;
use terok_policy::judge::Reason;
use terok_policy::policy::VaultGrant;
use terok_policy::provider::{CredentialType, Endpoint, Host, OVERRIDES};
use terok_policy::{Name, Verdict};
use tokio::sync::oneshot;

/// The largest body that is held so that its request can be sent again.
const REPEATABLE: u64 = 64 << 10;

/// What all requests of one connection share.
pub(super) struct Visit {
    broker: Rc<Broker>,
    outward: Rc<dyn Outward>,
    entrance: Entrance,
    /// Whom the connection was made for, in words.
    target: String,
    talk: Rc<Talk>,
    tunnel: RefCell<Option<Tunnel>>,
}

/// A connection that left HTTP.
pub(super) struct Tunnel {
    pub(super) switched: Switched,
    pub(super) entry: Entry,
    pub(super) redactor: Redactor,
    pub(super) flow: Rc<FlowGuard>,
}

/// Why a request is not forwarded, and whose it was.
struct Denial {
    refusal: Refusal,
    grant: Option<usize>,
}

impl From<Refusal> for Denial {
    fn from(refusal: Refusal) -> Self {
        Denial { refusal, grant: None }
    }
}

/// One answer less under way, when dropped.
pub(super) struct Busy(Rc<Talk>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.set(self.0.busy.get().saturating_sub(1));
    }
}

impl Visit {
    /// Of a connection through `entrance`.
    pub(super) fn new(
        broker: Rc<Broker>,
        outward: Rc<dyn Outward>,
        entrance: Entrance,
        target: String,
        talk: Rc<Talk>,
    ) -> Self {
        Visit { broker, outward, entrance, target, talk, tunnel: RefCell::default() }
    }

    /// The connection to relay, where a request changed the protocol.
    pub(super) fn tunnel(&self) -> Option<Tunnel> {
        self.tunnel.take()
    }

    /// A request that could not be read.
    pub(super) fn refused(&self, target: &Target, refusal: &http::Refusal) {
        let mut line =
            event(Kind::Http, "refuse", target.to_string()).reason(refusal.reason).with("what", refusal.what);
        for (key, value) in [("method", &refusal.method), ("path", &refusal.path), ("host", &refusal.host)] {
            if !value.is_empty() {
                line = line.with(key, value.as_str());
            }
        }
        self.broker.context.audit.refusal(line);
    }

    /// Answers one request.
    pub(super) async fn answer(&self, request: Request<Incoming>) -> Response<Relayed> {
        self.talk.busy.set(self.talk.busy.get() + 1);
        let busy = Busy(self.talk.clone());
        let response = self.answered(request, busy).await;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            self.talk.stay();
        }
        response
    }

    async fn answered(&self, request: Request<Incoming>, busy: Busy) -> Response<Relayed> {
        let (parts, body) = request.into_parts();
        // Who waits to be asked for the body has not sent it.
        let waits = parts.headers.contains_key(header::EXPECT);
        let dropping =
            |said: Relayed, body: Incoming, busy| if waits { said } else { said.behind(body, busy) };
        let path = parts.uri.path().to_owned();
        let Some(place) = Place::take(&self.broker.open, AT_ONCE) else {
            let what = format!("more than {AT_ONCE} requests at once; wait for some to end");
            let refusal = Refusal::new(StatusCode::TOO_MANY_REQUESTS, Reason::TooManyConnections, what);
            let line = event(Kind::Http, "refuse", self.target.as_str()).reason(refusal.reason);
            self.broker
                .context
                .audit
                .refusal(line.with("status", refusal.status.as_u16()).with("limit", AT_ONCE));
            return refusal.answer(None).map(|said| dropping(said, body, Some(busy)));
        };
        let context = self.broker.context.clone();
        let mut entry = Some(Entry::new(context, self.target.clone(), &parts.method, &path, place));
        let (unread, mut busy) = (Unread::new(Cell::new(Some(body))), Some(busy));
        match self.forwarded(parts, &unread, &mut entry, &mut busy).await {
            Ok(response) => response,
            Err(Denial { refusal, grant }) => {
                if let Some(mut entry) = entry {
                    entry.refuse(&refusal);
                }
                if let Some(grant) = grant {
                    self.broker.context.count(Granted::Credential(grant), false);
                }
                let grant = grant.and_then(|grant| self.broker.grant(grant));
                let answer = refusal.answer(grant.map(|grant| &grant.provider));
                let left = match unread.take() {
                    // A client that hears of its refusal while it sends may stop there and show nothing.
                    Some(body) if !waits => dropped(body).await,
                    other => other,
                };
                match left {
                    Some(body) => answer.map(|said| dropping(said, body, busy)),
                    None => answer,
                }
            }
        }
    }

    async fn forwarded(
        &self,
        parts: Parts,
        unread: &Unread,
        entry: &mut Option<Entry>,
        busy: &mut Option<Busy>,
    ) -> Result<Response<Relayed>, Denial> {
        self.check_form(&parts)?;
        let asked = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let (index, rest) = self.whose(asked)?;
        let grant = self.broker.grant(index).ok_or_else(|| unknown("", &self.broker))?;
        let denied = |refusal: Refusal| Denial { refusal, grant: Some(index) };
        if let Some(entry) = entry.as_mut() {
            entry.provider(&grant.provider.name);
        }
        let (endpoint, path) = self.place(grant, &rest);
        let target = upstream::target(&endpoint);
        if let Some(entry) = entry.as_mut() {
            entry.target(target.to_string());
        }
        let path: PathAndQuery =
            path.parse().map_err(|_| denied(malformed("a path that cannot be sent on")))?;
        let anonymous = self.check_standing(index, grant, &parts, &endpoint, path.path()).map_err(denied)?;
        check_rules(grant, &parts, endpoint.name(), path.path()).map_err(denied)?;

        let flow = Rc::new(self.flow(index, target).map_err(denied)?);
        if !entry.as_ref().is_some_and(Entry::is_recordable) {
            let what = "the audit log cannot be written; free space in the state folder on the host";
            return Err(denied(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, Reason::AuditUnwritable, what)));
        }
        let way = Way { grant: index, endpoint: &endpoint, outward: &*self.outward, flow: &flow };
        let under_way = self.exchange(grant, &way, &path, parts, unread, anonymous, entry);
        let answered = tokio::select! {
            biased;
            () = flow.cut() => Err(self.cut(index)),
            answered = under_way => answered,
        };
        let Answered { response, credential, switched } = answered.map_err(denied)?;
        let answer = self.relay(index, response, credential, switched, flow.clone(), entry, busy);
        answer.await.map_err(denied)
    }

    /// What HTTP/2 leaves to be checked of whom a request is for; HTTP/1 has passed the strict parser.
    fn check_form(&self, parts: &Parts) -> Result<(), Refusal> {
        if parts.method == Method::CONNECT {
            return Err(malformed("CONNECT to the broker"));
        }
        let names = |authority: &str| {
            let host = authority.split_once(':').map_or(authority, |(host, _)| host);
            let port = authority.split_once(':').map(|(_, port)| port);
            Name::parse(host).as_ref() == Ok(self.entrance.name())
                && port.is_none_or(|port| port == "443" || port == "80")
        };
        let other = "a Host other than the name connected to";
        let misdirected = || Refusal::new(StatusCode::MISDIRECTED_REQUEST, Reason::HostMismatch, other);
        let authority = parts.uri.authority().map(|authority| authority.as_str());
        if authority.is_some_and(|authority| !names(authority)) {
            return Err(misdirected());
        }
        let mut hosts = parts.headers.get_all(header::HOST).iter();
        let host = hosts.next();
        if hosts.next().is_some() {
            return Err(malformed("more than one Host"));
        }
        match host {
            Some(host) if !host.to_str().is_ok_and(names) => Err(misdirected()),
            None if authority.is_none() => Err(misdirected()),
            _ if !parts.uri.path().starts_with('/') => Err(malformed("a request target that is no path")),
            _ => Ok(()),
        }
    }

    /// Whose a request is, and its path there.
    fn whose<'a>(&self, asked: &'a str) -> Result<(usize, Cow<'a, str>), Refusal> {
        match &self.entrance {
            Entrance::Host { grant, .. } => Ok((*grant, Cow::Borrowed(asked))),
            Entrance::Base { .. } => {
                let path = asked.strip_prefix('/').unwrap_or(asked);
                let end = path.find(['/', '?']).unwrap_or(path.len());
                let (name, rest) = path.split_at(end);
                let index = self.broker.position(name).ok_or_else(|| unknown(name, &self.broker))?;
                Ok((index, Cow::Borrowed(rest)))
            }
        }
    }

    /// Where it goes, and under which path.
    fn place<'a>(&self, grant: &'a VaultGrant, rest: &str) -> (Cow<'a, Endpoint>, String) {
        match &self.entrance {
            Entrance::Base { .. } => {
                let (endpoint, path) = grant.provider.upstream_for(rest);
                (Cow::Borrowed(endpoint), path)
            }
            Entrance::Host { name, .. } => {
                let host = Host::Name(name.clone());
                (Cow::Owned(Endpoint { tls: true, host, port: 443, path: String::new() }), rest.to_owned())
            }
        }
    }

    /// Whether a request stands, and whether it is one that everybody may make and that goes out without a credential.
    fn check_standing(
        &self,
        index: usize,
        grant: &VaultGrant,
        parts: &Parts,
        endpoint: &Endpoint,
        path: &str,
    ) -> Result<bool, Refusal> {
        let provider = &grant.provider;
        let refused = |status, what: String| Err(Refusal::new(status, Reason::Credential, what));
        let token = self.broker.token(index).unwrap_or_default();
        let query = parts.uri.query().unwrap_or_default();
        let base = matches!(self.entrance, Entrance::Base { .. });
        let where_from = "the container's own token, in the variables that terok set at its start";
        match standing(&provider.token, token, &parts.headers, query) {
            Standing::Ours => match self.broker.context.taken_back(Granted::Credential(index)) {
                Some(taken) => Err(trouble(taken)),
                None => Ok(false),
            },
            Standing::Nothing
                if provider.lets_anonymous(parts.method.as_str(), endpoint.name(), path)
                    && self.broker.context.taken_back(Granted::Credential(index)).is_none() =>
            {
                Ok(true)
            }
            Standing::Nothing => {
                refused(StatusCode::UNAUTHORIZED, format!("no credential; send {where_from}"))
            }
            Standing::Phantom => refused(
                StatusCode::UNAUTHORIZED,
                format!("not this container's token for this provider; send {where_from}, once"),
            ),
            Standing::Foreign if base => {
                refused(StatusCode::UNAUTHORIZED, format!("not a token of terok; send {where_from}"))
            }
            Standing::Foreign => refused(
                StatusCode::FORBIDDEN,
                format!("a credential of its own is not let out to a brokered host; send {where_from}"),
            ),
        }
    }

    /// Enters the request among the flows, unless a rule of the operator is against it.
    fn flow(&self, grant: usize, target: Target) -> Result<FlowGuard, Refusal> {
        let verdict = self.broker.context.judge(&target.query());
        let grounds = Grounds::Brokered(grant);
        if grounds.hold(&verdict) {
            return Ok(self.broker.context.flows.insert(target, grounds));
        }
        let (reason, rule) = match verdict {
            Verdict::Refuse { reason, rule: Some(rule) } => (reason, format!("the rule {rule} refuses it")),
            Verdict::Refuse { reason, rule: None } => {
                (reason, format!("the shield lets nothing pass to {target}"))
            }
            _ => (Reason::Denied, String::new()),
        };
        Err(Refusal::new(StatusCode::FORBIDDEN, reason, rule))
    }

    /// Why a request was cut while it waited for its answer.
    fn cut(&self, grant: usize) -> Refusal {
        match self.broker.context.taken_back(Granted::Credential(grant)) {
            Some(taken) => trouble(taken),
            None => {
                Refusal::new(StatusCode::FORBIDDEN, Reason::Denied, "it was cut off: what allowed it is gone")
            }
        }
    }

    /// Sends the request with the real credential; once more with a renewed one, where the first was refused and nothing is lost by it. An
    /// anonymous one is sent as it is.
    #[allow(clippy::too_many_arguments, reason = "each belongs to the request")]
    async fn exchange(
        &self,
        grant: &VaultGrant,
        way: &Way<'_>,
        path: &PathAndQuery,
        parts: Parts,
        unread: &Unread,
        anonymous: bool,
        entry: &mut Option<Entry>,
    ) -> Result<Answered, Refusal> {
        let context = &self.broker.context;
        let credential = match anonymous {
            true => None,
            false => Some(context.credential(way.grant).await.map_err(trouble)?),
        };
        let upgrade = parts.headers.contains_key(header::UPGRADE);
        let renewable =
            credential.as_ref().filter(|credential| credential.kind == CredentialType::OAuth).cloned();
        let up = entry.as_ref().map(Entry::up).unwrap_or_default();
        let mut held = None;
        let body = unread.take().ok_or_else(|| malformed("the request's body was read"))?;
        let body = if body.is_end_stream() {
            held = Some(Bytes::new());
            Outgoing::Held(None)
        } else if renewable.is_some() && body.size_hint().exact().is_some_and(|length| length <= REPEATABLE) {
            let bytes =
                body.collect().await.map_err(|_| malformed("the request's body broke off"))?.to_bytes();
            up.set(bytes.len() as u64);
            held = Some(bytes.clone());
            Outgoing::Held(Some(bytes))
        } else {
            let shape = Rc::new(grant.provider.token.clone());
            let lent = Lent::new(body, unread.clone(), way.flow.clone());
            Outgoing::Streamed(Box::new(lent), up, shape)
        };
        let onward = headers::onward(&grant.provider, &parts.headers);
        let extensions = parts.extensions.clone();
        let authorization = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let request =
            |body: Outgoing, credential: Option<&Rc<Credential>>| -> Result<Request<Outgoing>, Refusal> {
                let mut request = Request::new(body);
                *request.method_mut() = parts.method.clone();
                *request.extensions_mut() = extensions.clone();
                *request.headers_mut() = onward.clone();
                let Some(credential) = credential else { return Ok(request) };
                let sent = grant.provider.credential.get(&credential.kind).ok_or_else(|| {
                    let what = format!(
                        "its definition does not say how a credential of this kind ({:?}) is sent",
                        credential.kind
                    );
                    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, Reason::Vault, what)
                })?;
                headers::send(request.headers_mut(), &sent.as_asked(authorization), credential).map_err(
                    |_| {
                        let what =
                            "the credential in the vault has characters that no header may have; add it anew";
                        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, Reason::Vault, what)
                    },
                )?;
                Ok(request)
            };
        if upgrade {
            let (response, told) = self
                .broker
                .pool
                .switch(way, path, request(body, credential.as_ref())?)
                .await
                .map_err(unreachable)?;
            return Ok(Answered { response, credential, switched: Some(told) });
        }
        let response = self
            .broker
            .pool
            .send(way, path, request(body, credential.as_ref())?)
            .await
            .map_err(unreachable)?;
        let Some(credential) = renewable.filter(|_| response.status() == StatusCode::UNAUTHORIZED) else {
            return Ok(Answered { response, credential, switched: None });
        };
        // The upstream's own answer stands where there is no newer token.
        let renewed = context.credential_refused(way.grant, credential.revision).await;
        match (renewed, held) {
            (Ok(renewed), Some(held)) if renewed.secret != credential.secret => {
                let body = Outgoing::Held(Some(held).filter(|held| !held.is_empty()));
                let response = self
                    .broker
                    .pool
                    .send(way, path, request(body, Some(&renewed))?)
                    .await
                    .map_err(unreachable)?;
                Ok(Answered { response, credential: Some(renewed), switched: None })
            }
            _ => Ok(Answered { response, credential: Some(credential), switched: None }),
        }
    }

    /// The answer as the container gets it.
    #[allow(clippy::too_many_arguments, reason = "each ends up in the answer")]
    async fn relay(
        &self,
        grant: usize,
        response: Response<Incoming>,
        credential: Option<Rc<Credential>>,
        switched: Option<oneshot::Receiver<Switched>>,
        flow: Rc<FlowGuard>,
        entry: &mut Option<Entry>,
        busy: &mut Option<Busy>,
    ) -> Result<Response<Relayed>, Refusal> {
        if credential.is_some() {
            self.broker.context.count(Granted::Credential(grant), true);
        }
        let patterns = match &credential {
            Some(credential) => self.broker.patterns(grant, credential),
            None => Patterns::of([]),
        };
        let (mut parts, body) = response.into_parts();
        let (mut headers, covered) = headers::back(&parts.headers, &patterns);
        if parts.status == StatusCode::SWITCHING_PROTOCOLS {
            let websocket = parts
                .headers
                .get(header::UPGRADE)
                .is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"));
            let Some(switched) = switched.filter(|_| websocket) else {
                return Err(bad_gateway("the upstream changed the protocol without being asked"));
            };
            headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            let switched = switched.await.map_err(|_| bad_gateway("the upstream ended the connection"))?;
            if let Some(mut entry) = entry.take() {
                entry.status(parts.status);
                let redactor = Redactor::new(patterns);
                self.tunnel.replace(Some(Tunnel { switched, entry, redactor, flow }));
            }
            return Ok(head(parts.status, headers, Relayed::nothing()));
        }
        let reader = if body.is_end_stream() {
            Reader::Nothing
        } else if !headers::is_read_whole(&parts.headers) {
            return Err(bad_gateway("the answer has a Transfer-Encoding that was not asked for"));
        } else {
            match headers::coding(&parts.headers) {
                Ok(None) => Reader::Redactor(Redactor::new(patterns.clone())),
                Ok(Some(coding)) => Reader::Watch(Box::new(Watch::new(coding, patterns.clone()))),
                Err(coding) => {
                    return Err(bad_gateway(&format!(
                        "the answer is coded as {coding}, which cannot be read for the credential"
                    )));
                }
            }
        };
        parts.headers = HeaderMap::new();
        let (Some(mut entry), Some(busy)) = (entry.take(), busy.take()) else {
            return Err(bad_gateway("no audit entry"));
        };
        entry.status(parts.status);
        entry.covered_above(covered);
        Ok(head(parts.status, headers, Relayed::upstream(body, reader, patterns, flow, entry, busy)))
    }
}

/// What came back, and with which credential, if any.
struct Answered {
    response: Response<Incoming>,
    credential: Option<Rc<Credential>>,
    switched: Option<oneshot::Receiver<Switched>>,
}

fn head(status: StatusCode, headers: HeaderMap, body: Relayed) -> Response<Relayed> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn check_rules(grant: &VaultGrant, parts: &Parts, host: Option<&Name>, path: &str) -> Result<(), Refusal> {
    let provider = &grant.provider;
    let refused = |what: String| Refusal::new(StatusCode::FORBIDDEN, Reason::RequestRefused, what);
    if !provider.rule.is_empty() {
        let overrides = |name: &&HeaderName| OVERRIDES.contains(&&*spelled(name.as_str()));
        let header = parts.headers.keys().find(overrides).map(HeaderName::as_str);
        let query = parts.uri.query().unwrap_or_default();
        if let Some(name) = header.or(overrides_method(query).then_some("_method")) {
            return Err(refused(format!(
                "{name} makes another request of it than the rules were asked about"
            )));
        }
    }
    provider.judge(parts.method.as_str(), host, path).map_err(|why| refused(why.to_string()))
}

fn unknown(name: &str, broker: &Broker) -> Refusal {
    let granted = broker.names().join(", ");
    let name = super::ledger::repeated(name);
    let what = format!("no provider {name:?} was granted to this container; granted: {granted}");
    Refusal::new(StatusCode::NOT_FOUND, Reason::Unlisted, what)
}

fn malformed(what: &str) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, Reason::BadProtocol, what)
}

fn bad_gateway(what: &str) -> Refusal {
    Refusal::new(StatusCode::BAD_GATEWAY, Reason::Unreachable, what)
}

fn unreachable(error: upstream::Unreachable) -> Refusal {
    let status = match error.reason {
        Reason::Denied | Reason::Floor | Reason::Blocked => StatusCode::FORBIDDEN,
        _ => StatusCode::BAD_GATEWAY,
    };
    Refusal::new(status, error.reason, format!("the upstream cannot be reached: {}", error.what))
}

fn trouble(trouble: Trouble) -> Refusal {
    let (status, reason) = match &trouble {
        Trouble::Revoked(_) => (StatusCode::UNAUTHORIZED, Reason::Revoked),
        Trouble::Refused(_) => (StatusCode::FORBIDDEN, Reason::Vault),
        Trouble::Locked(_) | Trouble::Missing(_) | Trouble::Failed(_) => {
            (StatusCode::SERVICE_UNAVAILABLE, Reason::Vault)
        }
    };
    Refusal::new(status, reason, trouble.to_string())
}
