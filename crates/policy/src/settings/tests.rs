use super::*;
use proptest::prelude::*;

fn read(text: &str) -> Result<Settings, String> {
    Settings::parse("/etc/terok/config.toml", text).map_err(|error| error.to_string())
}

fn upstream(url: &str) -> Result<Upstream, String> {
    read(&format!("upstream_proxy = {url:?}")).map(|settings| settings.upstream.unwrap())
}

#[test]
fn a_file_with_everything_is_read() {
    let settings = read(concat!(
        "# of this machine\n",
        "upstream_proxy = \"http://build:p%40ss%3a@Proxy.Corp.example:3128/\"\n",
        "no_proxy = [\"*.corp.example\", \"10.0.0.0/8\", \"[2001:db8::1]\"]\n",
        "[all_containers]\n",
        "\"terok.shield.profiles\" = \"dev-standard\"\n",
        "\"terok.shield.allow\" = 'a.example:443'\n",
    ))
    .unwrap();
    let upstream = settings.upstream.clone().unwrap();
    assert_eq!(
        (upstream.scheme, upstream.host.as_str(), upstream.port),
        (Scheme::Http, "proxy.corp.example", 3128)
    );
    assert_eq!(upstream.login, Some(("build".into(), "p@ss:".into())));
    assert_eq!(upstream.except, ["*.corp.example", "10.0.0.0/8", "2001:db8::1"]);
    assert!(!format!("{settings:?}").contains("p@ss"));
    let policy = settings.all_policy(&Catalog::bundled()).unwrap();
    assert_eq!(policy.profiles, ["dev-standard"]);
    assert_eq!(read("").unwrap(), Settings::default());
}

#[test]
fn every_form_of_a_proxys_url_is_read() {
    for (url, scheme, host, port) in [
        ("http://192.0.2.1:8080", Scheme::Http, "192.0.2.1", 8080),
        ("HTTP://[2001:DB8::1]:8080/", Scheme::Http, "2001:db8::1", 8080),
        ("socks5://127.0.0.1:1080", Scheme::Socks5, "127.0.0.1", 1080),
        ("socks5h://u@tor.example:9050", Scheme::Socks5, "tor.example", 9050),
    ] {
        let read = upstream(url).unwrap();
        assert_eq!((read.scheme, read.host.as_str(), read.port), (scheme, host, port), "{url}");
    }
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    for (text, error) in [
        ("\nupstream = \"x\"", "line 2: unknown key \"upstream\""),
        ("upstreamproxy = \"x\"", "line 1: unknown key \"upstreamproxy\"; did you mean \"upstream_proxy\"?"),
        ("upstream_proxy = \"proxy:3128\"", "line 1: upstream_proxy: write http://HOST:PORT"),
        ("upstream_proxy = \"https://proxy:3128\"", "over TLS is not supported"),
        ("upstream_proxy = \"ftp://proxy:3128\"", "that is no proxy's scheme"),
        ("upstream_proxy = \"http://proxy\"", "the port is missing"),
        ("upstream_proxy = \"http://[::1]\"", "the port is missing"),
        ("upstream_proxy = \"http://::1:80\"", "brackets"),
        ("upstream_proxy = \"http://proxy:99999\"", "the port is a number"),
        ("upstream_proxy = \"http://proxy:80/x\"", "nothing stands behind the port"),
        ("upstream_proxy = \"http://a b:80\"", "no host name"),
        ("upstream_proxy = \"http://:pw@proxy:80\"", "a user is not empty"),
        ("upstream_proxy = \"http://u:%zz@proxy:80\"", "the password is no printable text"),
        (
            "upstream_proxy = 3128",
            "line 1: upstream_proxy: write a string in quotes; this is of type integer",
        ),
        ("no_proxy = \"a.example\"", "no_proxy: write a list"),
        (
            "no_proxy = [\n  \"a.example\",\n  \".corp.example\" ]",
            "line 3: no_proxy: \".corp.example\": write \"*.corp.example\"",
        ),
        ("no_proxy = [\"a.example:80\"]", "no port stands here: write a.example"),
        ("no_proxy = [\"host\"]", "never go through a proxy"),
        (
            "[all_containers]\nterok.shield = \"up\"",
            "line 2: [all_containers] \"terok\": write keys in quotes",
        ),
        ("[all_containers]\n\"terok.sheild\" = \"up\"", "did you mean \"terok.shield\"?"),
        ("[all_containers]\n\"terok.shield\" = true", "type boolean"),
        ("all_containers = 1", "is a table of annotations"),
        ("upstream_proxy = \"http://u:secret@proxy", "line 1: "),
        ("a = 1\na = 2", "line 2: "),
    ] {
        let found = read(text).unwrap_err();
        assert!(
            found.starts_with("/etc/terok/config.toml line ") && found.contains(error),
            "{text}: {found}"
        );
        assert!(!found.contains('\n') && !found.contains("secret"), "{found}");
    }
}

