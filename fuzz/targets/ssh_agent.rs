//! A message to the SSH agent, and what it asks to be signed: nothing is signed for a host that no session proves, nor for another user, key or
//! namespace, and no two readings of what is signed differ.
#![no_main]

use libfuzzer_sys::fuzz_target;
use terok_policy::policy::SshGrant;
use terok_supervisor::ssh::judge::{Binding, Purpose, judge};
use terok_supervisor::ssh::message::{Request, string};

/// A public key that anybody may have.
const KEY: &[u8] = b"\0\0\0\x0bssh-ed25519\0\0\0\x20terok terok terok terok terok te";

fuzz_target!(|input: &[u8]| {
    let (data, key) = match Request::read(input) {
        Request::Bind(contents) => {
            if let Some(binding) = Binding::read(contents) {
                // Whoever finds a session that this signs may have the key.
                let _ = binding.holds();
            }
            return;
        }
        Request::Sign { key, data, .. } => (data, key),
        _ => (input, KEY),
    };
    let users = ["git".to_owned()];
    let anywhere = SshGrant { key: "work".to_owned(), host: None };
    let Ok(host) = "github.com".parse() else { return };
    let there = SshGrant { host: Some(host), ..anywhere.clone() };
    for flags in [0, 2, 4] {
        match judge(&there, &users, key, &[], data, flags) {
            Ok(Purpose::Git) => assert!(data.starts_with(b"SSHSIG\0\0\0\x03git\0\0\0\0\0\0\0\x06sha")),
            Ok(Purpose::Login { .. }) => panic!("a login at a host that nothing proves"),
            Err(refusal) => assert!(refusal.to_string().is_ascii()),
        }
        if let Ok(Purpose::Login { user, host_key }) = judge(&anywhere, &users, key, &[], data, flags) {
            assert_eq!((user.as_str(), host_key), ("git", None));
            let mut rest = data;
            assert!(string(&mut rest).is_some() && rest.starts_with(b"\x32\0\0\0\x03git\0\0\0\x0essh-connection"));
        }
    }
});
