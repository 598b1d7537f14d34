//! Protections switched off one at a time, in a copy of the tree: the end-to-end tests named beside each must then fail.
//! A test that passes without what it tests shows nothing.

use crate::lab::Lab;
use crate::process::{code, must, target, workspace};
use crate::{dist, test};
use anyhow::{Context, bail};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// `cargo xtask mutants`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only these; all of tests/mutants.toml where none is named
    names: Vec<String>,
    /// Only say whether each still fits the source
    #[arg(long)]
    check: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    mutant: Vec<Mutant>,
}

/// One protection, as text to replace.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    /// The protection.
    name: String,
    /// File of the workspace.
    file: PathBuf,
    /// Text that stands in it exactly once.
    find: String,
    /// What stands there without the protection.
    replace: String,
    /// Parts of paths of end-to-end tests; every test they name must fail.
    tests: Vec<String>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let mut mutants = list(&workspace())?;
    for mutant in &mutants {
        mutant.applied(&workspace())?;
    }
    if let Some(unknown) =
        options.names.iter().find(|name| !mutants.iter().any(|mutant| mutant.name == **name))
    {
        bail!("no mutant {unknown:?}: they are in tests/mutants.toml");
    }
    if !options.names.is_empty() {
        mutants.retain(|mutant| options.names.contains(&mutant.name));
    }
    if options.check {
        println!("{} mutants fit the source", mutants.len());
        return Ok(ExitCode::SUCCESS);
    }

    let lab = Lab { podman5: false, rootless: false, image: true };
    lab.prepare()?;
    let folder = target().join("mutants");
    let tree = copy(&folder)?;
    let tests = test::compiled_tests()?;
    let probe = dist::probe()?;
    let mut survivors = Vec::new();
    for mutant in &mutants {
        let file = tree.join(&mutant.file);
        let original = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        std::fs::write(&file, mutant.applied(&tree)?)?;
        let bin = programs(&tree, &folder);
        std::fs::write(&file, original)?;
        let bin = bin.with_context(|| format!("building without {}", mutant.name))?;
        dist::replace(&probe, &bin.join("terok-probe"))?;
        dist::replace(&tests, &bin.join("e2e"))?;
        let passed = mutant.survives(lab, &bin)?;
        match passed.is_empty() {
            true => println!("without {}: noticed", mutant.name),
            false => println!("without {}: NOT noticed by {}", mutant.name, passed.join(", ")),
        }
        if !passed.is_empty() {
            survivors.push(mutant.name.as_str());
        }
    }
    if survivors.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("xtask: the tests pass without {}", survivors.join(", "));
    Ok(code(std::os::unix::process::ExitStatusExt::from_raw(1 << 8)))
}

/// The mutants of the tree at `root`.
fn list(root: &Path) -> anyhow::Result<Vec<Mutant>> {
    let path = root.join("tests/mutants.toml");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(toml::from_str::<List>(&text).with_context(|| path.display().to_string())?.mutant)
}

/// A copy of what is committed, built in a folder of its own.
fn copy(folder: &Path) -> anyhow::Result<PathBuf> {
    let tree = folder.join("tree");
    if tree.exists() {
        std::fs::remove_dir_all(&tree).with_context(|| format!("removing {}", tree.display()))?;
    }
    std::fs::create_dir_all(&tree)?;
    let mut archive = Command::new("git")
        .args(["archive", "HEAD"])
        .current_dir(workspace())
        .stdout(Stdio::piped())
        .spawn()?;
    let content = archive.stdout.take().context("git archive has no output")?;
    must(Command::new("tar").arg("-x").current_dir(&tree).stdin(content))?;
    if !archive.wait()?.success() {
        bail!("git archive failed");
    }
    Ok(tree)
}

/// The programs of `tree`, built quickly.
fn programs(tree: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let (build, bin) = (folder.join("build"), folder.join("bin"));
    std::fs::create_dir_all(&bin)?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let packages = dist::PROGRAMS.iter().flat_map(|program| ["-p", program]);
    must(
        Command::new(cargo)
            .current_dir(tree)
            .env("CARGO_TARGET_DIR", &build)
            .args(["build", "--quiet", "--locked", "--target", &triple])
            .args(packages)
            .args([
                "--config",
                &format!("target.{triple}.rustflags=[\"-C\",\"target-feature=+crt-static\"]"),
            ]),
    )?;
    for program in dist::PROGRAMS {
        dist::replace(&build.join(&triple).join("debug").join(program), &bin.join(program))?;
    }
    Ok(bin)
}

impl Mutant {
    /// The file of `root` without the protection.
    fn applied(&self, root: &Path) -> anyhow::Result<String> {
        let path = root.join(&self.file);
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        match text.matches(&self.find).count() {
            1 => Ok(text.replacen(&self.find, &self.replace, 1)),
            found => bail!(
                "mutant {}: its text stands {found} times in {}, not once; write it anew in tests/mutants.toml",
                self.name,
                self.file.display()
            ),
        }
    }

    /// Which of its tests pass all the same.
    fn survives(&self, lab: Lab, bin: &Path) -> anyhow::Result<Vec<String>> {
        let mut command = lab.open(bin, &[])?;
        command.arg("/run/lab/bin/e2e").args(&self.tests).stderr(Stdio::null());
        let output = command.output().context("starting the lab")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let results: Vec<(&str, &str)> =
            text.lines().filter_map(|line| line.strip_prefix("test ")?.split_once(" ... ")).collect();
        for wanted in &self.tests {
            if !results.iter().any(|(test, _)| test.contains(wanted.as_str())) {
                bail!("mutant {}: no test {wanted:?}, or the lab did not come up:\n{text}", self.name);
            }
        }
        // Podman 4 has no pasta: its tests are skipped here, which looks like passing.
        let ran = results.iter().filter(|(test, _)| !test.ends_with("::pasta"));
        let passed = ran.filter(|(_, result)| !result.starts_with("FAILED"));
        Ok(passed.map(|(test, _)| (*test).to_owned()).collect())
    }
}
