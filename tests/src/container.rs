//! Containers of the tests: started as a user would, gone when the test is.

use crate::{Engine, Mode, Net, eventually};
use serde_json::Value;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// What stands before runc.
const SHIM: &str = "/usr/libexec/terok/terok-shim-runc";

/// Where containers of containerd leave what they print, inside and outside (lab/engines.sh makes it).
const OUTPUT: &str = "/run/lab/output";

/// Where the probe is in a container.
const PROBE: &str = "/run/terok-probe";

/// A program that ended.
#[derive(Debug)]
pub struct Ended {
    /// Exit code, 128 + signal where a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    what: String,
}

impl Ended {
    /// Runs `command` to its end.
    pub fn of(command: &mut Command) -> Self {
        let what = format!("{command:?}");
        let output = command.output().unwrap_or_else(|error| panic!("starting {what}: {error}"));
        Self::with(output, what)
    }

    /// Waits for a program that runs; `what` is for messages.
    pub fn awaited(child: Child, what: &str) -> Self {
        let output = child.wait_with_output().unwrap_or_else(|error| panic!("waiting for {what}: {error}"));
        Self::with(output, what.to_owned())
    }

    fn with(output: std::process::Output, what: String) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let code = output.status.code().or_else(|| output.status.signal().map(|signal| 128 + signal));
        Ended {
            code: code.unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            what,
        }
    }

    /// A program that something else ran.
    pub(crate) fn from_parts(code: i32, stdout: &[u8], stderr: &[u8], what: String) -> Self {
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Ended { code, stdout: text(stdout), stderr: text(stderr), what }
    }

    /// With the standard output that is in `file`.
    fn or_kept(mut self, file: Option<String>) -> Self {
        if let Some(file) = file {
            self.stdout = std::fs::read_to_string(&file).unwrap_or_default();
            let _ = std::fs::remove_file(file);
        }
        self
    }

    /// The standard output of a program that must have ended well.
    #[track_caller]
    pub fn succeeded(self) -> String {
        assert_eq!(self.code, 0, "{}\n{}{}", self.what, self.stdout, self.stderr);
        self.stdout
    }

    /// The standard error of a program that must have failed.
    #[track_caller]
    pub fn failed(self) -> String {
        assert_ne!(self.code, 0, "{} ended well\n{}{}", self.what, self.stdout, self.stderr);
        self.stderr
    }

    /// The probe's lines.
    #[track_caller]
    pub fn lines(self) -> Vec<Value> {
        let text = self.succeeded();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}")))
            .collect()
    }
}

/// A container to be started: whose, on which network, with which annotations and options.
#[derive(Debug, Clone)]
pub struct Recipe {
    engine: Engine,
    mode: Mode,
    image: String,
    networks: Vec<String>,
    options: Vec<String>,
}

impl Recipe {
    /// A container on `net` that may reach `allow` (rules), busybox unless another image is named.
    pub fn on(net: Net, allow: &str) -> Self {
        let recipe = Recipe { networks: vec![net.network().to_owned()], ..Self::bare(net.mode()) };
        if allow.is_empty() {
            recipe.annotate("shield", "up")
        } else {
            recipe.annotate("shield.allow", allow)
        }
    }

    /// A container without a card that may reach `allow`.
    pub fn sealed(mode: Mode, allow: &str) -> Self {
        Self::on(Net::sealed(mode), allow)
    }

    /// Without a card and without any annotation.
    pub fn bare(mode: Mode) -> Self {
        Recipe {
            engine: Engine::Podman,
            mode,
            image: "localhost/bb".to_owned(),
            networks: vec!["none".to_owned()],
            options: Vec::new(),
        }
    }

    /// Docker's, with the runtime `terok`, that may reach `allow`.
    pub fn docker(network: &str, allow: &str) -> Self {
        let recipe = Self::docker_bare(network).option("--runtime=terok");
        if allow.is_empty() {
            recipe.annotate("shield", "up")
        } else {
            recipe.annotate("shield.allow", allow)
        }
    }

    /// Docker's with its own runtime and without a word to terok.
    pub fn docker_bare(network: &str) -> Self {
        Recipe { engine: Engine::Docker, networks: vec![network.to_owned()], ..Self::bare(Mode::Rootful) }
    }

