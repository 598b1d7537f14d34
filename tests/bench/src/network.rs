//! Bytes a second, connections a second, and the time a name takes; the same client in every container.

use crate::report::{Budget, Report};
use crate::sample::{Bounds, interleaved};
use crate::subject::{Network, PROBE, Subject};
use anyhow::{Context, bail};
use serde_json::Value;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use terok_tests::{Container, Ended, Mode};

/// The fast server of the lab; 8081 is HTTP, 8444 HTTPS.
const SERVER: &str = "big.example.com";

/// Where a client runs.
pub(crate) enum Client {
    Host,
    Inside(Subject, Container),
}

impl Client {
    /// The host, and a rootless container on each network that leads anywhere.
    fn all() -> anyhow::Result<Vec<Client>> {
        let mut clients = vec![Client::Host];
        for mut subject in Subject::all(Mode::Rootless)? {
            subject.image = "localhost/demo"; // it has curl
            if subject.network != Network::None {
                let container = subject.idle()?;
                clients.push(Client::Inside(subject, container));
            }
        }
        Ok(clients)
    }

    /// The host has none.
    fn network(&self) -> Option<Network> {
        match self {
            Client::Host => None,
            Client::Inside(subject, _) => Some(subject.network),
        }
    }

    fn label(&self) -> String {
        match self {
            Client::Host => "the host itself".to_owned(),
            Client::Inside(subject, _) => subject.label(),
        }
    }

    fn run(&self, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let ended = match self {
            Client::Host => {
                let program = if program == PROBE { "/run/lab/bin/terok-probe" } else { program };
                Ended::of(Command::new(program).args(arguments).stdin(Stdio::null()))
            }
            Client::Inside(_, container) => {
                container.mode.podman(&[&["exec", &container.name, program], arguments].concat())
            }
        };
        if ended.code != 0 {
            bail!("{program} ended with {}: {}", ended.code, ended.stderr.trim());
        }
        Ok(ended.stdout)
    }

    /// What a step of the probe prints.
    pub(crate) fn step(&self, step: &str) -> anyhow::Result<String> {
        self.run(PROBE, &[step])
    }

    /// One number of the line that a step of the probe prints.
    pub(crate) fn probe(&self, step: &str, field: &str) -> anyhow::Result<f64> {
        let text = self.run(PROBE, &[step])?;
        let line: Value = serde_json::from_str(&text)?;
        if line["ok"] != true {
            bail!("{line}");
        }
        line[field].as_f64().with_context(|| format!("no {field} in {line}"))
    }
}

pub(crate) fn measure(report: &mut Report) -> anyhow::Result<()> {
    let clients = Client::all()?;
    let fetch = |client: &Client| {
        let rate = client.probe(&format!("bulk {SERVER} 8081 /big.bin"), "bytes_per_second")?;
        Ok([rate / 1e9])
    };
    let plain = [(None, 0.7), (Some(Network::Slirp), 2.0)];
    side_by_side(report, "1 GiB over HTTP", "GB/s", &clients, bounds(7, 30), &plain, fetch);

    let encrypted = |client: &Client| {
        let url = format!("https://{SERVER}:8444/big.bin");
        // The lab's own authority is not in the image; the bytes are what matters here.
        let arguments = [
            "--insecure",
            "--silent",
            "--fail",
            "--output",
            "/dev/null",
            "--write-out",
            "%{speed_download}",
            &url,
        ];
        let speed: f64 = client.run("curl", &arguments)?.trim().parse()?;
        Ok([speed / 1e9])
    };
    side_by_side(report, "1 GiB over HTTPS", "GB/s", &clients, bounds(3, 20), &[], encrypted);

    let connect =
        |client: &Client| Ok([client.probe(&format!("rate 2 16 {SERVER} 8081 /small"), "per_second")?]);
    let ahead = [Network::Slirp, Network::Pasta, Network::Bridge].map(|other| (Some(other), 1.0));
    side_by_side(report, "connections (16 at once)", "/s", &clients, bounds(4, 30), &ahead, connect);
    let one = |client: &Client| Ok([client.probe(&format!("rate 1 1 {SERVER} 8081 /small"), "per_second")?]);
    side_by_side(report, "connections (one by one)", "/s", &clients, bounds(3, 20), &[], one);
    Ok(())
}

