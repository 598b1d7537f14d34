//! `terok run` with credentials: of the vault, or for one container alone; and members of a pod.

use terok_tests::{
    Container, Ended, Mode, Net, Pod, Recipe, Service, Vault, both_modes, both_modes_alone, eventually,
    every_card, secret,
};

/// `terok run` with a variable that only it has.
fn run(mode: Mode, variable: (&str, &str), arguments: &[&str]) -> Ended {
    let mut command = mode.command("env");
    command.arg(format!("{}={}", variable.0, variable.1)).arg("terok").arg("run").args(arguments);
    Ended::of(command.stdin(std::process::Stdio::null()))
}

/// Files of credentials that live with one container.
fn ephemeral(mode: Mode) -> Vec<String> {
    let Ok(folder) = std::fs::read_dir(mode.runtime(terok_policy::layout::EPHEMERAL)) else {
        return Vec::new();
    };
    folder.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

both_modes! {
    /// Nothing of it is in the vault, in the container, or anywhere once the container is gone; no vault is needed.
    fn a_credential_of_one_run_is_used_and_then_gone(mode: Mode) {
        let service = Service::defined(mode, "LAB", "", "");
        let ci = secret("lab-");
        let script = "curl -sS $LAB_BASE_URL/v1/ci -H \"Authorization: Bearer $LAB_TOKEN\"; env; cat /proc/self/environ";
        let said = run(mode, ("CI_KEY", &ci), &["--rm", "--credential", &format!("{}=env:CI_KEY", service.provider), "localhost/wl", "sh", "-ec", script]);
        assert!(said.stdout.contains("\"ok\": true"), "{said:?}");
        assert!(!said.stdout.contains(&ci) && !said.stdout.contains("CI_KEY"), "the credential is inside");
        let request = service.requests("/v1/ci").pop().expect("it arrived");
        assert_eq!(terok_tests::headers(&request, "authorization"), [format!("Bearer {ci}")]);
        let listed = service.vault.says(&["list"], "").succeeded();
        assert!(!listed.contains(&service.provider), "{listed}");
    }

    fn a_credential_of_one_run_is_no_other_containers(mode: Mode) {
        let service = Service::defined(mode, "LAB", "", "");
        let name = format!("ci{}", service.site.number);
        let grant = format!("{}=env:CI_KEY", service.provider);
        let said = run(mode, ("CI_KEY", &secret("lab-")), &["--detach", "--name", &name, "--credential", &grant, "localhost/wl", "sleep", "1000"]);
        let container = Container { engine: terok_tests::Engine::Podman, mode, name, id: said.succeeded().trim().to_owned() };
        assert_eq!(container.curl("$LAB_BASE_URL/v1/x -H \"Authorization: Bearer $LAB_TOKEN\"").status, 200);
        let annotation = container.podman(&["inspect", "--format={{index .Config.Annotations \"terok.vault\"}}"]).succeeded();
        assert!(annotation.contains(&format!("{}=@", service.provider)), "{annotation}");
        let thief = Recipe::sealed(mode, "").image("localhost/wl").annotate("vault", annotation.trim());
        let (_gone, ended) = thief.run(&["true"]);
        let stderr = ended.failed();
        assert!(stderr.contains("--credential"), "{stderr}");
        assert!(ephemeral(mode).iter().any(|file| file.ends_with(&container.id)));
        container.podman(&["rm", "--force", "--time=0"]).succeeded();
        eventually("its file goes with it", || !ephemeral(mode).iter().any(|file| file.ends_with(&container.id)));
    }

    fn run_grants_what_the_vault_has(mode: Mode) {
        let service = Service::new(mode);
        let script = "curl -sS $LAB_BASE_URL/v1/run -H \"Authorization: Bearer $LAB_TOKEN\"";
        let said = mode.terok(&["run", "--rm", "--vault", &service.provider, "localhost/wl", "sh", "-ec", script]);
        assert!(said.stdout.contains("\"ok\": true"), "{said:?}");
        service.got_the_real_key("/v1/run");
        let explained = mode.terok(&["explain", &format!("terok.vault={}", service.provider)]).succeeded();
        assert!(explained.contains(&service.provider) && explained.contains("LAB_TOKEN") && !explained.contains(&service.secret), "{explained}");
    }

    fn an_unknown_provider_or_a_credential_twice_starts_nothing(mode: Mode) {
        let service = Service::new(mode);
        for grants in ["antropic", &format!("{0} {0}", service.provider), &format!("{0} {0}=other", service.provider), "github=@0123"] {
            let (_gone, ended) = Recipe::sealed(mode, "").annotate("vault", grants).run(&["true"]);
            ended.failed();
        }
        let (_gone, ended) = Recipe::sealed(mode, "").annotate("vault", "antropic").run(&["true"]);
        assert!(ended.failed().contains("anthropic"), "the nearest spelling");
    }

    /// The vault's folder and what is unlocked of it are nobody's volume.
    fn the_vault_is_no_volume(mode: Mode) {
        let service = Service::new(mode);
        let store = service.vault.folder().display().to_string();
        let session = mode.runtime(terok_policy::layout::SESSION).display().to_string();
        let home = if mode == Mode::Rootful { "/var/lib" } else { "/run/home/tester" };
        for folder in [store.as_str(), &session, home] {
            let (_gone, ended) = Recipe::sealed(mode, "api.example.com").option(&format!("--volume={folder}:/mnt")).run(&["true"]);
            let said = ended.failed();
            assert!(said.contains("terok's"), "{folder}: {said}");
        }
    }

    fn members_of_a_pod_share_tokens_and_agent_or_are_refused(mode: Mode) {
        let service = Service::new(mode);
        let pod = Pod::new(mode, "none", &[]);
        let member = || Recipe::bare(mode).pod(&pod).image("localhost/wl").annotate("vault", &service.provider);
        let (first, ended) = member().run(&["true"]);
        if ended.code != 0 {
            let said = ended.failed();
            assert!(said.contains("terok.vault") || said.contains("share"), "{said}");
            return;
        }
        drop(first);
        let (a, b) = (member().idle(), member().idle());
        for container in [&a, &b] {
            let answer = container.curl("$LAB_BASE_URL/v1/pod -H \"Authorization: Bearer $LAB_TOKEN\"");
            assert_eq!(answer.status, 200, "{answer:?}");
        }
        service.got_the_real_key("/v1/pod");
    }
}

both_modes_alone! {
    /// Alone, because it looks at what others make.
    fn a_dry_run_makes_nothing_and_shows_no_secret(mode: Mode) {
        let service = Service::defined(mode, "LAB", "", "");
        let (ci, before) = (secret("lab-"), ephemeral(mode));
        let said = run(mode, ("CI_KEY", &ci), &["--dry-run", "--credential", &format!("{}=env:CI_KEY", service.provider), "localhost/wl", "true"]);
        assert!(said.stdout.contains(&service.provider), "{said:?}");
        assert!(!format!("{said:?}").split("CI_KEY=").skip(2).any(|rest| rest.contains(&ci)) && !said.stdout.contains(&ci) && !said.stderr.contains(&ci));
        let made: Vec<String> = ephemeral(mode).into_iter().filter(|file| !before.contains(file)).collect();
        assert_eq!(made, [""; 0]);
        // A variable that is not there, or empty, is no credential.
        let missing = run(mode, ("CI_KEY", ""), &["--rm", "--credential", &format!("{}=env:CI_KEY", service.provider), "localhost/wl", "true"]);
        assert!(missing.failed().contains("CI_KEY"));
    }
}

every_card! {
    /// By the card there is no way round the broker either.
    fn a_card_leads_to_a_brokered_host_through_the_broker_only(net: Net) {
        let service = Service::new(net.mode());
        let container = service.recipe(net).idle().settled();
        let answer = container.curl(&format!("https://{}/v1/card -H \"Authorization: Bearer $LAB_TOKEN\"", service.site.name));
        assert_eq!(answer.status, 200, "{answer:?}");
        service.got_the_real_key("/v1/card");
        let arrived = service.site.seen().len();
        let v6 = format!("[{}]", service.site.v6);
        for address in [service.site.v4.to_string(), v6] {
            let answer = container.curl(&format!("--insecure --max-time 5 https://{address}/v1/direct -H 'Authorization: Bearer sk-attacker-REAL'"));
            assert_eq!(answer.status, 0, "{answer:?}");
        }
        assert_eq!(service.site.seen().len(), arrived);
    }

    fn the_agent_serves_a_container_with_a_card(net: Net) {
        let (key, _) = crate::vault_clients::key(net.mode(), "ed25519");
        let container = crate::vault_clients::with_key(net, &key).idle().settled();
        let out = container.sh("cd /tmp; git clone -q git@github.com:lab/repo.git r; cat r/README").succeeded();
        assert_eq!(out.trim(), "hello from the lab");
        assert_eq!(Vault(net.mode()).says(&["list"], "").code, 0);
    }
}
