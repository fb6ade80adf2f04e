"Drift (lesson 19): tests against scipy, false alarms, a monitor that is killed, late labels, the report, and an alert that starts one run."
import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import cv2
import httpx
import numpy as np
import pandas as pd
import pytest
from conftest import Shelf, needs, until
from prometheus_client import generate_latest, make_asgi_app
from scipy.stats import ks_2samp

from mlops_course import retraining as retraining_module
from mlops_course.base.history import AuditLog
from mlops_course.base.processes import ServerProcess
from mlops_course.base.servers import on_free_port
from mlops_course.base.settings import ApiSettings, load_settings
from mlops_course.drift import drift_lower_bounds, drift_over_time, drift_report, ks_distance, ks_margin, psi
from mlops_course.drift_store import Cooldown, DriftMonitor, LabelStore, SharedDatabase, drift_registry
from mlops_course.keys import KeyStore
from mlops_course.monitoring import AlertNotice, AlertReceiver
from mlops_course.prefect_server import PrefectServer
from mlops_course.prometheus import PROMETHEUS_PROGRAMS, run_monitoring
from mlops_course.reader.custom import CustomEngine, load_custom, warm_up_engine
from mlops_course.reader.features import FEATURES, Sensor, image_features, text_slope
from mlops_course.reader.services import DriftTracker, RetrainingTrigger, start_services
from mlops_course.reader.serving import create_app
from mlops_course.reader.steps import Order
from mlops_course.reader.trials import draw_trial_lines
from mlops_course.reader.weights import load_recogniser
from mlops_course.registry_history import model_history
from mlops_course.retraining import TRIGGER_NAME
from mlops_course.scoring import rate, score
from mlops_course.store import open_store

ROW = dict.fromkeys(FEATURES, 1.)


def sample(n, seed, shift=0.):
    "Rows of made-up features that all move together by `shift`."
    return pd.DataFrame(np.random.default_rng(seed).normal(shift, 1, (n, len(FEATURES))), columns=list(FEATURES))


@pytest.fixture(scope='module')
def champion():
    "Trained on v1 alone."
    return load_recogniser(load_settings().paths.data/'compression'/'teacher')


@pytest.fixture(scope='module')
def lines():
    return {k: [image for image, _ in o] for k, o in draw_trial_lines(40, 3).items()}


@pytest.fixture(scope='module')
def sensor(champion, lines):
    return Sensor(champion, lines['render'][:20])


@pytest.fixture
def monitor(tmp_path):
    with DriftMonitor(tmp_path/'drift.db', FEATURES, window=50, every_s=60) as found:
        yield found


# What is measured

def test_slope_finds_a_tilted_line():
    image = np.full((64, 400), 255, np.uint8)
    cv2.putText(image, 'Central 07:15 to the Airport', (10, 40), cv2.FONT_HERSHEY_SIMPLEX, .7, 0, 2)
    level = text_slope(image)
    for angle in (-4, 4): # OpenCV turns counter-clockwise, and downhill is positive here
        turned = cv2.warpAffine(image, cv2.getRotationMatrix2D((200, 32), angle, 1), (400, 64), borderValue=255)
        assert text_slope(turned) - level == pytest.approx(-angle, abs=1)


def test_slope_of_an_empty_image_is_level():
    assert text_slope(np.full((32, 100), 200, np.uint8)) == 0


@pytest.mark.parametrize(('change', 'feature', 'sign'), [
    (lambda o: cv2.GaussianBlur(o, (0, 0), 2), 'sharpness', -1),
    (lambda o: cv2.addWeighted(o, .4, np.full_like(o, 160), .6, 0), 'contrast', -1),
    (lambda o: np.clip(o + np.random.default_rng(0).normal(0, 12, o.shape), 0, 255).astype(np.uint8), 'noise', 1),
    (lambda o: np.hstack([o, o]), 'size', 1)])
