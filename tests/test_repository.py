"What holds for the whole project, whichever lesson is added next."
import ast
import json
import re
import subprocess
import sys
from configparser import ConfigParser
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from shlex import split

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mlops_course

ROOT = Path(__file__).resolve().parent.parent
LESSONS = sorted((ROOT / "nbs").glob("[0-9][0-9]_*.ipynb"))
SOLUTIONS = sorted((ROOT / "solutions").glob("*.ipynb"))
NOTEBOOKS = sorted([*(ROOT / "nbs").rglob("[!.]*.ipynb"), *SOLUTIONS])
MODULES = sorted(o for o in (ROOT / "mlops_course").rglob("*.py") if o.name != "_modidx.py")
OPENCV = {"opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless"}


def relative(path: Path) -> str:
    "The name of a `path` in the project, as a test's id."
    return path.relative_to(ROOT).as_posix()


@cache
def tracked() -> list[Path]:
    "The files that git has, or would take, here."
    done = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    if done.returncode: pytest.fail(f"git cannot list the project's files: {done.stderr.strip()}. Run the tests in a clone")
    return [ROOT / o for o in done.stdout.split("\0") if o and (ROOT / o).is_file()]


def text_of(path: Path) -> str:
    "The text of a file; nothing where it is an image or the like."
    data = path.read_bytes()
    return "" if b"\0" in data[:8192] else data.decode("utf-8", errors="replace")


@cache
def cells(path: Path, kind: str = "") -> list[dict]:
    "The cells of a notebook, of one `kind` if it is given."
    return [o for o in json.loads(path.read_text(encoding="utf-8"))["cells"] if kind in ("", o["cell_type"])]


def source(cell: dict) -> str:
    "The text of a cell."
    return "".join(cell["source"])


def tags(cell: dict) -> list[str]:
    "The tags of a cell."
    return cell["metadata"].get("tags", [])


@cache
def settings() -> dict[str, str]:
    "The values of settings.ini."
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(config["DEFAULT"])


@cache
def lock() -> list[Requirement]:
    "The pins, with their markers."
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return [Requirement(o) for o in lines if o.strip() and not o.startswith("#")]


# What stands where

@pytest.mark.parametrize("name", [
    "nbs/index.ipynb", "nbs/tools", "mlops_course", "data", "exercises", "solutions", "tests", "settings.ini", "setup.py", "requirements.lock",
    "_quarto.yml", "config.yaml", "params.yaml", "env.example", "Makefile", "README.md", "LICENSE", "CONTRIBUTING.md", "CHANGELOG.md", ".ci/run",
    ".github/workflows", ".pre-commit-config.yaml", ".devcontainer/devcontainer.json"])
def test_file_asked_for_is_there(name: str):
    assert (ROOT / name).exists()


@pytest.mark.parametrize("lesson", LESSONS, ids=relative)
def test_lesson_has_module_exercise_and_solution_of_its_name(lesson: Path):
    for folder in ("exercises", "solutions"): assert (ROOT / folder / lesson.name).is_file(), f"{folder}/{lesson.name} is not there"
    exported = {m[1] for o in cells(lesson, "code") if (m := re.search(r"^#\| *default_exp +(\S+)", source(o), re.M))}
    for name in exported: assert (ROOT / "mlops_course" / f"{name.replace('.', '/')}.py").is_file(), f"the module {name} is not exported"


def test_every_exercise_and_solution_belongs_to_a_lesson():
    known = {o.name for o in LESSONS}
    assert {o.name for o in SOLUTIONS} - known == set()
    assert {o.name for o in tracked() if o.parent.name == "exercises" and o.suffix == ".ipynb"} - known == set()


KEPT_FREE = {21, 22} # numbers of lessons that are planned and not written yet


def test_lessons_are_numbered_without_gaps():
    numbers = [int(o.name[:2]) for o in LESSONS]
    assert len(set(numbers)) == len(numbers), "two lessons have the same number"
    assert set(range(1, max(numbers) + 1)) - set(numbers) <= KEPT_FREE


def test_export_and_notebooks_are_in_sync():
    spec = spec_from_file_location("hooks", ROOT / "scripts" / "hooks.py")
    hooks = module_from_spec(spec)
    spec.loader.exec_module(hooks)
    assert hooks.stale_exports() == []
    assert [said for o in NOTEBOOKS if (said := hooks.unclean(o))] == []


@pytest.mark.slow # one core for a minute, in which other tests use the other
def test_types_fit():
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# One source of version and requirements

def test_version_is_that_of_settings():
    assert mlops_course.__version__ == settings()["version"]


