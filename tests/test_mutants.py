"Mutants of solutions: small mistakes that the checks must notice, and the list of those that they need not."
import json
import os
import subprocess
import sys
import time

import psutil
import pytest
from conftest import code, write_notebook

from mlops_course.mutation import changed_lines, mutate_source
from mlops_course.tools.exercises import solution_paths
from mlops_course.tools.mutants import (
    KnownSurvivors,
    answer_mutants,
    describe_change,
    lab_fingerprint,
    listed_faults,
    load_survivors,
    mutants_of,
    save_survivors,
    survivor_faults,
    try_labs,
    try_mutants,
    update_survivors,
)
from mlops_course.tools.trials import run_forked

forks = pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system cannot fork a process')
NONE = KnownSurvivors({}, [])
SOLUTIONS = solution_paths()
MENDED = {'07', '08', '09', '10', '11', '15', *map(str, range(23, 100))} # labs of these lessons leave no survivor open


@pytest.mark.parametrize(('source', 'expected'), [
    ('x = a % b // 2', {'x = a // b // 2', 'x = a % b / 2', 'x = a % b // 3', 'pass'}),
    ('x += 1', {'pass', 'x -= 1', 'x += 2'}),
    ('x = [o for o in xs if o if not p]', {'pass', 'x = [o for o in xs if not p]', 'x = [o for o in xs if o]', 'x = [o for o in xs if o if p]'}),
    ('f(a, b, key=c)', {'pass', 'f(b, a, key=c)', 'f(a, b)'}),
    ('x = sorted(xs, reverse=True)', {'pass', 'x = list(xs)', 'x = sorted(xs)', 'x = sorted(xs, reverse=False)'}),
    ('x = min(a, b)', {'pass', 'x = max(a, b)', 'x = b'}),
    ('x = round(a, 2)', {'pass', 'x = a', 'x = int(a)', 'x = round(2, a)', 'x = round(a, 3)'}),
    ('x = text.strip()', {'pass', 'x = text'}),
    ('x = xs[a:b]', {'pass', 'x = xs[:b]', 'x = xs[a:]', 'x = xs[a:b + 1]'}),
    ('x = -1 if a else .5', {'pass', 'x = 0.5 if a else -1', 'x = 1 if a else 0.5', 'x = -2 if a else 0.5', 'x = -1 if a else 0.55'}),
    ("x = {'a': a, **b}", {'pass', 'x = {**b}', "x = {'a': a}", "x = {'a_': a, **b}"}),
    ("log('cer', f'{a}', 'A message.')", {'pass', "log(f'{a}', 'cer', 'A message.')", "log('cer_', f'{a}', 'A message.')", '"""A message."""'}),
    ("x = 'FROM a\\nCOPY b\\nRUN c\\n'", {'pass', "x = 'COPY b\\nRUN c\\n'", "x = 'FROM a\\nRUN c\\n'", "x = 'FROM a\\nCOPY b\\n'"}),
    ('if a: b()', {'if not a:\n    b()', 'pass', 'if a:\n    pass'}),
    ("if a: raise ValueError(f'{a + 1}')", {"if not a:\n    raise ValueError(f'{a + 1}')", 'if a:\n    pass'}),
    ('with a: b()', {'if True:\n    b()', 'with a:\n    pass'})])
def test_each_kind_of_change_is_made(source, expected):
    assert {mutated for mutated,_ in mutate_source(source)} == expected


def test_a_change_that_does_not_compile_is_no_mutant():
    found = [o for o, _ in mutate_source('def f(*parts):\n    shown = max(*parts)\n    return join(1, *parts)\nawait f()')]
    assert 'def f(*parts):\n    shown = min(*parts)\n    return join(1, *parts)\nawait f()' in found
    assert [o for o in found if 'return *' in o or '= *' in o] == []


def test_a_parameter_with_a_default_is_ignored_once():
    source = 'def f(a, b=3, *, c=None):\n    "Says."\n    return a'
    assert {diff for _,diff in mutate_source(source)} == {'+     b = 3', '+     c = None'}


def test_changed_lines_are_those_that_differ():
    assert changed_lines('a\nb\nc', 'a\nd\nc') == '- b\n+ d'
    assert changed_lines('a\na', 'a\na\na') == '+ a'