def test_look_sees_what_was_done_to_an_image(lines, change, feature, sign):
    before, after = ([image_features(f(o))[feature] for o in lines['render'][:10]] for f in (lambda o: o, change))
    assert all(sign*(b - a) > 0 for a, b in zip(before, after)), f"{feature}: {before} became {after}"


def test_look_ignores_colour_and_contrast_does_not_change_sharpness(lines):
    image = lines['render'][0]
    assert image_features(cv2.cvtColor(image, cv2.COLOR_GRAY2RGB))['sharpness'] == pytest.approx(image_features(image)['sharpness'])
    pale = (image.astype(float)*.5 + 100).astype(np.uint8)
    assert image_features(pale)['sharpness'] == pytest.approx(image_features(image)['sharpness'], rel=.05)


def test_sensor_measures_every_feature_and_finds_other_lines_strange(sensor, lines):
    found = {k: [sensor(o) for o in lines[k][20:]] for k in ('render', 'display')}
    assert all(tuple(sorted(o.values)) == tuple(sorted(FEATURES)) and o.seen.shape == (128,) for o in found['render'])
    strange = {k: np.median([o.values['strangeness'] for o in v]) for k, v in found.items()}
    assert strange['display'] > 1.5*strange['render']


def test_sensor_takes_the_answer_of_the_model_that_serves(sensor, lines):
    found = sensor(lines['render'][0], ('AB 12', .5))
    assert found.text == 'AB 12'
    assert {k: found.values[k] for k in ('confidence', 'length', 'digits', 'capitals')} == {'confidence': .5, 'length': 5, 'digits': .4, 'capitals': .4}


def test_sensor_measures_a_line_on_which_nothing_was_read(sensor, lines):
    found = sensor(lines['render'][0], ('', 0.)).values
    assert (found['length'], found['digits'], found['confidence']) == (0, 0, 0)


def test_sensor_leaves_the_net_as_it_was(sensor, champion, lines):
    sensor(lines['render'][0])
    assert not champion.say._forward_pre_hooks


def test_sensor_asks_for_lines():
    with pytest.raises(ValueError, match='spread is needed'): Sensor(None, [])


# Is it chance?

def test_distance_is_that_of_scipy():
    rng = np.random.default_rng(0)
    for a, b in ((rng.normal(size=80), rng.normal(.3, 1, 50)), (rng.integers(0, 5, 60), rng.integers(0, 6, 90)), (np.zeros(9), np.ones(4))):
        assert ks_distance(a, b) == pytest.approx(ks_2samp(a, b).statistic)


def test_margin_lets_chance_beyond_as_often_as_it_says():
    rng = np.random.default_rng(1)
    over = np.mean([ks_distance(rng.normal(size=300), rng.normal(size=100)) > ks_margin(300, 100, .1) for _ in range(600)])
    assert .05 < over < .13


def test_margin_is_that_of_scipy_for_many_lines():
    n, m = 3000, 2000
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=n), rng.normal(.1, 1, m)
    found = ks_2samp(a, b, method='asymp')
    assert ks_margin(n, m, found.pvalue) == pytest.approx(found.statistic, rel=.02)


def test_moved_rings_for_nothing_as_seldom_as_it_says():
    "Ten independent features: the worst case for ten looks at once."
    rings = np.mean([max(drift_lower_bounds(sample(300, 2*i), sample(100, 2*i + 1), .1).values()) > 0 for i in range(200)])
    assert rings < .15


def test_moved_is_a_lower_bound_on_the_share_that_changed():
    reference = sample(2000, 0)
    mixed = pd.concat([sample(700, 1), sample(300, 2, shift=50)])
    found = drift_lower_bounds(reference, mixed)
    assert all(.2 < o <= .3 for o in found.values())


def test_moved_names_the_column_that_is_missing():
    with pytest.raises(ValueError, match='no column noise'): drift_lower_bounds(sample(9, 0), sample(9, 1).drop(columns='noise'))
    with pytest.raises(ValueError, match='no column a, b'): drift_lower_bounds(pd.DataFrame({'a': [1], 'b': [1]}), sample(9, 1))


