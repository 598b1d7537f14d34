//! What a change must pass. Nothing may be skipped here.

use crate::process::{cargo, must, output};
use anyhow::{Context, bail};
use std::process::ExitCode;
use std::time::Instant;

/// Licences that may be linked into the programs are listed here, for cargo-deny and for us.
const DENY: &str = include_str!("../../deny.toml");

pub(crate) fn run() -> anyhow::Result<ExitCode> {
    step("format", || must(cargo().args(["fmt", "--all", "--check"])))?;
    // Needs the Debian libraries that tests are held against, so the lab is prepared before the first compilation.
    step("lab", || crate::lab::Lab { image: true, ..Default::default() }.prepare())?;
    step("lint", || {
        must(cargo().args([
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ]))
    })?;
    step("licences", licences)?;
    step("mutants", || crate::mutants::run(&crate::mutants::Options::check()).map(|_| ()))?;
    step("tests", || {
        let options = crate::test::Options::everything();
        let code = crate::test::run(&options)?;
        if code == ExitCode::SUCCESS { Ok(()) } else { bail!("tests failed") }
    })?;
    step("fuzz", || crate::fuzz::run(&crate::fuzz::Options::brief()).map(|_| ()))?;
    Ok(ExitCode::SUCCESS)
}

fn step(name: &str, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    println!("── {name}");
    let started = Instant::now();
    work().with_context(|| name.to_owned())?;
    println!("── {name}: passed in {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// Every crate that reaches a shipped program has a licence that may be linked.
fn licences() -> anyhow::Result<()> {
    let metadata = output(cargo().args(["metadata", "--format-version", "1", "--locked"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    let mut arguments =
        vec!["tree", "--edges", "normal", "--prefix", "none", "--format", "{p}", "--target", "all"];
    arguments.extend(crate::dist::PROGRAMS.iter().flat_map(|program| ["-p", program]));
    let shipped = output(cargo().args(arguments))?;
    let mut refused = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let (name, version) =
            (package["name"].as_str().unwrap_or(""), package["version"].as_str().unwrap_or(""));
        let licence = package["license"].as_str().unwrap_or("none");
        if shipped.lines().any(|line| line.starts_with(&format!("{name} v{version}"))) && !allowed(licence) {
            refused.push(format!("{name} {version}: {licence}"));
        }
    }
    if refused.is_empty() { Ok(()) } else { bail!("licences not on the list:\n{}", refused.join("\n")) }
}

/// Whether an SPDX expression can be satisfied from the list; `/` is an old spelling of OR.
fn allowed(expression: &str) -> bool {
    let plain = expression.replace(['(', ')'], " ").replace('/', " OR ");
    plain
        .split(" AND ")
        .all(|all| all.split(" OR ").any(|one| licences_allowed().any(|known| known == one.trim())))
}

/// The words of `allow = ["…", …]`.
fn licences_allowed() -> impl Iterator<Item = &'static str> {
    let list = DENY.lines().find_map(|line| line.strip_prefix("allow = [")).unwrap_or_default();
    list.split('"').skip(1).step_by(2)
}

#[cfg(test)]
mod tests {
    use super::allowed;

    #[test]
    fn a_licence_must_be_satisfied_from_the_list() {
        assert!(allowed("MIT OR Apache-2.0"));
        assert!(allowed("MIT/Apache-2.0"));
        assert!(allowed("GPL-3.0 OR MIT"));
        assert!(allowed("(MIT OR Apache-2.0) AND Unicode-3.0"));
        assert!(allowed("Apache-2.0 AND ISC"));
        assert!(!allowed("GPL-2.0-or-later"));
        assert!(!allowed("MIT AND GPL-2.0-or-later"));
        assert!(!allowed("none"));
    }
}
