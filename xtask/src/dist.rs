//! The static programs, each built on its own so that no feature leaks from one into another.

use crate::process::{cargo, must, target};
use anyhow::{Context, bail};
use std::path::PathBuf;
use std::process::ExitCode;

/// The programs; each is named as its package.
pub(crate) const PROGRAMS: [&str; 4] = ["terok-hook", "terok-shim", "terok-supervisor", "terok"];

/// `cargo xtask dist`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Target triple; a musl target gives smaller programs
    #[arg(long, default_value_t = here())]
    target: String,
    /// Say nothing of the programs' sizes
    #[arg(long)]
    quiet: bool,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let folder = build(&options.target)?;
    for program in PROGRAMS {
        let path = folder.join(program);
        let size = std::fs::metadata(&path).with_context(|| format!("reading {}", path.display()))?.len();
        if !options.quiet {
            #[expect(clippy::cast_precision_loss, reason = "a size for people")]
            let mib = size as f64 / f64::from(1 << 20);
            println!("{:<18} {mib:>6.2} MiB  {}", program, path.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds for this machine and gives the folder of the programs.
pub(crate) fn build_here() -> anyhow::Result<PathBuf> {
    build(&here())
}

/// This machine's target triple.
fn here() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

fn build(triple: &str) -> anyhow::Result<PathBuf> {
    let bin = target().join("dist/bin");
    std::fs::create_dir_all(&bin).with_context(|| format!("creating {}", bin.display()))?;
    for program in PROGRAMS {
        let built = static_program(program, triple, "dist")?;
        replace(&built, &bin.join(program))?;
    }
    Ok(bin)
}

/// Builds one program statically; it is then in `target/TRIPLE/PROFILE/PROGRAM`.
pub(crate) fn static_program(program: &str, triple: &str, profile: &str) -> anyhow::Result<PathBuf> {
    // An explicit target keeps crt-static away from build scripts and proc macros, which must stay dynamic.
    let mut build = cargo();
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    if ["terok-hook", "terok-shim"].contains(&program) {
        // It runs for a millisecond at every start: what counts is how much of it is read and audited.
        build.env("CARGO_PROFILE_DIST_OPT_LEVEL", "z");
        if profile == "dist" && triple == here() {
            flags.push("-Clink-arg=-Wl,--no-eh-frame-hdr".to_owned());
            flags.push(format!("-Clink-arg=-T{NO_UNWINDING}"));
            if own_relocations_may_be_packed() {
                flags.push("-Clink-arg=-Wl,-z,pack-relative-relocs".to_owned());
            }
        }
    }
    let flags = serde_json::to_string(&flags).context("flags of the compiler")?;
    must(
        build
            .args(["build", "--quiet", "--locked", "-p", program, "--bin", program, "--profile", profile])
            .args(["--target", triple, "--config", &format!("target.{triple}.rustflags={flags}")]),
    )?;
    let folder = if profile == "dev" { "debug" } else { profile };
    let built = target().join(triple).join(folder).join(program);
    let bytes = std::fs::read(&built).with_context(|| format!("reading {}", built.display()))?;
    if needs_loader(&bytes)? {
        bail!("{} is not static: it asks for a dynamic loader", built.display());
    }
    Ok(built)
}

/// Leaves out what a stack would be unwound by: a panic ends the program, and a stripped one has no names to list.
const NO_UNWINDING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/no-unwinding.ld");

/// Whether this machine's C library, which goes into the programs, applies relocations in their packed form.
///
/// A static program relocates itself: with one that ignores DT_RELR (glibc before 2.36) it would not come to `main`.
fn own_relocations_may_be_packed() -> bool {
    let asked = std::process::Command::new("getconf").arg("GNU_LIBC_VERSION").output();
    asked.is_ok_and(|told| packs_relocations(&String::from_utf8_lossy(&told.stdout)))
}

fn packs_relocations(version: &str) -> bool {
    let numbers = version.trim().strip_prefix("glibc ").and_then(|rest| rest.split_once('.'));
    let Some((Ok(major), Ok(minor))) = numbers.map(|(a, b)| (a.parse::<u32>(), b.parse::<u32>())) else {
        return false;
    };
    (major, minor) >= (2, 36)
}

/// Whether an ELF64 little-endian program has a PT_INTERP header (elf(5)).
fn needs_loader(elf: &[u8]) -> anyhow::Result<bool> {
    const PT_INTERP: u32 = 3;
    let half = |at: usize| elf.get(at..at + 2).and_then(|b| b.try_into().ok()).map(u16::from_le_bytes);
    let word = |at: usize| elf.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let long = |at: usize| elf.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    let headers = || {
        let (start, size, count) =
            (usize::try_from(long(32)?).ok()?, usize::from(half(54)?), usize::from(half(56)?));
        (0..count).map(|n| word(start + n * size)).collect::<Option<Vec<u32>>>()
    };
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        bail!("not a 64-bit ELF program");
    }
    Ok(headers().context("cut short")?.contains(&PT_INTERP))
}

/// Copies by temporary and rename: a program that runs must not be written to.
pub(crate) fn replace(from: &std::path::Path, to: &std::path::Path) -> anyhow::Result<()> {
    let new = to.with_extension("new");
    std::fs::copy(from, &new)
        .and_then(|_| std::fs::rename(&new, to))
        .with_context(|| format!("copying {} to {}", from.display(), to.display()))
}

/// Builds the program that plays the attacker inside containers.
pub(crate) fn probe() -> anyhow::Result<PathBuf> {
    for_the_lab("terok-probe")
}

/// Builds a program that is not shipped.
pub(crate) fn for_the_lab(program: &str) -> anyhow::Result<PathBuf> {
    static_program(program, &format!("{}-unknown-linux-gnu", std::env::consts::ARCH), "release")
}

#[cfg(test)]
mod tests {
    use super::{needs_loader, packs_relocations};

    #[test]
    fn a_dynamic_program_is_told_from_a_static_one() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        assert!(needs_loader(&own).unwrap(), "test programs are dynamic");
        assert!(needs_loader(b"#!/bin/sh").is_err());
    }

    #[test]
    fn relocations_are_packed_where_the_c_library_reads_them() {
        for (version, packed) in [
            ("glibc 2.35\n", false),
            ("glibc 2.36\n", true),
            ("glibc 2.41\n", true),
            ("glibc 3.0\n", true),
            ("", false),
            ("musl 2.40\n", false),
        ] {
            assert_eq!(packs_relocations(version), packed, "{version:?}");
        }
    }
}
