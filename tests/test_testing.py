"Testing (lesson 12): reports, capabilities, gates, coverage, mutants, flaky tests and contracts, each on small parts of its own."
import ast
import importlib
import io
import sys
from pathlib import Path
from textwrap import dedent

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mlops_course.base.images import load_image
from mlops_course.base.settings import Gates, ModelLimits, load_settings
from mlops_course.base.stats import wilson_interval
from mlops_course.behaviour import Capability, failure_rates, run_capabilities
from mlops_course.contract import awkward_images, contract_failures, fits_form, upload_field
from mlops_course.mutation import make_mutants, mutate_source, run_mutants
from mlops_course.pytest_runs import measure_coverage, run_tests, run_versions
from mlops_course.reader import capabilities
from mlops_course.reader.capabilities import CAPABILITIES, draw_clear_line, model_gates, plot_failures, plot_rates
from mlops_course.scoring import score
from mlops_course.testing import find_flaky


def always(text, sure=.9):
    "A reader that says the same of every picture."
    return lambda images: [(text, sure)]*len(images)


# Reports

MIXED = '''
import pytest
def test_good(): pass
def test_bad(): assert 1 == 2, 'one is not two\\nand never was'
@pytest.fixture
def broken(): raise OSError('no disk')
def test_error(broken): pass
@pytest.mark.skip(reason='not today')
def test_skipped(): pass
@pytest.mark.xfail(strict=True)
def test_gap(): assert 0
@pytest.mark.xfail(strict=True)
def test_gap_that_is_gone(): pass
'''


@pytest.mark.parametrize('inside', [False, True])
def test_a_report_says_of_each_test_what_happened_and_why(inside):
    found = run_tests(MIXED, inside=inside).set_index('test')
    assert found['outcome'].to_dict() == {'test_good': 'passed', 'test_bad': 'failed', 'test_error': 'failed', 'test_skipped': 'skipped',
                                          'test_gap': 'skipped', 'test_gap_that_is_gone': 'failed'}
    assert found['why']['test_bad'] == 'AssertionError: one is not two'
    assert 'and never was' in found['said']['test_bad']
    assert 'no disk' in found['said']['test_error']


@pytest.mark.slow
def test_a_second_run_inside_does_not_see_the_first():
    assert run_tests('def test_a(): pass', inside=True)['test'].tolist() == ['test_a']
    assert run_tests('def test_b(): assert 0', inside=True)[['test', 'outcome']].to_numpy().tolist() == [['test_b', 'failed']]


def test_a_folder_of_tests_is_run_and_words_choose(tmp_path):
    for name in ('a', 'b'): (tmp_path/f'test_{name}.py').write_text(f'def test_{name}(): pass')
    assert sorted(run_tests(tmp_path)['test']) == ['test_a', 'test_b']
    assert run_tests(tmp_path, '-k', 'test_b')['test'].tolist() == ['test_b']


@pytest.mark.parametrize(('tests', 'ended'), [('this is no Python', 2), ('x = 1', 5)])
def test_a_file_that_holds_no_tests_is_refused(tests, ended):
    with pytest.raises(ValueError, match=f'ended with {ended}'): run_tests(tests)


@pytest.mark.parametrize('inside', [False, True])
def test_temporary_folders_of_other_runs_stay(inside, tmp_path_factory):
    found = run_tests('def test_where(tmp_path): assert 0, tmp_path', inside=inside)
    assert str(tmp_path_factory.getbasetemp().parent) not in found['why'][0]
    assert not Path(found['why'][0].split("'")[1]).exists()


def test_plugins_of_the_machine_stay_out():
    found = run_tests("def test_plain(request): assert not request.config.pluginmanager.hasplugin('xdist')")
    assert found['outcome'].tolist() == ['passed']


# Several versions of a module

def test_versions_do_not_see_each_other():
    tests = """
import os, sys, subject
def test_fresh(): assert subject.state == [] and 'LEFT' not in os.environ and not os.path.exists('left')
def test_leave():
    subject.state.append(1); os.environ['LEFT'] = '1'; open('left', 'w').close()
"""
    found = run_versions(tests, {'one': 'state = []\n', 'other': 'state = []\n', 'wrong': 'state = [1]\n'})
    assert found.groupby('version', sort=False)['outcome'].agg(list).to_dict() == {
        'one': ['passed']*2, 'other': ['passed']*2, 'wrong': ['failed', 'passed']}


