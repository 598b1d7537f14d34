//! `amend` on configurations that Podman and Docker wrote: what hook and shim saw on Debian 12 and 13.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::{Value, json};
use terok_policy::amend::{
    DROPPED, MARK, amend, annotate, is_amended, is_without_raw_sockets, process_without_raw_sockets,
    restrict_process, without_raw_sockets,
};
use terok_policy::policy::Policy;

fn fixtures() -> Vec<(String, Value)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    let mut found: Vec<(String, Value)> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap())
        })
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(found.len() >= 8);
    found
}

fn fixture(name: &str) -> Value {
    fixtures().into_iter().find(|(found, _)| found == name).unwrap().1
}

/// The fixtures for a policy: privileged and restricted is refused.
fn fixtures_for(policy: &Policy) -> Vec<(String, Value)> {
    fixtures().into_iter().filter(|(name, _)| !policy.restricted || !name.contains("privileged")).collect()
}

fn policies() -> [Policy; 2] {
    [Policy::default(), Policy { restricted: true, ..Policy::default() }]
}

fn filtered(default: &str, syscalls: Value) -> Value {
    json!({ "process": {}, "linux": { "seccomp": { "defaultAction": default, "syscalls": syscalls } } })
}

#[test]
fn an_engines_own_configuration_is_not_amended_and_an_amended_one_is() {
    for (name, config) in fixtures() {
        assert!(is_amended(&config).is_err(), "{name}");
    }
    for policy in policies() {
        for (name, config) in fixtures_for(&policy) {
            assert_eq!(is_amended(&amend(config, &policy).unwrap()), Ok(()), "{name}");
        }
    }
}

#[test]
fn amending_twice_changes_nothing() {
    for policy in policies() {
        for (name, config) in fixtures_for(&policy) {
            let once = amend(config.clone(), &policy).unwrap();
            assert_eq!(amend(once.clone(), &policy).unwrap(), once, "{name}");
        }
    }
}

#[test]
fn everything_but_the_filter_and_the_mark_survives() {
    for (name, config) in fixtures() {
        let mut amended = amend(config.clone(), &Policy::default()).unwrap();
        assert_eq!(amended["annotations"].as_object_mut().unwrap().remove(MARK), Some("1".into()), "{name}");
        let mut config = config;
        if config.get("annotations").is_none() {
            assert_eq!(amended["annotations"].take(), json!({}), "{name}");
            config["annotations"] = Value::Null;
        }
        for config in [&mut amended, &mut config] {
            config["linux"].as_object_mut().unwrap().remove("seccomp");
        }
        assert_eq!(amended, config, "{name}");
    }
}

#[test]
fn unknown_fields_of_the_filter_survive() {
    let rules = json!([{ "names": ["read", "socket"], "action": "SCMP_ACT_ALLOW", "comment": "kept" }]);
    let mut config = filtered("SCMP_ACT_ERRNO", rules);
    config["linux"]["seccomp"]["flags"] = json!(["SECCOMP_FILTER_FLAG_LOG"]);
    let amended = amend(config, &Policy::default()).unwrap();
    let seccomp = &amended["linux"]["seccomp"];
    assert_eq!(seccomp["flags"], json!(["SECCOMP_FILTER_FLAG_LOG"]));
    assert_eq!(
        seccomp["syscalls"][1],
        json!({ "names": ["read"], "action": "SCMP_ACT_ALLOW", "comment": "kept" })
    );
}

#[test]
fn the_mark_alone_convinces_nobody() {
    let mut config = fixture("podman-5.4-rootless");
    config["annotations"][MARK] = "1".into();
    assert!(is_amended(&config).unwrap_err().reason.contains("socket("));
    let unconfined = fixture("podman-4.3-rootful-unconfined");
    assert!(is_amended(&unconfined).unwrap_err().reason.contains("no seccomp filter"));
}

