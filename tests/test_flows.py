"Lesson 16: steps that may be done twice, a flow that resumes, and a workflow whose jobs run here."
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace

import httpx
import psutil
import pytest
import yaml
from click.testing import CliRunner
from conftest import until
from filelock import FileLock

from mlops_course import delivery, pipeline_steps, pipelines, prefect_server, workflows
from mlops_course.base import processes
from mlops_course.base.environment import fingerprint
from mlops_course.base.processes import ServerProcess, free_port, wait_until_ready
from mlops_course.base.settings import Params
from mlops_course.delivery import production_client, reload_champion, smoke_test
from mlops_course.pipeline_steps import PipelineView, Step, code_files, count_journal, order_folder, read_journal
from mlops_course.pipelines import GateRefused
from mlops_course.prefect_server import PrefectServer
from mlops_course.reader import steps
from mlops_course.reader.steps import READER, Order

GIVEN = {'data': {'rows': 1}, 'train': {'run': 'a'}, 'register': {'version': 1}, 'approval': {'by': 'Ana'}}
TINY = Order(start='', steps=2, lines=2)
register_step,release_step = partial(delivery.register_step, READER),partial(delivery.release_step, READER)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    "A folder for runs; gates that a tiny model is not measured by."
    monkeypatch.setenv('MLOPS_COURSE_PATHS__RUNS', str(tmp_path))
    for name,value in {'P95_MS': '1000000', 'LINES': '2'}.items(): monkeypatch.setenv(f'MLOPS_COURSE_PARAMS__GATES__{name}', value)
    monkeypatch.delenv('PRODUCTION_URL', raising=False)
    return tmp_path


def key_of(name, order, done):
    "The key of one of the reader's steps."
    return pipeline_steps.step_key(steps.STEPS, name, order, done)


def one_step(name, order, approved_by=''):
    "One of the reader's steps."
    return pipelines.run_one_step(steps.STEPS, name, order, approved_by)


def as_flow(report=None):
    "The reader's flow."
    return pipelines.make_flow(steps.STEPS, Order, report)


# An order, and what is known about steps

def test_order_knows_its_fields():
    with pytest.raises(ValueError, match='speed'): Order(speed=3)


@pytest.mark.parametrize('wrong', [{'data': 'v9'}, {'steps': 0}, {'rate': 0}, {'lines': 1}, {'checks': ('pylint',)}, {'checks': ()}, {'tests': ()}])
def test_order_refuses_values_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))): Order(**wrong)


def test_an_order_that_names_no_tests_takes_all(root):
    assert [root/o for o in Order().tests] == [root/'tests']


def test_equal_orders_are_one_delivery():
    assert fingerprint(Order(data='v2')) == fingerprint(Order(data='v2', seed=0))
    assert fingerprint(Order(data='v2')) != fingerprint(Order(data='v1'))


def test_every_step_comes_after_what_it_needs():
    seen = {'approval'}
    for name,step in steps.STEPS.items():
        assert {*step.needs, *step.after} <= seen, name
        seen.add(name)


def test_every_step_names_fields_and_files_that_exist(root):
    for name,step in steps.STEPS.items():
        assert set(step.uses) <= set(Order.model_fields), name
        assert set(step.params) <= set(Params.model_fields), name
        for pattern in step.code: assert any(root.glob(pattern)), f'{name}: {pattern}'


def test_release_is_alone_and_never_kept():
    assert steps.STEPS['release'].alone
    assert not steps.STEPS['release'].keep


@pytest.mark.parametrize(('change', 'changed'), [({'rate': .5}, {'train'}), ({'lines': 7}, {'validate'}), ({'checks': ('ruff',)}, {'quality'}),
                                               ({'data': 'v2'}, {'data', 'train', 'validate'})])
def test_key_changes_with_the_fields_that_a_step_uses(change, changed):
    other = Order(**change)
    assert {o for o in steps.STEPS if key_of(o, other, GIVEN) != key_of(o, Order(), GIVEN)} == changed


def test_key_changes_with_what_a_step_is_given():
    assert key_of('validate', Order(), GIVEN) != key_of('validate', Order(), GIVEN | {'train': {'run': 'b'}})
    assert key_of('train', Order(), GIVEN) == key_of('train', Order(), GIVEN | {'register': {'version': 2}})


def test_key_changes_with_the_code_and_not_with_other_files(tmp_path, monkeypatch, root):
    monkeypatch.setattr(pipeline_steps, 'find_root', lambda: tmp_path)
    shutil.copytree(root/'mlops_course', tmp_path/'mlops_course', ignore=shutil.ignore_patterns('__pycache__'))
    (tmp_path/'notes').mkdir()
    before = key_of('data', Order(), GIVEN)
    (tmp_path/'notes'/'idea.txt').write_text('something else')
    (tmp_path/'mlops_course'/'serving.py').write_text('a = 1') # which no step on data needs
    assert key_of('data', Order(), GIVEN) == before
    with (tmp_path/'mlops_course'/'reader'/'degradations.py').open('a') as file: file.write('a = 2')
    assert key_of('data', Order(), GIVEN) != before


@pytest.mark.parametrize(('variable', 'value', 'changed'), [
    ('MLOPS_COURSE_PARAMS__TESTING__CER', '1e-9', {'tests', 'validate'}), ('MLOPS_COURSE_PARAMS__GATES__P95_MS', '1', {'tests', 'validate'}),
    ('MLFLOW_TRACKING_URI', 'http://elsewhere:5000', {'train', 'stage'})])
def test_key_changes_with_the_settings_that_a_step_reads(monkeypatch, variable, value, changed):
    before = {o: key_of(o, Order(), GIVEN) for o in steps.STEPS}
    monkeypatch.setenv(variable, value)
    assert {o for o in steps.STEPS if key_of(o, Order(), GIVEN) != before[o]} == changed