def test_hypothesis_finds_the_same_in_each_run():
    tests = 'from hypothesis import given, strategies as st\nfrom subject import f\n@given(st.integers())\ndef test_f(x): assert f(x)\n'
    first,again = (run_versions(tests, {'right': 'def f(x): return True\n', 'wrong': 'def f(x): return x < 1000\n'}) for _ in range(2))
    assert first['outcome'].tolist() == ['passed', 'failed']
    assert first['said'].tolist() == again['said'].tolist()
    assert 'x=1000' in first['said'][1]


# Capabilities

def test_every_capability_has_a_name_of_its_own_and_a_kind():
    assert len({o.name for o in CAPABILITIES}) == len(CAPABILITIES)
    assert {o.kind for o in CAPABILITIES} == {'minimum', 'invariance', 'direction'}
    assert all((o.change is None) == (o.kind == 'minimum') and (o.holds is not None) == (o.kind == 'direction') for o in CAPABILITIES)


def test_cases_are_the_same_for_a_seed_and_more_cases_change_none():
    a, b, c = (run_capabilities(always(''), CAPABILITIES, n, seed) for n, seed in ((3, 1), (2, 1), (2, 2)))
    assert b['text'].tolist() == a.groupby('capability', sort=False).head(2)['text'].tolist() != c['text'].tolist()
    first = a[a['capability'] == 'grain']['images'].iloc[0]
    assert (first[1] == b[b['capability'] == 'grain']['images'].iloc[0][1]).all()


def test_minimum_functionality_asks_for_the_very_text():
    o = Capability('x', 'minimum', lambda rng: '7')
    assert (o.passes('7', [('7', .1)]), o.passes('7', [('1', .9)])) == (True, False)


def test_invariance_forgives_a_wrong_text_but_no_change():
    o = Capability('x', 'invariance', lambda rng: '7', lambda image, rng: image)
    assert (o.passes('7', [('1', .9), ('1', .2)]), o.passes('7', [('7', .9), ('1', .9)])) == (True, False)


def test_a_direction_sees_both_readings():
    o = Capability('x', 'direction', lambda rng: '7', lambda image, rng: image, capabilities.is_less_confident)
    assert (o.passes('7', [('7', .9), ('7', .8)]), o.passes('7', [('7', .9), ('7', .9)])) == (True, False)


def test_half_a_line_may_end_in_half_a_letter():
    assert capabilities.reads_beginning([('Gate 7', 1), ('Gal', 1)])
    assert not capabilities.reads_beginning([('Gate 7', 1), ('Gate 7', 1)])
    assert not capabilities.reads_beginning([('Gate 7', 1), ('Hat', 1)])


@pytest.mark.parametrize(('after', 'holds'), [('', False), ('!', False), ('G', True)])
def test_nothing_is_the_beginning_of_no_line(after, holds):
    assert capabilities.reads_beginning([('Gate 7', 1), (after, 1)]) == holds


def test_a_reader_that_reads_nothing_fails_where_it_must():
    rates = failure_rates(run_capabilities(always(''), CAPABILITIES, cases=4))
    assert (rates[rates['kind'] == 'minimum']['rate'] == rates[rates['kind'] == 'minimum'].index.map(lambda o: float(o != 'blank paper'))).all()
    assert (rates[rates['kind'] == 'invariance']['rate'] == 0).all()
    assert (rates[rates['kind'] == 'direction']['rate'] == 1).all()


def test_the_text_of_a_case_stands_on_its_picture():
    rng = np.random.default_rng(0)
    wide, narrow = (draw_clear_line(o, np.random.default_rng(1)) for o in ('18:15 18:45', '18:15'))
    assert wide.dtype == np.uint8
    assert wide.shape[1] > 1.8*narrow.shape[1]
    assert capabilities.random_stop(rng) == capabilities.random_stop(np.random.default_rng(0)).strip()


