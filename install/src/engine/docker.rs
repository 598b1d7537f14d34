//! Docker: `runtimes` and `default-runtime` in the daemon's own file, which belongs to the machine's people: what they wrote stays
//! as it is. The daemon reads both keys again at SIGHUP, and keeps what it had of one that is not there any more.

use crate::doctor::Finding;
use crate::engine::{Hidden, Registered, Removal, is_shim, shim_before};
use crate::host::Host;
use crate::json_text::JsonText;
use crate::process::{command_lines, is_called, option};
use crate::setup::{SetupError, Step};
use crate::target::{Scope, Target};
use serde_json::{Value, json};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use terok_policy::layout;

/// The daemon's configuration (dockerd(8)).
const FILE: &str = "/etc/docker/daemon.json";
/// Where the daemon answers.
const SOCKET: &str = "/run/docker.sock";
/// How long `doctor` waits for it, and how much it reads.
const PATIENCE: Duration = Duration::from_secs(5);
const LONGEST: u64 = 1 << 20;
const FIELDS: usize = 64;
pub(super) const RELOAD: &str = "systemctl reload docker";
pub(super) const RESTART: &str = "systemctl restart docker";
/// The runtime that Docker has by itself.
const DOCKERS_OWN: &str = "runc";
const RUNTIMES: &str = "runtimes";
const DEFAULT: &str = "default-runtime";
/// Where our entry stands, and in it the shim.
const ENTRY: [&str; 2] = [RUNTIMES, layout::ENGINE_RUNTIME];
const PATH: [&str; 3] = [RUNTIMES, layout::ENGINE_RUNTIME, "path"];

pub(super) fn registered(target: &Target) -> Result<Registered, SetupError> {
    let Some((_, json)) = read(target)? else { return Ok(Registered::No) };
    Ok(match (json.get(&ENTRY).as_ref().is_some_and(is_ours), is_default(&json)) {
        (false, _) => Registered::No,
        (true, false) => Registered::Named,
        (true, true) => Registered::Default,
    })
}

pub(super) fn register(host: &Host, target: &Target, default: bool) -> Result<Vec<Step>, SetupError> {
    let refused = |path: &Path, reason: String| Err(SetupError::Engine { path: path.to_path_buf(), reason });
    if let Scope::User { .. } = target.scope {
        return refused(
            Path::new(FILE),
            "docker is the machine's: as root, terok setup --engine docker; its rootless mode is not supported"
                .to_owned(),
        );
    }
    if target.destdir == host.root
        && let Some(flag) = flag_in_the_way(host, default)
    {
        return refused(
            &target.at(Path::new(FILE)),
            format!(
                "the running dockerd was started with {flag}, beside which this file does not count: move it into the file first"
            ),
        );
    }
    let shim = Value::from(shim_before(target, DOCKERS_OWN).display().to_string());
    let Some((path, json)) = read(target)? else {
        let text = fresh(&json!({ "path": shim }), default);
        return Ok(vec![Step::Text { to: target.at(Path::new(FILE)), text }]);
    };
    if let Some(other) = json.get(&ENTRY).filter(|there| !is_ours(there)) {
        return refused(
            &path,
            format!("{} is there already and not terok's, {other}: give it another name", ENTRY.join(".")),
        );
    }
    let edited = json.set(&PATH, &shim);
    let edited = match json.get(&[DEFAULT]) {
        _ if edited.is_err() => edited,
        Some(Value::String(other)) if default && other != layout::ENGINE_RUNTIME && other != DOCKERS_OWN => {
            Err(format!(
                "{DEFAULT} is {other:?}, before which terok does not stand: take it out, or leave out --default-runtime"
            ))
        }
        _ if default => json.set(&[DEFAULT], &layout::ENGINE_RUNTIME.into()),
        _ => {
            if is_default(&json) {
                json.remove(&[DEFAULT]);
            }
            Ok(())
        }
    };
    match edited {
        Ok(()) => Ok(vec![Step::Amended { to: path, text: json.text() }]),
        Err(reason) => refused(&path, reason),
    }
}

