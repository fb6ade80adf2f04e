"What runs on other machines than ours is at least well formed, pinned and asks for no more rights than it needs."
import json
import re
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SHELL = [ROOT / ".ci" / "run", *sorted((ROOT / "scripts").glob("*.sh"))]


def script(name: str):
    "A script of the project as a module."
    spec = spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


newest, hooks = script("newest"), script("hooks")


def call(*command: str | Path) -> None:
    "Run a `command` from this environment; the test fails with what it says."
    program = Path(sys.executable).with_name(str(command[0]))
    found = shutil.which(program) or shutil.which(str(command[0]))
    assert found, f"{command[0]} is not installed: python scripts/environment.py"
    done = subprocess.run([found, *map(str, command[1:])], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, f"{command[0]} says:\n{done.stdout}{done.stderr}"


def steps(workflow: Path) -> list[dict]:
    "Every step of every job."
    return [step for job in yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"].values() for step in job["steps"]]


def test_the_workflows_are_there():
    assert [o.stem for o in WORKFLOWS] == ["deliver", "newest", "site", "tests"]


def test_workflows_pass_actionlint():
    call("actionlint", *WORKFLOWS)


def test_workflows_pass_zizmor():
    call("zizmor", "--offline", "--no-progress", "--quiet", ROOT / ".github")


def test_workflows_fit_their_schema():
    call("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *WORKFLOWS)


def test_dependabot_fits_its_schema():
    call("check-jsonschema", "--builtin-schema", "vendor.dependabot", ROOT / ".github" / "dependabot.yml")


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda o: o.stem)
def test_actions_are_pinned_by_commit_with_their_version_beside(workflow: Path):
    lines = [line for line in workflow.read_text(encoding="utf-8").splitlines() if "uses:" in line]
    assert lines
    for line in lines: assert re.search(r"uses: [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line


def test_one_action_has_one_pin():
    pins: dict[str, set[str]] = {}
    for workflow in WORKFLOWS:
        for step in steps(workflow):
            if "uses" in step: pins.setdefault(step["uses"].partition("@")[0], set()).add(step["uses"])
    assert [o for o in pins.values() if len(o) > 1] == []


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda o: o.stem)
def test_no_checkout_keeps_its_credentials(workflow: Path):
    for step in steps(workflow):
        if step.get("uses", "").startswith("actions/checkout@"): assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda o: o.stem)
def test_only_jobs_that_run_none_of_our_code_may_write(workflow: Path):
    content = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    assert set(content["permissions"].values()) <= {"read"}
    for name, job in content["jobs"].items():
        if "write" in job.get("permissions", {}).values():
            assert not any(step.get("uses", "").startswith("actions/checkout@") for step in job["steps"]), name


def test_every_system_and_the_oldest_and_newest_python_are_tested():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))["jobs"]
    systems = {jobs["linux"]["runs-on"], *(o["system"] for o in jobs["other"]["strategy"]["matrix"]["include"])}
    assert {o.partition("-")[0] for o in systems} == {"ubuntu", "macos", "windows"}
    assert jobs["linux"]["strategy"]["matrix"]["python"] == ["3.11", "3.13"]


@pytest.mark.skipif(sys.platform == "win32", reason="the bash of Windows may be one for another system")
@pytest.mark.parametrize("path", SHELL, ids=lambda o: o.name)
def test_shell_scripts_parse(path: Path):
    call("bash", "-n", path)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed: bash scripts/debian.sh")
@pytest.mark.parametrize("path", SHELL, ids=lambda o: o.name)
def test_shell_scripts_pass_shellcheck(path: Path):
    call("shellcheck", path)


@pytest.mark.parametrize("path", SHELL, ids=lambda o: o.name)
def test_shell_scripts_stop_at_the_first_error(path: Path):
    assert "\nset -euo pipefail\n" in path.read_text(encoding="utf-8")


def test_ci_runs_the_test_command_of_the_readme_last():
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").rstrip().endswith("\nmake test")


