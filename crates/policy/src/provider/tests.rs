use super::*;
use crate::provider::{Alphabet, ErrorShape};
use proptest::prelude::*;

const SMALL: &str = "title = \"X\"\nupstream = \"https://api.x.example\"\n[token]\nlength = 40\n[credential.key]\nheader = \"x-key\"\n";

fn provider(name: &str, text: &str) -> Provider {
    match parse(name, text).unwrap() {
        Definition::Provider(provider) => *provider,
        Definition::Template(_) => panic!("{name} has no upstream"),
    }
}

fn refused(text: &str) -> String {
    parse("x", text).unwrap_err().to_string()
}

#[test]
fn every_file_in_the_folder_is_bundled_and_says_whom_it_serves() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../profiles/providers");
    let mut files: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .filter_map(|entry| {
            entry.unwrap().file_name().to_str().unwrap().strip_suffix(".toml").map(str::to_owned)
        })
        .collect();
    files.sort();
    assert_eq!(files, Catalog::bundled().providers.into_keys().collect::<Vec<_>>());
    for (name, text) in BUNDLED {
        assert!(text.starts_with(&format!("# {name}: ")), "{name}: no header");
        assert!(
            text.lines().take(4).any(|line| line.starts_with("# For ")),
            "{name}: does not say whom it serves"
        );
        parse(name, text).unwrap();
    }
}

#[test]
fn bundled_providers_can_be_granted_and_templates_say_what_to_write() {
    let catalog = Catalog::bundled();
    let templates = ["basic", "bearer", "openai-compatible"];
    for (name, _) in BUNDLED {
        match resolve(&catalog, name) {
            Ok(provider) => {
                assert!(!templates.contains(name), "{name}");
                let json = serde_json::to_string(&provider).unwrap();
                assert_eq!(serde_json::from_str::<Provider>(&json).unwrap(), provider);
                assert!(!provider.token.variables.is_empty(), "{name}");
                assert!(provider.egress.iter().all(|rule| !rule.direct), "{name} needs a card");
            }
            Err(error) => {
                assert!(templates.contains(name), "{error}");
                assert!(error.to_string().contains(&format!("like = {name:?}")), "{error}");
            }
        }
    }
}

