//! The helper's part: judges the worker's request once more, asks whose the host key is, and signs.

use super::judge::{Binding, Purpose, judge};
use crate::vault::Trouble;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use terok_policy::Name;
use terok_policy::policy::SshGrant;
use terok_vault::known_hosts::{KnownHosts, Standing};
use terok_vault::ssh_key::{SshKey, read_public};
use terok_vault::{SshPublic, ssh_key};
use zeroize::Zeroizing;

/// What the worker wants signed, as it came: the parts of [`crate::vault::Errand::Sign`].
pub(crate) struct Wanted<'a> {
    /// Bindings, base64.
    pub(crate) bindings: &'a [String],
    /// What to sign, base64.
    pub(crate) data: &'a str,
    /// Flags.
    pub(crate) flags: u32,
}

/// Signs what `grant` covers with the key of the record `public`, whose private part `open` is called for once all else is in order.
/// Returns the signature, wire form in base64.
pub(crate) fn sign(
    wanted: &Wanted<'_>,
    grant: &SshGrant,
    public: &SshPublic,
    known: &KnownHosts,
    open: impl FnOnce() -> Result<Zeroizing<String>, Trouble>,
) -> Result<String, Trouble> {
    let malformed = || Trouble::Failed("a request for a signature cannot be read".to_owned());
    let bytes = |text: &str| STANDARD.decode(text).map_err(|_| malformed());
    let data = bytes(wanted.data)?;
    let bindings = wanted.bindings.iter().map(|text| Binding::read(&bytes(text)?).ok_or_else(malformed));
    let bindings = bindings.collect::<Result<Vec<_>, _>>()?;
    let (blob, _) =
        read_public(&public.public).ok_or_else(|| failed(grant, "its public key cannot be read"))?;
    let purpose = judge(grant, &public.users, &blob, &bindings, &data, wanted.flags)
        .map_err(|refusal| Trouble::Refused(refusal.to_string()))?;
    if let (Purpose::Login { host_key, .. }, Some(host)) = (&purpose, &grant.host) {
        is_of(host, host_key.as_deref().unwrap_or_default(), known)?;
    }
    let key = SshKey::from_pem(&open()?).map_err(|error| failed(grant, &error))?;
    if key.blob() != blob {
        return Err(failed(grant, "its public key is another one's"));
    }
    let signature = key.sign(&data, wanted.flags).map_err(|error| failed(grant, &error))?;
    Ok(STANDARD.encode(signature))
}

fn failed(grant: &SshGrant, reason: impl std::fmt::Display) -> Trouble {
    Trouble::Failed(format!("the SSH key {}: {reason}", grant.key))
}

/// Whether `host` is known by `key`.
fn is_of(host: &Name, key: &[u8], known: &KnownHosts) -> Result<(), Trouble> {
    let print = ssh_key::fingerprint_of(key).unwrap_or_else(|| "of an unknown kind".to_owned());
    let refused = match known.standing(host, key) {
        Standing::Known => return Ok(()),
        Standing::Revoked => format!("the host key {print} was revoked"),
        Standing::Changed => format!(
            "the server's key {print} is none of those known of {host}: it is another host, or has a new key (`terok ssh hosts add {host} {print}` if that is so)"
        ),
        Standing::Unknown => format!(
            "no key is known of {host}: `terok ssh hosts add {host} {print}` if the server's key is this one"
        ),
    };
    Err(Trouble::Refused(refused))
}

#[cfg(test)]
mod tests {
    use super::super::message::put;
    use super::*;
    use std::cell::Cell;
    use terok_vault::ssh_key::Kind;

    fn sshsig(namespace: &str) -> String {
        let mut data = b"SSHSIG".to_vec();
        for part in [namespace.as_bytes(), b"", b"sha512", &[7; 64]] {
            put(&mut data, part);
        }
        STANDARD.encode(data)
    }

    struct Case {
        key: SshKey,
        public: SshPublic,
        host: SshKey,
        bindings: Vec<String>,
        login: String,
    }

    fn case() -> Case {
        let (key, host) =
            (SshKey::generate(Kind::Ed25519, "work").unwrap(), SshKey::generate(Kind::Ed25519, "").unwrap());
        let session = [5; 32];
        let mut binding = Vec::new();
        for part in [&host.blob()[..], &session, &host.sign(&session, 0).unwrap()] {
            put(&mut binding, part);
        }
        binding.push(0);
        let mut login = Vec::new();
        put(&mut login, &session);
        login.push(50);
        for part in ["git", "ssh-connection", "publickey"] {
            put(&mut login, part.as_bytes());
        }
        login.push(1);
        put(&mut login, b"ssh-ed25519");
        put(&mut login, &key.blob());
        Case {
            public: SshPublic { public: key.public(), users: vec!["git".into()] },
            bindings: vec![STANDARD.encode(binding)],
            login: STANDARD.encode(login),
            key,
            host,
        }
    }

    fn ask(case: &Case, data: &str, known: &str) -> (Result<String, Trouble>, bool) {
        let grant = SshGrant { key: "work".into(), host: Some("git.example".parse().unwrap()) };
        let mut hosts = KnownHosts::default();
        hosts.add(known);
        let opened = Cell::new(false);
        let wanted = Wanted { bindings: &case.bindings, data, flags: 0 };
        let done = sign(&wanted, &grant, &case.public, &hosts, || {
            opened.set(true);
            Ok(case.key.to_pem().unwrap())
        });
        (done, opened.get())
    }

    #[test]
    fn a_login_at_the_known_host_is_signed_and_the_signature_is_the_keys() {
        let case = case();
        let (done, _) = ask(&case, &case.login, &format!("git.example {}", case.host.public()));
        let signature = STANDARD.decode(done.unwrap()).unwrap();
        assert!(ssh_key::verify(&case.key.blob(), &signature, &STANDARD.decode(&case.login).unwrap()));
    }

    #[test]
    fn the_key_stays_sealed_where_the_host_is_not_known_or_the_request_is_not_covered() {
        let case = case();
        let other = SshKey::generate(Kind::Ed25519, "").unwrap().public();
        for (known, word) in [
            (String::new(), "terok ssh hosts add git.example SHA256:"),
            (format!("git.example {other}"), "none of those known of git.example"),
            (format!("other.example {}", case.host.public()), "no key is known"),
            (format!("@revoked * {0}\ngit.example {0}", case.host.public()), "was revoked"),
        ] {
            let (done, opened) = ask(&case, &case.login, &known);
            let Err(Trouble::Refused(reason)) = done else { panic!("{done:?}") };
            assert!(reason.contains(word) && !opened, "{reason}");
        }
        let known = format!("git.example {}", case.host.public());
        let (done, opened) = ask(&case, &sshsig("file"), &known);
        assert!(matches!(done, Err(Trouble::Refused(_))) && !opened);
        assert!(ask(&case, &sshsig("git"), "").0.is_ok());
        assert!(matches!(ask(&case, "!", &known).0, Err(Trouble::Failed(_))));
    }
}
