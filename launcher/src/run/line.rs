//! The command line of `terok run`: every option of the table, and what its help says of them.

use super::options::{ADDABLE_CAPABILITIES, Does, KEPT_CAPABILITIES, OPTIONS, Opt};
use super::{PINNED, SEALED};
use clap::builder::OsStringValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command};

/// The raw arguments of `terok run`, described by the option table.
#[derive(Debug, Clone)]
pub(crate) struct RunArgs(pub(super) ArgMatches);

impl clap::Args for RunArgs {
    fn augment_args(command: Command) -> Command {
        let names = |passes: fn(&Does) -> bool| {
            let of = OPTIONS.iter().filter(|option| passes(&option.does));
            of.map(|option| format!("--{}", option.long)).collect::<Vec<_>>().join(" ")
        };
        let passing = names(|does| matches!(does, Does::Pass | Does::Check(_) | Does::Capability));
        let with_card = names(|does| matches!(does, Does::Card(_)));
        let refused = names(|does| matches!(does, Does::Refuse(_)));
        let kept = KEPT_CAPABILITIES.join(", ");
        let mut command = command
            .disable_help_flag(true)
            .args_override_self(false)
            .arg(Arg::new("help").long("help").action(ArgAction::HelpLong).help("Print help"))
            .after_long_help(format!(
                "Podman options that pass, some of them only with values that keep the protection:\n{passing}\n\n\
                 Those that pass where --network gives the container a network card:\n{with_card}\n\n\
                 Refused, each with its reason:\n{refused}\n\n\
                 Every container is started with {}, with {SEALED} where neither --network nor --pod is given, and keeps the \
                 capabilities {kept}, with --publish also NET_BIND_SERVICE. --cap-drop takes these away; --cap-add adds {}; NET_RAW only without a network card.",
                PINNED.join(" "),
                ADDABLE_CAPABILITIES.join(", ")
            ));
        for option in OPTIONS {
            command = command.arg(option.arg());
        }
        command.arg(
            Arg::new("IMAGE")
                .value_names(["IMAGE", "COMMAND"])
                .num_args(1..)
                .required(true)
                .trailing_var_arg(true)
                .value_parser(OsStringValueParser::new())
                .help("The image, then the command and its arguments"),
        )
    }
    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for RunArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(RunArgs(matches.clone()))
    }
    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0 = matches.clone();
        Ok(())
    }
}

impl Opt {
    fn arg(&self) -> Arg {
        let mut arg = Arg::new(self.long).long(self.long).hide(self.help.is_empty()).help(self.help);
        if let Some(short) = self.short {
            arg = arg.short(short);
        }
        arg = match (self.does, self.value) {
            (Does::Terok, None) => arg.action(ArgAction::SetTrue),
            (Does::Terok | Does::Publish, Some(name)) => arg.action(ArgAction::Append).value_name(name),
            // Podman's switches take `--rm=false`, never `--rm false`.
            (_, None) => arg
                .action(ArgAction::Append)
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true"),
            (_, Some(name)) => arg.action(ArgAction::Append).value_name(name).allow_hyphen_values(true),
        };
        if matches!(self.does, Does::Pass | Does::Card(_)) {
            arg.value_parser(OsStringValueParser::new())
        } else {
            arg
        }
    }
}