def test_moved_refuses_empty_samples():
    with pytest.raises(ValueError, match='9 and 0 lines'): drift_lower_bounds(sample(9, 0), sample(0, 1))


@pytest.mark.parametrize('bad', [[], [1., np.nan, 2.]], ids=['nothing', 'a gap'])
def test_a_sample_with_gaps_is_refused_and_not_called_calm(bad):
    for samples in ((bad, [1., 2.]), ([1., 2.], bad)):
        for measure in (psi, ks_distance):
            with pytest.raises(ValueError, match='whole sample was expected'): measure(*samples)


def test_a_column_may_have_a_number_for_a_name():
    numbers = pd.DataFrame({0: np.arange(300.)})
    assert drift_lower_bounds(numbers, numbers + 300) == {'0': pytest.approx(1 - ks_margin(300, 300, .01))}


def test_psi_is_what_the_formula_says():
    was, now = np.array([.5, .5]), np.array([.8, .2])
    assert psi([0, 0, 1, 1], [0]*8 + [1]*2, bins=2) == pytest.approx(float(((now - was)*np.log(now/was)).sum()))
    assert psi(range(100), range(100)) == pytest.approx(0)


def test_psi_of_nothing_grows_with_fewer_lines():
    rng = np.random.default_rng(0)
    few, many = (np.mean([psi(rng.normal(size=2000), rng.normal(size=n)) for _ in range(60)]) for n in (60, 600))
    assert few == pytest.approx(9*(1/60 + 1/2000), rel=.4)
    assert many < few/4


def test_looks_ring_after_the_change_and_not_before():
    stream = pd.concat([sample(200, 1), sample(100, 2, shift=3)])
    found = drift_over_time(sample(400, 0), stream, window=100, every=20).max(axis=1)
    assert list(found.index) == list(range(100, 301, 20))
    assert (found.loc[:200] == 0).all()
    assert found[300] > .5


def test_looks_ask_for_a_stream_as_long_as_the_window():
    with pytest.raises(ValueError, match='30 lines, fewer than'): drift_over_time(sample(9, 0), sample(30, 1), 50)


# A memory that survives

def test_monitor_goes_on_after_a_restart(tmp_path):
    reference, rows = sample(200, 0), sample(60, 1, shift=3).to_dict('records')
    with DriftMonitor(tmp_path/'a.db', FEATURES, window=60) as monitor:
        monitor.refer(reference)
        for o in rows[:30]: monitor.track(o)
    with DriftMonitor(tmp_path/'a.db', FEATURES, window=60) as monitor:
        assert monitor.judge() == {} # too few, whatever they say
        for o in rows[30:]: monitor.track(o)
    with DriftMonitor(tmp_path/'a.db', FEATURES, window=60) as monitor:
        assert monitor.judge() == drift_lower_bounds(reference, pd.DataFrame(rows))


def test_monitor_takes_any_names_and_keeps_them(tmp_path):
    names = ['sepal length (cm)', 'a "quoted" one']
    with DriftMonitor(tmp_path/'a.db', names, window=20) as monitor:
        monitor.refer(pd.DataFrame(np.random.default_rng(0).normal(size=(100, 2)), columns=names))
        for i in range(20): monitor.track({names[0]: 9. + i, names[1]: 0.})
        monitor.flush()
        assert list(monitor.judge()) == names
    with pytest.raises(ValueError, match=r'holds sepal length .*, and width came'): DriftMonitor(tmp_path/'a.db', ['width'])