pub(super) fn unregister(target: &Target) -> Result<Removal, SetupError> {
    let Some((path, json)) = read(target)? else { return Ok(Removal::default()) };
    match json.get(&ENTRY) {
        None => return Ok(Removal::default()),
        Some(entry) if !is_ours(&entry) => {
            let note = format!("{}: {} is not terok's and stays", path.display(), ENTRY.join("."));
            return Ok(Removal { steps: Vec::new(), notes: vec![note] });
        }
        Some(entry) if [true, false].iter().any(|default| json.text() == fresh(&entry, *default)) => {
            return Ok(Removal { steps: vec![Step::Remove(path)], notes: Vec::new() });
        }
        Some(_) => {}
    }
    if is_default(&json) {
        json.remove(&[DEFAULT]);
    }
    json.remove(&ENTRY);
    if json.get(&[RUNTIMES]) == Some(json!({})) {
        json.remove(&[RUNTIMES]);
    }
    let steps = vec![Step::Amended { to: path, text: json.text() }];
    Ok(Removal { steps, notes: Vec::new() })
}

/// An option of the running daemon that reads another file, or that it refuses to find in the file as well (dockerd's "specified
/// both as a flag and in the configuration file").
fn flag_in_the_way(host: &Host, default: bool) -> Option<&'static str> {
    let mut daemons = command_lines(host).into_iter().filter(|words| is_called(words, "dockerd"));
    daemons.find_map(|words| {
        ["--config-file", "--add-runtime", "--default-runtime"].into_iter().find(|flag| {
            option(&words, &[flag]).is_some_and(|value| match *flag {
                "--config-file" => value != FILE,
                "--default-runtime" => default,
                _ => true,
            })
        })
    })
}

/// Whether the running daemon knows what its file says; nothing where it does not run, or not for this person.
pub(super) fn hidden(host: &Host, target: &Target, registered: Registered) -> Option<Hidden> {
    let info = info(&host.at(SOCKET))?;
    let knows = info.get("Runtimes")?.get(layout::ENGINE_RUNTIME).is_some();
    let is_default = has_default(&info);
    let what = format!("docker has not read {FILE} since it was told of terok");
    let reload = |finding: Finding| Hidden { finding, reload_mends: true };
    match registered {
        Registered::No => {
            let (_, json) = read(target).ok()??;
            // A daemon keeps the runtimes it had where the file names none; the name may be somebody else's.
            let forgets = json.get(&[RUNTIMES]).is_some() && json.get(&ENTRY).is_none();
            let what = format!("docker keeps the runtime terok, which {FILE} does not name any more");
            (knows && !is_default && forgets)
                .then(|| reload(Finding::warn("shim", what, format!("run: {RELOAD}"))))
        }
        _ if knows && is_default == (registered == Registered::Default) => None,
        // What starts meanwhile with annotations and no runtime has no protection, and nobody says so.
        Registered::Default if !is_default => Some(reload(Finding::fail(
            "shim",
            format!("{what}: containers that name no runtime start without protection"),
            format!("run: {RELOAD}"),
        ))),
        _ if knows => Some(Hidden {
            finding: Finding::warn(
                "shim",
                format!("docker keeps terok as its default runtime, which {FILE} does not say any more"),
                format!("run: {RESTART}"),
            ),
            reload_mends: false,
        }),
        _ => Some(reload(Finding::warn("shim", what, format!("run: {RELOAD}")))),
    }
}

/// Whether the running daemon's default is terok, whatever its file says by now.
pub(super) fn keeps_default(host: &Host, target: &Target) -> bool {
    let entry = read(target).ok().flatten().and_then(|(_, json)| json.get(&ENTRY));
    entry.is_none_or(|entry| is_ours(&entry)) && info(&host.at(SOCKET)).is_some_and(|info| has_default(&info))
}

fn has_default(info: &Value) -> bool {
    info.get("DefaultRuntime").is_some_and(|name| name == layout::ENGINE_RUNTIME)
}

/// `GET /info` of Docker's API. With HTTP/1.0 the answer is not in pieces and ends with the connection, so that a parser of heads
/// is enough: a client (hyper, and a runtime for it) would be more than the rest of this library together.
fn info(socket: &Path) -> Option<Value> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(b"GET /info HTTP/1.0\r\nHost: docker\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer).ok()?;
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut head = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(body) = head.parse(&answer).ok()? else { return None };
    if head.code != Some(200) {
        return None;
    }
    serde_json::from_slice(&answer[body..]).ok()
}

/// The file that is made where there is none.
fn fresh(entry: &Value, default: bool) -> String {
    let mut file = json!({ RUNTIMES: { layout::ENGINE_RUNTIME: entry } });
    if default {
        file[DEFAULT] = layout::ENGINE_RUNTIME.into();
    }
    format!("{file:#}\n")
}