def test_address_of_the_project_stands_in_the_settings_alone():
    address = settings()["git_url"].partition("://")[2]
    assert address.endswith(f"/{settings()['user']}/{settings()['repo']}")
    generated = ROOT / "mlops_course" / "_modidx.py"
    assert [relative(o) for o in tracked() if o not in (ROOT / "settings.ini", generated) and address in text_of(o)] == []


def test_changelog_names_the_version():
    assert f"## [{settings()['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("wanted", [Requirement(o) for key in ("requirements", "dev_requirements") for o in split(settings()[key])], ids=lambda o: o.name)
def test_lock_satisfies_requirement(wanted: Requirement):
    pins = [o for o in lock() if canonicalize_name(o.name) == canonicalize_name(wanted.name)]
    assert pins, f"{wanted.name} is not in the lock: .venv/bin/python scripts/lock.py"
    for pin in pins:
        version = str(pin.specifier).removeprefix("==")
        assert wanted.specifier.contains(version, prereleases=True), f"{pin} does not satisfy {wanted}: .venv/bin/python scripts/lock.py"


def test_every_line_of_the_lock_is_an_exact_pin():
    assert [str(o) for o in lock() if not re.fullmatch(r"==[^*,]+", str(o.specifier)) or o.url] == []


def test_lock_holds_exactly_one_opencv():
    assert [o.name for o in lock() if canonicalize_name(o.name) in OPENCV] == ["opencv-python-headless"] # the other needs libraries of a desktop


def test_lock_keeps_what_builds_need():
    assert {"setuptools", "wheel", "uv"} <= {o.name for o in lock()}


# What a clone carries

# Spelled in pieces: this file is searched too.
PRIVATE = [f"/{'/'.join(o)}" for o in (("work", "main"), ("work", "shared"), ("root", ""), ("tmp", "author"), ("opt", "wheels"))]
HOSTS = [".".join(o) for o in (("pypi", "org"), ("pythonhosted", "org"), ("registry", "npmjs"), ("registry", "yarnpkg"), ("deb", "debian"),
                               ("download", "pytorch"), ("conda", "anaconda"), ("proxy", "golang"))]


@pytest.mark.parametrize("word", [*PRIVATE, *HOSTS])
def test_no_file_names_a_path_of_one_machine_or_a_package_index(word: str):
    found = re.compile(rf"(?<![\w.]){re.escape(word)}" if word in PRIVATE else re.escape(word))
    assert [f"{relative(o)}: {m[0]}" for o in tracked() if (m := found.search(text_of(o)))] == []


def test_no_file_is_a_pickle():
    assert [relative(o) for o in tracked() if o.suffix in {".pkl", ".pickle", ".joblib", ".dill"}] == []


def test_no_code_reads_a_pickle():
    names = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"}
    said = []
    for path in [*MODULES, *NOTEBOOKS]:
        text = path.read_text(encoding="utf-8") if path.suffix == ".py" else "\n".join(python(source(o)) for o in cells(path, "code"))
        said += [f"{relative(path)} imports {o}" for o in imports(text) if o.partition(".")[0] in names]
        said += [f"{relative(path)}: torch.load without weights_only=True" for o in re.findall(r"torch\.load\([^\n]*", text) if "weights_only=True" not in o]
        if re.search(r"allow_pickle\s*=\s*True|read_pickle\(|to_pickle\(", text): said.append(f"{relative(path)} allows a pickle")
    assert said == []


def test_data_is_small():
    assert [f"{relative(o)}: {o.stat().st_size} bytes" for o in tracked() if o.stat().st_size > 2_000_000] == []


# Notebooks

def python(text: str) -> str:
    "The Python of a cell: magics and shell lines are blanked."
    return "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in text.splitlines())


def imports(text: str) -> set[str]:
    "The dotted names that the Python in `text` imports, wherever in it."
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import): names |= {o.name for o in node.names}
        if isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            names |= {start, *(f"{start}{'' if start.endswith('.') else '.'}{o.name}" for o in node.names)}
    return names