def test_monitor_goes_on_with_a_file_of_before(tmp_path):
    columns = ' REAL, '.join(FEATURES)
    with closing(sqlite3.connect(tmp_path/'a.db')) as db: # as it began when `drift` held the names
        db.executescript(f"""CREATE TABLE image (id INTEGER PRIMARY KEY, at REAL, sha256 TEXT, model TEXT, text TEXT, {columns} REAL);
            CREATE TABLE reference ({columns} REAL);""")
        with db: db.execute(f"INSERT INTO image VALUES (NULL, 1, 'sha', 'reader/1', 'Airport'{', 2'*len(FEATURES)})") # noqa: S608 (numbers only)
    with DriftMonitor(tmp_path/'a.db', FEATURES) as monitor:
        monitor.track(ROW, 'other', text='Harbour')
        monitor.flush()
        assert monitor.current()[['text', 'noise']].to_numpy().tolist() == [['Airport', 2.], ['Harbour', 1.]]


def test_labels_may_come_before_the_monitor(tmp_path):
    labels = LabelStore(tmp_path/'a.db')
    labels.add({'sha': 'Airport'})
    assert labels.joined().empty
    with DriftMonitor(tmp_path/'a.db', FEATURES) as monitor: monitor.track(ROW, 'sha', text='Airp0rt')
    assert labels.joined()[['pred', 'truth']].to_numpy().tolist() == [['Airp0rt', 'Airport']]


