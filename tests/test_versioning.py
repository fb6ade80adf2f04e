"Versions of data, remotes and pipelines under bad luck (lesson 06): kills, full disks, absent servers, two at once."
import os
import shutil
import signal
import subprocess
import sys
import time
from hashlib import md5
from pathlib import Path

import pytest
import yaml
from conftest import check_stage

from mlops_course.base.environment import fingerprint, git_state
from mlops_course.base.files import find_root
from mlops_course.repositories import dvc, git, repo_environment, working_in
from mlops_course.versioning import (
    LocalS3,
    commit_all,
    draw_dag,
    find_damaged,
    parse_dag,
    recorded_hashes,
    repair_cache,
    scratch_repo,
    stages_that_ran,
    stored_bytes,
)

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning") # inside DVC
POSIX = pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals, or sets a limit that only POSIX has")


def start(repo: Path, *words: str, **more) -> subprocess.Popen:
    "DVC in a process of its own, which a test may kill."
    env = repo_environment(repo)
    return subprocess.Popen([sys.executable, "-m", "dvc", *words], cwd=repo, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        encoding="utf-8", start_new_session=os.name != "nt", **more)


def kill(process: subprocess.Popen) -> None:
    "End a process at once, with what it has started, as a power cut would."
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
    process.stdout.close()


def adds_and_restores(repo, good):
    "DVC takes `data` in whole, and brings it back from its cache."
    dvc("add", "data", cwd=repo)
    assert fingerprint(repo / "data") == good
    assert find_damaged(repo / ".dvc" / "cache") == []
    shutil.rmtree(repo / "data")
    dvc("checkout", cwd=repo)
    assert fingerprint(repo / "data") == good


def wait_until(true, process: subprocess.Popen, seconds: float = 60.) -> None:
    "Wait for the moment to strike."
    end = time.monotonic() + seconds
    while not true():
        if process.poll() is not None: pytest.fail(f"the process ended before the moment came: {process.communicate()[0]}")
        if time.monotonic() > end: pytest.fail(f"the moment did not come in {seconds} s")
        time.sleep(.002)


def write_data(folder: Path, n: int = 40, size: int = 2000, salt: str = "") -> None:
    "Files that differ from one another."
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n): (folder / f"{i:04}.txt").write_text(f"{salt}{i} " * (size // 4), encoding="utf-8")


@pytest.fixture
def repo(tmp_path) -> Path:
    "A repository with a folder to track and a remote that is another folder."
    made = scratch_repo(tmp_path / "repo")
    dvc("remote", "add", "--default", "store", tmp_path / "store", cwd=made)
    write_data(made / "data")
    return made


# Helpers

@pytest.mark.slow
def test_scratch_repo_knows_no_settings_of_the_user(tmp_path, monkeypatch):
    home = tmp_path / "home"
    (home / ".config" / "dvc").mkdir(parents=True)
    (home / ".config" / "dvc" / "config").write_text("[core]\n    autostage = true\n    remote = elsewhere\n", encoding="utf-8")
    (home / ".gitconfig").write_text("[commit]\n    gpgsign = true\n[core]\n    hooksPath = /nowhere\n", encoding="utf-8")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    repo = scratch_repo(tmp_path / "repo")
    write_data(repo / "data", 3)
    dvc("add", "data", cwd=repo)
    assert "?? data.dvc" in git("status", "--short", cwd=repo) # not staged by DVC
    assert git("log", "--format=%an <%ae>", cwd=repo) == "A Learner <learner@example.org>"
    assert dvc("config", "core.remote", cwd=repo, check=False) == ""


def test_a_hook_of_git_does_not_lead_to_its_own_repository(tmp_path, monkeypatch):
    "As `git commit` sets it for the hooks of another repository."
    other = scratch_repo(tmp_path / "other")
    before = git("log", "--format=%H", cwd=other), git("status", "--short", cwd=other)
    for name, value in {"GIT_DIR": other / ".git", "GIT_WORK_TREE": other, "GIT_INDEX_FILE": other / ".git" / "index"}.items():
        monkeypatch.setenv(name, str(value))
    repo = scratch_repo(tmp_path / "repo")
    (repo / "notes.txt").write_text("09:05", encoding="utf-8")
    commit_all(repo, "Add notes")
    write_data(repo / "data", 3)
    with working_in(repo): subprocess.run(["git", "tag", "mine"], check=True)
    assert git("tag", cwd=repo) == "mine"
    assert git("log", "-1", "--format=%s", cwd=repo) == "Add notes"
    assert git_state(repo) == {"commit": git("rev-parse", "HEAD", cwd=repo), "dirty": True}
    assert os.environ["GIT_DIR"] == str(other / ".git")
    assert (git("log", "--format=%H", cwd=other), git("status", "--short", cwd=other)) == before
    assert git("tag", cwd=other) == ""


def test_environment_output_and_folder_are_given_back(repo):
    before, here, streams = dict(os.environ), Path.cwd(), (sys.stdout, sys.stderr)
    with pytest.raises(RuntimeError, match="stage"): dvc("repro", "no-such-stage", cwd=repo)
    assert (dict(os.environ), Path.cwd(), (sys.stdout, sys.stderr)) == (before, here, streams)
    with pytest.raises(ZeroDivisionError), working_in(repo): print(1 / 0)
    assert (dict(os.environ), Path.cwd(), (sys.stdout, sys.stderr)) == (before, here, streams)


def test_commands_print_nothing_themselves(repo, capfd):
    dvc("add", "data", cwd=repo)
    dvc("push", cwd=repo)
    dvc("pull", "nothing", cwd=repo, check=False)
    assert capfd.readouterr() == ("", "")


def test_recorded_reads_pointers_and_the_lock(repo):
    dvc("add", "data", cwd=repo)
    (repo / "params.yaml").write_text("a: 1\n", encoding="utf-8")
    stage = {"cmd": "python -c \"open('one.txt', 'w').write('1')\"", "outs": ["one.txt"]}
    (repo / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"one": stage}}), encoding="utf-8")
    dvc("repro", cwd=repo)
    found = recorded_hashes(repo)
    assert found["one.txt"] == md5(b"1", usedforsecurity=False).hexdigest()
    assert found["data"].endswith(".dir")
    assert len(found) == 2


