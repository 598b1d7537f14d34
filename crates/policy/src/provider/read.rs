//! Definitions as they are written: strict TOML, `like = "NAME"` for what is taken from another, every value checked.

use super::endpoint::{self, Endpoint};
use super::request;
use super::{
    BUNDLED, BaseUrl, Carrier, CredentialType, Errors, FRAMING, OAuth, Provider, ProviderError, RequestRule,
    Route, Sent, TestRequest, Token, is_provider_name,
};
use crate::name::Name;
use crate::phantom::{LEAST, MOST};
use crate::profile::Catalog;
use crate::provision;
use crate::rule::Rule;
use crate::spelling;
use serde::Deserialize;
use std::collections::BTreeMap;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Tables whose keys are taken from the other definition one by one; anything else that is written replaces the other's.
const JOINED: [&str; 4] = ["token", "base_url", "oauth", "errors"];

/// What a file defines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Definition {
    /// A provider that can be granted.
    Provider(Box<Provider>),
    /// One without `upstream`, for other definitions to be like.
    Template(Template),
}

/// A definition without `upstream`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// For people.
    pub title: String,
    /// As [`Provider::token`].
    pub token: Token,
}

impl Definition {
    /// For people.
    pub fn title(&self) -> &str {
        match self {
            Definition::Provider(provider) => &provider.title,
            Definition::Template(template) => &template.title,
        }
    }
    /// The shape of its tokens.
    pub fn token(&self) -> &Token {
        match self {
            Definition::Provider(provider) => &provider.token,
            Definition::Template(template) => &template.token,
        }
    }
}

/// The provider `name` of `catalog`, ready to be granted.
pub fn resolve(catalog: &Catalog, name: &str) -> Result<Provider, ProviderError> {
    match read(catalog, name)? {
        Definition::Provider(provider) => Ok(*provider),
        Definition::Template(_) => Err(ProviderError {
            provider: name.to_owned(),
            place: String::new(),
            reason: format!(
                "it has no upstream and is there to be taken from: write `like = {name:?}` and `upstream = \"https://…\"` into a file of your own"
            ),
        }),
    }
}

/// Reads the definition `name` from `text`, with what it is like taken from the bundled ones.
pub fn parse(name: &str, text: &str) -> Result<Definition, ProviderError> {
    let mut catalog = Catalog::bundled();
    catalog.providers.insert(name.to_owned(), text.to_owned());
    read(&catalog, name)
}

/// Reads the definition `name` of `catalog`. A file that is like its own name is like the bundled definition of that name.
pub fn read(catalog: &Catalog, name: &str) -> Result<Definition, ProviderError> {
    let mut open: Vec<&str> = Vec::new();
    let Some((name, text)) = catalog.providers.get_key_value(name) else {
        let hint = spelling::hint(name, catalog.providers.keys().map(String::as_str));
        let provider = name.chars().take(64).flat_map(char::escape_default).collect();
        return Err(ProviderError {
            provider,
            place: String::new(),
            reason: format!("there is no such provider{hint}"),
        });
    };
    let file = File { name, text };
    let table = joined(catalog, &file, &mut open)?;
    let written = written(table).map_err(|error| file.refuse::<&str>(&[], first_line(error.message())))?;
    settle(name, written).map_err(|wrong| file.refuse(&wrong.path, wrong.reason))
}

/// A definition's own text.
struct File<'a> {
    name: &'a str,
    text: &'a str,
}