#[test]
fn a_bundled_provider_refuses_what_makes_or_prints_keys() {
    for (name, host, refused, allowed) in [
        (
            "anthropic",
            "api.anthropic.com",
            &[
                "POST /api/oauth/claude_cli/create_api_key",
                "GET /v1/organizations/api_keys",
                "POST /v1/oauth/token",
            ][..],
            &[
                "POST /v1/messages",
                "POST /v1/messages/count_tokens",
                "GET /api/oauth/usage",
                "GET /v1/models",
            ][..],
        ),
        (
            "openai",
            "api.openai.com",
            &[
                "POST /v1/realtime/client_secrets",
                "GET /v1/organization/admin_api_keys",
                "POST /v1/realtime/sessions/",
            ],
            &[
                "POST /v1/responses",
                "POST /v1/chat/completions",
                "GET /v1/realtime",
                "DELETE /v1/files/file-1",
            ],
        ),
        (
            "openrouter",
            "openrouter.ai",
            &["GET /api/v1/keys", "POST /api/v1/keys/", "POST /api/v1/auth/keys", "GET /settings/keys"],
            &["POST /api/v1/chat/completions", "GET /api/v1/auth/key"],
        ),
        (
            "github",
            "api.github.com",
            &[
                "POST /gists",
                "POST /user/keys",
                "POST /user/repos",
                "POST /repos/o/r/keys",
                "POST /repos/o/r/hooks",
                "POST /repos/o/r/forks",
                "PATCH /repos/o/r",
                "POST /repos/o/r",
                "patch /repos/o/r",
                "PUT /repos/o/r/branches/a/b/protection",
                "GET /repos/o/r/secret-scanning/alerts",
                "GET /orgs/o/secret-scanning/alerts/1",
                "PATCH /repositories/1",
                "POST /repositories/1/keys",
                "POST /repos/o/r/actions/runners/registration-token",
                "PUT /repos/o/r/collaborators/x",
                "PUT /repos/o/r/dependabot/secrets/x",
                "PUT /repos/o/r/actions/oidc/customization/sub",
                "GET /copilot_internal/v2/token",
                "POST /orgs/o/repos",
                "POST /repos/o/r/KEYS",
                "POST /repos/o/r/%6beys",
            ],
            &[
                "GET /user",
                "GET /repos/o/r",
                "GET /gists/1",
                "POST /repos/o/r/pulls",
                "PATCH /repos/o/r/issues/1",
                "PUT /repos/o/r/contents/keys/a%20b.md",
                "POST /graphql",
                "GET /repositories/1/issues",
            ],
        ),
        (
            "github",
            "github.com",
            &["GET /settings/tokens", "POST /login", "GET /o/r/edit/main/a", "POST /o/r/info/refs"],
            &[
                "GET /o/r.git/info/refs",
                "POST /o/r.git/git-receive-pack",
                "POST /o/r.git/info/lfs/objects/batch",
            ],
        ),
        (
            "github",
            "uploads.github.com",
            &["POST /x", "DELETE /repos/o/r/releases/1/assets"],
            &["POST /repos/o/r/releases/1/assets"],
        ),
        (
            "gitlab",
            "gitlab.com",
            &[
                "POST /api/v4/personal_access_tokens/self/rotate",
                "POST /api/v4/personal_access_tokens.json",
                "POST /api/v4/user/personal_access_tokens",
                "POST /api/v4/projects/g%2Fp/access_tokens",
                "GET /api/v4/projects/g%2Fp/variables",
                "POST /api/v4/projects/1/remote_mirrors",
                "POST /api/v4/projects",
                "POST /api/v4/projects.json",
                "PUT /api/v4/projects/1",
                "POST /api/v4/projects/g%2Fp",
                "POST /api/v4/projects/1/transfer",
                "POST /api/v4/projects/1/trigger/pipeline",
                "POST /api/v4/projects/1/ref/a/b/trigger/pipeline",
                "POST /api/v4/code_suggestions/direct_access",
                "POST /api/v4/ai/duo_workflows/direct_access",
                "GET /api/v4/projects/1/pipelines/2/variables",
                "GET /api/v4/projects/1/pipeline_schedules/2",
                "PUT /api/v4/projects/1/access_requests/2/approve",
                "PATCH /api/v4/projects/1/job_token_scope",
                "DELETE /api/v4/projects/1/protected_branches/main",
                "PUT /api/v4/projects/1/mirror/pull",
                "POST /api/v4/bulk_imports",
                "POST /api/graphql",
                "GET /-/user_settings/personal_access_tokens",
            ],
            &[
                "GET /api/v4/projects/g%2Fp",
                "POST /api/v4/projects/g%2Fp/merge_requests",
                "GET /api/v4/projects/1/pipelines/2/jobs",
                "GET /api/v4/projects/1/pipeline_schedules",
                "GET /api/v4/projects/1/protected_branches",
                "GET /api/v4/user",
                "GET /g/sub/p.git/info/refs",
                "POST /g/p.git/git-upload-pack",
                "PUT /g/p.git/gitlab-lfs/objects/ab/12",
            ],
        ),
    ] {
        let provider = resolve(&Catalog::bundled(), name).unwrap();
        let host: Name = host.parse().unwrap();
        assert!(provider.is_host(&host), "{name} {host}");
        let ask = |request: &&str| {
            let (method, path) = request.split_once(' ').unwrap();
            provider.judge(method, Some(&host), path)
        };
        for request in refused {
            assert!(ask(request).is_err(), "{name}: {request}");
        }
        for request in allowed {
            assert_eq!(ask(request), Ok(()), "{name}: {request}");
        }
    }
}

#[test]
fn a_definition_takes_from_another_and_replaces_what_it_writes() {
    let mine = provider(
        "mine",
        "like = \"openai\"\ntitle = \"Mine\"\nupstream = \"http://10.0.0.5:8000/v1\"\nrule = []\n[token]\nvariables = [\"MY_KEY\"]\n[base_url]\npath = \"\"\n",
    );
    let openai = resolve(&Catalog::bundled(), "openai").unwrap();
    assert_eq!((mine.name.as_str(), mine.title.as_str()), ("mine", "Mine"));
    assert_eq!(mine.upstream.to_string(), "http://10.0.0.5:8000/v1");
    assert_eq!(mine.token.variables, ["MY_KEY"]);
    assert_eq!((&mine.token.prefix, mine.token.length), (&openai.token.prefix, openai.token.length));
    assert_eq!(mine.base_url.as_ref().unwrap().variables, ["OPENAI_BASE_URL"]);
    assert_eq!(mine.base_url.as_ref().unwrap().path, "");
    assert_eq!(mine.credential, openai.credential);
    assert!(mine.rule.is_empty() && mine.hosts().is_empty() && mine.is_base_url_only());
}

