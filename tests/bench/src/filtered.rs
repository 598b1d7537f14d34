//! What terok costs a container that keeps its card: the same network with and without it, side by side.

use crate::network::{Client, bounds};
use crate::report::{Budget, Report};
use crate::sample::{Bounds, interleaved};
use crate::start::{life, started_with};
use crate::subject::{Network, Subject, user};
use std::time::Duration;
use terok_tests::Mode;

/// The name that the fast server has, by the proxy and by the card.
const PROXIED: &str = "terok.shield.allow=big.example.com:8081";
const DIRECT: &str = "terok.shield.allow=big.example.com:8081 direct";

/// Start and stop on each network that has a card.
pub(crate) fn phases(report: &mut Report) -> anyhow::Result<()> {
    for mode in [Mode::Rootless, Mode::Rootful] {
        for plain in cards(mode)? {
            let pair = [plain.clone(), plain.protected(&[PROXIED])];
            let bounds = Bounds { rounds: 8, limit: Duration::from_secs(30) };
            let outcomes = interleaved(&pair, bounds, life);
            let [Ok(without), Ok(with)] = outcomes.as_slice() else {
                for error in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
                    report.absent(format!("filtered start, {}", plain.label()), &format!("{error:#}"));
                }
                continue;
            };
            for (phase, verb) in [(1, "start"), (2, "stop")] {
                let what = format!("podman {verb} filtered, {}", plain.label());
                report.compared(what, "ms", &with[phase], ("plain", &without[phase]), None);
                let what = format!("added to podman {verb}, {}", plain.label());
                report.budgeted(what, "ms", &with[phase].less(&without[phase]), Budget::AtMost(10.0));
            }
        }
    }
    Ok(())
}

/// Bytes and connections a second by the card (`direct`), through the proxy, and without terok.
pub(crate) fn throughput(report: &mut Report) -> anyhow::Result<()> {
    for plain in cards(Mode::Rootless)?.into_iter().chain(cards(Mode::Rootful)?) {
        let kinds = [plain.clone(), plain.protected(&[DIRECT]), plain.protected(&[PROXIED])];
        let clients = kinds
            .iter()
            .map(|kind| Ok(Client::Inside(kind.clone(), kind.idle()?)))
            .collect::<anyhow::Result<Vec<_>>>();
        let clients = match clients {
            Ok(clients) => clients,
            Err(error) => {
                report.absent(format!("throughput, {}", plain.label()), &format!("{error:#}"));
                continue;
            }
        };
        let bulk = interleaved(&clients, bounds(4, 20), |client| {
            Ok([client.probe("bulk big.example.com 8081 /big.bin", "bytes_per_second")? / 1e9])
        });
        let rate = interleaved(&clients, bounds(3, 20), |client| {
            Ok([client.probe("rate 2 16 big.example.com 8081 /small", "per_second")?])
        });
        for (what, unit, outcomes) in
            [("1 GiB over HTTP", "GB/s", bulk), ("connections (16 at once)", "/s", rate)]
        {
            let Some(Ok([baseline])) = outcomes.first() else {
                report.absent(format!("{what}, {}", plain.label()), "the plain container did not get there");
                continue;
            };
            for (way, outcome) in ["direct", "proxied"].iter().zip(&outcomes[1..]) {
                let what = format!("{what}, {way}, {}", plain.label());
                match outcome {
                    Ok([samples]) => report.compared(what, unit, samples, ("plain", baseline), None),
                    Err(error) => report.absent(what, &format!("{error:#}")),
                }
            }
        }
    }
    Ok(())
}

/// A start with few and with many rules.
pub(crate) fn rules(report: &mut Report) -> anyhow::Result<()> {
    let network = Subject::new(Mode::Rootless, Network::Slirp);
    started_with(report, &network, "filtered")
}

/// A container of `mode` on each network with a card that this machine's Podman has.
fn cards(mode: Mode) -> anyhow::Result<Vec<Subject>> {
    let with_card = |subject: &Subject| !matches!(subject.network, Network::None | Network::Sealed);
    Ok(Subject::all(mode)?.into_iter().filter(with_card).collect())
}

/// What each of 1, 10 and 100 idle containers holds and uses, and what a start beside them takes.
pub(crate) fn crowd(report: &mut Report) -> anyhow::Result<()> {
    let sealed = Subject::new(Mode::Rootless, Network::Sealed);
    let mut containers = Vec::new();
    let mut alone = None;
    for count in [1_usize, 10, 100] {
        while containers.len() < count {
            containers.push(sealed.idle()?);
        }
        crate::footprint::settle(&containers);
        let pids: Vec<u32> = containers.iter().flat_map(terok_tests::Container::supervisors).collect();
        let of = format!("each of {count} containers, {}", user(Mode::Rootless));
        let each = |total: f64| crate::sample::Samples::from(vec![total / count as f64]);
        let pss = pids.iter().map(|pid| crate::footprint::pss(*pid)).sum::<anyhow::Result<f64>>()?;
        report.budgeted(format!("terok's memory (PSS), {of}"), "MiB", &each(pss), Budget::AtMost(8.0));
        report.value(
            format!("terok's idle processor time, {of}"),
            "ms/s",
            &each(crate::footprint::busy(&pids)),
        );
        let few = Bounds { rounds: 6, limit: Duration::from_secs(20) };
        let outcome = interleaved(std::slice::from_ref(&sealed), few, crate::start::start).pop();
        match (outcome, &alone) {
            (Some(Ok([start])), None) => {
                report.value("start beside 1 sealed container", "ms", &start);
                alone = Some(start);
            }
            (Some(Ok([start])), Some(alone)) => report.compared(
                format!("start beside {count} sealed containers"),
                "ms",
                &start,
                ("beside 1", alone),
                Some(Budget::RatioAtMost(1.1)),
            ),
            (Some(Err(error)), _) => {
                report.absent(format!("start beside {count} sealed containers"), &format!("{error:#}"))
            }
            (None, _) => {}
        }
    }
    Ok(())
}