/// The table of `file` over that of the definition it is like.
fn joined<'a>(
    catalog: &'a Catalog,
    file: &File<'a>,
    open: &mut Vec<&'a str>,
) -> Result<DeTable<'a>, ProviderError> {
    let at = |error: toml::de::Error| {
        let line = error.span().map_or(0, |span| file.line(span.start));
        let place = if line == 0 { String::new() } else { format!("line {line}") };
        ProviderError { provider: file.name.to_owned(), place, reason: first_line(error.message()) }
    };
    let mut own = DeTable::parse(file.text).map_err(at)?.into_inner();
    let Some(like) = written(own.clone()).map_err(at)?.like else { return Ok(own) };
    own.remove("like");
    open.push(file.name);
    let bundled = || BUNDLED.iter().find(|(name, _)| *name == like).copied();
    let other = if open.contains(&like.as_str()) {
        let circle =
            || file.refuse(&["like"], format!("goes round in a circle: {} → {like}", open.join(" → ")));
        // Its own name can only mean the bundled one, and that once.
        let own_name = like == file.name && open.iter().filter(|name| **name == like).count() == 1;
        bundled().filter(|_| own_name).ok_or_else(circle)?
    } else {
        let known = catalog.providers.get_key_value(&like);
        known.map(|(name, text)| (name.as_str(), text.as_str())).ok_or_else(|| {
            let hint = spelling::hint(&like, catalog.providers.keys().map(String::as_str));
            file.refuse(&["like"], format!("there is no provider {like:?}{hint}"))
        })?
    };
    let mut table = joined(catalog, &File { name: other.0, text: other.1 }, open)?;
    for (key, value) in own {
        match table.get_mut(&key).map(Spanned::get_mut) {
            Some(DeValue::Table(below))
                if value.get_ref().is_table() && JOINED.contains(&&**key.get_ref()) =>
            {
                if let DeValue::Table(over) = value.into_inner() {
                    below.extend(over);
                }
            }
            _ => {
                table.insert(key, value);
            }
        }
    }
    Ok(table)
}

/// The keys of `table`, checked but for what they say.
fn written(table: DeTable<'_>) -> Result<Written, toml::de::Error> {
    Written::deserialize(toml::de::Deserializer::from(Spanned::new(0..0, table)))
}

/// A file's keys; which of them must be there is known only once it is joined with what it is like.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    like: Option<String>,
    title: Option<String>,
    upstream: Option<String>,
    #[serde(default)]
    hosts: Vec<String>,
    #[serde(default)]
    route: Vec<WrittenRoute>,
    token: Option<Token>,
    base_url: Option<BaseUrl>,
    #[serde(default)]
    credential: BTreeMap<CredentialType, Sent>,
    oauth: Option<OAuth>,
    #[serde(default)]
    rule: Vec<RequestRule>,
    #[serde(default)]
    egress: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    git: BTreeMap<String, String>,
    #[serde(default)]
    restricted_env: BTreeMap<String, String>,
    #[serde(default)]
    errors: Errors,
    #[serde(default)]
    files: Vec<String>,
    test: Option<TestRequest>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRoute {
    path: String,
    upstream: String,
}

/// What is wrong, by its keys and positions from the outside in.
struct Wrong {
    path: Vec<String>,
    reason: String,
}

fn wrong<T>(path: &[&str], reason: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { path: path.iter().map(|&key| key.to_owned()).collect(), reason: reason.into() })
}

/// Checks everything and makes a provider of it, or a template.
fn settle(name: &str, written: Written) -> Result<Definition, Wrong> {
    if !is_provider_name(name) {
        return wrong(&[], "a provider is named by 1 to 64 of a to z, 0 to 9 and -");
    }
    let title = match written.title {
        Some(title) if !title.is_empty() && title.len() <= 128 && !title.chars().any(char::is_control) => {
            title
        }
        Some(_) => return wrong(&["title"], "write a line of at most 128 characters"),
        None => return wrong(&["title"], "is missing: write what people call the service"),
    };
    let Some(token) = written.token else {
        return wrong(&["token"], "is missing: write what a container gets in the credential's place");
    };
    check_token(&token)?;
    check_credentials(&written.credential, written.oauth.as_ref())?;
    if let Some(base_url) = &written.base_url {
        check_base_url(base_url)?;
    }
    check_texts(&written.env, &written.restricted_env, &written.git, &written.errors)?;
    check_files(&written.files)?;
    check_test(written.test.as_ref())?;
    let Some(upstream) = written.upstream else {
        return Ok(Definition::Template(Template { title, token }));
    };
    let endpoint = |path: &[&str], url: &str| Endpoint::parse(url).or_else(|reason| wrong(path, reason));
    let upstream = endpoint(&["upstream"], &upstream)?;
    let mut route = Vec::new();
    for (at, written) in written.route.iter().enumerate() {
        let at = at.to_string();
        let path =
            request::check_prefix(&written.path).or_else(|reason| wrong(&["route", &at, "path"], reason));
        let route_upstream = endpoint(&["route", &at, "upstream"], &written.upstream)?;
        route.push(Route { path: path?, upstream: route_upstream });
    }
    let hosts = hosts(&upstream, &route, &written.hosts)?;
    for (at, rule) in written.rule.iter().enumerate() {
        let at = at.to_string();
        request::check_rule(rule).or_else(|(key, reason)| wrong(&["rule", &at, key], reason))?;
        let endpoints = || std::iter::once(&upstream).chain(route.iter().map(|route| &route.upstream));
        let known =
            |host: &Name| hosts.contains(host) || endpoints().any(|endpoint| endpoint.name() == Some(host));
        if rule.host.as_ref().is_some_and(|host| !known(host)) {
            return wrong(&["rule", &at, "host"], "is none of the provider's hosts");
        }
    }
    let mut egress: Vec<Rule> = Vec::new();
    for (at, text) in written.egress.iter().enumerate() {
        let read = text
            .parse()
            .or_else(|error: crate::rule::RuleError| wrong(&["egress", &at.to_string()], error.to_string()));
        egress.push(read?);
    }
    Ok(Definition::Provider(Box::new(Provider {
        name: name.to_owned(),
        title,
        upstream,
        hosts,
        route,
        token,
        base_url: written.base_url.filter(|base_url| !base_url.variables.is_empty()),
        credential: written.credential,
        oauth: written.oauth,
        rule: written.rule,
        egress,
        env: written.env,
        git: written.git,
        restricted_env: written.restricted_env,
        errors: written.errors,
        files: written.files,
        test: written.test,
    })))
}