@pytest.mark.parametrize(('k', 'n'), [(0, 60), (60, 60), (3, 60)])
def test_an_interval_of_a_share_lies_within_0_and_1_around_it(k, n):
    found = wilson_interval(k, n)
    assert 0 <= found.low <= found.value == k/n <= found.high <= 1
    assert found.high - found.low > .05


@pytest.mark.parametrize(('k', 'n'), [(1, 0), (3, 2), (-1, 5)])
def test_a_share_that_cannot_be_is_refused(k, n):
    with pytest.raises(ValueError, match='Count the cases again'): wilson_interval(k, n)


def test_failures_are_drawn_and_no_failure_is_said():
    tried = run_capabilities(always('$x$'), CAPABILITIES[:2], 3)
    titles = [o.get_title(loc='left') for o in plot_failures(tried).axes]
    assert sum(r'\$x\$' in o for o in titles) == 4
    assert plot_failures(tried.assign(failed=False)).axes[0].get_title() == 'nothing failed'


# Gates

def rows_of(edits):
    "Scores of lines with ten characters."
    truths = {f'{i}': 'x'*10 for i in range(len(edits))}
    return score({k: 'y'*e + 'x'*(10 - e) for k, e in zip(truths, edits)}, truths, dict.fromkeys(truths, .001), dataset=dict.fromkeys(truths, 'render'))


def gates_of(edits, failed, limits):
    tried = pd.DataFrame({'capability': 'times', 'kind': 'minimum', 'failed': failed})
    return {o.name: o.passed for o in model_gates(rows_of(edits), tried, 1., limits, Gates(slices=('render',), lines=2, p95_ms=1e6))}


def test_rates_of_any_number_of_readers_stand_in_the_rows_of_their_names():
    one = pd.DataFrame({'kind': ['minimum', 'direction'], 'rate': [.1, .3], 'low': [0., .2], 'high': [.2, .4]}, index=['a', 'b'])
    for readers in ({'x': one}, {'x': one, 'y': one[::-1]}, {'x': one, 'y': one[::-1], 'z': one[:1]}):
        axis = plot_rates(readers, .5).axes[0]
        names = dict(zip((o.get_text() for o in axis.get_yticklabels()), axis.get_yticks()))
        assert list(names) == ['a (minimum)', 'b (direction)']
        for curve in axis.lines[:len(readers)]:
            for rate, y in zip(*curve.get_data()):
                if rate == rate: assert abs(y - names[{.1: 'a (minimum)', .3: 'b (direction)'}[rate]]) < .5
        places = [tuple(curve.get_ydata()) for curve in axis.lines[:len(readers)]]
        assert len(set(places)) == len(readers)
    with pytest.raises(ValueError, match='No rates came'): plot_rates({}, .5)


def test_model_gates_hold_error_capabilities_latency_and_size():
    limits = ModelLimits(cer=.1, failing=.2)
    assert gates_of([0]*200, [False]*60, limits) == {'lines': True, 'latency': True, 'size': True, 'CER of render': True, 'times': True}
    assert gates_of([3]*200, [False]*60, limits)['CER of render'] is False
    assert gates_of([0]*200, [True]*20 + [False]*40, limits)['times'] is False


def test_the_burden_of_proof_is_on_the_model():
    assert gates_of([0]*200, [False]*5, ModelLimits(failing=.2))['times'] is False # none failed, and five cases prove little
    assert gates_of([0]*200, [False]*60, ModelLimits(failing=.2))['times'] is True


def test_gaps_in_params_are_capabilities_that_exist():
    assert set(load_settings().params.testing.gaps) <= {o.name for o in CAPABILITIES}


# Files from strangers

@pytest.mark.parametrize('name', list(awkward_images()))
def test_an_awkward_file_is_a_picture_or_a_clear_refusal(name, tmp_path):
    (tmp_path/'guest.png').write_bytes(awkward_images()[name])
    try: said = f"{load_image(tmp_path/'guest.png', min_side=1).shape[2]} colours"
    except ValueError as e: said = str(e)
    assert any(o in said for o in ('3 colours', 'Make it smaller', 'again', 'Save', 'Expected a JPEG')), f'{said} names no cure'