#[test]
fn one_missing_rule_is_noticed() {
    for (name, config) in fixtures() {
        let amended = amend(config, &Policy::default()).unwrap();
        if amended["linux"]["seccomp"]["defaultAction"] != "SCMP_ACT_ALLOW" {
            continue;
        }
        let count = amended["linux"]["seccomp"]["syscalls"].as_array().unwrap().len();
        for index in 0..count {
            let mut without = amended.clone();
            let gone = without["linux"]["seccomp"]["syscalls"].as_array_mut().unwrap().remove(index);
            // L2TP packets meet the firewall like any other, and a pair of family 0 does not exist.
            let harmless = gone["args"]
                == json!([{ "index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": 0xffff_ffffu32, "valueTwo": 0 }])
                && gone["names"] == json!(["socketpair"])
                || gone["args"][2]["valueTwo"] == 115;
            assert_eq!(is_amended(&without).is_err(), !harmless, "{name}: without {gone}");
        }
    }
}

#[test]
fn raw_sockets_come_with_the_capability_only() {
    let allows_packet = |name: &str| {
        let amended = amend(fixture(name), &Policy::default()).unwrap();
        let rules = amended["linux"]["seccomp"]["syscalls"].as_array().unwrap().clone();
        rules.iter().any(|rule| {
            rule["names"] == json!(["socket"])
                && rule["action"] == "SCMP_ACT_ALLOW"
                && rule["args"][0]["valueTwo"] == 17
        })
    };
    assert!(!allows_packet("podman-4.3-rootful"));
    assert!(allows_packet("podman-4.3-rootful-net-raw"));
    let mut amended = amend(fixture("podman-4.3-rootful-net-raw"), &Policy::default()).unwrap();
    amended["process"]["capabilities"]["bounding"] = json!([]);
    assert!(is_amended(&amended).is_err(), "a raw socket without the capability");
}

#[test]
fn a_filter_of_ones_own_is_never_widened() {
    // No sockets at all, no IPv6, no netlink but route.
    let none = amend(
        filtered("SCMP_ACT_ERRNO", json!([{ "names": ["read"], "action": "SCMP_ACT_ALLOW" }])),
        &Policy::default(),
    );
    assert!(!none.unwrap().to_string().contains(r#"["socket"]"#));
    let allow = |args: Value| json!({ "names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": args });
    let v4 = allow(json!([{ "index": 0, "value": 2, "op": "SCMP_CMP_EQ" }]));
    let route = allow(
        json!([{ "index": 0, "value": 16, "op": "SCMP_CMP_EQ" }, { "index": 2, "value": 0, "op": "SCMP_CMP_EQ" }]),
    );
    let amended = amend(filtered("SCMP_ACT_ERRNO", json!([v4, route])), &Policy::default()).unwrap();
    let mut families: Vec<u64> = amended["linux"]["seccomp"]["syscalls"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|rule| rule["action"] == "SCMP_ACT_ALLOW")
        .map(|rule| rule["args"][0]["valueTwo"].as_u64().unwrap())
        .collect();
    families.dedup();
    assert_eq!(families, [2, 16]);
    assert_eq!(is_amended(&amended), Ok(()));
}

#[test]
fn a_filter_that_asks_somebody_else_does_not_count_as_refusing() {
    for default in ["SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE", "SCMP_ACT_LOG", "SCMP_ACT_NEW"] {
        let config = filtered(default, json!([]));
        assert!(is_amended(&config).is_err(), "{default}");
        assert_eq!(is_amended(&amend(config, &Policy::default()).unwrap()), Ok(()), "{default}");
    }
    let notify = json!([{ "names": ["socket"], "action": "SCMP_ACT_NOTIFY" }]);
    let amended = amend(filtered("SCMP_ACT_ERRNO", notify), &Policy::default()).unwrap();
    assert_eq!(is_amended(&amended), Ok(()));
}

#[test]
fn a_ready_made_filter_is_refused() {
    let mut config = fixture("podman-4.3-rootless");
    config["annotations"]["run.oci.seccomp_bpf_data"] = "AAAA".into();
    let error = amend(config, &Policy::default()).unwrap_err().to_string();
    assert!(error.contains("run.oci.seccomp_bpf_data") && error.contains("remove it"), "{error}");
}

#[test]
fn orders_to_the_runtime_that_go_around_the_filter_are_refused() {
    for key in [
        "run.oci.handler",
        "run.oci.seccomp.receiver",
        "run.oci.seccomp.plugins",
        "run.oci.hooks.stderr",
        "module.wasm.image/variant",
    ] {
        let mut config = fixture("podman-4.3-rootless");
        config["annotations"][key] = "x".into();
        let error = amend(config, &Policy::default()).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains("remove it"), "{error}");
    }
}

#[test]
fn restricted_takes_privileges_and_capabilities() {
    for (name, config) in fixtures_for(&policies()[1]) {
        let amended = amend(config, &policies()[1]).unwrap();
        assert_eq!(amended["process"]["noNewPrivileges"], true, "{name}");
        for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
            assert_eq!(amended["process"]["capabilities"][set], json!([]), "{name} {set}");
        }
    }
}