@pytest.mark.skipif(sys.platform != "linux", reason="the script is for Debian")
class TestDebianPackages:
    "scripts/debian.sh with a make-believe dpkg-query, apt-get, id and sudo in front of the real ones."

    @pytest.fixture
    def world(self, tmp_path: Path):
        "A function that runs the script: which user, with what installed."
        def fake(name: str, body: str) -> None:
            path = tmp_path / name
            path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
            path.chmod(0o755)

        def run(user: int, state: str, sudo: bool, daemons: bool = True):
            fake("dpkg-query", f"printf {state}")
            fake("apt-get", f'echo "$@" >> {tmp_path}/calls')
            fake("id", f"echo {user}")
            for name in ("prometheus", "promtool", "prometheus-alertmanager", "amtool"):
                if daemons: fake(name, "exit 0")
            for name in ("mkdir", "cp"): fake(name, "exit 0")
            fake("install", f'echo install "$@" >> {tmp_path}/calls')
            fake("chromium", "exit 0")
            fake("sudo", 'shift; exec "$@"' if sudo else "exit 1")
            done = subprocess.run(["bash", ROOT / "scripts" / "debian.sh"], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True)
            calls = tmp_path / "calls"
            return done, calls.read_text(encoding="utf-8") if calls.exists() else ""
        return run

    def test_nothing_is_called_where_everything_is_there(self, world):
        done, calls = world(0, "installed", sudo=False)
        assert done.returncode == 0
        assert calls == ""

    def test_root_installs_what_is_missing(self, world):
        done, calls = world(0, "config-files", sudo=False)
        assert done.returncode == 0
        assert "install --quiet --yes --no-install-recommends fonts-dejavu-core fonts-liberation tesseract-ocr" in calls

    def test_what_makes_a_virtual_environment_is_installed(self, world):
        _, calls = world(0, "not-installed", sudo=False)
        assert "python3-venv" in calls.split()

    def test_sudo_without_a_password_installs_too(self, world):
        done, calls = world(1000, "not-installed", sudo=True)
        assert done.returncode == 0
        assert "tesseract-ocr-eng" in calls

    def test_only_the_programs_of_services_are_taken(self, world):
        "Their packages would start them with the machine."
        done, calls = world(0, "installed", sudo=False, daemons=False)
        assert done.returncode == 0, done.stderr
        assert "download --quiet prometheus prometheus-alertmanager" in calls
        assert "install --quiet --yes" not in calls
        assert all(f"/usr/bin/{o} /usr/local/bin/" in calls for o in ("prometheus", "promtool", "prometheus-alertmanager", "amtool"))

    def test_an_ordinary_user_is_told_the_command(self, world):
        done, calls = world(1000, "not-installed", sudo=False)
        assert done.returncode == 1
        assert calls == ""
        assert "sudo apt-get update && sudo apt-get install" in done.stderr
        assert "fonts-liberation" in done.stderr


def test_devcontainer_sets_up_as_everybody_does():
    config = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    assert config["image"].startswith("python:3.11")
    for path in re.findall(r"scripts/\S+", config["postCreateCommand"]): assert (ROOT / path).is_file(), path
    assert "scripts/debian.sh" in config["postCreateCommand"]
    assert "scripts/environment.py" in config["postCreateCommand"]


def test_pre_commit_configuration_is_valid():
    call("pre-commit", "validate-config", ROOT / ".pre-commit-config.yaml")


def test_hooks_need_no_network():
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [o["repo"] for o in repos] == ["local"]
    assert {hook["language"] for hook in repos[0]["hooks"]} == {"system"}


def test_hook_finds_a_notebook_that_is_not_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    notebook = json.loads(next((ROOT / "nbs" / "tools").glob("*.ipynb")).read_text(encoding="utf-8"))
    notebook["cells"][0]["metadata"]["collapsed"] = True
    path = tmp_path / "dirty.ipynb"
    path.write_text(json.dumps(notebook), encoding="utf-8")
    monkeypatch.setattr(hooks, "ROOT", tmp_path)
    (tmp_path / "settings.ini").write_text((ROOT / "settings.ini").read_text(encoding="utf-8"), encoding="utf-8")
    assert "collapsed" in hooks.unclean(path)
    assert hooks.unclean(path).endswith("nbdev_clean --fname dirty.ipynb")
    path.write_text("", encoding="utf-8")
    assert hooks.unclean(path).startswith("dirty.ipynb is no notebook, or damaged")