def test_awkward_files_hold_what_their_names_say():
    files = awkward_images()
    with pytest.raises(Image.DecompressionBombError, match='4294836225 pixels'): Image.open(io.BytesIO(files['claims 4 gigapixels']))
    assert len(files['claims 4 gigapixels']) < 1000
    assert len(files['bomb']) < 100_000
    assert Image.open(io.BytesIO(files['animation'])).n_frames == 2
    assert [name for name in ('16 bits', 'CMYK', 'transparent', 'turned') if np.array(Image.open(io.BytesIO(files[name]))).size == 0] == []


# Coverage

def test_coverage_sees_lines_and_branches():
    module = 'def sign(x):\n    y = 1\n    if x < 0:\n        y = -1\n    return y\n'
    half = measure_coverage(module, 'from subject import sign\ndef test_plus(): assert sign(1) == 1\n')
    assert half.missing == [4]
    assert half.percent < 80
    both = measure_coverage(module, 'from subject import sign\ndef test_both(): assert (sign(1), sign(-1)) == (1, -1)\n')
    assert both.missing == []
    assert both.percent == 100
    # every line runs, and one way out of the `if` never does
    one_branch = measure_coverage(module, 'from subject import sign\ndef test_minus(): assert sign(-1) == -1\n')
    assert one_branch.missing == []
    assert one_branch.percent < 100


# Mutants

@pytest.fixture
def module(tmp_path, monkeypatch):
    "Writes a module, imports it, and lets other processes import it."
    def made(source, name='to_mutate'):
        (tmp_path/f'{name}.py').write_text(dedent(source))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv('PYTHONPATH', str(tmp_path))
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)
    return made


def test_messages_signatures_and_docstrings_are_not_changed(module):
    o = module('''
        def f(x, y: int = 3):
            "Adds 1."
            if not x: raise ValueError(f"{x + 1} is 2")
            return x > 0 and x + y
    ''')
    assert sorted(m.diff.splitlines()[-1].strip('+ ') for m in make_mutants(o.f)) == sorted([
        'y = 3', 'if x:', 'pass', 'return x > 0 or x + y', 'return x >= 0 and x + y', 'return x > 1 and x + y', 'return x > 0 and x - y'])


def test_a_mutant_is_the_whole_function_and_parses(module):
    o = module('def f(a, b):\n    return a + b*2\n')
    for m in make_mutants(o.f):
        space = {}
        exec(m.source, space) # noqa: S102 (our own text)
        assert space['f'](3, 4) != o.f(3, 4)


def test_what_is_no_plain_function_is_refused(module):
    o = module('from functools import lru_cache\nclass K: pass\n@lru_cache\ndef f(x): return x + 1\n')
    for bad in (o.K, o.f):
        with pytest.raises(ValueError, match='no plain function'): make_mutants(bad)


def test_survivors_are_those_that_the_tests_do_not_see(module):
    o = module('def free(age):\n    return age < 6\n')
    weak = run_mutants(make_mutants(o.free), 'from to_mutate import free\ndef test_ends(): assert free(3) and not free(40)\n')
    assert dict(zip(weak['diff'].str.split('+').str[-1].str.strip(), weak['killed_by'])) == {'return age <= 6': '', 'return age < 7': ''}
    strong = run_mutants(make_mutants(o.free), 'from to_mutate import free\ndef test_edge(): assert free(5) and not free(6)\n')
    assert strong['killed_by'].tolist() == ['test_edge']*2


@pytest.mark.slow
def test_a_mutant_that_never_ends_is_stopped_and_the_next_is_tried(module):
    o = module('def down(n):\n    while n > 0: n = n - 1\n    return n == 0\n')
    found = run_mutants(make_mutants(o.down), 'from to_mutate import down\ndef test_down(): assert down(3)\n', limit_s=3)
    by = dict(zip(found['diff'].str.split('\n').str[-1].str.strip('+ '), found['killed_by']))
    assert by['while n > 0: n = n + 1' if 'while n > 0: n = n + 1' in by else 'n = n + 1'] == 'the time limit'
    assert by['return n != 0'] == 'test_down'


def test_tests_that_fail_by_themselves_prove_nothing(module):
    o = module('def f(): return 1\n')
    with pytest.raises(ValueError, match='fail without any mutant: test_wrong'): run_mutants(make_mutants(o.f), 'def test_wrong(): assert 0\n')


