//! The SSH signer (V6): an agent on a socket inside the container that lists the granted keys, signs what they were granted for, and answers
//! everything else with a failure. The keys are elsewhere: a helper of the parent judges again and signs.

pub(crate) mod errand;
pub mod judge;
pub mod message;
mod rate;

use crate::audit::{Facts as _, event};
use crate::context::Context;
use crate::vault::{AgentKey, Trouble};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use judge::{Binding, Purpose, Refusal, judge, may_bind};
use message::Request;
use rate::Rate;
use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use terok_policy::Shield;
use terok_policy::audit::{Event, Kind};
use terok_policy::judge::Reason;
use terok_policy::policy::SshGrant;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Connections at a time, further ones wait to be accepted; `ssh` holds one for as long as it logs in.
const CONNECTIONS: usize = 32;
/// How long a client may say nothing, and how long a message may take.
const IDLE: Duration = Duration::from_secs(300);
const MESSAGE: Duration = Duration::from_secs(10);
/// Signatures of a container: a burst, and a second.
const SIGNATURES: (u32, u32) = (30, 10);
/// Lists and bindings.
const QUESTIONS: (u32, u32) = (100, 50);

/// The signer of a container.
pub(crate) struct Signer {
    context: Rc<Context>,
    places: Arc<Semaphore>,
    signatures: RefCell<Rate>,
    questions: RefCell<Rate>,
}

/// What a connection is bound to: as it is judged, and as it is handed on.
#[derive(Default)]
struct Bound {
    bindings: Vec<Binding>,
    raw: Vec<String>,
}

impl Signer {
    /// One for the container of `context`.
    pub(crate) fn new(context: Rc<Context>) -> Rc<Self> {
        let rate = |(burst, second)| RefCell::new(Rate::new(burst, second, Instant::now()));
        Rc::new(Signer {
            context,
            places: Arc::new(Semaphore::new(CONNECTIONS)),
            signatures: rate(SIGNATURES),
            questions: rate(QUESTIONS),
        })
    }

    /// Serves the socket.
    pub(crate) async fn serve(self: Rc<Self>, listener: UnixListener) {
        while let Ok(place) = self.places.clone().acquire_owned().await {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            let signer = self.clone();
            tokio::task::spawn_local(async move {
                // An error is a client that went away.
                let _ = signer.converse(stream).await;
                drop(place);
            });
        }
    }

    async fn converse(&self, mut stream: UnixStream) -> io::Result<()> {
        let mut bound = Bound::default();
        loop {
            let length = timeout(IDLE, stream.read_u32()).await??;
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            if !(1..=message::LONGEST).contains(&length) {
                self.refuse(refusal("").reason(Reason::TooLarge));
                return stream.write_all(&message::failure()).await;
            }
            let mut text = vec![0; length];
            timeout(MESSAGE, stream.read_exact(&mut text)).await??;
            let answer = self.answer(&mut bound, &text).await.unwrap_or_else(message::failure);
            timeout(MESSAGE, stream.write_all(&answer)).await??;
        }
    }

    /// The answer to a message; `None` is a failure, which is in the log.
    async fn answer(&self, bound: &mut Bound, text: &[u8]) -> Option<Vec<u8>> {
        let now = Instant::now();
        match Request::read(text) {
            Request::Sign { key, data, flags } => {
                if !self.signatures.borrow_mut().admits(now) {
                    return self.no("", "too many signatures at once: 10 a second");
                }
                self.sign(bound, key, data, flags).await
            }
            Request::Other(number) => {
                self.no("", format!("message {number} of the agent protocol is not answered"))
            }
            _ if !self.questions.borrow_mut().admits(now) => {
                self.no("", "too many questions at once: 50 a second")
            }
            Request::List => self.list().await,
            Request::Bind(contents) => match bound.add(contents) {
                Ok(()) => Some(message::success()),
                Err(refused) => self.no("", refused.to_string()),
            },
        }
    }

