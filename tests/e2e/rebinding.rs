//! A9: allowed names whose DNS answers point where a name must never lead. Nothing is dialled.

use terok_tests::{Net, Recipe, eventually, every_network, seen, seen_at};

const FORMS: [&str; 8] = ["private", "loopback", "meta", "mapped", "host", "ula", "zero", "cgnat"];

every_network! {
    fn an_answer_below_the_floor_is_never_dialled(net: Net) {
        let label = format!("r{}", terok_tests::site().number);
        let names: Vec<String> = FORMS.iter().map(|form| format!("{label}.rebind-{form}.example.com")).collect();
        let rules = names.iter().map(|name| format!("{name}:80+443+8000")).collect::<Vec<_>>().join(" ");
        let steps: Vec<String> = names
            .iter()
            .flat_map(|name| [format!("http {name} 80 {name} /rebind"), format!("tls {name} 443 {name}"), format!("http {name} 8000 {name} /rebind")])
            .collect();
        let steps: Vec<&str> = steps.iter().map(String::as_str).collect();
        let (container, lines) = Recipe::on(net, &rules).probe(&steps);
        for line in &lines {
            assert_eq!((line["ok"].as_bool(), line["errno"].as_i64()), (Some(false), Some(104)), "{line}");
        }
        for name in &names {
            let line = container.audited("connect", "refuse", name);
            assert_eq!(line["reason"], "floor", "{line}");
        }
        let reached: Vec<_> = seen().into_iter().filter(|line| line["host"].as_str().is_some_and(|host| host.starts_with(&label))).collect();
        assert!(reached.is_empty(), "{reached:?}");
        // 8080 is where the test of the networks themselves shows that it can be reached.
        let metadata: Vec<_> = seen_at("169.254.169.254").into_iter().filter(|line| line["port"] != 8080).collect();
        assert!(metadata.is_empty(), "{metadata:?}");
        // The answers themselves were given: the names resolve, and refusing them is terok's doing.
        assert!(!terok_tests::queries(&names[0]).is_empty());
    }

    /// The second answer is another one: what is dialled is what was checked.
    fn a_name_that_changes_its_answer_is_checked_each_time(net: Net) {
        let name = format!("f{}.flip.example.com", terok_tests::site().number);
        let container = Recipe::on(net, &name).idle();
        let step = format!("http {name} 80 {name} /flip");
        assert_eq!(container.try_step(&step)["ok"], true, "the first answer is a public address");
        // An answer is kept for a second, whatever its TTL.
        eventually("the second answer is refused", || container.try_step(&step)["ok"] == false);
        assert_eq!(container.audited("connect", "refuse", &name)["reason"], "floor");
        let host = seen().into_iter().filter(|line| line["on"] == "host" && line["host"] == name.as_str()).count();
        assert_eq!(host, 0, "the host's own loopback was reached");
    }
}
