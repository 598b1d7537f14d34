//! A JSON file that a person wrote, with one member more or less: every other octet stays as it is.

use std::ops::Range;

/// A text that is one JSON object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JsonText(String);

/// A member of an object, by its place in the text.
struct Member {
    key: String,
    /// From the key's first quote.
    start: usize,
    value: Range<usize>,
}

/// An object, by its place in the text.
struct Object {
    /// Behind `{`.
    start: usize,
    /// Before `}`.
    end: usize,
    members: Vec<Member>,
}

impl JsonText {
    /// An object without members, in a file of its own.
    pub(crate) fn empty() -> Self {
        JsonText("{}\n".to_owned())
    }

    /// Takes `text`, which is a JSON object in which no key stands twice.
    ///
    /// # Errors
    /// What is wrong, with line and column.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let value: serde_json::Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if !value.is_object() {
            return Err("is not an object".to_owned());
        }
        let text = JsonText(text.to_owned());
        let mut objects = vec![text.root()];
        // Which of two counts is a matter of opinion, and of versions.
        while let Some(object) = objects.pop() {
            for (n, member) in object.members.iter().enumerate() {
                if object.members[..n].iter().any(|other| other.key == member.key) {
                    let line = text.0[..member.start].matches('\n').count() + 1;
                    return Err(format!("{:?} stands twice, again in line {line}", member.key));
                }
                if text.0.as_bytes()[member.value.start] == b'{' {
                    objects.push(text.object(member.value.start));
                }
            }
        }
        Ok(text)
    }

    /// The text.
    pub(crate) fn text(&self) -> &str {
        &self.0
    }

    /// The value at `path`.
    pub(crate) fn get(&self, path: &[&str]) -> Option<serde_json::Value> {
        serde_json::from_str(&self.0[self.find(path)?]).ok()
    }

    /// Gives `path` a value: in place of the one it has, else as the last member of its object, which is made where it is missing.
    /// What stands in the way, being no object, is named.
    pub(crate) fn set(&mut self, path: &[&str], value: &serde_json::Value) -> Result<(), String> {
        if let Some(range) = self.find(path) {
            if self.get(path).as_ref() != Some(value) {
                let depth = path.len();
                let written = self.written(value, depth);
                self.0.replace_range(range, &written);
            }
            return Ok(());
        }
        let Some((key, above)) = path.split_last() else { return Err("is the whole file".to_owned()) };
        let object = match self.find(above) {
            Some(range) if self.0.as_bytes()[range.start] == b'{' => self.object(range.start),
            Some(_) => return Err(format!("{:?} is not an object", above.join("."))),
            None => return self.set(above, &serde_json::json!({ *key: value })),
        };
        let member = format!("{}: {}", serde_json::Value::from(*key), self.written(value, path.len()));
        match object.members.last() {
            Some(last) => {
                let space = &self.0[object.members.first().map_or(0..0, |first| object.start..first.start)];
                // Members of one line stand beside each other.
                let space = if space.contains('\n') { space } else { " " };
                let insert = format!(",{space}{member}");
                self.0.insert_str(last.value.end, &insert);
            }
            None if self.is_one_line() => self.0.replace_range(object.start..object.end, &member),
            None => {
                let lines = [path.len(), path.len() - 1].map(|depth| self.line(depth));
                self.0.replace_range(object.start..object.end, &format!("{}{member}{}", lines[0], lines[1]));
            }
        }
        Ok(())
    }

    /// Takes the member at `path` away, if it is there.
    pub(crate) fn remove(&mut self, path: &[&str]) {
        let Some((key, above)) = path.split_last() else { return };
        let Some(range) = self.find(above).filter(|range| self.0.as_bytes()[range.start] == b'{') else {
            return;
        };
        let object = self.object(range.start);
        let Some(at) = object.members.iter().position(|member| member.key == *key) else { return };
        let gone = match (at.checked_sub(1).map(|before| &object.members[before]), object.members.get(at + 1))
        {
            (_, Some(next)) => object.members[at].start..next.start,
            (Some(before), None) => before.value.end..object.members[at].value.end,
            (None, None) => object.start..object.end,
        };
        self.0.replace_range(gone, "");
    }

    fn find(&self, path: &[&str]) -> Option<Range<usize>> {
        let start = self.0.find('{')?;
        let mut value = start..self.value_end(start);
        for key in path {
            if self.0.as_bytes()[value.start] != b'{' {
                return None;
            }
            value = self
                .object(value.start)
                .members
                .into_iter()
                .find(|member| member.key == *key)
                .map(|member| member.value)?;
        }
        Some(value)
    }

    fn root(&self) -> Object {
        self.object(self.0.find('{').unwrap_or(0))
    }

    /// The object that begins at `open`, in a text that is known to be JSON.
    fn object(&self, open: usize) -> Object {
        let bytes = self.0.as_bytes();
        let mut members = Vec::new();
        let mut at = self.space_end(open + 1);
        while bytes.get(at) == Some(&b'"') {
            let start = at;
            at = self.value_end(at);
            let key = serde_json::from_str(&self.0[start..at]).unwrap_or_default();
            // Behind the colon.
            let value = self.space_end(self.space_end(at) + 1);
            at = self.value_end(value);
            members.push(Member { key, start, value: value..at });
            at = self.space_end(at);
            if bytes.get(at) != Some(&b',') {
                break;
            }
            at = self.space_end(at + 1);
        }
        Object { start: open + 1, end: at, members }
    }

    fn space_end(&self, at: usize) -> usize {
        let space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        at + self.0.as_bytes()[at..].iter().take_while(|byte| space(byte)).count()
    }

    /// Where the value that begins at `start` ends.
    fn value_end(&self, start: usize) -> usize {
        let bytes = self.0.as_bytes();
        let (mut at, mut depth, mut in_string) = (start, 0_usize, false);
        while let Some(byte) = bytes.get(at) {
            match (in_string, byte) {
                (true, b'\\') => at += 1,
                (true, b'"') => in_string = false,
                (true, _) => {}
                (false, b'"') => in_string = true,
                (false, b'{' | b'[') => depth += 1,
                (false, b'}' | b']') if depth > 0 => depth -= 1,
                (false, b'}' | b']' | b',' | b' ' | b'\t' | b'\n' | b'\r') if depth == 0 => return at,
                (false, _) => {}
            }
            at += 1;
            if depth == 0 && !in_string && matches!(byte, b'}' | b']' | b'"') {
                return at;
            }
        }
        at
    }

    /// Whether the file is written without line breaks.
    fn is_one_line(&self) -> bool {
        !self.0.trim_end().contains('\n') && !self.root().members.is_empty()
    }

    /// The value as this file would write it, `depth` objects deep.
    fn written(&self, value: &serde_json::Value, depth: usize) -> String {
        match value {
            serde_json::Value::Object(members) if !members.is_empty() => {
                let one_line = self.is_one_line();
                let (before, behind) = match one_line {
                    true => (" ".to_owned(), String::new()),
                    false => (self.line(depth + 1), self.line(depth)),
                };
                let members: Vec<_> = members
                    .iter()
                    .map(|(key, value)| {
                        let key = serde_json::Value::from(key.as_str());
                        format!("{key}: {}", self.written(value, depth + 1))
                    })
                    .collect();
                let first = if one_line { "" } else { &before };
                format!("{{{first}{}{behind}}}", members.join(&format!(",{before}")))
            }
            other => other.to_string(),
        }
    }

    /// A line break, and the space before a member that is `depth` objects deep.
    fn line(&self, depth: usize) -> String {
        let object = self.root();
        let space = &self.0[object.start..object.members.first().map_or(object.start, |first| first.start)];
        let indent = space.rsplit_once('\n').map_or("    ", |(_, indent)| indent);
        let end = if self.0.contains("\r\n") { "\r\n" } else { "\n" };
        format!("{end}{}", indent.repeat(depth))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const PATH: [&str; 2] = ["runtimes", "terok"];

    fn with(text: &str) -> String {
        let mut json = JsonText::parse(text).unwrap();
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
        assert_eq!(json.text(), text, "and without it everything is as it was");
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
        assert_eq!(
            with("{\"debug\":true}"),
            "{\"debug\":true, \"runtimes\": {\"terok\": {\"path\": \"/t\"}}}"
        );
        assert_eq!(
            with("{}"),
            "{\n    \"runtimes\": {\n        \"terok\": {\n            \"path\": \"/t\"\n        }\n    }\n}"
        );
        for text in [
            "{\r\n  \"a\": 1\r\n}\r\n",
            " {\"a\":{\"b\":[{},{\"c\":\"]}\"}]},\"z\":-1.5e3}\n\n",
            "{\n  \"runtimes\": {\n    \"a\": {}, \"b\": {}\n  }\n}",
            "{\"\\u0072untimes2\": {\"terok\": null}, \"ä\": \"ö\"}",
        ] {
            with(text);
        }
        let mut json = JsonText::parse("{\n  \"a\": 1,\n  \"b\": 2,\n  \"c\": 3\n}").unwrap();
        json.remove(&["a"]);
        json.remove(&["b"]);
        assert_eq!(json.text(), "{\n  \"c\": 3\n}");
    }

    #[test]
    fn a_value_that_is_there_is_replaced_alone() {
        let mut json = JsonText::parse("{\"a\" : \"x\" , \"b\":{ \"c\": [1, 2] }}").unwrap();
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
        assert!(refused("{\"a\": {\"b\": 1,\n\"b\": 2}}").contains("\"b\" stands twice, again in line 2"));
    }
}