@pytest.mark.parametrize("path", NOTEBOOKS, ids=relative)
class TestNotebook:
    "Each notebook, lesson or tool or solution."

    def test_every_cell_is_run(self, path: Path):
        assert [source(o) for o in cells(path, "code") if re.search(r"^#\| *eval *: *false", source(o), re.M | re.I)] == []

    def test_no_cell_stores_an_error_that_is_not_meant(self, path: Path):
        failed = [o for o in cells(path, "code") if any(p["output_type"] == "error" for p in o["outputs"])]
        assert [source(o) for o in failed if "raises-exception" not in tags(o)] == []

    def test_no_cell_stores_a_warning(self, path: Path):
        assert [source(o) for o in cells(path, "code") if any(p.get("name") == "stderr" for p in o["outputs"])] == []

    def test_every_figure_has_alt_text(self, path: Path):
        drawn = [o for o in cells(path, "code") if any(k.startswith("image/") for p in o["outputs"] for k in p.get("data", {}))]
        assert [source(o)[:200] for o in drawn if not re.search(r"^#\| *fig-alt *: *\S", source(o), re.M)] == []

    def test_every_image_in_prose_has_alt_text(self, path: Path):
        prose = "\n".join(re.sub(r"```.*?```|`[^`\n]*`", "", source(o), flags=re.S) for o in cells(path, "markdown"))
        assert re.findall(r"!\[\s*\]\([^)]*\)", prose) == []
        assert [o for o in re.findall(r"<img\b[^>]*>", prose) if not re.search(r"\balt=[\"'][^\"']+", o)] == []

    def test_runs_in_the_kernel_of_the_course(self, path: Path):
        assert json.loads(path.read_text(encoding="utf-8"))["metadata"]["kernelspec"]["name"] == "mlops-course"

    def test_stored_figures_are_small(self, path: Path):
        sizes = [len(v) for o in cells(path, "code") for p in o["outputs"] for k, v in p.get("data", {}).items() if k == "image/png"]
        assert [o for o in sizes if o > 80_000] == [] # base64 of 60 KB


# The layers

# From the lowest to the highest. A module may import from its own layer and from lower ones.
LAYERS = {
    "base": [
        "base.environment", "base.files", "base.history", "base.images", "base.logs", "base.memory",
        "base.packages", "base.processes", "base.servers", "base.settings", "base.stats", "base.torchvision"],
    "mlops": [
        "absent", "admission", "alert_routes", "batching", "behaviour", "burn_rates", "cache", "canary", "container_engine",
        "containers", "contract", "dashboards", "dataset_checks", "delivery", "dockerfiles", "drift", "drift_store", "durations",
        "experiments", "fetching", "gates", "http", "image_layers", "keys", "limits", "lineage", "load",
        "mlflow_server", "model_versions", "monitoring", "mutation", "performance", "pictures", "pipeline_steps",
        "pipelines", "prefect_server", "probe", "prometheus", "promql", "pytest_runs", "quality_report", "record",
        "registry", "registry_history", "release", "repositories", "retraining", "router", "rule_tests", "scoring",
        "screenshots", "service", "service_app", "serving", "slots", "splitting", "spool", "store", "testing",
        "tracking",
        "training", "tuning", "tuning_workers", "uploads", "validation", "verdicts",
        "versioning", "watching", "workers", "workflows"],
    "products": [
        "reader.batch", "reader.boxes", "reader.breaker", "reader.broad", "reader.broad_text",
        "reader.budget", "reader.capabilities", "reader.checks", "reader.compression", "reader.custom",
        "reader.datasets", "reader.degradations", "reader.easyocr", "reader.engines", "reader.evaluation",
        "reader.faults", "reader.features", "reader.feed", "reader.folder", "reader.fonts", "reader.google", "reader.gtfs",
        "reader.layout", "reader.line_engines", "reader.lines", "reader.metrics", "reader.net", "reader.package",
        "reader.page", "reader.pages", "reader.planted", "reader.plugin", "reader.preparation", "reader.quantisation", "reader.recognition",
        "reader.releases", "reader.search", "reader.services", "reader.serving", "reader.sources", "reader.steps",
        "reader.timetable_pages", "reader.timetable_reading", "reader.timetable_service", "reader.timetable_tokens",
        "reader.timetables",
        "reader.tracked", "reader.training", "reader.trials", "reader.vision", "reader.weights", "reviews.batch",
        "reviews.data", "reviews.files", "reviews.model", "reviews.service", "reviews.training", "scans.evaluation",
        "scans.folder", "scans.ingest", "scans.model", "scans.net", "scans.phantoms", "scans.service", "scans.stages", "scans.steps",
        "scans.training"],
    "tools": [
        "tools.cli", "tools.cli_data", "tools.cli_group", "tools.cli_models", "tools.cli_reviews", "tools.cli_scans",
        "tools.cli_serving", "tools.cli_timetables", "tools.cli_training", "tools.doctor", "tools.engine",
        "tools.exercises", "tools.house", "tools.links", "tools.modules", "tools.mutants", "tools.overview",
        "tools.pages", "tools.practice", "tools.products", "tools.programs", "tools.progress", "tools.readme", "tools.running",
        "tools.site", "tools.trials", "tools.verifying", "tools.warm"],
}
LAYER = {name: i for i, names in enumerate(LAYERS.values()) for name in names}
LAZY = {"training"} # models that were saved long ago name it; it finds what they ask for in `reader`, by importlib
BY_NAME = {".".join(o.relative_to(ROOT / "mlops_course").with_suffix("").parts).removesuffix("__init__").rstrip("."): o for o in MODULES}
PACKAGES = {name for name, path in BY_NAME.items() if path.name == "__init__.py"}


