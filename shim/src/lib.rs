//! `terok-shim`: stands where an engine looks for its OCI runtime. Every command line goes to the real runtime as it came; before
//! `create` and `run` the bundle's configuration is amended as the `precreate` hook would, and given our hooks; before `exec` the
//! process's. Nothing of a bundle's root file system is run, and no program is looked up in `PATH`.

#![forbid(unsafe_code)]

pub mod argv;
mod replace;
mod report;
mod settings;

use argv::{Call, Command, Style};
use settings::Settings;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use terok_hook::argv::{Request, Stage};
use terok_hook::shim::{self, Given, Refused};
use terok_hook::state;
use terok_kernel::exec::Inherited;

/// Why the real runtime is not reached.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("{0}")]
    Refused(Refused),
    #[error(transparent)]
    Settings(#[from] settings::SettingsError),
    #[error(transparent)]
    Kernel(#[from] terok_kernel::Error),
    #[error("{path}: {reason}")]
    Input { path: String, reason: String },
    #[error(
        "a protected container's configuration is config.json in its bundle: --config {0} is not amended; leave it out"
    )]
    OtherConfig(String),
    #[error(
        "a protected container cannot be restored from a checkpoint: its sockets and rules are not in it; start it anew"
    )]
    Restore,
    #[error(
        "{0} (youki 0.7) misreads the filter of system calls of a protected container, and leaves it out of further processes; take crun or runc"
    )]
    Misread(String),
}

impl Refusal {
    fn exit_code(&self) -> u8 {
        match self {
            Refusal::Refused(refused) => refused.exit_code(),
            Refusal::OtherConfig(_) | Refusal::Restore | Refusal::Misread(_) => 1,
            _ => 2,
        }
    }
}

/// Does what is to be done before the real runtime sees the command line, and becomes it.
pub fn run() -> ExitCode {
    let inherited = Inherited::set_aside();
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    // Without settings no runtime is known, and with it how its command line reads: where to say so is guessed.
    let settings = Settings::read(arguments.first());
    let style = settings.as_ref().map_or(Style::Go, |settings| Style::of(&settings.runtime));
    let call = Call::parse(arguments.get(1..).unwrap_or_default(), style);
    let refusal = match settings.map_err(Refusal::from).and_then(|settings| {
        before(&call, &settings)?;
        Ok(settings)
    }) {
        Ok(settings) => {
            match arguments.first_mut() {
                Some(own) => *own = settings.runtime.clone().into(),
                None => arguments.push(settings.runtime.clone().into()),
            }
            Refusal::Kernel(inherited.become_program(&settings.runtime, &arguments))
        }
        Err(refusal) => refusal,
    };
    report::say(&refusal.to_string(), &call);
    ExitCode::from(refusal.exit_code())
}

fn before(call: &Call, settings: &Settings) -> Result<(), Refusal> {
    match &call.command {
        Command::Create { id, bundle, config } => create(id, bundle, config.as_deref(), settings),
        Command::Restore { id, bundle } => restore(id, bundle, settings),
        Command::Exec { id, process, given } => exec(id, process.as_deref(), given, settings),
        Command::Other => Ok(()),
    }
}

fn create(id: &str, bundle: &Path, config: Option<&Path>, settings: &Settings) -> Result<(), Refusal> {
    let bundle = absolute(bundle)?;
    let path = bundle.join("config.json");
    // crun reads another file from where it was started, but one of this name from the bundle.
    if let Some(other) = config.filter(|other| *other != Path::new("config.json"))
        && absolute(other)? != path
        && (is_ours(&absolute(other)?, settings)? || is_ours(&path, settings)?)
    {
        return Err(Refusal::OtherConfig(other.display().to_string()));
    }
    let Some(config) = read(&path)? else { return Ok(()) };
    let request = request(settings);
    let folder = terok_kernel::program::own_folder()?;
    match shim::bundle(&request, id, &bundle, &config, &folder).map_err(Refusal::Refused)? {
        Some(_) if Style::of(&settings.runtime) == Style::Clap => {
            Err(Refusal::Misread(settings.runtime.display().to_string()))
        }
        Some(amended) => replace::file(&path, &amended).map_err(|error| input(&path, error)),
        None => Ok(()),
    }
}

fn restore(id: &str, bundle: &Path, settings: &Settings) -> Result<(), Refusal> {
    let bundle = absolute(bundle)?;
    let Some(config) = read(&bundle.join("config.json"))? else { return Ok(()) };
    match shim::is_wanted(&request(settings), id, &bundle, &config).map_err(Refusal::Refused)? {
        true => Err(Refusal::Restore),
        false => Ok(()),
    }
}

/// A process that is described on the command line gets its rights from the configuration, which is amended already, and from there.
fn exec(id: &str, process: Option<&Path>, given: &Given, settings: &Settings) -> Result<(), Refusal> {
    let Some(process) = process else {
        return shim::described(&request(settings), id, given).map_err(Refusal::Refused);
    };
    let path = absolute(process)?;
    let Some(process) = read(&path)? else { return Ok(()) };
    match shim::process(&request(settings), id, &process).map_err(Refusal::Refused)? {
        Some(amended) => replace::file(&path, &amended).map_err(|error| input(&path, error)),
        None => Ok(()),
    }
}

fn request(settings: &Settings) -> Request {
    Request { stage: Stage::Precreate, home: settings.home.clone(), all: settings.all }
}

/// Whether the container of this configuration is to be protected.
fn is_ours(config: &Path, settings: &Settings) -> Result<bool, Refusal> {
    let Some(json) = read(config)? else { return Ok(false) };
    let (_, annotations) = state::parse_config(&json).map_err(|error| input(config, error))?;
    Ok(settings.all || !state::ours(&annotations).is_empty())
}

/// The file's content; `None` where there is none, which the runtime will say in its own words.
fn read(path: &Path) -> Result<Option<Vec<u8>>, Refusal> {
    match std::fs::File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(input(path, error)),
        Ok(file) => state::read_config(file).map(Some).map_err(|error| input(path, error)),
    }
}

fn absolute(path: &Path) -> Result<PathBuf, Refusal> {
    std::path::absolute(path).map_err(|error| input(path, error))
}

fn input(path: &Path, reason: impl ToString) -> Refusal {
    Refusal::Input { path: path.display().to_string(), reason: reason.to_string() }
}
