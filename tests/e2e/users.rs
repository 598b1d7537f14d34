//! Containers with users of their own (`--userns`, `--uidmap`): every promise holds, whichever of them the program is, through Podman's
//! hook files and through the shim.

use crate::shim::{hook_files, is_protected, put_shim, take_shim, through};
use crate::vault_clients::key;
use terok_tests::{Container, Mode, Net, Recipe, Service, both_modes_alone, install, site};

/// What Podman has for it.
fn options(mode: Mode) -> &'static [&'static str] {
    match mode {
        Mode::Rootless => {
            &["--userns=keep-id", "--userns=keep-id:uid=1000,gid=1000", "--userns=auto", "--userns=nomap"]
        }
        Mode::Rootful => &["--userns=auto", "--uidmap=0:100000:65536"],
    }
}

#[track_caller]
fn users(container: &Container) -> String {
    container.exec(&["cat", "/proc/self/uid_map"]).succeeded()
}

both_modes_alone! {
    fn a_container_with_users_of_its_own_is_protected_and_has_what_it_was_granted(mode: Mode) {
        let shim = put_shim();
        let (service, (key, _)) = (Service::new(mode), key(mode, "ed25519"));
        let others = users(&Recipe::bare(mode).idle());
        let cards = Net::cards().into_iter().filter(|net| net.mode() == mode);
        for (n, net) in [Net::sealed(mode)].into_iter().chain(cards).enumerate() {
            for (m, option) in options(mode).iter().enumerate() {
                let site = site();
                let recipe = Recipe::on(net, &format!("{} github.com:22", site.name))
                    .image("localhost/wl")
                    .option(option)
                    .option("--volume=/run/inet/git_hosts:/etc/ssh/ssh_known_hosts:ro")
                    .annotate("ssh", &format!("{key}@github.com"));
                let recipe = service.granted(recipe);
                // Each network and each option in both ways.
                let by_hooks = (n + m) % 2 == 0;
                hook_files(by_hooks);
                let container = if by_hooks { recipe } else { through(&shim, recipe) }.idle().settled();
                assert_ne!(users(&container), others, "{net:?} {option}");
                for start in 0..2 {
                    if start == 1 {
                        container.podman(&["stop", "--time=0"]).succeeded();
                        container.is_left_alone();
                        container.podman(&["start"]).succeeded();
                        assert_eq!(container.try_step("settle")["ok"], true);
                    }
                    is_protected(&container, &site.name);
                    let path = format!("/v1/users/{n}/{m}/{start}");
                    let asked = format!("\"$LAB_BASE_URL\"{path} -H \"Authorization: Bearer $LAB_TOKEN\"");
                    assert_eq!(container.curl(&asked).status, 200, "{net:?} {option}");
                    service.got_the_real_key(&path);
                    let login = "ssh -o BatchMode=yes git@github.com \"git-upload-pack 'lab/repo.git'\" </dev/null | head -c 1";
                    assert!(!container.sh(login).succeeded().is_empty(), "{net:?} {option}: no login");
                }
            }
        }
        hook_files(true);
        take_shim();
        install();
    }
}