#[test]
fn a_file_may_be_like_the_bundled_definition_of_its_own_name() {
    let narrower = provider("github", "like = \"github\"\negress = []\n");
    let bundled = resolve(&Catalog::bundled(), "github").unwrap();
    assert!(narrower.egress.is_empty());
    assert_eq!(Provider { egress: bundled.egress.clone(), ..narrower }, bundled);
    let mut catalog = Catalog::bundled();
    for (name, text) in [("a", "like = \"b\""), ("b", "like = \"a\""), ("own", "like = \"own\"")] {
        catalog.providers.insert(name.into(), text.into());
    }
    assert_eq!(
        read(&catalog, "a").unwrap_err().to_string(),
        "provider b line 1: like: goes round in a circle: a → b → a"
    );
    assert!(read(&catalog, "own").unwrap_err().to_string().contains("circle: own → own"));
}

#[test]
fn hosts_are_the_upstreams_and_what_is_written_beside_them() {
    let hosts =
        |text: &str| -> Vec<String> { provider("x", text).hosts().iter().map(ToString::to_string).collect() };
    assert_eq!(hosts(SMALL), ["api.x.example"]);
    let more = format!(
        "hosts = [\"Git.X.example\", \"api.x.example\"]\nroute = [{{ path = \"/up\", upstream = \"https://up.x.example/v2\" }}]\n{SMALL}"
    );
    assert_eq!(hosts(&more), ["api.x.example", "up.x.example", "git.x.example"]);
    assert!(hosts(&SMALL.replace("https://api.x.example", "https://api.x.example:8443")).is_empty());
}

#[test]
fn everything_that_can_be_written_is_read() {
    let text = format!(
        "{SMALL}prefix = \"basic:me\"\nheaders = {{ x-beta = \"1\" }}\n[errors]\nshape = \"message\"\nchallenge = 'Basic realm=\"x\"'\n[env]\nX_URL = \"{{base_url}}/x\"\nX_CA = \"{{ca}}\"\nX_AUTH = \"{{basic:me}}\"\n[git]\n\"http.https://x.example/.extraHeader\" = \"X: {{token}}\"\n[[rule]]\nmethods = [\"GET\"]\nhost = \"api.x.example\"\npath = \"/a/*/**/b\"\nallow = true\n"
    );
    let read = provider("x", &text);
    assert_eq!((read.errors.shape, read.token.alphabet), (ErrorShape::Message, Alphabet::Base62));
    assert_eq!(read.env.len(), 3);
    assert_eq!(read.judge("GET", Some(&"api.x.example".parse().unwrap()), "/a/1/2/3/b"), Ok(()));
    assert_eq!(read.judge("GET", Some(&"api.x.example".parse().unwrap()), "/a/1/b"), Ok(()));
    assert_eq!(
        read.judge("GET", Some(&"api.x.example".parse().unwrap()), "/a/b"),
        Err(crate::provider::Refused::Unlisted)
    );
}

#[test]
fn the_documentation_names_every_key_and_its_examples_are_right() {
    let page = include_str!("../../../../docs/providers.md");
    // The parser's own list of keys.
    for unknown in [
        "zz = 1",
        "token = { zz = 1 }",
        "oauth = { zz = 1 }",
        "credential = { key = { zz = 1 } }",
        "rule = [{ zz = 1 }]",
        "errors = { zz = 1 }",
    ] {
        let error = refused(unknown);
        let keys: Vec<&str> = error.split_once("expected").unwrap().1.split('`').skip(1).step_by(2).collect();
        assert!(keys.len() >= 2, "{error}");
        for key in keys {
            assert!(page.contains(&format!("`{key}`")), "{key} is not documented");
        }
    }
    let examples: Vec<(&str, &str)> = page
        .split("```toml\n# ")
        .skip(1)
        .map(|rest| rest.split_once("```").unwrap().0.split_once(".toml\n").unwrap())
        .collect();
    assert!(examples.len() >= 4);
    for (name, text) in examples {
        let read = provider(name, text);
        if name == "github-website" {
            gives_one_repository_and_nothing_that_gives_it_away(&read);
        }
    }
    for (name, _) in BUNDLED {
        assert!(page.contains(&format!("`{name}`")), "{name} is not listed");
    }
}

