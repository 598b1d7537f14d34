#!/usr/bin/env python3
"""conformance.py TESTS RUNTIME [KEY=VALUE…]: crun's own tests (the folder TESTS) on any OCI runtime, as a JSON object of outcomes.

RUNTIME is called as crun would be, less what only crun has where it is runc. KEY=VALUE: annotations of every configuration.
"""
import contextlib
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import types

folder, runtime, annotations = sys.argv[1], sys.argv[2], dict(word.split("=", 1) for word in sys.argv[3:])
# Checkpoints need criu, and updates and limits control groups, which the lab's runtimes are kept out of.
LEFT_OUT = {"test_checkpoint_restore", "test_update", "test_resources"}
LIMIT = 60  # seconds a test
# crun 1.8 takes a hook that ended without reading what it was told for one that failed, if it ended first.
RACE = "writing to pipe: Broken pipe"
TRIES = 10
# What fails on a busy machine alone, by a time-out of the test's own, does so once.
AGAIN = 3

os.environ.update(OCI_RUNTIME=runtime, INIT=os.path.join(folder, "init"), LANG="C")
sys.path.insert(0, folder)
sys.dont_write_bytecode = True
import tests_utils  # noqa: E402

is_runc = "runc" in os.path.basename(runtime)


def line(args):
    """Control groups are left alone; runc has neither --cgroup-manager nor --config."""
    if args[0] != runtime:
        return args
    args = list(args)
    if "--cgroup-manager" in args:
        at = args.index("--cgroup-manager")
        args[at : at + 2] = [] if is_runc else ["--cgroup-manager", "disabled"]
    elif not is_runc:
        args.insert(1, "--cgroup-manager=disabled")
    if is_runc and "--config" in args:
        at = args.index("--config")
        del args[at : at + 2]
    return args


class Popen(subprocess.Popen):
    def __init__(self, args, *rest, **more):
        super().__init__(line(args), *rest, **more)


# What run, check_output and the rest of the module start programs with.
subprocess.Popen = Popen

base = tests_utils.base_config


def base_config():
    config = base()
    # The mount of a control group's file system is what the lab cannot give.
    config["mounts"] = [mount for mount in config["mounts"] if mount["type"] != "cgroup"]
    if annotations:
        config["annotations"] = dict(annotations)
    return config


tests_utils.base_config = base_config
start = tests_utils.run_and_get_output


def run_and_get_output(*rest, **more):
    try:
        return start(*rest, **more)
    except subprocess.CalledProcessError as error:
        sys.stderr.write((error.output or b"").decode(errors="replace"))  # most tests drop it
        raise


tests_utils.run_and_get_output = run_and_get_output


class Table:
    """What the tests ask of libmount, for which Debian has no module: the options of the mount at a place (proc(5), mountinfo)."""

    def __init__(self, path):
        with open(path) as file:
            self.lines = [line.split() for line in file]

    def find_target(self, target):
        for words in self.lines:
            if words[4] == target:
                return types.SimpleNamespace(vfs_options=words[5], fs_options=words[-1])
        return None


sys.modules["libmount"] = types.SimpleNamespace(Table=Table)


class Late(Exception):
    pass


def late(*_):
    raise Late("took too long")


def result(run):
    said = io.StringIO()
    signal.alarm(LIMIT)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = run()
        outcome = {0: "ok", 77: "skipped"}.get(code, "failed")
    except BaseException as error:  # whatever a test ends with is its outcome
        outcome = "failed"
        said.write(str(getattr(error, "output", "") or error))
    signal.alarm(0)
    return outcome, said.getvalue()


signal.signal(signal.SIGALRM, late)
outcomes = {}
place = tempfile.mkdtemp()
os.chdir(place)
os.makedirs(tests_utils.get_tests_root())
for module in sorted(name[:-3] for name in os.listdir(folder) if name.startswith("test_") and name.endswith(".py")):
    if module in LEFT_OUT:
        continue
    for test, run in importlib.import_module(module).all_tests.items():
        for attempt in range(TRIES):
            outcome, said = result(run)
            if RACE not in said and (outcome != "failed" or attempt + 1 >= AGAIN):
                break
        outcomes[f"{module}/{test}"] = [outcome, said[-600:]]
subprocess.run(["rm", "-rf", place])
print(json.dumps(outcomes))