def test_a_mutant_holds_one_change():
    found = list(mutate_source('x = a + b\ny = c + d\nz = e + f\n'))
    assert len(found) == 6
    assert all(diff.count('\n') == 1 for _,diff in found)


def lab(answer, check='assert double(3) == 6'):
    return [code('seed = 0', 'parameters'), code("from mlops_course.tools.practice import Practice\npractice = Practice('99_example')"),
            code(answer, 'question:double', 'answer'), code(f"with practice.check('double'): {check}", 'question:double', 'check')]


def test_only_what_stands_below_the_mark_is_changed():
    answer = 'limit = 7\ndef double(x):\n    "Doubles."\n    # solution\n    return 2*x'
    assert [o.name for o in answer_mutants(lab(answer), 'double')] == ['double: return 2 * x → return 2 / x', 'double: return 2 * x → return 3 * x']


def test_a_name_tells_equal_changes_apart_and_does_not_depend_on_the_place():
    answer = 'def double(x):\n    # solution\n    x += 1\n    x += 1\n    return 2*x - 4'
    names = [o.name for o in answer_mutants(lab(answer), 'double')]
    assert {'double: x += 1 → x -= 1', 'double: x += 1 → x -= 1 (2)'} <= set(names)
    later = [o.name for o in answer_mutants(lab(answer.replace('# solution', '# solution\n    y = x')), 'double')]
    assert set(names) <= set(later)


def test_a_long_line_is_named_by_what_changed_in_it():
    before = 'x = ' + ' + '.join('abcdefghijklmnopqrstuvwxyz'*3)
    name = describe_change(f"- {before}\n+ {before.replace('m + n', 'm - n', 1)}")
    assert 'm + n' in name
    assert 'm - n' in name
    assert len(name) < 150


def test_a_limited_choice_keeps_its_mutants_when_others_are_added():
    answer = 'def double(x):\n    # solution\n    y = x + 1\n    return 2*y - 2'
    few = {o.name for o in answer_mutants(lab(answer), 'double', 3)}
    more = {o.name for o in answer_mutants(lab(answer.replace('return', 'y = y*1\n    return')), 'double', 3)}
    assert len(few) == len(more) == 3
    assert len(few & more) >= 1


@forks
def test_an_answer_that_never_ends_is_stopped_and_so_is_what_it_started():
    def starts_another():
        child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
        return child.pid
    def never():
        while True: time.sleep(.01)
    began = time.monotonic()
    results = dict(run_forked([starts_another, never, lambda: 1/0, lambda: 'done'], 1.5, at_once=2))
    assert time.monotonic() - began < 10
    assert (results[1], results[2], results[3]) == (None, None, 'done')
    until = time.monotonic() + 5
    while psutil.pid_exists(results[0]) and psutil.Process(results[0]).status() != 'zombie' and time.monotonic() < until: time.sleep(.05)
    assert not psutil.pid_exists(results[0]) or psutil.Process(results[0]).status() == 'zombie'


@forks
def test_mutants_are_killed_by_a_check_by_an_error_and_by_the_clock(tmp_path):
    answer = 'def double(x):\n    # solution\n    y = 0\n    for _ in range(2): y += x\n    while y > 99: y = 0\n    return y'
    path = write_notebook(tmp_path/'99_example.ipynb', *lab(answer))
    outcomes = {o.name: o.outcome for trials in try_mutants(path, limit_s=.5) for o in trials}
    assert outcomes['double: y = 0 → pass'] == 'error'
    assert outcomes['double: for _ in range(2): → for _ in range(3):'] == 'failed'
    assert outcomes['double: while y > 99: → while y > 100:'] == 'passed'
    loops = lab('def double(x):\n    # solution\n    y = 2*x\n    while x > 0: x -= 1\n    return y')
    again = {o.name: o.outcome for trials in try_mutants(write_notebook(tmp_path/'98_loop.ipynb', *loops), limit_s=.5) for o in trials}
    assert again['double: x -= 1 → pass'] == 'stopped'


@forks
@pytest.mark.parametrize(('answer', 'said'), [('def double(x):\n    # solution\n    return x', 'the solution is failed, and passed was expected'),
                                              ('def double(x): return 2*x', 'has no line `# solution`')])
def test_a_lab_that_cannot_be_tried_says_why(tmp_path, answer, said):
    path = write_notebook(tmp_path/'99_example.ipynb', *lab(answer))
    with pytest.raises(ValueError, match=f'99_example could not be tried: ValueError: .*{said}'): try_labs([path])


