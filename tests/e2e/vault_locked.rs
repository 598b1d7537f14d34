//! Locked is a state and no error; what an operator does to the vault takes effect with the next request of containers that run.

use crate::expect::terok;
use terok_policy::layout;
use terok_tests::{
    Answer, Container, Mode, PASSPHRASE, Service, Vault, both_modes, both_modes_alone, eventually, secret,
};

#[track_caller]
fn ask(container: &Container) -> Answer {
    container.curl("$LAB_BASE_URL/v1/x -H \"Authorization: Bearer $LAB_TOKEN\"")
}

#[track_caller]
fn works(container: &Container) {
    let answer = ask(container);
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// Refused with this status and a word of what to do.
#[track_caller]
fn says(container: &Container, status: u16, word: &str) {
    let answer = ask(container);
    assert_eq!(answer.status, status, "{answer:?}");
    assert!(answer.body.contains(word), "not {word}: {answer:?}");
}

/// A request that goes on until it is cut.
struct Live(std::process::Child);

impl Live {
    #[track_caller]
    fn of(service: &Service, container: &Container) -> Self {
        let mut command = container.mode.command("podman");
        command.args([
            "exec",
            &container.name,
            "sh",
            "-c",
            ". /run/terok/env; exec curl -sSN $LAB_BASE_URL/live -H \"Authorization: Bearer $LAB_TOKEN\"",
        ]);
        let live = Live(command.stdout(std::process::Stdio::null()).spawn().expect("podman starts"));
        eventually("it arrives", || !service.requests("/live").is_empty());
        live
    }

    fn has_ended(&mut self) -> bool {
        self.0.try_wait().ok().flatten().is_some()
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

both_modes_alone! {
    fn locked_says_the_command_and_unlocked_works_in_the_same_container(mode: Mode) {
        let (vault, service) = (Vault::open(mode), Service::new(mode));
        let container = service.sealed();
        works(&container);
        let mut live = Live::of(&service, &container);
        let _locked = vault.lock();
        for _ in 0..2 {
            says(&container, 503, "terok vault unlock");
        }
        assert!(!live.has_ended(), "a stream under way goes on");
        let born_locked = service.sealed();
        says(&born_locked, 503, "terok vault unlock");
        vault.unlock();
        works(&container);
        works(&born_locked);
        // A wrong passphrase opens nothing and shuts nothing.
        vault.says(&["unlock", "--passphrase-stdin"], "wrong horse").failed();
        works(&container);
        let refused = container.audited("http", "refuse", "");
        assert!(refused.to_string().contains("terok vault unlock"), "{refused}");
    }

    fn a_session_ends_by_itself(mode: Mode) {
        let (vault, service) = (Vault::open(mode), Service::new(mode));
        let container = service.sealed();
        vault.says(&["unlock", "--for", "12s", "--passphrase-stdin"], PASSPHRASE).succeeded();
        works(&container);
        eventually("the session ends", || ask(&container).status == 503);
        vault.unlock();
        works(&container);
    }

    fn another_passphrase_changes_nothing_for_what_runs(mode: Mode) {
        let (vault, service) = (Vault::open(mode), Service::new(mode));
        let container = service.sealed();
        let other = "another passphrase";
        vault.says(&["passphrase", "change", "--passphrase-stdin"], &format!("{PASSPHRASE}\n{other}\n")).succeeded();
        works(&container);
        let _locked = vault.lock();
        vault.says(&["unlock", "--passphrase-stdin"], PASSPHRASE).failed();
        vault.says(&["unlock", "--passphrase-stdin"], other).succeeded();
        works(&container);
        vault.says(&["passphrase", "change", "--passphrase-stdin"], &format!("{other}\n{PASSPHRASE}\n")).succeeded();
    }

    fn another_database_in_its_place_is_used_at_once(mode: Mode) {
        let (vault, service) = (Vault::open(mode), Service::new(mode));
        let container = service.sealed();
        works(&container);
        let copy = format!("{}/{}.backup", if mode == Mode::Rootful { "/root" } else { "/run/home/tester" }, service.provider);
        vault.says(&["backup", &copy], "").succeeded();
        let newer = secret("lab-");
        vault.add(&service.provider, "default", &newer);
        works(&container);
        vault.says(&["restore", &copy, "--yes", "--passphrase-stdin"], PASSPHRASE).succeeded();
        vault.unlock();
        works(&container);
        let sent: Vec<String> = service.requests("/v1/x").iter().flat_map(|request| terok_tests::headers(request, "authorization")).collect();
        let bearer = |secret: &str| format!("Bearer {secret}");
        assert_eq!(sent, [bearer(&service.secret), bearer(&newer), bearer(&service.secret)]);
        // No vault at all, for a moment.
        let (folder, aside) = (vault.folder(), vault.folder().join("aside"));
        let moved = |from: &std::path::Path, to: &std::path::Path| {
            for name in ["vault.db", "vault.db-wal", "vault.db-shm"] {
                // The last two are there while somebody has the store open.
                let _ = std::fs::rename(from.join(name), to.join(name));
            }
        };
        std::fs::create_dir(&aside).expect("root may");
        moved(&folder, &aside);
        let without = ask(&container);
        moved(&aside, &folder);
        std::fs::remove_dir(&aside).expect("it is empty");
        assert_eq!(without.status, 503, "{without:?}");
        works(&container);
    }
}

both_modes! {
    /// Revoked for one container: 401 at once, what is under way is cut, others go on; and it can be given again.
    fn what_is_revoked_is_refused_and_cut(mode: Mode) {
        let service = Service::new(mode);
        let (container, other) = (service.sealed(), service.sealed());
        works(&container);
        let mut live = Live::of(&service, &container);
        terok_vault(mode, &["revoke", &container.name, &service.provider]);
        eventually("what is under way is cut", || live.has_ended());
        says(&container, 401, &service.provider);
        works(&other);
        // It is remembered.
        container.podman(&["stop", "--time=0"]).succeeded();
        container.is_left_alone();
        container.podman(&["start"]).succeeded();
        assert_eq!(ask(&container).status, 401);
        terok_vault(mode, &["revoke", &container.name, &service.provider, "--undo"]);
        works(&container);
    }

    /// What a worker may write is its own container's, and nothing of it gives back what was taken.
    fn what_is_revoked_stays_so_whatever_the_worker_writes(mode: Mode) {
        let service = Service::new(mode);
        let container = service.sealed();
        works(&container);
        terok_vault(mode, &["revoke", &container.name]);
        says(&container, 401, &service.provider);
        container.podman(&["stop", "--time=0"]).succeeded();
        container.is_left_alone();
        let live = mode.state(&container.id).join(layout::LIVE);
        let told = std::fs::read_to_string(&live).expect("the worker kept what it was told");
        assert!(told.contains(&service.provider), "{told}");
        std::fs::write(&live, "{}").expect("root may");
        container.podman(&["start"]).succeeded();
        says(&container, 401, &service.provider);
        terok_vault(mode, &["revoke", &container.name, &service.provider, "--undo"]);
        works(&container);
        // While it does not run it is noted for its next start.
        container.podman(&["stop", "--time=0"]).succeeded();
        container.is_left_alone();
        terok_vault(mode, &["revoke", &container.name, &service.provider]);
        container.podman(&["start"]).succeeded();
        says(&container, 401, &service.provider);
        terok_vault(mode, &["revoke", &container.name, "--undo"]);
        works(&container);
    }

    /// A full disk, say: the command fails, and what runs has lost its grants all the same.
    fn what_cannot_be_noted_is_told_to_what_runs(mode: Mode) {
        let service = Service::new(mode);
        let container = service.sealed();
        works(&container);
        let revoke = ["revoke", &container.name, &service.provider];
        // The folder of notes is there from then on.
        terok_vault(mode, &revoke);
        terok_vault(mode, &[&revoke[..], &["--undo"]].concat());
        works(&container);
        let mut live = Live::of(&service, &container);
        // In the way of this container's note alone: the vault is everybody's.
        let note = Vault(mode).folder().join(layout::REVOKED).join(&container.id);
        std::fs::create_dir(&note).expect("root may");
        let ended = Vault(mode).says(&revoke, "");
        std::fs::remove_dir(&note).expect("root may");
        assert!(ended.code == 1 && ended.stderr.contains("not noted beside the vault"), "{ended:?}");
        eventually("what is under way is cut", || live.has_ended());
        says(&container, 401, &service.provider);
    }

    fn what_is_removed_is_missing_until_it_is_added_again(mode: Mode) {
        let service = Service::new(mode);
        let container = service.sealed();
        works(&container);
        terok_vault(mode, &["remove", &service.provider, "--yes"]);
        says(&container, 503, &format!("terok vault add {}", service.provider));
        let newer = secret("lab-");
        service.vault.add(&service.provider, "default", &newer);
        works(&container);
        let last = service.requests("/v1/x").pop().unwrap_or_default();
        assert_eq!(terok_tests::headers(&last, "authorization"), [format!("Bearer {newer}")]);
    }

    fn an_operators_word_holds_for_the_broker(mode: Mode) {
        let service = Service::new(mode);
        let container = service.sealed();
        works(&container);
        let mut live = Live::of(&service, &container);
        terok(&container, &["deny", &service.site.name]);
        eventually("what is under way is cut", || live.has_ended());
        assert_eq!(ask(&container).status, 403);
        terok(&container, &["allow", &service.site.name]);
        let other = service.sealed();
        let mut live = Live::of(&service, &other);
        terok(&other, &["block"]);
        eventually("block cuts it", || live.has_ended());
        assert_ne!(ask(&other).status, 200);
        terok(&other, &["up"]);
        works(&other);
    }

    fn a_worker_that_died_has_a_successor_with_the_same_tokens_and_authority(mode: Mode) {
        let service = Service::new(mode);
        let container = service.sealed();
        let authority = container.sh("cat /run/terok/ca.crt").succeeded();
        works(&container);
        container.loses_its_worker();
        works(&container);
        let own = container.curl(&format!("https://{}/v1/x -H \"Authorization: Bearer $LAB_TOKEN\"", service.site.name));
        assert_eq!(own.status, 200, "{own:?}");
        assert_eq!(container.sh("cat /run/terok/ca.crt").succeeded(), authority);
    }

    fn without_its_supervisor_nothing_is_sent(mode: Mode) {
        let service = Service::new(mode);
        let container = service.sealed();
        works(&container);
        container.loses_its_supervisor();
        assert_eq!(ask(&container).status, 0);
        assert_eq!(service.requests("/v1/x").len(), 1);
    }

    fn stop_and_start_make_everything_anew_and_leave_nothing(mode: Mode) {
        let service = Service::new(mode);
        let container = service.sealed();
        let birth = container.mode.runtime(".birth").join(&container.id);
        assert!(birth.join("inside/ca-bundle.crt").exists());
        works(&container);
        container.podman(&["stop", "--time=0"]).succeeded();
        container.is_left_alone();
        assert!(!birth.exists(), "its birth folder is left");
        container.podman(&["start"]).succeeded();
        works(&container);
    }
}

#[track_caller]
fn terok_vault(mode: Mode, arguments: &[&str]) {
    Vault(mode).says(arguments, "").succeeded();
}
