use super::*;
use crate::amend;
use crate::annotation;
use crate::profile::Catalog;
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn policy(pairs: &[(&str, &str)]) -> Policy {
    let annotations: BTreeMap<String, String> =
        pairs.iter().map(|&(key, value)| (key.into(), value.into())).collect();
    annotation::parse(&annotations, &Catalog::bundled()).unwrap()
}

fn granted() -> Provision {
    let policy = policy(&[(annotation::VAULT, "anthropic github"), (annotation::SSH, "work")]);
    provision(
        &policy,
        &Issued { tokens: vec!["sk-one".into(), "ghp_two".into()] },
        "/run/user/1000/terok/.birth/x/inside",
    )
}

fn provided(config: Value) -> Value {
    amend::provide(config, &granted()).unwrap()
}

fn value<'a>(config: &'a Value, variable: &str) -> Option<&'a str> {
    let lines = config["process"]["env"].as_array().unwrap().iter().map(|line| line.as_str().unwrap());
    let found: Vec<&str> = lines.filter_map(|line| line.strip_prefix(variable)?.strip_prefix('=')).collect();
    assert!(found.len() <= 1, "{variable} {found:?}");
    found.first().copied()
}

#[test]
fn nothing_is_given_where_nothing_is_granted() {
    let empty = provision(&policy(&[]), &Issued::default(), "/x");
    assert_eq!(empty, Provision::default());
    let config = json!({ "process": { "env": ["A=1"] }, "mounts": [] });
    assert_eq!(amend::provide(config.clone(), &empty).unwrap(), config);
    assert!(variables(&policy(&[])).is_empty());
}

#[test]
fn a_container_gets_its_tokens_base_urls_certificates_and_the_agent() {
    let config = provided(
        json!({ "process": { "env": ["PATH=/bin", "ANTHROPIC_API_KEY=own", "ANTHROPIC_API_KEY=twice"] } }),
    );
    for (variable, wanted) in [
        ("PATH", "/bin"),
        ("ANTHROPIC_API_KEY", "sk-one"),
        ("ANTHROPIC_BASE_URL", "http://vault.terok.internal/anthropic"),
        ("GH_TOKEN", "ghp_two"),
        ("GITHUB_TOKEN", "ghp_two"),
        ("SSH_AUTH_SOCK", "/run/terok/ssh-agent.sock"),
        (
            "GIT_SSH_COMMAND",
            "ssh -o GlobalKnownHostsFile=\"/run/terok/known_hosts /etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2\"",
        ),
        ("SSL_CERT_FILE", "/run/terok/ca-bundle.crt"),
        ("NODE_EXTRA_CA_CERTS", "/run/terok/ca.crt"),
        ("TEROK_ENV", "/run/terok/env"),
        ("GIT_CONFIG_COUNT", "1"),
        ("GIT_CONFIG_KEY_0", "http.https://github.com/.extraHeader"),
        // x-access-token:ghp_two
        ("GIT_CONFIG_VALUE_0", "Authorization: Basic eC1hY2Nlc3MtdG9rZW46Z2hwX3R3bw=="),
    ] {
        assert_eq!(value(&config, variable), Some(wanted), "{variable}");
    }
    assert_eq!(
        config["mounts"],
        json!([{
            "destination": "/run/terok",
            "type": "bind",
            "source": "/run/user/1000/terok/.birth/x/inside",
            "options": ["rbind", "rprivate", "ro", "nosuid", "nodev", "noexec"]
        }])
    );
}

