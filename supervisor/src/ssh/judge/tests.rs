use super::super::message::put;
use super::*;
use proptest::prelude::*;
use std::sync::LazyLock;
use terok_vault::ssh_key::{Kind, SshKey};

fn new(kind: Kind) -> SshKey {
    SshKey::generate(kind, "").unwrap()
}

/// A server that has signed its session.
fn bound(host: &SshKey, session: &[u8], forwarding: bool) -> Binding {
    Binding {
        host_key: host.blob(),
        session: session.to_vec(),
        signature: host.sign(session, 0).unwrap(),
        forwarding,
    }
}

/// A login, and how to change one of its parts.
struct Wanted<'a> {
    session: &'a [u8],
    number: u8,
    user: &'a [u8],
    service: &'a [u8],
    method: &'a [u8],
    signed: u8,
    algorithm: &'a [u8],
    key: &'a [u8],
    host_key: Option<&'a [u8]>,
}

impl<'a> Wanted<'a> {
    fn of(key: &'a [u8]) -> Self {
        Wanted {
            session: b"session one",
            number: 50,
            user: b"git",
            service: b"ssh-connection",
            method: b"publickey",
            signed: 1,
            algorithm: b"ssh-ed25519",
            key,
            host_key: None,
        }
    }

    fn data(&self) -> Vec<u8> {
        let mut data = Vec::new();
        put(&mut data, self.session);
        data.push(self.number);
        for part in [self.user, self.service, self.method] {
            put(&mut data, part);
        }
        data.push(self.signed);
        put(&mut data, self.algorithm);
        put(&mut data, self.key);
        if let Some(host_key) = self.host_key {
            put(&mut data, host_key);
        }
        data
    }
}

fn sshsig(namespace: &[u8], reserved: &[u8], hash: &[u8], digest: &[u8]) -> Vec<u8> {
    let mut data = b"SSHSIG".to_vec();
    for part in [namespace, reserved, hash, digest] {
        put(&mut data, part);
    }
    data
}

fn at(host: &str) -> SshGrant {
    SshGrant { key: "work".into(), host: Some(host.parse().unwrap()) }
}

fn anywhere() -> SshGrant {
    SshGrant { key: "work".into(), host: None }
}

fn git() -> Vec<String> {
    vec!["git".to_owned()]
}

#[test]
fn a_login_at_a_bound_session_is_for_the_key_of_its_host() {
    let (key, host) = (new(Kind::Ed25519), new(Kind::EcdsaP256));
    let blob = key.blob();
    let host_blob = host.blob();
    let bindings = [bound(&host, b"session one", false)];
    let login = Purpose::Login { user: "git".into(), host_key: Some(host.blob()) };
    for host_key in [None, Some(&host_blob[..])] {
        let method: &[u8] =
            if host_key.is_some() { b"publickey-hostbound-v00@openssh.com" } else { b"publickey" };
        let data = Wanted { method, host_key, ..Wanted::of(&blob) }.data();
        assert_eq!(judge(&at("github.com"), &git(), &blob, &bindings, &data, 0), Ok(login.clone()));
        assert_eq!(judge(&anywhere(), &git(), &blob, &bindings, &data, 0), Ok(login.clone()));
    }
}

#[test]
fn a_key_for_one_host_is_not_used_where_the_host_is_not_proved() {
    let (key, host, other) = (new(Kind::Ed25519), new(Kind::Ed25519), new(Kind::Ed25519));
    let (blob, host_blob) = (key.blob(), host.blob());
    let good = bound(&host, b"session one", false);
    let data = Wanted::of(&blob).data();
    let hostbound = Wanted {
        method: b"publickey-hostbound-v00@openssh.com",
        host_key: Some(&host_blob),
        ..Wanted::of(&blob)
    };
    let hostbound = hostbound.data();
    let ask = |bindings: &[Binding], data: &[u8]| judge(&at("github.com"), &git(), &blob, bindings, data, 0);
    assert_eq!(ask(&[], &data), Err(Refusal::Unbound));
    assert_eq!(ask(&[], &hostbound), Err(Refusal::Unbound));
    let claimed = Binding { host_key: host.blob(), ..bound(&other, b"session one", false) };
    assert_eq!(ask(&[claimed], &data), Err(Refusal::FalseBinding));
    // The host's signature of a session that it has with somebody else.
    let replayed = Binding { session: b"session one".to_vec(), ..bound(&host, b"session two", false) };
    assert_eq!(ask(&[replayed], &data), Err(Refusal::FalseBinding));
    assert_eq!(ask(&[bound(&host, b"session two", false)], &data), Err(Refusal::OtherSession));
    assert_eq!(ask(&[bound(&host, b"session one", true)], &data), Err(Refusal::Forwarded));
    let hop = bound(&other, b"session zero", true);
    assert_eq!(ask(&[hop.clone(), good.clone()], &data), Err(Refusal::Forwarded));
    assert_eq!(ask(&[good.clone(), hop], &data), Err(Refusal::Forwarded));
    assert_eq!(ask(&[bound(&other, b"session one", false)], &hostbound), Err(Refusal::OtherHostKey));
    assert!(ask(&[good], &hostbound).is_ok());
}

