"Settings, logs, seeds, fingerprints and the recorded environment (lesson 01), across files and processes."
import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from traceback import format_exception

import numpy as np
import pytest

from mlops_course.base.environment import environment, fingerprint, seed_everything
from mlops_course.base.files import cached_file, find_root
from mlops_course.base.logs import get_logger
from mlops_course.base.settings import Secrets, load_settings

CONFIG = "paths: {data: data, runs: _course}\nservices: {lab_port: 8888}\n"
PARAMS = "seed: 0\nocr: {min_side: 8, max_pixels: 50000000}\nscoring: {resamples: 2000}\n"


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    "The developer's own variables decide nothing here."
    for name in list(os.environ):
        if name.startswith("MLOPS_COURSE_") or name.lower() in Secrets.model_fields: monkeypatch.delenv(name)


@pytest.fixture
def project(tmp_path) -> Path:
    "A folder with settings that are right."
    (tmp_path / "config.yaml").write_text(CONFIG, encoding="utf-8")
    (tmp_path / "params.yaml").write_text(PARAMS, encoding="utf-8")
    return tmp_path


def refusal(project: Path) -> str:
    "What `load_settings` says about the folder `project`."
    with pytest.raises(ValueError) as error: load_settings(project)
    return str(error.value)


def test_settings_of_the_course_load_from_any_folder(monkeypatch):
    monkeypatch.chdir(find_root() / "nbs")
    settings = load_settings()
    assert settings.paths.data == find_root() / "data"
    assert settings.paths.runs == find_root() / "_course"
    assert (settings.services.lab_port, settings.params.seed, settings.params.ocr.min_side) == (8888, 0, 8)