def test_key_does_not_change_with_the_password_of_the_store(monkeypatch):
    found = set()
    for word in ('old', 'new'):
        monkeypatch.setenv('MLFLOW_TRACKING_URI', f'http://ana:{word}@elsewhere:5000')
        found.add(key_of('train', Order(), GIVEN))
    assert len(found) == 1


def files_of(name, root):
    "What the key of a step looks at."
    step = steps.STEPS[name]
    found = {o for pattern in step.code for o in root.glob(pattern)} | set(code_files(step.does, root) if step.imports else ())
    return {o.relative_to(root).as_posix() for o in found}


def test_quality_looks_at_all_that_ruff_does(root):
    shown = subprocess.run([processes.find_program('ruff'), 'check', '--show-files'], cwd=root, capture_output=True, text=True, check=True).stdout.split()
    shown = {Path(o).relative_to(root).as_posix() for o in shown}
    assert {o for o in shown if Path(o).suffix in ('.py', '.ipynb')} <= files_of('quality', root)


@pytest.mark.parametrize('name', ['data', 'train', 'validate'])
def test_code_of_a_step_names_the_modules_that_it_imports(root, name):
    text = inspect.getsource(steps.STEPS[name].does) + inspect.getsource(steps.evaluation_set)*(name == 'validate')
    used = {f'mlops_course/{o.replace(".", "/")}.py' for o in re.findall(r'from mlops_course\.([\w.]+) import', text)}
    assert len(used) > 1
    assert used | {'mlops_course/pipeline_steps.py', 'mlops_course/reader/steps.py'} <= files_of(name, root)


def test_code_of_a_step_names_what_its_imports_import(root):
    found = files_of('train', root)
    assert {f'mlops_course/{o}.py' for o in ('versioning', 'base/files', 'base/environment', 'base/settings', 'reader/degradations')} <= found
    assert not {f'mlops_course/{o}.py' for o in ('serving', 'registry', 'validation', 'tools/cli')} & found


# Steps

def test_quality_says_what_is_wrong(monkeypatch):
    monkeypatch.setitem(delivery.QUALITY_COMMANDS, 'ruff', (Path(sys.executable).name, '-c', 'print("line 3 is bad"); raise SystemExit(1)'))
    with pytest.raises(GateRefused, match='ruff found problems: line 3 is bad'): delivery.quality_step(Order(checks=('ruff',)), {})


def test_quality_names_a_missing_program(monkeypatch):
    monkeypatch.setitem(delivery.QUALITY_COMMANDS, 'ruff', ('no-such-program',))
    with pytest.raises(FileNotFoundError, match='no-such-program is not installed'): delivery.quality_step(Order(checks=('ruff',)), {})


def test_failed_tests_are_named(tmp_path):
    path = tmp_path/'test_it.py'
    path.write_text('def test_good(): pass\ndef test_bad(): assert 1 == 2\n')
    with pytest.raises(GateRefused, match='1 tests failed: test_bad'): delivery.tests_step(Order(tests=(str(path),)), {})


def test_passed_tests_of_a_folder_are_counted(tmp_path):
    path = tmp_path/'test_it.py'
    path.write_text('import pytest\ndef test_good(): pass\n@pytest.mark.skip\ndef test_skipped(): pass\n')
    assert delivery.tests_step(Order(tests=(str(tmp_path),)), {}) == {'passed': 1}


def test_data_is_refused_where_many_rows_are_bad(monkeypatch):
    from mlops_course.reader import checks
    found = SimpleNamespace(frame=[0]*40, rejected={1, 2, 3}, findings=[SimpleNamespace(reason='no ink')])
    monkeypatch.setattr(checks, 'check_folder', lambda folder: found)
    with pytest.raises(GateRefused, match='3 of 40 rows of v1 are rejected, such as: no ink'): steps.data_step(Order(), {})


@pytest.mark.slow
def test_training_that_is_done_is_not_done_again(runs, monkeypatch):
    first = steps.train_step(TINY, GIVEN)
    assert steps.train_step(TINY, GIVEN) == first
    assert steps.train_step(TINY, GIVEN | {'data': {'rows': 2}})['run'] != first['run'] # other data, another training
    monkeypatch.setitem(steps.STEPS, 'train', steps.STEPS['train']._replace(code=('setup.py',)))
    assert steps.train_step(TINY, GIVEN)['run'] != first['run'] # other code too


@pytest.mark.slow
def test_training_that_was_cut_off_goes_on(runs, monkeypatch):
    from mlops_course.reader import tracked
    from mlops_course.store import find_runs, open_store
    order = TINY.model_copy(update={'steps': 16})
    def cut_off(recipe, on_step, **more):
        def report(step, metrics, net):
            on_step(step, metrics, net)
            raise KeyboardInterrupt
        return real(recipe, report, **more)
    real = tracked.train
    monkeypatch.setattr(tracked, 'train', cut_off)
    with pytest.raises(KeyboardInterrupt): steps.train_step(order, GIVEN)
    monkeypatch.setattr(tracked, 'train', real)
    steps.train_step(order, GIVEN)
    found = find_runs(open_store())
    assert len(found) == 1
    assert found[0]['status'] == 'FINISHED'
    assert 'resumed' in found[0]['tags']


@pytest.mark.slow
def test_model_that_reads_nothing_is_refused_with_its_numbers(runs):
    with pytest.raises(GateRefused, match=r'CER of render: .* at most 0.05 is allowed'): steps.validate_step(TINY, {'train': steps.train_step(TINY, GIVEN)})


@pytest.mark.slow
def test_registering_twice_makes_one_version(runs):
    done = {'train': steps.train_step(TINY, GIVEN)}
    assert register_step(TINY, done) == {'version': 1}
    assert register_step(TINY, done) == {'version': 1}


