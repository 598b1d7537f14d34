#!/bin/bash
# content.sh FOLDER: what the fake internet serves: a git repository, a Python index, a Debian repository.
set -e
W=$1; mkdir -p "$W"/{git,static,pypi/simple/labpkg,deb}; T=$(mktemp -d); trap 'rm -rf "$T"' EXIT
export HOME=$T GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_NAME=lab GIT_AUTHOR_EMAIL=lab@example.com GIT_COMMITTER_NAME=lab GIT_COMMITTER_EMAIL=lab@example.com
git init -q --bare -b main "$W/git/repo.git"
git init -q -b main "$T/repo"; echo 'hello from the lab' > "$T/repo/README"
git -C "$T/repo" add -A; git -C "$T/repo" commit -qm 'First commit'; git -C "$T/repo" push -q "$W/git/repo.git" main

python3 - "$W/pypi/simple" <<'X'
import base64, hashlib, sys, zipfile
root = sys.argv[1]; wheel = "labpkg-1.0-py3-none-any.whl"; info = "labpkg-1.0.dist-info"
files = {"labpkg.py": "WORD = 'installed through the proxy'\n", f"{info}/METADATA": "Metadata-Version: 2.1\nName: labpkg\nVersion: 1.0\n",
         f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: lab\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
record = "".join(f"{n},sha256={base64.urlsafe_b64encode(hashlib.sha256(t.encode()).digest()).rstrip(b'=').decode()},{len(t)}\n" for n, t in files.items())
with zipfile.ZipFile(f"{root}/labpkg/{wheel}", "w") as z:
    for n, t in files.items(): z.writestr(n, t)
    z.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")
open(f"{root}/labpkg/index.html", "w").write(f'<!DOCTYPE html><a href="{wheel}">{wheel}</a>\n')
open(f"{root}/index.html", "w").write('<!DOCTYPE html><a href="labpkg/">labpkg</a>\n')
X

mkdir -p "$T/deb/DEBIAN" "$T/deb/usr/share/labpkg"; echo 'installed through the proxy' > "$T/deb/usr/share/labpkg/word"
printf 'Package: labpkg\nVersion: 1.0\nArchitecture: all\nMaintainer: lab <lab@example.com>\nDescription: a package of the lab\n' > "$T/deb/DEBIAN/control"
dpkg-deb --root-owner-group -b "$T/deb" "$W/deb/labpkg_1.0_all.deb" >/dev/null
(cd "$W/deb" && dpkg-scanpackages -m . 2>/dev/null > Packages)