    /// containerd's, without a card, with the shim for its runtime, that may reach `allow`.
    pub fn containerd(allow: &str) -> Self {
        let recipe = Self::containerd_bare().option(&format!("--runc-binary={SHIM}"));
        if allow.is_empty() {
            recipe.annotate("shield", "up")
        } else {
            recipe.annotate("shield.allow", allow)
        }
    }

    /// containerd's with its own runtime and without a word to terok.
    pub fn containerd_bare() -> Self {
        Recipe {
            engine: Engine::Containerd,
            networks: Vec::new(),
            image: "localhost/bb:latest".to_owned(),
            ..Self::bare(Mode::Rootful)
        }
    }

    /// What Podman gives without terok: proof that the same attempts get out.
    pub fn unprotected(net: Net) -> Self {
        Recipe { networks: vec![net.network().to_owned()], ..Self::bare(net.mode()) }
    }

    /// Adds the annotation `terok.KEY`; a label where the engine's command line has no annotations.
    #[must_use]
    pub fn annotate(self, key: &str, value: &str) -> Self {
        if self.engine == Engine::Docker && Engine::docker_major() < 24 {
            return self.label(key, value);
        }
        self.option(&format!("--annotation=terok.{key}={value}"))
    }

    /// Adds the label `terok.KEY`, which is Docker's older word for it.
    #[must_use]
    pub fn label(self, key: &str, value: &str) -> Self {
        self.option(&format!("--label=terok.{key}={value}"))
    }

    /// Adds an option of the engine's `run`.
    #[must_use]
    pub fn option(mut self, option: &str) -> Self {
        self.options.push(option.to_owned());
        self
    }

    /// A Debian with real tools, whose own trust store also holds the lab's authority.
    #[must_use]
    pub fn debian(mut self) -> Self {
        self.image = "localhost/wl".to_owned();
        let bundle = "/run/inet/bundle.pem";
        self = self.option(&format!("--volume={bundle}:/etc/ssl/certs/ca-certificates.crt:ro"));
        for name in
            ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "NODE_EXTRA_CA_CERTS", "GIT_SSL_CAINFO"]
        {
            self = self.option(&format!("--env={name}=/etc/ssl/certs/ca-certificates.crt"));
        }
        self
    }

    /// Another image.
    #[must_use]
    pub fn image(mut self, image: &str) -> Self {
        self.image = image.to_owned();
        self
    }

    /// Another network in place of its own.
    #[must_use]
    pub fn network(mut self, network: &str) -> Self {
        self.networks = vec![network.to_owned()];
        self
    }

    /// A further network.
    #[must_use]
    pub fn also(mut self, network: &str) -> Self {
        self.networks.push(network.to_owned());
        self
    }

    /// As member of a pod, whose network it has.
    #[must_use]
    pub fn pod(mut self, pod: &Pod) -> Self {
        self.networks.clear();
        self.option(&format!("--pod={}", pod.name))
    }

    /// Runs the steps of the probe as the container's first program; the container is removed by the end of the test.
    #[track_caller]
    pub fn probe(&self, steps: &[&str]) -> (Container, Vec<Value>) {
        let (container, mut ended) = self.run(&[&[PROBE], steps].concat());
        if ended.code == 0 && ended.stdout.lines().count() < steps.len() {
            // Podman may detach from a short-lived container before its last words came through; its log has them.
            ended.stdout = container.podman(&["logs"]).stdout;
        }
        (container, ended.lines())
    }

    /// Runs `command` as the container's program to its end.
    pub fn run(&self, command: &[&str]) -> (Container, Ended) {
        let mut container = self.named();
        let file = kept_output(self.engine);
        let words = wrapped(file.as_deref(), command);
        let mut ended =
            Ended::of(self.command(&container.name, &[], &words).stdin(Stdio::null())).or_kept(file);
        container.id = container.full_id();
        ended.stderr.push_str(&container.log());
        (container, ended)
    }

    /// Starts `command` in the background.
    #[track_caller]
    pub fn start(&self, command: &[&str]) -> Container {
        let mut container = self.named();
        let mut ended = Ended::of(self.command(&container.name, &["--detach"], command).stdin(Stdio::null()));
        container.id = container.full_id();
        ended.stderr.push_str(&container.log());
        ended.succeeded();
        container
    }

    /// A container that only waits to be probed.
    #[track_caller]
    pub fn idle(&self) -> Container {
        self.start(&[PROBE, "sleep"])
    }

    fn named(&self) -> Container {
        Container { engine: self.engine, mode: self.mode, name: a_name(), id: String::new() }
    }

    fn command(&self, name: &str, more: &[&str], words: &[&str]) -> Command {
        let mut command = self.mode.command(self.engine.program());
        command.arg("run");
        if self.engine == Engine::Containerd {
            let mount =
                format!("--mount=type=bind,src=/run/lab/bin/terok-probe,dst={PROBE},options=rbind:ro");
            let output = format!("--mount=type=bind,src={OUTPUT},dst={OUTPUT},options=rbind:rw");
            command.args([mount, output]).args(more).args(&self.options).args([&self.image, name]);
        } else {
            command
                .args(["--name", name])
                .args(self.networks.iter().map(|network| format!("--network={network}")))
                .arg(format!("--volume=/run/lab/bin/terok-probe:{PROBE}:ro"))
                .args(more)
                .args(&self.options)
                .arg(&self.image);
        }
        command.args(words);
        command
    }
}