def test_stages_that_ran_counts_neither_skipped_nor_cached_ones():
    said = ("Stage 'a' didn't change, skipping\nRunning stage 'b':\n> python b.py\n"
            "Stage 'c' is cached - skipping run, checking out outputs\nRunning stage 'd@v1':\n> x")
    assert stages_that_ran(said) == ["b", "d@v1"]


@pytest.mark.parametrize(("name", "ran"), [("count", ["one"]), ("size", []), ("nfiles", [])])
def test_parameter_of_an_unlucky_name_brings_back_an_old_result(repo, name, ran):
    "What the lesson warns of. When this fails for `size`, DVC has mended it: take the warning out."
    (repo / "one.py").write_text(f"import yaml\nopen('one.txt', 'w').write(str(yaml.safe_load(open('params.yaml'))['{name}']))\n", encoding="utf-8")
    stage = {"cmd": "python one.py", "deps": ["one.py"], "params": [name], "outs": ["one.txt"]}
    (repo / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"one": stage}}), encoding="utf-8")
    for value, expected in ((3, ["one"]), (4, ran)):
        (repo / "params.yaml").write_text(f"{name}: {value}\n", encoding="utf-8")
        assert stages_that_ran(dvc("repro", cwd=repo)) == expected
    assert (repo / "one.txt").read_text(encoding="utf-8") == ("4" if ran else "3")


def test_graph_of_the_project_is_drawn():
    needs = parse_dag('strict digraph {\n"feed";\n"data@v1";\n"data@v2";\n"feed" -> "data@v1";\n"feed" -> "data@v2";\n}')
    assert needs == {"feed": set(), "data@v1": {"feed"}, "data@v2": {"feed"}}
    assert {o.get_text() for o in draw_dag(needs).axes[0].texts if o.get_text()} == set(needs)


def test_repair_brings_back_damaged_and_lost_files(repo):
    dvc("add", "data", cwd=repo)
    dvc("push", cwd=repo)
    good = fingerprint(repo / "data")
    stored = sorted(o for o in (repo / ".dvc" / "cache" / "files" / "md5").rglob("*") if o.is_file())
    for path, content in ((stored[0], b"rotten"), (stored[1], b"")):
        path.chmod(0o644)
        path.write_bytes(content)
    stored[2].chmod(0o644)
    stored[2].unlink()
    (repo / "data" / "0003.txt").write_text("changed", encoding="utf-8")
    (repo / "data" / "0004.txt").unlink()
    assert find_damaged(repo / ".dvc" / "cache") == stored[:2]
    assert repair_cache(repo) == stored[:2]
    assert find_damaged(repo / ".dvc" / "cache") == []
    assert fingerprint(repo / "data") == good


@pytest.mark.slow
def test_two_servers_share_nothing(repo):
    dvc("add", "data", cwd=repo)
    with LocalS3() as first:
        first.join(repo)
        dvc("push", cwd=repo)
        assert len(first.names()) == 41
    with LocalS3() as second:
        assert second.names() == []
        assert second.endpoint.startswith("http://127.0.0.1:")
    assert "not-a-secret" not in (repo / ".dvc" / "config").read_text(encoding="utf-8")


# An absent remote