# Flaky tests

CLASSES = """
import os
class TestA:
    def test_it(self): pass
class TestB:
    class TestC:
        def test_it(self): assert os.environ['TZ'] == 'UTC'
def test_it(): pass
"""


@pytest.mark.parametrize('inside', [False, True])
def test_a_test_is_named_with_its_class(inside, tmp_path):
    names = ['TestA::test_it', 'TestB::TestC::test_it', 'test_it']
    assert run_tests(CLASSES, inside=inside)['test'].tolist() == names
    (tmp_path/'Deep').mkdir()
    (tmp_path/'Deep'/'test_some.py').write_text(CLASSES)
    assert run_tests(tmp_path, inside=inside)['test'].tolist() == names
    assert run_versions(CLASSES, {'one': ''})['test'].tolist() == names


def test_a_test_whose_code_lies_in_another_file_keeps_its_name():
    assert run_tests('from tempfile import gettempdir as test_it\n')['test'].tolist() == ['test_it']


def test_a_flaky_test_is_named_with_its_class():
    found = find_flaky(CLASSES, 1)
    assert found[['test', 'changing']].values.tolist() == [['TestB::TestC::test_it', 'zone']]


def test_a_flaky_test_that_fails_twice_or_has_another_name_is_found():
    found = find_flaky("""
import os, pytest
@pytest.fixture
def broken():
    yield
    assert 0
def test_twice(broken): assert os.environ['TZ'] == 'UTC'
@pytest.mark.parametrize('zone', [os.environ['TZ']])
def test_named(zone): pass
""", 1)
    assert found[['test', 'changing']].values.tolist() == [['test_twice', 'zone'], ['test_named[UTC]', 'zone']]


@pytest.mark.slow
def test_each_cause_is_named():
    found = find_flaky('''
import os, random, time
from pathlib import Path
state = []
def test_one(): state.append(1)
def test_order(): assert state
def test_numbers(): assert random.Random(random.random()).random() < .5
def test_hashes(): assert list({'a', 'b', 'c'})[0] == 'c'
def test_zone(): assert time.localtime().tm_hour == time.gmtime().tm_hour
def test_left(): Path('left').mkdir()
def test_sound(): pass
''', 3)
    assert dict(zip(found['test'], found['changing'])) == {f'test_{o}': o for o in ('order', 'numbers', 'hashes', 'zone')} | {'test_left': 'nothing'}


def test_sound_tests_are_left_alone():
    assert find_flaky('def test_good(): pass\ndef test_always_bad(): assert 0\n', 1).empty


# Contracts

fastapi = pytest.importorskip('fastapi')


def an_app(answer, **options):
    "A service with one operation that takes a file."
    app = fastapi.FastAPI()

    @app.post('/read', **options)
    def read(image: fastapi.UploadFile) -> dict[str, str]: return answer(image.file.read())
    return app


GARBLED = {400: {'description': 'a form that is garbled'}}


def test_an_app_that_keeps_its_contract_has_no_failures():
    assert contract_failures(an_app(lambda data: {'text': f'{len(data)} bytes'}, responses=GARBLED), 5).empty


def test_a_server_error_is_found_with_the_file_that_caused_it():
    def answer(data):
        if data.startswith(b'\x89PNG'): raise OSError('/secret/path')
        return {'text': ''}
    found = contract_failures(an_app(answer, responses=GARBLED), 5, {'a good one': b'1', 'a bad one': b'\x89PNG'})
    assert found['status'].tolist() == [500, 500]
    assert set(found['sent']) == {'a bad one'}
    assert set(found['broke']) == {'Server error', 'Undocumented status code'}


def test_a_status_that_nobody_announced_is_found():
    def answer(data): raise fastapi.HTTPException(415, 'no picture')
    found = contract_failures(an_app(answer, responses=GARBLED), 5, {})
    assert found[['broke', 'status']].to_numpy().tolist() == [['Undocumented status code', 415]]