/// A file of its own for what a program of containerd's prints: its client sometimes ends before the last words came through.
fn kept_output(engine: Engine) -> Option<String> {
    (engine == Engine::Containerd).then(|| format!("{OUTPUT}/{}", a_name()))
}

/// `words` with their standard output in `file`.
fn wrapped<'a>(file: Option<&'a str>, words: &[&'a str]) -> Vec<&'a str> {
    match file {
        Some(file) => {
            [&["/bin/sh", "-c", "file=$1; shift; exec \"$@\" >\"$file\"", "sh", file], words].concat()
        }
        None => words.to_vec(),
    }
}

/// A name no other container or pod has, nor one of a lab beside this one, whose control groups are in the same folder.
fn a_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    static LAB: OnceLock<String> = OnceLock::new();
    let lab = LAB.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/uuid").expect("proc is mounted");
        text[..4].to_owned()
    });
    format!("t{lab}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A pod; removed by force, with its members, at the end of the test.
#[derive(Debug)]
pub struct Pod {
    /// Whose it is.
    pub mode: Mode,
    /// Its name.
    pub name: String,
}

impl Pod {
    /// A pod on `network` with more options of `podman pod create`.
    #[track_caller]
    pub fn new(mode: Mode, network: &str, options: &[&str]) -> Self {
        crate::engine::networks(mode);
        let pod = Pod { mode, name: a_name() };
        let network = format!("--network={network}");
        mode.podman(&[&["pod", "create", "--name", &pod.name, &network], options].concat()).succeeded();
        pod
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.mode.podman(&["pod", "rm", "--force", "--time=0", &self.name]);
    }
}

/// A container; removed by force at the end of the test.
#[derive(Debug)]
pub struct Container {
    /// Which engine's it is.
    pub engine: Engine,
    /// Whose it is.
    pub mode: Mode,
    /// Its name.
    pub name: String,
    /// Its full id, empty where it was never made.
    pub id: String,
}

impl Container {
    /// Runs the steps of the probe in the running container.
    #[track_caller]
    pub fn probe(&self, steps: &[&str]) -> Vec<Value> {
        self.exec(&[&[PROBE], steps].concat()).lines()
    }

    /// Runs a further process in the running container to its end.
    pub fn exec(&self, words: &[&str]) -> Ended {
        let file = kept_output(self.engine);
        Ended::of(self.exec_command().args(wrapped(file.as_deref(), words)).stdin(Stdio::null()))
            .or_kept(file)
    }

    /// The engine's command that starts a further process; add its words.
    fn exec_command(&self) -> Command {
        let mut command = self.mode.command(self.engine.program());
        match self.engine {
            Engine::Containerd => command.args(["task", "exec", "--exec-id", &a_name(), &self.name]),
            _ => command.args(["exec", &self.name]),
        };
        command
    }

    /// Waits until the container has an address and a way out on both families, which a card's own services may give it only after
    /// the start; sealed containers and cards without IPv6 have nothing to wait for.
    #[track_caller]
    #[must_use]
    pub fn settled(self) -> Self {
        let lines = self.probe(&["settle"]);
        assert_eq!(lines[0]["ok"], true, "IPv6 never came up: {lines:?}");
        self
    }

    /// An address of one of its cards, of the wanted family.
    #[track_caller]
    pub fn address(&self, v6: bool) -> std::net::IpAddr {
        let net = format!("--net=/proc/{}/ns/net", self.pid());
        let family = if v6 { "-6" } else { "-4" };
        let text = Mode::Rootful
            .run("nsenter", &[&net, "ip", "-o", family, "addr", "show", "scope", "global"])
            .succeeded();
        let cards = text.lines().filter(|line| !line.contains(": lo "));
        let address = cards.filter_map(|line| {
            let (_, rest) = line.split_once("inet6 ").or_else(|| line.split_once("inet "))?;
            rest.split('/').next()?.parse().ok()
        });
        address.into_iter().next().unwrap_or_else(|| panic!("no address: {text}"))
    }

    /// Runs a command in its network namespace as the host's root, past everything that Podman would refuse.
    pub fn nsenter(&self, command: &[&str]) -> Ended {
        let net = format!("--net=/proc/{}/ns/net", self.pid());
        Mode::Rootful.run("nsenter", &[&[net.as_str()], command].concat())
    }

    /// One step of the probe.
    #[track_caller]
    pub fn try_step(&self, step: &str) -> Value {
        self.probe(&[step]).pop().unwrap_or_default()
    }

    /// Starts one step of the probe that goes on by itself.
    pub fn spawn(&self, step: &str) -> Running {
        let mut command = self.exec_command();
        command.args([PROBE, step]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the engine's client starts");
        let out = child.stdout.take().map(std::io::BufReader::new);
        Running { child, out }
    }

    /// A verb of Podman, or of Docker where it is Docker's, on this container, `start`, `stop`, …
    pub fn podman(&self, verb: &[&str]) -> Ended {
        self.mode.run(self.engine.program(), &[verb, &[&self.name]].concat())
    }

    /// Its full id, empty where it was never made.
    fn full_id(&self) -> String {
        match self.engine {
            Engine::Containerd => self.name.clone(),
            _ => self.podman(&["inspect", "--format={{.Id}}"]).stdout.trim().to_owned(),
        }
    }

    /// Pid of its first process.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        if self.engine == Engine::Containerd {
            let all = self.mode.run("ctr", &["task", "list"]).succeeded();
            let mut lines = all.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            let ours = lines.find(|words| words.first() == Some(&self.name.as_str()));
            return ours.and_then(|words| words.get(1)?.parse().ok()).expect("a pid");
        }
        self.podman(&["inspect", "--format={{.State.Pid}}"]).succeeded().trim().parse().expect("a pid")
    }

    /// The ruleset in its network namespace, as nft prints it.
    #[track_caller]
    pub fn ruleset(&self) -> String {
        self.nsenter(&["nft", "list", "ruleset"]).succeeded()
    }

    /// The audit lines so far.
    pub fn audit(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.mode.state(&self.id).join(terok_policy::layout::AUDIT));
        text.unwrap_or_default().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for an audit line of this kind and action whose target begins with `target`, and gives it.
    #[track_caller]
    pub fn audited(&self, kind: &str, action: &str, target: &str) -> Value {
        let mut found = None;
        let wanted = format!("{kind} {action} {target} in the audit log of {}", self.name);
        eventually(&wanted, || {
            found = self.audit().into_iter().find(|line| {
                line["kind"] == kind
                    && line["action"] == action
                    && line["target"].as_str().unwrap_or_default().starts_with(target)
            });
            found.is_some()
        });
        found.unwrap_or_default()
    }

    /// What hook and supervisor logged: crun does not show what its hooks say.
    pub fn log(&self) -> String {
        let path = self.mode.state(&self.id).join(terok_policy::layout::LOG);
        if self.id.is_empty() { String::new() } else { std::fs::read_to_string(path).unwrap_or_default() }
    }

    /// The supervisor's processes of this container: parent, worker, and helpers that come and go.
    pub fn supervisors(&self) -> Vec<u32> {
        self.processes().into_iter().map(|process| process.pid).collect()
    }

    /// The parent and its worker: waits until there is one of each.
    #[track_caller]
    pub fn served_by(&self) -> (u32, u32) {
        let mut pair = None;
        eventually("a parent and its worker serve the container", || {
            let all = self.processes();
            let of = |role| {
                let mut those = all.iter().filter(move |process| process.role == role);
                those.next().filter(|_| those.next().is_none())
            };
            // A child of theirs that is not yet another program looks like its parent.
            if let (Some(parent), Some(worker)) = (of(Role::Parent), of(Role::Worker)) {
                pair = (worker.father == parent.pid).then_some((parent.pid, worker.pid));
            }
            pair.is_some()
        });
        pair.unwrap_or_default()
    }

    /// Kills the worker, and gives its successor, which answers.
    #[track_caller]
    pub fn loses_its_worker(&self) -> u32 {
        let (_, worker) = self.served_by();
        kill("-KILL", worker);
        self.next_worker(worker)
    }

    /// Waits for the successor of this worker, which answers by then.
    #[track_caller]
    pub fn next_worker(&self, dead: u32) -> u32 {
        let mut next = dead;
        eventually("the worker has a successor", || {
            next = self.served_by().1;
            next != dead
        });
        eventually("the worker's successor answers", || self.mode.terok(&["status", &self.name]).code == 0);
        next
    }

    /// Kills whatever serves the container, and waits until nobody does.
    #[track_caller]
    pub fn loses_its_supervisor(&self) {
        eventually("parent and worker are dead", || {
            // The parent first: it would start another worker.
            let mut all = self.processes();
            all.sort_by_key(|process| process.role);
            for process in &all {
                // Which may have died meanwhile.
                let _ = Mode::Rootful.run("kill", &["-KILL", &process.pid.to_string()]);
            }
            all.is_empty()
        });
    }

    fn processes(&self) -> Vec<Process> {
        let log = self.mode.state(&self.id).join(terok_policy::layout::LOG);
        let entries = std::fs::read_dir("/proc").expect("proc is mounted");
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.filter_map(|pid| Process::of(pid, &log)).collect()
    }

    /// Waits until nothing of terok serves this container any more.
    #[track_caller]
    pub fn is_left_alone(&self) {
        eventually("the supervisor ends with its container", || self.supervisors().is_empty());
        eventually("the runtime folder goes with its container", || !self.mode.runtime(&self.id).exists());
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        match self.engine {
            Engine::Podman => drop(self.podman(&["rm", "--force", "--time=0"])),
            Engine::Docker => drop(self.podman(&["rm", "--force"])),
            Engine::Containerd => {
                drop(self.podman(&["task", "rm", "--force"]));
                drop(self.podman(&["containers", "rm"]));
            }
        }
    }
}

