//! The credential broker: requests of the container with a phantom token go to the provider with the real credential, and the answer comes back without
//! it (design §8, V1 to V5). It is reached under `vault.terok.internal` and in the place of the brokered hosts themselves.

mod body;
mod ca;
mod door;
mod forward;
pub(crate) mod headers;
mod ledger;
mod redact;
mod refusal;
pub mod request;
mod strict;
mod tunnel;
mod upstream;
mod watch;

use crate::context::Context;
use crate::flows::{Host, Target};
use crate::vault::Credential;
use base64::Engine as _;
pub(crate) use ca::Ca;
use redact::Patterns;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use terok_policy::policy::VaultGrant;
use terok_policy::{Name, name};
use tokio::io::{AsyncRead, AsyncWrite};
pub(crate) use upstream::{Dialling, Outward, Unreachable};
use zeroize::Zeroizing;

/// Requests of a container at once.
const AT_ONCE: usize = 256;

/// The broker of one container.
pub(crate) struct Broker {
    context: Rc<Context>,
    ca: Ca,
    pool: upstream::Pool,
    /// Requests under way.
    open: Rc<Cell<usize>>,
    /// What is looked for in answers, by grant, for the credential it was made of.
    patterns: RefCell<HashMap<usize, Sought>>,
}

/// The forms of a credential.
type Sought = (Rc<Credential>, Rc<Patterns>);

/// How the container came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entrance {
    /// By the broker's own name: the path says which provider is meant.
    Base {
        /// The broker's own name.
        name: Name,
        /// Over TLS.
        tls: bool,
    },
    /// By the name of a brokered host, over TLS.
    Host {
        /// Position in [`terok_policy::Policy::vault`].
        grant: usize,
        /// The host.
        name: Name,
    },
}

/// What a connection to a target meets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Meets {
    /// The broker.
    Broker(Entrance),
    /// Nothing: a brokered host is spoken to over TLS alone, and the broker has two ports.
    Nobody,
}

impl Broker {
    /// The broker of `context`'s container, which serves with certificates of `ca` and trusts upstreams that `bundle`, PEM, vouches for.
    pub(crate) fn new(context: Rc<Context>, ca: Ca, bundle: &[u8]) -> anyhow::Result<Rc<Self>> {
        let pool = upstream::Pool::new(bundle)?;
        let (open, patterns) = (Rc::default(), RefCell::default());
        Ok(Rc::new(Broker { context, ca, pool, open, patterns }))
    }

    /// What a connection to `target` meets; `None`: it is none of the broker's.
    pub(crate) fn meets(&self, target: &Target) -> Option<Meets> {
        let Host::Name(to) = &target.host else { return None };
        if to.as_str() == name::VAULT {
            return Some(match target.port {
                80 => Meets::Broker(Entrance::Base { name: to.clone(), tls: false }),
                443 => Meets::Broker(Entrance::Base { name: to.clone(), tls: true }),
                _ => Meets::Nobody,
            });
        }
        let grant = self.grants().iter().position(|grant| grant.provider.is_host(to))?;
        match target.port {
            443 => Some(Meets::Broker(Entrance::Host { grant, name: to.clone() })),
            80 => Some(Meets::Nobody),
            _ => None,
        }
    }

    /// Whether `name` is a brokered host, whatever the port: there is no other way to it.
    pub(crate) fn is_brokered(&self, name: &Name) -> bool {
        self.grants().iter().any(|grant| grant.provider.is_host(name))
    }

    /// Serves `client`, which came in by `entrance` on its way to `target`, until it ends.
    pub(crate) async fn serve<S>(
        self: &Rc<Self>,
        outward: Rc<dyn Outward>,
        client: S,
        target: &Target,
        entrance: Entrance,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        door::serve(self, outward, client, target, entrance).await;
    }

    fn grants(&self) -> &[VaultGrant] {
        &self.context.config.policy.vault
    }

    fn grant(&self, index: usize) -> Option<&VaultGrant> {
        self.grants().get(index)
    }

    fn position(&self, provider: &str) -> Option<usize> {
        self.grants().iter().position(|grant| grant.provider.name == provider)
    }

    fn names(&self) -> Vec<&str> {
        self.grants().iter().map(|grant| grant.provider.name.as_str()).collect()
    }

    fn token(&self, index: usize) -> Option<&str> {
        self.context.config.issued.as_ref()?.tokens.get(index).map(String::as_str)
    }

    /// What must not come back in an answer to a request with `credential`.
    fn patterns(&self, grant: usize, credential: &Rc<Credential>) -> Rc<Patterns> {
        if let Some((of, patterns)) = self.patterns.borrow().get(&grant)
            && Rc::ptr_eq(of, credential)
        {
            return patterns.clone();
        }
        let secret = credential.secret.as_bytes();
        let login = Zeroizing::new([credential.user.as_bytes(), b":", secret].concat());
        let login = Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(&*login));
        let patterns = Patterns::of([secret, login.as_bytes()]);
        self.patterns.borrow_mut().insert(grant, (credential.clone(), patterns.clone()));
        patterns
    }
}

impl Entrance {
    /// The name that the client must mean.
    fn name(&self) -> &Name {
        match self {
            Entrance::Base { name, .. } | Entrance::Host { name, .. } => name,
        }
    }

    fn is_tls(&self) -> bool {
        !matches!(self, Entrance::Base { tls: false, .. })
    }
}

#[cfg(test)]
mod tests;