@contextmanager
def well(product, version):
    "A service that is well."
    yield None


@pytest.fixture
def two_versions(runs, monkeypatch):
    "A champion that reads nothing, and the shipped recogniser as its challenger."
    monkeypatch.setattr(delivery, 'production_client', well)
    monkeypatch.setattr(delivery, 'smoke_test', lambda product, client, version, order: {'reads': 0})
    orders = [TINY.model_copy(update={'lines': 24}), TINY.model_copy(update={'start': 'recogniser', 'lines': 24})]
    done = [{**GIVEN, 'register': register_step(o, {'train': steps.train_step(o, GIVEN)})} for o in orders]
    assert release_step(orders[0], done[0])['champion'] == 1
    return orders,done


def champion():
    "The champion's version and the last entry of the history."
    from mlops_course.registry_history import expected_aliases, model_history
    from mlops_course.store import open_store
    entries = model_history(open_store())
    return expected_aliases(entries)['champion'],entries[-1]


@pytest.mark.slow
def test_release_keeps_who_approved_and_may_be_done_twice(two_versions):
    (_,order),(_,done) = two_versions
    assert release_step(order, done)['champion'] == 2
    version,last = champion()
    assert (version, last['who'], last['what']) == (2, 'Ana', 'promoted')
    assert release_step(order, done)['champion'] == 2
    assert champion()[1]['n'] == last['n']


@pytest.mark.slow
def test_release_that_the_gates_refuse_changes_nothing(two_versions):
    (old,order),(before,done) = two_versions
    release_step(order, done)
    with pytest.raises(GateRefused, match='Version 1 stays a challenger'): release_step(old, before)
    assert champion()[0] == 2


@pytest.mark.slow
@pytest.mark.parametrize('error', [ConnectionError('503'), KeyError('503')])
def test_release_that_is_not_well_is_taken_back(two_versions, monkeypatch, error):
    (_,order),(_,done) = two_versions
    def ill(product, client, version, order): raise error
    monkeypatch.setattr(delivery, 'smoke_test', ill)
    with pytest.raises(GateRefused, match=r'Version 2 failed its test in production, so version 1 was restored: .?503'): release_step(order, done)
    version,last = champion()
    assert (version, last['what']) == (1, 'rolled back')


def test_release_that_cannot_be_taken_back_says_both(runs, monkeypatch):
    from mlops_course import registry, registry_history
    def ill(product, client, version, order): raise ConnectionError('503')
    def refuse(store, who, why, name): raise ValueError('the files of version 2 are damaged')
    monkeypatch.setattr(registry_history, 'model_history', lambda store, name: [{'what': 'promoted', 'version': o} for o in (2, 1)])
    monkeypatch.setattr(registry, 'roll_back', refuse)
    for name,stand_in in (('production_client', well), ('smoke_test', ill)): monkeypatch.setattr(delivery, name, stand_in)
    with pytest.raises(GateRefused, match=r'Version 1 failed its test in production: 503. It stays champion: the files of version 2 are damaged'):
        release_step(TINY, GIVEN)


DYING = """
import os
from http.server import BaseHTTPRequestHandler, HTTPServer
class Service(BaseHTTPRequestHandler):
    "Takes up a model, and dies of the first read."
    def do_GET(self): self.say()
    def do_POST(self): self.say() if self.path.endswith('reload') else os._exit(1)
    def say(self):
        self.send_response(200)
        self.end_headers()
HTTPServer(('127.0.0.1', PORT), Service).serve_forever()
"""


@pytest.fixture
def dying(tmp_path, monkeypatch):
    "A service in production that dies of its first read, and none of the stand-ins."
    port = free_port()
    monkeypatch.setattr(delivery, 'production_client', production_client)
    monkeypatch.setattr(delivery, 'smoke_test', smoke_test)
    monkeypatch.setenv('PRODUCTION_URL', f'http://127.0.0.1:{port}')
    monkeypatch.setenv('PRODUCTION_KEY', 'any')
    with ServerProcess([sys.executable, '-c', DYING.replace('PORT', str(port))], f'http://127.0.0.1:{port}', tmp_path/'dying.log'): yield


@pytest.mark.slow
def test_release_whose_service_dies_is_taken_back(two_versions, dying):
    (_,order),(_,done) = two_versions
    with pytest.raises(GateRefused, match=r'version 1 was restored: The service does not answer.*has not loaded it yet'): release_step(order, done)
    version,last = champion()
    assert (version, last['what']) == (1, 'rolled back')


def test_first_release_that_fails_says_that_it_stays(runs, monkeypatch, dying):
    from mlops_course import registry_history
    monkeypatch.setattr(registry_history, 'model_history', lambda store, name: [{'what': 'promoted', 'version': 1}])
    with pytest.raises(ConnectionError, match='It stays champion, since there is no other: The service does not answer'): release_step(TINY, GIVEN)


def test_release_without_a_key_promotes_nothing(runs, monkeypatch):
    from mlops_course import registry_history
    promoted = []
    monkeypatch.setattr(registry_history, 'model_history', lambda store, name: [])
    monkeypatch.setattr(delivery, 'promote_version', lambda product, order, store, who, why, which: promoted.append(which))
    monkeypatch.setenv('PRODUCTION_URL', 'http://127.0.0.1:9')
    monkeypatch.delenv('PRODUCTION_KEY', raising=False)
    with pytest.raises(PermissionError, match='PRODUCTION_URL has no PRODUCTION_KEY'): release_step(TINY, GIVEN)
    assert promoted == []


def test_service_that_is_gone_is_a_failure_that_may_pass():
    with httpx.Client(base_url=f'http://127.0.0.1:{free_port()}') as client:
        for ask in (reload_champion, partial(smoke_test, READER, version=1, order=TINY)):
            with pytest.raises(ConnectionError, match='The service does not answer'): ask(client)