def test_monitor_that_is_killed_loses_no_more_than_its_last_moment(tmp_path):
    code = ("import sys, time; from mlops_course.drift_store import DriftMonitor\n"
            "m = DriftMonitor(sys.argv[1], ['a', 'b'], every_s=.05); row = dict.fromkeys('ab', 1.)\n"
            "for i in range(300): m.track(row)\n"
            "while m.waiting: time.sleep(.01)\n"
            "m.flush(); print('written', flush=True)\n" # flush waits for a write that is under way
            "while True: m.track(row); time.sleep(.001)")
    with subprocess.Popen([sys.executable, '-c', code, str(tmp_path/'a.db')], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == 'written\n'
        process.kill()
    with SharedDatabase(tmp_path/'a.db').opened() as db:
        assert db.execute('PRAGMA integrity_check').fetchone() == ('ok',)
        assert db.execute('SELECT count(*) FROM image').fetchone()[0] >= 300


def test_monitors_write_to_one_file_at_once(tmp_path):
    def write(name):
        with DriftMonitor(tmp_path/'a.db', FEATURES, every_s=.005) as monitor:
            for _ in range(500):
                monitor.track(ROW, model=name)
                if not monitor.waiting: time.sleep(0)
    with ThreadPoolExecutor(4) as pool: list(pool.map(write, 'abcd'))
    with SharedDatabase(tmp_path/'a.db').opened() as db:
        assert db.execute('SELECT model, count(*) FROM image GROUP BY model').fetchall() == [(o, 500) for o in 'abcd']


def test_track_costs_under_50_microseconds_with_its_writing(monitor):
    costs = []
    for _ in range(3): # of processor time; the best of three, since a busy machine counts against us
        start = time.process_time()
        for _ in range(4000): monitor.track(ROW, 'a'*64, 'reader/1', 'Central 07:15')
        monitor.flush()
        costs.append((time.process_time() - start)*1e6/4000)
    assert min(costs) < 50, costs


def test_track_refuses_what_is_no_number(monitor):
    for bad in (float('nan'), float('inf')):
        with pytest.raises(ValueError, match='no number'): monitor.track({**ROW, 'noise': bad})
    with pytest.raises(KeyError): monitor.track({'noise': 1.})
    assert not monitor.waiting


def test_track_takes_any_kind_of_number(monitor):
    monitor.track({o: np.float32(2.5) for o in FEATURES})
    monitor.track(dict.fromkeys(FEATURES, 2))
    monitor.flush()
    assert monitor.current()['noise'].tolist() == [2.5, 2.]


def test_monitor_keeps_what_the_file_does_not_take(monitor):
    for i in range(5): monitor.track(ROW, model=str(i))
    with monitor.opened() as db: db.execute('ALTER TABLE image RENAME TO elsewhere')
    with pytest.raises(sqlite3.OperationalError): monitor.flush()
    assert len(monitor.waiting) == 5
    with monitor.opened() as db: db.execute('ALTER TABLE elsewhere RENAME TO image')
    assert monitor.flush() == 5
    assert list(monitor.current()['model']) == list('01234')


def test_monitor_writes_by_itself_and_survives_a_failure(tmp_path):
    with DriftMonitor(tmp_path/'a.db', FEATURES, every_s=.01) as monitor:
        with monitor.opened() as db: db.execute('ALTER TABLE image RENAME TO elsewhere')
        monitor.track(ROW)
        time.sleep(.1)
        with monitor.opened() as db: db.execute('ALTER TABLE elsewhere RENAME TO image')
        until = time.monotonic() + 20
        while monitor.waiting and time.monotonic() < until: time.sleep(.01)
        monitor.flush()
        assert len(monitor.current()) == 1


def test_monitor_forgets_the_oldest(tmp_path):
    with DriftMonitor(tmp_path/'a.db', FEATURES, keep=10) as monitor:
        for i in range(3):
            for _ in range(8): monitor.track(ROW, model=str(i))
            monitor.flush()
        assert list(monitor.current(100)['model']) == ['1']*2 + ['2']*8


@pytest.mark.skipif(os.name == 'nt', reason='Windows has other permissions')
def test_monitor_lets_nobody_else_read_what_users_sent(monitor):
    assert monitor.path.stat().st_mode & 0o77 == 0


def test_refer_begins_the_window_anew(monitor):
    monitor.refer(sample(200, 0))
    for o in sample(60, 1, shift=3).to_dict('records'): monitor.track(o)
    monitor.flush()
    assert min(monitor.judge().values()) > .2
    monitor.refer(sample(200, 2, shift=3)) # what was drift is normal now
    assert monitor.judge() == {}
    for o in sample(60, 3, shift=3).to_dict('records'): monitor.track(o)
    monitor.flush()
    assert max(monitor.judge().values()) == 0


def test_refer_asks_for_enough_whole_rows(monitor):
    with pytest.raises(ValueError, match='has 50 lines'): monitor.refer(sample(50, 0))
    with pytest.raises(ValueError, match='Expected are 100 or more with size'): monitor.refer(sample(200, 0).drop(columns='noise'))
    with pytest.raises(ValueError, match='measure lines from a time'): monitor.refer(sample(200, 0).assign(noise=np.nan))


# Late labels

def test_labels_join_what_was_read_when_they_come(monitor):
    for i, text in enumerate(('Central 07:15', 'Airp0rt', 'Harbour')): monitor.track(ROW, f'sha{i}', 'reader/1', text, at=float(i))
    monitor.flush()
    labels = LabelStore(monitor.path)
    labels.add({'sha1': 'Airport', 'never seen': 'x'}, at=10)
    labels.add({'sha0': 'Central 07:15'}, at=20)
    known = labels.joined(until=15)
    assert known[['at', 'labelled', 'pred', 'truth']].values.tolist() == [[1., 10., 'Airp0rt', 'Airport']]
    known = labels.joined()
    assert rate(score(dict(known['pred'].items()), dict(known['truth'].items()))) == pytest.approx(1/20)


def test_labels_are_corrected_by_a_second_word(monitor):
    monitor.track(ROW, 'sha', text='a')
    monitor.flush()
    labels = LabelStore(monitor.path)
    for text in ('wrong', 'right'): labels.add({'sha': text})
    assert list(labels.joined()['truth']) == ['right']


def test_labels_refuse_blanks(tmp_path):
    with pytest.raises(ValueError, match="1 of 2 labels lack"): LabelStore(tmp_path/'a.db').add({'sha': ' ', 'other': 'x'})


# From the service to the alert

def test_registry_of_a_monitor_has_its_drift_and_how_many_came(monitor):
    def said(): return generate_latest(drift_registry(monitor, 'ocr')).decode()
    assert 'ocr_drift{' not in said()
    assert 'ocr_tracked_total 0.0' in said()
    monitor.refer(sample(200, 0))
    for o in sample(50, 1).assign(noise=9.).to_dict('records'): monitor.track(o)
    monitor.flush()
    found = dict(o.rsplit(' ', 1) for o in said().splitlines() if not o.startswith('#'))
    assert float(found['ocr_drift{feature="noise"}']) > .5
    assert float(found['ocr_drift{feature="size"}']) == 0
    assert found['ocr_tracked_total'] == '50.0'


@pytest.mark.slow # a whole service, with its detector
def test_tracker_measures_what_the_service_reads(champion, sensor, lines, monitor, tmp_path):
    app = create_app(Shelf(warm_up_engine(CustomEngine(champion)), 'reader/7'), tmp_path, ApiSettings(rate=1e6, burst=10**6))
    tracker = DriftTracker(app.state.service, monitor, sensor)
    files = [cv2.imencode('.png', o)[1].tobytes() for o in lines['render'][:3]]
    page = cv2.imencode('.png', np.vstack([cv2.copyMakeBorder(o, 20, 20, 20, max(20, 700 - o.shape[1]), cv2.BORDER_CONSTANT, value=255)[:, :700]
                                           for o in lines['render'][:3]]))[1].tobytes()
    headers = {'Authorization': f"Bearer {KeyStore(tmp_path/'keys.json').add('ana')}"}
    with on_free_port(app) as url, httpx.Client(headers=headers, trust_env=False, timeout=60) as client:
        answers = [client.post(f'{url}/v1/read', params={'line': True}, files={'file': o}).raise_for_status().json() for o in files]
        assert client.post(f'{url}/v1/read', files={'file': b'no image'}).status_code == 422
        answers.append(client.post(f'{url}/v1/read', files={'file': page}).raise_for_status().json())
        tracker.close()
    monitor.flush()
    rows = monitor.current()
    assert list(rows['sha256']) == [o['sha256'] for o in answers] == [hashlib.sha256(o).hexdigest() for o in (*files, page)]
    assert list(rows['text']) == [o['text'] for o in answers]
    assert set(rows['model']) == {'reader/7'}
    assert rows['confidence'][0] == pytest.approx(answers[0]['lines'][0]['confidence'])
    one_line = {len(o['text']) for o in answers[-1]['lines']}
    assert rows['length'][3] in one_line # one line of the page, not all of it


def test_tracker_never_harms_the_service(monitor, sensor, capfd):
    service = SimpleNamespace(batcher=SimpleNamespace(work=lambda jobs: ['read']*len(jobs)), limits=ApiSettings())
    tracker = DriftTracker(service, monitor, sensor)
    class File:
        def seek(self, _): pass
        def read(self): return b'no image'
    def broken(*_): raise MemoryError
    tracker.measure = broken
    assert service.batcher.work([SimpleNamespace(file=File(), line=True)]) == ['read']
    tracker.close()
    assert 'could not be measured' in ''.join(capfd.readouterr())
    assert service.batcher.work.__name__ == '<lambda>' # as before


def test_tracker_skips_what_it_cannot_keep_up_with(monitor, sensor):
    from threading import Event
    go = Event()
    service = SimpleNamespace(batcher=SimpleNamespace(work=lambda jobs: [('model', 'reading') for _ in jobs]))
    tracker = DriftTracker(service, monitor, sensor, most=2)
    tracker.measure = lambda *_: go.wait(20)
    class File:
        def seek(self, _): pass
        def read(self): return b''
    start = time.monotonic()
    for _ in range(6): service.batcher.work([SimpleNamespace(file=File(), line=True)])
    assert time.monotonic() - start < 10
    assert tracker.skipped >= 3
    go.set()
    tracker.close()


def test_tracker_minds_no_file_that_is_closed(monitor, sensor):
    "As when a user has waited too long, and is gone."
    service = SimpleNamespace(batcher=SimpleNamespace(work=lambda jobs: [('model', 'reading') for _ in jobs]))
    tracker = DriftTracker(service, monitor, sensor)
    file = BytesIO(b'x')
    file.close()
    assert service.batcher.work([SimpleNamespace(file=file, line=True)]) == [('model', 'reading')]
    assert tracker.skipped == 1
    tracker.close()


def test_claims_are_given_once_in_a_cool_down(tmp_path):
    found = [Cooldown(tmp_path/'a.db').take('retraining', 100, now) for now in (0, 50, 99, 100, 150, 250)] # each a new process, as it were
    assert found == [True, False, False, True, False, True]


def test_claims_are_given_to_one_of_many(tmp_path):
    claims = [Cooldown(tmp_path/'a.db') for _ in range(8)]
    with ThreadPoolExecutor(8) as pool: assert sum(pool.map(lambda o: o.take('retraining', 100), claims)) == 1


def note(alert='Drift', status='firing'):
    return AlertNotice(0., alert, status, 'ticket', 'noise has moved', 'look')


def test_retraining_starts_once_for_many_alerts(tmp_path, monkeypatch):
    orders = []
    monkeypatch.setattr(retraining_module, 'emit_data_changed', orders.append)
    retraining = RetrainingTrigger(Cooldown(tmp_path/'a.db'), Order(data='v2'))
    assert [retraining(o) for o in (note(status='resolved'), note('Slow'), note(), note(), note())] == [False, False, True, False, False]
    assert orders == [Order(data='v2')]


def test_retraining_that_failed_to_start_may_be_tried_again(tmp_path, monkeypatch):
    def broken(order): raise ConnectionError
    retraining = RetrainingTrigger(Cooldown(tmp_path/'a.db'), Order(data='v2'))
    monkeypatch.setattr(retraining_module, 'emit_data_changed', broken)
    with pytest.raises(ConnectionError): retraining(note())
    monkeypatch.setattr(retraining_module, 'emit_data_changed', lambda order: None)
    assert retraining(note())


@pytest.mark.slow # a whole delivery
def test_drift_delivers_a_new_champion(tmp_path, monkeypatch):
    "What moved, the rule, the webhook, the event, and then the pipeline of lesson 16 as it is."
    monkeypatch.setenv('MLOPS_COURSE_PATHS__RUNS', str(tmp_path))
    monkeypatch.setenv('MLOPS_COURSE_PARAMS__GATES__P95_MS', '1000000') # on a busy machine
    monkeypatch.delenv('PRODUCTION_URL', raising=False)
    order = Order(data='v2', steps=8, checks=('zizmor',), tests=('tests/test_practice.py',))
    with PrefectServer(tmp_path/'prefect') as server, DriftMonitor(tmp_path/'drift.db', FEATURES) as monitor, ExitStack() as stack:
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.sorting import FlowRunSort
        client = stack.enter_context(get_client(sync_client=True))
        code = 'from mlops_course.retraining import serve_retraining; from mlops_course.reader.steps import Order; ' \
               'serve_retraining("mlops_course.reader.steps.deliver", Order())'
        stack.enter_context(ServerProcess([sys.executable, '-c', code], f'{server.url}/deployments/name/deliver/retraining', tmp_path/'retraining.log'))
        until(lambda: client.read_automations_by_name(TRIGGER_NAME), 60)
        retraining = RetrainingTrigger(Cooldown(monitor.path), order)
        hook = stack.enter_context(on_free_port(AlertReceiver(retraining), lifespan='off'))
        target = stack.enter_context(on_free_port(make_asgi_app(drift_registry(monitor, 'ocr')), lifespan='off'))
        stack.enter_context(run_monitoring({'drift': target}, hook, 1000, .3))
        monitor.refer(sample(200, 0))
        for o in sample(monitor.window, 1, 3.).to_dict('records'): monitor.track(o)
        def ended():
            runs = [o for o in client.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_ASC, limit=50) if o.parameters.get('approved_by') == 'the retraining']
            return runs if runs and all(o.state.is_final() for o in runs) else []
        assert [(o.state.name, o.parameters['order']['data']) for o in until(ended, 300)] == [('Completed', 'v2')]
    last = model_history(open_store())[-1]
    assert (last['who'], last['what'], last['version']) == ('the retraining', 'promoted', 1)


