//! `terok setup`, `uninstall` and `doctor`: what the install library finds and does, told to a person.

use crate::{cli::Json, containers, control, show, vault};
use anyhow::{Context as _, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use nix::sched::{CloneFlags, unshare};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use terok_install::doctor::{self, Level};
use terok_install::engine::{self, Engine, Registered};
use terok_install::hook_json::Containers;
use terok_install::host::Host;
use terok_install::target::{Scope, Target};
use terok_install::{consulted, in_use, setup};
use terok_policy::layout;
use terok_policy::plan::Network;

/// Which installation.
#[derive(Debug, clap::Args)]
pub(crate) struct Place {
    /// For every user of the machine, as root; root's own podman reads only this
    #[arg(long)]
    system: bool,
    /// Put this before every path, for packages
    #[arg(long, value_name = "FOLDER")]
    destdir: Option<PathBuf>,
    /// Have engines read their files again where they have not since these changed, by systemctl; below --destdir, where that is a whole machine
    #[arg(long)]
    reload: bool,
}

/// Which engines call the shim.
#[derive(Debug, clap::Args)]
pub(crate) struct Engines {
    /// Also make terok a runtime of this engine, which then needs no hooks: --runtime terok; several times for several engines
    #[arg(long, value_name = "ENGINE", value_parser = engine())]
    engine: Vec<Engine>,
    /// Make it the runtime of every container that names none; those without a terok. annotation start as before
    #[arg(long, requires = "engine", conflicts_with = "no_default_runtime")]
    default_runtime: bool,
    /// Take that back, and keep terok as a runtime that containers name
    #[arg(long, requires = "engine")]
    no_default_runtime: bool,
}

fn engine() -> impl TypedValueParser<Value = Engine> {
    PossibleValuesParser::new(Engine::ALL.map(Engine::name)).try_map(|name| {
        let mut all = Engine::ALL.into_iter();
        all.find(|engine| engine.name() == name).ok_or("not an engine that terok knows")
    })
}

impl Engines {
    fn default(&self) -> Option<bool> {
        (self.default_runtime || self.no_default_runtime).then_some(self.default_runtime)
    }
}

/// What is taken away.
#[derive(Debug, clap::Args)]
pub(crate) struct Removed {
    /// Only make terok no runtime of this engine any more; several times for several engines. All else stays
    #[arg(long, value_name = "ENGINE", value_parser = engine(), conflicts_with = "purge")]
    engine: Vec<Engine>,
    /// Remove audit logs and operator state as well
    #[arg(long)]
    purge: bool,
}

/// For which containers hooks and shim are.
#[derive(Debug, clap::Args)]
pub(crate) struct Which {
    /// Protect every container that podman starts or that runs through the shim, with or without annotations, as [all_containers] in config.toml says
    #[arg(long, conflicts_with = "no_all_containers")]
    all_containers: bool,
    /// Protect those with a terok. annotation only, after --all-containers
    #[arg(long)]
    no_all_containers: bool,
}

impl Place {
    fn target(&self, host: &Host) -> anyhow::Result<Target> {
        if let Some(destdir) = &self.destdir
            && !destdir.is_absolute()
        {
            bail!("--destdir {}: give an absolute path", destdir.display());
        }
        Ok(Target::of(host, self.system, self.destdir.clone()))
    }

    /// Has engines read their files again, where that is asked for. `otherwise`: what is to do where one does not.
    fn reload(&self, engines: &[Engine], otherwise: &str) -> anyhow::Result<()> {
        for line in engines.iter().filter_map(|engine| engine.reload()).filter(|_| self.reload) {
            let status = match &self.destdir {
                None => systemctl(line),
                Some(root) => thread::scope(|scope| scope.spawn(|| below(root, line)).join())
                    .unwrap_or_else(|_| bail!("starting it panicked")),
            };
            let status = status.with_context(|| format!("{line}; {otherwise}"))?;
            if !status.success() {
                bail!("{line}: {status}; {otherwise}");
            }
            say!("done: {line}")?;
        }
        Ok(())
    }
}

/// Runs a command with `root` as its root folder, and this thread's from then on.
fn below(root: &Path, line: &str) -> anyhow::Result<ExitStatus> {
    let entering = || format!("entering {}", root.display());
    // The other threads' stays what it is (unshare(2)).
    unshare(CloneFlags::CLONE_FS).with_context(entering)?;
    std::os::unix::fs::chroot(root).with_context(entering)?;
    std::env::set_current_dir("/").with_context(entering)?;
    systemctl(line)
}

fn systemctl(line: &str) -> anyhow::Result<ExitStatus> {
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().unwrap_or_default());
    // It does nothing where it takes this root for a package's, not the machine's (systemctl(1)).
    command.args(words).env("SYSTEMD_IGNORE_CHROOT", "1").stdin(Stdio::null());
    command.status().context("starting it")
}

