"Running lessons: what hangs is named, what is interrupted leaves nothing, what fails is explained."
import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest
from conftest import code, write_notebook
from rich.console import Console

from mlops_course.base.files import source_hash
from mlops_course.tools import running
from mlops_course.tools.house import Lesson, lessons, library_pages
from mlops_course.tools.mutants import mutants_of
from mlops_course.tools.overview import needed_lessons, quiz_page
from mlops_course.tools.running import Job, assign_parameters, known_parameters, run_lessons

pytestmark = pytest.mark.slow
QUIET = Console(quiet=True)


def test_a_lesson_that_hangs_is_stopped_and_its_cell_is_named(tmp_path):
    write_notebook(tmp_path/'98_hangs.ipynb', 'x = 1', 'import time\ntime.sleep(600)')
    result, = run_lessons(lessons(tmp_path), out=tmp_path/'out', limit_s=20, console=QUIET) # a kernel takes seconds to start
    assert (result.status, result.cell) == ('hung', 1)
    assert 'time.sleep(600)' in result.source
    assert 'stopped after 20 s' in result.traceback
    assert sorted(o.name for o in (tmp_path/'out').iterdir()) == ['report.html', 'report.json']
    assert 'href' not in (tmp_path/'out'/'report.html').read_text(encoding='utf-8')


def test_a_lesson_whose_kernel_dies_is_a_failure_with_its_cell(tmp_path):
    write_notebook(tmp_path/'98_dies.ipynb', 'x = 1', 'import os\nos._exit(3)')
    result, = run_lessons(lessons(tmp_path), out=tmp_path/'out', console=QUIET)
    assert result.status == 'failed'
    assert 'os._exit(3)' in result.source
    assert 'died' in result.traceback.lower()


def test_one_bad_lesson_takes_no_other_with_it(tmp_path):
    for name, source in (('97_good', '1+1'), ('98_bad', '1/0'), ('99_good', '1+1')): write_notebook(tmp_path/f'{name}.ipynb', source)
    assert [r.status for r in run_lessons(lessons(tmp_path), out=tmp_path/'out', at_once=2, console=QUIET)] == ['passed', 'failed', 'passed']
    report = json.loads((tmp_path/'out'/'report.json').read_text(encoding='utf-8'))
    assert 'ZeroDivisionError' in report['lessons'][1]['traceback']
    assert '2 of 3 lessons ran' in (tmp_path/'out'/'report.html').read_text(encoding='utf-8')


def test_a_page_of_the_library_runs_like_a_lesson_in_a_folder_of_its_own(tmp_path):
    write_notebook(tmp_path/'97_net.ipynb', '1+1')
    for name in ('97_net', 'index'): write_notebook(tmp_path/'library'/f'{name}.ipynb', 'import os; assert os.path.basename(os.getcwd()) == "library"')
    chosen = [*lessons(tmp_path), *library_pages(tmp_path/'library')]
    results = run_lessons(chosen, out=tmp_path/'out', at_once=2, console=QUIET)
    assert [(r.lesson, r.status) for r in results] == [('97_net', 'passed'), ('library/97_net', 'passed'), ('library/index', 'passed')]
    assert {o.relative_to(tmp_path/'out').as_posix() for o in (tmp_path/'out').rglob('*.ipynb')} == {f'{r.lesson}.ipynb' for r in results}
    assert '3 of 3 notebooks ran' in (tmp_path/'out'/'report.html').read_text(encoding='utf-8')


def test_a_copy_that_has_not_opened_its_log_yet_can_be_looked_at(tmp_path, monkeypatch):
    class Slow: # on a busy machine
        pid = os.getpid()
        def __init__(self, *_): pass
        def poll(self): return None
    monkeypatch.setattr(running, 'WarmProcess', Slow)
    job = Job('library/first', [], tmp_path/'library'/'first.log', warm=True)
    job.start()
    job.look(60)
    assert (job.status, job.done) == ('running', 0)


def test_peak_memory_counts_the_kernel(tmp_path):
    write_notebook(tmp_path/'98_big.ipynb', 'import time\nx = bytearray(300_000_000)\ntime.sleep(1)')
    result, = run_lessons(lessons(tmp_path), out=tmp_path/'out', console=QUIET)
    assert result.peak_mb > 300