#[test]
fn restricted_hides_files_of_the_kernel_beside_those_the_engine_hides() {
    for (name, config) in fixtures_for(&policies()[1]) {
        let amended = amend(config.clone(), &policies()[1]).unwrap();
        for (key, paths) in
            [("maskedPaths", ["/proc/kcore", "/sys/firmware"]), ("readonlyPaths", ["/proc/sys", "/proc/bus"])]
        {
            let listed = amended["linux"][key].as_array().unwrap();
            let had = config["linux"][key].as_array().cloned().unwrap_or_default();
            assert!(listed.starts_with(&had), "{name} {key}");
            for path in paths {
                assert_eq!(listed.iter().filter(|listed| *listed == path).count(), 1, "{name} {key} {path}");
            }
        }
        let unrestricted = amend(config.clone(), &policies()[0]).unwrap();
        assert_eq!(unrestricted["linux"]["maskedPaths"], config["linux"]["maskedPaths"], "{name}");
    }
}

#[test]
fn restricted_limits_processes_where_nobody_did_and_control_groups_are_in_use() {
    for (engine, path, pids, limited) in [
        ("", "/docker/c1", json!(null), json!({ "limit": 2048 })),
        ("", "/docker/c1", json!({ "limit": -1 }), json!({ "limit": 2048 })),
        ("", "/docker/c1", json!({ "limit": 0, "x": 1 }), json!({ "limit": 2048, "x": 1 })),
        ("", "/docker/c1", json!({ "limit": 9 }), json!({ "limit": 9 })),
        ("", "", json!(null), json!(null)),
        ("libpod", "user.slice:libpod:c1", json!(null), json!(null)),
        ("libpod", "user.slice:libpod:c1", json!({ "limit": 0 }), json!({ "limit": 2048 })),
    ] {
        let mut config = filtered("SCMP_ACT_ERRNO", json!([]));
        config["annotations"]["io.container.manager"] = engine.into();
        config["linux"]["cgroupsPath"] = path.into();
        config["linux"]["resources"]["pids"] = pids.clone();
        let amended = amend(config.clone(), &policies()[1]).unwrap();
        assert_eq!(amended["linux"]["resources"]["pids"], limited, "{engine} {path} {pids}");
        assert_eq!(amend(config, &policies()[0]).unwrap()["linux"]["resources"]["pids"], pids);
    }
}

#[test]
fn a_further_process_of_a_restricted_container_gets_what_its_first_one_has() {
    let config = amend(fixture("podman-4.3-rootful-net-raw"), &policies()[1]).unwrap();
    let further = json!({ "args": ["sh"], "cwd": "/", "env": ["A=1"], "noNewPrivileges": false,
        "capabilities": { "effective": ["CAP_SYS_ADMIN"], "bounding": ["CAP_SYS_ADMIN"] } });
    let restricted = restrict_process(further.clone()).unwrap();
    for key in ["noNewPrivileges", "capabilities"] {
        assert_eq!(restricted[key], config["process"][key]);
    }
    for key in ["args", "cwd", "env"] {
        assert_eq!(restricted[key], further[key]);
    }
    assert_eq!(restrict_process(restricted.clone()).unwrap(), restricted);
    assert!(restrict_process(json!([])).is_err());
}

