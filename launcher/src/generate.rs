//! Man pages and shell completions, from the same tables that the programs read.

use crate::cli::Cli;
use anyhow::Context as _;
use clap::CommandFactory;
use clap_complete::{Shell, generate_to};
use std::fmt::Write as _;
use std::path::Path;
use terok_policy::{annotation, layout};

/// Writes `man/`, `completions/` and `systemd/` below `folder`.
pub(crate) fn generate(folder: &Path) -> anyhow::Result<()> {
    let man = folder.join("man");
    let completions = folder.join("completions");
    for folder in [&man, &completions] {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    pages(&man, &Cli::command().disable_help_subcommand(true), "terok")?;
    for (name, section, text) in [
        ("terok-annotations", 7, annotations()),
        (layout::HOOK, 8, hook()),
        (layout::SUPERVISOR, 8, supervisor()),
    ] {
        std::fs::write(man.join(format!("{name}.{section}")), text)?;
    }
    let units = folder.join("systemd");
    std::fs::create_dir_all(&units).with_context(|| units.display().to_string())?;
    let launcher = std::env::current_exe().context("/proc/self/exe")?;
    let unit = terok_install::VAULT_UNIT.replace("@TEROK@", &launcher.display().to_string());
    std::fs::write(units.join("terok-vault.service"), unit)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut Cli::command(), "terok", &completions)?;
    }
    Ok(())
}

/// The page of `command` and of every verb below it.
fn pages(folder: &Path, command: &clap::Command, name: &str) -> anyhow::Result<()> {
    let mut built = command.clone().disable_help_subcommand(true).bin_name(name.replace('-', " "));
    built.build();
    let man = clap_mangen::Man::new(built.name(name.to_owned()))
        .title(name.to_uppercase())
        .source(concat!("terok ", env!("CARGO_PKG_VERSION")));
    let mut text = Vec::new();
    man.render(&mut text)?;
    if name == "terok" {
        text.extend_from_slice(overview().as_bytes());
    } else {
        text.extend_from_slice(b".SH SEE ALSO\n\\fBterok\\fR(1), \\fBterok-annotations\\fR(7)\n");
    }
    std::fs::write(folder.join(format!("{name}.1")), text)?;
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        pages(folder, verb, &format!("{name}-{}", verb.get_name()))?;
    }
    Ok(())
}

/// What `terok(1)` says beyond the command line.
fn overview() -> String {
    let mut text = ".SH EXAMPLES\n".to_owned();
    for (what, line) in [
        ("Install for yourself, and prove that it works:", "terok setup && terok doctor"),
        (
            "A shell that reaches one host over TLS:",
            "terok run --rm -it --allow api.example.com:443 python:3.12 bash",
        ),
        (
            "The same with plain podman:",
            "podman run --network none --annotation terok.shield.allow=api.example.com:443 IMAGE",
        ),
        (
            "Would this be reached?",
            "terok explain terok.shield.allow=api.example.com --ask api.example.com:443",
        ),
        ("What is done to a container's configuration?", "terok explain --config BUNDLE/config.json"),
        ("What was refused:", "terok audit NAME --refused"),
        ("Behind the same rules, with a network card:", "terok run --network bridge --allow db:5432 IMAGE"),
        (
            "Be asked about what no rule speaks of:",
            "terok run --hold 30s IMAGE, and in another terminal: terok watch --ask",
        ),
        ("A profile of what a container reached:", "terok profile learn NAME"),
        ("A key that stays on the host:", "terok vault add anthropic && terok run --vault anthropic IMAGE"),
        ("Stop everything:", "terok panic"),
    ] {
        // Writing to a String does not fail.
        let _ = write!(text, ".TP\n{}\n.B {}\n", escaped(what), escaped(line));
    }
    text += ".SH EXIT STATUS\n0 done, 1 refused or failed, 64 usage; \\fBterok run\\fR: that of \\fBpodman run\\fR once it is started.\n.SH FILES\n";
    for (place, what) in [
        ("~/.config/terok/profiles/NAME.txt", "your own profiles"),
        ("/etc/terok/profiles/NAME.txt", "those of the machine"),
        (
            "~/.config/terok/config.toml, /etc/terok/config.toml",
            "settings of the user, which stand over those of the machine: upstream_proxy (http:// or socks5://), no_proxy (a list of rules' \
             targets), [all_containers], the annotations of every container after terok setup --all-containers, and, in the user's own file alone, \
             [vault] passphrase_command, a list of a program and its arguments whose output unlocks the vault",
        ),
        ("~/.local/share/terok/vault, /var/lib/terok.vault", "the vault"),
        (
            "~/.config/terok/providers/NAME.toml, /etc/terok/providers/NAME.toml",
            "your own providers, and those of the machine",
        ),
        (
            "~/.local/state/terok/.panic, /var/lib/terok.panic",
            "while it is there no protected container starts: terok panic",
        ),
        (
            "~/.local/state/terok/ID, /var/lib/terok/ID",
            "audit log, operator state and messages of a container",
        ),
        ("/run/user/UID/terok/ID, /run/terok/ID", "control socket of a running container"),
    ] {
        let _ = write!(text, ".TP\n\\fI{}\\fR\n{what}\n", escaped(place));
    }
    text += ".SH ENVIRONMENT\n.TP\n\\fBTEROK_PODMAN\\fR\nabsolute path of the podman to start, instead of the first of ";
    text += &terok_install::podman::PLACES.join(", ");
    text += "\n.TP\n\\fBNO_COLOR\\fR\nno colour on a terminal either\n.TP\n\\fBCREDENTIALS_DIRECTORY\\fR\nset by systemd: its credential terok-vault unlocks the vault\n";
    text + ".SH SEE ALSO\n\\fBterok-annotations\\fR(7), \\fBpodman-run\\fR(1), \\fBterok-hook\\fR(8), \\fBterok-supervisor\\fR(8)\n"
}