    /// Public keys are no secret: a locked vault lists them as well.
    async fn list(&self) -> Option<Vec<u8>> {
        let keys = match self.context.vault.keys().await {
            Ok(keys) => keys,
            Err(trouble) => return self.no("", trouble.to_string()),
        };
        let mut listed: Vec<(Vec<u8>, &str)> = Vec::new();
        for key in keys.iter() {
            let Ok(blob) = STANDARD.decode(&key.blob) else { continue };
            // One that was granted for two hosts is one key.
            if !listed.iter().any(|(known, _)| *known == blob) {
                listed.push((blob, &key.comment));
            }
        }
        Some(message::identities(listed.iter().map(|(blob, comment)| (&blob[..], *comment))))
    }

    async fn sign(&self, bound: &Bound, key: &[u8], data: &[u8], flags: u32) -> Option<Vec<u8>> {
        if self.context.shield() == Shield::Block {
            self.refuse(refusal("").reason(Reason::Blocked));
            return None;
        }
        let keys = match self.context.vault.keys().await {
            Ok(keys) => keys,
            Err(trouble) => return self.no("", trouble.to_string()),
        };
        let blob = STANDARD.encode(key);
        let mut candidates = keys.iter().filter(|granted| granted.blob == blob).peekable();
        if candidates.peek().is_none() {
            return self.no("", "this key was not granted, or is no longer in the vault");
        }
        let mut refused = None;
        for granted in candidates {
            let Some(grant) = self.context.config.policy.ssh.get(granted.grant) else { continue };
            match self.sign_for(bound, granted, grant, (key, data), flags).await {
                Ok((purpose, signature)) => return self.hand_over(grant, &purpose, &signature),
                // It may have been granted for another host, too.
                Err(why) => refused = Some((grant, why)),
            }
        }
        let (grant, why) = refused?;
        self.refuse(refusal(host(grant)).with("key", grant.key.as_str()).with("why", why));
        None
    }

    async fn sign_for(
        &self,
        bound: &Bound,
        granted: &AgentKey,
        grant: &SshGrant,
        (key, data): (&[u8], &[u8]),
        flags: u32,
    ) -> Result<(Purpose, Vec<u8>), String> {
        let purpose = judge(grant, &granted.users, key, &bound.bindings, data, flags)
            .map_err(|refusal: Refusal| refusal.to_string())?;
        let signed = self.context.sign(granted.grant, bound.raw.clone(), STANDARD.encode(data), flags).await;
        let signature = signed.map_err(|trouble: Trouble| trouble.to_string())?;
        let signature =
            STANDARD.decode(signature).map_err(|_| "the vault's answer cannot be read".to_owned())?;
        Ok((purpose, signature))
    }

    /// The signature, once the log has it.
    fn hand_over(&self, grant: &SshGrant, purpose: &Purpose, signature: &[u8]) -> Option<Vec<u8>> {
        let line = event(Kind::Ssh, "sign", host(grant)).with("key", grant.key.as_str());
        let line = match purpose {
            Purpose::Login { user, .. } => line.with("for", "login").with("user", user.as_str()),
            Purpose::Git => line.with("for", "git"),
        };
        if self.context.audit.record(line).is_err() {
            self.refuse(refusal(host(grant)).with("key", grant.key.as_str()).reason(Reason::AuditUnwritable));
            return None;
        }
        Some(message::signature(signature))
    }

    fn refuse(&self, line: Event) {
        self.context.audit.refusal(line);
    }

    fn no(&self, target: &str, why: impl Into<String>) -> Option<Vec<u8>> {
        self.refuse(refusal(target).with("why", why.into()));
        None
    }
}

impl Bound {
    fn add(&mut self, contents: &[u8]) -> Result<(), Refusal> {
        let whole: usize = self.raw.iter().map(String::len).sum();
        if contents.len() > judge::LONGEST_BINDING || whole + contents.len() > judge::LONGEST_BINDINGS {
            return Err(Refusal::Sessions);
        }
        let binding = Binding::read(contents).ok_or(Refusal::FalseBinding)?;
        // A client may say the same again.
        if !self.bindings.contains(&binding) {
            may_bind(&self.bindings, &binding)?;
            self.bindings.push(binding);
            self.raw.push(STANDARD.encode(contents));
        }
        Ok(())
    }
}

fn refusal(target: &str) -> Event {
    event(Kind::Ssh, "refuse", target)
}

fn host(grant: &SshGrant) -> &str {
    grant.host.as_ref().map_or("", |host| host.as_str())
}

#[cfg(test)]
mod tests;
