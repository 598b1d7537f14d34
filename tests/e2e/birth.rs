//! A30: nothing of the container runs before its rules stand and every service answers.

use terok_tests::{Net, Recipe, bad_addresses, every_network, seen_at, site};

every_network! {
    fn the_first_instruction_finds_every_verdict(net: Net) {
        let (allowed, unlisted) = (site(), site());
        let (v4, v6) = bad_addresses();
        let burst = format!("burst 100 {} 80 {} 80 {v4} 80 {v6} 80 {}%6 80", allowed.name, unlisted.name, allowed.name);
        let (_gone, lines) = Recipe::on(net, &allowed.name).probe(&[&burst]);
        let results = lines[0]["results"].as_array().expect("results");
        assert_eq!(results.len(), 100);
        for result in results {
            let expected = result["host"].as_str().is_some_and(|host| host.starts_with(&allowed.name));
            assert_eq!(result["ok"], expected, "{result}");
            crate::expect::at_once(result);
        }
        assert_eq!(allowed.paths().len(), 40, "every allowed one arrived");
        assert!(unlisted.seen().is_empty() && seen_at(v4).is_empty() && seen_at(v6).is_empty());
    }
}
