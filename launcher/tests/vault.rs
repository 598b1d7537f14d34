//! `terok vault` as a person types it, in a machine of their own: user and mount namespaces with an empty `/run` and home, and no terminal.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// A line of shell, how it ends, and something that it says.
type Step<'a> = (&'a str, i32, &'a str);

/// Whether such a machine can be made.
fn possible() -> bool {
    let tried = Command::new("unshare")
        .args(["-Urm", "setsid", "-w", "mount", "-t", "tmpfs", "none", "/run"])
        .output();
    if tried.as_ref().is_ok_and(|output| output.status.success()) {
        return true;
    }
    terok_need::missing("mount", format!("unshare -Urm does not work: {tried:?}"));
    false
}

/// Takes the steps one after the other, and what they said is read to its end; a secret, which begins with `S3CRET`, is nowhere in it.
fn walk(steps: &[Step<'_>]) {
    if !possible() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    std::fs::create_dir(&home).unwrap();
    let uid = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap());
    let mut script = format!(
        "set -e; mount -t tmpfs -o mode=755 tmpfs /run; mount -t tmpfs -o mode=755 tmpfs /var/lib\n\
         mkdir -p -m 755 /run/user; mkdir -m 700 /run/user/{uid}; cd \"$HOME\"; umask 077; set +e\n"
    );
    for (at, (line, ..)) in steps.iter().enumerate() {
        let out = folder.path().join(at.to_string());
        script += &format!("( {line}\n) </dev/null >{0} 2>&1; echo $? >{0}.code\n", out.display());
    }
    let bin = Path::new(env!("CARGO_BIN_EXE_terok")).parent().unwrap();
    let mut shell = Command::new("unshare")
        .args(["-Urm", "setsid", "-w", "sh"])
        .env_clear()
        .env("HOME", &home)
        .env("TEROK_PODMAN", home.join("podman"))
        .env("CONTAINERS_CONF", home.join("conf"))
        .env("PATH", format!("{}:/usr/bin:/bin:/usr/sbin:/sbin", bin.display()))
        .env("OUTSIDE", uid.to_string())
        .env("KEY", "S3CRET-of-a-variable-0123456789")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    shell.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(shell.wait().unwrap().success());
    for (at, (line, code, says)) in steps.iter().enumerate() {
        let said = std::fs::read_to_string(folder.path().join(at.to_string())).unwrap();
        let ended = std::fs::read_to_string(folder.path().join(format!("{at}.code"))).unwrap();
        assert_eq!(ended.trim(), code.to_string(), "{line}: {said}");
        assert!(said.contains(says), "{line}: {said}");
        let may = line.contains("--reveal");
        assert!(may || !said.contains("S3CRET"), "{line}: {said}");
        // What went wrong is one line, and no puzzle of the system.
        let wrong: Vec<&str> = said.lines().filter(|line| line.starts_with("terok: ")).collect();
        assert!(*code != 1 || wrong.len() == 1, "{line}: {said}");
        assert!(!said.contains("os error 6") && !said.contains("panicked"), "{line}: {said}");
    }
}

/// `terok vault VERB` with the passphrase on standard input.
macro_rules! passphrase {
    ($verb:literal) => {
        concat!("echo 'correct horse' | terok vault ", $verb, " --passphrase-stdin")
    };
}

