//! What the broker costs a request, beside the same request without it, and beside nginx and mitmproxy doing the same: taking a credential out,
//! putting another in, and asking a server over verified TLS. One client for all; every proxy has one thread for its work.

use crate::network::{Client, bounds};
use crate::report::{Budget, Report};
use crate::sample::{Samples, interleaved};
use crate::subject::{Network, Subject};
use anyhow::{Context, bail};
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use terok_tests::{Container, Mode, Vault, secret};

/// The fast server of the lab; 8081 is HTTP, 8444 HTTPS.
const SERVER: &str = "big.example.com";
/// Added to the median request, and requests a second of CPU time.
const ADDED: Budget = Budget::AtMost(0.3);
const PER_CORE: Budget = Budget::RatioAtLeast(1.0);
/// Connections of the load.
const MANY: u32 = 32;

/// A way to the server.
struct Way {
    name: &'static str,
    client: Client,
    /// `HOST PORT PATH HEADER`, words of the probe's step.
    target: String,
    /// The process that works; none where nothing stands between.
    pid: Option<u32>,
}

impl Way {
    fn ask(&self, connections: u32) -> anyhow::Result<[f64; 4]> {
        let before = self.pid.map(cpu_seconds).transpose()?;
        let text = self.client.step(&format!("requests 2 {connections} {}", self.target))?;
        let line: Value = serde_json::from_str(&text)?;
        let field = |name: &str| line[name].as_f64().with_context(|| line.to_string());
        let after = self.pid.map(cpu_seconds).transpose()?;
        let per_core = match (before, after) {
            (Some(before), Some(after)) => field("done")? / (after - before).max(0.01),
            _ => f64::NAN,
        };
        Ok([field("p50")?, field("p99")?, field("per_second")?, per_core])
    }
}

pub(crate) fn measure(report: &mut Report) -> anyhow::Result<()> {
    let (container, token) = brokered()?;
    let (_, worker) = container.served_by();
    let target = format!("vault.terok.internal 80 /bench/small x-api-key:{token}");
    let sealed = Client::Inside(Subject::new(Mode::Rootless, Network::Sealed), container);
    let mut ways = vec![
        Way {
            name: "no proxy, no TLS",
            client: Client::Host,
            target: format!("{SERVER} 8081 /small x-api-key:none"),
            pid: None,
        },
        Way { name: "terok", client: sealed, target, pid: Some(worker) },
    ];
    let others = [("nginx", nginx()), ("mitmproxy", mitmproxy())];
    let mut running = Vec::new();
    for (name, started) in others {
        match started {
            Err(error) => report.absent(format!("a request through {name}"), &format!("{error:#}")),
            Ok(other) => {
                let target = format!("127.0.0.1 {} /small x-api-key:phantom", other.port);
                ways.push(Way { name, client: Client::Host, target, pid: Some(other.worker) });
                running.push(other);
            }
        }
    }
    one_by_one(report, &ways);
    at_once(report, &ways);
    for way in &ways {
        if let Some(pid) = way.pid {
            let memory = Samples::from(vec![peak(pid)?]);
            report.value(format!("most memory under {MANY} connections, {}", way.name), "MiB", &memory);
        }
    }
    Ok(())
}

/// One connection, one request after the other: what each adds to the direct one.
fn one_by_one(report: &mut Report, ways: &[Way]) {
    let outcomes = interleaved(ways, bounds(5, 60), |way| way.ask(1).map(|[p50, p99, ..]| [p50, p99]));
    let Some(Ok(direct)) = outcomes.first() else {
        return report.absent("a request", "the direct one failed");
    };
    for (way, outcome) in ways.iter().zip(&outcomes).skip(1) {
        match outcome {
            Err(error) => report.absent(format!("a request, {}", way.name), &format!("{error:#}")),
            Ok(taken) => {
                for (n, quantile) in ["p50", "p99"].iter().enumerate() {
                    let what = format!("added to a request by {}, {quantile}", way.name);
                    let added = taken[n].less(&direct[n]);
                    match way.name == "terok" && n == 0 {
                        true => report.budgeted(what, "ms", &added, ADDED),
                        false => report.value(what, "ms", &added),
                    }
                }
            }
        }
    }
}

