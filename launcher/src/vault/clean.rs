//! `terok vault clean`: credential files that were left in folders which containers share (V7). Looks by descriptor and follows no link; a file
//! that holds only phantom tokens is no leak; what could not be looked at is said with the reason and never counts as clean.

mod known;
mod secrets;

use crate::{cli::Json, providers, show};
use anyhow::Context as _;
use known::{Known, Remedy};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use terok_install::host::Host;
use terok_kernel::tree::{Folder, Found, Kind};
use terok_policy::provider::{Definition, Token};

/// A credential file is smaller; one that is not is unchecked.
const LARGEST: u64 = 1 << 20;
/// Folders within folders; each costs a descriptor.
const DEEPEST: usize = 200;
/// Exit code where nothing leaks as far as could be seen, but not all could be.
const UNCHECKED: u8 = 2;

/// `terok vault clean`
#[derive(Debug, clap::Args)]
pub(crate) struct CleanArgs {
    /// Folders, such as those that are mounted into containers
    #[arg(required = true, value_name = "DIR")]
    folders: Vec<PathBuf>,
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Remove without asking
    #[arg(long, conflicts_with = "dry_run")]
    yes: bool,
    #[command(flatten)]
    json: Json,
}

/// Looks, shows, asks, removes. Exit code 0: clean; 1: credentials are left; 2: none found, but something could not be checked.
pub(crate) fn clean(host: &Host, args: &CleanArgs) -> anyhow::Result<ExitCode> {
    let mut search = Search::new(&providers::definitions(host)?);
    for folder in &args.folders {
        search.named(folder);
    }
    let mut report = search.found;
    if !args.json.json {
        for leak in &report.leaks {
            say!("{}       {}  {}", show::toned(show::Tone::Bad, "leak"), path(&leak.path), leak.what())?;
        }
        for unchecked in &report.unchecked {
            let mark = show::toned(show::Tone::Notice, "unchecked");
            say!("{mark}  {}  {}", path(&unchecked.path), unchecked.reason)?;
        }
    }
    let removable = report.leaks.iter().filter(|leak| leak.remedy == Remedy::Remove).count();
    if removable > 0 && !args.dry_run && (args.yes || agreed(removable)?) {
        for leak in &mut report.leaks {
            leak.remove();
        }
    }
    let left = report.leaks.iter().filter(|leak| !leak.removed).count();
    if args.json.json {
        say!("{}", report.json())?;
    } else {
        report.tell(left, args.dry_run)?;
    }
    Ok(match (left, report.unchecked.is_empty()) {
        (0, true) => ExitCode::SUCCESS,
        (0, false) => ExitCode::from(UNCHECKED),
        _ => ExitCode::FAILURE,
    })
}

fn agreed(count: usize) -> anyhow::Result<bool> {
    super::prompt::confirm(&format!("remove {count} of them?"))
        .context("nothing was removed: give --yes to remove without asking, or --dry-run")
}

fn path(path: &Path) -> String {
    show::printable(&path.display().to_string())
}

/// What was found.
#[derive(Debug, Default)]
struct Report {
    leaks: Vec<Leak>,
    unchecked: Vec<Unchecked>,
    /// Files of a known name that hold no secret, or phantom tokens only.
    harmless: usize,
}

#[derive(Debug)]
struct Leak {
    path: PathBuf,
    secrets: usize,
    remedy: Remedy,
    folder: Rc<Folder>,
    found: Found,
    removed: bool,
    failed: Option<String>,
}

#[derive(Debug)]
struct Unchecked {
    path: PathBuf,
    reason: String,
}

impl Leak {
    fn what(&self) -> String {
        let what = match self.secrets {
            1 => "a credential".to_owned(),
            n => format!("{n} credentials"),
        };
        match self.remedy {
            Remedy::Remove => what,
            Remedy::Edit => format!("{what}, among other things: take them out by hand"),
        }
    }

    fn remove(&mut self) {
        if self.remedy == Remedy::Edit {
            return;
        }
        match self.folder.remove(&self.found) {
            Ok(()) => self.removed = true,
            Err(error) => self.failed = Some(error.to_string()),
        }
    }
}

impl Report {
    fn tell(&self, left: usize, dry_run: bool) -> anyhow::Result<()> {
        for leak in self.leaks.iter().filter(|leak| leak.removed) {
            let more = match leak.found.links {
                0 | 1 => "",
                _ => "; it has other names (hard links), and is there still",
            };
            say!("removed    {}{more}", path(&leak.path))?;
        }
        for leak in &self.leaks {
            if let Some(reason) = &leak.failed {
                eprintln!("terok: not removed: {}", show::printable(reason));
            }
        }
        let unchecked = match self.unchecked.len() {
            0 => String::new(),
            n => format!(", {n} unchecked"),
        };
        match left {
            0 if self.leaks.is_empty() => say!("no credentials were found{unchecked}")?,
            0 => say!("no credentials are left{unchecked}")?,
            n => say!(
                "{n} file{} with credentials{unchecked}{}",
                if n == 1 { "" } else { "s" },
                if dry_run { "; nothing was removed" } else { "" }
            )?,
        }
        if !self.leaks.is_empty() {
            say!("whoever could read them may have copied them: renew them where they were issued")?;
        }
        Ok(())
    }

    fn json(&self) -> serde_json::Value {
        let leaks: Vec<_> = self
            .leaks
            .iter()
            .map(|leak| {
                serde_json::json!({
                    "path": leak.path.to_string_lossy(), "credentials": leak.secrets, "removed": leak.removed,
                    "remedy": match leak.remedy { Remedy::Remove => "remove", Remedy::Edit => "edit" },
                })
            })
            .collect();
        let unchecked: Vec<_> = self
            .unchecked
            .iter()
            .map(|unchecked| {
                serde_json::json!({"path": unchecked.path.to_string_lossy(), "reason": unchecked.reason})
            })
            .collect();
        serde_json::json!({"leaks": leaks, "unchecked": unchecked, "harmless": self.harmless})
    }
}

