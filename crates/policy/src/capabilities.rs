//! Capabilities as a configuration's `process` lists them, in sets by name. Runtimes take a name in any case, and on their command
//! lines without its prefix too.

use serde_json::Value;

/// Those of `process` (that of a `config.json`, or a further one as an engine describes it), in whichever set; one may come twice.
pub fn listed(process: &Value) -> impl Iterator<Item = &str> {
    let sets = process.get("capabilities").and_then(Value::as_object);
    let all = sets.into_iter().flat_map(|sets| sets.values()).filter_map(Value::as_array).flatten();
    all.filter_map(Value::as_str)
}

/// Whether both names mean one capability.
pub fn same(one: &str, other: &str) -> bool {
    short(one).eq_ignore_ascii_case(short(other))
}

/// Without the prefix, as engines' options have it.
pub fn short(name: &str) -> &str {
    match name.get(..4) {
        Some(prefix) if prefix.eq_ignore_ascii_case("CAP_") => &name[4..],
        _ => name,
    }
}

/// Whether `process` has `capability` in any set.
pub fn has(process: &Value, capability: &str) -> bool {
    listed(process).any(|name| same(name, capability))
}

/// Whether `process` has what no engine gives but by `--privileged`: every capability there is.
pub fn has_all(process: &Value) -> bool {
    has(process, "CAP_SYS_MODULE") && has(process, "CAP_SYS_RAWIO")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_capability_is_found_in_whichever_set_and_however_it_is_written() {
        for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
            for name in ["CAP_NET_RAW", "cap_net_raw", "NET_RAW"] {
                let process = json!({ "capabilities": { set: ["CAP_CHOWN", name] } });
                assert!(has(&process, "CAP_NET_RAW"), "{process}");
                assert!(!has(&process, "CAP_NET_ADMIN") && !has_all(&process));
            }
        }
        assert!(!has(&json!({}), "CAP_NET_RAW") && !has(&json!({ "capabilities": [7] }), "CAP_NET_RAW"));
        assert_eq!((short("cap_chown"), short("é_"), short("")), ("chown", "é_", ""));
    }

    #[test]
    fn all_of_them_are_known_by_two_that_nobody_adds_together() {
        let process = |names: &[&str]| json!({ "capabilities": { "bounding": names } });
        assert!(has_all(&process(&["CAP_SYS_RAWIO", "CAP_SYS_MODULE"])));
        assert!(!has_all(&process(&["CAP_SYS_MODULE"])));
    }
}