fn gives_one_repository_and_nothing_that_gives_it_away(provider: &Provider) {
    let ask = |host: &str, request: &str, own: &str| {
        let (method, path) = request.split_once(' ').unwrap();
        let path = path.replacen("REPOSITORY", own, 1);
        provider.judge(method, Some(&host.parse().unwrap()), &path).is_ok()
    };
    for (host, request, allowed) in [
        ("api.github.com", "GET /repos/REPOSITORY", true),
        ("api.github.com", "GET /repos/REPOSITORY/actions/runs", true),
        ("api.github.com", "POST /repos/REPOSITORY/pulls", true),
        ("api.github.com", "PATCH /repos/REPOSITORY/issues/1", true),
        ("api.github.com", "PUT /repos/REPOSITORY/contents/a", true),
        ("api.github.com", "POST /repos/REPOSITORY", false),
        ("api.github.com", "PATCH /repos/REPOSITORY", false),
        ("api.github.com", "POST /repos/REPOSITORY/transfer", false),
        ("api.github.com", "POST /repos/REPOSITORY/forks", false),
        ("api.github.com", "PUT /repos/REPOSITORY/collaborators/x", false),
        ("api.github.com", "POST /repos/REPOSITORY/actions/runners/registration-token", false),
        ("api.github.com", "POST /repos/REPOSITORY/keys", false),
        ("api.github.com", "GET /repos/REPOSITORY/secret-scanning/alerts", false),
        ("api.github.com", "POST /graphql", false),
        ("github.com", "GET /REPOSITORY.git/info/refs", true),
        ("github.com", "POST /REPOSITORY/git-receive-pack", true),
        ("github.com", "POST /REPOSITORY/settings", false),
    ] {
        assert_eq!(ask(host, request, "example/website"), allowed, "{request}");
        assert!(!ask(host, request, "example/other"), "{request}");
    }
}

