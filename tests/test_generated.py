"Files that are made from others are current, and nobody edited them."
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mlops_course.tools.house import lessons
from mlops_course.tools.modules import module_table, with_table
from mlops_course.tools.readme import readme_text

BIN = Path(sys.executable).parent


def test_the_readme_is_made_from_the_index(root):
    assert (root/'README.md').read_text(encoding='utf-8') == readme_text()


def test_the_index_lists_every_lesson_as_it_is_now(root):
    cells = json.loads((root/'nbs'/'index.ipynb').read_text(encoding='utf-8'))['cells']
    listed, = (''.join(o['data']['text/markdown']) for c in cells for o in c.get('outputs', []) if 'text/markdown' in o.get('data', {}))
    wanted = [f'- {o.number:02d} [{o.title}]({o.name}.ipynb): {o.question} ' for o in lessons()]
    found = [line.partition('([exercise]')[0] for line in listed.splitlines() if line.startswith('- ')]
    assert found == wanted, 'a lesson is new or has another title: make readme'


def test_the_table_of_modules_is_made_from_the_notebooks(root):
    text = (root/'CONTRIBUTING.md').read_text(encoding='utf-8')
    assert text == with_table(text), 'a notebook, a module or an import is new: make readme'
    cells = json.loads((root/'nbs'/'library'/'index.ipynb').read_text(encoding='utf-8'))['cells']
    shown, = (''.join(o['data']['text/markdown']) for c in cells for o in c.get('outputs', []) if 'text/markdown' in o.get('data', {}))
    assert shown == module_table('nbs/library'), 'a notebook, a module or an import is new: make readme'


def test_the_table_of_modules_has_one_row_for_each_module(root):
    kept = {p.relative_to(root/'mlops_course').with_suffix('').as_posix().replace('/', '.') for p in (root/'mlops_course').rglob('[!_]*.py')}
    rows = re.findall(r'^\| `([\w.]+)` \|', module_table(), re.M)
    assert sorted(rows) == sorted(kept)


def test_every_link_in_the_table_of_modules_leads_to_a_notebook(root):
    for folder in ('', 'nbs/library'):
        links = re.findall(r'\]\(([^)]+)\)', module_table(folder))
        assert [o for o in links if not (root/folder/o).is_file()] == []


@pytest.mark.parametrize('folder', ['nbs', 'solutions', 'exercises'])
def test_notebooks_are_clean(root, folder):
    for path in (root/folder).rglob('[!.]*.ipynb'):
        nb = json.loads(path.read_text(encoding='utf-8'))
        assert {c.get('execution_count') for c in nb['cells']} == {None}, f"{path.name} keeps execution counts: run nbdev_clean"
        assert {k for c in nb['cells'] for k in c['metadata']} <= {'tags'}, f"{path.name} keeps cell metadata: run nbdev_clean"
        assert nb['metadata']['kernelspec']['name'] == 'mlops-course', path.name


@pytest.mark.skipif(not os.environ.get('CI'), reason='while working, the tree is being changed')
def test_set_up_changed_no_committed_file(root):
    changed = subprocess.run(['git', 'status', '--porcelain'], cwd=root, capture_output=True, text=True, check=True).stdout
    assert changed == ''