/// The names of the upstreams on port 443 and those that are `written`: there is no tunnel to where the credential is sent (V3).
fn hosts(upstream: &Endpoint, route: &[Route], written: &[String]) -> Result<Vec<Name>, Wrong> {
    let mut hosts: Vec<Name> = Vec::new();
    let mut add = |name: &Name| {
        if !hosts.contains(name) {
            hosts.push(name.clone());
        }
    };
    let endpoints = std::iter::once(upstream).chain(route.iter().map(|route| &route.upstream));
    endpoints.filter(|endpoint| endpoint.port == 443).filter_map(Endpoint::name).for_each(&mut add);
    for (at, text) in written.iter().enumerate() {
        let at = at.to_string();
        let place = ["hosts", at.as_str()];
        match Name::parse(text) {
            Ok(name) if name.is_reserved() || endpoint::is_local(&name) => {
                return wrong(&place, format!("{name} is no name of the outside"));
            }
            Ok(name) => add(&name),
            Err(_) if text.starts_with("*.") => {
                return wrong(&place, "write each host: a wildcard is no host");
            }
            Err(error) => return wrong(&place, error.to_string()),
        }
    }
    Ok(hosts)
}

fn check_token(token: &Token) -> Result<(), Wrong> {
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b));
    for (key, text) in [("prefix", &token.prefix), ("suffix", &token.suffix)] {
        if !plain(text) {
            return wrong(&["token", key], format!("{text:?}: a token is of letters, digits and -._~+/="));
        }
    }
    for (at, text) in token.also.iter().enumerate() {
        if text.len() < 3 || !plain(text) {
            let why = "the beginning of a token is three or more letters, digits and -._~+/=";
            return wrong(&["token", "also", &at.to_string()], format!("{text:?}: {why}"));
        }
    }
    let least = token.prefix.len() + token.alphabet.mark().len() + LEAST + token.suffix.len();
    match token.length {
        0 => return wrong(&["token", "length"], "is missing: write how many characters a token has"),
        length if length < least => {
            let why = "prefix, suffix, terok's mark and 24 random characters";
            return wrong(
                &["token", "length"],
                format!("{length} is too short for {why}: write at least {least}"),
            );
        }
        length if length > MOST => return wrong(&["token", "length"], format!("write at most {MOST}")),
        _ => {}
    }
    check_variables(&["token", "variables"], &token.variables)?;
    if token.carriers.is_empty() {
        return wrong(
            &["token", "carriers"],
            "write where a request carries it: \"bearer\", \"basic\" or { header = … }",
        );
    }
    for (at, carrier) in token.carriers.iter().enumerate() {
        if let Carrier::Header(header) = carrier {
            check_header(&["token", "carriers", &at.to_string()], header)?;
        }
    }
    Ok(())
}

