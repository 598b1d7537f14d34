//! A JSON file that a person wrote, with one member more or less: the rest of its text stays as it is.

use jsonc_parser::ParseOptions;
use jsonc_parser::cst::{CstInputValue, CstNode, CstObject, CstRootNode};
use serde_json::Value;

/// A text that is one JSON object.
#[derive(Debug)]
pub(crate) struct JsonText(CstRootNode);

impl JsonText {
    /// Takes `text`, which is a JSON object in which no key stands twice.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if !value.is_object() {
            return Err("is not an object".to_owned());
        }
        // It takes more than JSON, which has been ruled out.
        let root = CstRootNode::parse(text, &ParseOptions::default()).map_err(|error| error.to_string())?;
        // Which of two counts is a matter of opinion, and of versions.
        match twice(root.clone().into()) {
            Some(key) => Err(format!("{key:?} stands twice in one object")),
            None => Ok(JsonText(root)),
        }
    }

    /// The text.
    pub(crate) fn text(&self) -> String {
        self.0.to_string()
    }

    /// The value at `path`.
    pub(crate) fn get(&self, path: &[&str]) -> Option<Value> {
        self.find(path)?.to_serde_value()
    }

    /// Gives `path` a value: in place of the one it has, else as the last member of its object, which is made where it is missing.
    ///
    /// # Errors
    /// What stands in the way, being no object.
    pub(crate) fn set(&self, path: &[&str], value: &Value) -> Result<(), String> {
        if self.get(path).as_ref() == Some(value) {
            return Ok(());
        }
        let Some((key, above)) = path.split_last() else { return Err("is the whole file".to_owned()) };
        let mut object = self.0.object_value().ok_or("is not an object")?;
        for (n, name) in above.iter().enumerate() {
            object = object
                .object_value_or_create(name)
                .ok_or_else(|| format!("{:?} is not an object", above[..=n].join(".")))?;
        }
        match object.get(key) {
            Some(member) => member.set_value(input(value)),
            None => drop(object.append(key, input(value))),
        }
        Ok(())
    }

    /// Takes the member at `path` away, if it is there.
    pub(crate) fn remove(&self, path: &[&str]) {
        let Some((key, above)) = path.split_last() else { return };
        let object = self.find(above).as_ref().and_then(CstNode::as_object);
        if let Some(member) = object.and_then(|object| object.get(key)) {
            member.remove();
        }
    }

    fn find(&self, path: &[&str]) -> Option<CstNode> {
        let root = self.0.value()?;
        path.iter().try_fold(root, |node, key| node.as_object()?.get(key)?.value())
    }
}

/// A key that one object has more than once.
fn twice(node: CstNode) -> Option<String> {
    let members = node.as_object().map(|object: CstObject| object.properties()).unwrap_or_default();
    let mut keys: Vec<String> =
        members.iter().filter_map(|member| member.name()?.decoded_value().ok()).collect();
    keys.sort_unstable();
    let own = keys.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0].clone());
    own.or_else(|| node.children().into_iter().find_map(twice))
}

fn input(value: &Value) -> CstInputValue {
    match value {
        Value::Null => CstInputValue::Null,
        Value::Bool(value) => CstInputValue::Bool(*value),
        Value::Number(value) => CstInputValue::Number(value.to_string()),
        Value::String(value) => CstInputValue::String(value.clone()),
        Value::Array(values) => CstInputValue::Array(values.iter().map(input).collect()),
        Value::Object(members) => {
            CstInputValue::Object(members.iter().map(|(key, value)| (key.clone(), input(value))).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const PATH: [&str; 2] = ["runtimes", "terok"];

    fn with(text: &str) -> String {
        let json = JsonText::parse(text).unwrap();
        json.set(&PATH, &json!({ "path": "/t" })).unwrap();
        let written = json.text().to_owned();
        let mut value: serde_json::Value = serde_json::from_str(text).unwrap();
        value.as_object_mut().unwrap().entry("runtimes").or_insert(json!({}))["terok"] =
            json!({ "path": "/t" });
        assert_eq!(serde_json::from_str::<serde_json::Value>(&written).unwrap(), value, "{text}");
        assert_eq!(json.get(&PATH), Some(json!({ "path": "/t" })));
        json.set(&PATH, &json!({ "path": "/t" })).unwrap();
        assert_eq!(json.text(), written, "once more changes nothing");
        json.remove(&PATH);
        if json.get(&["runtimes"]) == Some(json!({})) {
            json.remove(&["runtimes"]);
        }
        // One line becomes several, and stays so.
        match text.trim().contains('\n') {
            true => assert_eq!(json.text(), text, "and without it everything is as it was"),
            false => {
                let left: serde_json::Value = serde_json::from_str(&json.text()).unwrap();
                assert_eq!(left, serde_json::from_str::<serde_json::Value>(text).unwrap());
            }
        }
        written
    }

    #[test]
    fn a_member_comes_and_goes_and_every_other_octet_stays() {
        let written = with("{\n  \"log-driver\": \"journald\",\n  \"dns\" : [ \"1.1.1.1\",\"a\\\"}\" ]\n}\n");
        assert_eq!(
            written,
            "{\n  \"log-driver\": \"journald\",\n  \"dns\" : [ \"1.1.1.1\",\"a\\\"}\" ],\n  \"runtimes\": {\n    \"terok\": {\n      \"path\": \"/t\"\n    }\n  }\n}\n"
        );
        let written =
            with("{\n\t\"runtimes\": {\n\t\t\"kata\": {\"path\": \"/k\"}\n\t},\n\t\"debug\": true\n}");
        assert_eq!(
            written,
            "{\n\t\"runtimes\": {\n\t\t\"kata\": {\"path\": \"/k\"},\n\t\t\"terok\": {\n\t\t\t\"path\": \"/t\"\n\t\t}\n\t},\n\t\"debug\": true\n}"
        );
        for text in [
            "{\r\n  \"a\": 1\r\n}\r\n",
            " {\"a\":{\"b\":[{},{\"c\":\"]}\"}]},\"z\":-1.5e3}\n\n",
            "{\n  \"runtimes\": {\n    \"a\": {}, \"b\": {}\n  }\n}",
            "{\"\\u0072untimes2\": {\"terok\": null}, \"ä\": \"ö\"}",
        ] {
            with(text);
        }
        let json = JsonText::parse("{\n  \"a\": 1,\n  \"b\": 2,\n  \"c\": 3\n}").unwrap();
        json.remove(&["a"]);
        json.remove(&["b"]);
        assert_eq!(json.text(), "{\n  \"c\": 3\n}");
    }

    #[test]
    fn a_value_that_is_there_is_replaced_alone() {
        let json = JsonText::parse("{\"a\" : \"x\" , \"b\":{ \"c\": [1, 2] }}").unwrap();
        json.set(&["a"], &json!("y")).unwrap();
        json.set(&["b", "c"], &json!(null)).unwrap();
        assert_eq!(json.text(), "{\"a\" : \"y\" , \"b\":{ \"c\": null }}");
        assert!(json.set(&["a", "d"], &json!(1)).unwrap_err().contains("\"a\" is not an object"));
    }

    #[test]
    fn what_is_broken_or_ambiguous_is_refused_with_its_place() {
        let refused = |text: &str| JsonText::parse(text).unwrap_err();
        assert!(refused("{\n  \"a\": 1,\n}").contains("line 3 column 1"));
        assert!(refused("").contains("line 1"));
        assert!(refused("[]").contains("not an object"));
        assert!(refused("{\"a\": {\"b\": 1,\n\"b\": 2}}").contains("\"b\" stands twice"));
    }
}
