"Set-up as a stranger meets it: a fresh copy in a path with a space, twice, then without a network. As an ordinary user: scripts/bare.py."
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == 'nt', reason='uses make; on Windows the workflow runs scripts/environment.py')]
ROOTS_PYTHON = Path(sys.base_prefix)/'bin'/'python3.11' if sys.version_info[:2] == (3, 11) else Path(sys.base_prefix)/'bin'/'python3'


def fresh_copy(root, folder):
    "The project as a clone would have it, what is not committed yet included, in `folder`."
    listed = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'], cwd=root, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split('\0')):
        if not (root/name).is_file(): continue
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root/name, folder/name)
    return folder


def make(folder, target, python=ROOTS_PYTHON, **kwargs):
    outer = {k: v for k, v in os.environ.items() if not k.startswith('MAKE')} # `make test` runs this test, and its own make is none of ours
    env = outer | dict(PYTHON=str(python)) | kwargs.pop('env', {})
    return subprocess.run(['make', target], cwd=folder, capture_output=True, text=True, env=env, **kwargs)


@pytest.fixture(scope='module')
def clone(root, tmp_path_factory):
    "A fresh copy, set up once."
    folder = fresh_copy(root, tmp_path_factory.mktemp('a learner')/'my course')
    first = make(folder, 'env')
    assert first.returncode == 0, first.stdout + first.stderr
    return folder


def test_one_command_is_enough_to_run_a_lesson(clone):
    ran = subprocess.run([clone/'.venv'/'bin'/'mlops-course', 'run', '01'], cwd=clone/'data', capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert str(clone/'_course') in ran.stdout


def test_a_second_call_does_nothing_and_needs_no_network(clone):
    again = make(clone, 'env', env=dict(UV_OFFLINE='1', PIP_NO_INDEX='1'))
    assert again.returncode == 0
    assert again.stdout == ''


def test_an_edited_notebook_is_exported_by_the_next_call(clone):
    lesson = clone/'nbs'/'tools'/'house.ipynb'
    text = lesson.read_text(encoding='utf-8')
    lesson.write_text(text.replace('A notebook of the course: a numbered lesson, or a page of the library.', 'One lesson.'), encoding='utf-8')
    assert make(clone, 'env').returncode == 0
    assert '"One lesson."' in (clone/'mlops_course'/'tools'/'house.py').read_text(encoding='utf-8')


def test_what_was_removed_is_brought_back(clone):
    kernel, module, feed = clone/'.venv'/'share'/'jupyter'/'kernels'/'mlops-course', clone/'mlops_course'/'reader'/'engines.py', clone/'data'/'feed'
    shutil.rmtree(kernel)
    shutil.rmtree(feed)
    module.unlink()
    again = make(clone, 'env')
    assert again.returncode == 0, again.stdout + again.stderr
    assert (kernel/'kernel.json').exists()
    assert module.exists()
    assert list(feed.iterdir())


def test_a_moved_project_gets_an_environment_of_its_own(clone): # the last that uses this clone, which is elsewhere afterwards
    moved = clone.rename(clone.with_name('my moved course'))
    ready = make(moved, 'env')
    assert ready.returncode == 0, ready.stdout + ready.stderr
    found = subprocess.run([moved/'.venv'/'bin'/'mlops-course', 'doctor', '--json'], cwd=moved, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    assert make(moved, 'env').stdout == ''


def test_help_lists_every_target(root):
    shown = set(re.findall(r'^  make (\w+)', make(root, 'help').stdout, re.M))
    assert {'lab', 'course', 'check', 'test', 'docs', 'exercises', 'bench', 'clean', 'help'} <= shown


def test_a_wrong_python_is_refused_by_name(root):
    told = 'import sys; sys.version_info = (3, 9, 0); sys.version = "3.9.0"; sys.argv = ["scripts/environment.py"]; exec(open("scripts/environment.py").read())'
    refused = subprocess.run([sys.executable, '-c', f'__file__ = "scripts/environment.py"; {told}'], cwd=root, capture_output=True, text=True)
    assert refused.returncode != 0
    assert 'This is Python 3.9.0; the course needs 3.11, 3.12 or 3.13' in refused.stderr