fn check_credentials(
    credential: &BTreeMap<CredentialType, Sent>,
    oauth: Option<&OAuth>,
) -> Result<(), Wrong> {
    if credential.is_empty() {
        return wrong(&["credential"], "is missing: write how a credential is sent, [credential.key]");
    }
    for (kind, sent) in credential {
        let kind_key = match kind {
            CredentialType::Key => "key",
            CredentialType::Basic => "basic",
            CredentialType::OAuth => "oauth",
        };
        let place = |key| ["credential", kind_key, key];
        check_header(&place("header"), &sent.header)?;
        check_value(&place("prefix"), &sent.prefix)?;
        if *kind == CredentialType::Basic && !sent.prefix.is_empty() {
            return wrong(
                &place("prefix"),
                "a user name and a password have a form of their own (RFC 7617); remove it",
            );
        }
        let user = |user: &str| {
            !user.is_empty() && !user.contains(':') && user.bytes().all(|b| b.is_ascii_graphic())
        };
        if sent.prefix.strip_prefix("basic:").is_some_and(|rest| !user(rest)) {
            return wrong(&place("prefix"), "write basic:USER, without a further colon");
        }
        if sent.basic.as_ref().is_some_and(|basic| !user(basic)) {
            return wrong(&place("basic"), "write a user name, without a colon");
        }
        if *kind == CredentialType::Basic && sent.basic.is_some() {
            return wrong(&place("basic"), "it has a user name of its own; remove it");
        }
        for (header, value) in &sent.headers {
            check_header(&place("headers"), header)?;
            check_value(&place("headers"), value)?;
            if *header == sent.header {
                return wrong(&place("headers"), format!("{header:?} holds the credential already"));
            }
        }
    }
    let Some(OAuth { token_url, client_id, import, .. }) = oauth else { return Ok(()) };
    if !credential.contains_key(&CredentialType::OAuth) {
        return wrong(&["oauth"], "there is no [credential.oauth] that says how its token is sent");
    }
    Endpoint::parse(token_url).or_else(|reason| wrong(&["oauth", "token_url"], reason))?;
    if client_id.is_empty() || !client_id.bytes().all(|b| b.is_ascii_graphic()) {
        return wrong(&["oauth", "client_id"], "write the public client identifier");
    }
    let Some(import) = import else { return Ok(()) };
    for pointer in
        [Some(&import.access), Some(&import.refresh), import.expires.as_ref()].into_iter().flatten()
    {
        if !pointer.starts_with('/') || pointer.chars().any(char::is_control) {
            return wrong(&["oauth", "import"], format!("{pointer:?} is no JSON pointer: write /KEY/KEY"));
        }
    }
    Ok(())
}

fn check_base_url(base_url: &BaseUrl) -> Result<(), Wrong> {
    check_variables(&["base_url", "variables"], &base_url.variables)?;
    if base_url.path.is_empty() {
        return Ok(());
    }
    request::check_prefix(&base_url.path).map(|_| ()).or_else(|reason| wrong(&["base_url", "path"], reason))
}

