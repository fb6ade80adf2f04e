"The bare run sees a lesson that leans on this machine, and says what it needs."
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest
from conftest import needs

PROGRAM = "scripts/bare.py"


def script(root: Path, name: str):
    "scripts/NAME.py as a module."
    spec = importlib.util.spec_from_file_location(name, root / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lesson(title: str, *cells: str) -> str:
    "A notebook that counts as a lesson."
    kernel = {"name": "mlops-course", "display_name": "x", "language": "python"}
    made = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    made.cells = [nbformat.v4.new_markdown_cell(f"# {title}\n\n> Why?"), *map(nbformat.v4.new_code_cell, cells)]
    return nbformat.writes(made)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the bare run is for Linux")
def test_lesson_that_reads_a_file_of_the_machine_fails_in_the_bare_run(root: Path, tmp_path: Path):
    for o in ("podman", "buildah"): needs(o, "runs the lessons in a bare container")
    words = Path("/usr/share/dict/words")
    if not words.is_file():
        if os.environ.get("CI"): pytest.fail(f"{words} is missing. scripts/debian.sh installs it")
        pytest.skip(f"{words} is missing, so the lesson would fail here too")
    clone = tmp_path / "a clone"
    subprocess.run(["git", "clone", "--quiet", "--no-local", root, clone], check=True)
    inside = lesson("Inside", "open('../params.yaml').read()", "import tempfile; tempfile.TemporaryFile()")
    outside = lesson("Outside", f"open('{words}').read()")
    (clone / "nbs" / "98_inside.ipynb").write_text(inside, encoding="utf-8")
    (clone / "nbs" / "99_outside.ipynb").write_text(outside, encoding="utf-8")
    make = "make env > /tmp/env.log 2>&1 || { tail -20 /tmp/env.log; exit 9; }"
    commands = [make, ".venv/bin/mlops-course run 98 99"]
    called = [sys.executable, root / PROGRAM, "--from", clone, *commands]
    done = subprocess.run(called, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    report = root / "_course" / "bare" / "out" / "run" / "report.json"
    found = {o["lesson"]: o for o in json.loads(report.read_text(encoding="utf-8"))["lessons"]}
    assert found["98_inside"]["status"] == "passed"
    assert found["99_outside"]["status"] == "failed"
    assert f"No such file or directory: '{words}'" in found["99_outside"]["traceback"]


def test_missing_podman_is_said_in_one_line_and_fails(root: Path, tmp_path: Path):
    env = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, root / PROGRAM], env=env, capture_output=True, text=True)
    assert done.returncode == 1
    (said,) = done.stderr.splitlines()
    assert "podman and buildah not found" in said
    assert "apt-get install podman buildah" in said


def test_without_podman_tests_run_the_lessons_here_but_not_in_ci(root: Path, monkeypatch: pytest.MonkeyPatch):
    bare = script(root, "bare")
    called = []
    monkeypatch.setattr(bare.shutil, "which", lambda name: None)
    def run(words, **_):
        called.append([str(o) for o in words])
        return subprocess.CompletedProcess(words, 0)
    monkeypatch.setattr(bare.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["bare.py", "--or-here"])
    monkeypatch.setenv("CI", "true")
    assert bare.main() == 1
    assert called == []
    monkeypatch.delenv("CI")
    assert bare.main() == 0
    assert called[0][1:5] == ["run", "lessons", "-p", "seed"]
    assert called[1][1:] == ["verify", "library"]


def test_snapshot_holds_what_is_not_committed(root: Path, tmp_path: Path):
    bare,folder = script(root, "bare"),tmp_path / "a checkout"
    folder.mkdir()
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b"]
    for name in ("kept", "changed", "removed", "secret"): (folder / name).write_text("old", encoding="utf-8")
    (folder / ".gitignore").write_text("secret\n", encoding="utf-8")
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message=one"]):
        subprocess.run([*git, *words], check=True)
    (folder / "changed").write_text("new", encoding="utf-8")
    (folder / "removed").unlink()
    (folder / "added").write_text("new", encoding="utf-8")
    before = subprocess.check_output([*git, "status", "--porcelain"])
    bare.snapshot(folder, tmp_path / "course.git")
    subprocess.run(["git", "clone", "--quiet", tmp_path / "course.git", tmp_path / "clone"], check=True)
    assert sorted(o.name for o in (tmp_path / "clone").iterdir()) == [".git", ".gitignore", "added", "changed", "kept"]
    assert (tmp_path / "clone" / "changed").read_text(encoding="utf-8") == "new"
    assert subprocess.check_output([*git, "status", "--porcelain"]) == before # nothing is staged there


def wheel(folder: Path, name: str, version: str, tag: str) -> None:
    "A wheel that holds nothing but what it is."
    with zipfile.ZipFile(folder / f"{name}-{version}-{tag}.whl", "w") as made:
        made.writestr(f"{name}-{version}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        made.writestr(f"{name}-{version}.dist-info/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        made.writestr(f"{name}-{version}.dist-info/RECORD", "")


def test_packages_follow_the_python_and_the_system_of_the_container(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bare = script(root, "bare")
    lines = ("# a lock", "old==1.0 ; python_full_version < '3.11.3'", "all==2.0", "other==3.0 ; sys_platform == 'amiga'")
    (tmp_path / "requirements.lock").write_text("\n".join(lines), encoding="utf-8")
    wheel(tmp_path, "old", "1.0", "py3-none-any")
    for o in ("py3-none-any", "cp27-cp27m-amiga_1_x86"): wheel(tmp_path, "all", "2.0", o)
    monkeypatch.setattr(bare, "ROOT", tmp_path)
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path))
    every,old = (f"{name} @ {(tmp_path / file).as_uri()}" for name,file in
                 (("all", "all-2.0-py3-none-any.whl"), ("old", "old-1.0-py3-none-any.whl")))
    assert bare.pinned("3.11.2") == [every, old]
    assert bare.pinned("3.11.9") == [every]


def test_make_test_runs_the_bare_run_and_no_other_papermill_run(root: Path):
    target = (root / "Makefile").read_text(encoding="utf-8").split("\ntest:")[1].split("\n\n")[0]
    assert "scripts/bare.py --or-here" in target
    assert "run -p seed" not in target