def test_unreachable_bucket_gives_a_clear_error_and_keeps_local_data(repo):
    with LocalS3() as server: server.join(repo)
    dvc("add", "data", cwd=repo)
    good, kept = fingerprint(repo / "data"), stored_bytes(repo / ".dvc" / "cache")
    for word in ("push", "fetch"):
        if word == "fetch": shutil.rmtree(repo / ".dvc" / "cache")
        with pytest.raises(RuntimeError, match=f"dvc {word} ended with .*(?s:.*)(Could not connect|failed)"): dvc(word, cwd=repo)
        assert fingerprint(repo / "data") == good
        if word == "push": assert stored_bytes(repo / ".dvc" / "cache") == kept
    dvc("commit", "--force", cwd=repo) # the cache is made again from the folder
    assert find_damaged(repo / ".dvc" / "cache") == []


def test_missing_folder_of_a_remote_is_said_on_pull(repo, tmp_path):
    dvc("add", "data", cwd=repo)
    shutil.rmtree(repo / ".dvc" / "cache")
    shutil.rmtree(repo / "data")
    with pytest.raises(RuntimeError, match="data"): dvc("pull", cwd=repo)
    assert "data" in recorded_hashes(repo)


# Killed in the middle

@POSIX
@pytest.mark.slow
def test_add_killed_in_the_middle_loses_nothing_and_can_be_repeated(repo):
    write_data(repo / "data", 3000)
    good = fingerprint(repo / "data")
    cache = repo / ".dvc" / "cache" / "files" / "md5"
    process = start(repo, "add", "data")
    wait_until(lambda: cache.is_dir() and sum(1 for _ in cache.iterdir()) > 5, process)
    kill(process)
    assert not (repo / "data.dvc").exists()
    assert fingerprint(repo / "data") == good
    adds_and_restores(repo, good)


@POSIX
@pytest.mark.slow
def test_push_killed_in_the_middle_is_continued(repo, tmp_path):
    write_data(repo / "data", 3000)
    dvc("add", "data", cwd=repo)
    commit_all(repo, "Data")
    good, store = fingerprint(repo / "data"), tmp_path / "store" / "files" / "md5"
    process = start(repo, "push")
    wait_until(lambda: store.is_dir() and sum(1 for _ in store.iterdir()) > 5, process)
    kill(process)
    there = sum(1 for o in store.rglob("*") if o.is_file())
    assert there < 3001
    assert fingerprint(repo / "data") == good
    assert find_damaged(repo / ".dvc" / "cache") == []
    assert "pushed" in dvc("push", cwd=repo)
    git("clone", "--quiet", str(repo), str(tmp_path / "clone"), cwd=tmp_path)
    dvc("pull", cwd=tmp_path / "clone")
    assert fingerprint(tmp_path / "clone" / "data") == good
    assert find_damaged(tmp_path / "store") == []


SLOW_STAGE = """\
import time
from pathlib import Path
Path('out').mkdir(exist_ok=True)
Path('out/first.txt').write_text('first')
Path('started.txt').write_text('now')
time.sleep({seconds})
Path('out/second.txt').write_text('second')
"""


@pytest.fixture
def slow_pipeline(repo) -> Path:
    "A quick stage, and one that takes a while."
    (repo / "slow.py").write_text(SLOW_STAGE.format(seconds=60), encoding="utf-8")
    (repo / "quick.py").write_text("open('quick.txt', 'w').write('done')\n", encoding="utf-8")
    stages = {"quick": {"cmd": "python quick.py", "deps": ["quick.py"], "outs": ["quick.txt"]},
              "slow": {"cmd": "python slow.py", "deps": ["quick.txt"], "outs": ["out"]}} # slow.py is no dep here, so that a test may make it quick
    (repo / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}), encoding="utf-8")
    return repo


@POSIX
@pytest.mark.slow
def test_repro_killed_in_the_middle_keeps_what_was_finished(slow_pipeline):
    process = start(slow_pipeline, "repro")
    wait_until((slow_pipeline / "started.txt").exists, process)
    kill(process)
    assert list(yaml.safe_load((slow_pipeline / "dvc.lock").read_text(encoding="utf-8"))["stages"]) == ["quick"] # half an output is no result
    (slow_pipeline / "slow.py").write_text(SLOW_STAGE.format(seconds=0), encoding="utf-8")
    assert stages_that_ran(dvc("repro", cwd=slow_pipeline)) == ["slow"]
    assert sorted(o.name for o in (slow_pipeline / "out").iterdir()) == ["first.txt", "second.txt"]
    assert stages_that_ran(dvc("repro", cwd=slow_pipeline)) == []