/// Many connections: requests a second, and for each second of the proxy's CPU time.
fn at_once(report: &mut Report, ways: &[Way]) {
    let outcomes = interleaved(ways, bounds(4, 60), |way| way.ask(MANY));
    let mut terok = None;
    for (way, outcome) in ways.iter().zip(&outcomes) {
        let what = format!("requests, {MANY} connections, {}", way.name);
        match outcome {
            Err(error) => report.absent(what, &format!("{error:#}")),
            Ok([_, _, rate, per_core]) => {
                report.value(what, "/s", rate);
                if way.name == "terok" {
                    terok = Some(per_core);
                } else if let (Some(ours), true) = (terok, way.pid.is_some()) {
                    let budget = (way.name == "mitmproxy").then_some(PER_CORE);
                    report.compared(
                        "requests for a second of CPU, terok",
                        "/s",
                        ours,
                        (way.name, per_core),
                        budget,
                    );
                }
            }
        }
    }
}

/// A container that was granted the fast server, and its token.
fn brokered() -> anyhow::Result<(Container, String)> {
    let text = format!(
        "title = \"The fast server\"\nupstream = \"https://{SERVER}:8444\"\n[token]\nvariables = [\"BENCH_TOKEN\"]\nprefix = \"bench-\"\nlength = 60\n\
         carriers = [{{ header = \"x-api-key\" }}]\n[credential.key]\nheader = \"authorization\"\nprefix = \"Bearer \"\n"
    );
    let folder = Path::new(terok_policy::layout::PROVIDERS_SYSTEM);
    std::fs::create_dir_all(folder).context("the lab's /etc")?;
    std::fs::write(folder.join("bench.toml"), text).context("the lab's /etc")?;
    Vault::open(Mode::Rootless).add("bench", "default", &secret("bench-"));
    let subject = Subject::new(Mode::Rootless, Network::Sealed).protected(&["terok.vault=bench"]);
    let container = subject.idle()?;
    let token = container.variable("BENCH_TOKEN");
    Ok((container, token))
}

/// A proxy beside terok's; ended when dropped.
struct Other {
    child: Child,
    port: u16,
    worker: u32,
}

impl Other {
    fn start(mut command: Command, port: u16) -> anyhow::Result<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let mut other = Other { worker: child.id(), child, port };
        let started = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            if let Some(status) = other.child.try_wait()? {
                bail!("it ended at once: {status}");
            }
            if started.elapsed() > Duration::from_secs(20) {
                bail!("it does not answer");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(other)
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn nginx() -> anyhow::Result<Other> {
    const PORT: u16 = 9100;
    let text = format!(
        "daemon off; master_process off; worker_processes 1; error_log /dev/null; pid /run/bench-nginx.pid; events {{ worker_connections 1024; }}
         http {{ access_log off; keepalive_requests 1000000; client_body_temp_path /run; proxy_temp_path /run; fastcgi_temp_path /run; uwsgi_temp_path /run; scgi_temp_path /run;
           upstream up {{ server {SERVER}:8444; keepalive 64; keepalive_requests 1000000; }}
           server {{ listen 127.0.0.1:{PORT}; location / {{ proxy_pass https://up; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host {SERVER};
             proxy_set_header X-Api-Key \"\"; proxy_set_header Authorization \"Bearer real\"; proxy_ssl_verify on; proxy_ssl_trusted_certificate /run/inet/ca.pem;
             proxy_ssl_server_name on; proxy_ssl_name {SERVER}; }} }} }}"
    );
    std::fs::write("/run/bench-nginx.conf", text)?;
    let mut command = Command::new("nginx");
    command.args(["-c", "/run/bench-nginx.conf", "-e", "/dev/null"]);
    Other::start(command, PORT)
}

fn mitmproxy() -> anyhow::Result<Other> {
    const PORT: u16 = 9101;
    let mut command = Command::new("mitmdump");
    command.args([
        "--quiet",
        "--mode",
        &format!("reverse:https://{SERVER}:8444"),
        "--listen-host",
        "127.0.0.1",
    ]);
    command.args([
        "--listen-port",
        &PORT.to_string(),
        "--set",
        "ssl_verify_upstream_trusted_ca=/run/inet/ca.pem",
    ]);
    command.args(["--modify-headers", "/~q/x-api-key/", "--modify-headers", "/~q/authorization/Bearer real"]);
    command.env("HOME", "/run");
    Other::start(command, PORT).context("mitmdump")
}

/// Seconds of CPU that a process has used (proc(5), fields 14 and 15 of stat; hundredths).
fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the proxy is gone")?;
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks: Vec<f64> =
        after_name.split_whitespace().skip(11).take(2).filter_map(|word| word.parse().ok()).collect();
    Ok(ticks.iter().sum::<f64>() / 100.0)
}

/// Most resident memory so far, MiB.
fn peak(pid: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("the proxy is gone")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}
