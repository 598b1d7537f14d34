//! Protections switched off one at a time, in a copy of the tree: the end-to-end tests named beside each must then fail.
//! A test that passes without what it tests shows nothing.

use crate::lab::Lab;
use crate::process::{code, must, target, workspace};
use crate::{dist, test};
use anyhow::{Context, bail};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Instant;

/// Passes whatever protection is missing: a container that does not even start shows nothing either.
const CONTROL: &str = "an_allowed_connection_is_audited_with_its_rule_before_and_its_bytes_after";

/// What the operator types protects nothing, and takes long to build.
const PROTECTING: [&str; 3] = ["terok-hook", "terok-shim", "terok-supervisor"];

/// `cargo xtask mutants`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only these; all of tests/mutants.toml where none is named
    names: Vec<String>,
    /// Only say whether each still fits the source
    #[arg(long)]
    check: bool,
}

impl Options {
    /// Whether each still fits the source.
    pub(crate) fn check() -> Self {
        Options { names: Vec::new(), check: true }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    mutant: Vec<Mutant>,
}

/// One protection, as text to replace; in several places where one layer alone would hide what the other lets through.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    /// The protection, in a few words.
    name: String,
    /// Ids of the attacks that it stands against (tests/README.md).
    #[serde(default)]
    #[cfg_attr(not(test), expect(dead_code, reason = "for people, and for the test below"))]
    attacks: Vec<String>,
    /// Paths of end-to-end tests without the network; every test they name must fail.
    tests: Vec<String>,
    /// The networks whose tests must fail; all where none is named.
    #[serde(default)]
    nets: Vec<String>,
    /// Where only a test of one crate can bring the attack about: its folder. Tests are then parts of that crate's paths.
    package: Option<PathBuf>,
    /// A test that passes without the protection, if [`CONTROL`] does not.
    control: Option<String>,
    edit: Vec<Edit>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Edit {
    /// File of the workspace.
    file: PathBuf,
    /// Text that stands in it exactly once.
    find: String,
    /// What stands there without the protection.
    replace: String,
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

    let lab = Lab { podman5: false, rootless: false, image: true, bench: false };
    lab.prepare()?;
    let folder = target().join("mutants");
    let tree = copy(&folder)?;
    let bins = [folder.join("bin-0"), folder.join("bin-1")];
    let (tests, probe) = (test::compiled_tests()?, dist::probe()?);
    for bin in &bins {
        programs(&tree, &folder, &dist::PROGRAMS, bin)?;
        dist::replace(&tests, &bin.join("e2e"))?;
        dist::replace(&probe, &bin.join("terok-probe"))?;
    }
    let mut survivors = Vec::new();
    let mut before: Option<Trial<'_>> = None;
    // While the tests of one run, the next one is built.
    for (mutant, bin) in mutants.iter().zip(bins.iter().cycle()) {
        if let Some(package) = &mutant.package {
            let noticed =
                mutant.in_place(&tree, || mutant.noticed_by_package(&tree.join(package), &folder))?;
            survivors.extend((!noticed).then(|| mutant.name.clone()));
            continue;
        }
        let built = mutant.in_place(&tree, || programs(&tree, &folder, &PROTECTING, bin));
        survivors.extend(before.take().map(Trial::end).transpose()?.flatten());
        match built {
            Ok(()) => before = Some(mutant.tried(lab, bin, &folder)?),
            Err(error) => {
                println!("without {}: NOT BUILT, {error:#}", mutant.name);
                survivors.push(mutant.name.clone());
            }
        }
    }
    survivors.extend(before.map(Trial::end).transpose()?.flatten());
    if survivors.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("xtask: the tests pass without {}", survivors.join("; "));
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

/// Builds these programs of `tree` quickly, into `bin`.
fn programs(tree: &Path, folder: &Path, these: &[&str], bin: &Path) -> anyhow::Result<()> {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let build = folder.join("build");
    std::fs::create_dir_all(bin)?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let packages = these.iter().flat_map(|program| ["-p", program]);
    // What nobody reaches any more is no news: the compiler is heard only where it refuses.
    let built = Command::new(cargo)
        .current_dir(tree)
        .env("CARGO_TARGET_DIR", &build)
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .args(["build", "--quiet", "--locked", "--target", &triple])
        .args(packages)
        .args(["--config", &format!("target.{triple}.rustflags=[\"-C\",\"target-feature=+crt-static\"]")])
        .output()
        .context("starting cargo")?;
    if !built.status.success() {
        bail!("{}", String::from_utf8_lossy(&built.stderr));
    }
    for program in these {
        dist::replace(&build.join(&triple).join("debug").join(program), &bin.join(program))?;
    }
    Ok(())
}

impl Mutant {
    /// The files of `root` without the protection.
    fn applied(&self, root: &Path) -> anyhow::Result<BTreeMap<PathBuf, String>> {
        let mut files = BTreeMap::new();
        if self.edit.is_empty() || self.tests.is_empty() {
            bail!("mutant {}: changes nothing, or no test is to notice it", self.name);
        }
        for Edit { file, find, replace } in &self.edit {
            if file.starts_with("launcher") || file.starts_with("install") {
                bail!("mutant {}: {} is in neither of {PROTECTING:?}", self.name, file.display());
            }
            let path = root.join(file);
            let text = match files.remove(&path) {
                Some(text) => text,
                None => std::fs::read_to_string(&path).with_context(|| path.display().to_string())?,
            };
            let text = match text.matches(find).count() {
                1 => text.replacen(find, replace, 1),
                found => bail!(
                    "mutant {}: its text stands {found} times in {}, not once; write it anew in tests/mutants.toml",
                    self.name,
                    file.display()
                ),
            };
            files.insert(path, text);
        }
        Ok(files)
    }

    /// Does `work` while `tree` lacks the protection.
    fn in_place<T>(&self, tree: &Path, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let mut originals = Vec::new();
        for (file, text) in self.applied(tree)? {
            originals.push((file.clone(), std::fs::read(&file)?));
            std::fs::write(&file, text)?;
        }
        let done = work();
        for (file, original) in originals {
            std::fs::write(file, original)?;
        }
        done
    }

    /// Whether each of its tests, in the crate in `package`, fails.
    fn noticed_by_package(&self, package: &Path, folder: &Path) -> anyhow::Result<bool> {
        let started = Instant::now();
        let mut noticed = true;
        for test in &self.tests {
            let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
                .current_dir(package)
                .env("CARGO_TARGET_DIR", folder.join("build"))
                .args(["test", "--quiet", "--locked", "--no-fail-fast", test])
                .output()
                .context("starting cargo")?;
            let text = String::from_utf8_lossy(&output.stdout);
            std::fs::write(self.log(folder), &*text)?;
            if !text.contains("test result: ") {
                println!("without {}: NOT BUILT, {}", self.name, String::from_utf8_lossy(&output.stderr));
                return Ok(false);
            }
            noticed &= text.lines().any(|line| line.starts_with("---- ") && line.contains(test.as_str()));
        }
        let seconds = started.elapsed().as_secs();
        println!(
            "without {}: {} ({seconds} s)",
            self.name,
            if noticed { "noticed by its crate" } else { "NOT noticed" }
        );
        Ok(noticed)
    }

    /// What its tests say, in `folder`.
    fn log(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{}.log", self.name.replace([' ', '/'], "-")))
    }

    /// Starts its tests on the programs of `bin`. What they say is in `folder`, in a file of the mutant's name.
    fn tried(&self, lab: Lab, bin: &Path, folder: &Path) -> anyhow::Result<Trial<'_>> {
        let on_networks = |test: &String| match self.nets.as_slice() {
            [] => vec![test.clone()],
            nets => nets.iter().map(|net| format!("{test}::{net}")).collect(),
        };
        let control = self.control.clone().unwrap_or_else(|| format!("{CONTROL}::sealed"));
        let tests: Vec<String> = self.tests.iter().flat_map(on_networks).collect();
        let log = self.log(folder);
        let mut command = lab.open(bin, &[])?;
        command.arg("/run/lab/bin/e2e").args(&tests).arg(&control);
        // Podman 4 has no pasta: its tests are skipped, which looks like passing.
        command.args(["--skip", "::pasta", "--test-threads=4"]);
        command.stdin(Stdio::null()).stdout(File::create(&log)?).stderr(Stdio::null());
        let lab = command.spawn().context("starting the lab")?;
        Ok(Trial { mutant: self, tests, control, log, lab, started: Instant::now() })
    }
}

/// The tests of a mutant, running.
struct Trial<'a> {
    mutant: &'a Mutant,
    /// Those that must fail, and one that must not.
    tests: Vec<String>,
    control: String,
    log: PathBuf,
    lab: Child,
    started: Instant,
}