def test_paths_are_absolute_and_follow_the_root(project, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("else where")
    (project / "config.yaml").write_text(CONFIG.replace("_course", json.dumps(str(elsewhere))), encoding="utf-8")
    settings = load_settings(project)
    assert settings.paths.data == project.resolve() / "data"
    assert settings.paths.runs == elsewhere


def test_settings_do_not_change_once_read(project):
    with pytest.raises(ValueError, match="frozen"): load_settings(project).params.seed = 1


@pytest.mark.parametrize("value", ["zero", "1.5", "-1", "yes", "[1]", "", "4294967296"])
def test_wrong_seed_is_refused_by_file_key_and_value(project, value):
    (project / "params.yaml").write_text(PARAMS.replace("seed: 0", f"seed: {value}"), encoding="utf-8")
    said = refusal(project)
    assert "params.yaml, seed: found" in said
    assert "expected" in said
    assert "Correct the value" in said


def test_unknown_key_is_refused_with_a_suggestion(project):
    (project / "params.yaml").write_text(PARAMS.replace("resamples", "resample"), encoding="utf-8")
    said = refusal(project)
    assert "params.yaml, scoring.resample: found 2000, expected one of the keys resamples. Rename it to resamples" in said
    assert "params.yaml, scoring.resamples: found nothing" in said


def test_all_problems_are_listed_together(project):
    (project / "config.yaml").write_text("paths: {data: data, runs: _course}\nservices: {lab_port: 0}\n", encoding="utf-8")
    (project / "params.yaml").write_text(PARAMS.replace("seed: 0", "seed: zero").replace("8,", "eight,"), encoding="utf-8")
    (project / ".env").write_text("WRONG=1\n", encoding="utf-8")
    said = refusal(project)
    assert said.startswith("4 errors in")
    for part in ("config.yaml, services.lab_port", "params.yaml, seed", "params.yaml, ocr.min_side", ".env, WRONG"): assert part in said


@pytest.mark.parametrize("name", ["config.yaml", "params.yaml"])
def test_missing_file_is_named_once_and_hides_no_other_problem(project, name):
    (project / name).unlink()
    (project / ".env").write_text("WRONG=1\n", encoding="utf-8")
    said = refusal(project)
    assert said.startswith("2 errors in")
    assert f"{name}: found no such file" in said
    assert f"git checkout -- {name}" in said
    assert ".env, WRONG" in said


@pytest.mark.parametrize(("text", "part"), [
    ("seed: [", "is not YAML"), ("- 1\n- 2\n", "expected lines of `key: value`"), ("", "seed: found nothing"), ("ocr: 5", "keys of its own"),
])
def test_file_that_is_no_list_of_settings_is_refused(project, text, part):
    (project / "params.yaml").write_text(text, encoding="utf-8")
    assert part in refusal(project)


def test_file_that_is_not_utf8_is_refused(project):
    (project / "params.yaml").write_bytes(b"seed: \xff\xfe")
    assert "params.yaml: is not YAML" in refusal(project)


def test_section_in_the_wrong_file_is_refused(project):
    (project / "config.yaml").write_text(CONFIG + "params: {seed: 5}\n", encoding="utf-8")
    assert "Move it to params.yaml" in refusal(project)


def test_environment_variable_wins_over_the_file(project, monkeypatch):
    monkeypatch.setenv("MLOPS_COURSE_PARAMS__SEED", "7")
    monkeypatch.setenv("MLOPS_COURSE_PATHS__RUNS", "elsewhere")
    settings = load_settings(project)
    assert settings.params.seed == 7
    assert settings.params.ocr.min_side == 8
    assert settings.paths.runs == project.resolve() / "elsewhere"


@pytest.mark.parametrize(("name", "value"), [("MLOPS_COURSE_PARAMS__SEED", "seven"), ("MLOPS_COURSE_PARAMS__SEDE", "7"), ("MLOPS_COURSE_PARAM__SEED", "7"),
    ("mlops_course_params__seed", "seven"), ("MLOPS_COURSE_PARAMS__SEED__X", "7"), ("MLOPS_COURSE_PARAMS", "seed"),
    ("MLOPS_COURSE_PARAMS__GATES__SLICES", "render"), ("MLOPS_COURSE_SECRETS", "hunter2"),
    ("MLOPS_COURSE_PATHS__RUNS", ""), ("MLOPS_COURSE_PATHS__RUNS", "."), ("MLOPS_COURSE_PATHS__RUNS", "~no-such-user/runs")])
def test_wrong_environment_variable_is_blamed_by_its_name(project, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    (project / "config.yaml").write_text(CONFIG + "more: 1\n", encoding="utf-8")
    said = refusal(project)
    assert f"environment, {name}: found" in said
    assert "hunter2" not in said


def test_other_variables_of_the_course_are_left_alone(project, monkeypatch):
    monkeypatch.setenv("MLOPS_COURSE_BATCH", "1")
    assert load_settings(project).params.seed == 0


def test_secrets_come_from_dotenv_and_the_environment_wins(project, monkeypatch):
    (project / ".env").write_text("# mine\nMLFLOW_TRACKING_URI=http://from-file\nGOOGLE_APPLICATION_CREDENTIALS=\n", encoding="utf-8")
    assert load_settings(project).secrets.mlflow_tracking_uri.get_secret_value() == "http://from-file"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://from-shell")
    secrets = load_settings(project).secrets
    assert secrets.mlflow_tracking_uri.get_secret_value() == "http://from-shell"
    assert secrets.google_application_credentials.get_secret_value() == ""


def test_reading_secrets_leaves_the_environment_alone(project):
    (project / ".env").write_text("MLFLOW_TRACKING_URI=http://from-file\n", encoding="utf-8")
    before = dict(os.environ)
    load_settings(project)
    assert dict(os.environ) == before


def test_secret_is_shown_nowhere(project):
    (project / ".env").write_text("MLFLOW_TRACKING_URI=hunter2\n", encoding="utf-8")
    settings, file = load_settings(project), io.StringIO()
    get_logger("test", file=file, settings=settings).info("start", uri=settings.secrets.mlflow_tracking_uri, all=settings.model_dump())
    try: raise RuntimeError("stopped")
    except RuntimeError: get_logger("test", file=file).exception("failed", secrets=settings.secrets)
    assert "stopped" in file.getvalue()
    for text in (repr(settings), str(settings.secrets), settings.model_dump_json(), file.getvalue()): assert "hunter2" not in text


@pytest.mark.parametrize("line", ["MLFLOW_TRACKING_URL=hunter2", "hunter2", "MLFLOW_TRACKING_URI"])
def test_refusal_of_dotenv_does_not_show_values(project, line):
    (project / ".env").write_text(f"{line}\n", encoding="utf-8")
    (project / "params.yaml").write_text(PARAMS.replace("seed: 0", "seed: zero"), encoding="utf-8")
    with pytest.raises(ValueError) as error: load_settings(project)
    said = "".join(format_exception(error.value)).lower() # with every cause that a learner would see
    assert ".env" in said
    assert "hunter2" not in said


def test_dotenv_that_is_not_utf8_is_refused_with_the_other_problems(project):
    (project / ".env").write_bytes("MLFLOW_TRACKING_URI=http://me:hünter2@host\n".encode("latin-1"))
    (project / "params.yaml").write_text(PARAMS.replace("seed: 0", "seed: zero"), encoding="utf-8")
    assert refusal(project).splitlines()[1:] == ["- .env: is not UTF-8. Save it as UTF-8",
                                                 "- params.yaml, seed: found 'zero', expected a valid integer. Correct the value"]


def test_project_is_found_below_a_file_of_another_one(tmp_path):
    "A settings.ini of another program, in another encoding."
    (tmp_path / "settings.ini").write_bytes(b"lib_name = mlops-course")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "settings.ini").write_bytes("name = Käse".encode("latin-1"))
    assert find_root(tmp_path / "notes") == tmp_path.resolve()


def test_env_example_lists_every_secret_with_a_lesson():
    text = (find_root() / "env.example").read_text(encoding="utf-8")
    blocks = [o for o in text.split("\n\n") if any(line and not line.startswith("#") for line in o.splitlines())]
    listed = {o.splitlines()[-1].partition("=")[0].lower() for o in blocks}
    assert listed == set(Secrets.model_fields)
    assert all("lesson" in o for o in blocks)


def test_env_example_is_a_valid_dotenv(project):
    (project / ".env").write_text((find_root() / "env.example").read_text(encoding="utf-8"), encoding="utf-8")
    assert load_settings(project).secrets.mlflow_tracking_uri.get_secret_value() == ""


def test_log_line_is_json_with_bound_context():
    file = io.StringIO()
    get_logger("training", file=file, run="a1").bind(fold=2).info("epoch", loss=np.float32(0.5), bad=float("nan"), path=Path("a"))
    event = json.loads(file.getvalue(), parse_constant=lambda o: pytest.fail(f"{o} is not JSON"))
    assert event.pop("timestamp").endswith("Z")
    assert event == {"logger": "training", "run": "a1", "fold": 2, "event": "epoch", "level": "info", "loss": 0.5, "bad": "nan", "path": "a"}


def test_log_of_an_error_is_one_json_line_with_its_traceback():
    file = io.StringIO()
    try: 1 / 0  # noqa: B018
    except ZeroDivisionError: get_logger("training", file=file).exception("failed")
    [line] = file.getvalue().splitlines()
    assert "ZeroDivisionError" in json.loads(line)["exception"]


def test_console_log_reads_as_text():
    file = io.StringIO()
    get_logger("training", style="console", file=file, run="a1").warning("slow", seconds=3)
    assert "slow" in file.getvalue()
    assert "run=a1" in file.getvalue()
    with pytest.raises(ValueError, match="expected json or console"): get_logger("training", style="xml")  # type: ignore[arg-type]


def test_importing_does_nothing_visible(tmp_path):
    code = ("import os, random, structlog, sys; state = random.getstate(); import mlops_course.base.environment; "
        "print(structlog.is_configured(), state == random.getstate(), 'torch' in sys.modules, os.listdir())")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "False", "[]"]
    assert done.stderr == ""


