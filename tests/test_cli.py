"The command line as a person meets it."
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from conftest import write_notebook

from mlops_course.base.files import find_root
from mlops_course.base.processes import end_process_tree
from mlops_course.tools.cli import main

COURSE = Path(sys.executable).with_name('mlops-course' + ('.exe' if os.name == 'nt' else ''))


def course(*words, cwd=None):
    return subprocess.run([COURSE, *words], capture_output=True, text=True, cwd=cwd)


@pytest.mark.parametrize('name', sorted(main.commands))
def test_every_command_has_help_with_an_example(name):
    result = CliRunner().invoke(main, [name, '--help'])
    assert result.exit_code == 0
    assert f'mlops-course {name}' in result.output.split('Example:')[1]


@pytest.mark.parametrize(('words', 'meant'), [(['rnu'], "Did you mean 'run'"), (['run', 'lifecicle'], "did you mean '01_lifecycle'"),
    (['lab', '--port', '99999'], "not in the range 1<=x<=65535"),
    (['verify', '2_ocr'], "did you mean '02_ocr'"), (['run', '-p', 'sead', '1'], "No chosen lesson has a parameter 'sead'")])
def test_a_wrong_word_is_answered_with_the_nearest_right_one(words, meant):
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert meant in result.output
    assert 'Traceback' not in result.output


@pytest.mark.parametrize('where', ['.', 'nbs/tools', 'data/pages'])
def test_it_works_from_any_folder_inside_the_project(root, where):
    result = course('exercises', '--check', cwd=root/where)
    assert result.returncode == 0, result.stdout + result.stderr


def test_help_loads_nothing_heavy():
    code = 'import sys, mlops_course.tools.cli; print(*sys.modules)'
    loaded = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert not {'numpy', 'pandas', 'torch', 'IPython', 'nbformat', 'pydantic', 'rich'} & set(loaded.split())


def test_progress_lists_every_question(root):
    out = course('progress', cwd=root).stdout
    for path in (root/'solutions').glob('[0-9][0-9]_*.ipynb'): assert path.stem in out


@pytest.fixture
def project(root, tmp_path):
    "A course without lessons: only its home page."
    folder = tmp_path/'a course'
    folder.mkdir()
    for name in ('settings.ini', 'config.yaml', 'params.yaml', 'requirements.lock'): shutil.copy(root/name, folder)
    write_notebook(folder/'nbs'/'index.ipynb', 'x = 1')
    return folder


@pytest.mark.slow
def test_run_leaves_a_report_and_fails_when_a_lesson_fails(project):
    write_notebook(project/'nbs'/'01_good.ipynb', 'print(1)')
    write_notebook(project/'nbs'/'02_bad.ipynb', 'x = 1', '1/0')
    result = course('run', '--jobs', '2', cwd=project/'nbs')
    assert result.returncode == 1
    assert '02_bad failed in cell 1' in result.stderr
    assert 'ZeroDivisionError' in result.stderr
    assert '1 of 2 lessons ran' in result.stdout
    assert [r['status'] for r in json.loads((project/'_course'/'run'/'report.json').read_text(encoding='utf-8'))['lessons']] == ['passed', 'failed']
    assert [o.name for o in (project/'_course'/'stamps').iterdir()] == ['01_good.json']


@pytest.mark.slow
def test_verify_runs_the_home_page_too(project):
    write_notebook(project/'nbs'/'01_good.ipynb', 'x = 1')
    assert course('verify', cwd=project).returncode == 0
    write_notebook(project/'nbs'/'index.ipynb', 'undefined_name')
    result = course('verify', cwd=project)
    assert result.returncode == 1
    assert 'index, code cell 0' in result.stderr
    assert 'undefined_name' in result.stderr
    assert course('verify', '01', cwd=project).returncode == 0


def is_kernel(process):
    try: return 'ipykernel_launcher' in process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess): return False # another child, which has just ended


@pytest.mark.slow
@pytest.mark.skipif(os.name == 'nt', reason='Windows has no SIGTERM')
@pytest.mark.parametrize('command', ['run', 'verify'])
def test_sigterm_ends_the_kernel_too_and_leaves_nothing(project, tmp_path, command):
    write_notebook(project/'nbs'/'01_long.ipynb', 'from pathlib import Path\nPath("begun").touch()', 'import time\ntime.sleep(600)')
    (tmp_path/'tmp').mkdir()
    env = os.environ | {'TMPDIR': str(tmp_path/'tmp')}
    process = psutil.Popen([COURSE, command], cwd=project, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    below = []
    try:
        until = time.monotonic() + 120
        while not (project/'nbs'/'begun').exists() and time.monotonic() < until: time.sleep(.1)
        below = process.children(recursive=True)
        assert any(is_kernel(o) for o in below)
        process.terminate()
        assert process.wait(60) == 1
        assert psutil.wait_procs(below, timeout=10)[1] == []
        assert list(project.glob('_course/run/*')) == []
        assert [o for o in (tmp_path/'tmp').iterdir() if o.is_dir()] == [] # Jupyter's connection file stays, a kilobyte
    finally:
        for o in [process, *below]: end_process_tree(o.pid)


def test_reading_a_clean_page_imports_no_heavy_package():
    code = ("import sys; from mlops_course.tools.cli import main\n"
            "try: main(['read', 'data/pages/render_1.png'])\n"
            "except SystemExit as e: print(int(e.code))\n"
            "print(sorted({'torch', 'pandas', 'rapidocr', 'matplotlib', 'scipy', 'sklearn', 'mlflow'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", cwd=find_root(), check=True)
    assert done.stdout.splitlines()[-2:] == ["0", "[]"]