/// Whether an entry of `runtimes` calls the shim, whatever somebody has added to it (`runtimeArgs`): without the shim it is of no use.
fn is_ours(entry: &Value) -> bool {
    entry.get("path").and_then(Value::as_str).is_some_and(|path| is_shim(Path::new(path)))
}

fn is_default(json: &JsonText) -> bool {
    json.get(&[DEFAULT]).is_some_and(|name| name == layout::ENGINE_RUNTIME)
}

/// The file, followed to where it is, and what is in it; `None` where there is none.
fn read(target: &Target) -> Result<Option<(PathBuf, JsonText)>, SetupError> {
    let path = target.at(Path::new(FILE));
    let failed = |reason: String| SetupError::Engine { path: path.clone(), reason };
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|error| failed(error.to_string()))?,
    };
    let place = path.canonicalize().map_err(|error| failed(error.to_string()))?;
    let json = JsonText::parse(&text)
        .map_err(|reason| failed(format!("{reason}; docker does not start with it: put it right first")))?;
    Ok(Some((place, json)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;
    use crate::engine::{Engine, register_steps};
    use crate::host::{tests_file, tests_host};
    use crate::process::tests_process;
    use crate::setup::apply;
    use std::os::unix::fs::PermissionsExt;

    const TEXT: &str = "{\n  \"log-driver\": \"journald\",\n  \"data-root\": \"/srv/docker\"\n}\n";

    fn set_up(host: &Host, asked: &[Engine], default: Option<bool>) -> Result<Vec<PathBuf>, SetupError> {
        let target = Target::of(host, false, None);
        let all = register_steps(host, &target, asked, default)?;
        Ok(all.iter().flat_map(|(_, steps)| apply(steps).unwrap()).collect())
    }

    fn take_away(host: &Host) -> Vec<String> {
        let removal = Engine::Docker.unregister(&Target::of(host, false, None)).unwrap();
        apply(&removal.steps).unwrap();
        removal.notes
    }

    fn with_file(text: &str) -> (tempfile::TempDir, Host, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let host = tests_host(root.path(), 0);
        let file = tests_file(&host, FILE, text);
        (root, host, file)
    }

    #[test]
    fn a_file_that_is_there_is_the_same_again_afterwards() {
        let (_root, host, file) = with_file(TEXT);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let read = || std::fs::read_to_string(&file).unwrap();
        let docker = [Engine::Docker];
        set_up(&host, &docker, None).unwrap();
        let json: Value = serde_json::from_str(&read()).unwrap();
        assert_eq!(json["runtimes"], json!({ "terok": { "path": "/usr/libexec/terok/terok-shim-runc" } }));
        assert!(read().starts_with(TEXT.trim_end().trim_end_matches('}').trim_end()));
        assert_eq!(set_up(&host, &docker, None).unwrap(), Vec::<PathBuf>::new());
        let named = read();
        assert_eq!(set_up(&host, &docker, Some(true)).unwrap().len(), 1);
        assert!(read().contains("\n  \"default-runtime\": \"terok\"\n}"), "{}", read());
        assert_eq!(set_up(&host, &[], None).unwrap(), Vec::<PathBuf>::new(), "a plain setup keeps it");
        set_up(&host, &docker, Some(false)).unwrap();
        assert_eq!(read(), named);
        set_up(&host, &docker, Some(true)).unwrap();
        assert_eq!(take_away(&host), Vec::<String>::new());
        assert_eq!(read(), TEXT);
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(set_up(&host, &[], None).unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_file_that_terok_made_goes_and_one_that_somebody_wrote_into_stays() {
        let root = tempfile::tempdir().unwrap();
        let host = tests_host(root.path(), 0);
        for default in [None, Some(true)] {
            set_up(&host, &[Engine::Docker], default).unwrap();
            assert!(host.at(FILE).exists());
            take_away(&host);
            assert!(!host.at(FILE).exists());
        }
        set_up(&host, &[Engine::Docker], None).unwrap();
        let text =
            std::fs::read_to_string(host.at(FILE)).unwrap().replacen('{', "{\n    \"debug\": true,", 1);
        std::fs::write(host.at(FILE), &text).unwrap();
        take_away(&host);
        assert_eq!(std::fs::read_to_string(host.at(FILE)).unwrap(), "{\n    \"debug\": true\n}\n");
    }

    #[test]
    fn what_is_somebody_elses_is_neither_overwritten_nor_removed() {
        let other = "{\"runtimes\": {\"terok\": {\"path\": \"/opt/terok\"}}}";
        let (_root, host, file) = with_file(other);
        let error = set_up(&host, &[Engine::Docker], None).unwrap_err().to_string();
        assert!(error.contains("/opt/terok") && error.contains("daemon.json"), "{error}");
        assert!(take_away(&host)[0].contains("not terok's"));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), other);
        let other = "{\n  \"default-runtime\": \"nvidia\"\n}\n";
        let (_root, host, file) = with_file(other);
        assert!(set_up(&host, &[Engine::Docker], Some(true)).unwrap_err().to_string().contains("\"nvidia\""));
        set_up(&host, &[Engine::Docker], None).unwrap();
        take_away(&host);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), other);
        let (_root, host, _) = with_file("{\"runtimes\": []}");
        assert!(set_up(&host, &[Engine::Docker], None).unwrap_err().to_string().contains("not an object"));
    }

    #[test]
    fn what_somebody_added_to_the_entry_stays_with_it_and_goes_with_it() {
        let text = TEXT.replace("\n}", ",\n  \"default-runtime\": \"terok\",\n  \"runtimes\": {\"terok\": {\"path\": \"/old/terok-shim\", \"runtimeArgs\": [\"--debug\"]}}\n}");
        let (_root, host, file) = with_file(&text);
        set_up(&host, &[Engine::Docker], None).unwrap();
        let new = text.replace("/old/terok-shim", "/usr/libexec/terok/terok-shim-runc");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), new);
        // No name is left behind that leads to a program which is gone.
        assert_eq!(take_away(&host), Vec::<String>::new());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), TEXT);
    }

    #[test]
    fn a_broken_file_and_a_users_docker_are_refused() {
        let (root, host, file) = with_file("{\n  \"debug\": true,\n}");
        let error = set_up(&host, &[Engine::Docker], None).unwrap_err().to_string();
        assert!(error.contains("daemon.json") && error.contains("line 3"), "{error}");
        assert_eq!(set_up(&host, &[], None).unwrap(), Vec::<PathBuf>::new(), "who did not ask is not kept");
        std::fs::write(&file, TEXT).unwrap();
        let user = tests_host(root.path(), 1001);
        let error = set_up(&user, &[Engine::Docker], None).unwrap_err().to_string();
        assert!(error.contains("as root") && error.contains("rootless"), "{error}");
        assert_eq!(take_away(&user), Vec::<String>::new());
        set_up(&host, &[Engine::Docker], None).unwrap();
        assert_eq!(
            set_up(&user, &[], None).unwrap(),
            Vec::<PathBuf>::new(),
            "the machine's is not the user's"
        );
        assert_eq!(set_up(&host, &[], Some(true)).unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_daemon_that_would_not_start_with_the_file_again_is_told_of() {
        let root = tempfile::tempdir().unwrap();
        let host = tests_host(root.path(), 0);
        for (line, refused) in [
            ("/usr/bin/dockerd -H fd:// --config-file /etc/docker/daemon.json", false),
            ("/usr/bin/dockerd --config-file=/srv/daemon.json", true),
            ("/usr/bin/dockerd --add-runtime nvidia=/usr/bin/nvidia", true),
            ("/usr/bin/dockerd --default-runtime=runc", false),
            ("/usr/bin/other --add-runtime x", false),
        ] {
            tests_process(&host, 7, line);
            assert_eq!(set_up(&host, &[Engine::Docker], None).is_err(), refused, "{line}");
        }
        tests_process(&host, 7, "dockerd --default-runtime runc");
        let error = set_up(&host, &[Engine::Docker], Some(true)).unwrap_err().to_string();
        assert!(error.contains("--default-runtime, beside which"), "{error}");
    }

    #[test]
    fn a_daemon_that_has_not_read_its_file_is_told_of() {
        let root = tempfile::tempdir().unwrap();
        let host = tests_host(root.path(), 0);
        let target = Target::of(&host, false, None);
        set_up(&host, &[Engine::Docker], Some(true)).unwrap();
        let unread = || {
            let registered = registered(&target).unwrap();
            let found = hidden(&host, &target, registered)?;
            assert_eq!(found.reload_mends, found.finding.remedy.ends_with(RELOAD), "{found:?}");
            Some(found.finding)
        };
        assert_eq!(unread(), None, "none runs");
        std::fs::create_dir_all(host.at("/run")).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(host.at(SOCKET)).unwrap();
        let while_it_says = |runtimes: &str, default: &str, ask: &dyn Fn() -> Option<Finding>| {
            let answer = format!(
                "HTTP/1.0 200 OK\r\nServer: x\r\n\r\n{{\"Runtimes\":{runtimes},\"DefaultRuntime\":{default:?}}}\n"
            );
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let (mut stream, _) = socket.accept().unwrap();
                    let mut question = [0; 64];
                    assert!(stream.read(&mut question).unwrap() > 0);
                    stream.write_all(answer.as_bytes()).unwrap();
                });
                ask()
            })
        };
        let says = |runtimes: &str, default: &str| while_it_says(runtimes, default, &unread);
        let known = |default: &str| {
            let found = std::cell::Cell::new(Registered::No);
            while_it_says("{}", default, &|| {
                found.set(Engine::Docker.known(&host, &target).unwrap());
                None
            });
            found.get()
        };
        assert_eq!(says("{\"terok\":{},\"runc\":{}}", "terok"), None);
        for (runtimes, default) in [("{\"runc\":{}}", "runc"), ("{\"terok\":{}}", "runc")] {
            let found = says(runtimes, default).unwrap();
            assert!(found.level == Level::Fail && found.remedy.contains("reload docker"), "{found:?}");
        }
        set_up(&host, &[Engine::Docker], Some(false)).unwrap();
        assert_eq!(says("{\"terok\":{}}", "runc"), None);
        for (runtimes, default, remedy) in
            [("{\"runc\":{}}", "runc", RELOAD), ("{\"terok\":{}}", "terok", RESTART)]
        {
            let found = says(runtimes, default).unwrap();
            assert!(found.level == Level::Warn && found.remedy.ends_with(remedy), "{found:?}");
        }
        assert_eq!((known("runc"), known("terok")), (Registered::Named, Registered::Default));
        let both = "{\"terok\":{},\"crun\":{}}";
        take_away(&host);
        assert_eq!((known("runc"), known("terok")), (Registered::No, Registered::Default));
        assert_eq!(says(both, "runc"), None, "a file that names no runtimes makes it forget none");
        tests_file(&host, FILE, "{\"runtimes\": {\"crun\": {\"path\": \"/usr/bin/crun\"}}}");
        assert!(says(both, "runc").unwrap().what.contains("keeps the runtime terok"));
        assert_eq!(says(both, "terok"), None, "nor does it forget its default");
        assert_eq!(says("{\"crun\":{}}", "runc"), None);
        tests_file(&host, FILE, "{\"runtimes\": {\"terok\": {\"path\": \"/opt/terok\"}}}");
        assert_eq!(says(both, "runc"), None, "that one is somebody else's");
        assert_eq!(Engine::Docker.known(&host, &target).unwrap(), Registered::No);
    }

    #[test]
    fn an_answer_that_is_none_tells_nothing() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("socket");
        let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let body = "{\"DefaultRuntime\":\"terok\"}";
        for (head, told) in [
            ("HTTP/1.0 200 OK\r\nServer: Docker/26.1.5\r\n\r\n", true),
            ("HTTP/1.1 200 OK\r\n\r\n", true),
            ("HTTP/1.0 503 Service Unavailable\r\n\r\n", false),
            ("HTTP/1.0 200 OK\r\nServer: Docker", false),
            ("", false),
        ] {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let (mut stream, _) = socket.accept().unwrap();
                    assert!(stream.read(&mut [0; 64]).unwrap() > 0);
                    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
                });
                assert_eq!(info(&path).is_some(), told, "{head}");
            });
        }
    }

    #[test]
    fn a_link_to_the_file_stays_a_link() {
        let (root, host, file) = with_file(TEXT);
        let place = root.path().join("managed.json");
        std::fs::rename(&file, &place).unwrap();
        std::os::unix::fs::symlink(&place, &file).unwrap();
        set_up(&host, &[Engine::Docker], None).unwrap();
        assert!(file.is_symlink() && std::fs::read_to_string(&place).unwrap().contains("terok"));
        take_away(&host);
        assert_eq!(std::fs::read_to_string(&place).unwrap(), TEXT);
    }
}