def test_seed_everything_repeats_all_streams():
    def draw(seed): return (seed_everything(seed).random(), random.random(), np.random.random())
    assert draw(5) == draw(5)
    assert all(one != other for one, other in zip(draw(5), draw(6), strict=True))
    with pytest.raises(ValueError, match="whole number from 0"): seed_everything(2**32)


@pytest.mark.slow
def test_seed_everything_reaches_torch_when_asked():
    code = ("from mlops_course.base.environment import seed_everything as start; start(3, torch=True); import torch; "
        "first = torch.rand(4); start(3); print(torch.equal(first, torch.rand(4)))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "True"


def test_fingerprint_sees_content_and_not_names(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.csv").write_bytes(b"1\n")
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    (tmp_path / "b" / "x.csv").rename(tmp_path / "b" / "y.csv")
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")
    assert fingerprint(tmp_path / "a" / "x.csv") == fingerprint(tmp_path / "b" / "y.csv")


@pytest.mark.parametrize(("one", "other"), [
    (np.zeros(4), np.zeros((2, 2))), (np.zeros(2), np.zeros(2, np.float32)), (["a", "b"], ["b", "a"]), ({"a": 1}, {"a": 2}),
])
def test_fingerprint_tells_apart(one, other):
    assert fingerprint(one) != fingerprint(other)


def test_fingerprint_ignores_the_order_of_keys_and_of_memory():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    table = np.arange(6).reshape(2, 3)
    assert fingerprint(table) == fingerprint(np.asfortranarray(table))


@pytest.mark.parametrize("thing", [{"a", "b"}, np.array([object()]), object()])
def test_fingerprint_refuses_what_has_no_fixed_content(thing):
    with pytest.raises(TypeError, match="Convert it"): fingerprint(thing)


def test_fingerprint_of_a_missing_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="Check the path"): fingerprint(tmp_path / "none")


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@example.org", *words], check=True, capture_output=True)


def test_environment_works_outside_git(tmp_path):
    found = environment(3, tmp_path)
    assert found["git"] == {"commit": None, "dirty": None}
    assert (found["seed"], found["lock"]) == (3, None)
    assert found["packages"]["numpy"] == np.__version__
    assert json.loads(json.dumps(found)) == found


def test_environment_works_without_git_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment(root=tmp_path)["git"] == {"commit": None, "dirty": None}


def test_environment_sees_the_commit_and_a_dirty_tree(tmp_path):
    (tmp_path / "requirements.lock").write_text("numpy==1\n", encoding="utf-8")
    git(tmp_path, "init")
    assert environment(root=tmp_path)["git"] == {"commit": None, "dirty": True}
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "Start")
    clean = environment(root=tmp_path)
    assert len(clean["git"]["commit"]) == 40
    assert clean["git"]["dirty"] is False
    (tmp_path / "requirements.lock").write_text("numpy==2\n", encoding="utf-8")
    changed = environment(root=tmp_path)
    assert changed["git"] == {"commit": clean["git"]["commit"], "dirty": True}
    assert changed["lock"] != clean["lock"]


# Files that are made once

def test_a_file_that_could_not_be_made_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'prefix', str(tmp_path))
    def half(path):
        path.write_text('half')
        raise OSError('the disk is full')
    with pytest.raises(OSError, match='disk is full'): cached_file('it', half)
    path = cached_file('it', lambda path: path.write_text('whole'))
    assert path.read_text() == 'whole'
    assert {o.name for o in path.parent.iterdir()} <= {'it', 'it.lock'}


def test_where_the_environment_is_read_only_the_file_lies_at_home(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'prefix', str(tmp_path/'theirs'))
    monkeypatch.setattr(Path, 'home', lambda: tmp_path/'mine')
    assert cached_file('it', Path.touch).is_relative_to(tmp_path/'mine') # the folder `theirs` is not there, so nobody may write in it
    (tmp_path/'theirs'/'share'/'mlops-course').mkdir(parents=True)
    (tmp_path/'theirs'/'share'/'mlops-course'/'it').touch()
    assert cached_file('it', Path.touch).is_relative_to(tmp_path/'theirs')
