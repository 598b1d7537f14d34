//! What it costs to have a bundle amended: the shim before a runtime that does nothing, beside that runtime alone, and `precreate`. The
//! `create` hook, which comes later in a start, is measured in [`crate::start::hooks_alone`].

use crate::report::{Budget, Report};
use crate::sample::{Bounds, Samples, interleaved, timed};
use crate::subject::{Network, Subject, podman};
use anyhow::{Context, ensure};
use serde_json::{Value, json};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use terok_policy::layout;
use terok_tests::Mode;

/// Added by the shim, and by `precreate`.
const ADDED: Budget = Budget::AtMost(3.0);
/// A runtime that is through at once.
const RUNTIME: &str = "/bin/true";
const BIN: &str = "/run/lab/bin";
/// A store as Podman's, with bundles of our own.
const STORE: &str = "/run/bench/store";
/// What is asked for in a bundle's annotations.
const KINDS: [(&str, &[(&str, &str)]); 5] = [
    ("a container of somebody else's", &[]),
    ("the shield alone", &[("terok.shield", "up")]),
    ("a long profile", &[("terok.shield.profiles", "dev-standard")]),
    ("restricted", &[("terok.restricted", "true")]),
    ("a grant", &[("terok.vault", "github")]),
];

/// Who is started with a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    Runtime,
    Shim,
    Precreate,
}

/// A program and the bundle it gets.
#[derive(Debug)]
struct Run {
    program: Program,
    kind: usize,
    bundle: PathBuf,
}

pub(crate) fn measure(report: &mut Report) -> anyhow::Result<()> {
    std::fs::create_dir_all(Path::new(layout::SHIM_SYSTEM).parent().context("a folder")?)?;
    std::fs::write(layout::SHIM_SYSTEM, format!("runtime = {RUNTIME:?}\n"))?;
    let captured = captured()?;
    let mut runs = Vec::new();
    for (kind, (_, annotations)) in KINDS.iter().enumerate() {
        let bundle = made(&captured, kind, annotations)?;
        let of = |program| Run { program, kind, bundle: bundle.clone() };
        runs.extend([Program::Runtime, Program::Shim, Program::Precreate].map(of));
    }
    list()?;
    let bounds = Bounds { rounds: 100, limit: Duration::from_secs(40) };
    let outcomes = interleaved(&runs, bounds, Run::time);
    let taken = |program, kind| {
        let at = runs.iter().position(|run| run.program == program && run.kind == kind);
        let taken = at.and_then(|at| outcomes.get(at)).context("was not measured")?;
        taken.as_ref().map(|[taken]| taken.clone()).map_err(|error| anyhow::anyhow!("{error:#}"))
    };
    for (kind, (name, _)) in KINDS.iter().enumerate() {
        let mut row = |what: String, added: anyhow::Result<Samples>| match added {
            Ok(added) => report.budgeted(what, "ms", &added, ADDED),
            Err(error) => report.absent(what, &format!("{error:#}")),
        };
        let added =
            taken(Program::Shim, kind).and_then(|shim| Ok(shim.less(&taken(Program::Runtime, kind)?)));
        row(format!("added to the runtime's create by the shim, {name}"), added);
        row(format!("precreate from start to exit, {name}"), taken(Program::Precreate, kind));
    }
    std::fs::remove_file(layout::SHIM_SYSTEM).context("shim.toml")
}

impl Run {
    fn time(&self) -> anyhow::Result<[f64; 1]> {
        let (captured, config) = (self.bundle.join("captured.json"), self.bundle.join("config.json"));
        std::fs::copy(&captured, &config)?;
        let mut command = match self.program {
            Program::Runtime => Command::new(RUNTIME),
            Program::Shim => Command::new(Path::new(BIN).join(layout::SHIM)),
            Program::Precreate => Command::new(Path::new(BIN).join(layout::HOOK)),
        };
        match self.program {
            Program::Precreate => command.arg("precreate").stdin(File::open(&config)?),
            _ => {
                command.args(["create", "--bundle"]).arg(&self.bundle).arg(id(self.kind)).stdin(Stdio::null())
            }
        };
        // What a pipe would take is the reader's, not the program's.
        let amended = self.bundle.join("amended.json");
        command.stdout(File::create(&amended)?);
        let took = timed(|| {
            let status = command.status()?;
            ensure!(status.success(), "{:?} of {}: {status}", self.program, KINDS[self.kind].0);
            Ok(())
        })?;
        // A program that did nothing would be fast.
        let is =
            |path: &Path| -> anyhow::Result<bool> { Ok(std::fs::read(path)? != std::fs::read(&captured)?) };
        let changed = match self.program {
            Program::Runtime => return Ok([took]),
            Program::Shim => is(&config)?,
            Program::Precreate => is(&amended)?,
        };
        ensure!(changed != KINDS[self.kind].1.is_empty(), "{:?} of {}", self.program, KINDS[self.kind].0);
        Ok([took])
    }
}

fn id(kind: usize) -> String {
    format!("{kind:064x}")
}

/// The configuration of a container without a card, as this machine's Podman writes it.
fn captured() -> anyhow::Result<Value> {
    let container = Subject::new(Mode::Rootful, Network::None).idle()?;
    let path = podman(Mode::Rootful, &["inspect", "--format={{.OCIConfigPath}}", &container.name])?;
    let text = std::fs::read(path.trim()).with_context(|| path.trim().to_owned())?;
    Ok(serde_json::from_slice(&text)?)
}

/// A bundle of this kind in our store.
fn made(captured: &Value, kind: usize, annotations: &[(&str, &str)]) -> anyhow::Result<PathBuf> {
    let mut config = captured.clone();
    let said = config.get_mut("annotations").and_then(Value::as_object_mut).context("annotations")?;
    said.extend(annotations.iter().map(|(key, value)| ((*key).to_owned(), json!(value))));
    *config.pointer_mut("/root/path").context("a root file system")? =
        json!(format!("{STORE}/overlay/{}/merged", id(kind)));
    let bundle = PathBuf::from(format!("{STORE}/overlay-containers/{}/userdata", id(kind)));
    std::fs::create_dir_all(&bundle)?;
    std::fs::write(bundle.join("captured.json"), config.to_string())?;
    Ok(bundle)
}

/// The store's list of its containers.
fn list() -> anyhow::Result<()> {
    let containers: Vec<Value> =
        (0..KINDS.len()).map(|kind| json!({ "id": id(kind), "image": "", "layer": id(kind) })).collect();
    std::fs::write(format!("{STORE}/overlay-containers/containers.json"), json!(containers).to_string())?;
    Ok(())
}