def course_modules(text: str, inside: str | None = None) -> set[str]:
    "The modules of the course that `text` imports, wherever in it; relative imports count if it is that of the module `inside`."
    found = set()
    for name in imports(text):
        if name.startswith(".") and inside is not None:
            rest = name.lstrip(".")
            home = [*filter(None, inside.split("."))]
            up = len(name) - len(rest) - (inside in PACKAGES)
            name = ".".join(["mlops_course", *home[:len(home) - up], *filter(None, [rest])])
        if name.startswith("mlops_course."): found.add(name.removeprefix("mlops_course."))
    modules = BY_NAME.keys() - PACKAGES
    # `from mlops_course.a import b` may mean the module a.b, or something in the module a, which is in `found` too.
    return {o for o in found if o in modules or o.rpartition(".")[0] not in modules} - PACKAGES - {"__version__"}


@cache
def used_by(name: str) -> set[str]:
    "The modules of the course that the module `name` imports."
    return course_modules(BY_NAME[name].read_text(encoding="utf-8"), name)


def test_every_module_has_a_layer():
    known = sorted(o for names in LAYERS.values() for o in names)
    assert known == sorted(BY_NAME.keys() - PACKAGES), "write a new module into LAYERS, and remove one that is gone"


@pytest.mark.parametrize(("text", "inside", "expected"), [
    ("from mlops_course.base.files import find_root", None, {"base.files"}),
    ("import mlops_course.base.files as f\nfrom mlops_course import pipelines, __version__", None, {"base.files", "pipelines"}),
    ("def f():\n    from ..gates import check_gates\n    from . import net", "reader.training", {"gates", "reader.net"}),
    ("from .net import Batch", "reader", {"reader.net"}),
    ("from .base import files", "", {"base.files"}),
    ("from mlops_course.reader import nothing", None, {"reader.nothing"})])
def test_imports_are_seen_in_every_form(text: str, inside: str | None, expected: set[str]):
    assert course_modules(text, inside) == expected


@pytest.mark.parametrize("name", sorted(BY_NAME.keys() - PACKAGES))
def test_module_imports_nothing_unknown_and_nothing_above_it(name: str):
    used = used_by(name)
    assert sorted(used - LAYER.keys()) == [], "LAYERS does not name these"
    assert sorted(o for o in used if LAYER[o] > LAYER[name]) == []


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_package_imports_nothing_by_itself(name: str):
    assert used_by(name) == set()


def test_only_listed_modules_find_others_by_name():
    lazy = re.compile(r"(?:import_module|__import__)\(\s*f?[\"'](?:\.|mlops_course)")
    assert {name for name, path in BY_NAME.items() if lazy.search(path.read_text(encoding="utf-8"))} == LAZY


def test_imports_have_no_circle():
    left = {name: used_by(name) & BY_NAME.keys() for name in BY_NAME}
    while done := [name for name, used in left.items() if not used & left.keys()]: # a circle has no such end
        for name in done: del left[name]
    while done := [name for name in left if not any(name in used for used in left.values())]: # these lead to a circle
        for name in done: del left[name]
    assert {name: sorted(used & left.keys()) for name, used in left.items()} == {}


# A lesson's exports are what it teaches, so a reader sees each of them used. What no visible cell uses belongs to a page of the library.
def unused_exports(lesson: Path) -> set[str]:
    "The functions and classes that a lesson exports and uses in no cell that a reader sees."
    exported, seen = [], []
    for text in map(source, cells(lesson, "code")):
        if re.search(r"^#\| *export", text, re.M): exported.append(text)
        elif not re.search(r"^#\| *hide", text, re.M): seen.append(text)
    names = {o.name for text in exported for o in ast.parse(text).body if isinstance(o, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))}
    return {o for o in names if not re.search(rf"\b{o}\b", "\n".join(seen))}