#[test]
fn a_credential_is_sent_in_the_form_the_container_asked_with() {
    let github = resolve(&Catalog::bundled(), "github").unwrap();
    let sent = &github.credential[&CredentialType::Key];
    for (asked, form) in [
        (None, ("authorization", "Bearer ")),
        (Some("Bearer x"), ("authorization", "Bearer ")),
        (Some("token x"), ("authorization", "Bearer ")),
        (Some("BASIC eDp5"), ("authorization", "basic:x-access-token")),
    ] {
        let sent = sent.as_asked(asked);
        assert_eq!((sent.header.as_str(), sent.prefix.as_str()), form, "{asked:?}");
    }
    let anthropic = resolve(&Catalog::bundled(), "anthropic").unwrap();
    let sent = &anthropic.credential[&CredentialType::Key];
    assert_eq!(sent.as_asked(Some("Basic eDp5")), *sent);
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    for (old, new, error) in [
        ("title = \"X\"\n", "", "title: is missing: write what people call the service"),
        ("title = \"X\"", "title = 1", "line 1: invalid type: integer `1`, expected a string"),
        ("title = \"X\"", "tilte = \"X\"", "line 1: unknown field `tilte`, expected one of"),
        ("https://", "http://", "line 2: upstream: a credential goes to a name over TLS only"),
        ("length = 40", "length = 20", "line 4: token.length: 20 is too short for prefix"),
        ("length = 40", "length = 256", "line 4: token.length: write at most 255"),
        ("length = 40", "prefix = \"x\"", "line 3: token.length: is missing"),
        ("length = 40", "length = 40\nprefix = \"a b\"", "line 5: token.prefix: \"a b\""),
        ("length = 40", "length = 40\nalso = [\"ghp_\", \"x\"]", "line 5: token.also: \"x\""),
        (
            "length = 40",
            "length = 40\nvariables = [\"A\", \"A\"]",
            "line 5: token.variables: A is written twice",
        ),
        (
            "length = 40",
            "length = 40\nvariables = [\"1A\"]",
            "line 5: token.variables: \"1A\" is no name of a variable",
        ),
        ("length = 40", "length = 40\nvariables = [\"GIT_CONFIG_COUNT\"]", "is set by terok itself"),
        ("length = 40", "length = 40\ncarriers = []", "line 5: token.carriers: write where"),
        (
            "length = 40",
            "length = 40\ncarriers = [{ header = \"X-Key\" }]",
            "line 5: token.carriers: \"X-Key\" is no header in lower case",
        ),
        ("length = 40", "length = 40\nalphabet = \"hexx\"", "line 5: unknown variant `hexx`"),
        ("\"x-key\"", "\"host\"", "line 6: credential.key.header: \"host\" is part of how a message is sent"),
        ("\"x-key\"", "\"x-key\"\nprefix = \"a\\nb\"", "line 7: credential.key.prefix: a header's value"),
        ("\"x-key\"", "\"x-key\"\nbasic = \"a:b\"", "line 7: credential.key.basic: write a user name"),
        ("[credential.key]\nheader = \"x-key\"\n", "", "credential: is missing"),
        (
            "\"x-key\"",
            "\"x-key\"\n[oauth]\ntoken_url = \"https://x.example\"\nclient_id = \"x\"",
            "line 7: oauth: there is no [credential.oauth]",
        ),
        ("\"x-key\"", "\"x-key\"\n[env]\nA = \"{tokn}\"", "line 8: env.A: {tokn}: write {token}"),
        ("\"x-key\"", "\"x-key\"\n[git]\nA = \"x\"", "line 8: git.A: is no git configuration"),
        (
            "\"x-key\"",
            "\"x-key\"\n[[rule]]\npath = \"/a\"\nallow = true\n[[rule]]\npath = \"a\"\nallow = true",
            "line 11: rule.path: \"a\": write",
        ),
        (
            "\"x-key\"",
            "\"x-key\"\n[[rule]]\npath = \"/**/a/**\"\nallow = true",
            "line 8: rule.path: `**` stands once",
        ),
        (
            "\"x-key\"",
            "\"x-key\"\n[[rule]]\npath = \"/a*\"\nallow = true",
            "line 8: rule.path: \"a*\": `*` stands for a whole segment",
        ),
        (
            "\"x-key\"",
            "\"x-key\"\n[[rule]]\npath = \"/%61\"\nallow = true",
            "line 8: rule.path: \"%61\": write a segment as it reads",
        ),
        (
            "\"x-key\"",
            "\"x-key\"\n[[rule]]\nmethods = [\"get\"]\npath = \"/a\"\nallow = true",
            "line 8: rule.methods: \"get\"",
        ),
        (
            "\"x-key\"",
            "\"x-key\"\n[[rule]]\nhost = \"y.example\"\npath = \"/a\"\nallow = true",
            "line 8: rule.host: is none of",
        ),
        ("title", "hosts = [\"*.x.example\"]\ntitle", "line 1: hosts: write each host"),
        ("title", "hosts = [\"db\"]\ntitle", "line 1: hosts: db is no name of the outside"),
        (
            "title",
            "egress = [\"https://x\"]\ntitle",
            "line 1: egress: \"https://x\": write the host name alone",
        ),
        ("title", "files = [\"../x\"]\ntitle", "line 1: files: \"../x\": write a path below"),
        (
            "title",
            "like = \"opnai\"\ntitle",
            "line 1: like: there is no provider \"opnai\"; did you mean \"openai\"?",
        ),
        (
            "title",
            "route = [{ path = \"up\", upstream = \"https://a.example\" }]\ntitle",
            "line 1: route.path: \"up\"",
        ),
    ] {
        assert!(SMALL.contains(old), "{old}");
        let error_found = refused(&SMALL.replacen(old, new, 1));
        assert!(
            error_found.starts_with("provider x ") && error_found.contains(error),
            "{new:?}: {error_found}"
        );
        assert!(!error_found.contains('\n'));
    }
    let inherited =
        refused("like = \"basic\"\nupstream = \"https://x.example\"\n[token]\nprefix = \"x\"\nlength = 4\n");
    assert_eq!(
        inherited,
        "provider x line 5: token.length: 4 is too short for prefix, suffix, terok's mark and 24 random characters: write at least 30"
    );
    assert!(
        resolve(&Catalog::bundled(), "antropic")
            .unwrap_err()
            .to_string()
            .ends_with("did you mean \"anthropic\"?")
    );
}

proptest! {
    #[test]
    fn no_text_panics_and_every_error_is_one_line(text in "\\PC{0,60}", value in "\\PC{0,20}", key in "(title|upstream|hosts|token|like|env|rule|git)") {
        let mixed = format!("{key} = {value:?}\n{SMALL}");
        for text in [&text, &mixed] {
            if let Err(error) = parse("x", text) {
                prop_assert!(!error.to_string().chars().any(char::is_control), "{:?}", error);
            }
        }
    }
}