#[test]
fn privileged_and_restricted_at_once_is_refused_and_each_alone_is_not() {
    let privileged = fixture("podman-4.3-rootful-privileged");
    let error = amend(privileged.clone(), &policies()[1]).unwrap_err().to_string();
    assert!(error.contains("--privileged") && error.contains("terok.restricted"), "{error}");
    amend(privileged.clone(), &policies()[0]).unwrap();
    // `--cap-add=all`: what the engine hides stays hidden, and no device comes with it.
    let mut capable = fixture("podman-4.3-rootful");
    capable["process"]["capabilities"] = privileged["process"]["capabilities"].clone();
    amend(capable, &policies()[1]).unwrap();
}

#[test]
fn what_is_no_configuration_is_refused_with_its_place() {
    for (config, place) in [
        (json!([]), ""),
        (json!({ "linux": 1 }), "/linux"),
        (json!({ "linux": { "seccomp": [] } }), "/linux/seccomp"),
        (json!({ "linux": { "seccomp": {} } }), "/linux/seccomp/defaultAction"),
        (
            filtered("SCMP_ACT_ALLOW", json!([{ "names": [1], "action": "SCMP_ACT_ALLOW" }])),
            "/linux/seccomp/syscalls/0/names",
        ),
        (
            filtered(
                "SCMP_ACT_ALLOW",
                json!([{ "names": ["x"], "action": "SCMP_ACT_ALLOW", "args": [{ "index": 6, "op": "SCMP_CMP_EQ" }] }]),
            ),
            "/linux/seccomp/syscalls/0/args/0",
        ),
    ] {
        assert_eq!(amend(config, &Policy::default()).unwrap_err().place, place);
    }
}

#[test]
fn a_capability_that_every_container_of_dockers_gets_is_taken_from_each_set_and_the_filter_closes_behind_it()
{
    let config = fixture("docker-26.1-network");
    assert!(config["process"]["capabilities"]["bounding"].to_string().contains("CAP_NET_RAW"));
    let without = without_raw_sockets(config.clone()).unwrap();
    assert!(!without["process"].to_string().contains("CAP_NET_RAW"));
    assert_eq!(without["annotations"][DROPPED], "CAP_NET_RAW");
    assert!(is_without_raw_sockets(&without) && !is_without_raw_sockets(&config));
    assert_eq!(without_raw_sockets(without.clone()).unwrap(), without);
    let mut amended = amend(without.clone(), &Policy::default()).unwrap();
    assert_eq!(is_amended(&amended), Ok(()));
    // The filter that fits the capability does not do for a container without it.
    amended["linux"]["seccomp"] =
        amend(config.clone(), &Policy::default()).unwrap()["linux"]["seccomp"].take();
    assert!(is_amended(&amended).is_err());

    let process = process_without_raw_sockets(config["process"].clone()).unwrap();
    assert_eq!(process, without["process"]);
    let podmans = fixture("podman-5.4-rootful");
    assert_eq!(without_raw_sockets(podmans.clone()).unwrap(), podmans);
}

#[test]
fn what_is_said_by_label_becomes_an_annotation_beside_the_others() {
    let label = [("terok.task".to_owned(), "t".to_owned())].into();
    let annotated = annotate(json!({ "annotations": { "a": "b" } }), &label).unwrap();
    assert_eq!(annotated["annotations"], json!({ "a": "b", "terok.task": "t" }));
    assert_eq!(
        annotate(json!({ "annotations": null }), &label).unwrap()["annotations"],
        json!({ "terok.task": "t" })
    );
    assert!(annotate(json!({ "annotations": [] }), &label).is_err());
}
