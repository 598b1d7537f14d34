use super::Form::{Any, Dotenv, Netrc, Opaque, Pem, Pgpass, Whole, Xml};
use super::*;

/// Each secret in these is called `S3CRET` something.
const HOLDS: &[(Form, &str, usize)] = &[
    (Netrc, "machine git.example\n  login u\n  password S3CRET1\nmachine b login c password S3CRET2", 2),
    (Any, "https://u:S3CRET@git.example.com\n", 1),
    (Any, "https://S3CRET0123456789012345@github.com", 1),
    (Any, "[remote \"o\"]\n\turl = https://u:S3CRET@git.example/x.git\n", 1),
    (Any, "[http]\n\textraHeader = Authorization: Basic S3CRET\n", 1),
    (Any, "//registry.npmjs.org/:_authToken=S3CRET\nregistry=https://registry.npmjs.org/\n", 1),
    (Any, "//r.example/:_password=\"S3CRET\"\n//r.example/:username=u", 1),
    (
        Any,
        "[default]\naws_access_key_id = AKIA\naws_secret_access_key = S3CRET\naws_session_token=S3CRET2",
        2,
    ),
    (Any, r#"{"auths":{"r.example":{"auth":"S3CRET","email":"a@b"}},"credsStore":"pass"}"#, 1),
    (
        Any,
        r#"{"claudeAiOauth":{"accessToken":"S3CRET1","refreshToken":"S3CRET2","expiresAt":1,"scopes":["a"],"subscriptionType":"max"}}"#,
        2,
    ),
    (Any, "github.com:\n    user: u\n    oauth_token: S3CRET\n    git_protocol: https", 1),
    (Any, "[registry]\ntoken = \"S3CRET\"\n", 1),
    (Any, "users:\n- name: a\n  user:\n    client-key-data: S3CRET\n    token: S3CRET2", 2),
    (
        Any,
        r#"{"refresh_token":"S3CRET","client_secret":"S3CRET2","type":"authorized_user","token_uri":"https://x"}"#,
        2,
    ),
    (Any, "[pypi]\nusername = __token__\npassword = S3CRET\n", 1),
    (Whole, "S3CRET\n", 1),
    (Pem, "-----BEGIN OPENSSH PRIVATE KEY-----\nS3CRET\n-----END OPENSSH PRIVATE KEY-----", 1),
    (Pgpass, "# x\nhost:5432:db:user:S3CRET\n", 1),
    (Xml, "<settings><server><username>u</username><password>S3CRET</password></server></settings>", 1),
    (Dotenv, "API_KEY=S3CRET0123456789012345\nexport GH_TOKEN='S3CRET0123456789012345' # mine\nDEBUG=1", 2),
    (Dotenv, "ANY=sk-S3CRET0123456789012345\nDATABASE_URL=postgres://u:S3CRET@db/x", 2),
    (Opaque, "SQLite format 3", 1),
];

fn read(form: Form, content: &[u8]) -> Result<Vec<String>, &'static str> {
    secrets(form, content, &Beginnings::new([]))
}

#[test]
fn keys_of_a_provider_of_ones_own_are_told_by_how_they_begin() {
    let own = "title = \"x\"\n[token]\nlength = 44\nprefix = \"trk_\"\nalso = [\"trx_\"]\n[credential.key]\nheader = \"x-key\"\n";
    let own = terok_policy::provider::parse("own", own).unwrap();
    let beginnings = Beginnings::new([own.token()]);
    for (text, count) in
        [("A=trk_0123456789abcdef", 1), ("A=trx_0123456789abcdef", 1), ("A=try_0123456789abcdef", 0)]
    {
        assert_eq!(secrets(Dotenv, text.as_bytes(), &beginnings).unwrap().len(), count, "{text}");
        assert!(read(Dotenv, text.as_bytes()).unwrap().is_empty(), "{text}");
    }
}

#[test]
fn secrets_are_found_in_every_form() {
    for (form, text, count) in HOLDS {
        let found = read(*form, text.as_bytes()).unwrap();
        assert_eq!(found.len(), *count, "{text}: {found:?}");
    }
}

#[test]
fn files_without_a_secret_are_none() {
    for (form, text) in [
        (Any, r#"{"credsStore":"secretservice","auths":{}}"#),
        (Any, "//registry.npmjs.org/:_authToken=${NPM_TOKEN}\n"),
        (Any, "registry=https://registry.example/\n# token = x\nalways-auth=true"),
        (
            Any,
            "[core]\n\tbare = false\n[remote \"o\"]\n\turl = git@github.com:a/b.git\n[credential]\n\thelper = store",
        ),
        (Any, "[remote \"o\"]\n\turl = https://u@git.example/x.git"),
        (Netrc, "machine a login b"),
        (Pem, "ssh-ed25519 AAAA comment"),
        (Pem, "Host x\n  IdentityFile ~/.ssh/id_ed25519"),
        (
            Dotenv,
            "PORT=8080\nTOKEN_URL=https://auth.example.com/token\nSECRET_NAME=short\nAPI_KEY=your-key-goes-here-please",
        ),
        (
            Dotenv,
            "# API_KEY=sk-0123456789012345678901234\nAPI_KEY=xxxxxxxxxxxxxxxxxxxxxxx\nAPI_KEY=$OTHER_API_KEY_FROM_ELSEWHERE",
        ),
        (Xml, "<settings><interactiveMode/></settings>"),
        (Opaque, ""),
        (Whole, "\n"),
    ] {
        assert_eq!(read(form, text.as_bytes()).unwrap(), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn what_is_not_of_its_form_cannot_be_judged() {
    assert!(read(Any, b"{\"auths\":").is_err());
    assert!(read(Any, &[0xff, 0xfe, b'a']).is_err());
    assert!(read(Netrc, &[0xff]).is_err());
}