/// `terok-annotations(7)`, from the annotation table.
fn annotations() -> String {
    let mut text =
        head("TEROK-ANNOTATIONS", 7, "terok-annotations", "what a container may reach, as OCI annotations");
    text += ".SH DESCRIPTION\nA container with any annotation below \\fBterok.\\fR is protected: default deny, and a supervisor of its own. \
             Lists are separated by spaces or commas. An unknown key or a bad value refuses the start.\n.SH KEYS\n";
    for key in annotation::KEYS {
        // Writing to a String does not fail.
        let _ = write!(
            text,
            ".TP\n\\fB{}\\fR=\\fI{}\\fR\n{}\nDefault: {}.\nExample:\n.B {}={}\n",
            escaped(key.key),
            escaped(key.value),
            escaped(key.help),
            escaped(key.default),
            escaped(key.key),
            escaped(key.example)
        );
    }
    text + ".SH RULES\n\\fItarget\\fR[:\\fIports\\fR][/\\fIproto\\fR], where the target is a name, *.name, an address, a CIDR block, host or any. \
            An allowed name without ports means 443 and 80, everything else every port; so a denied name without ports is closed whole. Deny beats allow. \
            An address without ports does not mean port 853: DNS over TLS needs a rule that names it. \\fB/udp\\fR and \\fBdirect\\fR, the name's real addresses \
            without the proxy, need a network card; a name that has such a rule cannot be proxied as well. A name of one label, or below dns.podman, \
            is that of another container on the same network.\n\
            .SH SEE ALSO\n\\fBterok\\fR(1), \\fBterok-explain\\fR(1), \\fBterok-profile\\fR(1)\n"
}

fn hook() -> String {
    head("TEROK-HOOK", 8, layout::HOOK, "puts a container behind its firewall before anything in it runs")
        + ".SH SYNOPSIS\n\\fBterok-hook\\fR \\fBprecreate\\fR|\\fBcreate\\fR|\\fBstop\\fR [\\fB\\-\\-home=\\fIFOLDER\\fR] [\\fB\\-\\-all\\fR]\n\
           .SH DESCRIPTION\nRun by podman and the OCI runtime, as the hook files say that \\fBterok setup\\fR writes; not by hand. \
           \\fBprecreate\\fR reads config.json on standard input and writes the amended one, \\fBcreate\\fR makes the listeners and the \
           nftables table in the container's network namespace and starts its supervisor, \\fBstop\\fR clears up. \
           Any error stops the start of the container. With \\fB\\-\\-all\\fR it is run for every container: one without annotations gets those of \
           \\fI[all_containers]\\fR in the settings, and annotations may only tighten them.\n\
           .SH EXIT STATUS\n0 done, 1 refused, 2 the host cannot, 64 usage.\n\
           .SH SEE ALSO\n\\fBterok\\fR(1), \\fBterok-annotations\\fR(7), \\fBterok-supervisor\\fR(8)\n"
}

fn supervisor() -> String {
    head(
        "TEROK-SUPERVISOR",
        8,
        layout::SUPERVISOR,
        "serves one container: name filter, proxy, audit log, control",
    ) + ".SH DESCRIPTION\nStarted by \\fBterok-hook create\\fR, ends with its container; not run by hand. A small parent keeps the sockets \
           and restarts the worker. It answers Varlink (\\fBio.terok.Supervisor\\fR) on \\fIcontrol.sock\\fR in the container's runtime folder.\n\
           .SH FILES\n.TP\n\\fI/run/user/UID/terok/ID\\fR, \\fI/run/terok/ID\\fR\nruntime folder of a container\n\
           .TP\n\\fI~/.local/state/terok/ID\\fR, \\fI/var/lib/terok/ID\\fR\nits audit log, operator state and messages\n\
           .SH SEE ALSO\n\\fBterok\\fR(1), \\fBterok-audit\\fR(1), \\fBterok-hook\\fR(8)\n"
}

fn head(title: &str, section: u8, name: &str, what: &str) -> String {
    format!(".TH {title} {section}\n.SH NAME\n{} \\- {what}\n", escaped(name))
}

/// roff(7): backslashes and hyphens, and no dot or quote at the start of a line.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('\n', " ");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_and_every_annotation_has_its_page() {
        let folder = tempfile::tempdir().unwrap();
        generate(folder.path()).unwrap();
        let page = |name: &str| std::fs::read_to_string(folder.path().join("man").join(name)).unwrap();
        assert!(page("terok.1").contains("terok"));
        assert!(page("terok.1").contains("EXIT STATUS") && !page("terok.1").contains("terok\\-help"));
        assert!(page("terok-audit.1").contains(concat!("terok ", env!("CARGO_PKG_VERSION"))));
        for verb in ["run", "audit", "doctor", "explain", "profile-show"] {
            assert!(!page(&format!("terok-{verb}.1")).is_empty());
        }
        assert!(page("terok-run.1").contains("\\-\\-allow"));
        for key in annotation::KEYS {
            assert!(page("terok-annotations.7").contains(key.key), "{}", key.key);
        }
        for shell in ["terok.bash", "_terok", "terok.fish"] {
            let text = std::fs::read_to_string(folder.path().join("completions").join(shell)).unwrap();
            assert!(text.contains("audit"), "{shell}");
        }
    }
}
