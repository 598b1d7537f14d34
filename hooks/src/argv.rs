//! The command line: one word for the stage and, in a user's installation, whose home it is.

use std::ffi::OsString;
use std::path::PathBuf;

/// A stage of a container's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Podman asks for edits of `config.json`.
    Precreate,
    /// createRuntime: namespaces exist, nothing of the container runs.
    Create,
    /// poststop.
    Stop,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The stage.
    pub stage: Stage,
    /// `--home`: the home directory that `terok setup` pinned.
    pub home: Option<PathBuf>,
    /// `--all`: containers without annotations are protected as well.
    pub all: bool,
}

/// A command line that is not one of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}; usage: terok-hook precreate|create|stop [--home=DIR] [--all]")]
pub struct Usage(String);

impl Request {
    /// Reads the arguments behind the program's name.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, Usage> {
        let mut stage = None;
        let mut home = None;
        let mut all = false;
        for argument in arguments {
            let text = argument.to_str().ok_or_else(|| Usage(format!("{argument:?} is not UTF-8")))?;
            match (text, text.strip_prefix("--home=")) {
                (_, Some(folder)) if folder.starts_with('/') && home.is_none() => home = Some(folder.into()),
                (_, Some(folder)) => {
                    return Err(Usage(format!("--home={folder:?} is not one absolute path")));
                }
                ("--all", _) if !all => all = true,
                ("precreate", _) if stage.is_none() => stage = Some(Stage::Precreate),
                ("create", _) if stage.is_none() => stage = Some(Stage::Create),
                ("stop", _) if stage.is_none() => stage = Some(Stage::Stop),
                _ => return Err(Usage(format!("unexpected argument {text:?}"))),
            }
        }
        let stage = stage.ok_or_else(|| Usage("no stage given".into()))?;
        Ok(Request { stage, home, all })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Request, Usage> {
        Request::parse(arguments.iter().map(OsString::from))
    }

    #[test]
    fn a_stage_and_a_home_are_understood() {
        let request = parse(&["create", "--home=/home/x", "--all"]).unwrap();
        assert_eq!(request, Request { stage: Stage::Create, home: Some("/home/x".into()), all: true });
        assert_eq!(parse(&["stop"]).unwrap(), Request { stage: Stage::Stop, home: None, all: false });
    }

    #[test]
    fn anything_else_is_a_usage_error() {
        for wrong in
            [&[] as &[&str], &["create", "stop"], &["--home=/x"], &["create", "--home=x"], &["poststart"]]
        {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