INTERRUPTED = '''
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler) # a shell's background job ignores it
from pathlib import Path
from mlops_course.tools.house import Lesson, lessons, library_pages
from mlops_course.tools.running import run_lessons
run_lessons(lessons(Path(sys.argv[1])), out=Path(sys.argv[1], 'out'))
'''


@pytest.mark.skipif(os.name == 'nt', reason='Windows has no SIGINT for one process')
def test_an_interrupt_leaves_no_half_written_notebook_and_no_process(tmp_path):
    write_notebook(tmp_path/'98_long.ipynb', 'x = 1', 'import time\ntime.sleep(600)')
    process = subprocess.Popen([sys.executable, '-c', INTERRUPTED, tmp_path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    def written(): return list((tmp_path/'out').glob('.partial-*/98_long.ipynb'))
    until = time.monotonic() + 180
    while not written() and time.monotonic() < until: time.sleep(.1)
    below = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) != 0
    assert list((tmp_path/'out').iterdir()) == []
    assert psutil.wait_procs(below, timeout=30)[1] == []


def test_what_a_killed_run_left_is_swept_and_what_another_writes_is_not(tmp_path):
    gone = subprocess.Popen([sys.executable, '-c', ''])
    gone.wait()
    for pid in (gone.pid, os.getppid()): write_notebook(tmp_path/'out'/f'.partial-{pid}'/'98_long.ipynb', 'x = 1')
    run_lessons([], out=tmp_path/'out', console=QUIET)
    assert [o.name for o in (tmp_path/'out').glob('.partial-*')] == [f'.partial-{os.getppid()}']


def test_a_parameter_goes_to_the_lessons_that_know_it(tmp_path):
    write_notebook(tmp_path/'98_one.ipynb', code('seed = 0\nn: int = 3', 'parameters'))
    write_notebook(tmp_path/'99_two.ipynb', code('seed = 0', 'parameters'))
    assert known_parameters(tmp_path/'98_one.ipynb') == {'seed', 'n'}
    assert assign_parameters(lessons(tmp_path), {'seed': 1, 'n': 2}) == {'98_one': {'seed': 1, 'n': 2}, '99_two': {'seed': 1}}


def test_a_stamp_follows_the_text_and_not_the_outputs(tmp_path):
    path = write_notebook(tmp_path/'98_one.ipynb', 'print(1)')
    before = source_hash(path)
    cells = json.loads(path.read_text(encoding='utf-8'))
    cells['cells'][0]['outputs'] = [{'output_type': 'stream', 'name': 'stdout', 'text': ['1\n']}]
    path.write_text(json.dumps(cells), encoding='utf-8')
    assert source_hash(path) == before
    write_notebook(path, 'print(2)')
    assert source_hash(path) != before


@pytest.mark.parametrize('text', ['', '{"cells": [', '[]', '{"nbformat": 4}'], ids=['empty', 'cut off', 'a list', 'no cells'])
def test_a_file_that_is_no_notebook_is_named(tmp_path, text):
    path = tmp_path/'98_odd.ipynb'
    path.write_text(text, encoding='utf-8')
    with pytest.raises(ValueError, match='98_odd'): run_lessons(lessons(tmp_path), out=tmp_path/'out', console=QUIET)
    with pytest.raises(ValueError, match='98_odd'): mutants_of(path)
    assert running.failing_cell(path) == {} # papermill was stopped while it wrote


@pytest.mark.parametrize('cells', [[], ['']])
def test_a_notebook_without_a_title_is_named(tmp_path, cells):
    lesson = Lesson(write_notebook(tmp_path/'98_odd.ipynb', *cells))
    with pytest.raises(ValueError, match=r'98_odd\.ipynb has no title'): _ = lesson.title
    assert needed_lessons(lesson) == []


def test_a_quiz_with_backticks_stays_one_block_of_the_quiz_page(tmp_path):
    quiz = "<div class='quiz'>Which block?\n```\nend\n```\n</div>"
    cell = code('quiz')
    cell.outputs = [nbformat.v4.new_output('display_data', {'text/html': quiz})]
    page = quiz_page([Lesson(write_notebook(tmp_path/'98_quiz.ipynb', nbformat.v4.new_markdown_cell('# A quiz'), cell))])
    assert page.count('```') == 2
    assert page.count('&#96;') == 6