def test_production_asks_for_a_key(monkeypatch):
    monkeypatch.setenv('PRODUCTION_URL', 'http://127.0.0.1:9')
    monkeypatch.delenv('PRODUCTION_KEY', raising=False)
    with pytest.raises(PermissionError, match='mlops-course keys add pipeline --role admin'):
        with production_client(READER, 1): pass


async def hello(scope, receive, send):
    "The smallest app there is."
    if scope['type'] != 'http': return
    await send({'type': 'http.response.start', 'status': 200, 'headers': []})
    await send({'type': 'http.response.body', 'body': b'hello'})


def test_no_proxy_sees_the_key_of_a_service(monkeypatch):
    monkeypatch.setenv('HTTP_PROXY', f'http://127.0.0.1:{free_port()}')
    for name in ('NO_PROXY', 'no_proxy', 'http_proxy'): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('PRODUCTION_KEY', 'any')
    product = SimpleNamespace(create_app=lambda version, folder: hello)
    with delivery.serve_version(product, 1) as client:
        assert client.get('/').text == 'hello'
        monkeypatch.setenv('PRODUCTION_URL', str(client.base_url))
        with production_client(product, 1) as other: assert other.get('/').text == 'hello'


def answering(handle):
    "An httpx.Client whose requests `handle` answers."
    return httpx.Client(transport=httpx.MockTransport(handle), base_url='http://test')


@pytest.mark.parametrize(('status', 'model', 'stranger', 'said'), [
    (503, 'reader/2', 401, '3 of 3 reads did not come from reader/2: 503'), (200, 'reader/1', 401, 'did not come from reader/2: reader/1'),
    (200, 'reader/2', 200, 'An unknown key got 200'), (200, 'reader/2', 401, 'its CER on 3 clean lines is 1.00')])
def test_smoke_test_finds_what_is_wrong(status, model, stranger, said):
    def handle(request):
        if 'line=true' not in str(request.url): return httpx.Response(stranger)
        return httpx.Response(status, json={'model': model, 'text': ''})
    with pytest.raises((GateRefused, ConnectionError), match=said): smoke_test(READER, answering(handle), 2, Order(), reads=3)


@pytest.mark.parametrize(('body', 'said'), [(b'<html>', '2 of 2 reads did not come from reader/2: 200 <html>'), (b'[]', 'reader/2: 200 []'),
                                            (b'{"model": "reader/2"}', "reader/2 answers with something else than /v1/read does: KeyError.'text'")])
def test_smoke_test_is_no_traceback_where_the_answer_is_odd(body, said):
    def handle(request): return httpx.Response(200 if 'line=true' in str(request.url) else 401, content=body)
    with pytest.raises((GateRefused, ConnectionError), match=said.replace('[]', r'\[\]')): smoke_test(READER, answering(handle), 2, Order(), reads=2)


# One step at a time

def test_one_step_names_the_steps():
    with pytest.raises(ValueError, match=r"No step 'trian'. The steps are quality, tests"): one_step('trian', Order())


def test_one_step_waits_for_those_before_it(runs):
    with pytest.raises(ValueError, match='train comes after data, build'): one_step('train', Order())


def test_one_step_asks_who_approves(runs, monkeypatch):
    monkeypatch.setitem(steps.STEPS, 'release', Step(lambda order, done: {'by': done['approval']['by']}, needs=('approval',)))
    with pytest.raises(PermissionError, match='Nobody has approved release'): one_step('release', Order())
    assert one_step('release', Order(), 'Ana') == {'by': 'Ana'}


def test_one_step_hands_on_what_it_said(runs, monkeypatch):
    monkeypatch.setattr(steps, 'STEPS', {'a': Step(lambda order, done: {'x': 1}), 'b': Step(lambda order, done: {'y': done['a']['x'] + 1}, ('a',))})
    one_step('a', Order())
    assert one_step('b', Order()) == {'y': 2}
    assert [o['what'] for o in read_journal()] == ['began', 'ended']*2


def test_step_that_fails_leaves_no_result(runs, monkeypatch):
    def fail(order, done): raise GateRefused('no')
    monkeypatch.setattr(steps, 'STEPS', {'a': Step(fail)})
    with pytest.raises(GateRefused): one_step('a', Order())
    assert not list(order_folder(Order()).glob('*.json'))
    assert [o['what'] for o in read_journal()] == ['began']


# The command

def say(*words):
    "Exit code and output of `mlops-course pipeline`."
    from mlops_course.tools.cli import main
    done = CliRunner().invoke(main, ['pipeline', *words])
    return done.exit_code,done.output


@pytest.mark.parametrize(('words', 'said'), [(['trian'], "No step 'trian'"), (['-p', 'speed', '3'], 'The fields of an order are data, seed'),
                                             (['--order', '{data'], 'The order is not JSON'), (['-p', 'steps', '0'], 'steps: Input should be greater'),
                                             (['--order', '[1]'], 'The order is [1]. One like'), (['--wait', '-p', 'data', 'v2'], '--wait takes no steps'),
                                             (['-p', 'product', 'scan'], 'The products are reader, scans'),
                                             (['-p', 'product', 'scans', '-p', 'lines', '7'], 'The fields of an order are seed, phantoms')])
def test_command_says_what_is_wrong(words, said):
    code,output = say(*words)
    assert code == 2
    assert said in output


@contextmanager
def started(*command):
    "A process with a group of its own, as a terminal would start it; nothing of it is left afterwards."
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try: yield child
    finally:
        if child.poll() is None: os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


@pytest.mark.slow
def test_interrupted_command_ends_at_once_with_a_line(runs):
    main = 'from mlops_course.tools.cli import main; main(["pipeline", "--approve", "Ana"])'
    with started(sys.executable, '-c', STEPS + main) as child:
        until = time.monotonic() + 200
        while not (runs/'inside').exists():
            assert child.poll() is None, child.communicate()
            assert time.monotonic() < until
            time.sleep(.05)
        os.killpg(child.pid, signal.SIGINT)
        _,said = child.communicate(timeout=20)
    assert child.returncode == 130
    assert said.strip() == 'Stopped. The same command goes on where it was'


