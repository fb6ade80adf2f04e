"Verifying stored outputs: what nbval alone would let through."
import functools

import nbformat
import psutil
import pytest
from conftest import code, write_notebook
from rich.console import Console

from mlops_course.tools.house import Lesson, lessons, library_pages
from mlops_course.tools.verifying import describe_failures, verify_lessons

pytestmark = pytest.mark.slow


def printed(source, text, *tags):
    "A cell whose stored output is `text`."
    cell = code(source, *tags)
    cell['outputs'] = [nbformat.v4.new_output('stream', text=text)]
    return cell


def verified(folder, *cells, limit_s=60, warm=False):
    write_notebook(folder/'98_lesson.ipynb', *cells)
    only, = verify_lessons(lessons(folder), limit_s=limit_s, console=Console(quiet=True), warm=warm)
    return only


@pytest.fixture(params=[False, True], ids=['cold', 'warm'])
def verdict(request):
    return functools.partial(verified, warm=request.param)


def test_a_wrong_number_is_shown_as_a_difference(verdict, tmp_path):
    found = verdict(tmp_path, printed('print("a\\nCER", .05)', 'a\nCER 0.04\n'))
    assert found.status == 'failed'
    assert '-CER 0.04\n+CER 0.05' in describe_failures(found)


def test_a_cell_that_was_never_run_does_not_pass(verdict, tmp_path):
    assert verdict(tmp_path, 'print(1)').status == 'failed'


def test_a_page_of_the_library_is_told_from_another_notebook_of_its_name(tmp_path):
    for folder, number in ((tmp_path, 1), (tmp_path/'library', 2)): write_notebook(folder/'index.ipynb', printed('print(1)', f'{number}\n'))
    chosen = [Lesson(tmp_path/'index.ipynb'), *library_pages(tmp_path/'library')]
    found = {o.lesson: o for o in verify_lessons(chosen, at_once=2, limit_s=120, console=Console(quiet=True))}
    assert {name: o.status for name, o in found.items()} == {'index': 'passed', 'library/index': 'failed'}
    assert '-2\n+1' in describe_failures(found['library/index'])


def test_an_exception_is_shown_with_its_traceback(verdict, tmp_path):
    found = verdict(tmp_path, '1/0')
    assert found.status == 'failed'
    assert 'ZeroDivisionError' in describe_failures(found)


def test_a_cell_tagged_as_changing_may_change(verdict, tmp_path):
    assert verdict(tmp_path, printed('import time\nprint(time.time())', '0\n', 'nbval-ignore-output')).status == 'passed'


def test_a_lesson_that_hangs_is_stopped_and_its_cell_is_named(verdict, tmp_path):
    found = verdict(tmp_path, 'x = 1', printed('print(2)', '3\n'), 'import os, time\nopen("pid", "w").write(str(os.getpid()))\ntime.sleep(600)',
                    'y = 1', limit_s=20) # a kernel takes seconds to start
    assert found.status == 'hung'
    assert [t['cell'] for t in found.trouble] == [1, 2]
    assert '-3\n+2' in describe_failures(found)
    assert 'code cell 2: stopped after' in describe_failures(found)
    assert 'time.sleep(600)' in describe_failures(found)
    assert not psutil.pid_exists(int((tmp_path/'pid').read_text()))


def test_a_warm_kernel_is_as_new_as_a_cold_one(verdict, tmp_path):
    found = verdict(tmp_path,
        printed('import random, sys, threading\nprint(threading.active_count() < 9, "prefect" in sys.modules, __name__)', 'True False __main__\n'),
        printed('import matplotlib.pyplot as plt\nprint("inline" in plt.get_backend())', 'True\n'),
        printed('from concurrent.futures import ProcessPoolExecutor\nwith ProcessPoolExecutor(1) as pool: print(pool.submit(abs, -1).result())', '1\n'))
    assert found.status == 'passed', describe_failures(found)
