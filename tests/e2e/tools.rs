//! Real tools in a real Debian image, unmodified, through the proxy.

use terok_tests::{Mode, Recipe, both_modes, site};

const RULES: &str = "git.example.com ssh.example.com:22 pypi.example.com deb.example.com:80 echo.example.com";

#[track_caller]
fn debian(mode: Mode, script: &str) -> String {
    let sealed = Recipe::sealed(mode, RULES)
        .debian()
        .option("--volume=/run/inet/client_key.shared:/run/key:ro")
        .option("--volume=/run/inet/known_hosts:/run/known_hosts:ro");
    let (_gone, ended) = sealed.run(&["sh", "-ec", script]);
    ended.succeeded()
}

both_modes! {
    fn git_clones_over_https(mode: Mode) {
        let out = debian(mode, "git clone -q https://git.example.com/git/repo.git /tmp/r; cat /tmp/r/README");
        assert_eq!(out.trim(), "hello from the lab");
    }

    fn git_pushes_a_branch_with_a_large_object(mode: Mode) {
        let branch = site().name;
        let out = debian(mode, &format!(
            "git clone -q https://git.example.com/git/repo.git /tmp/r; cd /tmp/r; git config user.email a@b; git config user.name a
             head -c 3000000 /dev/urandom > blob; git add blob; git commit -qm blob; git push -q origin HEAD:refs/heads/{branch}; git ls-remote origin {branch}"
        ));
        assert!(out.contains(&branch), "{out}");
    }

    fn ssh_logs_in_to_an_allowed_host(mode: Mode) {
        let out = debian(mode, "install -m 600 /run/key /tmp/key
            ssh -i /tmp/key -o UserKnownHostsFile=/run/known_hosts -o BatchMode=yes root@ssh.example.com echo through");
        assert_eq!(out.trim(), "through");
    }

    fn pip_installs_from_an_index(mode: Mode) {
        let out = debian(mode, "pip install -q --root-user-action=ignore --break-system-packages --disable-pip-version-check --index-url https://pypi.example.com/simple/ labpkg
            python3 -c 'import labpkg; print(labpkg.WORD)'");
        assert_eq!(out.trim(), "installed through the proxy");
    }

    fn apt_installs_from_a_repository(mode: Mode) {
        let out = debian(mode, "rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*; echo 'deb [trusted=yes] http://deb.example.com/ ./' > /etc/apt/sources.list
            apt-get update -q >&2; apt-get install -y -q labpkg >&2; cat /usr/share/labpkg/word");
        assert_eq!(out.trim(), "installed through the proxy");
    }

    fn python_and_node_fetch_over_https(mode: Mode) {
        let site = site();
        let sealed = Recipe::sealed(mode, &site.name).debian();
        let python = format!("import urllib.request as u; print(u.urlopen('https://{}/python').read().decode())", site.name);
        let (_gone, ended) = sealed.run(&["python3", "-c", &python]);
        assert!(ended.succeeded().contains("path=/python"));
        let node = format!("fetch('https://{}/node').then(r => r.text()).then(t => console.log(t))", site.name);
        let (_gone, ended) = sealed.run(&["node", "-e", &node]);
        assert!(ended.succeeded().contains("path=/node"));
        let (_gone, ended) = sealed.run(&["python3", "-c", &python.replace(&site.name, "evil.example.net")]);
        assert!(ended.failed().contains("Name or service not known"));
    }

    fn curl_uploads_and_downloads_unchanged(mode: Mode) {
        let site = site();
        let sealed = Recipe::sealed(mode, &site.name).debian();
        let script = format!("head -c 5000001 /dev/urandom > /tmp/f; sha256sum < /tmp/f | cut -d' ' -f1
            curl -sS --data-binary @/tmp/f https://{0}/sha; echo
            curl -sS -H 'Transfer-Encoding: chunked' --data-binary @/tmp/f http://{0}/echo | sha256sum | cut -d' ' -f1", site.name);
        let (_gone, ended) = sealed.run(&["sh", "-ec", &script]);
        let out = ended.succeeded();
        let sums: Vec<&str> = out.lines().collect();
        assert_eq!(sums.len(), 3, "{out}");
        assert!(sums.iter().all(|sum| *sum == sums[0]), "{out}");
    }

    fn a_websocket_is_upgraded_and_carries_frames(mode: Mode) {
        let site = site();
        let script = format!("
import os, socket, ssl, sys
for tls in (False, True):
    s = socket.create_connection(('{0}', 443 if tls else 80), 10)
    if tls: s = ssl.create_default_context().wrap_socket(s, server_hostname='{0}')
    s.sendall(b'GET /ws HTTP/1.1\\r\\nHost: {0}\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\nSec-WebSocket-Version: 13\\r\\n\\r\\n')
    head = b''
    while not head.endswith(b'\\r\\n\\r\\n'): head += s.recv(1)
    assert head.startswith(b'HTTP/1.1 101'), head
    s.sendall(b'\\x81\\x85\\0\\0\\0\\0hello')
    print(s.recv(7, 0 if tls else socket.MSG_WAITALL))", site.name);
        let (_gone, ended) = Recipe::sealed(mode, &site.name).debian().run(&["python3", "-c", &script]);
        assert_eq!(ended.succeeded().matches("hello").count(), 2);
    }
}
