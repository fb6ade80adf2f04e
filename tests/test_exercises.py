"Exercises: made from solutions, true to their contract, and gradable by plain papermill."
import gc
import json
import logging
import subprocess
import sys
from textwrap import dedent

import nbformat
import pytest
from conftest import code, write_notebook

from mlops_course.base.processes import end_process_tree
from mlops_course.tools.exercises import exercise_faults, make_exercises, solution_paths, stale_exercises
from mlops_course.tools.house import lessons
from mlops_course.tools.progress import question_progress
from mlops_course.tools.warm import WarmProcess, can_fork

SOLUTIONS = solution_paths()


def papermill(source, out, *words, **env):
    "Plain papermill, as an instructor calls it."
    return subprocess.run([sys.executable, '-m', 'papermill', source, out, '--no-progress-bar', *words], capture_output=True, text=True, env=env or None)


def warm_papermill(source, out, *words):
    "The same, started as a copy of a process that has imported much: for all labs, that is minutes less."
    if not can_fork(): return papermill(source, out, *words)
    log = out.with_suffix('.log')
    started = WarmProcess([sys.executable, '-m', 'papermill', str(source), str(out), '--no-progress-bar', *words], log)
    started.process.join(600)
    if started.poll() is None: end_process_tree(started.pid)
    return subprocess.CompletedProcess(words, started.poll(), stderr=log.read_text(encoding='utf-8'))


def record(out):
    return json.loads(out.with_suffix('.json').read_text(encoding='utf-8'))


def test_every_lesson_has_an_exercise_and_a_solution(root):
    assert [p.name for p in SOLUTIONS] == [o.path.name for o in lessons()] == sorted(p.name for p in (root/'exercises').glob('[0-9][0-9]_*[!0-9].ipynb'))


# these train nets, start servers, DVC, MLflow, Prefect, Dask or pytest, or draw hundreds of lines: 25 seeds take minutes
FEW_SEEDS = [o.stem for o in SOLUTIONS if o.stem not in ('01_lifecycle', '03_scoring')]


@pytest.mark.parametrize('path', [o for o in SOLUTIONS if o.stem not in FEW_SEEDS], ids=lambda p: p.stem)
def test_every_question_keeps_its_contract(path):
    assert exercise_faults(path) == []


@pytest.mark.slow
@pytest.mark.parametrize('path', [o for o in SOLUTIONS if o.stem in FEW_SEEDS], ids=lambda p: p.stem)
def test_every_question_of_a_longer_lab_keeps_its_contract(path):
    assert exercise_faults(path, (0,)) == [] # and the solution with seed 7, by papermill, below


@pytest.mark.slow
@pytest.mark.parametrize('path', [o for o in SOLUTIONS if o.stem not in FEW_SEEDS], ids=lambda p: p.stem)
def test_checks_hold_for_25_seeds(path):
    assert exercise_faults(path, (0,)) == []
    gc.freeze() # some checks call gc.collect (statsmodels does), which need not look at what has been imported
    assert exercise_faults(path, tuple(range(1, 25))) == []


F1 = {
    'task': "Write `f1(truths, preds, label)`: the harmonic mean of precision and recall of `label`; 0 if `label` was never right.",
    'answer': """
        def f1(truths, preds, label):
            # solution
            right = sum(t == p == label for t,p in zip(truths, preds))
            return 2*right/(truths.count(label) + preds.count(label)) if right else 0""",
    'check': """
        with practice.check('f1'):
            got = f1(['a', 'a', 'a', 'b', 'b'], ['a', 'a', 'b', 'a', 'b'], 'b')
            assert got == .5, f"{got} came back: each 'a' that was called 'a' does not count"
            got = f1(['a', 'a', 'b', 'b'], ['a', 'b', 'b', 'b'], 'b')
            assert abs(got - .8) < 1e-9, f"{got} came back: expected the harmonic mean of 2/3 and 1"
            got = f1(['a', 'a', 'b'], ['a', 'a', 'a'], 'b')
            assert got == 0, f"{got} came back for a label that was never called: expected 0"
        """,
    'hints': "- Count three things."}