struct Search {
    known: Vec<Known>,
    shapes: Vec<Token>,
    beginnings: secrets::Beginnings,
    found: Report,
}

impl Search {
    fn new(definitions: &[(String, Definition)]) -> Self {
        let files = definitions.iter().filter_map(|(_, definition)| match definition {
            Definition::Provider(provider) => Some(provider.files.iter()),
            Definition::Template(_) => None,
        });
        let shapes: Vec<Token> =
            definitions.iter().map(|(_, definition)| definition.token().clone()).collect();
        let beginnings = secrets::Beginnings::new(&shapes);
        Search { known: known::known(files.flatten()), shapes, beginnings, found: Report::default() }
    }

    fn named(&mut self, path: &Path) {
        use nix::errno::Errno;
        match Folder::open(path) {
            Ok(folder) => {
                // For the names above it, which tell that `credentials` in a folder `.aws` is one.
                let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
                self.folder(Rc::new(folder), path, &whole, 0);
            }
            Err(error) if matches!(error.errno(), Some(Errno::ENOTDIR | Errno::ELOOP)) => {
                let reason = if path.is_symlink() {
                    "a symbolic link, which is not followed: name the folder it leads to"
                } else {
                    "not a folder: name the folder it is in"
                };
                self.unchecked(path.to_owned(), reason.to_owned());
            }
            Err(error) => self.unchecked(path.to_owned(), reason(&error)),
        }
    }

    /// `shown` is the folder as the person named it, `whole` its absolute path.
    fn folder(&mut self, folder: Rc<Folder>, shown: &Path, whole: &Path, depth: usize) {
        let list = match folder.list() {
            Ok(list) => list,
            Err(error) => return self.unchecked(shown.to_owned(), reason(&error)),
        };
        for found in list {
            let (shown, whole) = (shown.join(&found.name), whole.join(&found.name));
            match found.kind {
                Kind::Folder if depth >= DEEPEST => {
                    self.unchecked(
                        shown,
                        format!("more than {DEEPEST} folders deep: name it to look into it"),
                    );
                }
                Kind::Folder => match folder.folder(&found) {
                    Ok(inner) => self.folder(Rc::new(inner), &shown, &whole, depth + 1),
                    Err(error) => self.unchecked(shown, reason(&error)),
                },
                Kind::Link => {
                    let segments = segments(&whole);
                    if self.known.iter().any(|known| known.is(&segments) || known.is_below(&segments)) {
                        self.unchecked(shown, "a symbolic link, which is not followed".to_owned());
                    }
                }
                Kind::Special if self.known_as(&whole).is_some() => {
                    self.unchecked(shown, "a device, socket or pipe, which is not opened".to_owned());
                }
                Kind::Special => {}
                Kind::File => {
                    if let Some(known) = self.known_as(&whole) {
                        self.file(&folder, found, shown, &known);
                    }
                }
            }
        }
    }

    fn file(&mut self, folder: &Rc<Folder>, found: Found, shown: PathBuf, known: &Known) {
        if found.size > LARGEST && known.form != secrets::Form::Opaque {
            return self.unchecked(shown, "larger than 1 MiB".to_owned());
        }
        let content = match known.form {
            // Not for us to read: a database of megabytes is one as well.
            secrets::Form::Opaque => Ok(vec![b'x'; usize::from(found.size > 0)]),
            _ => folder.read(&found, LARGEST),
        };
        let content = match content {
            Ok(content) => zeroize::Zeroizing::new(content),
            Err(error) => return self.unchecked(shown, reason(&error)),
        };
        let secrets = match secrets::secrets(known.form, &content, &self.beginnings) {
            Ok(secrets) => zeroize::Zeroizing::new(secrets),
            Err(reason) => return self.unchecked(shown, reason.to_owned()),
        };
        let real = secrets.iter().filter(|secret| !secrets::is_phantom(secret, &self.shapes)).count();
        if real == 0 {
            self.found.harmless += 1;
            return;
        }
        let (folder, remedy) = (folder.clone(), known.remedy);
        self.found.leaks.push(Leak {
            path: shown,
            secrets: real,
            remedy,
            folder,
            found,
            removed: false,
            failed: None,
        });
    }

    fn known_as(&self, whole: &Path) -> Option<Known> {
        let segments = segments(whole);
        self.known.iter().find(|known| known.is(&segments)).cloned()
    }

    fn unchecked(&mut self, path: PathBuf, reason: String) {
        self.found.unchecked.push(Unchecked { path, reason });
    }
}

fn segments(path: &Path) -> Vec<&[u8]> {
    path.iter().map(OsStr::as_bytes).collect()
}

/// Why something could not be looked at, in words.
fn reason(error: &terok_kernel::Error) -> String {
    use nix::errno::Errno;
    match error.errno() {
        Some(Errno::EXDEV) => "another file system is mounted there: name it to look into it".to_owned(),
        Some(Errno::EACCES | Errno::EPERM) => "may not be read".to_owned(),
        Some(Errno::EFBIG) => "larger than 1 MiB".to_owned(),
        Some(Errno::ELOOP | Errno::ENOTDIR) => "became a symbolic link while it was looked at".to_owned(),
        Some(errno) => errno.desc().to_owned(),
        None => "became something else while it was looked at".to_owned(),
    }
}

#[cfg(test)]
mod tests;