@POSIX
@pytest.mark.slow
def test_second_repro_is_refused_while_one_runs(slow_pipeline):
    process = start(slow_pipeline, "repro")
    try:
        wait_until((slow_pipeline / "started.txt").exists, process)
        second = start(slow_pipeline, "repro")
        said = second.communicate(timeout=120)[0]
        assert second.returncode != 0
        assert "lock" in said or "is busy" in said
        assert process.poll() is None
    finally: kill(process)
    (slow_pipeline / "slow.py").write_text(SLOW_STAGE.format(seconds=0), encoding="utf-8")
    assert stages_that_ran(dvc("repro", cwd=slow_pipeline)) == ["slow"]


# A full disk

@pytest.fixture
def small_disk(tmp_path):
    "A disk of one megabyte; None where none can be mounted."
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place]
    mounted = sys.platform == "linux" and subprocess.run(command, capture_output=True, check=False).returncode == 0
    yield place if mounted else None
    if mounted: subprocess.run(["umount", "--lazy", place], check=True)


@POSIX
@pytest.mark.slow
def test_full_disk_stops_a_push_and_the_rest_follows_later(repo, small_disk, tmp_path, limited_files):
    write_data(repo / "data", 8, size=300_000)
    dvc("add", "data", cwd=repo)
    good = fingerprint(repo / "data")
    dvc("remote", "modify", "store", "url", str(small_disk or tmp_path / "store"), cwd=repo)
    process = start(repo, "push", **({} if small_disk else {"preexec_fn": limited_files(100_000)}))
    said = process.communicate(timeout=120)[0]
    assert process.returncode != 0, said
    assert "failed" in said or "No space left" in said or "File too large" in said
    assert fingerprint(repo / "data") == good
    assert find_damaged(repo / ".dvc" / "cache") == []
    assert find_damaged(small_disk or tmp_path / "store") == []
    dvc("remote", "modify", "store", "url", str(tmp_path / "larger"), cwd=repo)
    dvc("push", cwd=repo)
    assert sum(1 for o in (tmp_path / "larger").rglob("*") if o.is_file()) == 41


@POSIX
@pytest.mark.slow
def test_full_disk_during_add_is_said_and_the_folder_stays(repo, small_disk, limited_files):
    write_data(repo / "data", 8, size=300_000)
    good = fingerprint(repo / "data")
    if small_disk: dvc("cache", "dir", str(small_disk), cwd=repo)
    process = start(repo, "add", "data", **({} if small_disk else {"preexec_fn": limited_files(100_000)}))
    said = process.communicate(timeout=120)[0] # its exit code is 0 all the same: this is why our `dvc` reads what is said
    assert "No space left" in said or "File too large" in said
    assert fingerprint(repo / "data") == good
    if small_disk: # the same through our own call, which raises
        with pytest.raises(RuntimeError, match="No space left"): dvc("add", "data", cwd=repo)
        dvc("config", "--unset", "cache.dir", cwd=repo)
    adds_and_restores(repo, good)


# The project's own pipeline

def test_data_is_ignored_by_git_and_no_remote_is_named():
    root = find_root()
    if not (root / ".git").exists(): pytest.skip("needs a clone")
    for name in ("data/v1/labels.csv", "data/v2/labels.csv", "data/feed/cairns_gtfs.zip"):
        assert subprocess.run(["git", "check-ignore", "--quiet", name], cwd=root, check=False).returncode == 0, f"git does not ignore {name}"
    assert "remote" not in (root / ".dvc" / "config").read_text(encoding="utf-8")


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_lock_knows_the_code_and_the_parameters_of_today(version):
    from mlops_course.reader.datasets import make_version
    root = find_root()
    stage = check_stage(root, f"data@{version}", [make_version])
    params = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))["data"]
    assert stage["params"]["params.yaml"]["data"] == params, "params.yaml has changed since dvc.lock: run dvc repro and commit dvc.lock"


@pytest.mark.slow
def test_fresh_clone_makes_the_data_that_the_lock_promises(tmp_path):
    root, clone = find_root(), tmp_path / "clone"
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=root, capture_output=True, check=True)
    for name in (o for o in listed.stdout.decode("utf-8").split("\0") if o and (root / o).is_file()):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, clone / name)
    (clone / "data" / "feed").mkdir(parents=True, exist_ok=True)
    shutil.copy(root / "data" / "feed" / "cairns_gtfs.zip", clone / "data" / "feed") # set-up has fetched it
    git("init", "--quiet", cwd=clone)
    promised = (clone / "dvc.lock").read_bytes()
    env = {**repo_environment(clone), "PYTHONPATH": str(clone)}
    command = [sys.executable, "-m", "dvc", "repro"]
    done = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True, encoding="utf-8", check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert stages_that_ran(done.stdout) == ["data@v1", "data@v2"]
    assert (clone / "dvc.lock").read_bytes() == promised
    for version in ("v1", "v2"): assert (clone / "data" / version / "labels.csv").is_file()