@pytest.mark.parametrize("lesson", LESSONS, ids=relative)
def test_visible_cell_uses_every_export_of_its_lesson(lesson: Path):
    assert sorted(unused_exports(lesson)) == [], "use these in a visible cell, or move them to a page in nbs/library"


def test_export_that_only_hidden_cells_use_is_found(tmp_path: Path):
    texts = ["#| export\ndef shown(): return 1", "#| export\nclass Hidden: pass\nLIMIT = 3", "#| hide\nHidden()", "print(shown())"]
    path = tmp_path / "30_lesson.ipynb"
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "metadata": {}, "source": o} for o in texts]}), encoding="utf-8")
    assert unused_exports(path) == {"Hidden"}


def public_names(path: Path) -> set[str]:
    "The functions, classes and constants that a module defines for others. What it imports does not count."
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef): names.add(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        names |= {o.id for target in targets for o in ast.walk(target) if isinstance(o, ast.Name) and isinstance(o.ctx, ast.Store)}
    return {o for o in names if not o.startswith("_")}


def test_no_public_name_stands_in_two_modules():
    homes: dict[str, list[str]] = {}
    for name in sorted(BY_NAME):
        if re.match(r"tools\.cli(_|$)", name): continue # a command may have the name of the function that it calls
        for word in public_names(BY_NAME[name]): homes.setdefault(word, []).append(name)
    assert {word: names for word, names in sorted(homes.items()) if len(names) > 1} == {}


def test_module_has_at_most_300_lines():
    counts = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in BY_NAME.items()}
    assert {name: n for name, n in counts.items() if n > 300} == {}, "look for the second topic in these"


def test_line_has_at_most_120_characters():
    lines = {name: path.read_text(encoding="utf-8").splitlines() for name, path in BY_NAME.items()}
    long = [f"{name}, line {i}: {len(o)}" for name, some in lines.items() for i, o in enumerate(some, 1) if len(o) > 120]
    assert long == []


LIBRARY = sorted((ROOT / "nbs" / "library").glob("[!.]*.ipynb"))


@pytest.mark.parametrize("path", LIBRARY, ids=relative)
def test_page_of_the_library_opens_with_what_it_is_for(path: Path):
    title, question, purpose, *_ = [o.strip() for o in source(cells(path)[0]).split("\n\n")]
    assert re.match(r"# \S", title)
    assert re.fullmatch(r"> .+\?", question)
    assert len(purpose.split()) > 4


# The order of the lessons

def number(path: Path) -> int:
    "The number of a lesson or an exercise."
    return int(path.name[:2])


WRITER = {m[1]: number(path) for path in LESSONS for o in cells(path, "code") if (m := re.search(r"^#\| *default_exp +(\S+)", source(o), re.M))}


def used_in(path: Path, visible: bool = False) -> set[str]:
    "The modules of the course that a notebook imports, or only those that its `visible` cells import."
    shown = [source(o) for o in cells(path, "code") if not (visible and re.match(r"#\| *hide\b", source(o)))]
    return set().union(*(course_modules(python(o)) for o in shown))


@cache
def first_lesson() -> dict[str, int]:
    "The number of the lesson that teaches each module first: the one that writes it, else the first that imports from it in a visible cell."
    return {name: number(path) for path in reversed(LESSONS) for name in used_in(path, visible=True)} | WRITER


@pytest.mark.parametrize("name", sorted(WRITER, key=WRITER.__getitem__))
def test_module_imports_only_earlier_lessons(name: str):
    assert [o for o in used_by(name) if WRITER.get(o, 0) >= WRITER[name]] == []


@pytest.mark.parametrize("path", LESSONS, ids=relative)
def test_lesson_imports_only_what_is_taught_by_then(path: Path):
    own = {name for name, writer in WRITER.items() if writer == number(path)}
    assert [o for o in used_in(path) if o in own or first_lesson().get(o, 0) > number(path)] == []


@pytest.mark.parametrize("path", SOLUTIONS, ids=relative)
def test_exercise_needs_no_later_lesson(path: Path):
    assert [o for o in used_in(path) if first_lesson().get(o, 0) > number(path)] == []


@pytest.mark.parametrize("path", LESSONS, ids=relative)
def test_prose_has_no_measured_number_typed_by_hand(path: Path):
    prose = "\n".join(re.sub(r"```.*?```|`[^`\n]*`", "", source(o), flags=re.S) for o in cells(path, "markdown"))
    assert re.findall(r"[^.\n]*\b\d[\d.,]*\s*(?:%|‰|ms\b|seconds?\b|minutes?\b|MB\b|GB\b|×|times (?:as|faster|slower)\b)[^.\n]*", prose) == []