/// `terok setup`
pub(crate) fn setup(host: &Host, place: &Place, which: &Which, engines: &Engines) -> anyhow::Result<()> {
    let target = place.target(host)?;
    let own = std::env::current_exe().context("/proc/self/exe")?;
    let source = own.parent().context("/proc/self/exe has no folder")?;
    let containers = match which {
        Which { all_containers: true, .. } => Containers::All,
        Which { no_all_containers: true, .. } => Containers::Annotated,
        // As it was.
        _ => setup::installed_for(&target),
    };
    let steps = setup::install_steps(host, &target, source, containers)?;
    // All is decided before anything is done.
    let registrations = engine::register_steps(host, &target, &engines.engine, engines.default())?;
    let mut changed = setup::apply(&steps)?;
    let mut told = Vec::new();
    let machine = target.machine(host);
    for (engine, steps) in &registrations {
        let before = engine.registered(&target)?;
        let files = setup::apply(steps)?;
        let after = engine.registered(&target)?;
        let kept = kept_default(*engine, before, after);
        // An earlier setup may have told it, and nobody made it read that.
        let news = kept.is_none() && (!files.is_empty() || engine.is_unread(&machine, &target, after));
        told.push((*engine, news, kept));
        changed.extend(files);
    }
    for path in &changed {
        say!("wrote {}", path.display())?;
    }
    if changed.is_empty() {
        say!("already set up")?;
    }
    let news: Vec<_> = told.iter().filter(|(_, news, _)| *news).map(|(engine, _, _)| *engine).collect();
    for (engine, news, kept) in told {
        say!("{}", registration(engine, engine.registered(&target)?, news && !place.reload))?;
        if let Some(line) = kept {
            say!("{line}")?;
        }
    }
    place.reload(&news, "the files are in place: do it by hand")?;
    if place.destdir.is_some() {
        return Ok(());
    }
    let consulted =
        consulted::consulted(host).context("everything is in place, but podman would not use it")?;
    if consulted.containers == Containers::All {
        say!(
            "every container is protected, one without annotations as [all_containers] in {} says",
            target.settings().display()
        )?;
    }
    if !changed.is_empty() {
        match &target.scope {
            Scope::System => {
                say!("every podman of this machine consults terok's hooks; prove it with: terok doctor")?
            }
            Scope::User { .. } => {
                say!("your podman consults terok's hooks; prove it with: terok doctor")?;
                let bin = target.bin_dir();
                let path = std::env::var_os("PATH").unwrap_or_default();
                if !std::env::split_paths(&path).any(|folder| folder == bin) {
                    say!(
                        "to type terok anywhere, add this to your shell's profile: PATH={}:$PATH",
                        bin.display()
                    )?;
                }
            }
        }
    }
    Ok(())
}

/// What an engine knows now, and what is left to do.
fn registration(engine: Engine, registered: Registered, news: bool) -> String {
    let (name, runtime) = (engine.name(), layout::ENGINE_RUNTIME);
    let mut line = match registered {
        Registered::Default => format!("{name}: {runtime} is the runtime of every container that names none"),
        _ => format!("{name}: containers that name the runtime {runtime} start through the shim"),
    };
    if let Some(command) = engine.reload().filter(|_| news) {
        line += &format!("; make {name} read it: {command}");
    }
    line
}