def test_hook_finds_a_module_that_was_edited_or_left_behind(tmp_path: Path):
    for name in ("nbs/tools", "mlops_course/tools"): (tmp_path / name).mkdir(parents=True)
    for name in ("settings.ini", "nbs/tools/house.ipynb", "mlops_course/__init__.py", "mlops_course/tools/__init__.py", "mlops_course/_modidx.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    module = (ROOT / "mlops_course" / "tools" / "house.py").read_text(encoding="utf-8")
    (tmp_path / "mlops_course" / "tools" / "house.py").write_text(module + "edited = 1\n", encoding="utf-8")
    (tmp_path / "mlops_course" / "orphan.py").touch()
    said = hooks.stale_exports(tmp_path)
    assert any(o.startswith("mlops_course/tools/house.py differs") and "edited = 1" in o for o in said)
    assert "mlops_course/orphan.py is exported by no notebook: remove it" in said


class TestNewest:
    "Which lesson broke with which package."

    OLD = "# a lock\neasyocr==1.7.1\nnumpy==2.4.5\nrich==14.0\nold-thing==1.0\nwindows-thing==1.0 ; sys_platform == 'amiga'\n"
    NEW = "# a lock\neasyocr==1.7.2\nnumpy==2.4.6\nrich==14.0\nnew-thing==1.0\nwindows-thing==2.0 ; sys_platform == 'amiga'\n"

    def test_changes_are_those_of_this_system(self):
        changed = newest.changes(newest.pins(self.OLD), newest.pins(self.NEW))
        assert changed == {"easyocr": ("1.7.1", "1.7.2"), "numpy": ("2.4.5", "2.4.6"), "old-thing": ("1.0", ""), "new-thing": ("", "1.0")}

    def test_imports_are_found_anywhere_in_a_cell(self):
        assert newest.imported("%matplotlib inline\nimport numpy as np\ndef f():\n    from scipy.stats import norm\n!ls") >= {"numpy", "scipy.stats"}

    def test_imports_of_the_course_are_followed(self, tmp_path: Path):
        package = tmp_path / "mlops_course"
        (package / "tools").mkdir(parents=True)
        (package / "ocr.py").write_text("from .project import seed\nimport cv2", encoding="utf-8")
        (package / "project.py").write_text("import structlog\nfrom .tools.house import find_root", encoding="utf-8")
        (package / "tools" / "house.py").write_text("import click", encoding="utf-8")
        (package / "other.py").write_text("import mlflow", encoding="utf-8")
        lesson = tmp_path / "02_ocr.ipynb"
        lesson.write_text(json.dumps({"cells": [{"cell_type": "code", "source": ["from mlops_course import ocr\n", "import PIL.Image"]}]}), encoding="utf-8")
        assert newest.modules_of(lesson, package) == {"structlog", "cv2", "click", "PIL"}

    def test_neighbours_are_found_in_any_folder(self, tmp_path: Path):
        package = tmp_path / "mlops_course"
        (package / "reader").mkdir(parents=True)
        (package / "reader" / "engines.py").write_text("from . import layout\nfrom .boxes import crop\nfrom .. import other", encoding="utf-8")
        for at, name in (("reader/layout", "easyocr"), ("reader/boxes", "rapidocr"), ("other", "click"), ("layout", "mlflow")):
            (package / f"{at}.py").write_text(f"import {name}", encoding="utf-8")
        lesson = tmp_path / "02_ocr.ipynb"
        lesson.write_text(json.dumps({"cells": [{"cell_type": "code", "source": "from mlops_course.reader.engines import Engine"}]}), encoding="utf-8")
        assert newest.modules_of(lesson, package) == {"easyocr", "rapidocr", "click"}

    def test_modules_are_named_by_their_packages(self):
        assert newest.packages_of({"cv2", "PIL", "yaml", "no_such_module"}) == {"opencv-python-headless", "pillow", "pyyaml"}

    def test_requirements_are_followed(self):
        assert {"jinja2", "markupsafe"} <= newest.needed_by({"nbconvert"})
        assert "nbconvert" not in newest.needed_by({"nbconvert"})

    def test_report_names_the_lesson_the_error_and_the_suspects(self):
        changed = newest.changes(newest.pins(self.OLD), newest.pins(self.NEW))
        failed = {"lesson": "02_ocr", "status": "failed", "traceback": "…\n\x1b[31mValueError\x1b[0m: a | b\n"}
        report = newest.write_report([{"lesson": "01_lifecycle", "status": "passed"}, failed], changed, {"02_ocr": ({"easyocr", "rich"}, {"numpy"})})
        row = next(line for line in report.splitlines() if line.startswith("| 02_ocr"))
        assert row == "| 02_ocr | failed | ValueError: a \\| b | easyocr 1.7.1 → 1.7.2 | numpy 2.4.5 → 2.4.6 |"
        assert "01_lifecycle" not in report
        assert "- old-thing 1.0 (gone)" in report

    def test_report_of_a_good_week_says_so(self):
        assert newest.write_report([{"lesson": "01_lifecycle", "status": "passed"}], {}, {}).startswith("All 1 lessons run")

    def test_report_says_when_nothing_could_be_installed(self):
        assert "so no lesson ran" in newest.write_report(None, {}, {})

    @pytest.mark.parametrize(("status", "code"), [("passed", 0), ("failed", 1)])
    def test_command_fails_where_a_lesson_broke(self, tmp_path: Path, status: str, code: int):
        (tmp_path / "old.lock").write_text(self.OLD, encoding="utf-8")
        (tmp_path / "new.lock").write_text(self.NEW, encoding="utf-8")
        result = {"lesson": "01_lifecycle", "status": status, "traceback": "KeyError: 1"}
        (tmp_path / "report.json").write_text(json.dumps({"lessons": [result]}), encoding="utf-8")
        command = [sys.executable, ROOT / "scripts" / "newest.py", "--old", "old.lock", "--new", "new.lock", "--results", "report.json"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")
        assert done.returncode == code, done.stderr
        assert ("| 01_lifecycle | failed | KeyError: 1 |" in done.stdout) == bool(code)