#[test]
fn from_nothing_to_a_sealed_credential_and_back() {
    walk(&[
        ("terok vault status", 1, "make one with: terok vault init"),
        ("terok vault unlock", 1, "terok vault init"),
        ("terok vault add anthropic --env KEY", 1, "terok vault init"),
        ("terok vault lock", 0, "locked already"),
        ("terok vault init", 1, "give it with --passphrase-stdin: there is no terminal to ask on"),
        ("echo short | terok vault init --passphrase-stdin", 1, "at least 8 characters"),
        ("terok vault init --passphrase-stdin", 1, "standard input is empty"),
        (passphrase!("init"), 0, "next: terok vault unlock"),
        (passphrase!("init"), 1, "is there already; it is left as it is"),
        ("terok vault list", 0, "terok vault add PROVIDER"),
        ("terok vault add anthropic --env KEY", 1, "the vault is locked; run `terok vault unlock`"),
        ("echo wrong horse | terok vault unlock --passphrase-stdin", 1, "wrong passphrase"),
        (passphrase!("unlock --for 1h"), 0, "unlocked for 1h"),
        ("terok vault add antropic --env KEY", 1, "did you mean \"anthropic\""),
        ("terok vault add anthropic --env NOPE", 1, "there is no variable NOPE"),
        (
            "terok vault add anthropic",
            1,
            "give --stdin, --env VARIABLE or --oauth FILE: there is no terminal",
        ),
        ("terok vault add mistral --env KEY", 0, "terok run --vault mistral"),
        ("terok vault add mistral --env KEY", 1, "give --replace"),
        ("terok vault add mistral --env KEY --replace", 0, "replaced"),
        ("terok vault add mistral work --env KEY", 0, "terok run --vault mistral=work"),
        ("terok vault add github --env KEY", 0, "terok: it does not begin with ghp_"),
        ("echo github_pat_S3CRET | terok vault add github work --stdin", 0, "added"),
        ("terok vault list", 0, "mistral          work"),
        ("terok vault list --json", 0, "\"revision\":2"),
        ("terok vault show github", 0, "terok run --vault github"),
        ("terok vault show github home", 1, "`terok vault list` shows what is there"),
        ("terok vault export", 0, "\"name\": \"work\""),
        ("terok vault export --reveal | grep -c S3CRET", 0, "4"),
        ("umask 022; terok vault export --reveal > open.json", 1, "run `umask 077` first"),
        ("terok vault export --reveal | true", 0, ""),
        ("terok vault remove mistral work", 1, "give --yes"),
        ("terok vault remove mistral work --yes", 0, "revoke it there as well"),
        ("terok vault status", 0, "records      3"),
        ("terok vault lock", 0, "locked"),
        ("terok vault status", 0, "the vault is locked; run `terok vault unlock`"),
        ("terok vault export --reveal", 1, "run `terok vault unlock`"),
        ("terok ssh new work", 1, "run `terok vault unlock`"),
    ]);
}

