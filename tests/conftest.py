"Shared by all tests: quiet tools, no learner's progress touched, and a way to write small notebooks."
import os
import shutil
import signal
import time
from functools import partial
from hashlib import md5

import nbformat
import pytest
import yaml

from mlops_course.base.files import find_root
from mlops_course.base.processes import set_quiet_env

set_quiet_env()
os.environ['MLOPS_COURSE_BATCH'] = '1'
signal.signal(signal.SIGINT, signal.default_int_handler) # a shell's background job ignores it, and so would all that tests start


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "One worker runs the tests of a file, which share fixtures. Those of the labs share none, and are long."
    from xdist.scheduler import LoadFileScheduling
    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return nodeid if 'test_exercises.py' in nodeid else super()._split_scope(nodeid)
    return Scheduling(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    "Labs last: many tests of some seconds fill up the workers, where a long one would leave the others idle."
    items.sort(key=lambda o: 'test_exercises.py' in o.nodeid)


@pytest.fixture(autouse=True)
def tracking_address():
    "`mlflow.set_tracking_uri` also sets an environment variable. What a test sets there, no other test sees."
    before = os.environ.get('MLFLOW_TRACKING_URI')
    yield
    if os.environ.get('MLFLOW_TRACKING_URI') == before: return
    import mlflow
    mlflow.set_tracking_uri(None)
    os.environ.pop('MLFLOW_TRACKING_URI', None)
    if before: os.environ['MLFLOW_TRACKING_URI'] = before


@pytest.fixture
def limited_files(monkeypatch):
    "Makes a `preexec_fn`: no file of that process may become larger than so many bytes, which stands in for a full disk."
    # Python 3.11 would cut off what it compiles, too, and every process after this one would read that
    monkeypatch.setenv('PYTHONDONTWRITEBYTECODE', '1')
    def limit(size):
        import resource
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    return lambda size: partial(limit, size)


@pytest.fixture(scope='session')
def root():
    return find_root()


@pytest.fixture(scope='module')
def browser():
    "A headless Chromium. One at a time: while it is open, no other loop of asyncio runs in this thread."
    from playwright.sync_api import sync_playwright
    calm = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
            '--disable-component-update', '--disable-sync', '--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream']
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=needs('chromium', 'opens pages as a reader would'), args=calm)
        yield opened
        opened.close()


class Shelf:
    "A source whose models are at hand."
    def __init__(self, engine, version='reader/1'):
        self.engine, self.version, self.error = engine, version, None
    def load(self):
        if self.error: raise self.error
        from mlops_course.serving import ServedModel
        return ServedModel(self.engine, self.version, 'of the test')
    def models(self): return [{'version': self.version, 'aliases': ['champion'], 'cer': .01}]


def until(true, seconds=30):
    "What `true` says, once that is something."
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, 'it never happened'
        time.sleep(.01)
    return found


def check_stage(root, name, functions):
    "The stage `name` of dvc.yaml names the code that `functions` import, base/ left out, and dvc.lock its state of today."
    from mlops_course.pipeline_steps import code_files
    wanted = {o.relative_to(root).as_posix() for f in functions for o in code_files(f, root)}
    wanted = {o for o in wanted if not o.endswith("__init__.py") and not o.startswith("mlops_course/base/")}
    stages = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    stage = stages[name.partition("@")[0]]
    assert {o for o in stage.get("do", stage)["deps"] if o.startswith("mlops_course/")} == wanted
    locked = yaml.safe_load((root / "dvc.lock").read_text(encoding="utf-8"))["stages"][name]
    for path, digest in {o["path"]: o["md5"] for o in locked["deps"]}.items():
        if not path.startswith("mlops_course/"): continue
        again = f"{path} has changed since dvc.lock: run dvc repro, and commit dvc.lock with what it made"
        assert digest == md5((root / path).read_bytes(), usedforsecurity=False).hexdigest(), again
    return locked


def code(source, *tags):
    "A code cell."
    return nbformat.v4.new_code_cell(source, metadata={'tags': list(tags)} if tags else {})


def write_notebook(path, *cells):
    "Write `cells`, or their sources, as a notebook for the course's kernel."
    kernel = {'name': 'mlops-course', 'display_name': 'MLOps course', 'language': 'python'}
    nb = nbformat.v4.new_notebook(cells=[c if isinstance(c, dict) else code(c) for c in cells], metadata={'kernelspec': kernel})
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, path)
    return path


def needs(program, why):
    "The path of `program`; where it is missing, CI fails and other machines skip."
    found = shutil.which(program)
    if found: return found
    message = f"{program} is missing ({why}). scripts/debian.sh installs it"
    if os.environ.get('CI'): pytest.fail(message)
    return pytest.skip(message)