impl Trial<'_> {
    /// Its name, if some of the tests passed all the same.
    fn end(mut self) -> anyhow::Result<Option<String>> {
        self.lab.wait()?;
        let name = &self.mutant.name;
        let text = std::fs::read_to_string(&self.log)?;
        let results: Vec<(&str, bool)> = text
            .lines()
            .filter_map(|line| line.strip_prefix("test ")?.split_once(" ... "))
            .map(|(test, result)| (test, !result.starts_with("FAILED")))
            .collect();
        let of = |wanted: &str| -> Vec<bool> {
            results.iter().filter(|(test, _)| test.contains(wanted)).map(|(_, passed)| *passed).collect()
        };
        if let Some(missing) = self.tests.iter().chain([&self.control]).find(|test| of(test).is_empty()) {
            println!("without {name}: NOT TRIED, no test {missing:?}, or the lab did not come up");
            return Ok(Some(name.clone()));
        }
        if of(&self.control).contains(&false) {
            println!("without {name}: NOTHING works, not even {}", self.control);
            return Ok(Some(name.clone()));
        }
        let tried = results.iter().filter(|(test, _)| !test.contains(&self.control));
        let passed: Vec<&str> = tried.clone().filter(|(_, passed)| *passed).map(|(test, _)| *test).collect();
        let (of, seconds) = (tried.count(), self.started.elapsed().as_secs());
        match passed.is_empty() {
            true => println!("without {name}: noticed by {of} tests ({seconds} s)"),
            false => println!("without {name}: NOT noticed by {} ({seconds} s)", passed.join(", ")),
        }
        Ok(Some(name.clone()).filter(|_| !passed.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutant_fits_the_source_names_tests_that_there_are_and_stands_in_the_table_of_attacks() {
        let readme = std::fs::read_to_string(workspace().join("tests/README.md")).unwrap();
        for mutant in list(&workspace()).unwrap() {
            mutant.applied(&workspace()).unwrap();
            for attack in &mutant.attacks {
                let row = readme.lines().find(|line| line.starts_with(&format!("| {attack} |")));
                let row = row.unwrap_or_else(|| panic!("{}: no row {attack}", mutant.name));
                assert!(row.contains(&mutant.name), "{attack}: {} is not in its row", mutant.name);
            }
            for test in &mutant.tests {
                if mutant.package.is_some() {
                    continue; // one that is not there does not fail either
                }
                let (module, name) = test.split_once("::").unwrap_or_else(|| panic!("{test}: MODULE::NAME"));
                let file = format!("tests/e2e/{module}.rs");
                let text = std::fs::read_to_string(workspace().join(file)).unwrap();
                assert!(text.contains(&format!("fn {name}(")), "{}: no test {test}", mutant.name);
            }
        }
    }
}