@pytest.mark.slow
@pytest.mark.parametrize(('product', 'flow', 'ends'), [('reader', 'deliver', signal.SIGTERM), ('scans', 'deliver-scans', signal.SIGINT)])
def test_waiting_command_waits_for_its_product_and_ends_without_a_trace(runs, product, flow, ends):
    main = f'from mlops_course.tools.cli import main; main(["pipeline", "--wait", "-p", "product", "{product}"])'
    with started(sys.executable, '-c', main) as child:
        url = re.search(r'http://\S+/api', child.stdout.readline())[0]
        assert wait_until_ready(f'{url}/deployments/name/{flow}/retraining', lambda: child.poll() is None, 100)
        waits = httpx.get(f'{url}/deployments/name/{flow}/retraining', trust_env=False).json()
        assert waits['entrypoint'] == f'mlops_course.{product}.steps.deliver'
        heard = until(lambda: httpx.post(f'{url}/automations/filter', json={}, trust_env=False).json()) # Prefect adds it after the deployment
        assert [o['trigger']['match'] for o in heard] == [{'prefect.resource.id': f'{product}.data'}]
        time.sleep(1) # until Prefect's own handlers are there
        os.killpg(child.pid, ends)
        _,said = child.communicate(timeout=60)
    assert 'Traceback' not in said
    assert 'Warning' not in said


def test_command_fails_where_a_gate_refuses(runs, monkeypatch):
    def fail(order, done): raise GateRefused('CER too high')
    monkeypatch.setattr(steps, 'STEPS', {'validate': Step(fail)})
    assert say('validate') == (1, 'Refused: CER too high\n')


def test_command_prints_a_line_of_json_for_each_step(runs, monkeypatch):
    monkeypatch.setattr(steps, 'STEPS', {'a': Step(lambda order, done: {'steps': order.steps})})
    code,output = say('a', '-p', 'steps', '7')
    assert code == 0
    assert json.loads(output)['steps'] == 7


def test_naming_the_reader_changes_no_order(runs, monkeypatch):
    monkeypatch.setattr(steps, 'STEPS', {'a': Step(lambda order, done: {})})
    found = {json.loads(say('a', *words)[1])['order'] for words in ([], ['-p', 'product', 'reader'])}
    assert found == {fingerprint(Order())}
    assert 'product' not in Order.model_fields


# The board

def test_board_tells_kept_from_done():
    board = PipelineView(('a', 'b', 'c'))
    for name,state in (('a', 'Running'), ('a', 'Completed'), ('b', 'Running'), ('b', 'Cached')): board(name, state, {'x': 1} if state != 'Running' else None)
    assert repr(board) == 'a: done\nb: kept\nc: waiting'


def test_board_shows_the_error_of_a_failed_step():
    from rich.console import Console
    board,console = PipelineView(('a',)),Console(width=100, record=True, file=open(os.devnull, 'w')) # noqa: SIM115
    board('a', 'Running', None)
    board('a', 'Failed', GateRefused('CER 0.31 [is] too high'))
    console.print(board)
    assert 'CER 0.31 [is] too high' in console.export_text()


# Processes

def test_process_ends_with_the_block_even_if_that_fails(tmp_path):
    port = free_port()
    url = f'http://127.0.0.1:{port}/'
    with pytest.raises(ZeroDivisionError): # noqa: PT012 (the block is what is tried)
        with ServerProcess([sys.executable, '-m', 'http.server', str(port), '--bind', '127.0.0.1'], url, tmp_path/'log'):
            assert httpx.get(url).status_code == 200
            1/0 # noqa: B018
    with pytest.raises(httpx.ConnectError): httpx.get(url)


def test_process_that_never_gets_ready_says_why(tmp_path):
    with pytest.raises(ConnectionError, match='no such luck'):
        with ServerProcess([sys.executable, '-c', 'raise SystemExit("no such luck")'], f'http://127.0.0.1:{free_port()}/', tmp_path/'log'): pass


STUBBORN = """
import http.server, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""
GONE = """
import subprocess
class NoSuchProcess(Exception): pass
class Gone:
    def kill(self): raise NoSuchProcess
class Popen(subprocess.Popen):
    def children(self, recursive): return [Gone()]
"""


@pytest.mark.skipif(os.name == 'nt', reason='sends POSIX signals')
@pytest.mark.parametrize('what', ['Ctrl+C', 'a child that just ended'])
def test_process_ends_with_the_block_whatever_happens_before(tmp_path, monkeypatch, what):
    port = free_port()
    server = ServerProcess([sys.executable, '-c', STUBBORN, str(port)], f'http://127.0.0.1:{port}/', tmp_path/'log')
    if what != 'Ctrl+C':
        (tmp_path/'psutil.py').write_text(GONE)
        server.env = {'PYTHONPATH': str(tmp_path)}
    with server:
        below, = psutil.Process(server.watchman.pid).children()
        if what == 'Ctrl+C':
            os.kill(server.watchman.pid, signal.SIGINT) # a terminal sends it to all at once
            with pytest.raises(subprocess.TimeoutExpired): server.watchman.wait(1)
    try: assert psutil.wait_procs([below], timeout=10)[1] == []
    finally:
        if below.is_running(): below.kill()


@pytest.mark.parametrize('product', ['reader', 'scans'])
def test_flow_of_a_product_is_made_once(monkeypatch, product):
    module = import_module(f'mlops_course.{product}.steps')
    monkeypatch.setitem(vars(module), 'deliver', None)
    del module.deliver # and after this test it is as it was
    monkeypatch.setattr(module, 'make_flow', lambda *steps, **more: object())
    assert module.deliver is module.deliver
    with pytest.raises(AttributeError, match='has no attribute'): module.delivery # noqa: B018


def test_importing_does_not_import_prefect():
    code = 'import sys, mlops_course.pipelines; print([o for o in ("prefect", "torch", "mlflow", "fastapi") if o in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


# Prefect, for real: one server for all of these

@pytest.fixture(scope='module')
def server(tmp_path_factory):
    with PrefectServer(tmp_path_factory.mktemp('prefect')) as opened: yield opened


STEPS = """
import os, time
from pathlib import Path
from mlops_course.pipeline_steps import Step
from mlops_course.pipelines import GateRefused, make_flow
from mlops_course.reader import steps
from mlops_course.reader.steps import Order
folder = Path(os.environ['MLOPS_COURSE_PATHS__RUNS'])
def one(order, done): return {'n': 1}
def two(order, done):
    if not (folder/'mended').exists():
        (folder/'inside').touch()
        time.sleep(300)
    return {'n': done['one']['n'] + 1}