/// Where a daemon keeps terok as its default although its file does not say so any more: what to do.
fn kept_default(engine: Engine, before: Registered, after: Registered) -> Option<String> {
    let command =
        engine.forget().filter(|_| before == Registered::Default && after != Registered::Default)?;
    let name = engine.name();
    let until = match after {
        Registered::No => format!("{name} starts no container any more until it is restarted"),
        _ => format!("{name} keeps {} as its default until it is restarted", layout::ENGINE_RUNTIME),
    };
    Some(format!(
        "{until}: {command}; containers that run end by that, unless its file says \"live-restore\": true"
    ))
}

/// `terok uninstall`
pub(crate) fn uninstall(host: &Host, place: &Place, removed: &Removed) -> anyhow::Result<()> {
    let target = place.target(host)?;
    let (whole, purge) = (removed.engine.is_empty(), removed.purge);
    let concerns = |engine: &Engine| whole || removed.engine.contains(engine);
    let running = if place.destdir.is_some() { Vec::new() } else { containers::running(host)? };
    if purge && !running.is_empty() {
        bail!(
            "protected containers run and write audit logs, {}: stop them before --purge",
            running.iter().map(containers::Known::name).collect::<Vec<_>>().join(", ")
        );
    }
    let machine = target.machine(host);
    let users = still_in_use(&machine, &target, |user| {
        Engine::ALL.iter().any(|engine| concerns(engine) && engine.name() == user.engine)
    });
    if !users.is_empty() {
        let names: Vec<_> = users.iter().map(|user| format!("{} ({})", user.name, user.engine)).collect();
        bail!(
            "containers run through the shim, without which their engine can neither stop nor remove them: {}; stop them first",
            names.join(", ")
        );
    }
    let purge = purge && place.destdir.is_none();
    // All is decided before anything is done.
    let mut removals = Vec::new();
    for engine in Engine::ALL.into_iter().filter(concerns) {
        // What cannot be read is no default of terok's.
        let before = engine.known(&machine, &target).unwrap_or(Registered::No);
        removals.push((engine, before, engine.unregister(&target)?));
    }
    // Where terok was not, nobody has to forget it.
    let was_there = !whole || target.at(&target.bin_dir().join(layout::SHIM)).exists();
    let mut nothing = true;
    let (mut lines, mut news) = (Vec::new(), Vec::new());
    for (engine, before, removal) in removals {
        let files = setup::apply(&removal.steps)?;
        if !files.is_empty() {
            lines.push(format!(
                "{}: containers that were made with the runtime {} do not start any more",
                engine.name(),
                layout::ENGINE_RUNTIME
            ));
        }
        // The shim stays where one engine alone is to forget it.
        let after = if whole { Registered::No } else { Registered::Named };
        let kept = kept_default(engine, before, after);
        // An earlier uninstall may have taken it out, and nobody made it read that.
        let unread = || was_there && place.reload && engine.is_unread(&machine, &target, Registered::No);
        let is_news = kept.is_none() && (!files.is_empty() || unread());
        lines.extend(kept);
        news.extend(is_news.then_some(engine));
        if let Some(command) = engine.reload().filter(|_| is_news && !place.reload) {
            lines.push(format!("make {} read it: {command}", engine.name()));
        }
        lines.extend(removal.notes);
        nothing &= files.is_empty() && !is_news;
        say_gone(&files)?;
    }
    // As long as an engine may call the programs they are there.
    let reloaded = place.reload(&news, "put that right and do this again");
    if whole && reloaded.is_ok() {
        let files = setup::apply(&setup::uninstall_steps(host, &target, purge))?;
        nothing &= files.is_empty();
        say_gone(&files)?;
    }
    for line in lines {
        say!("{line}")?;
    }
    reloaded?;
    if nothing {
        say!("{}", if whole { "nothing is installed here" } else { "no engine was told of terok here" })?;
    }
    if !whole {
        return Ok(());
    }
    if place.destdir.is_none() && host.vault_dir().exists() {
        say!(
            "your vault stays in {}: remove it by name if you need nothing in it",
            host.vault_dir().display()
        )?;
    }
    for line in afterwards(&running) {
        say!("{line}")?;
    }
    Ok(())
}

fn say_gone(files: &[PathBuf]) -> anyhow::Result<()> {
    for path in files {
        say!("{} {}", if path.exists() { "changed" } else { "removed" }, path.display())?;
    }
    Ok(())
}