#[test]
fn a_key_without_a_host_signs_unbound_logins_but_no_mismatch() {
    let (key, host) = (new(Kind::Ed25519), new(Kind::Ed25519));
    let blob = key.blob();
    let data = Wanted::of(&blob).data();
    let ask = |bindings: &[Binding]| judge(&anywhere(), &git(), &blob, bindings, &data, 0);
    assert_eq!(ask(&[]), Ok(Purpose::Login { user: "git".into(), host_key: None }));
    assert_eq!(ask(&[bound(&host, b"session two", false)]), Err(Refusal::OtherSession));
    assert_eq!(ask(&[bound(&host, b"session one", true)]), Err(Refusal::Forwarded));
    let hop = bound(&host, b"session zero", true);
    assert!(ask(&[hop, bound(&host, b"session one", false)]).is_ok());
}

#[test]
fn other_users_other_keys_certificates_and_other_forms_are_refused() {
    let key = new(Kind::Ed25519);
    let other = new(Kind::Ed25519);
    let (blob, others) = (key.blob(), other.blob());
    let ask = |wanted: Wanted<'_>| judge(&anywhere(), &git(), &blob, &[], &wanted.data(), 0).unwrap_err();
    let root = ask(Wanted { user: b"root", ..Wanted::of(&blob) });
    assert_eq!(root, Refusal::User { user: "root".into(), allowed: "git".into() });
    let everybody = Wanted { user: b"root", ..Wanted::of(&blob) }.data();
    assert!(judge(&anywhere(), &[], &blob, &[], &everybody, 0).is_ok());
    assert_eq!(ask(Wanted { key: &others, ..Wanted::of(&blob) }), Refusal::OtherKey);
    let mut certificate = Vec::new();
    put(&mut certificate, b"ssh-ed25519-cert-v01@openssh.com");
    put(&mut certificate, &blob);
    let named = b"ssh-ed25519-cert-v01@openssh.com";
    assert_eq!(ask(Wanted { key: &certificate, algorithm: named, ..Wanted::of(&blob) }), Refusal::OtherKey);
    assert!(matches!(ask(Wanted { algorithm: named, ..Wanted::of(&blob) }), Refusal::Algorithm(_)));
    assert_eq!(ask(Wanted { number: 51, ..Wanted::of(&blob) }), Refusal::Unknown);
    assert_eq!(ask(Wanted { service: b"ssh-userauth", ..Wanted::of(&blob) }), Refusal::Unknown);
    assert_eq!(ask(Wanted { method: b"hostbased", ..Wanted::of(&blob) }), Refusal::Unknown);
    assert_eq!(ask(Wanted { signed: 0, ..Wanted::of(&blob) }), Refusal::Unknown);
    assert_eq!(ask(Wanted { signed: 2, ..Wanted::of(&blob) }), Refusal::Unknown);
    assert_eq!(ask(Wanted { session: b"", ..Wanted::of(&blob) }), Refusal::Unknown);
    assert_eq!(ask(Wanted { host_key: Some(&others), ..Wanted::of(&blob) }), Refusal::Unknown);
    assert_eq!(ask(Wanted { user: &[0xff], ..Wanted::of(&blob) }), Refusal::Unknown);
}

#[test]
fn of_ssh_signatures_only_gits_are_made() {
    let key = new(Kind::Ed25519).blob();
    let ask = |data: Vec<u8>| judge(&at("github.com"), &git(), &key, &[], &data, 0);
    assert_eq!(ask(sshsig(b"git", b"", b"sha512", &[7; 64])), Ok(Purpose::Git));
    assert_eq!(ask(sshsig(b"git", b"", b"sha256", &[7; 32])), Ok(Purpose::Git));
    for namespace in [&b"file"[..], b"", b"git ", b"GIT", b"git\0"] {
        let refused = ask(sshsig(namespace, b"", b"sha512", &[7; 64])).unwrap_err();
        assert!(matches!(refused, Refusal::Namespace(_)), "{namespace:?}");
    }
    assert_eq!(ask(sshsig(b"git", b"", b"sha512", &[7; 32])), Err(Refusal::Unknown));
    assert_eq!(ask(sshsig(b"git", b"", b"sha1", &[7; 20])), Err(Refusal::Unknown));
    assert_eq!(ask(sshsig(b"git", b"x", b"sha512", &[7; 64])), Err(Refusal::Unknown));
    assert_eq!(ask([sshsig(b"git", b"", b"sha512", &[7; 64]), vec![0]].concat()), Err(Refusal::Unknown));
    assert_eq!(ask(vec![0; LONGEST_DATA + 1]), Err(Refusal::Unknown));
}