def test_an_answer_that_tells_a_secret_is_found():
    app = an_app(lambda data: {'text': '/secret/path'}, responses=GARBLED)
    assert contract_failures(app, 3, {'a file': b'1'}).empty
    assert set(contract_failures(app, 3, {'a file': b'1'}, secret='/sec.et')['broke']) == {'Tells what it must not'}


def test_headers_go_with_every_request_and_operations_without_a_body_are_tried():
    app = fastapi.FastAPI()

    @app.get('/health')
    def health(request: fastapi.Request) -> dict[str, str]:
        if request.headers.get('x-key') != 'k': raise OSError('no key')
        return {}
    assert contract_failures(app, 3, headers={'x-key': 'k'}).empty
    assert 500 in contract_failures(app, 3)['status'].tolist()


def test_the_field_for_files_is_found_one_or_several():
    app = an_app(lambda data: {})

    @app.post('/batch')
    def batch(images: list[fastapi.UploadFile]) -> dict[str, str]: return {}

    @app.get('/health')
    def health() -> dict[str, str]: return {}
    assert [upload_field(app.openapi(), *o) for o in (('/read', 'POST'), ('/batch', 'post'), ('/health', 'get'))] == [('image', False), ('images', True), None]


@pytest.mark.parametrize(('body', 'fits'), [({'images': ['a', 'b']}, True), ({'images': 'a'}, True), ({'images': [b'x'], 'more': None}, True),
    ({'images': []}, False), ({'more': 'a'}, False), ('a', False)])
def test_a_form_is_judged_as_it_is_sent(body, fits):
    app = fastapi.FastAPI()

    @app.post('/batch')
    def batch(images: list[fastapi.UploadFile]) -> dict[str, str]: return {}
    contract = app.openapi()
    contract['components']['schemas']['Body_batch_batch_post']['properties']['images']['minItems'] = 1
    assert fits_form(contract, '/batch', 'post', body) == fits


def test_an_app_that_accepts_a_wrong_form_is_found():
    app = fastapi.FastAPI()

    @app.post('/share')
    async def share(request: fastapi.Request) -> dict[str, str]: return {}
    contract = app.openapi()
    form = {'type': 'object', 'properties': {'part': {'type': 'string', 'maxLength': 3}}, 'required': ['part']}
    contract['paths']['/share']['post']['requestBody'] = {'required': True, 'content': {'multipart/form-data': {'schema': form}}}
    assert 'Schema-violating request accepted' in contract_failures(app, 20)['broke'].tolist()


MEAN = """
def mean(values, weights=None, *, most=9):
    kept = [o for o in values if o < most]
    check(kept, weights)
    if weights: kept = scaled(kept, weights)
    return round(sum(kept)/len(kept), 2)
"""
CHANGES = { # what a learner's slip looks like: a line of `MEAN`, and what became of it
    'an operator': ('o < most', 'o <= most'), 'a statement left out': ('check(kept, weights)', 'pass'),
    'a filter left out': (' if o < most', ''), 'a condition reversed': ('if weights', 'if not weights'),
    'arguments swapped': ('scaled(kept, weights)', 'scaled(weights, kept)'),
    'a rounding left out': ('round(sum(kept)/len(kept), 2)', 'sum(kept)/len(kept)'),
    'a parameter ignored': ('most=9):', 'most=9):\n    most = 9')}


def test_mutmut_makes_one_of_the_seven_changes_that_the_checks_are_tried_with(tmp_path, monkeypatch):
    "Why `mutation` is ours: see CONTRIBUTING."
    (tmp_path/'setup.cfg').write_text('[mutmut]\nsource_paths=.\n') # mutmut does not start without a project
    monkeypatch.chdir(tmp_path)
    from mutmut.mutation.file_mutation import create_mutations, deep_replace
    module, changes, *_ = create_mutations('mean.py', MEAN)
    def same(text): return ast.unparse(ast.parse(text))
    theirs = {same(deep_replace(module, o.original_node, o.mutated_node).code) for o in changes}
    ours = {same(o) for o, _ in mutate_source(MEAN)}
    wanted = {name: same(MEAN.replace(*o)) for name, o in CHANGES.items()}
    assert len(theirs) > 10
    assert {name for name, o in wanted.items() if o in theirs} == {'an operator'}
    assert set(wanted.values()) <= ours