/// Who runs through the shim. Who has just ended is tidied up through it as well, which takes an engine a moment.
fn still_in_use(host: &Host, target: &Target, counts: impl Fn(&in_use::User) -> bool) -> Vec<in_use::User> {
    let patience = Instant::now() + Duration::from_secs(2);
    loop {
        let mut users = in_use::users(host, target);
        users.retain(&counts);
        if users.is_empty() || Instant::now() > patience {
            return users;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// What becomes of containers that run while terok is taken away. A card is Podman's: it comes back without us.
fn afterwards(running: &[containers::Known]) -> Vec<String> {
    let (sealed, others): (Vec<_>, Vec<_>) =
        running.iter().partition(|known| known.network() == Some(Network::Sealed));
    let told = [
        (sealed, "protected until they end, and without network when started again"),
        (
            others,
            "protected until they end; started again they have their network without protection, so remove them",
        ),
    ];
    told.into_iter()
        .filter(|(group, _)| !group.is_empty())
        .map(|(group, what)| {
            format!("{what}: {}", group.iter().map(|known| known.name()).collect::<Vec<_>>().join(", "))
        })
        .collect()
}

/// `terok doctor`: exit code 1 where something fails.
pub(crate) fn doctor(host: &Host, json: Json) -> anyhow::Result<ExitCode> {
    let ask = |id: &str| {
        let known = containers::find_running(host, id).map_err(|error| format!("{error:#}"))?;
        let status = control::block_on(control::status(&known)).and_then(|status| status);
        status.map_err(|error| format!("{error:#}"))
    };
    let mut findings = doctor::examine(host, &ask);
    findings.extend(vault::findings(host));
    let fails = findings.iter().filter(|finding| finding.level == Level::Fail).count();
    if json.json {
        say!("{}", serde_json::json!({"ok": fails == 0, "findings": findings}))?;
    } else {
        for finding in &findings {
            let (tone, mark) = match finding.level {
                Level::Ok => (show::Tone::Good, "ok  "),
                Level::Warn => (show::Tone::Notice, "warn"),
                Level::Fail => (show::Tone::Bad, "FAIL"),
            };
            say!("{}  {:13} {}", show::toned(tone, mark), finding.area, show::printable(&finding.what))?;
            if !finding.remedy.is_empty() {
                say!("      {:13} → {}", "", finding.remedy)?;
            }
        }
        match fails {
            0 if findings.iter().any(|finding| finding.area == "container") => {
                say!("containers are protected")?
            }
            0 => say!("nothing is in the way; no container was tried, because that is done with podman")?,
            n => {
                say!("{n} of {} checks fail: containers are not protected, or do not start", findings.len())?
            }
        }
    }
    Ok(if fails == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;
    use terok_policy::control::Container;

    #[test]
    fn a_default_that_docker_keeps_is_told_of_with_the_command_that_ends_it() {
        use Registered::{Default, Named, No};
        let told = |before, after| kept_default(Engine::Docker, before, after);
        assert!(told(Default, No).unwrap().starts_with("docker starts no container any more"));
        assert!(told(Default, Named).unwrap().contains("systemctl restart docker"));
        for (before, after) in [(No, No), (Named, No), (Named, Named), (No, Default), (Default, Default)] {
            assert_eq!(told(before, after), None);
        }
        assert_eq!(kept_default(Engine::Containerd, Default, No), None, "it is restarted anyway");
    }

    #[test]
    fn who_takes_terok_away_hears_which_containers_come_back_unprotected() {
        let known = |name: &str, network| containers::Known {
            id: name.into(),
            record: Some(Container { name: name.into(), network, ..Container::default() }),
            run: Some("/nowhere".into()),
            state: "/nowhere".into(),
        };
        let running = [
            known("inner", Some(Network::Sealed)),
            known("web", Some(Network::Filtered)),
            known("older", None),
        ];
        let [sealed, others] = &afterwards(&running)[..] else { panic!("two lines") };
        assert!(sealed.ends_with("without network when started again: inner"), "{sealed}");
        assert!(others.contains("without protection") && others.ends_with(": web, older"), "{others}");
        assert!(afterwards(&[]).is_empty());
    }
}
