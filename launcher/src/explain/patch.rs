//! The difference of two JSON values as a patch (RFC 6902) that makes the second of the first. `json_patch::diff` compares lists
//! place by place, so that one rule put before the others of a seccomp profile rewrites them all; here it is one operation.

use serde::Serialize;
use serde_json::Value;

/// One operation; `path` is a JSON pointer (RFC 6901).
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub(crate) enum Operation {
    Add { path: String, value: Value },
    Remove { path: String },
    Replace { path: String, value: Value },
}

/// The operations in the order in which they are to be applied.
pub(crate) fn between(before: &Value, after: &Value) -> Vec<Operation> {
    let mut patch = Vec::new();
    compare("", before, after, &mut patch);
    patch
}

fn compare(path: &str, before: &Value, after: &Value, patch: &mut Vec<Operation>) {
    match (before, after) {
        _ if before == after => {}
        (Value::Object(was), Value::Object(is)) => {
            for (key, old) in was {
                let path = format!("{path}/{}", escaped(key));
                match is.get(key) {
                    Some(new) => compare(&path, old, new, patch),
                    None => patch.push(Operation::Remove { path }),
                }
            }
            for (key, value) in is.iter().filter(|(key, _)| !was.contains_key(*key)) {
                let path = format!("{path}/{}", escaped(key));
                patch.push(Operation::Add { path, value: value.clone() });
            }
        }
        (Value::Array(was), Value::Array(is)) => lists(path, was, is, patch),
        _ => patch.push(Operation::Replace { path: path.to_owned(), value: after.clone() }),
    }
}

/// What both begin and end with is left alone.
fn lists(path: &str, was: &[Value], is: &[Value], patch: &mut Vec<Operation>) {
    let same = |pairs: &mut dyn Iterator<Item = (&Value, &Value)>| pairs.take_while(|(a, b)| a == b).count();
    let first = same(&mut was.iter().zip(is));
    let (was, is) = (was.get(first..).unwrap_or_default(), is.get(first..).unwrap_or_default());
    let last = same(&mut was.iter().rev().zip(is.iter().rev()));
    let (was, is) =
        (was.get(..was.len() - last).unwrap_or_default(), is.get(..is.len() - last).unwrap_or_default());
    let at = |index: usize| format!("{path}/{}", first + index);
    for (index, (old, new)) in was.iter().zip(is).enumerate() {
        compare(&at(index), old, new, patch);
    }
    // From behind, so that each index is still what it was.
    patch.extend((is.len()..was.len()).rev().map(|index| Operation::Remove { path: at(index) }));
    let more = is.iter().enumerate().skip(was.len());
    patch.extend(more.map(|(index, value)| Operation::Add { path: at(index), value: value.clone() }));
}

fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn applied(before: &Value, after: &Value) -> Value {
        let patch = serde_json::to_value(between(before, after)).unwrap();
        let patch: json_patch::Patch = serde_json::from_value(patch).unwrap();
        let mut patched = before.clone();
        json_patch::patch(&mut patched, &patch).unwrap();
        patched
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf =
            prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from), (0..4).prop_map(Value::from)];
        leaf.prop_recursive(3, 24, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map("[ab/~]{0,2}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_patch_makes_the_second_of_the_first(before in values(), after in values()) {
            prop_assert_eq!(applied(&before, &after), after);
        }
    }

    #[test]
    fn equal_values_need_no_patch_and_an_added_member_is_one_operation() {
        let before = json!({ "a/b": [1, 2], "c": { "~": null } });
        assert_eq!(between(&before, &before), []);
        let mut after = before.clone();
        after["a/b"] = json!([1, 3, 2]);
        assert_eq!(between(&before, &after), [Operation::Add { path: "/a~1b/1".into(), value: json!(3) }]);
    }
}
