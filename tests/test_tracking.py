"Runs on record (lesson 08): bad luck of every kind, several stores and processes, and MLflow's pages in a browser."
import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import inf, isnan, nan
from pathlib import Path

import numpy as np
import psutil
import pytest
from click.testing import CliRunner

from mlops_course.base.memory import PeakMemory
from mlops_course.base.processes import wait_until_ready
from mlops_course.base.settings import load_settings
from mlops_course.mlflow_server import MlflowServer
from mlops_course.reader.tracked import reproduce_training, train_tracked
from mlops_course.reader.training import Recipe, draw_lines
from mlops_course.spool import Outbox, Run, read_outbox, send_pending, spooled_run, start_run
from mlops_course.store import compare_runs, find_runs, mask_credentials, open_store, read_artifact, tracking_uri
from mlops_course.tools.cli import main
from mlops_course.tracking import provenance_changes, reproduce, run_provenance, track

pytestmark = pytest.mark.filterwarnings('ignore:The ``noload`` loader strategy') # inside MLflow
POSIX = pytest.mark.skipif(os.name == 'nt', reason='sends POSIX signals')
QUICK = Recipe(steps=8, batch=4, width=16, depth=1, longest=5)
TEN_VALUES = [o/10 for o in range(10)]


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path/'mlflow.db')


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    "A server that stays."
    folder = tmp_path_factory.mktemp('server')
    open_store(folder/'mlflow.db')
    with MlflowServer(f"sqlite:///{(folder/'mlflow.db').as_posix()}", folder/'artifacts') as running: yield running


def values(store, run_id, metric='cer'): return [(o.step, o.value) for o in store.client.get_metric_history(run_id, metric)]


def log_ten(run, pause_s=0.):
    for i, value in enumerate(TEN_VALUES):
        run.metrics({'cer': value}, i)
        time.sleep(pause_s)


def waiting(store): return sorted(o.name for o in store.outbox.glob('*'))


@pytest.fixture
def away(store, monkeypatch):
    "A switch: while it is on, the store refuses to answer."
    from mlflow.exceptions import MlflowException
    switch = {'on': False}
    for name in ('log_batch', 'log_artifact', 'set_terminated'):
        real = getattr(store.client, name)
        def call(*words, real=real, **more):
            if switch['on']: raise MlflowException('API request to http://me:pa55@host failed')
            return real(*words, **more)
        monkeypatch.setattr(store.client, name, call)
    return switch


# Where the runs go

def test_without_a_setting_runs_go_to_a_file_of_the_project(monkeypatch):
    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
    if not load_settings().secrets.mlflow_tracking_uri.get_secret_value():
        assert tracking_uri() == f"sqlite:///{(load_settings().paths.runs/'tracking'/'mlflow.db').as_posix()}"


def test_one_setting_names_another_store(monkeypatch):
    monkeypatch.setenv('MLFLOW_TRACKING_URI', 'http://127.0.0.1:5000/')
    assert tracking_uri() == 'http://127.0.0.1:5000'


def test_a_wrong_address_is_refused_without_its_password():
    with pytest.raises(ValueError, match=r'expected one like sqlite:///runs\.db') as said: tracking_uri('ftp://me:pa55word@host')
    assert 'pa55word' not in str(said.value)


@pytest.mark.parametrize('text', ['http://me:pa55@host/x', 'postgresql://me:pa55@host/db', 'failed: http://me:p@pa55@host:1/x with (http://me:pa55@other)',
    'postgresql://me:x/pa55@host/db', 'postgresql://me:x?pa55@host/db', 'postgresql://me:x"#pa55@host/db', 'http://pa55@host', 'http://a:1,http://me:pa55@host'])
def test_hidden_leaves_no_password(text):
    assert 'pa55' not in mask_credentials(text)
    assert 'host' in mask_credentials(text)


@pytest.mark.parametrize('text', ['http://host?mail=me@there', 'http://host:1/x?mail=me@there', 'http://host#me@there', '{"uri":"http://host:1","by":"me@there"}',
    '{"uri":"http://host","by":"me:I@there"}', 'sqlite:////host/me@there', 'http://host/x:y@there'])
def test_an_address_without_a_password_stays_as_it_is(text): assert mask_credentials(text) == text


def test_a_store_that_does_not_answer_is_said_at_the_door(tmp_path):
    start = time.monotonic()
    with pytest.raises(ConnectionError, match='leave MLFLOW_TRACKING_URI empty') as said: open_store('http://me:pa55word@127.0.0.1:9', folder=tmp_path)
    assert time.monotonic() - start < 20
    assert 'pa55word' not in str(said.value)
    assert said.value.__suppress_context__ # the cause would print the password