@forks
def test_labs_are_tried_side_by_side_and_told_in_order(tmp_path):
    paths = [write_notebook(tmp_path/f'{n}_example.ipynb', *lab('def double(x):\n    # solution\n    return 2*x')) for n in (97, 98, 99)]
    told = []
    found = try_labs(paths, tell=told.append)
    assert list(found) == ['97_example', '98_example', '99_example']
    assert [len(o) for o in found.values()] == told == [2, 2, 2]
    assert not any(o.survived for trials in found.values() for o in trials)


@forks
def test_a_survivor_is_listed_with_a_reason_or_named(tmp_path):
    path = write_notebook(tmp_path/'99_example.ipynb', *lab('def double(x):\n    # solution\n    return x + 1', 'double(0)'))
    [trials] = try_mutants(path)
    assert len(survivor_faults(trials, NONE)) == 2
    names = [o.name for o in trials]
    known = KnownSurvivors({names[0]: 'a reason of five words'}, names[1:])
    assert survivor_faults(trials, known) == listed_faults(path, known) == []
    assert update_survivors(trials, NONE).open == names
    assert update_survivors([o._replace(outcome='failed') for o in trials], known) == NONE
    [said] = survivor_faults([trials[0], trials[1]._replace(outcome='failed')], known)
    assert 'is killed now: double: ' in said
    assert 'is no mutant' in listed_faults(path, KnownSurvivors({}, ['double: return x → return y']))[0]
    assert 'more than two words' in listed_faults(path, KnownSurvivors({names[0]: 'why not'}, []))[0]
    assert 'Choose one' in listed_faults(path, KnownSurvivors({names[0]: 'a reason of five words'}, names))[0]


@forks
def test_a_sample_is_no_fault_and_a_changed_lab_must_be_tried_whole(tmp_path):
    cells = lab('def double(x):\n    # solution\n    return x + 1', 'double(0)')
    path = write_notebook(tmp_path/'99_example.ipynb', *cells)
    [trials] = try_mutants(path)
    [whole,other] = [o.name for o in trials][:2]
    known = KnownSurvivors({whole: 'a reason of five words', other: 'another reason of five words'}, [])
    sample = [o for o in trials if o.name == whole]
    assert survivor_faults(sample, known) == listed_faults(path, known) == []
    tried = update_survivors(trials, known, lab_fingerprint(path))
    assert listed_faults(path, tried) == []
    assert tried.tried
    [said] = listed_faults(write_notebook(path, *cells, code('more = 1')), tried)
    assert '--mutants --update 99_example' in said


def test_the_file_of_survivors_is_read_as_it_was_written(tmp_path):
    known = {'98_other': KnownSurvivors({}, ['b', 'a'], 'f0'), '99_example': KnownSurvivors({'c → d': 'a reason of five words'}, [])}
    save_survivors(known | {'97_empty': NONE}, tmp_path/'survivors.json')
    assert load_survivors(tmp_path/'survivors.json') == known
    assert load_survivors(tmp_path/'none.json') == {}


# The labs of the course

def test_every_listed_survivor_is_a_mutant_of_a_solution():
    known = load_survivors()
    assert sorted(known.keys() - {o.stem for o in SOLUTIONS}) == []
    assert [f'{o.stem}: {fault}' for o in SOLUTIONS for fault in listed_faults(o, known.get(o.stem, NONE))] == []


def test_every_question_has_mutants():
    assert [o.stem for o in SOLUTIONS if len(mutants_of(o)) < 20] == []


def test_no_survivor_is_open_where_the_lab_is_new():
    known = load_survivors()
    left = {name: o.open for name,o in known.items() if name[:2] in MENDED and o.open}
    assert left == {}


def test_all_mutants_of_each_lab_were_tried_by_hand():
    known = load_survivors()
    assert [o.stem for o in SOLUTIONS if not known.get(o.stem, NONE).tried] == []


@forks
@pytest.mark.slow
def test_no_other_mutant_survives(root):
    known = load_survivors()
    found = try_labs(SOLUTIONS[::4], most=1) # all of them by hand: see the test above
    faults = {name: survivor_faults(trials, known.get(name, NONE)) for name,trials in found.items()}
    assert json.dumps({name: o for name,o in faults.items() if o}, indent=1, ensure_ascii=False) == '{}'
