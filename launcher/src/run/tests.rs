use super::*;
use clap::Command;

fn command(line: &[&str]) -> Result<String, String> {
    let command = <RunArgs as clap::Args>::augment_args(Command::new("terok run").no_binary_name(true));
    let matches = command.try_get_matches_from(line).map_err(|error| error.to_string())?;
    let start = assemble(&matches, &Doors::tests(), &[]).map_err(|error| error.to_string())?;
    Ok(quoted(start.arguments.iter().map(OsString::as_os_str)))
}

const SAFE: &str =
    "--network=none --security-opt=no-new-privileges --http-proxy=false --sdnotify=conmon --cap-drop=all";
const CARD: &str = "--security-opt=no-new-privileges --http-proxy=false --sdnotify=conmon --cap-drop=all";
const CAPS: &str = "--cap-add=CHOWN --cap-add=DAC_OVERRIDE --cap-add=FOWNER --cap-add=FSETID --cap-add=KILL --cap-add=SETGID --cap-add=SETUID";

const BIND: &str = "--cap-add=CHOWN --cap-add=DAC_OVERRIDE --cap-add=FOWNER --cap-add=FSETID --cap-add=KILL --cap-add=NET_BIND_SERVICE --cap-add=SETGID --cap-add=SETUID";

#[test]
fn a_bare_run_is_sealed_and_shielded() {
    let expected = format!("run --annotation=terok.shield=up {SAFE} {CAPS} -- debian:12");
    assert_eq!(command(&["debian:12"]).unwrap(), expected);
}

#[test]
fn podman_options_keep_their_order_and_the_command_its_dashes() {
    let line = [
        "-it",
        "--rm",
        "-e",
        "A=1",
        "--name=x",
        "-v",
        "/srv:/w",
        "-eB=2",
        "--tty=false",
        "alpine",
        "sh",
        "-c",
        "echo 'hi' --privileged",
    ];
    let expected = format!(
        "run --annotation=terok.name=x --annotation=terok.shield=up {SAFE} {CAPS} --interactive --tty --rm --env=A=1 --name=x \
         --volume=/srv:/w --env=B=2 --tty=false -- alpine sh -c 'echo '\\''hi'\\'' --privileged'"
    );
    assert_eq!(command(&line).unwrap(), expected);
}

#[test]
fn lists_are_joined_by_spaces() {
    let line = [
        "--allow",
        "a.example:443,b.example",
        "--allow=10.0.0.1:5432",
        "--deny",
        "c.example",
        "--profile",
        "dev-python",
        "--shield",
        "block",
        "--restricted",
        "i",
    ];
    let expected = format!(
        "run '--annotation=terok.restricted=true' --annotation=terok.shield=block \
         '--annotation=terok.shield.allow=a.example:443 b.example 10.0.0.1:5432' --annotation=terok.shield.deny=c.example \
         --annotation=terok.shield.profiles=dev-python {SAFE} -- i"
    )
    .replace("'--annotation=terok.restricted=true'", "--annotation=terok.restricted=true");
    assert_eq!(command(&line).unwrap(), expected);
}

#[test]
fn capabilities_are_computed_from_the_documented_set() {
    assert!(command(&["--cap-drop=all", "i"]).unwrap().ends_with(&format!("{SAFE} -- i")));
    assert!(command(&["--cap-drop", "cap_kill", "i"]).unwrap().contains("--cap-add=FSETID --cap-add=SETGID"));
    assert!(command(&["--cap-add", "net_raw", "i"]).unwrap().contains("--cap-add=NET_RAW"));
    for name in ["NET_ADMIN", "sys_admin", "CAP_SYS_PTRACE", "ALL", "CHOWN,SYS_MODULE", "BPF", ""] {
        assert!(command(&["--cap-add", name, "i"]).unwrap_err().contains("refused"), "{name}");
    }
    assert!(command(&["--restricted", "--cap-add=CHOWN", "i"]).is_err());
    assert!(!command(&["--restricted", "-p", "8080:80", "i"]).unwrap().contains("--cap-add"));
}

#[test]
fn what_is_refused_is_refused_by_name_in_every_spelling() {
    for line in [
        &["--privileged", "i"][..],
        &["--privileged=true", "i"],
        &["--net", "host", "i"],
        &["--network=bridge", "--network", "host", "i"],
        &["--pod", "x", "--network", "host", "i"],
        &["-p", "80", "i"],
        &["-P", "i"],
        &["-dp53:53/udp", "i"],
        &["--network=container:x", "-p", "80:80", "i"],
        &["--pod", "x", "--ip", "10.0.0.1", "i"],
        &["--ip", "10.0.0.1", "i"],
        &["--network=bridge", "--cap-add=NET_RAW", "i"],
        &["--pod=x", "--cap-add=NET_RAW", "i"],
        &["--hooks-dir=/x", "i"],
        &["--runtime", "x", "i"],
        &["--dns=1.1.1.1", "i"],
        &["--volumes-from", "x", "i"],
        &["-v/run/podman:/x", "i"],
        &["--env-host", "i"],
        &["--userns=container:x", "i"],
        &["--security-opt", "seccomp=unconfined", "i"],
        &["--gpus", "all", "i"],
        &["--rootfs", "/"],
        &["--remote", "i"],
        &["--pid", "host", "i"],
    ] {
        let error = command(line).unwrap_err();
        assert!(error.contains("is refused:"), "{line:?}: {error}");
    }
}

