//! What a container that does nothing holds: processes and memory of ours, and of what others put beside it.

use crate::report::{Budget, Report};
use crate::sample::Samples;
use crate::subject::{Network, Subject, user};
use anyhow::Context;
use std::path::Path;
use terok_policy::layout;
use terok_tests::{Container, Mode};

/// The most a start may cost in memory for each idle container.
pub(crate) const RESIDENT: Budget = Budget::AtMost(8.0);
/// The hook is mapped by every start.
const HOOK: Budget = Budget::AtMost(1.0);

pub(crate) fn measure(report: &mut Report) -> anyhow::Result<()> {
    for (program, budget) in [
        (layout::HOOK, Some(HOOK)),
        (layout::SHIM, None),
        (layout::SUPERVISOR, None),
        (layout::LAUNCHER, None),
    ] {
        let size = std::fs::metadata(Path::new("/run/lab/bin").join(program)).context(program)?.len();
        let size = Samples::from(vec![size as f64 / f64::from(1 << 20)]);
        match budget {
            Some(budget) => report.budgeted(format!("size of {program}"), "MiB", &size, budget),
            None => report.value(format!("size of {program}"), "MiB", &size),
        }
    }
    for mode in [Mode::Rootless, Mode::Rootful] {
        let sealed = Subject::new(mode, Network::Sealed);
        let mut containers = Vec::new();
        for count in [1_usize, 10] {
            while containers.len() < count {
                containers.push(sealed.idle()?);
            }
            settle(&containers);
            let pids: Vec<u32> = containers.iter().flat_map(Container::supervisors).collect();
            let each = |total: f64| Samples::from(vec![total / count as f64]);
            let of =
                if count == 1 { "1 container".to_owned() } else { format!("each of {count} containers") };
            report.value(format!("terok's processes, {of}, {}", user(mode)), "", &each(pids.len() as f64));
            let pss = pids.iter().map(|pid| pss(*pid)).sum::<anyhow::Result<f64>>()?;
            report.budgeted(
                format!("terok's memory (PSS), {of}, {}", user(mode)),
                "MiB",
                &each(pss),
                RESIDENT,
            );
        }
    }
    beside(report)
}

/// What the networks that terok replaces keep running for one container.
fn beside(report: &mut Report) -> anyhow::Result<()> {
    for subject in Subject::all(Mode::Rootless)? {
        let programs: &[&str] = match subject.network {
            Network::Slirp => &["slirp4netns"],
            Network::Bridge => &["slirp4netns", "pasta", "pasta.avx2", "aardvark-dns"],
            Network::Pasta => &["pasta", "pasta.avx2"],
            Network::None | Network::Sealed => continue,
        };
        let container = subject.idle()?;
        settle(std::slice::from_ref(&container));
        let pids: Vec<u32> = processes().filter(|pid| programs.contains(&called(*pid).as_str())).collect();
        let total = pids.iter().map(|pid| pss(*pid)).sum::<anyhow::Result<f64>>()?;
        report.value(
            format!("memory (PSS) of its network, {}", subject.label()),
            "MiB",
            &Samples::from(vec![total]),
        );
    }
    Ok(())
}

/// A process at rest holds what it holds: wait until start-up work is over, which shows as no processor time used.
pub(crate) fn settle(containers: &[Container]) {
    let pids: Vec<u32> = containers.iter().flat_map(Container::supervisors).collect();
    let used = || {
        pids.iter().map(|pid| std::fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default())
    };
    for _ in 0..20 {
        let before: Vec<String> = used().collect();
        std::thread::sleep(std::time::Duration::from_millis(100));
        if used().eq(before) {
            return;
        }
    }
}

/// Milliseconds of processor time that these processes use in a second (schedstats(5), time on the processor).
pub(crate) fn busy(pids: &[u32]) -> f64 {
    const WATCHED: std::time::Duration = std::time::Duration::from_secs(2);
    let used = || -> u64 {
        let of = |pid: &u32| -> Option<u64> {
            std::fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?.split(' ').next()?.parse().ok()
        };
        pids.iter().filter_map(of).sum::<u64>()
    };
    let before = used();
    std::thread::sleep(WATCHED);
    used().saturating_sub(before) as f64 / 1e6 / WATCHED.as_secs_f64()
}

/// MiB of a process, its share of shared pages included (proc(5), smaps_rollup).
pub(crate) fn pss(pid: u32) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).with_context(|| path.clone())?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().with_context(|| path.clone())?;
    Ok(kib / 1024.0)
}

fn called(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}