#[test]
fn what_is_taken_back_from_a_container_that_does_not_run_is_noted_for_its_next_start() {
    walk(&[
        ("mkdir -m 700 -p /var/lib/terok/c0ffee00", 0, ""),
        (
            "terok vault revoke c0ff github ssh:work",
            0,
            "c0ffee00 does not run; from its next start on it does without github, ssh:work",
        ),
        ("cat /var/lib/terok.vault/revoked/c0ffee00", 0, r#"{"of":["github","ssh:work"]}"#),
        ("terok vault revoke c0ffee00", 0, "does without what it was granted"),
        ("terok vault revoke c0ffee00 github --undo", 0, "it has github"),
        ("cat /var/lib/terok.vault/revoked/c0ffee00", 0, r#"{"all-but":["github"]}"#),
        ("terok vault revoke beef", 1, "no protected container"),
        (
            r#"echo '{"id":"c0ffee00","name":"web","pid":1,"started":1,"bundle":"/b","labels":{"project":"","task":"","name":""},"served_by":"c0ffee01"}' > /var/lib/terok/c0ffee00/container.json; terok vault revoke web --undo"#,
            1,
            "web shares the network and the grants of c0ffee01: `terok vault revoke c0ffee01 --undo`",
        ),
        ("cat /var/lib/terok.vault/revoked/c0ffee00", 0, r#"{"all-but":["github"]}"#),
        ("terok vault revoke web; cat /var/lib/terok.vault/revoked/c0ffee01", 0, r#"{"all-but":[]}"#),
        ("rm /var/lib/terok/c0ffee00/container.json /var/lib/terok.vault/revoked/c0ffee01", 0, ""),
        ("terok vault revoke c0ffee00 githb", 1, "\"githb\" is no provider"),
        ("terok vault revoke c0ffee00 githb --undo", 0, "it has githb"),
        (
            "terok vault revoke c0ffee00 --undo; terok vault revoke c0ffee00 github mistrel",
            1,
            "\"mistrel\" is no provider",
        ),
        ("ls -A /var/lib/terok.vault/revoked | wc -l", 0, "0"),
        ("mkdir -m 700 /var/lib/terok/beef; terok vault revoke beef --undo", 0, "it has what"),
        (passphrase!("init"), 0, "made a vault"),
        ("terok vault revoke beef ssh:wrok", 1, "\"ssh:wrok\" is no provider and no SSH key"),
        ("ls -A /var/lib/terok.vault/revoked | wc -l", 0, "0"),
    ]);
}

#[test]
fn a_backup_opens_with_the_passphrase_of_its_day() {
    walk(&[
        (passphrase!("init"), 0, "made a vault"),
        (passphrase!("unlock"), 0, "unlocked for 8h"),
        ("terok vault add mistral --env KEY", 0, "added"),
        ("terok vault backup b.db", 0, "copied to b.db"),
        ("terok vault backup b.db", 1, "is there already"),
        (
            "printf 'correct horse\\nbattery staple\\n' | terok vault passphrase change --passphrase-stdin",
            0,
            "backups",
        ),
        (passphrase!("unlock"), 1, "wrong passphrase"),
        (
            "echo battery staple | terok vault passphrase change --passphrase-stdin",
            1,
            "the old passphrase, then the new one",
        ),
        ("terok vault remove mistral --yes", 0, "removed"),
        ("terok vault restore b.db", 1, "give it with --passphrase-stdin"),
        (passphrase!("restore b.db"), 1, "give --yes"),
        ("echo battery staple | terok vault restore b.db --yes --passphrase-stdin", 1, "wrong passphrase"),
        (passphrase!("restore b.db --yes"), 0, "vault.db.before-restore"),
        ("terok vault show mistral", 0, "key"),
        ("rm -rf ~/.local/share/terok/vault /var/lib/terok.vault", 0, ""),
        (passphrase!("restore b.db --yes"), 0, "restored\n"),
        ("terok vault status", 0, "records      1"),
    ]);
}

#[test]
fn a_damaged_record_is_named_and_can_be_removed_and_added_again() {
    let tear = "sed -i 's/keymistral/kezmistral/' ~/.local/share/terok/vault/vault.db /var/lib/terok.vault/vault.db; true";
    walk(&[
        (passphrase!("init"), 0, "made a vault"),
        (passphrase!("unlock"), 0, "unlocked"),
        ("terok vault add mistral --env KEY", 0, "added"),
        ("terok vault add github --env KEY", 0, "added"),
        (tear, 0, ""),
        ("terok vault list", 0, "terok: credential mistral=default is damaged"),
        ("terok vault list", 0, "github           default"),
        ("terok vault status", 0, "damaged      credential mistral=default"),
        ("terok vault show mistral", 1, "remove it and add it again"),
        ("terok vault add mistral --env KEY", 1, "remove it and add it again"),
        ("terok vault export", 1, "not all was exported: credential mistral=default is damaged"),
        ("terok vault export --reveal", 1, "\"key\": \"S3CRET"),
        ("terok vault remove mistral", 1, "give --yes"),
        ("terok vault remove mistral --yes", 0, "removed the damaged credential mistral=default"),
        ("terok vault add mistral --env KEY", 0, "added"),
        ("terok vault export", 0, "mistral"),
    ]);
}

#[test]
fn a_container_that_starts_without_what_it_was_granted_says_so() {
    let hooks = "mkdir -p hooks; for n in terok-hook terok-supervisor podman; do printf '#!/bin/sh\\necho podman was started' > $n; chmod 755 $n; done
        for s in createRuntime:create precreate:precreate poststop:stop; do
            printf '{\"version\":\"1.0.0\",\"hook\":{\"path\":\"%s/terok-hook\",\"args\":[\"terok-hook\",\"%s\"]},\"when\":{\"annotations\":{\"^terok\\\\\\\\.\":\".*\"}},\"stages\":[\"%s\"]}' $PWD ${s#*:} ${s%:*} > hooks/${s#*:}.json
        done
        printf '[engine]\\nhooks_dir = [\"%s/hooks\"]\\n' $PWD > conf";
    walk(&[
        (hooks, 0, ""),
        (
            "terok run --vault mistral i",
            0,
            "terok: it starts without its credentials: there is no vault yet: terok vault init",
        ),
        (passphrase!("init"), 0, "made a vault"),
        ("terok run --vault mistral i", 0, "terok: it starts without its credentials: the vault is locked"),
        (passphrase!("unlock"), 0, "unlocked"),
        (
            "terok run --vault mistral i",
            0,
            "no credential mistral=default in the vault: terok vault add mistral\npodman was started",
        ),
        (
            "terok run --vault mistral=work i",
            0,
            "no credential mistral=work in the vault: terok vault add mistral work",
        ),
        ("terok run --ssh work@github.com i", 0, "no SSH key work in the vault: terok ssh new work"),
        ("terok vault add mistral --env KEY", 0, "added"),
        ("[ \"$(terok run --vault mistral i 2>&1)\" = 'podman was started' ]", 0, ""),
        (
            "terok run --credential mistral=env:KEY i; ls /run/terok/.ephemeral /run/user/*/terok/.ephemeral 2>/dev/null | grep -c -E '^[0-9a-f]{32}$'",
            0,
            "1",
        ),
        ("terok run --credential mistral=env:NOPE i", 1, "there is no variable NOPE"),
        ("terok run --credential mistral=$KEY i", 1, "write PROVIDER=env:VARIABLE"),
        ("terok run --credential mistral=env:KEY --vault mistral i", 1, "a provider has one credential"),
        ("terok run --vault mistrl i", 1, "did you mean \"mistral\""),
    ]);
}

#[test]
fn a_session_ends_by_itself_and_is_not_kept_on_a_disk_unnoticed() {
    walk(&[
        (passphrase!("init"), 0, "made a vault"),
        (passphrase!("unlock --for 1s"), 0, "unlocked for 1s"),
        ("sleep 1.1; terok vault status", 0, "the vault's session has ended; run `terok vault unlock`"),
        ("[ -z \"$(find /run -name key.json)\" ]; terok vault status", 0, "the vault is locked"),
        (passphrase!("unlock --for forever"), 0, "until terok vault lock, logout or reboot"),
        ("terok vault status --json", 0, "\"unlocked\":true"),
        ("rm -r /run/terok /run/user/*/terok; terok vault status", 0, "the vault is locked"),
        ("mkdir -p disk/user/$OUTSIDE; chmod 700 disk/user/$OUTSIDE; mount --bind disk /run", 0, ""),
        // A machine whose temporary files are in memory has no disk to show.
        (
            "[ $(stat -f -c %T .) != tmpfs ] || echo 'is not in memory (tmpfs)'; echo 'correct horse' | terok vault unlock --passphrase-stdin",
            0,
            "is not in memory (tmpfs)",
        ),
    ]);
}

#[test]
fn a_passphrase_command_is_named_where_it_is_wrong() {
    let says = |words: &str| {
        format!(
            "mkdir -p .config/terok; chmod -R go-w .config; printf '[vault]\\npassphrase_command = {words}\\n' > .config/terok/config.toml"
        )
    };
    walk(&[
        (passphrase!("init"), 0, "made a vault"),
        (&says("[\"echo\", \"S3CRET\"]"), 0, ""),
        (
            "terok vault unlock",
            1,
            "passphrase command echo: wrong passphrase; type the right one with --prompt",
        ),
        (&says("[\"nosuch\"]"), 0, ""),
        ("terok vault unlock", 1, "terok: the passphrase command `nosuch` does not start"),
        (&says("[\"echo\", \"correct horse\"]"), 0, ""),
        ("terok vault unlock", 0, "unlocked"),
        ("terok vault status", 0, "passphrase, passphrase command echo"),
        ("chmod g+w .config/terok/config.toml; terok vault unlock", 1, "chmod go-w"),
    ]);
}
