"A learner's session in a real browser: open JupyterLab, run lesson 02, answer its exercise wrongly, then rightly."
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from mlops_course.base.processes import end_process_tree
from mlops_course.tools.exercises import cell_role
from mlops_course.tools.practice import OUTCOME_MIME, question_of

pytestmark = pytest.mark.slow
SHOTS = Path(os.environ.get('MLOPS_COURSE_SHOTS', os.devnull)) # a folder, to look at what a learner sees


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@pytest.fixture(scope='module')
def project(root, tmp_path_factory):
    "A copy to learn in, so that the session changes nothing of ours."
    folder = tmp_path_factory.mktemp('learner')/'course'
    for name in ('nbs', 'exercises', 'solutions', 'data', 'settings.ini', 'config.yaml', 'params.yaml', 'requirements.lock'):
        if (root/name).is_dir(): shutil.copytree(root/name, folder/name)
        else: shutil.copy(root/name, folder/name)
    return folder


@pytest.fixture(scope='module')
def lab(project):
    "The address of JupyterLab, started by the course's own command."
    port, home = free_port(), project.parent/'home'
    env = {k: v for k, v in os.environ.items() if k != 'MLOPS_COURSE_BATCH'}
    env |= {f'JUPYTER{o}_DIR': str(home/o) for o in ('_CONFIG', 'LAB_SETTINGS', 'LAB_WORKSPACES')} | dict(HOME=str(home), JUPYTER_TOKEN='learner')
    command = [Path(sys.executable).with_name('mlops-course'), 'lab', '--no-browser', '--port', str(port)]
    with (project.parent/'lab.log').open('w') as log: server = subprocess.Popen(command, cwd=project, env=env, stdout=log, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f'http://127.0.0.1:{port}/api', timeout=1).close()
                break
            except OSError:
                if time.monotonic() > until or server.poll() is not None: pytest.fail((project.parent/'lab.log').read_text())
                time.sleep(.1)
        yield f'http://127.0.0.1:{port}'
    finally: end_process_tree(server.pid)


@pytest.fixture
def page(browser, lab):
    "A page that notes what it asks of anyone but the lab."
    page = browser.new_page(viewport=dict(width=1300, height=1000))
    page.outside = []
    page.on('request', lambda r: page.outside.append(r.url) if r.url.startswith('http') and not r.url.startswith(lab) else None)
    yield page
    page.close()


def open_notebook(page, lab, path):
    page.goto(f'{lab}/lab/tree/{path}?reset&token=learner')
    page.locator('.jp-NotebookPanel:visible .jp-Notebook').wait_for(timeout=60_000)
    page.get_by_text('MLOps course | Idle').wait_for(timeout=60_000)


def run_all(page, path, done):
    "Run all cells, and save until what is saved in `path` is `done`."
    page.get_by_role('menuitem', name='Run', exact=True).click()
    page.get_by_role('menuitem', name='Run All Cells', exact=True).click()
    until = time.monotonic() + 120
    while True:
        page.wait_for_timeout(1000)
        page.keyboard.press('Control+s')
        page.wait_for_timeout(500)
        try: cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        except ValueError: continue # half of it is written
        code = [c for c in cells if c['cell_type'] == 'code' and ''.join(c['source']).strip()]
        if done(code): return code
        assert time.monotonic() < until, [''.join(c['source'])[:80] for c in code if not c['execution_count']]


def all_ran(code):
    return all(c['execution_count'] for c in code)


def errors(code):
    return [o for c in code for o in c['outputs'] if o['output_type'] == 'error' and 'raises-exception' not in c['metadata'].get('tags', [])]


def shot(page, name):
    if not SHOTS.is_dir(): return
    page.evaluate('() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))') # what is there is painted then
    page.screenshot(path=SHOTS/f'{name}.png')


def test_the_lab_opens_on_the_first_page(lab, page):
    page.goto(f'{lab}/?token=learner')
    page.get_by_role('heading', name='MLOps course').first.wait_for(timeout=60_000)
    shot(page, 'first page')
    assert page.outside == []


def test_lesson_02_runs_from_top_to_bottom(lab, page, project):
    open_notebook(page, lab, 'nbs/02_ocr.ipynb')
    shot(page, 'lesson 02 opened')
    code = run_all(page, project/'nbs'/'02_ocr.ipynb', all_ran)
    assert errors(code) == []
    for part in range(8):
        page.locator('.jp-WindowedPanel-outer:visible').evaluate('(e, part) => { e.scrollTop = e.scrollHeight*part/8 }', part)
        page.wait_for_timeout(400)
        shot(page, f'lesson 02 part {part}')
    assert page.outside == []


def answers(root):
    "The first question of exercise 02: its id, a wrong answer and the solution."
    cells = json.loads((root/'solutions'/'02_ocr.ipynb').read_text(encoding='utf-8'))['cells']
    question = next(q for c in cells if (q := question_of(c)))
    def source(role): return next(''.join(c['source']) for c in cells if question_of(c) == question and cell_role(c) == role)
    return question, source('wrong'), source('answer')


def put(page, source):
    "Type `source` over the cell that defines the same function."
    name = re.search(r'^def \w+', source, re.M)[0]
    editor = page.locator('.jp-CodeCell .cm-content', has_text=name).first
    editor.scroll_into_view_if_needed()
    editor.click()
    page.keyboard.press('Control+a')
    page.keyboard.insert_text(source)


def outcome_of(question, outcome):
    "Whether saved cells hold this `outcome` of `question`, and all of them ran."
    def done(code):
        said = [o['data'].get(OUTCOME_MIME, {}) for c in code for o in c['outputs'] if 'data' in o]
        return all_ran(code) and any((o.get('question'), o.get('outcome')) == (question, outcome) for o in said)
    return done


def test_an_exercise_is_answered_wrongly_then_rightly(root, lab, page, project):
    from playwright.sync_api import expect
    question, wrong, right = answers(root)
    path = project/'exercises'/'02_ocr.ipynb'
    open_notebook(page, lab, 'exercises/02_ocr.ipynb')
    box = page.locator('.jp-OutputArea-output', has_text=re.compile(f'(Right|Not yet|Not answered yet): {question}')).first
    run_all(page, path, outcome_of(question, 'open'))
    box.scroll_into_view_if_needed()
    expect(box).to_contain_text('Not answered yet')
    expect(box.get_by_text('Hint 1')).to_be_visible()
    expect(box.get_by_text('A solution')).to_have_count(0)
    shot(page, 'exercise open')
    put(page, wrong)
    run_all(page, path, outcome_of(question, 'failed'))
    box.scroll_into_view_if_needed()
    expect(box).to_contain_text('Not yet')
    expect(box).to_contain_text(wrong.splitlines()[0].removeprefix('# wrong: '))
    expect(box.get_by_text('Hint 2')).not_to_be_visible()
    box.get_by_text('Hint 1').click()
    expect(box.get_by_text('Hint 2')).to_be_visible()
    shot(page, 'exercise wrong, first hint open')
    put(page, right)
    run_all(page, path, outcome_of(question, 'passed'))
    expect(box).to_contain_text('Right')
    box.scroll_into_view_if_needed() # after JupyterLab has put the new output there, which moves the cells
    expect(box).to_be_in_viewport()
    shot(page, 'exercise right')
    assert page.outside == []
    book = json.loads((project/'_course'/'progress.json').read_text(encoding='utf-8'))
    assert book['02_ocr'][question]['solved']
    assert book['02_ocr'][question]['attempts'] == 2