#[test]
fn rsa_is_used_with_sha_2_and_as_the_login_says() {
    let mut rsa = Vec::new();
    put(&mut rsa, b"ssh-rsa");
    rsa.extend([0; 40]);
    let ask = |algorithm: &[u8], flags| {
        let data = Wanted { algorithm, ..Wanted::of(&rsa) }.data();
        judge(&anywhere(), &git(), &rsa, &[], &data, flags).is_ok()
    };
    assert!(ask(b"rsa-sha2-256", 2) && ask(b"rsa-sha2-512", 4));
    for (algorithm, flags) in [
        (&b"ssh-rsa"[..], 0),
        (b"ssh-rsa", 2),
        (b"rsa-sha2-256", 0),
        (b"rsa-sha2-256", 4),
        (b"rsa-sha2-512", 2),
        (b"rsa-sha2-512", 1),
    ] {
        assert!(!ask(algorithm, flags), "{flags}");
    }
    let sha1 = judge(&anywhere(), &git(), &rsa, &[], &sshsig(b"git", b"", b"sha512", &[7; 64]), 0);
    assert!(matches!(sha1, Err(Refusal::Algorithm(_))));
}

#[test]
fn a_connection_is_bound_along_one_chain() {
    let host = new(Kind::Ed25519);
    let hop = |n: u8| bound(&host, &[n], true);
    let mut bindings: Vec<Binding> = Vec::new();
    for n in 0..16 {
        assert_eq!(may_bind(&bindings, &hop(n)), Ok(()));
        bindings.push(hop(n));
    }
    assert_eq!(may_bind(&bindings, &hop(16)), Err(Refusal::Sessions));
    let ended = [bound(&host, b"end", false)];
    assert_eq!(may_bind(&ended, &hop(1)), Err(Refusal::Sessions));
    let mut forged = hop(1);
    forged.signature[30] ^= 1;
    assert_eq!(may_bind(&[], &forged), Err(Refusal::FalseBinding));
}

#[test]
fn what_a_client_wrote_is_shown_without_control_characters() {
    let key = new(Kind::Ed25519).blob();
    let data = sshsig(b"a\x1b[2J\n\xff", b"", b"sha512", &[7; 64]);
    let refused = judge(&anywhere(), &git(), &key, &[], &data, 0).unwrap_err().to_string();
    assert!(refused.chars().all(|c| c.is_ascii_graphic() || c == ' '), "{refused:?}");
}

static PAIR: LazyLock<(SshKey, SshKey)> = LazyLock::new(|| (new(Kind::Ed25519), new(Kind::Ed25519)));

proptest! {
    /// Whatever one bit of a granted login is turned into, it is refused, or it is a login at the same host as one of the same users.
    #[test]
    fn no_changed_bit_makes_another_login(at_byte in 0usize..400, bit in 0u8..8) {
        let key = &PAIR.0;
        let host = &PAIR.1;
        let (blob, host_blob) = (key.blob(), host.blob());
        let wanted = Wanted {
            method: b"publickey-hostbound-v00@openssh.com",
            host_key: Some(&host_blob),
            ..Wanted::of(&blob)
        };
        let mut data = wanted.data();
        let bindings = [bound(host, b"session one", false)];
        let grant = self::at("github.com");
        let good = judge(&grant, &git(), &blob, &bindings, &data, 0);
        prop_assert!(good.is_ok());
        let at_byte = at_byte % data.len();
        data[at_byte] ^= 1 << bit;
        prop_assert!(judge(&grant, &git(), &blob, &bindings, &data, 0).is_err());
    }

    #[test]
    fn no_bytes_make_the_judge_panic(data in prop::collection::vec(any::<u8>(), 0..200), raw in prop::collection::vec(any::<u8>(), 0..200), flags: u32) {
        let bindings: Vec<Binding> = Binding::read(&raw).into_iter().collect();
        let _ = judge(&anywhere(), &git(), &raw, &bindings, &data, flags);
        let _ = judge(&at("github.com"), &git(), &raw, &bindings, &[b"SSHSIG", &data[..]].concat(), flags);
    }
}