def release(order, done): return {'by': done['approval']['by']}
steps.STEPS = {'one': Step(one, code=()), 'two': Step(two, ('one',), code=()),
               'release': Step(release, ('approval',), ('two',), keep=False, alone=True, code=())}
"""


@pytest.fixture
def few_steps(runs, monkeypatch):
    "Three steps that cost nothing, in this process too."
    monkeypatch.setattr(steps, 'STEPS', steps.STEPS)
    exec(STEPS, {}) # noqa: S102 (the text above)
    return runs


@pytest.mark.slow
def test_killed_flow_goes_on_where_it_was(server, few_steps):
    child = subprocess.Popen([sys.executable, '-c', STEPS + 'make_flow(steps.STEPS, Order)(Order(), "Ana")'])
    try:
        until = time.monotonic() + 200
        while not (few_steps/'inside').exists():
            assert child.poll() is None
            assert time.monotonic() < until
            time.sleep(.05)
    finally: child.kill()
    assert child.wait() == -signal.SIGKILL
    assert count_journal(steps.STEPS) == {'one': 1, 'two': 1}
    (few_steps/'mended').touch()
    board = PipelineView(tuple(steps.STEPS))
    assert as_flow(board)(Order(), 'Ana') == {'one': {'n': 1}, 'two': {'n': 2}, 'release': {'by': 'Ana'}}
    assert repr(board) == 'one: kept\ntwo: done\nrelease: done'
    assert count_journal(steps.STEPS) == {'one': 1, 'two': 2, 'release': 1}
    assert count_journal(steps.STEPS, 'ended') == {'one': 1, 'two': 1, 'release': 1}


@pytest.mark.slow
def test_without_approval_the_flow_ends_before_release(server, few_steps, monkeypatch):
    (few_steps/'mended').touch()
    board = PipelineView(tuple(steps.STEPS))
    assert 'release' not in as_flow(board)(Order(seed=1))
    assert board.rows['release'][0] == 'waiting'


@pytest.mark.slow
@pytest.mark.parametrize(('error', 'times'), [(ConnectionError('gone'), 3), (GateRefused('no'), 1)])
def test_only_what_may_pass_is_tried_again(server, runs, monkeypatch, error, times):
    def fail(order, done): raise error
    monkeypatch.setattr(steps, 'STEPS', {'a': Step(fail, tries=3, code=()), 'b': Step(lambda order, done: {}, ('a',), code=())})
    board = PipelineView(('a', 'b'))
    with pytest.raises(type(error)): as_flow(board)(Order())
    assert count_journal(steps.STEPS) == {'a': times}
    assert repr(board) == 'a: failed\nb: waiting'


@pytest.mark.slow
def test_changed_gate_is_judged_anew(server, runs, monkeypatch):
    from mlops_course.base.settings import load_settings
    def judge(order, done):
        if (limit := load_settings().params.testing.cer) < .01: raise GateRefused(f'at most {limit} is allowed')
        return {}
    monkeypatch.setattr(steps, 'STEPS', {'validate': steps.STEPS['validate']._replace(does=judge, needs=(), after=())})
    for state in ('done', 'kept'):
        as_flow(board := PipelineView(('validate',)))(TINY)
        assert repr(board) == f'validate: {state}'
    monkeypatch.setenv('MLOPS_COURSE_PARAMS__TESTING__CER', '1e-9')
    with pytest.raises(GateRefused, match='at most 1e-09 is allowed'): as_flow()(TINY)


@pytest.mark.slow
def test_two_flows_are_never_in_production_at_once(server, runs, monkeypatch):
    inside = []
    def release(order, done):
        began = time.monotonic()
        time.sleep(3) # time enough for the other flow to come
        inside.append((began, time.monotonic()))
        return {}
    monkeypatch.setattr(steps, 'STEPS', {'release': Step(release, keep=False, alone=True, code=())})
    with ThreadPoolExecutor(2) as pool: list(pool.map(as_flow(), [Order(), Order(seed=1)], ['Ana', 'Ben']))
    (_,first_ended),(second_began,_) = sorted(inside)
    assert first_ended <= second_began


@pytest.mark.slow
def test_results_are_json_that_anybody_can_read(server, few_steps):
    (few_steps/'mended').touch()
    as_flow()(Order(seed=2), '')
    kept = list((server.folder/'results').glob('one-*')) # what a later run may read
    assert kept
    for path in kept: assert json.loads(path.read_text())['metadata']['serializer']['type'] == 'json'


def test_a_second_server_says_that_it_waits_for_the_first(tmp_path, monkeypatch, capfd):
    def enough(): raise InterruptedError
    monkeypatch.setattr(prefect_server, 'free_port', enough)
    held = Event()
    def first():
        with FileLock(tmp_path/'server.lock'):
            held.set()
            time.sleep(.3)
    Thread(target=first).start()
    assert held.wait(10)
    with pytest.raises(InterruptedError): PrefectServer(tmp_path).start()
    assert 'another server of this project runs' in ''.join(capfd.readouterr())
    with FileLock(tmp_path/'server.lock', timeout=0): pass


@pytest.mark.slow
def test_server_leaves_nothing_behind(tmp_path, monkeypatch):
    import psutil
    monkeypatch.delenv('PREFECT_API_URL', raising=False)
    before = {o.pid for o in psutil.Process().children(recursive=True)}
    with PrefectServer(tmp_path) as opened: url = opened.url
    assert 'PREFECT_API_URL' not in os.environ
    with pytest.raises(httpx.ConnectError): httpx.get(f'{url}/health')
    assert {o.pid for o in psutil.Process().children(recursive=True)} <= before


@pytest.mark.slow
def test_a_flow_that_was_killed_in_production_does_not_keep_its_place(tmp_path):
    from prefect.concurrency.sync import concurrency
    code = f"""