def test_two_stores_live_side_by_side_and_nothing_global_changes(tmp_path):
    import mlflow
    before = mlflow.get_tracking_uri()
    stores = [open_store(tmp_path/name/'mlflow.db') for name in 'ab']
    with spooled_run(stores[0], 'here') as one, spooled_run(stores[1], 'there') as two:
        one.metrics({'cer': .1})
        two.metrics({'cer': .2})
    assert [find_runs(o)[0]['metrics']['cer'] for o in stores] == [.1, .2]
    assert mlflow.get_tracking_uri() == before


@pytest.mark.slow
def test_importing_does_nothing_visible(tmp_path):
    check = ("import os, mlflow; before = mlflow.get_tracking_uri(); from mlops_course import tracking; "
             "print(os.listdir('.'), mlflow.get_tracking_uri() == before)")
    done = subprocess.run([sys.executable, '-c', check], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ('[] True', '')


def test_a_deleted_experiment_is_named(store):
    store.client.delete_experiment(store.experiment_id)
    with pytest.raises(ValueError, match="experiment 'reader' was deleted"): open_store(Path(store.uri.removeprefix('sqlite:///')))


# The outbox

def test_half_a_line_costs_only_itself(tmp_path):
    box = Outbox(tmp_path/'run')
    box.add('tag', key='a', value='1')
    box.file.write(b'\n{"n": 2, "kind": "t')
    box.close()
    box = Outbox(tmp_path/'run')
    box.add('tag', key='b', value='2')
    box.close()
    assert [(o['n'], o['key']) for o in read_outbox(tmp_path/'run'/'entries.jsonl')[0]] == [(1, 'a'), (2, 'b')]


def test_the_outbox_only_grows(tmp_path):
    box = Outbox(tmp_path/'run')
    before = b''
    for i in range(5):
        box.add('metric', key='cer', value=float(i), step=i)
        if i == 2: box.mark(2)
        now = (tmp_path/'run'/'entries.jsonl').read_bytes()
        assert now.startswith(before)
        assert len(now) > len(before)
        before = now
    box.close()
    assert [o['n'] for o in Outbox(tmp_path/'run').waiting] == [3, 4, 5]


def test_an_entry_of_a_file_never_lacks_its_file(tmp_path):
    box = Outbox(tmp_path/'run')
    box.add('file', b'content', key='a/b.txt')
    assert (tmp_path/'run'/'1'/'b.txt').read_bytes() == b'content'
    box.mark(1)
    assert not (tmp_path/'run'/'1').exists()
    box.close()


def test_a_run_is_written_by_one_process_at_a_time(store):
    with spooled_run(store) as run, pytest.raises(BlockingIOError, match='Another process'): Outbox(store.outbox/run.id)


# A run

@pytest.mark.parametrize(('call', 'said'), [
    (lambda r: r.metrics({'cer': 'good'}), r"Found cer = 'good', expected numbers. Log words with tags\(\)"),
    (lambda r: r.metrics({'cer': True}), 'Found cer = True, expected numbers'),
    (lambda r: r.metrics({'cer %': 1.}), "Found the name 'cer %', expected letters, digits"),
    (lambda r: r.artifact('../out.txt', 'x'), r"Found the name '../out.txt', expected"),
    (lambda r: r.artifact('/etc/out.txt', 'x'), "Found the name '/etc/out.txt', expected"),
    (lambda r: r.params({'width': 65}), 'width is 64, not 65'),
    (lambda r: r.tags({'a//b': 1}), "Found the name 'a//b', expected"),
    (lambda r: r.params({'depth': 3, './a': 1}), "Found the name './a', expected"),
    (lambda r: r.artifact('.', 'x'), "Found the name '.', expected"),
    (lambda r: r.artifact('a/', 'x'), "Found the name 'a/', expected"),
    (lambda r: r.metrics({'cer': 10**400}), 'expected numbers'),
    (lambda r: r.metrics({'cer': 1.}, 10**30), 'Found step 10{30}, expected a whole number of 64 bits'),
    (lambda r: r.metrics({'cer': 1.}, nan), 'Found step nan, expected a whole number'),
], ids=['word', 'truth value', 'name', 'upwards', 'absolute', 'changed', 'empty folder', 'here', 'dot', 'folder', 'huge', 'huge step', 'no step'])
def test_what_the_store_would_refuse_is_refused_at_once(store, call, said):
    with spooled_run(store) as run:
        run.params({'width': 64})
        with pytest.raises(ValueError, match=said): call(run)
        run.params({'depth': 4})
    found, = find_runs(store)
    assert found['status'] == 'FINISHED' # the caller went on
    assert found['params'] == {'width': '64', 'depth': '4'} # nothing of what was refused is kept
    assert 'cer' not in found['metrics']
    assert waiting(store) == []


@pytest.mark.parametrize('name', ['one\ntwo', 'x'*251, 'half \udcff'], ids=['two lines', 'long', 'half a character'])
def test_a_run_name_that_a_store_refuses_is_refused_in_words(store, name):
    with pytest.raises(ValueError, match='expected at most 250 printable characters'), spooled_run(store, name): pass
    assert find_runs(store) == []


def test_half_a_character_holds_nothing_back(store):
    "As in the name of a file that is not UTF-8, which an error may quote."
    def work():
        with spooled_run(store) as run:
            run.params({'file': 'x\udcff'})
            raise FileNotFoundError('no x\udcff')
    with pytest.raises(FileNotFoundError): work()
    found, = find_runs(store)
    assert (found['status'], found['params'], found['tags']['error']) == ('FAILED', {'file': 'x?'}, 'FileNotFoundError: no x?')
    assert b'FileNotFoundError: no x?' in read_artifact(store, found['id'], 'error.txt')
    assert waiting(store) == []


def test_a_run_records_what_it_stands_on_and_cost(store):
    with spooled_run(store, 'one', seed=3, data='v1') as run: run.picture('reads/a.png', np.zeros((4, 4), np.uint8))
    found, = find_runs(store)
    env = json.loads(read_artifact(store, run.id, 'environment.json'))
    assert env['seed'] == 3
    assert env['packages']['torch']
    assert found['tags']['data_dvc'] == env['data']['data/v1']
    assert found['tags']['data_dvc'].endswith('.dir')
    assert found['tags']['git_dirty'] in ('True', 'False')
    assert found['metrics']['peak_mb'] > 50
    assert found['metrics']['run_seconds'] > 0
    assert store.client.get_run(run.id).data.tags['mlflow.source.git.commit'] == env['git']['commit']
    assert read_artifact(store, run.id, 'reads/a.png').startswith(b'\x89PNG')


def test_a_crash_is_recorded_and_raised_again(store):
    with pytest.raises(ZeroDivisionError), spooled_run(store) as run: raise ZeroDivisionError('division by zero')
    found, = find_runs(store)
    assert (found['status'], found['tags']['error']) == ('FAILED', 'ZeroDivisionError: division by zero')
    assert 'Traceback' in read_artifact(store, run.id, 'error.txt').decode()


class Pruned(Exception): pass


@pytest.mark.parametrize(('error', 'status'), [(KeyboardInterrupt, 'KILLED'), (SystemExit, 'FAILED'), (Pruned, 'KILLED'), (ValueError, 'FAILED')])
def test_a_stop_on_purpose_is_no_failure(store, error, status):
    with pytest.raises(error), spooled_run(store, stops=(KeyboardInterrupt, Pruned)): raise error
    assert find_runs(store)[0]['status'] == status


def test_an_error_that_quotes_an_address_keeps_its_password_to_itself(store):
    with pytest.raises(ValueError), spooled_run(store) as run: raise ValueError('no answer from http://me:pa55word@host')
    kept = find_runs(store)[0]['tags']['error'] + read_artifact(store, run.id, 'error.txt').decode()
    assert 'pa55word' not in kept.replace("raise ValueError('no answer from http://me:pa55word@host')", '')


def test_nan_and_infinity_come_back_as_what_they_are(store):
    with spooled_run(store) as run:
        run.metrics({'a': nan, 'b': inf, 'c': -inf, 'd': 1e300})
        run.metrics({'late': 1.}, 1)
        run.metrics({'late': nan}, 2)
    found = find_runs(store)[0]['metrics']
    assert isnan(found['a'])
    assert isnan(found['late'])
    assert (found['b'], found['c'], found['d']) == (inf, -inf, 1e300)


def test_peak_sees_what_was_freed_again():
    with PeakMemory() as peak:
        before,until = peak.mb,time.monotonic() + 20
        block = np.ones(400*2**17)
        while peak.mb < before + 300 and time.monotonic() < until: time.sleep(.05)
        del block
    assert peak.mb > before + 300


# A store that is away

def test_what_could_not_be_sent_is_kept_and_sent_later_in_order_once(store, away):
    def work():
        with spooled_run(store) as run:
            run.metrics({'cer': 1.}, 99)
            run.send(now=True)
            away['on'] = True
            run.artifact('a.txt', 'kept')
            log_ten(run)
            run.send(now=True)
        return run
    with pytest.warns(UserWarning, match='could not be sent') as said: run = work()
    assert 'pa55' not in str(said[0].message)
    assert [o for o, _ in values(store, run.id)] == [99]
    assert find_runs(store)[0]['status'] == 'RUNNING'
    report, = send_pending(store)
    assert report['sent'] == 0
    assert report['left'] > 10
    assert 'pa55' not in report['why']
    away['on'] = False
    report, = send_pending(store)
    assert (report['left'], report['why']) == (0, '')
    assert values(store, run.id) == [(99, 1.), *enumerate(TEN_VALUES)]
    assert find_runs(store)[0]['status'] == 'FINISHED'
    assert read_artifact(store, run.id, 'a.txt') == b'kept'
    assert (send_pending(store), waiting(store)) == ([], [])


@pytest.mark.parametrize('locked', [False, True], ids=['as it began', 'as a kill leaves it'])
def test_a_run_that_ends_while_others_are_sent_stays_finished(store, locked):
    "Its process sends the rest and deletes the outbox after the list of outboxes was made, or is killed while it deletes."
    with spooled_run(store) as run: run.metrics({'cer': .5}, 1)
    (store.outbox/run.id).mkdir(parents=True)
    if locked: (store.outbox/run.id/'lock').touch()
    assert send_pending(store) == []
    assert waiting(store) == []
    found, = find_runs(store)
    assert (found['status'], found['tags'].get('error')) == ('FINISHED', None)


def test_a_run_that_died_before_its_first_entry_fails(store, monkeypatch):
    run = Run(store, start_run(store))
    run.outbox.close()
    with monkeypatch.context() as patch:
        patch.setattr(store.client, 'get_run', lambda *_: 1/0)
        assert send_pending(store) == [] # nobody knows whether it has ended
    assert waiting(store) == [run.id]
    assert [o['left'] for o in send_pending(store)] == [0]
    assert find_runs(store)[0]['status'] == 'FAILED'


@pytest.mark.parametrize('error', [ValueError('a page instead of JSON'), RuntimeError('a surprise'), ConnectionResetError('reset')], ids=repr)
def test_whatever_the_store_raises_the_run_goes_on(store, monkeypatch, error):
    def fail(*_, **__): raise error
    with spooled_run(store) as run:
        with monkeypatch.context() as patch:
            patch.setattr(store.client, 'log_batch', fail)
            run.metrics({'cer': .5}, 1)
            run.send(now=True)
            assert run.trouble == str(error)
    assert values(store, run.id) == [(1, .5)]


def test_what_arrived_but_was_not_marked_is_not_doubled(store, monkeypatch):
    "As if the power failed between the store's answer and the mark."
    with spooled_run(store) as run:
        run.send(now=True)
        with monkeypatch.context() as patch:
            patch.setattr(run.outbox, 'mark', lambda n: None)
            run.metrics({'cer': .5, 'bad': nan}, 1)
            run.tags({'a': 1})
            for _ in range(3): run.send(now=True)
    assert values(store, run.id) == [(1, .5)]
    assert len(values(store, run.id, 'bad')) == 1


def test_a_locked_database_does_not_stop_a_run(store):
    path = store.uri.removeprefix('sqlite:///')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with spooled_run(store) as run:
            run.send(now=True)
            other = sqlite3.connect(path, isolation_level=None)
            other.execute('BEGIN EXCLUSIVE')
            run.metrics({'cer': .5}, 1)
            locked = threading.Thread(target=run.send, kwargs={'now': True})
            locked.start()
            locked.join(.5)
            other.execute('ROLLBACK')
            other.close()
            locked.join()
    assert values(store, run.id) == [(1, .5)]


class Mute(BaseHTTPRequestHandler):
    "Takes a request and does not answer."
    def do_GET(self): time.sleep(30)
    do_POST = do_GET
    def log_message(self, *_): pass


def test_a_server_that_hangs_is_asked_ever_more_rarely(store, monkeypatch):
    monkeypatch.setenv('MLFLOW_HTTP_REQUEST_TIMEOUT', '1')
    from mlflow import MlflowClient
    mute = ThreadingHTTPServer(('127.0.0.1', 0), Mute)
    mute.daemon_threads = True
    threading.Thread(target=mute.serve_forever, daemon=True).start()
    run = Run(store, start_run(store))
    run.store = type(store)(MlflowClient(f'http://127.0.0.1:{mute.server_port}'), '', '', '', store.outbox)
    start = time.monotonic()
    log_ten(run, .1)
    spent = time.monotonic() - start
    run.outbox.close()
    mute.shutdown()
    assert 'timeout' in run.trouble
    assert len(run.outbox.waiting) == 10
    assert 1.9 < spent < 4 # one timeout of a second, not ten
    assert run.next_s > time.monotonic() + 10


TRAIN = '''
import sys, time
from pathlib import Path
from mlops_course.reader.tracked import train_tracked
from mlops_course.reader.training import Recipe
from mlops_course.store import open_store
store = open_store(Path(sys.argv[1]))
def report(step, metrics, net):
    print(step, flush=True)
    time.sleep(float(sys.argv[2]) if step >= 4 else 0)
train_tracked(Recipe.model_validate_json(sys.argv[3]), store, 'killed', every=2, checkpoint=Path(sys.argv[1]).parent/'half.pt', on_step=report,
              resume=sys.argv[4] if len(sys.argv) > 4 else '')
'''


def train_elsewhere(store, pause_s, *words):
    "A training in a process of its own, which a test may kill."
    command = [sys.executable, '-c', TRAIN, store.uri.removeprefix('sqlite:///'), str(pause_s), QUICK.model_dump_json(), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@POSIX
@pytest.mark.slow
def test_a_killed_training_loses_nothing_and_resumes_to_the_same_end(store):
    process = train_elsewhere(store, 60)
    for line in process.stdout:
        if line.strip() == '4': break
    assert send_pending(store) == [] # it lives, so it is left alone
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    killed, = find_runs(store)
    assert killed['status'] == 'RUNNING' # it could not say more
    report, = send_pending(store)
    assert report['left'] == 0
    found, = find_runs(store)
    assert (found['status'], found['tags']['error']) == ('FAILED', 'Its process ended without a message')
    assert [o for o, _ in values(store, found['id'])] == [2, 4]

    process = train_elsewhere(store, 0, found['id'])
    assert process.wait(timeout=120) == 0, process.stderr.read()
    process.communicate()
    whole, = find_runs(store)
    assert whole['status'] == 'FINISHED'
    assert 'error' not in whole['tags']
    assert whole['tags']['resumed'] == 'in the same circumstances'
    assert [o for o, _ in values(store, whole['id'])] == [2, 4, 6, 8]
    assert reproduce_training(store, whole['id']).same


WRITE = '''
import sys
from pathlib import Path
from mlops_course.store import open_store
from mlops_course.spool import spooled_run
store = open_store(Path(sys.argv[1]), 'crowd')
with spooled_run(store, sys.argv[2]) as run:
    for i in range(50):
        run.metrics({'cer': i/50}, i)
        if i % 5 == 0: run.send(now=True)
'''


@pytest.mark.slow
def test_several_processes_write_into_one_new_database(tmp_path):
    "They also make it, all at once."
    crowd = [subprocess.Popen([sys.executable, '-c', WRITE, tmp_path/'mlflow.db', f'writer {i}'], stderr=subprocess.PIPE, text=True) for i in range(3)]
    assert [(o.communicate(timeout=240)[1], o.returncode) for o in crowd] == [('', 0)]*3
    store = open_store(tmp_path/'mlflow.db', 'crowd')
    found = find_runs(store)
    assert [o['status'] for o in found] == ['FINISHED']*3
    for o in found: assert values(store, o['id']) == [(i, i/50) for i in range(50)]
    assert waiting(store) == []


@pytest.mark.slow
def test_a_server_that_dies_does_not_stop_a_training(tmp_path):
    open_store(tmp_path/'mlflow.db')
    server = MlflowServer(f"sqlite:///{(tmp_path/'mlflow.db').as_posix()}", tmp_path/'served')
    with server:
        store = open_store(server.uri, folder=tmp_path)
        with pytest.warns(UserWarning, match='could not be sent'):
            _, run_id = train_tracked(QUICK, store, every=2, on_step=lambda step, *_: server.stop() if step == 4 else None)
    assert waiting(store) == [run_id]
    with server:
        report, = send_pending(store)
        assert (report['left'], report['why']) == (0, '')
        assert [o for o, _ in values(store, run_id)] == [2, 4, 6, 8]
        assert find_runs(store)[0]['status'] == 'FINISHED'
        assert read_artifact(store, run_id, 'model/weights.safetensors')
        assert reproduce_training(store, run_id).same # over the network, to the last bit


@POSIX
@pytest.mark.slow
def test_a_server_ends_with_the_process_that_started_it(tmp_path):
    open_store(tmp_path/'mlflow.db')
    start = "import sys, time\nfrom mlops_course.mlflow_server import MlflowServer\n" \
            "with MlflowServer(sys.argv[1], sys.argv[2]) as s: print(s.port, flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, '-c', start, f"sqlite:///{tmp_path/'mlflow.db'}", tmp_path/'served'], stdout=subprocess.PIPE, text=True)
    url = f'http://127.0.0.1:{int(process.stdout.readline())}/health'
    assert wait_until_ready(url, lambda: True, 2)
    below = psutil.Process(process.pid).children(recursive=True)
    assert below
    process.kill()
    process.communicate()
    assert psutil.wait_procs(below, timeout=10)[1] == []
    assert not wait_until_ready(url, lambda: True, 2)


def test_another_server_on_its_port_does_not_pass_for_it(tmp_path):
    class Well(Mute):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
    other = ThreadingHTTPServer(('127.0.0.1', 0), Well)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    server = MlflowServer(f"sqlite:///{(tmp_path/'mlflow.db').as_posix()}", tmp_path, other.server_port)
    with pytest.raises(ConnectionError, match=r'did not start on port \d+: another program answers there. End it, or choose another'), server: pass
    other.shutdown()
    other.server_close()
    assert (server.watchman, list(tmp_path.iterdir())) == (None, [])


@pytest.mark.slow
def test_a_server_that_cannot_start_says_why(tmp_path):
    with pytest.raises(ConnectionError, match='did not start on port'), MlflowServer('nonsense://me:pa55word@x', tmp_path): pass


# Resumed runs

def test_a_resumed_run_notes_what_changed(store, monkeypatch):
    with spooled_run(store, 'first') as run:
        run.params({'width': 64})
        run.metrics({'cer': .5}, 1)
    old = run_provenance()
    monkeypatch.setattr('mlops_course.spool.run_provenance', lambda seed=None: {**old, 'seed': seed, 'python': '2.7'})
    with spooled_run(store, resume=run.id) as again:
        again.metrics({'cer': .4}, 2)
        with pytest.raises(ValueError, match='width is 64, not 32'): again.params({'width': 32})
    found, = find_runs(store)
    assert (found['id'], found['name'], found['status']) == (run.id, 'first', 'FINISHED')
    assert found['tags']['resumed'] == f"python: {old['python']} then, 2.7 now"
    assert values(store, run.id) == [(1, .5), (2, .4)]


def test_a_run_that_does_not_exist_cannot_be_resumed(store):
    with pytest.raises(ValueError, match='refuses: Run with id=nowhere not found'), spooled_run(store, resume='nowhere'): pass
    assert waiting(store) == []
    assert find_runs(store) == []


@pytest.mark.parametrize('resume', ['.', '..', 'a/b'])
def test_a_resumed_run_has_an_id_and_no_path(store, tmp_path, resume):
    "What is not a run's own folder would be deleted, with all that waits there."
    Outbox(store.outbox/'another').close()
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(ValueError, match='expected an id of letters and digits'), spooled_run(store, resume=resume): pass
    assert sorted(tmp_path.rglob('*')) == before


def test_a_folder_that_is_no_run_is_left_alone(store):
    (store.outbox/'.ipynb_checkpoints').mkdir(parents=True)
    assert send_pending(store) == []
    assert waiting(store) == ['.ipynb_checkpoints']


def test_a_report_that_only_the_checkpoint_knows_is_recorded(store, tmp_path):
    def stop(step, metrics, net): raise KeyboardInterrupt
    from mlops_course.reader.training import train
    with pytest.raises(KeyboardInterrupt): train(QUICK, every=2, checkpoint=tmp_path/'half.pt', on_step=stop) # reported to nobody
    with spooled_run(store, 'cut short', seed=QUICK.seed) as run: run.params(QUICK.model_dump())
    train_tracked(QUICK, store, every=2, checkpoint=tmp_path/'half.pt', resume=run.id)
    assert sorted(o for o, _ in values(store, run.id)) == [2, 4, 6, 8]


# Search, compare, reproduce

@pytest.fixture
def plain(store):
    "MLflow itself, pointed at `store`."
    import mlflow
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(store.uri)
    mlflow.set_experiment('reader')
    yield mlflow
    while mlflow.active_run(): mlflow.end_run('KILLED')
    mlflow.set_tracking_uri(before)


def test_track_records_what_a_run_stands_on(store, plain, tmp_path):
    from mlops_course.versioning import commit_all, dvc, scratch_repo
    repo = scratch_repo(tmp_path/'repo')
    (repo/'lines.txt').write_text('07:15', encoding='utf-8')
    dvc('add', 'lines.txt', cwd=repo)
    commit_all(repo, 'Add lines')
    with track('clean', 3, 'lines.txt', repo) as run: plain.log_param('width', 32)
    (repo/'new.py').write_text('', encoding='utf-8')
    with track('dirty', 3, 'lines.txt', repo, tags={'own': 'kept'}): pass
    clean, dirty = find_runs(store)
    assert clean['tags'] == {'git_dirty': 'False', 'seed': '3', 'data': 'lines.txt', 'data_dvc': run_provenance(3, repo)['data']['lines.txt']}
    assert (dirty['tags']['git_dirty'], dirty['tags']['own']) == ('True', 'kept')
    assert json.loads(read_artifact(store, run.info.run_id, 'environment.json'))['seed'] == 3
    assert store.client.get_run(run.info.run_id).data.tags['mlflow.source.git.commit'] == run_provenance(3, repo)['git']['commit']


def test_reproduce_compares_the_metric_of_any_training(plain):
    with track('doubled', 0) as run:
        plain.log_param('x', 2)
        plain.log_metric('twice', 4.)
    assert reproduce(run.info.run_id, lambda params: 2.*int(params['x']), 'twice').same
    other = reproduce(run.info.run_id, lambda params: 3.*int(params['x']), 'twice')
    assert (other.was, other.now, other.same) == (4., 6., False)
    with pytest.raises(ValueError, match='it has no cer'): reproduce(run.info.run_id, lambda params: 0.)


@pytest.mark.slow
def test_a_run_whose_files_a_server_keeps_is_made_again(server, tmp_path):
    store = open_store(server.uri, 'files on the server', folder=tmp_path)
    with spooled_run(store, seed=1) as run: run.metrics({'cer': .5})
    assert store.client.get_run(run.id).info.artifact_uri.startswith('mlflow-artifacts:')
    assert reproduce(run.id, lambda params: .5, client=store.client).same # whatever store MLflow itself points to


def test_runs_come_from_every_page(store, monkeypatch):
    real = store.client.search_runs
    monkeypatch.setattr(store.client, 'search_runs', lambda *words, **more: real(*words, max_results=2, **more))
    for i in range(5): start_run(store, f'run {i}')
    assert [o['name'] for o in find_runs(store)] == [f'run {i}' for i in range(5)]


def test_a_filter_that_makes_no_sense_is_refused_in_words(store):
    with pytest.raises(ValueError, match='refuses: Invalid'): find_runs(store, 'cer below one')


def test_compare_shows_what_differs():
    found = [{'name': f'run {i}', 'status': 'FINISHED', 'params': {'width': str(i), 'depth': '3'}, 'metrics': {'cer': i/10}} for i in range(3)]
    table = compare_runs(found, ['cer', 'f1'])
    assert list(table.columns) == ['status', 'width', 'cer', 'f1']
    assert list(table['cer']) == [0, .1, .2]
    assert table['f1'].isna().all()
    assert compare_runs([]).empty


def test_children_know_their_parent(store):
    with spooled_run(store, 'parent') as parent, spooled_run(store, 'child', parent=parent.id): pass
    family = {o['name']: o for o in find_runs(store)}
    assert family['child']['parent'] == family['parent']['id']
    assert family['parent']['parent'] == ''


def test_a_training_is_made_again_from_its_record_alone(store):
    _, run_id = train_tracked(QUICK, store, every=4)
    again = reproduce_training(open_store(Path(store.uri.removeprefix('sqlite:///'))), run_id)
    assert again.same
    assert again.now == again.was
    assert [o for o in again.changed if not o.startswith('git.dirty')] == []
    about = json.loads(read_artifact(store, run_id, 'model/recogniser.json'))
    assert (about['run'], about['recipe']) == (run_id, QUICK.model_dump())


@pytest.mark.parametrize(('more', 'said'), [({'draw': draw_lines}, 'it was trained with a draw of its own'), ({'metric': 'f1'}, 'it has no f1')])
def test_what_no_record_holds_is_not_made_again(store, more, said):
    metric = more.pop('metric', 'cer')
    _, run_id = train_tracked(QUICK, store, every=8, **more)
    with pytest.raises(ValueError, match=said): reproduce_training(store, run_id, metric)


@pytest.mark.parametrize('metric', ['loss', 'seconds'])
def test_what_differs_between_equal_trainings_is_not_compared(store, metric):
    _, run_id = train_tracked(QUICK, store, every=4)
    with pytest.raises(ValueError, match=f'`{metric}` .* Compare another metric'): reproduce_training(store, run_id, metric)


def test_a_failed_run_is_not_made_again(store):
    with pytest.raises(OSError), spooled_run(store) as run: raise OSError('the disk is gone')
    with pytest.raises(ValueError, match='it is FAILED'): reproduce_training(store, run.id)


def test_differences_name_the_place_and_both_values():
    was, now = {'git': {'commit': 'a'}, 'threads': {'x': 1}, 'data': {'v1': '1'}}, {'git': {'commit': 'b'}, 'threads': {'x': 2}, 'data': {}}
    assert provenance_changes(was, now) == ['data.v1: 1 then, None now', 'git.commit: a then, b now']


# Commands

@pytest.fixture
def as_setting(store, tmp_path, monkeypatch):
    monkeypatch.setenv('MLFLOW_TRACKING_URI', store.uri)
    monkeypatch.setenv('MLOPS_COURSE_PATHS__RUNS', str(tmp_path/'runs'))
    return store


def test_the_command_lists_runs(as_setting):
    for name in ('good', 'bad'):
        with spooled_run(as_setting, name) as run: run.metrics({'cer': .1 if name == 'good' else .9})
    said = CliRunner().invoke(main, ['runs', '--where', 'metrics.cer < 0.5'])
    assert said.exit_code == 0
    assert 'good' in said.output
    assert 'bad' not in said.output
    assert 'No runs in' in CliRunner().invoke(main, ['runs', '--experiment', 'another']).output
    wrong = CliRunner().invoke(main, ['runs', '--where', 'cer below one'])
    assert wrong.exit_code == 2
    assert 'refuses: Invalid' in wrong.output


# Pages

@pytest.mark.slow
def test_the_pages_show_runs_curves_and_reads(server, browser, tmp_path):
    from playwright.sync_api import expect
    store = open_store(server.uri, 'in the browser', folder=tmp_path)
    with spooled_run(store, 'grandmother') as parent:
        _, run_id = train_tracked(QUICK, store, 'the child', every=4, parent=parent.id)
    page = browser.new_page(viewport={'width': 1400, 'height': 900})
    page.set_default_timeout(60_000)
    page.goto(f'{server.uri}/#/experiments/{store.experiment_id}/runs')
    expect(page.get_by_text('grandmother').first).to_be_visible(timeout=60_000)
    page.goto(f'{server.uri}/#/experiments/{store.experiment_id}/runs/{run_id}')
    expect(page.get_by_text('the child').first).to_be_visible(timeout=60_000)
    expect(page.get_by_text('warm_up').first).to_be_visible(timeout=60_000)
    page.goto(f'{server.uri}/#/experiments/{store.experiment_id}/runs/{run_id}/artifacts')
    page.get_by_text('reads').first.click()
    expect(page.get_by_text('000008.png').first).to_be_visible(timeout=60_000)


def test_nothing_is_said_on_the_way(store, capfd, caplog):
    with caplog.at_level(logging.INFO), spooled_run(store) as run: run.metrics({'cer': 1.})
    assert capfd.readouterr() == ('', '')


def test_a_new_database_is_one_that_mlflow_would_have_made(tmp_path):
    from mlflow import MlflowClient
    def tables(path):
        with sqlite3.connect(path) as db: found = db.execute('SELECT name, sql FROM sqlite_master').fetchall()
        return {name: sorted(o.strip(' \t,') for o in (sql or '').splitlines()) for name, sql in found} # the order of constraints is that of a set
    ours, theirs = open_store(tmp_path/'ours.db').client, MlflowClient(f"sqlite:///{(tmp_path/'theirs.db').as_posix()}")
    assert tables(tmp_path/'ours.db') == tables(tmp_path/'theirs.db')
    places = [o.get_experiment('0').artifact_location for o in (ours, theirs)]
    assert places[0] == places[1] # that of the copied database would lie where somebody else once was