#[test]
fn an_unknown_option_is_refused_with_a_hint() {
    assert!(command(&["--privilegd", "i"]).unwrap_err().contains("--privileged"));
    assert!(command(&["--bogus", "i"]).unwrap_err().contains("--bogus"));
    assert!(command(&["-X", "i"]).is_err());
    assert!(command(&["--rm"]).unwrap_err().contains("IMAGE"));
}

#[test]
fn annotations_of_ours_are_merged_and_a_contradiction_is_refused() {
    let line = ["--annotation", "terok.task=t", "--annotation=a=b", "i"];
    let expected = format!(
        "run --annotation=terok.shield=up --annotation=terok.task=t {SAFE} {CAPS} --annotation=a=b -- i"
    );
    assert_eq!(command(&line).unwrap(), expected);
    assert!(command(&["--annotation=terok.shield=down", "i"]).unwrap().contains("=terok.shield=down"));
    let error =
        command(&["--allow", "a.example", "--annotation", "terok.shield.allow=b.example", "i"]).unwrap_err();
    assert!(error.contains("given twice"), "{error}");
}

#[test]
fn a_label_cannot_carry_a_second_annotation() {
    // Podman up to 4.9 reads --annotation as a line of CSV.
    for option in ["--project", "--task", "--name", "--shield"] {
        let error = command(&[option, "a,run.oci.handler=krun", "i"]).unwrap_err();
        assert!(error.contains("is refused:"), "{option}: {error}");
    }
}

#[test]
fn with_a_card_podmans_own_network_options_pass() {
    let line =
        ["--network=bridge", "--net", "mynet:ip=10.89.0.7", "-p", "80:80/udp", "--network-alias=a", "i"];
    let expected = format!(
        "run --annotation=terok.shield=up {CARD} {BIND} --network=bridge --net=mynet:ip=10.89.0.7 --publish=80:80/udp --network-alias=a -- i"
    );
    assert_eq!(command(&line).unwrap(), expected);
    let expected = format!("run --annotation=terok.shield=up {CARD} {CAPS} --pod=x -- i");
    assert_eq!(command(&["--pod", "x", "i"]).unwrap(), expected);
    let pod = command(&["--pod", "new:x", "--network=none", "i"]).unwrap();
    assert!(pod.contains("--pod=new:x --network=none"), "{pod}");
    let expected = format!("run --annotation=terok.shield=up {CARD} {CAPS} --network=container:x -- i");
    assert_eq!(command(&["--network", "container:x", "i"]).unwrap(), expected);
}

#[test]
fn without_a_card_published_ports_become_an_annotation() {
    let line = ["-p", "8080:80", "--publish=[::1]:22:2222/tcp", "--hold", "30s", "--learn", "i"];
    let expected = format!(
        "run '--annotation=terok.publish=8080:80 [::1]:22:2222' --annotation=terok.shield=up \
         --annotation=terok.shield.hold=30s --annotation=terok.shield.learn=true {SAFE} {BIND} -- i"
    );
    assert_eq!(command(&line).unwrap(), expected);
}

#[test]
fn podman_has_no_variable_that_a_credential_was_read_from() {
    let host = crate::containers::host_at(std::path::Path::new("/nowhere"));
    // HOME is as good a value as any: one line of ASCII.
    let given = Given::read(&host, "anthropic=env:HOME").unwrap();
    let command = super::command(Path::new("/usr/bin/podman"), &["run".into()], &[given]);
    assert_eq!(command.get_envs().collect::<Vec<_>>(), [(OsStr::new("HOME"), None)]);
}

#[test]
fn granted_credentials_and_keys_become_annotations() {
    let line = ["--vault", "anthropic github=work", "--vault=mistral", "--ssh", "work@github.com", "i"];
    let expected = format!(
        "run --annotation=terok.shield=up '--annotation=terok.ssh=work@github.com' \
         '--annotation=terok.vault=anthropic github=work mistral' {SAFE} {CAPS} -- i"
    )
    .replace("'--annotation=terok.ssh=work@github.com'", "--annotation=terok.ssh=work@github.com");
    assert_eq!(command(&line).unwrap(), expected);
}

#[test]
fn network_none_passes_once() {
    assert_eq!(command(&["--network", "none", "i"]).unwrap().matches("--network").count(), 1);
    assert_eq!(command(&["--net=none", "i"]).unwrap().matches("--net").count(), 1);
}