import os
from pathlib import Path
from prefect.concurrency.sync import concurrency
from mlops_course.prefect_server import PrefectServer
with PrefectServer(Path({str(tmp_path)!r})), concurrency('production', strict=True):
    print('inside', flush=True)
    os.kill(os.getpid(), {signal.SIGKILL})
"""
    killed = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, 'inside\n'), killed.stderr
    with PrefectServer(tmp_path), concurrency('production', timeout_seconds=20, strict=True):
        with pytest.raises(TimeoutError), concurrency('production', timeout_seconds=1, strict=True): pass # there is one place only


@pytest.mark.slow
def test_second_server_of_a_process_hears_of_its_tasks(tmp_path):
    from prefect import flow, task
    @task
    def double(x): return 2*x
    @flow
    def doubles(): return [double(o) for o in range(3)]
    for name in ('first', 'second'):
        with PrefectServer(tmp_path/name) as opened:
            assert doubles() == [0, 2, 4]
            def states(): return [o['state_name'] for o in httpx.post(f'{opened.url}/task_runs/filter', json={}, trust_env=False).json()]
            until(lambda: states() == ['Completed']*3)


@pytest.mark.slow
def test_shared_server_ends_with_its_process():
    code = '''
from mlops_course.prefect_server import shared_server
server = shared_server()
from prefect import flow, task
double = task(lambda x: 2*x)
print(server.url, flow(lambda: double(21))())
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, '')
    url,answer = done.stdout.split()
    assert answer == '42'
    with pytest.raises(httpx.ConnectError): httpx.get(f'{url}/health', trust_env=False)


# The workflow, with act

WORKFLOW = Path(__file__).resolve().parent.parent/'.github'/'workflows'/'deliver.yml'


def test_cloud_gets_its_role_without_a_key():
    jobs = workflows.workflow_jobs(WORKFLOW)
    assert [o for o in jobs if 'id-token' in jobs[o].get('permissions', {})] == ['cloud']
    assert 'AWS_SECRET' not in WORKFLOW.read_text()
    assert 'AWS_ACCESS_KEY' not in WORKFLOW.read_text()


def test_production_waits_for_approval_and_comes_last():
    jobs = workflows.workflow_jobs(WORKFLOW)
    needs,found,new = workflows.job_needs(jobs),set(),{'production'}
    while new: found |= (new := set().union(*(needs[o] for o in new)) - found)
    assert found == {'quality', 'tests', 'build', 'model', 'staging'}
    assert jobs['production']['environment'] == jobs['cloud']['environment'] == 'production'


def test_amazon_gets_the_champion():
    jobs = workflows.workflow_jobs(WORKFLOW)
    assert (jobs['image']['needs'], jobs['cloud']['needs']) == ('production', 'image')
    done = [o.get('run', '').split(' --')[0] for o in jobs['image']['steps']]
    assert done.index('.venv/bin/mlops-course models export champion') < done.index('docker build')


@pytest.mark.skipif(not (shutil.which('jq') and shutil.which('curl')), reason='the step needs jq and curl')
@pytest.mark.parametrize(('reviews', 'token', 'by'), [
    ([('production', 'rejected', 'bo'), ('production', 'approved', 'ana'), ('staging', 'approved', 'cleo')], 'a-token', 'ana'),
    ([], 'a-token', 'starter'), ([('production', 'approved', 'ana')], '', 'starter')])
def test_the_name_is_that_of_the_approver(reviews, token, by, tmp_path):
    "The step itself; a file stands in for GitHub's answer."
    step = next(o for o in workflows.workflow_jobs(WORKFLOW)['production']['steps'] if o.get('id') == 'approval')
    answer = tmp_path/'repos/it/it/actions/runs/7/approvals'
    answer.parent.mkdir(parents=True)
    answer.write_text(json.dumps([{'environments': [{'name': where}], 'state': state, 'user': {'login': who}} for where,state,who in reviews]))
    env = {'TOKEN': token, 'GITHUB_API_URL': tmp_path.as_uri(), 'GITHUB_REPOSITORY': 'it/it', 'GITHUB_RUN_ID': '7', 'GITHUB_ACTOR': 'starter',
           'GITHUB_OUTPUT': str(tmp_path/'output')}
    def asked(): return subprocess.run(['bash', '-e', '-c', step['run']], env=os.environ | env, check=False).returncode
    assert asked() == 0
    assert (tmp_path/'output').read_text() == f'by={by}\n'
    answer.unlink() # without an answer nobody is named
    assert (asked() != 0) == bool(token)


def test_only_the_order_says_which_product_the_workflow_delivers():
    from mlops_course.tools.products import PRODUCTS
    workflow = yaml.safe_load(WORKFLOW.read_text(encoding='utf-8'))
    assert workflow['env'].pop('PRODUCT') == "${{ fromJSON(inputs.order || vars.ORDER || '{}').product || 'reader' }}"
    text = json.dumps(workflow).replace('/var/reader', '') # where every image keeps its keys and its record
    assert [o for o in (*PRODUCTS, 'recogniser') if o in text] == []


def test_without_a_variable_the_workflow_takes_the_whole_order():
    workflow = yaml.safe_load(WORKFLOW.read_text(encoding='utf-8'))
    assert workflow['env']['MLOPS_COURSE_ORDER'].endswith("|| '{}' }}")


def test_jobs_call_steps_that_exist():
    called = [line.split()[2] for job in workflows.workflow_jobs(WORKFLOW).values() for o in job['steps']
              if 'mlops-course pipeline' in (line := o.get('run', ''))]
    assert set(called) == set(steps.STEPS)


@pytest.mark.slow
def test_act_runs_the_jobs_up_to_production(tmp_path):
    from mlops_course.base.servers import on_free_port
    from mlops_course.reader.serving import ModelSource, create_app
    from mlops_course.registry_history import model_history
    from mlops_course.store import open_store
    registry = tmp_path/'registry'/'mlflow.db'
    store = open_store(registry)
    app = create_app(ModelSource(store), tmp_path/'serving')
    order = Order(steps=8, checks=('zizmor',), tests=('tests/test_practice.py',))
    with on_free_port(app) as url:
        key = app.state.service.keys.add('pipeline', 'admin')
        ran,printed = workflows.run_workflow(WORKFLOW, tmp_path/'act', env={'MLOPS_COURSE_PARAMS__GATES__P95_MS': '1000000'},
                                     variables={'ORDER': order.model_dump_json(), 'PRODUCTION_URL': url},
                                     secrets={'MLFLOW_TRACKING_URI': f'sqlite:///{registry}', 'PRODUCTION_KEY': key})
        assert {o.outcome for o in ran} == {'success'}, printed[-3000:]
        assert {o.job for o in ran} == {'quality', 'tests', 'build', 'model', 'staging', 'production'}
        assert app.state.service.model.version == 'reader/1'
    assert model_history(store)[-1]['who'] == 'nektos/act'


def test_act_says_which_step_failed(tmp_path):
    path = tmp_path/'it.yml'
    path.write_text('on: push\njobs:\n  a:\n    runs-on: ubuntu-24.04\n    steps:\n      - run: "true"\n      - run: "false"\n')
    ran,_ = workflows.run_workflow(path, tmp_path/'act')
    assert [(o.step, o.outcome) for o in ran] == [('true', 'success'), ('false', 'failure')]


JOB = '  {}:\n    runs-on: {}\n    steps:\n      - run: "true"\n        name: Main thing\n      - run: "false"\n        if: false\n{}'


def written(folder, *jobs, event='push'):
    "A workflow of jobs: the name, system and more lines of each."
    path = folder/'it.yml'
    path.write_text(f'on: {event}\njobs:\n' + ''.join(JOB.format(*o) for o in jobs))
    return path


def test_needs_may_be_left_empty(tmp_path):
    path = written(tmp_path, ('a', 'x', ''), ('b', 'x', '    needs:\n'), ('c', 'x', '    needs: a\n'), ('d', 'x', '    needs: [a, c]\n'))
    assert workflows.job_needs(workflows.workflow_jobs(path)) == {'a': set(), 'b': set(), 'c': {'a'}, 'd': {'a', 'c'}}


@pytest.mark.parametrize('text', ['', 'on: push\n', 'on: push\njobs:\n', '- a\n'])
def test_a_workflow_without_jobs_is_refused(tmp_path, text):
    (tmp_path/'it.yml').write_text(text)
    with pytest.raises(ValueError, match=r'No jobs in it\.yml'): workflows.workflow_jobs(tmp_path/'it.yml')


def test_act_runs_each_job_once_on_whatever_system(tmp_path):
    path = written(tmp_path, ('a', 'windows-latest', ''), ('b', 'ubuntu-24.04', '    needs: a\n'), ('c', '[self-hosted, linux]', '    needs: [a, b]\n'),
                   ('d', 'ubuntu-24.04', ''), ('e', 'ubuntu-24.04', '    if: false\n'))
    ran,_ = workflows.run_workflow(path, tmp_path/'one', 'c')
    assert ran == [(o, 'Main thing', 'success') for o in 'abc']
    assert sorted(workflows.run_workflow(path, tmp_path/'all')[0]) == [(o, 'Main thing', 'success') for o in 'abcd']


@pytest.mark.parametrize(('lines', 'system', 'event', 'job'), [
    ('    needs: gone\n', 'x', 'push', ''), ('    needs: a\n', 'x', 'push', ''), ('', 'x', 'workflow_dispatch', ''), ('', 'x', 'push', 'b'),
    ('    strategy:\n      matrix: {on: [x]}\n', '${{ matrix.on }}', 'push', 'a')], ids=['unknown need', 'circle', 'event', 'unknown job', 'system'])
def test_act_that_runs_nothing_is_no_success(tmp_path, lines, system, event, job):
    with pytest.raises(ValueError, match=r'act cannot run .* of it\.yml: .*(any stages|unsupported platform)'):
        workflows.run_workflow(written(tmp_path, ('a', system, lines), event=event), tmp_path/'act', job)


def test_act_has_no_stand_in_for_an_unknown_action(tmp_path):
    path = tmp_path/'it.yml'
    path.write_text(f'on: push\njobs:\n  a:\n    runs-on: ubuntu-24.04\n    steps:\n      - uses: some/action@{"a"*40}\n')
    ran,printed = workflows.run_workflow(path, tmp_path/'act')
    assert ran[-1].outcome == 'failure'
    assert 'there is no stand-in for some/action' in printed
