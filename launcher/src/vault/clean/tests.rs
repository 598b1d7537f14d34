use super::*;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

fn definitions() -> Vec<(String, Definition)> {
    providers::definitions(&crate::containers::host_at(Path::new("/nowhere"))).unwrap()
}

struct Mount {
    folder: tempfile::TempDir,
}

impl Mount {
    fn new() -> Self {
        Mount { folder: tempfile::tempdir().unwrap() }
    }
    fn put(&self, path: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }
    fn search(&self) -> Report {
        let mut search = Search::new(&definitions());
        search.named(self.folder.path());
        search.found
    }
    /// Paths below the folder.
    fn names<'a>(&self, paths: impl Iterator<Item = &'a PathBuf>) -> Vec<String> {
        let base = self.folder.path();
        paths.map(|path| path.strip_prefix(base).unwrap().to_string_lossy().into_owned()).collect()
    }
    fn leaks(&self, report: &Report) -> Vec<String> {
        self.names(report.leaks.iter().map(|leak| &leak.path))
    }
    fn unchecked(&self, report: &Report) -> Vec<String> {
        self.names(report.unchecked.iter().map(|unchecked| &unchecked.path))
    }
}

const NETRC: &str = "machine git.example login u password S3CRET\n";

#[test]
fn credential_files_are_found_at_any_depth_and_others_are_not() {
    let mount = Mount::new();
    mount.put(".netrc", NETRC);
    mount.put("a/b/.aws/credentials", "aws_secret_access_key = S3CRET\n");
    mount.put("home/.claude/.credentials.json", r#"{"claudeAiOauth":{"accessToken":"sk-ant-oat01-x"}}"#);
    mount.put("home/.ssh/id_ed25519", "-----BEGIN OPENSSH PRIVATE KEY-----\nx\n");
    mount.put("home/.ssh/config", "Host x\n");
    mount.put("src/main.rs", "let password = \"S3CRET\";");
    mount.put("project/.git/config", "url = https://u:S3CRET@git.example/x\n");
    let report = mount.search();
    assert_eq!(
        mount.leaks(&report),
        [
            ".netrc",
            "a/b/.aws/credentials",
            "home/.claude/.credentials.json",
            "home/.ssh/id_ed25519",
            "project/.git/config"
        ]
    );
    assert_eq!((report.unchecked.len(), report.harmless), (0, 1));
}

#[test]
fn a_file_with_nothing_but_phantom_tokens_is_no_leak_and_one_real_secret_beside_them_is() {
    let mount = Mount::new();
    let definitions = definitions();
    let shape = definitions.iter().find(|(name, _)| name == "github").unwrap().1.token();
    let token = terok_policy::phantom::token(shape, &[7; terok_policy::phantom::MOST]);
    let basic = {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(format!("x-access-token:{token}"))
    };
    mount.put(".netrc", format!("machine github.com login x password {token}"));
    mount.put(
        "p/.git/config",
        format!("extraHeader = Authorization: Basic {basic}\nurl = https://{token}@github.com/a/b"),
    );
    mount.put("gh/hosts.yml", format!("github.com:\n  oauth_token: {token}\n"));
    assert_eq!(mount.leaks(&mount.search()), Vec::<String>::new());
    assert_eq!(mount.search().harmless, 3);
    mount
        .put("gh/hosts.yml", format!("github.com:\n  oauth_token: {token}\nother:\n  oauth_token: S3CRET\n"));
    mount.put(".netrc", format!("machine a login b password {token}x"));
    let report = mount.search();
    assert_eq!(mount.leaks(&report), [".netrc", "gh/hosts.yml"]);
    assert_eq!(report.leaks[1].secrets, 1);
}

#[test]
fn nothing_outside_is_looked_at_or_removed_whatever_links_say() {
    let (mount, outside) = (Mount::new(), Mount::new());
    outside.put(".netrc", NETRC);
    outside.put("credentials", "aws_secret_access_key = S3CRET\n");
    symlink(outside.folder.path(), mount.folder.path().join("elsewhere")).unwrap();
    symlink(outside.folder.path(), mount.folder.path().join(".aws")).unwrap();
    symlink(outside.folder.path().join(".netrc"), mount.folder.path().join(".netrc")).unwrap();
    symlink("/proc/self/environ", mount.folder.path().join(".env")).unwrap();
    let report = mount.search();
    assert_eq!(mount.leaks(&report), Vec::<String>::new());
    // A link of any other name holds nothing by itself.
    assert_eq!(mount.unchecked(&report), [".aws", ".env", ".netrc"]);
    assert!(report.unchecked.iter().all(|unchecked| unchecked.reason.contains("symbolic link")));
    assert!(outside.folder.path().join(".netrc").exists());
}

#[test]
fn a_file_that_became_a_link_after_it_was_found_removes_nothing() {
    let (mount, outside) = (Mount::new(), Mount::new());
    let target = outside.put("x", "precious");
    let path = mount.put(".netrc", NETRC);
    let mut report = mount.search();
    std::fs::remove_file(&path).unwrap();
    symlink(&target, &path).unwrap();
    report.leaks[0].remove();
    assert!(!report.leaks[0].removed && report.leaks[0].failed.is_some());
    assert!(path.is_symlink() && target.exists());
}

#[test]
fn what_cannot_be_looked_at_is_unchecked_with_the_reason() {
    let mount = Mount::new();
    mount.put(".netrc", vec![b'x'; LARGEST as usize + 1]);
    mount.put(".docker/config.json", "{\"auths\":");
    mount.put(".vault-token", [0xff, 0xfe]);
    std::fs::create_dir(mount.folder.path().join(".ssh")).unwrap();
    let _socket = UnixListener::bind(mount.folder.path().join(".ssh/agent")).unwrap();
    let report = mount.search();
    assert_eq!(mount.leaks(&report), Vec::<String>::new());
    assert_eq!(mount.unchecked(&report), [".docker/config.json", ".netrc", ".ssh/agent", ".vault-token"]);
    for (unchecked, reason) in report.unchecked.iter().zip(["JSON", "1 MiB", "socket", "not text"]) {
        assert!(unchecked.reason.contains(reason), "{unchecked:?}");
    }
}

#[test]
fn a_named_folder_that_is_a_link_a_file_or_nothing_is_unchecked() {
    let mount = Mount::new();
    let mut search = Search::new(&[]);
    let link = mount.folder.path().join("link");
    symlink("/", &link).unwrap();
    let file = mount.put("file", "");
    for path in [&link, &file, &mount.folder.path().join("none")] {
        search.named(path);
    }
    let reasons: Vec<_> = search.found.unchecked.iter().map(|unchecked| unchecked.reason.as_str()).collect();
    assert!(reasons[0].contains("symbolic link") && reasons[1].contains("not a folder"), "{reasons:?}");
    assert_eq!(reasons.len(), 3);
}

#[test]
fn a_file_system_that_is_mounted_below_is_unchecked() {
    let root = Rc::new(Folder::open(Path::new("/")).unwrap());
    let proc = root.list().unwrap().into_iter().find(|found| found.name == "proc").unwrap();
    assert!(reason(&root.folder(&proc).unwrap_err()).contains("mounted"));
}

#[test]
fn folders_without_an_end_are_unchecked_from_some_depth_on() {
    let mount = Mount::new();
    let path = vec!["d"; DEEPEST + 5].join("/");
    mount.put(&format!("{path}/.netrc"), NETRC);
    let report = mount.search();
    assert_eq!((report.leaks.len(), report.unchecked.len()), (0, 1));
}

#[test]
fn only_files_that_are_credentials_and_nothing_else_are_removed() {
    let mount = Mount::new();
    let netrc = mount.put(".netrc", NETRC);
    let env = mount.put(".env", "API_KEY=sk-01234567890123456789\n");
    let mut report = mount.search();
    report.leaks.iter_mut().for_each(Leak::remove);
    assert!(!netrc.exists() && env.exists());
    let removed: Vec<bool> = report.leaks.iter().map(|leak| leak.removed).collect();
    assert_eq!(removed, [false, true]);
}

#[test]
fn names_that_are_no_text_are_walked_all_the_same() {
    let mount = Mount::new();
    let folder = mount.folder.path().join(OsStr::from_bytes(b"\xff\x1b[2J"));
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join(".netrc"), NETRC).unwrap();
    let report = mount.search();
    assert_eq!(report.leaks.len(), 1);
    assert!(!path(&report.leaks[0].path).contains('\x1b'));
}

#[test]
fn the_report_never_holds_a_secret() {
    let mount = Mount::new();
    mount.put(".netrc", NETRC);
    let report = mount.search();
    assert!(!format!("{report:?} {}", report.json()).contains("S3CRET"));
}
