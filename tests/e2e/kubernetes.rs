//! Pods through containerd's CRI, as a kubelet makes them, under the handler `terok`.

use terok_tests::kubernetes::{Member, MemberRecipe, PodRecipe, kubelet};
use terok_tests::{Lab, bad_addresses, seen_at, site};

#[track_caller]
fn is_protected(container: &Member, allowed: &str) {
    let (v4, v6) = bad_addresses();
    let lines = container.probe(&[
        &format!("http {allowed} 80 {allowed} /pod"),
        &format!("tcp {v4} 80"),
        &format!("tcp {v6} 80"),
        "socket 40 1 0",
    ]);
    assert_eq!(lines[0]["answers"][0]["status"], 200, "{lines:?}");
    assert_eq!(lines[1]["errno"], 111, "{lines:?}");
    assert_eq!(lines[2]["errno"], 111, "{lines:?}");
    assert_eq!(lines[3]["errno"], 1, "{lines:?}");
    assert!(seen_at(v4).is_empty() && seen_at(v6).is_empty());
}

#[test]
fn a_pod_reaches_what_its_annotations_name_and_its_containers_share_that() {
    let Some(_lab) = Lab::open() else { return };
    kubelet();
    let site = site();
    let pod = PodRecipe::allowing(&site.name).start();
    eprintln!("PAUSE {}", pod.config_json());
    let first = pod.container();
    eprintln!("MEMBER {}", first.config_json());
    is_protected(&first, &site.name);
    let second = pod.container();
    is_protected(&second, &site.name);
}

#[test]
fn a_pod_without_annotations_is_left_as_it_is() {
    let Some(_lab) = Lab::open() else { return };
    kubelet();
    for handler in ["terok", ""] {
        let (v4, v6) = bad_addresses();
        let pod = PodRecipe::plain().handler(handler).start();
        let lines = pod.container().probe(&[&format!("tcp {v4} 80"), &format!("tcp {v6} 80")]);
        assert!(lines.iter().all(|line| line["ok"] == true), "{lines:?}");
        assert_eq!((seen_at(v4).len(), seen_at(v6).len()), (1, 1));
        assert!(!pod.ruleset().contains("terok"), "{}", pod.ruleset());
        let _ = MemberRecipe::default();
    }
}

