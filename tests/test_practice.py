"What a learner sees, and what is kept of it."
import json
import linecache
import os

import pytest
from IPython.utils.capture import capture_output

from mlops_course.tools import practice as p
from mlops_course.tools import progress


@pytest.fixture
def learner(tmp_path, monkeypatch):
    "A learner at an exercise with one solved question, whose progress is kept in `tmp_path`."
    cells = [dict(cell_type='code', metadata=dict(tags=['question:double', 'answer']), source=['def double(x):\n', '    # solution\n', '    return 2*x']),
             dict(cell_type='markdown', metadata=dict(tags=['question:double', 'hints']), source=['- Add it to itself.\n', '- x <&> x'])]
    (tmp_path/'solutions').mkdir()
    (tmp_path/'solutions'/'99_example.ipynb').write_text(json.dumps(dict(cells=cells)))
    monkeypatch.setattr(p, 'find_root', lambda: tmp_path)
    monkeypatch.setattr(progress, 'progress_file', lambda: tmp_path/'progress.json')
    monkeypatch.delenv('MLOPS_COURSE_BATCH')
    return p.Practice('99_example')


def shown(learner, body):
    "What the check of `double` displays when `body` runs inside it."
    with capture_output() as said, learner.check('double'): body()
    return said.outputs[0].data if said.outputs else {'text/plain': said.stdout}


def fail(error):
    def body(): raise error
    return body


@pytest.mark.parametrize(('error', 'folded'), [(NotImplementedError('write it'), 2), (AssertionError('off by 2'), 3), (ZeroDivisionError('x'), 3), (None, 0)],
                         ids=['not tried', 'wrong', 'stopped', 'right'])
def test_hints_are_offered_from_the_start_and_the_solution_after_a_try(learner, error, folded):
    def body():
        if error: raise error
    html = str(shown(learner, body))
    assert html.count('<details>') == folded
    assert ('A solution' in html) is (folded == 3)


def test_help_escapes_what_stands_in_it(learner):
    assert 'x &lt;&amp;&gt; x' in learner.help('double')
    assert '<p>call <code>f(x &lt; 2)</code></p>' in p.help_html(['call `f(x < 2)`'], '')


def test_a_hint_keeps_the_sign_of_a_number(learner):
    path = p.find_root()/'solutions'/'99_example.ipynb'
    path.write_text(path.read_text().replace('Add it to itself.', '-1 is the last place.'))
    assert '<p>-1 is the last place.</p>' in learner.help('double')


def test_an_error_names_the_line_that_raised_it(learner):
    with capture_output(), learner.check('double'): int('seven')
    assert "invalid literal" in learner.outcomes['double'].message
    assert "int('seven')" in learner.outcomes['double'].message


def notebook(cells, names):
    "Run `cells` as Jupyter does: each is a file of its own, and all share their global names."
    for i,source in enumerate(cells):
        name = f'<cell {i} of {id(names)}>'
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)
        exec(compile(source, name, 'exec'), names) # noqa: S102 (our own text)


@pytest.mark.parametrize(('answer', 'check', 'said'), [
    ('import json\ndef double(x):\n    return json.loads(x)', "double('{')", '(in your line `return json.loads(x)`)'),
    ('def half(x): return x/0\ndef double(x):\n    return 4*half(x)', 'double(1)', '(in your line `def half(x): return x/0`)'),
    ('def double(x):\n    return x()', 'double(lambda: 1/0)', '(in your line `return x()`)'),
    ('def double(x): pass', 'double(1) + 1', '(at `with learner.check(')])
def test_a_message_names_the_learners_own_line(learner, answer, check, said):
    names = dict(learner=learner)
    with capture_output(): notebook([answer, f"with learner.check('double'): {check}"], names)
    assert said in learner.outcomes['double'].message


def test_an_interrupt_is_not_swallowed(learner):
    with pytest.raises(KeyboardInterrupt), learner.check('double'): raise KeyboardInterrupt


def test_a_learners_attempts_are_kept_and_a_run_leaves_them_alone(learner, tmp_path, monkeypatch):
    for body in (fail(NotImplementedError()), fail(AssertionError()), lambda: None): shown(learner, body)
    kept = progress.load_progress(tmp_path/'progress.json')['99_example']['double']
    assert kept['attempts'] == 2
    assert kept['solved']
    monkeypatch.setenv('MLOPS_COURSE_BATCH', '1')
    before = (tmp_path/'progress.json').read_bytes()
    shown(learner, fail(AssertionError()))
    assert (tmp_path/'progress.json').read_bytes() == before


def test_a_full_disk_loses_no_progress(tmp_path, monkeypatch):
    book = tmp_path/'progress.json'
    progress.record_attempt('99_example', 'double', 'failed', book)
    before = book.read_bytes()
    def full(*_): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(OSError, match='No space left'): progress.record_attempt('99_example', 'double', 'passed', book)
    assert book.read_bytes() == before
    assert [o.name for o in tmp_path.iterdir()] == ['progress.json']


def test_no_damaged_progress_is_lost(tmp_path):
    book, damage = tmp_path/'progress.json', [b'{', b'\xff', b'[]', b'null']
    for o in damage:
        book.write_bytes(o)
        with pytest.raises(ValueError, match=r'progress\.json is damaged'): progress.load_progress(book)
        progress.record_attempt('99_example', 'double', 'failed', book)
        assert progress.load_progress(book)['99_example']['double']['attempts'] == 1
    assert sorted(o.read_bytes() for o in tmp_path.glob('progress.damaged*')) == sorted(damage)


def test_a_quiz_whose_answer_is_not_among_its_options_refuses_to_appear():
    with pytest.raises(ValueError, match="computed answer is '5'"): p.Quiz('2+3?', 2+3, {'4': 'no', '6': 'no'})


def test_a_quiz_marks_exactly_the_computed_option_as_right():
    html = p.Quiz('2+3?', 2+3, {'4': 'one short', '5': 'both added', '6': 'one over'})._repr_html_()
    assert html.count('Right.') == 1
    assert html.index('>5<') < html.index('Right.') < html.index('>6<')