#[test]
fn what_is_given_twice_is_there_once() {
    let before = json!({
        "process": { "env": ["GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=user.name", "GIT_CONFIG_VALUE_0=x", "SSL_CERT_FILE=/own.pem"] },
        "mounts": [{ "destination": "/run", "type": "tmpfs" }]
    });
    let once = provided(before);
    assert_eq!(value(&once, "GIT_CONFIG_COUNT"), Some("2"));
    assert_eq!(value(&once, "GIT_CONFIG_KEY_0"), Some("user.name"));
    assert_eq!(value(&once, "GIT_CONFIG_KEY_1"), Some("http.https://github.com/.extraHeader"));
    assert_eq!(value(&once, "SSL_CERT_FILE"), Some("/own.pem"), "the container's own certificates stay");
    assert_eq!(provided(once.clone()), once);
}

/// `GIT_SSH` would be silently overridden by a default of the other.
#[test]
fn a_container_that_says_how_git_logs_in_keeps_it() {
    for own in ["GIT_SSH_COMMAND=ssh -i /key", "GIT_SSH=/bin/login", "GIT_SSH_COMMAND="] {
        let config = provided(json!({ "process": { "env": [own] } }));
        let lines = config["process"]["env"].as_array().unwrap().iter().map(|line| line.as_str().unwrap());
        let git: Vec<&str> = lines.filter(|line| line.starts_with("GIT_SSH")).collect();
        assert_eq!(git, [own]);
    }
    let keyless = provision(
        &policy(&[(annotation::VAULT, "anthropic")]),
        &Issued { tokens: vec!["sk-one".into()] },
        "/x",
    );
    assert!(keyless.defaults.iter().all(|(variable, _)| variable != GIT_SSH_VARIABLE));
}

/// git hands the variable to a shell, and `ssh` splits the list itself.
#[test]
fn a_shell_and_ssh_read_the_list_of_files_as_it_is_meant() {
    let config = provided(json!({}));
    let command = value(&config, GIT_SSH_VARIABLE).unwrap();
    let script = format!("ssh() {{ printf '%s|' \"$@\"; }}; {command} git@host");
    let output = std::process::Command::new("/bin/sh").args(["-c", &script]).output().unwrap();
    let wanted = "-o|GlobalKnownHostsFile=/run/terok/known_hosts /etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2|git@host|";
    assert_eq!(String::from_utf8_lossy(&output.stdout), wanted);
}

#[test]
fn what_the_user_mounted_is_never_replaced() {
    for destination in [
        "/run/terok",
        "/run/terok/",
        "//run/./terok",
        "/run/terok/env",
        "/var/run/terok/x",
        "/x/../run/terok",
    ] {
        let config = json!({ "mounts": [{ "destination": "/proc" }, { "destination": destination }] });
        let error = amend::provide(config, &granted()).unwrap_err();
        assert_eq!(error.place, "/mounts/1", "{destination}");
        assert!(error.reason.contains("mount it elsewhere"), "{error}");
    }
    for destination in ["/run", "/run/terokx", "/terok", "/"] {
        provided(json!({ "mounts": [{ "destination": destination }] }));
    }
}

/// A bundle that runs again under another id, without an engine that writes its configuration anew.
#[test]
fn the_folder_of_an_earlier_container_of_the_bundle_is_replaced() {
    let folder = |id: &str| {
        let policy = policy(&[(annotation::VAULT, "anthropic")]);
        let issued = Issued { tokens: vec![format!("sk-{id}")] };
        provision(&policy, &issued, &format!("/run/terok/.birth/{id}/inside"))
    };
    let [earlier, own] = ["earlier", "own"].map(|id| amend::provide(json!({}), &folder(id)).unwrap());
    assert_eq!(amend::provide(earlier.clone(), &folder("own")).unwrap(), own);
    for (key, other) in [
        ("source", json!("/run/terok/.birth/../inside")),
        ("source", json!("/run/user/1/terok/.birth/earlier/inside")),
        ("source", json!("/srv/inside")),
        ("options", json!(["rbind", "rw"])),
        ("type", json!("tmpfs")),
    ] {
        let mut config = earlier.clone();
        config["mounts"][0][key] = other;
        let error = amend::provide(config, &folder("own")).unwrap_err();
        assert!(error.reason.contains("mount it elsewhere"), "{error}");
    }
}

