//! What is signed: logins at the host a key was granted for, and what git signs. Pure, and asked twice: by the worker, and by the helper that holds
//! the key and does not take the worker's word (V6).

use super::message::{byte, string};
use terok_policy::Name;
use terok_policy::policy::SshGrant;
use terok_vault::ssh_key::{RSA_SHA2_256, RSA_SHA2_512, verify};

/// SSHSIG namespace that is signed (PROTOCOL.sshsig).
const NAMESPACE: &[u8] = b"git";
/// SSH_MSG_USERAUTH_REQUEST (RFC 4252 §6).
const USERAUTH_REQUEST: u8 = 50;
/// Bindings of a connection: one for each host that an agent is forwarded through, and OpenSSH's own limit.
pub const BINDINGS: usize = 16;
/// The longest thing to sign; a login with the largest keys is a quarter of it.
pub const LONGEST_DATA: usize = 16 << 10;
/// The longest binding: RSA of 16384 bits.
pub const LONGEST_BINDING: usize = 6 << 10;
/// All bindings together; what the worker asks for fits into a message.
pub const LONGEST_BINDINGS: usize = 24 << 10;

/// What a client said of a session it has with a server: `session-bind@openssh.com` (PROTOCOL.agent §1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The server's host key, wire form.
    pub host_key: Vec<u8>,
    /// Session identifier: the exchange hash of the first key exchange.
    pub session: Vec<u8>,
    /// The host key's signature over it.
    pub signature: Vec<u8>,
    /// The agent is forwarded to that host.
    pub forwarding: bool,
}

/// What a signature is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// A login.
    Login {
        /// As whom.
        user: String,
        /// The server's key, which must still be one that the granted host is known by; none where the client bound no session and the key
        /// is granted for any host.
        host_key: Option<Vec<u8>>,
    },
    /// A commit, a tag or a push certificate.
    Git,
}

/// Why nothing is signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Neither a login nor SSHSIG, or one that is not well formed.
    #[error("it is neither a login nor a signature of git")]
    Unknown,
    /// SSHSIG for something else.
    #[error("signatures are for the namespace git, not {0}")]
    Namespace(String),
    /// A certificate, or the key of another request.
    #[error("the login names another key, or a certificate")]
    OtherKey,
    /// SHA-1, or an algorithm that is not the key's.
    #[error("the algorithm {0} is not used with this key")]
    Algorithm(String),
    /// Another user.
    #[error("the key is for the users {allowed}, not {user}")]
    User {
        /// Who was to log in.
        user: String,
        /// The key's users.
        allowed: String,
    },
    /// The client said nothing of the session.
    #[error(
        "the client does not say at which host it logs in (OpenSSH 8.9 or newer does); or grant the key without a host"
    )]
    Unbound,
    /// The binding is not what the server signed.
    #[error("the host key's signature does not fit the session")]
    FalseBinding,
    /// The login is for a session that was not bound, replayed or of another connection.
    #[error("the login is for another session")]
    OtherSession,
    /// The agent was forwarded.
    #[error("the agent is not forwarded to other hosts")]
    Forwarded,
    /// The server's key differs from the one in the login.
    #[error("the login names another host key than the session's")]
    OtherHostKey,
    /// More bindings than a connection has.
    #[error("too many sessions on one connection")]
    Sessions,
}

impl Binding {
    /// Reads the extension's contents.
    pub fn read(mut contents: &[u8]) -> Option<Self> {
        let rest = &mut contents;
        let (host_key, session, signature) = (string(rest)?, string(rest)?, string(rest)?);
        let forwarding = boolean(rest)?;
        let owned = |bytes: &[u8]| bytes.to_vec();
        (rest.is_empty() && !session.is_empty()).then(|| Binding {
            host_key: owned(host_key),
            session: owned(session),
            signature: owned(signature),
            forwarding,
        })
    }

    /// Whether the host key has signed the session.
    pub fn holds(&self) -> bool {
        verify(&self.host_key, &self.signature, &self.session)
    }
}

/// Whether `next` may follow the `bindings` of a connection.
pub fn may_bind(bindings: &[Binding], next: &Binding) -> Result<(), Refusal> {
    if bindings.len() >= BINDINGS {
        return Err(Refusal::Sessions);
    }
    // A session that logins are signed for ends a chain of forwarded ones.
    if bindings.last().is_some_and(|last| !last.forwarding) {
        return Err(Refusal::Sessions);
    }
    if !next.holds() {
        return Err(Refusal::FalseBinding);
    }
    Ok(())
}