fn check_texts(
    env: &BTreeMap<String, String>,
    restricted_env: &BTreeMap<String, String>,
    git: &BTreeMap<String, String>,
    errors: &Errors,
) -> Result<(), Wrong> {
    for (table, pairs) in [("env", env), ("restricted_env", restricted_env)] {
        for (variable, text) in pairs {
            check_variables(&[table, variable], std::slice::from_ref(variable))?;
            provision::check_template(text).or_else(|reason| wrong(&[table, variable], reason))?;
        }
    }
    for (key, text) in git {
        // `section.key` or `section.SUBSECTION.key`, as `git config` has it.
        let word = |text: &str| {
            text.starts_with(|c: char| c.is_ascii_alphabetic())
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        let section = key.split_once('.').map_or("", |(section, _)| section);
        let last = key.rsplit_once('.').map_or("", |(_, last)| last);
        if !word(section) || !word(last) || key.chars().any(char::is_control) {
            return wrong(
                &["git", key],
                "is no git configuration: write section.key or section.subsection.key",
            );
        }
        provision::check_template(text).or_else(|reason| wrong(&["git", key], reason))?;
    }
    errors.challenge.as_ref().map_or(Ok(()), |challenge| check_value(&["errors", "challenge"], challenge))
}

fn check_test(test: Option<&TestRequest>) -> Result<(), Wrong> {
    let Some(test) = test else { return Ok(()) };
    if !test.path.starts_with('/')
        || !test.path.bytes().all(|b| b.is_ascii_graphic())
        || test.path.contains('#')
    {
        return wrong(&["test", "path"], "write the path of a GET, /v1/models");
    }
    for (name, value) in &test.headers {
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if name.is_empty() || !name.bytes().all(fits) || !value.bytes().all(|b| matches!(b, b' '..=b'~')) {
            return wrong(&["test", "headers", name], "write a lower-case header name and its value");
        }
    }
    Ok(())
}

fn check_files(files: &[String]) -> Result<(), Wrong> {
    for (at, file) in files.iter().enumerate() {
        let plain = |part: &str| !matches!(part, "" | "." | "..");
        if !file.split('/').all(plain) || file.chars().any(char::is_control) {
            let reason = format!("{file:?}: write a path below the home directory, .config/x/token");
            return wrong(&["files", &at.to_string()], reason);
        }
    }
    Ok(())
}

fn check_variables(place: &[&str], variables: &[String]) -> Result<(), Wrong> {
    for (at, variable) in variables.iter().enumerate() {
        let first = |c: char| c.is_ascii_alphabetic() || c == '_';
        let word = variable.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !variable.starts_with(first) || !word || variable.len() > 128 {
            return wrong(place, format!("{variable:?} is no name of a variable"));
        }
        if provision::is_own_variable(variable) {
            return wrong(place, format!("{variable} is set by terok itself"));
        }
        if variables.iter().take(at).any(|other| other == variable) {
            return wrong(place, format!("{variable} is written twice"));
        }
    }
    Ok(())
}

/// A header that may hold a credential (RFC 9110 §5.6.2, and lower case as HTTP/2 has it).
fn check_header(place: &[&str], header: &str) -> Result<(), Wrong> {
    let token = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&b);
    if header.is_empty() || header.len() > 128 || !header.bytes().all(token) {
        return wrong(place, format!("{header:?} is no header in lower case"));
    }
    if FRAMING.contains(&header) {
        return wrong(place, format!("{header:?} is part of how a message is sent, and no place for it"));
    }
    Ok(())
}

fn check_value(place: &[&str], value: &str) -> Result<(), Wrong> {
    if value.len() > 1024 || !value.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) {
        return wrong(place, "a header's value is printable ASCII, 1024 characters at most");
    }
    Ok(())
}

impl File<'_> {
    /// The line where the value at `path` is written, or else the keys themselves: they came from what the file is like.
    fn refuse<T: AsRef<str>>(&self, path: &[T], reason: String) -> ProviderError {
        let keys: Vec<&str> = path.iter().map(AsRef::as_ref).collect();
        let dotted: Vec<&str> = keys.iter().copied().filter(|key| key.parse::<usize>().is_err()).collect();
        let dotted: String = dotted.join(".").chars().flat_map(char::escape_default).collect();
        let line = (0..keys.len()).rev().find_map(|last| self.line_of(&keys[..=last]));
        let (place, reason) = match line {
            Some(line) => (format!("line {line}"), format!("{dotted}: {reason}")),
            None => (dotted, reason),
        };
        ProviderError { provider: self.name.to_owned(), place, reason }
    }

    /// The line of the value at these keys and positions.
    fn line_of(&self, path: &[&str]) -> Option<usize> {
        let table = DeTable::parse(self.text).ok()?;
        let (first, rest) = path.split_first()?;
        let mut here = table.get_ref().get(*first)?;
        for step in rest {
            here = match here.get_ref() {
                DeValue::Table(table) => table.get(*step)?,
                DeValue::Array(list) => list.get(step.parse::<usize>().ok()?)?,
                _ => return None,
            };
        }
        Some(self.line(here.span().start))
    }

    /// The line of an octet, from 1.
    fn line(&self, at: usize) -> usize {
        let before = self.text.as_bytes().get(..at).unwrap_or_default();
        before.iter().filter(|&&octet| octet == b'\n').count() + 1
    }
}

/// Nothing that moves a cursor.
fn first_line(message: &str) -> String {
    let line = message.lines().next().unwrap_or("no TOML");
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