#[test]
fn no_message_shows_a_password() {
    for url in [
        "http://u:secret@proxy",
        "http://u:secret@proxy:x",
        "http://u:secret@a b:80",
        "http://u:secret@proxy:80/x",
        "https://u:secret@proxy:80",
        "http://u:secret\u{1}@proxy:80",
        "http://u:secret",
        "http://u:secret:80",
        "http://[secret]:80",
        "secret://proxy:80",
        "u:secret@proxy:80",
    ] {
        let error = upstream(url).unwrap_err();
        assert!(!error.contains("secret"), "{error}");
    }
}

#[test]
fn a_users_word_stands_over_the_machines_key_by_key() {
    let machine = read("upstream_proxy = \"http://proxy.example:1\"\nno_proxy = [\"a.example\"]\n[all_containers]\n\"terok.name\" = \"m\"").unwrap();
    let user = read("no_proxy = [\"b.example\"]").unwrap();
    let both = user.over(machine.clone());
    assert_eq!(both.upstream.as_ref().unwrap().port, 1);
    assert_eq!(both.upstream.unwrap().except, ["b.example"]);
    assert_eq!(both.all_containers, machine.all_containers);
    let own = read("upstream_proxy = \"http://proxy.example:2\"\n[all_containers]\n\"terok.task\" = \"u\"")
        .unwrap();
    let both = own.clone().over(machine.clone());
    assert_eq!(both.upstream.as_ref().unwrap().port, 2);
    assert_eq!(both.upstream.unwrap().except, ["a.example"]);
    assert_eq!(both.all_containers, own.all_containers);
    assert_eq!(Settings::default().over(machine.clone()), machine);
}

#[test]
fn a_passphrase_command_is_a_list_and_the_machines_counts_for_nobody() {
    let text = "[vault]\npassphrase_command = [\"pass\", \"show\", \"terok\"]";
    let own = read(text).unwrap();
    assert_eq!(own.passphrase_command.as_deref().unwrap(), ["pass", "show", "terok"]);
    assert_eq!(own.over(Settings::default()).passphrase_command.unwrap().len(), 3);
    assert_eq!(Settings::default().over(read(text).unwrap()).passphrase_command, None);
    for (text, error) in [
        ("[vault]\npassphrase_command = \"pass show terok\"", "write a list"),
        ("[vault]\npassphrase_command = []", "write a list"),
        ("[vault]\npassphrase_command = [\"pass\", 1]", "type integer"),
        ("[vault]\npasphrase_command = [\"pass\"]", "did you mean \"passphrase_command\"?"),
        ("vault = 1", "write a list"),
    ] {
        let found = read(text).unwrap_err();
        assert!(found.contains(error), "{text}: {found}");
    }
}

proptest! {
    #[test]
    fn no_text_panics_and_every_error_is_one_clean_line(text in "(upstream_proxy = \"(http|socks5)://)?\\PC{0,40}\"?\n?\\PC{0,20}") {
        if let Err(error) = read(&text) {
            prop_assert!(!error.chars().any(char::is_control), "{:?}", error);
        }
    }
}