/// Judges a request: `key` (wire form) is the granted one, `users` those it logs in as (any where empty), `bindings` what the connection is bound to.
pub fn judge(
    grant: &SshGrant,
    users: &[String],
    key: &[u8],
    bindings: &[Binding],
    data: &[u8],
    flags: u32,
) -> Result<Purpose, Refusal> {
    if data.len() > LONGEST_DATA {
        return Err(Refusal::Unknown);
    }
    if let Some(rest) = data.strip_prefix(b"SSHSIG") {
        is_rsa_with(key, flags)?;
        return sshsig(rest);
    }
    let login = Login::read(data).ok_or(Refusal::Unknown)?;
    if login.key != key {
        return Err(Refusal::OtherKey);
    }
    algorithm(key, login.algorithm, flags)?;
    let host_key = session(grant.host.as_ref(), bindings, &login)?;
    let user = std::str::from_utf8(login.user).map_err(|_| Refusal::Unknown)?;
    if !users.is_empty() && !users.iter().any(|allowed| allowed == user) {
        return Err(Refusal::User { user: shown(login.user), allowed: users.join(", ") });
    }
    Ok(Purpose::Login { user: user.to_owned(), host_key })
}

/// A login by key (RFC 4252 §7), or by key bound to a host key (OpenSSH's PROTOCOL §3.1), as it is signed.
struct Login<'a> {
    session: &'a [u8],
    user: &'a [u8],
    algorithm: &'a [u8],
    key: &'a [u8],
    host_key: Option<&'a [u8]>,
}

impl<'a> Login<'a> {
    fn read(mut data: &'a [u8]) -> Option<Self> {
        let rest = &mut data;
        let session = string(rest).filter(|session| !session.is_empty())?;
        if byte(rest)? != USERAUTH_REQUEST {
            return None;
        }
        let user = string(rest)?;
        if string(rest)? != b"ssh-connection" {
            return None;
        }
        let bound = match string(rest)? {
            b"publickey" => false,
            b"publickey-hostbound-v00@openssh.com" => true,
            _ => return None,
        };
        if !boolean(rest)? {
            return None;
        }
        let (algorithm, key) = (string(rest)?, string(rest)?);
        let host_key = if bound { Some(string(rest)?) } else { None };
        rest.is_empty().then_some(Login { session, user, algorithm, key, host_key })
    }
}

/// The host key of the session that `login` is for.
fn session(host: Option<&Name>, bindings: &[Binding], login: &Login<'_>) -> Result<Option<Vec<u8>>, Refusal> {
    if bindings.len() > BINDINGS {
        return Err(Refusal::Sessions);
    }
    let Some((last, before)) = bindings.split_last() else {
        return if host.is_some() || login.host_key.is_some() { Err(Refusal::Unbound) } else { Ok(None) };
    };
    // A forwarded agent serves whoever is root on the host between.
    if last.forwarding || (host.is_some() && !before.is_empty()) || !before.iter().all(|hop| hop.forwarding) {
        return Err(Refusal::Forwarded);
    }
    if !bindings.iter().all(Binding::holds) {
        return Err(Refusal::FalseBinding);
    }
    if last.session != login.session {
        return Err(Refusal::OtherSession);
    }
    if login.host_key.is_some_and(|key| key != last.host_key) {
        return Err(Refusal::OtherHostKey);
    }
    Ok(Some(last.host_key.clone()))
}

/// What git signs: namespace, nothing reserved, a digest of its length.
fn sshsig(mut data: &[u8]) -> Result<Purpose, Refusal> {
    let rest = &mut data;
    let mut next = || string(rest).ok_or(Refusal::Unknown);
    let (namespace, reserved, hash, digest) = (next()?, next()?, next()?, next()?);
    if namespace != NAMESPACE {
        return Err(Refusal::Namespace(shown(namespace)));
    }
    let fits = matches!((hash, digest.len()), (b"sha256", 32) | (b"sha512", 64));
    if fits && reserved.is_empty() && rest.is_empty() { Ok(Purpose::Git) } else { Err(Refusal::Unknown) }
}

/// Whether the login names the algorithm that the flags ask for.
fn algorithm(key: &[u8], named: &[u8], flags: u32) -> Result<(), Refusal> {
    is_rsa_with(key, flags)?;
    let kind = kind(key);
    let expected: &[u8] = match kind {
        b"ssh-rsa" if flags & RSA_SHA2_256 != 0 => b"rsa-sha2-256",
        b"ssh-rsa" => b"rsa-sha2-512",
        _ => kind,
    };
    if named == expected { Ok(()) } else { Err(Refusal::Algorithm(shown(named))) }
}

/// RSA is used with SHA-2 alone.
fn is_rsa_with(key: &[u8], flags: u32) -> Result<(), Refusal> {
    if kind(key) == b"ssh-rsa" && flags & (RSA_SHA2_256 | RSA_SHA2_512) == 0 {
        return Err(Refusal::Algorithm("ssh-rsa (SHA-1)".to_owned()));
    }
    Ok(())
}

fn kind(mut key: &[u8]) -> &[u8] {
    string(&mut key).unwrap_or_default()
}

fn boolean(rest: &mut &[u8]) -> Option<bool> {
    match byte(rest)? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

/// What a client wrote, for people.
fn shown(text: &[u8]) -> String {
    let text = &text[..text.len().min(64)];
    String::from_utf8_lossy(text).chars().flat_map(char::escape_default).collect()
}

#[cfg(test)]
mod tests;