@pytest.mark.slow # importing Evidently takes six seconds or more
def test_report_says_what_scipy_says(tmp_path):
    a, b = sample(200, 0), sample(100, 1).assign(noise=lambda o: o['noise'] + 2)
    found = drift_report(a, b, tmp_path/'report.html')
    assert list(found.index[found['drifted']]) == ['noise']
    assert found['p']['size'] == pytest.approx(ks_2samp(a['size'], b['size']).pvalue, rel=.05)
    page = (tmp_path/'report.html').read_text(encoding='utf-8')
    assert 'strangeness' in page
    assert 'src="http' not in page


# All of it

@pytest.mark.slow
def test_services_serve_watch_and_end(tmp_path, monkeypatch):
    for o in PROMETHEUS_PROGRAMS: needs(o, 'watches')
    monkeypatch.setenv('MLOPS_COURSE_SERVICES__API__RATE', '1000000')
    for o in ('CERTIFICATE', 'KEY'): monkeypatch.setenv(f'MLOPS_COURSE_SERVICES__API__TLS_{o}', 'of another place')
    KeyStore(tmp_path/'keys.json').add('probe') # as the time before left it
    user = {'Authorization': f"Bearer {KeyStore(tmp_path/'keys.json').add('ana')}"}
    photos = [cv2.imencode('.png', o)[1].tobytes() for o,_ in draw_trial_lines(50, 0, ('photo_simulated',))['photo_simulated']]
    shelf = Shelf(warm_up_engine(load_custom()))
    with start_services(tmp_path, lines=2, every_s=.3, source=shelf) as found, httpx.Client(headers=user, timeout=60, trust_env=False) as client:
        assert found.keys() == {'reader', 'probe', 'drift', 'prometheus', 'alertmanager'}
        def asked(query):
            result = client.get(f"{found['prometheus']}/api/v1/query", params={'query': query}).json()['data']['result']
            return {o['metric'].get('feature'): float(o['value'][1]) for o in result}
        until(lambda: asked('count(up == 1)') == {None: 3.}, 60)
        assert until(lambda: asked('ocr_predictions_total{status=~"5.."}'), 60) == {None: 0.} # before the first one
        for o in 4*photos: client.post(f"{found['reader']}/v1/read", params={'line': True}, files={'file': o}).raise_for_status()
        assert until(lambda: asked('ocr_drift'), 60)['sharpness'] > .2
        tracked = until(lambda: asked('ocr_tracked_total'), 60)
        assert 200 <= tracked[None] <= len(4*photos) # of the probe's, none
    for url in found.values():
        with pytest.raises(httpx.TransportError): httpx.get(url, trust_env=False)


def test_a_second_start_is_refused_and_leaves_the_first_ones_probe_its_key(tmp_path):
    KeyStore(tmp_path/'keys.json').add('probe')
    audit,before = AuditLog(tmp_path/'audit.jsonl'),(tmp_path/'keys.json').read_bytes()
    with pytest.raises(BlockingIOError, match='Another service writes'), start_services(tmp_path): pass
    assert (tmp_path/'keys.json').read_bytes() == before
    audit.close()


@pytest.mark.slow
def test_the_command_prints_addresses_and_ends_when_told(tmp_path):
    needs('prometheus', 'is started'), needs('prometheus-alertmanager', 'is started')
    command = [Path(sys.executable).parent/'mlops-course', 'services', '--folder', tmp_path]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {'PYTHONUNBUFFERED': '1'})
    try:
        assert process.stdout.readline().startswith('Starting')
        said = dict(line.split() for line in (process.stdout.readline() for _ in range(5)))
        assert httpx.get(f"{said['alertmanager']}/-/healthy", trust_env=False).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally: process.kill()
    with pytest.raises(httpx.TransportError): httpx.get(said['prometheus'], trust_env=False)