/// A step of the probe that goes on in the background.
#[derive(Debug)]
pub struct Running {
    child: Child,
    out: Option<std::io::BufReader<ChildStdout>>,
}

impl Running {
    /// The probe's next line; null at the end, or where none comes for a minute.
    pub fn line(&mut self) -> Value {
        self.line_within(std::time::Duration::from_secs(60))
    }

    /// The probe's next line; null at the end, or where none comes for so long: then this was the last.
    pub fn line_within(&mut self, limit: std::time::Duration) -> Value {
        let Some(mut out) = self.out.take() else { return Value::Null };
        let (tell, told) = std::sync::mpsc::channel();
        // Ends with the probe.
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = std::io::BufRead::read_line(&mut out, &mut line);
            let _ = tell.send((out, line));
        });
        let Ok((out, line)) = told.recv_timeout(limit) else { return Value::Null };
        self.out = Some(out);
        serde_json::from_str(&line).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process of the supervisor does, as its command line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Parent,
    Worker,
    Helper,
}

/// A process of the supervisor.
#[derive(Debug)]
struct Process {
    pid: u32,
    father: u32,
    role: Role,
}

impl Process {
    /// `None` where it is no supervisor's whose log this is, or is none any more.
    fn of(pid: u32, log: &Path) -> Option<Self> {
        let file = |name: &str| format!("/proc/{pid}/{name}");
        let exe = std::fs::read_link(file("exe")).ok()?;
        if !exe.to_string_lossy().contains(terok_policy::layout::SUPERVISOR)
            || std::fs::read_link(file("fd/2")).ok()? != log
        {
            return None;
        }
        let line = std::fs::read(file("cmdline")).ok()?;
        let role = match line.split(|octet| *octet == 0).nth(1) {
            None | Some(b"") => Role::Parent,
            Some(b"worker") => Role::Worker,
            Some(_) => Role::Helper,
        };
        // proc(5), field 4 of stat.
        let stat = std::fs::read_to_string(file("stat")).ok()?;
        let father = stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()?;
        Some(Process { pid, father, role })
    }
}

/// Sends a signal to a process that must be there.
#[track_caller]
pub fn kill(signal: &str, pid: u32) {
    Mode::Rootful.run("kill", &[signal, &pid.to_string()]).succeeded();
}