/// So many rounds in so many seconds at most.
pub(crate) fn bounds(rounds: usize, seconds: u64) -> Bounds {
    Bounds { rounds, limit: Duration::from_secs(seconds) }
}

/// The least ratio to the client on this network; to the host itself where there is none.
type Against = (Option<Network>, f64);

fn side_by_side(
    report: &mut Report,
    what: &str,
    unit: &'static str,
    clients: &[Client],
    bounds: Bounds,
    budgets: &[Against],
    measure: impl FnMut(&Client) -> anyhow::Result<[f64; 1]>,
) {
    let outcomes = interleaved(clients, bounds, measure);
    let mut sealed = None;
    for (client, outcome) in clients.iter().zip(&outcomes) {
        match outcome {
            Err(error) => report.absent(format!("{what}, {}", client.label()), &format!("{error:#}")),
            Ok([samples]) if client.network() == Some(Network::Sealed) => sealed = Some((client, samples)),
            Ok([samples]) => report.value(format!("{what}, {}", client.label()), unit, samples),
        }
    }
    let Some((client, samples)) = sealed else { return };
    for (other, outcome) in clients.iter().zip(&outcomes) {
        let (Ok([baseline]), false) = (outcome, other.network() == Some(Network::Sealed)) else { continue };
        let budget = budgets.iter().find(|(network, _)| *network == other.network());
        let budget = budget.map(|(_, least)| Budget::RatioAtLeast(*least));
        let (what, other) = (format!("{what}, {}", client.label()), other.label());
        report.compared(what, unit, samples, (&other, baseline), budget);
    }
}

/// A name's answer inside one container: terok's, and dnsmasq's on the same loopback.
pub(crate) fn dns(report: &mut Report) -> anyhow::Result<()> {
    const PORT: &str = "5355";
    let sealed = Subject::new(Mode::Rootless, Network::Sealed);
    let container = sealed.idle()?;
    let client = Client::Inside(sealed, container);
    let Client::Inside(_, container) = &client else { bail!("no container") };
    let _dnsmasq = Dnsmasq::start(container, PORT)?;
    until_it_answers(&client, PORT)?;
    let servers = [("terok", "53"), ("dnsmasq", PORT)];
    let bounds = Bounds { rounds: 7, limit: Duration::from_secs(20) };
    let outcomes = interleaved(&servers, bounds, |(_, port)| {
        let text = client.run(PROBE, &[&format!("asks 2000 127.0.0.1 {port} {SERVER}")])?;
        let line: Value = serde_json::from_str(&text)?;
        let field = |name: &str| line[name].as_f64().with_context(|| line.to_string());
        Ok([field("p50")?, field("p99")?])
    });
    let [Ok(terok), Ok(dnsmasq)] = outcomes.as_slice() else {
        for error in outcomes.into_iter().filter_map(Result::err) {
            report.absent("DNS answer", &format!("{error:#}"));
        }
        return Ok(());
    };
    let budgets = [Some(Budget::AtMost(0.1)), None];
    for (n, (quantile, budget)) in ["p50", "p99"].iter().zip(budgets).enumerate() {
        let what = format!("DNS answer, {quantile} of 2000");
        report.compared(what, "ms", &terok[n], ("dnsmasq", &dnsmasq[n]), budget);
    }
    Ok(())
}

fn until_it_answers(client: &Client, port: &str) -> anyhow::Result<()> {
    let started = Instant::now();
    loop {
        match client.probe(&format!("asks 1 127.0.0.1 {port} {SERVER}"), "p50") {
            Ok(_) => return Ok(()),
            Err(error) if started.elapsed() > Duration::from_secs(5) => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// dnsmasq in a container's network namespace; ended when dropped.
struct Dnsmasq(Child);

impl Dnsmasq {
    fn start(container: &Container, port: &str) -> anyhow::Result<Self> {
        let namespace = format!("--net=/proc/{}/ns/net", container.pid());
        let mut command = Command::new("nsenter");
        command.args([&namespace, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file="]);
        command.args([
            "--user=root",
            "--no-resolv",
            "--no-hosts",
            "--listen-address=127.0.0.1",
            "--bind-interfaces",
        ]);
        command.arg(format!("--port={port}")).arg(format!("--address=/{SERVER}/198.51.100.40"));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.spawn().map(Dnsmasq).context("starting dnsmasq")
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
