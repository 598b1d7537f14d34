//! `terok vault clean`: finds what was left in a shared folder, follows nothing, touches nothing outside, and says what it could not check (V7).

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use terok_tests::{Mode, Net, Service, Vault, both_modes, secret, site};

/// A folder of this user's own.
fn folder(mode: Mode) -> PathBuf {
    let home = if mode == Mode::Rootful { "/root" } else { "/run/home/tester" };
    let path = Path::new(home).join(format!("shared-{}", site().number));
    std::fs::create_dir_all(&path).expect("the home is writable");
    path
}

fn put(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().expect("below a folder")).expect("it is writable");
    std::fs::write(path, text).expect("it is writable");
}

#[track_caller]
fn own(mode: Mode, path: &Path) -> String {
    if mode == Mode::Rootless {
        Mode::Rootful.run("chown", &["-hR", "tester:tester", &path.display().to_string()]).succeeded();
    }
    path.display().to_string()
}

both_modes! {
    fn what_was_left_is_found_removed_and_then_gone(mode: Mode) {
        let (shared, key) = (folder(mode), secret("sk-ant-api03-"));
        let leaks = [
            (".claude/.credentials.json", format!(r#"{{"claudeAiOauth":{{"accessToken":"sk-ant-oat01-{key}","refreshToken":"sk-ant-ort01-{key}"}}}}"#)),
            (".git-credentials", format!("https://me:{}@github.com\n", secret("ghp_"))),
            ("project/.netrc", "machine api.example.com login me password hunter2hunter2\n".to_owned()),
        ];
        for (name, text) in &leaks {
            put(&shared.join(name), text);
        }
        put(&shared.join("project/README"), "nothing to see\n");
        let path = own(mode, &shared);
        let dry = Vault(mode).says(&["clean", "--dry-run", &path], "");
        assert_eq!(dry.code, 1, "{dry:?}");
        for (name, _) in &leaks {
            assert!(dry.stdout.contains(name), "{name}: {dry:?}");
            assert!(shared.join(name).exists(), "a dry run removed {name}");
        }
        assert!(!format!("{dry:?}").contains(&key), "the secret is printed");
        let real = Vault(mode).says(&["clean", "--yes", &path], "");
        assert_eq!(real.code, 0, "{real:?}");
        for (name, _) in &leaks {
            assert!(!shared.join(name).exists(), "{name} is left");
        }
        assert!(shared.join("project/README").exists());
        assert_eq!(Vault(mode).says(&["clean", "--dry-run", &path], "").code, 0);
    }

    fn no_link_leads_out_of_the_named_folder(mode: Mode) {
        let (shared, outside) = (folder(mode), folder(mode));
        put(&outside.join(".git-credentials"), &format!("https://me:{}@github.com\n", secret("ghp_")));
        symlink(&outside, shared.join("elsewhere")).expect("it is writable");
        symlink(outside.join(".git-credentials"), shared.join(".git-credentials")).expect("it is writable");
        own(mode, &outside);
        let path = own(mode, &shared);
        let said = Vault(mode).says(&["clean", "--yes", &path], "");
        assert!(outside.join(".git-credentials").exists(), "{said:?}");
        assert!(!said.stdout.contains("removed "), "{said:?}");
    }

    /// The token of a container that runs, in the files its tools would keep it in.
    fn a_phantom_token_is_no_leak(mode: Mode) {
        let service = Service::new(mode);
        let container = service.recipe(Net::sealed(mode)).annotate("vault", "anthropic").idle();
        let token = container.variable("ANTHROPIC_API_KEY");
        let shared = folder(mode);
        put(&shared.join(".claude/.credentials.json"), &format!(r#"{{"claudeAiOauth":{{"accessToken":"{token}"}}}}"#));
        let path = own(mode, &shared);
        let said = Vault(mode).says(&["clean", "--yes", &path], "");
        assert_eq!(said.code, 0, "{said:?}");
        assert!(shared.join(".claude/.credentials.json").exists());
    }

    /// Never called clean: a file of a known name that cannot be read, or is no file.
    fn what_cannot_be_checked_is_said_with_the_reason(mode: Mode) {
        let shared = folder(mode);
        let path = own(mode, &shared);
        mode.run("mkfifo", &[&format!("{path}/.netrc")]).succeeded();
        let said = Vault(mode).says(&["clean", "--dry-run", &path], "");
        assert_eq!(said.code, 2, "{said:?}");
        assert!(said.stdout.contains("unchecked") && said.stdout.contains(".netrc"), "{said:?}");
    }
}