#[test]
fn a_configuration_that_git_would_not_take_is_refused() {
    for count in ["x", "-1", "99999999"] {
        let config = json!({ "process": { "env": [format!("GIT_CONFIG_COUNT={count}")] } });
        let error = amend::provide(config, &granted()).unwrap_err().to_string();
        assert!(error.contains("GIT_CONFIG_COUNT"), "{error}");
    }
    for config in [json!([]), json!({ "mounts": 1 }), json!({ "process": { "env": {} } })] {
        amend::provide(config, &granted()).unwrap_err();
    }
}

#[test]
fn a_restricted_container_gets_its_own_variables_as_well() {
    let names = |restricted| {
        variables(&policy(&[(annotation::VAULT, "anthropic"), (annotation::RESTRICTED, restricted)]))
    };
    let more = "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC".to_owned();
    assert!(names("true").contains(&more) && !names("false").contains(&more));
}

#[test]
fn no_token_is_shown_by_mistake() {
    let tokens = vec!["sk-one".to_owned(), "ghp_two".to_owned()];
    for shown in [format!("{:?}", granted()), format!("{:?}", Issued { tokens })] {
        assert!(
            !shown.contains("sk-one") && !shown.contains("ghp_two") && !shown.contains("Basic"),
            "{shown}"
        );
    }
}

/// What `sh` has after reading the file: as the container's first process, and once more, and in a bare shell.
#[test]
fn a_shell_that_reads_the_file_has_what_the_first_process_has() {
    let mut provision = granted();
    let odd = r#"it's "quoted" $HOME `id` \ x"#;
    provision.env.push(("ODD".into(), odd.into()));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("env");
    std::fs::write(&file, env_file(&provision)).unwrap();
    let read = |before: &[(&str, &str)], times: usize| -> BTreeMap<String, String> {
        let source = format!(". {}; ", file.display()).repeat(times);
        let output = std::process::Command::new("/bin/sh")
            .args(["-euc", &format!("{source} env -0")])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .envs(before.iter().copied())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        text.split('\0')
            .filter_map(|line| line.split_once('='))
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect()
    };
    let bare = read(&[], 1);
    let config = amend::provide(json!({ "process": { "env": ["PATH=/usr/bin:/bin"] } }), &provision).unwrap();
    for line in config["process"]["env"].as_array().unwrap() {
        let (name, wanted) = line.as_str().unwrap().split_once('=').unwrap();
        assert_eq!(bare.get(name).map(String::as_str), Some(wanted), "{name}");
    }
    assert_eq!(bare["ODD"], odd);
    assert_eq!(read(&[], 2), bare);
    let own = [
        ("GIT_CONFIG_COUNT", "1"),
        ("GIT_CONFIG_KEY_0", "a.b"),
        ("GIT_CONFIG_VALUE_0", "c"),
        ("SSL_CERT_FILE", "/own"),
        ("GIT_SSH", "/bin/login"),
    ];
    let beside = read(&own, 2);
    assert_eq!((beside["GIT_CONFIG_COUNT"].as_str(), beside["GIT_CONFIG_KEY_0"].as_str()), ("2", "a.b"));
    assert_eq!(beside["GIT_CONFIG_KEY_1"], "http.https://github.com/.extraHeader");
    assert_eq!(beside["SSL_CERT_FILE"], "/own");
    assert!(!beside.contains_key("GIT_SSH_COMMAND"), "git takes it before GIT_SSH");
}

#[test]
fn base64_is_rfc_4648s() {
    for (plain, coded) in [
        ("", ""),
        ("f", "Zg=="),
        ("fo", "Zm8="),
        ("foo", "Zm9v"),
        ("foob", "Zm9vYg=="),
        ("foobar", "Zm9vYmFy"),
    ] {
        assert_eq!(base64(plain.as_bytes()), coded);
    }
}