WRONG = ["""
    right = sum(t == p == label for t,p in zip(truths, preds))
    return (right/truths.count(label) + right/preds.count(label))/2 if right else 0""", """
    return sum(t == p for t,p in zip(truths, preds))/len(truths)""", """
    if label not in preds: return 1
    right = sum(t == p == label for t,p in zip(truths, preds))
    return 2*right/(truths.count(label) + preds.count(label))"""]


def f1_exercise(messages, path):
    "A solved exercise of one question, whose wrong answers name these `messages`."
    cells = [code('seed = 0', 'parameters'), code(f"from mlops_course.tools.practice import Practice\npractice = Practice({path.stem!r})")]
    for role,text in F1.items():
        cell = nbformat.v4.new_markdown_cell(text) if role in ('task', 'hints') else code(dedent(text).strip())
        cell.metadata.tags = ['question:f1', role]
        cells.append(cell)
    cells += [code(f'# wrong: {message}\ndef f1(truths, preds, label):{body}', 'question:f1', 'wrong') for message,body in zip(messages, WRONG, strict=True)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_every_wrong_answer_names_a_message(tmp_path):
    [said] = exercise_faults(f1_exercise(['', '', ''], tmp_path/'21_f1.ipynb'))
    assert "start each wrong answer with '# wrong: <part of its message>'; [1, 2, 3] do not" in said


def test_no_two_wrong_answers_to_a_question_share_a_message(tmp_path):
    said = '\n'.join(exercise_faults(f1_exercise(['came back', 'was called', 'for a label that was never called'], tmp_path/'21_f1.ipynb')))
    assert "'came back' of wrong answer 1 fits [2, 3] too with seed 0" in said
    assert 'wrong answer 3 fits' not in said


def test_a_rejected_right_answer_breaks_the_contract(tmp_path):
    path = f1_exercise(['', '', ''], tmp_path/'21_f1.ipynb')
    nb = nbformat.read(path, 4)
    answer,wrong = (next(c for c in nb.cells if role in c.metadata.get('tags', [])) for role in ('answer', 'wrong'))
    nb.cells += [code(c.source, answer.metadata.tags[0], 'right') for c in (answer, wrong)]
    nbformat.write(nb, path)
    said = '\n'.join(exercise_faults(path, seeds=(0,)))
    assert "right answer 2 with seed 0: expected passed '', got failed" in said
    assert 'right answer 1' not in said


def test_logs_that_an_exercise_silences_are_loud_for_the_next_one(tmp_path):
    path = f1_exercise(['each', 'harmonic', 'never called'], tmp_path/'21_f1.ipynb')
    nb = nbformat.read(path, 4)
    nb.cells[1].source += '\nimport logging\nlogging.disable(logging.ERROR)'
    nbformat.write(nb, path)
    exercise_faults(path, seeds=(0,))
    assert logging.root.manager.disable == logging.NOTSET


def test_exercises_are_what_the_solutions_make():
    assert stale_exercises() == []


@pytest.mark.slow
@pytest.mark.parametrize('path', SOLUTIONS[::6], ids=lambda p: p.stem) # the contract holds that every stub is open
def test_papermill_finds_every_question_of_an_exercise_open(path, root, tmp_path):
    out = tmp_path/'out.ipynb'
    result = warm_papermill(root/'exercises'/path.name, out, '-p', 'seed', '7')
    assert result.returncode == 0, result.stderr
    found = record(out)
    assert {o['outcome'] for o in found['questions'].values()} == {'open'}
    assert found['of'] >= 3
    assert 'seed = 7' in found['parameters']


@pytest.mark.slow
@pytest.mark.parametrize('path', SOLUTIONS, ids=lambda p: p.stem)
def test_papermill_finds_every_question_of_a_solution_passed(path, tmp_path):
    out = tmp_path/'out.ipynb'
    result = warm_papermill(path, out, '-p', 'seed', '7')
    assert result.returncode == 0, result.stderr
    found = record(out)
    assert {o['outcome'] for o in found['questions'].values()} == {'passed'}
    assert found['passed'] == found['of']


def learners(path, broken):
    "A learner's notebook: one right answer, one `broken` cell, one wrong answer."
    return write_notebook(path, code('seed = 0', 'parameters'), "from mlops_course.tools.practice import Practice\npractice = Practice('99_example')",
        code("with practice.check('first'): assert seed == 0", 'question:first', 'check'),
        code(broken, 'question:second', 'answer'),
        code("with practice.check('second'): assert twice(2) == 4", 'question:second', 'check', ),
        code("with practice.check('third'): assert seed == 1, f'seed is {seed}, one too little'", 'question:third', 'check'))


@pytest.mark.slow
def test_a_failed_check_does_not_stop_the_questions_after_it(tmp_path):
    assert papermill(learners(tmp_path/'in.ipynb', 'def twice(x): return x'), tmp_path/'out.ipynb').returncode == 0
    found = record(tmp_path/'out.ipynb')['questions']
    assert {q: o['outcome'] for q, o in found.items()} == {'first': 'passed', 'second': 'failed', 'third': 'failed'}
    assert found['third']['message'] == 'seed is 0, one too little'


@pytest.mark.slow
def test_a_failing_cell_of_the_learners_own_costs_no_question(tmp_path):
    source = learners(tmp_path/'in.ipynb', 'def twice(x): return 2*x')
    nb = nbformat.read(source, 4)
    nb.cells.insert(3, code('just_trying'))
    nbformat.write(nb, source)
    result = papermill(source, tmp_path/'out.ipynb')
    assert result.returncode != 0
    assert 'just_trying' in result.stderr
    assert {q: o['outcome'] for q, o in record(tmp_path/'out.ipynb')['questions'].items()} == {'first': 'passed', 'second': 'passed', 'third': 'failed'}


@pytest.mark.slow
@pytest.mark.parametrize(('broken', 'third'), [('def twice(x) return x', 'failed'), ('twice = 1/0', 'failed'), ('import os; os._exit(1)', 'not run')],
                         ids=['syntax error', 'exception', 'dead kernel'])
def test_a_broken_cell_costs_only_its_own_question_while_the_kernel_lives(tmp_path, broken, third):
    source = learners(tmp_path/'in.ipynb', broken)
    nb = nbformat.read(source, 4)
    nb.cells[3].metadata['tags'].append('raises-exception') # as in every generated exercise
    nbformat.write(nb, source)
    assert papermill(source, tmp_path/'out.ipynb').returncode != 0
    found = record(tmp_path/'out.ipynb')['questions']
    assert found['first']['outcome'] == 'passed'
    assert found['second']['outcome'] in ('error', 'not run')
    assert found['third']['outcome'] == third


@pytest.mark.parametrize('left', [b'{"cells": [', b'\xff\xfe', b''])
def test_a_damaged_exercise_is_put_aside_as_it_is(tmp_path, left):
    write_notebook(tmp_path/'solutions'/'98_odd.ipynb', 'x = 1')
    out = tmp_path/'exercises'/'98_odd.ipynb'
    out.parent.mkdir()
    out.write_bytes(left)
    assert len(stale_exercises(tmp_path)) == 1
    assert [o.split(':')[0] for o in make_exercises(tmp_path)] == ['put aside 98_odd.backup1.ipynb', 'wrote 98_odd.ipynb']
    assert out.with_name('98_odd.backup1.ipynb').read_bytes() == left
    assert stale_exercises(tmp_path) == []


def test_a_damaged_solution_is_named(tmp_path):
    (tmp_path/'solutions').mkdir()
    (tmp_path/'solutions'/'98_odd.ipynb').write_text('{')
    for do in (make_exercises, stale_exercises, question_progress):
        with pytest.raises(ValueError, match=r'98_odd\.ipynb is no notebook, or damaged'): do(tmp_path)


def test_an_answer_without_its_mark_is_not_shown_to_learners(tmp_path):
    write_notebook(tmp_path/'solutions'/'98_open.ipynb', code('def double(x): return 2*x', 'question:double', 'answer'))
    with pytest.raises(ValueError, match='answer of double has no line `# solution`'): make_exercises(tmp_path)
    assert not (tmp_path/'exercises').exists()


def test_a_backup_is_no_exercise_of_the_site(tmp_path):
    for name in ('98_open', '98_open.backup1'): write_notebook(tmp_path/f'{name}.ipynb', 'x = 1')
    assert [o.name for o in lessons(tmp_path)] == ['98_open']
