//! Landlock: which files this process may still touch, no TCP port to bind, no signal or abstract socket to the outside.

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    RestrictionStatus, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// What stays allowed.
#[derive(Debug, Default)]
pub struct Allowed<'a> {
    /// Files and folders to read; one that does not exist is left out.
    pub read: Vec<PathBuf>,
    /// Folders to read in.
    pub look: Vec<std::os::fd::BorrowedFd<'a>>,
    /// Folders to read and write in.
    pub write: Vec<std::os::fd::BorrowedFd<'a>>,
    /// Folders from which empty folders may be removed.
    pub remove: Vec<std::os::fd::BorrowedFd<'a>>,
    /// Programs to execute.
    pub execute: Vec<std::os::fd::BorrowedFd<'a>>,
}

/// How much of it the kernel enforces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Enforced {
    /// All that was asked for, with this ABI of the kernel.
    Full(i32),
    /// Files and some of the rest; the kernel is older.
    Partial(i32),
    /// Nothing: not built in or switched off.
    No(String),
}

/// Restricts the calling thread and what it starts. Before other threads exist, or they stay free.
pub fn restrict(allowed: &Allowed<'_>) -> Enforced {
    match apply(allowed) {
        Ok(status) => {
            let abi = kernel_abi();
            match status.ruleset {
                RulesetStatus::FullyEnforced => Enforced::Full(abi),
                RulesetStatus::PartiallyEnforced => Enforced::Partial(abi),
                RulesetStatus::NotEnforced => {
                    Enforced::No("not in this kernel, or switched off at boot".into())
                }
            }
        }
        Err(error) => Enforced::No(error.to_string()),
    }
}

fn apply(allowed: &Allowed<'_>) -> Result<RestrictionStatus, RulesetError> {
    // Every right of the newest ABI this crate was written for is taken away; the kernel knows its part of them.
    let abi = ABI::V6;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = read
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeSock
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::AbstractUnixSocket)?
        .scope(Scope::Signal)?
        .create()?;
    for path in &allowed.read {
        let Ok(file) = PathFd::new(path) else { continue };
        rules = rules.add_rule(PathBeneath::new(file, readable(path, read)))?;
    }
    for folder in &allowed.look {
        rules = rules.add_rule(PathBeneath::new(folder.as_fd(), read))?;
    }
    for folder in &allowed.write {
        rules = rules.add_rule(PathBeneath::new(folder.as_fd(), write))?;
    }
    for folder in &allowed.remove {
        rules = rules.add_rule(PathBeneath::new(folder.as_fd(), AccessFs::ReadDir | AccessFs::RemoveDir))?;
    }
    for program in &allowed.execute {
        rules = rules.add_rule(PathBeneath::new(program.as_fd(), AccessFs::Execute | AccessFs::ReadFile))?;
    }
    rules.restrict_self()
}

/// A right on folders makes no sense on a file, and the kernel refuses it there.
fn readable(path: &Path, read: BitFlags<AccessFs>) -> BitFlags<AccessFs> {
    if path.is_dir() { read } else { AccessFs::ReadFile.into() }
}

fn kernel_abi() -> i32 {
    // linux/landlock.h: LANDLOCK_CREATE_RULESET_VERSION
    const VERSION: u32 = 1;
    // SAFETY: with this flag the call takes no attributes and returns a number.
    #[allow(unsafe_code, reason = "the crate does not tell the kernel's version")]
    let abi =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0usize, VERSION) };
    abi as i32
}
