//! What a granted SSH key needs beside itself: the keys of its host for the client's own check, and a rule that lets it there.

use crate::vault_clients::key;
use terok_tests::{Container, Mode, Recipe, both_modes};

/// A container of an image that knows no host, whose client takes none that it does not know.
#[track_caller]
fn strict(mode: Mode, key: &str, allow: &str) -> Container {
    let recipe =
        Recipe::sealed(mode, allow).image("localhost/wl").annotate("ssh", &format!("{key}@github.com"));
    let container = recipe.idle();
    container
        .sh("mkdir -p -m 700 ~/.ssh; printf 'StrictHostKeyChecking yes\\nBatchMode yes\\n' > ~/.ssh/config")
        .succeeded();
    container
}

both_modes! {
    /// The server at the other name is allowed, would let the key in, and is known to the host's user: only it was not granted.
    fn a_bare_image_knows_the_granted_host_and_no_other(mode: Mode) {
        let (key, _) = key(mode, "ed25519");
        let container = strict(mode, &key, "github.com:22 ssh2.example.com:22");
        let out = container.sh("git clone -q git@github.com:lab/repo.git /tmp/r; cat /tmp/r/README").succeeded();
        assert!(out.contains("hello from the lab"), "{out}");
        let plain = |options: &str| container.sh(&format!("ssh {options} git@github.com \"git-upload-pack 'lab/repo.git'\" </dev/null | head -c 4 | wc -c"));
        assert_eq!(plain("-o GlobalKnownHostsFile=/run/terok/known_hosts").succeeded().trim(), "4");
        assert_eq!(plain("").stdout.trim(), "0", "without it the client knows nobody");
        let said = container.sh("git ls-remote git@ssh2.example.com:lab/repo.git").failed();
        assert!(said.contains("Host key verification failed"), "{said}");
        let file = container.sh("stat -c %a /run/terok/known_hosts; cat /run/terok/known_hosts").succeeded();
        assert!(file.starts_with("444\n") && !file.contains("ssh2"), "{file}");
        container.sh("echo x >> /run/terok/known_hosts").failed();
    }

    /// OpenSSH's client and server name the host's key inside what is signed.
    fn a_login_that_names_the_hosts_key_is_signed(mode: Mode) {
        let (key, _) = key(mode, "ecdsa");
        let container = strict(mode, &key, "github.com:22");
        let said = container
            .sh("ssh -vvv -o GlobalKnownHostsFile=/run/terok/known_hosts git@github.com \"git-upload-pack 'lab/repo.git'\" </dev/null 2>&1 | tr -d '\\0'")
            .stdout;
        assert!(said.contains("using publickey-hostbound-v00@openssh.com"), "{said}");
        assert!(said.contains("Authenticated to github.com"), "{said}");
        container.audited("ssh", "sign", "github.com");
    }

    fn a_key_opens_no_port_and_both_terok_run_and_the_log_say_so(mode: Mode) {
        let (key, _) = key(mode, "ed25519");
        let container = strict(mode, &key, "");
        container.sh("git ls-remote git@github.com:lab/repo.git").failed();
        container.audited("dns", "refuse", "github.com");
        let dry_run = |more: &[&str]| {
            let grant = format!("{key}@github.com");
            mode.run("terok", &[&["run", "--dry-run", "--ssh", &grant], more, &["localhost/wl"]].concat()).stderr
        };
        assert!(dry_run(&[]).contains("add --allow github.com:22"));
        assert!(!dry_run(&["--allow", "github.com:22"]).contains("--allow"));
        let explained = mode.run("terok", &["explain", &format!("terok.ssh={key}@github.com")]).succeeded();
        assert!(explained.contains("no rule opens github.com:22"), "{explained}");
    }
}
