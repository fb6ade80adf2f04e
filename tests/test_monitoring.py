"Monitoring (lesson 18): PromQL against promtool, rules against their stories, a probe and alerts over real HTTP, dashboards against live numbers."
import json
import math
import re
import subprocess
import time
from contextlib import ExitStack
from dataclasses import replace

import httpx
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import Shelf, needs, until
from prometheus_client import CollectorRegistry, Gauge, make_asgi_app

from mlops_course.alert_routes import FiringAlert, find_routes, matchers_hold, play_notifications
from mlops_course.base.servers import on_free_port
from mlops_course.base.settings import ApiSettings
from mlops_course.burn_rates import burns, failed_ratio, over, try_rules
from mlops_course.dashboards import Panel, draw_dashboard, fill_legend, make_dashboard
from mlops_course.drift_store import DriftMonitor, drift_registry
from mlops_course.durations import duration_seconds, shorten_durations
from mlops_course.keys import KeyStore
from mlops_course.monitoring import AlertReceiver
from mlops_course.probe import Probe, run_probe
from mlops_course.prometheus import PROMETHEUS_PROGRAMS, has_prometheus, load_deploy_file, program_on_free_port, run_monitoring, serve_history
from mlops_course.promql import SampleStore, counter_increase, evaluate_promql, histogram_quantile, series_labels
from mlops_course.reader.custom import load_custom, warm_up_engine
from mlops_course.reader.features import FEATURES
from mlops_course.reader.metrics import PANELS, ask_lines, line_accuracy, line_probe
from mlops_course.reader.recognition import ALPHABET
from mlops_course.reader.serving import METRIC_PREFIX, create_app
from mlops_course.reader.trials import draw_trial_lines
from mlops_course.rule_tests import play_rule_tests, play_story, rule_file_faults, series_values
from mlops_course.screenshots import page_picture
from mlops_course.service import ServiceMetrics
from mlops_course.watching import EmbeddedPrometheus, fill_template

OPEN = ApiSettings(rate=1e6, burst=10**6)
T0 = 1772442000 # 2026-03-02, 9:00 UTC


@pytest.fixture(scope='module')
def engine(): return warm_up_engine(load_custom())


@pytest.fixture(scope='module')
def lines(): return draw_trial_lines(8, 0, ('render',))['render']


@pytest.fixture
def live(engine, tmp_path):
    "A service, its source, an admin's client and the probe's key."
    shelf = Shelf(engine)
    app = create_app(shelf, tmp_path, OPEN)
    keys = {o: KeyStore(tmp_path/'keys.json').add(o, 'admin' if o == 'ana' else 'reader') for o in ('ana', 'probe')}
    with on_free_port(app) as url, httpx.Client(base_url=url, headers={'Authorization': f"Bearer {keys['ana']}"}, timeout=60, trust_env=False) as client:
        yield shelf, client, url, keys['probe']


def slipped(engine):
    "The recogniser with an alphabet that is one letter off."
    found = warm_up_engine(load_custom())
    found.net.design = replace(engine.net.design, alphabet=ALPHABET[1:] + ALPHABET[0])
    return found


# The probe

def test_a_probe_measures_what_the_service_cannot_know(live, engine, lines):
    shelf, client, url, key = live
    probe = line_probe(url, key, lines)
    assert probe.round()['reader/1']['characters'] > .95
    shelf.engine, shelf.version = slipped(engine), 'reader/2'
    client.post('/v1/models/reload').raise_for_status()
    found = probe.round()
    assert found['reader/2']['characters'] < .2
    assert found['reader/2']['exact'] == 0
    assert client.get('/health').status_code == client.get('/ready').status_code == 200


def test_a_model_that_is_gone_leaves_the_gauge(live, engine, lines):
    shelf, client, url, key = live
    probe = line_probe(url, key, lines)
    probe.round()
    shelf.version = 'reader/2'
    client.post('/v1/models/reload').raise_for_status()
    probe.round()
    assert probe.registry.get_sample_value('ocr_model_accuracy', {'model': 'reader/1', 'measure': 'characters'}) is None
    assert probe.registry.get_sample_value('ocr_model_accuracy', {'model': 'reader/2', 'measure': 'characters'}) > .95


def test_a_probe_that_gets_no_answer_shows_nothing_rather_than_yesterday(live, lines):
    _, _, url, key = live
    probe = line_probe(url, key, lines)
    probe.round()
    probe.ask = ask_lines(url, 'nobody')
    assert probe.round() == {}
    assert probe.registry.get_sample_value('ocr_model_accuracy', {'model': 'reader/1', 'measure': 'exact'}) is None
    assert probe.registry.get_sample_value('ocr_probe_failures_total') == 1


@pytest.mark.parametrize('odd', [[('reader/1', None)], [], [None], httpx.ReadTimeout('late')], ids=['no text', 'too few', 'no pair', 'late'])
def test_a_probe_outlives_an_odd_answer(odd):
    rounds = iter([[('reader/1', 'a')], odd, [('reader/2', 'a')]])
    def ask(_):
        if isinstance(found := next(rounds), Exception): raise found
        return found
    probe = Probe(ask, [(b'', 'a')], line_accuracy, 'ocr')
    def exact(version): return probe.registry.get_sample_value('ocr_model_accuracy', {'model': version, 'measure': 'exact'})
    assert probe.round()
    assert exact('reader/1') == 1
    assert probe.round() == {}
    assert exact('reader/1') is None
    assert probe.registry.get_sample_value('ocr_probe_failures_total') == 1
    assert probe.round()
    assert exact('reader/2') == 1


def test_accuracy_counts_characters_and_not_lines(live, lines, monkeypatch):
    _, _, url, key = live
    probe = line_probe(url, key, lines[:2])
    probe.truths[0] = 'x'*30 # the first is wrong in every character
    found = probe.round()['reader/1']
    assert found['exact'] == .5
    assert found['characters'] < 1 - 25/(30 + len(lines[1][1]))


def test_a_probe_exports_for_prometheus(live, lines):
    _, _, url, key = live
    with run_probe(line_probe(url, key, lines[:2]), every_s=.1) as address:
        until = time.monotonic() + 20
        while 'ocr_model_accuracy{' not in (text := httpx.get(f'{address}/metrics', follow_redirects=True, trust_env=False).text):
            assert time.monotonic() < until
            time.sleep(.05)
    assert 'measure="exact",model="reader/1"' in text
    with pytest.raises(httpx.TransportError): httpx.get(f'{address}/metrics', trust_env=False)


def test_a_probe_without_lines_is_refused():
    with pytest.raises(ValueError, match='trial_lines'): line_probe('http://127.0.0.1:1', 'key', [])


# PromQL

def counter(rng, mean, n=60, reset=None, start=0.):
    steps = rng.poisson(mean, n).cumsum() + start
    return [float(v - (steps[reset] if reset is not None and i >= reset else 0)) for i, v in enumerate(steps)]


# promtool adds up in whatever order its map gives, so three terms differ in the last bit from run to run; two do not.
ONE, TWO = (('reader/1',), ('200', '500', '422')), (('reader/1', 'reader/2'), ('200', '422'))


def story(models, statuses, n=60):
    "Series with all that is awkward: resets, gaps, late starts, models that come and go, histograms."
    rng, found = np.random.default_rng(0), {}
    for model in models:
        for status, mean in zip(statuses, (9, .4, 1)):
            values = counter(rng, mean, n, reset=33 if status == '500' else None, start=3. if model == 'reader/1' else 0.)
            if model == 'reader/2': values[:20] = [None]*20
            if status == '422': values[25:29] = [None]*4
            found[f'ocr_predictions_total{{engine="custom",model="{model}",status="{status}"}}'] = values
        for name, edges in (('ocr_prediction_duration_seconds', ('0.1', '0.5', '2.5', '+Inf')), ('ocr_confidence', ('0.5', '0.9', '1.0', '+Inf'))):
            each = np.array([rng.poisson(2, n).cumsum() for _ in edges]).cumsum(0).astype(float)
            for edge, values in zip(edges, each): found[f'{name}_bucket{{engine="custom",le="{edge}",model="{model}"}}'] = values.tolist()
        for measure in ('characters', 'exact'):
            found[f'ocr_model_accuracy{{job="probe",measure="{measure}",model="{model}"}}'] = rng.uniform(.85, 1, n).round(4).tolist()
    for status in ('503', '429'): found[f'ocr_refusals_total{{status="{status}"}}'] = counter(rng, 4, n)
    for name in ('ocr_places_taken', 'ocr_queue_images'): found[name] = rng.integers(0, 9, n).astype(float).tolist()
    for part in ('sum', 'count'): found[f'ocr_batch_images_{part}'] = counter(rng, 6 if part == 'sum' else 2, n)
    found['up{instance="a",job="reader"}'] = [1.]*30 + [0.]*(n - 30)
    found['up{instance="b",job="probe"}'] = [1.]*n
    found['ocr_drift{feature="sharpness"}'] = rng.uniform(0, .4, n).round(3).tolist()
    found['ocr:budget'] = [.005]*n
    for window in ('5m', '30m', '1h', '6h'): found[f'ocr:failed:ratio{window}'] = rng.uniform(0, .2, n).round(4).tolist()
    found['ocr:seconds:p95'] = rng.uniform(.5, 2, n).round(3).tolist()
    return found


def parts_of(series):
    "Its labels."
    name, _, rest = series.partition('{')
    return series_labels(name, **dict(o.split('=', 1) for o in rest.rstrip('}').replace('"', '').split(',') if o))


def written(labels):
    named = dict(labels)
    name = named.pop('__name__', '')
    return name + '{' + ','.join(f'{k}="{v}"' for k, v in sorted(named.items())) + '}'


OURS = sorted({o['expr'] for group in load_deploy_file('prometheus/rules.yml', 1)['groups'] for o in group['rules']}
              | {o for panel in PANELS for o in panel.curves.values()})
MORE = ['increase(ocr_predictions_total{status="500"}[2m])', 'max_over_time(ocr_drift[2m])',
        'max by (model) (max_over_time(ocr_predictions_total{status="422"}[90s]))',
        'sum(rate(ocr_predictions_total{status=~"2..|5.."}[37s]))', 'rate(ocr_predictions_total{status!~"5..|422"}[1m])',
        'up == 0', 'sum without (status) (ocr_predictions_total)', 'count(up)', '1 - ocr_drift', '2 * ocr_drift - ocr_drift / 4',
        'sum(ocr_predictions_total) / 0', 'ocr_model_accuracy and on (model) (sum by (model) (rate(ocr_predictions_total[5m])) > 0.5)',
        'up unless on (job) ocr_model_accuracy', 'up or ocr_drift', 'absent(nothing{x="y",z!="a"})', 'absent(up)',
        'sum by (model) (ocr_predictions_total) > on (model) max by (model) (ocr_model_accuracy)', 'ocr_predictions_total{status!="200"} > 2 * 7',
        'sum by (model) (ocr_predictions_total) / ignoring (job) max by (model) (ocr_model_accuracy)', 'max(ocr_drift) >= scalar(ocr_drift)',
        'histogram_quantile(0.5, rate(ocr_confidence_bucket[1m]))', 'histogram_quantile(1.1, sum by (le) (ocr_confidence_bucket))',
        'count(vector(scalar(up)) != vector(scalar(up)))', 'time()', 'ocr_drift != 0', 'ocr_drift <= 0.2', 'ocr_drift + 1 < 1.3',
        'max(up / up)', 'min(up / up)', 'count(up / up)', 'sum(max_over_time(up[1m]))']


@pytest.mark.parametrize('which', [ONE, TWO], ids=['one model', 'two models'])
def test_values_are_those_of_promtool(tmp_path, which):
    "Every expression of rules and dashboard, and more, at awkward moments, to the last bit."
    promtool, step, series, samples = needs('promtool', 'evaluates PromQL'), 15, story(*which), SampleStore()
    for name, values in series.items():
        for i, value in enumerate(values):
            if value is not None: samples.put(name, {parts_of(name): value}, i*step)
    tests = []
    for expr in (*OURS, *MORE):
        for at in (0, 15, 290, 303, 500, 617, 870):
            found = evaluate_promql(expr, samples, float(at))
            found = found if isinstance(found, dict) else {frozenset(): found}
            if any(map(math.isnan, found.values())): continue # promtool has it that not a number is never what was expected
            tests.append({'expr': expr, 'eval_time': f'{at}s', 'exp_samples': [{'labels': written(k), 'value': v} for k, v in found.items()]})
    assert sum(bool(o['exp_samples']) for o in tests) > .6*len(tests)
    given = [{'series': k, 'values': ' '.join('_' if o is None else repr(o) for o in v)} for k, v in series.items()]
    (tmp_path/'test.yml').write_text(yaml.safe_dump({'evaluation_interval': '15s', 'tests': [
        {'interval': f'{step}s', 'input_series': given, 'promql_expr_test': tests}]}))
    done = subprocess.run([promtool, 'test', 'rules', tmp_path/'test.yml'], capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[:3000]


def test_a_wrong_value_would_be_noticed_by_promtool(tmp_path):
    (tmp_path/'test.yml').write_text(yaml.safe_dump({'tests': [{'interval': '15s', 'input_series': [{'series': 'x', 'values': '0+1x40'}], 'promql_expr_test': [
        {'expr': 'rate(x[5m])', 'eval_time': '5m', 'exp_samples': [{'labels': '{}', 'value': 1/15.001}]}]}]}))
    assert subprocess.run([needs('promtool', 'evaluates PromQL'), 'test', 'rules', tmp_path/'test.yml'], capture_output=True).returncode == 1


QUESTIONS = [('query', {'query': o, 'time': at})
             for o in ('up', 'sum by (status) (rate(seen_total[2m]))', 'vector(1) / 0', 'absent(nothing)', 'scalar(sum(seen_total))')
             for at in (T0 + 300, '2026-03-02T09:04:10Z')]
QUESTIONS += [('query_range', {'query': 'sum(rate(seen_total[1m])) > 0.2', 'start': T0, 'end': T0 + 300, 'step': step}) for step in (15, '20s')]
QUESTIONS += [('query', {'query': 'sum('}), ('query', {'query': 'up', 'time': 'soon'})]


def test_a_history_is_answered_as_by_prometheus():
    "The same questions over HTTP to both."
    for o in (*PROMETHEUS_PROGRAMS, 'promtool'): needs(o, 'serves a history')
    def text(i, k): return f'seen_total{{status="ok"}} {k*i}\nseen_total{{status="no, \\"never\\""}} {i % 7}\n'
    scrapes = [(T0 + 15*i, 'app', instance, text(i, k)) for i in range(21) for k, instance in ((3, 'a'), (4, 'b'))]
    answers = []
    for embedded in (True, False):
        with serve_history(scrapes, embedded) as url:
            answers.append([httpx.get(f'{url}/api/v1/{path}', params=params, trust_env=False) for path, params in QUESTIONS])
    for (_, question), ours, theirs in zip(QUESTIONS, *answers):
        assert ours.status_code == theirs.status_code, question
        ours, theirs = ours.json(), theirs.json()
        if theirs['status'] == 'error': assert ours['errorType'] == theirs['errorType'] == 'bad_data', question
        elif theirs['data']['resultType'] == 'scalar': assert ours == theirs
        else:
            for o in (ours, theirs): o['data']['result'].sort(key=lambda series: sorted(series['metric'].items()))
            assert ours == theirs, question


@pytest.mark.parametrize(('times', 'values', 'expected'), [
    ([0, 15, 30, 45, 60], [0, 1, 2, 3, 4], 4), ([0, 15, 30, 45, 60], [5, 6, 0, 1, 2], 3), ([15, 30, 45], [10, 20, 30], 40),
    ([30, 45], [0, 10], 20), ([30, 45], [7, 7], 0), ([50], [3], None), ([], [], None),
])
def test_growth_stretches_to_the_window_but_not_below_zero(times, values, expected):
    assert counter_increase(times, values, 0, 60) == (None if expected is None else pytest.approx(expected))


def test_a_quantile_beyond_the_last_edge_is_that_edge():
    assert histogram_quantile(.99, [(1, 5), (2, 6), (math.inf, 100)]) == 2
    assert histogram_quantile(.5, [(1, 0), (2, 10), (math.inf, 10)]) == 1.5
    assert math.isnan(histogram_quantile(.5, [(1, 0), (math.inf, 0)]))
    assert math.isnan(histogram_quantile(.5, [(1, 3), (2, 5)]))
    assert math.isnan(histogram_quantile(0, [(1, 0), (2, 10), (math.inf, 10)]))


@pytest.mark.parametrize('values', [[math.nan, 1, 3], [3, math.nan, 1], [1, 3, math.nan]])
def test_what_is_no_number_is_neither_the_highest_nor_the_lowest(values):
    samples = SampleStore()
    for i, o in enumerate(values): samples.put('y', {series_labels('y'): o}, 15.*i)
    samples.put('x', {series_labels('x', i=str(i)): o for i, o in enumerate(values)}, 60.)
    found = [list(evaluate_promql(o, samples, 60.).values()) for o in ('max(x)', 'min(x)', 'max_over_time(y[2m])')]
    assert found == [[3], [1], [3]]


@pytest.mark.parametrize(('expr', 'words'), [
    ('deriv(x[5m])', 'function deriv'), ('x offset 5m', 'offset'), ('rate(x[5m] offset 1m)', 'offset'), ('topk(2, x)', 'topk'), ('x[5m:1m]', 'SubqueryExpr'),
    ('rate(x[5m:1m])', 'SubqueryExpr'),
    ('x > bool 1', 'not known here'), ('x * on (a) group_left y', 'not known here'), ('x ^ 2', 'not known here'), ('sum(', 'is no PromQL'),
])
def test_what_is_not_known_is_refused_and_never_guessed(expr, words):
    samples = SampleStore()
    for i in range(3): samples.scrape('j', 'i', f'x{{a="1"}} {i}\ny{{a="1"}} 1\n', 15.*i)
    with pytest.raises(ValueError, match=words): evaluate_promql(expr, samples, 30.)


def test_series_that_cannot_be_told_apart_are_refused():
    samples = SampleStore()
    samples.scrape('j', 'i', 'x{a="1",b="1"} 1\nx{a="1",b="2"} 2\ny{a="1"} 1\n', 0.)
    with pytest.raises(ValueError, match='Sum one side first'): evaluate_promql('y / on (a) x', samples, 0.)
    with pytest.raises(ValueError, match='Sum one side first'): evaluate_promql('x / on (a) y', samples, 0.)


def test_a_series_that_vanished_is_not_one_of_now():
    samples = SampleStore()
    samples.scrape('j', 'i', 'x 1\ny 2\n', 0.)
    samples.scrape('j', 'i', 'x 1\n', 15.)
    assert evaluate_promql('y', samples, 14.)
    assert evaluate_promql('y', samples, 15.) == {}
    assert evaluate_promql('increase(y[1m])', samples, 15.) == {} # one number, and an end


def test_a_target_that_does_not_answer_is_down_and_its_series_end():
    samples = SampleStore()
    samples.scrape('j', 'i', 'x 1\n', 0.)
    samples.scrape('j', 'i', None, 15.)
    assert evaluate_promql('up', samples, 15.) == {series_labels('up', job='j', instance='i'): 0}
    assert evaluate_promql('x', samples, 15.) == {}


@pytest.mark.parametrize('text', ['<!DOCTYPE html><html>Sign in</html>', '{"detail": "gone"}', 'a 1\nb one\n', 'a{b="c", ="e"} 1 2\n'])
def test_a_target_that_answers_with_something_else_is_down(text):
    samples = SampleStore()
    samples.scrape('probe', 'host', 'a 1\n', 0)
    samples.scrape('probe', 'host', text, 15)
    assert evaluate_promql('up', samples, 15) == {series_labels('up', job='probe', instance='host'): 0}
    assert evaluate_promql('a or b', samples, 15) == {}


def test_labels_of_a_target_may_be_called_name_or_job():
    samples = SampleStore()
    samples.scrape('probe', 'host', 'a{name="x",job="theirs",instance="other"} 1\n', 0)
    labels = {'name': 'x', 'job': 'probe', 'instance': 'host', 'exported_job': 'theirs', 'exported_instance': 'other'}
    assert evaluate_promql('a', samples, 0) == {series_labels('a', **labels): 1}


def test_an_embedded_prometheus_goes_on_after_a_page_of_html():
    async def page(scope, receive, send):
        await send({'type': 'http.response.start', 'status': 200, 'headers': []})
        await send({'type': 'http.response.body', 'body': b'<html>Sign in</html>'})
    with on_free_port(page, lifespan='off') as url:
        watch = EmbeddedPrometheus({'reader': url}, {'groups': []}, '')
        watch.turn()
        assert list(watch.now('up').values()) == [0]


def test_old_samples_are_forgotten():
    samples = SampleStore(keep_s=100)
    for i in range(1000): samples.put('s', {series_labels('x'): i}, float(i))
    times, values = samples.series[series_labels('x')]
    assert 100 <= len(times) <= 202
    assert values[-1] == 999


# Rules

@pytest.mark.slow
def test_the_rules_pass_their_stories(root):
    done = subprocess.run([needs('promtool', 'tests rules'), 'test', 'rules', 'rules_test.yml'], cwd=root/'deploy/prometheus', capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_rules_pass_their_stories_without_promtool(root): assert play_rule_tests(root/'deploy/prometheus/rules_test.yml') == []


@pytest.mark.parametrize(('word', 'other'), [
    ('for: 1m', 'for: 1m'), ('for: 1m', 'fore: 1m'), ('for: 1m', 'for: 1'), ('for: 1m', 'for: soon'), ('up == 0', 'up = 0'), ('up == 0', 'sum(up'),
    ('name: a', 'nam: a'), ('alert: Down', 'record: down'), ('alert: Down', 'alert: Down, record: down'), ('{severity: page}', '{severity: 1}'),
    ('{severity: page}', '[page]'), ('groups:', 'rules:'), ('rules: [', 'rules: [[')])
def test_a_rule_file_is_refused_as_by_promtool(tmp_path, word, other):
    text = 'groups: [{name: a, rules: [{alert: Down, expr: up == 0, labels: {severity: page}, for: 1m}]}]'.replace(word, other)
    if 'record: down' in other: text = text.replace(', for: 1m', '')
    (tmp_path/'rules.yml').write_text(text)
    done = subprocess.run([needs('promtool', 'checks rules'), 'check', 'rules', 'rules.yml'], cwd=tmp_path, capture_output=True, text=True)
    found = rule_file_faults(text)
    assert (done.returncode == 0) == (found == []), (found, done.stdout + done.stderr)


@pytest.mark.parametrize(('text', 'said'), [
    ('groups: [{name: a, rules: [up]}]', 'no list of rules'), ('groups: [{name: a, rules: {alert: Down}}]', 'no list of rules'),
    ('groups: [{name: a, on: x, why: y}]', "unknown field 'why'"),
    ('groups: [{name: a, rules: [{record: x, expr: up, on: x, why: y}]}]', "unknown field 'why'")])
def test_a_rule_file_of_an_odd_shape_is_refused_in_a_sentence(tmp_path, text, said):
    assert any(said in o for o in rule_file_faults(text))
    (tmp_path/'rules.yml').write_text(text)
    assert subprocess.run([needs('promtool', 'checks rules'), 'check', 'rules', tmp_path/'rules.yml'], capture_output=True).returncode == 1


def test_the_rules_of_the_service_have_no_faults(root):
    assert rule_file_faults((root/'deploy/prometheus/rules.yml').read_text(encoding='utf-8')) == []


def small_story(values, at, expected):
    return {'interval': '30s', 'input_series': [{'series': 'up{job="a"}', 'values': values}],
            'alert_rule_test': [{'eval_time': at, 'alertname': 'Down', 'exp_alerts': [{'exp_labels': {'job': 'a'}}]*expected}]}


@pytest.mark.parametrize(('values', 'at', 'expected'), [
    ('1 0x9', '2m', 1), ('1 0x9', '1m', 0), ('1 0x9', '90s', 1), ('1 0 0 1x9', '90s', 0), ('1 0x3 stale', '2m', 1),
    ('1 0x3 stale', '3m', 0), ('1 0x2 _x9', '4m', 1), ('_x30', '3m', 0), ('1-0.5x4', '2m', 0), ('2-1x2 0x9', '3m', 1)])
@pytest.mark.parametrize('turned', [False, True], ids=['as it is', 'turned around'])
def test_a_story_is_judged_as_by_promtool(tmp_path, values, at, expected, turned):
    "Also where the story expects the opposite."
    rules, story = {'groups': [{'name': 'a', 'rules': [{'alert': 'Down', 'expr': 'up == 0', 'for': '1m'}]}]}, small_story(values, at, expected != turned)
    (tmp_path/'rules.yml').write_text(yaml.safe_dump(rules))
    (tmp_path/'test.yml').write_text(yaml.safe_dump({'rule_files': ['rules.yml'], 'evaluation_interval': '30s', 'tests': [story]}))
    done = subprocess.run([needs('promtool', 'tests rules'), 'test', 'rules', 'test.yml'], cwd=tmp_path, capture_output=True, text=True)
    found = play_rule_tests(tmp_path/'test.yml')
    assert (done.returncode == 0) == (found == []), (found, done.stdout + done.stderr)
    assert found == play_story(rules, story, 30) or turned
    assert (found == []) == (not turned)


def test_a_story_may_ask_between_two_evaluations_and_after_days(tmp_path):
    asked = [{'expr': 'x', 'eval_time': '90s', 'exp_samples': [{'labels': 'x', 'value': 6}]},
             {'expr': 'max_over_time(x[2d])', 'eval_time': '1d', 'exp_samples': [{'labels': '{}', 'value': 40}]}]
    story = {'interval': '15s', 'input_series': [{'series': 'x', 'values': '0+1x40'}, {'series': 'y', 'values': '1x5760'}], 'promql_expr_test': asked}
    (tmp_path/'test.yml').write_text(yaml.safe_dump({'rule_files': [], 'tests': [story]}))
    assert subprocess.run([needs('promtool', 'tests rules'), 'test', 'rules', 'test.yml'], cwd=tmp_path, capture_output=True).returncode == 0
    assert play_rule_tests(tmp_path/'test.yml') == []


def test_values_that_are_none_are_refused():
    with pytest.raises(ValueError, match="'soon' is no value"): series_values('1 soon')


def test_every_alert_has_a_story_in_which_it_speaks_and_one_in_which_it_is_silent(root):
    stories = yaml.safe_load((root/'deploy/prometheus/rules_test.yml').read_text(encoding='utf-8'))['tests']
    tried = [(o['alertname'], bool(o['exp_alerts'])) for test in stories for o in test.get('alert_rule_test', [])]
    for rule in (o for group in load_deploy_file('prometheus/rules.yml', 1)['groups'] for o in group['rules'] if 'alert' in o):
        assert {(rule['alert'], True), (rule['alert'], False)} <= set(tried), rule['alert']


def test_every_alert_says_what_happened_and_what_to_do():
    for rule in (o for group in load_deploy_file('prometheus/rules.yml', 1)['groups'] for o in group['rules'] if 'alert' in o):
        assert rule['annotations'].keys() == {'summary', 'action'}, rule['alert']
        assert rule['labels']['severity'] in ('page', 'ticket')


def test_the_objective_stands_in_one_place(root):
    text = (root/'deploy/prometheus/rules.yml').read_text(encoding='utf-8')
    assert [o.strip() for o in text.splitlines() if '0.005' in o] == ['expr: vector(0.005)']


def test_a_shortened_file_is_the_same_file_with_other_durations():
    rules, short = load_deploy_file('prometheus/rules.yml', 1), load_deploy_file('prometheus/rules.yml', 60)
    flat = [[o for group in found['groups'] for o in group['rules']] for found in (rules, short)]
    for a, b in zip(*flat):
        assert a.keys() == b.keys()
        assert {k: a[k] for k in a.keys() - {'expr', 'for'}} == {k: b[k] for k in b.keys() - {'expr', 'for'}}
        if 'for' in a: assert duration_seconds(b['for']) == pytest.approx(duration_seconds(a['for'])/60)
    assert shorten_durations('sum(rate(x{a="5m"}[1h30m]))', 60) == 'sum(rate(x{a="5m"}[90000ms]))'
    assert shorten_durations({'a': ['30s', 'page', 3, None]}, 10) == {'a': ['3000ms', 'page', 3, None]}


@pytest.mark.parametrize(('text', 'seconds'), [('90s', 90), ('1h30m', 5400), ('500ms', .5), ('2d', 172800)])
def test_durations_are_read(text, seconds): assert duration_seconds(text) == seconds


@pytest.mark.parametrize('text', ['', 'soon', '5', 'm5', '5m '])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match='is no duration'): duration_seconds(text)


def test_words_of_an_alert_are_filled_in():
    assert fill_template('{{ $labels.model }}: {{ $value | humanizePercentage }}', {'model': 'a'}, .16667) == 'a: 16.67%'
    assert fill_template('{{ $value | printf "%.1f" }} s{{ $labels.none }}', {}, 2.94) == '2.9 s'
    with pytest.raises(ValueError, match=r'humanizeDuration.*is not known here'): fill_template('{{ $value | humanizeDuration }}', {}, 1.)


@pytest.fixture
def small():
    "A watch over a gauge, without any server: x above 1 for 30 s."
    high = {'alert': 'High', 'expr': 'twice > 2', 'for': '30s', 'labels': {'severity': 'page'}, 'annotations': {'summary': '{{ $labels.a }}'}}
    rules = {'groups': [{'rules': [{'record': 'twice', 'expr': '2 * x'}, high]}]}
    watch = EmbeddedPrometheus({}, rules, '')
    def at(seconds, value):
        watch.samples.scrape('j', 'i', f'x{{a="b"}} {value}\n', float(seconds))
        return [(status, o.labels['alertname']) for status, o in watch.judge(float(seconds))]
    return watch, at


def test_an_alert_waits_rings_once_and_resolves(small):
    _, at = small
    assert [at(15*i, value) for i, value in enumerate([1, 2, 2, 2, 2, 1, 1])] == [[], [], [], [('firing', 'High')], [], [('resolved', 'High')], []]


def test_a_break_begins_the_waiting_anew(small):
    _, at = small
    assert not any(at(15*i, value) for i, value in enumerate([2, 2, 1, 2, 2, 1]))


def test_labels_and_words_of_a_rule_are_filled_in_as_by_promtool(tmp_path):
    rules = [{'record': 'ocr:up', 'expr': 'up', 'labels': {'tier': '{{ $labels.job }}', 'job': ''}},
             {'alert': 'Down', 'expr': 'up == 0', 'labels': {'severity': '{{ $labels.tier }}', 'who': '{{ $labels.job }}', 'tier': '', 'level': 1},
              'annotations': {'summary': '{{ $labels.severity }}|{{ $labels.alertname }}|{{ $labels.__name__ }}|{{ $labels.tier }}'}}]
    (tmp_path/'rules.yml').write_text(yaml.safe_dump({'groups': [{'name': 'a', 'rules': rules}]}))
    expected = {'exp_labels': {'job': 'a', 'severity': 'gold', 'who': 'a', 'level': '1'}, 'exp_annotations': {'summary': '||up|gold'}}
    (tmp_path/'test.yml').write_text(yaml.safe_dump({'rule_files': ['rules.yml'], 'tests': [
        {'interval': '1m', 'input_series': [{'series': 'up{job="a",tier="gold"}', 'values': '0x3'}],
         'alert_rule_test': [{'eval_time': '2m', 'alertname': 'Down', 'exp_alerts': [expected]}],
         'promql_expr_test': [{'expr': 'ocr:up', 'eval_time': '2m', 'exp_samples': [{'labels': 'ocr:up{tier="{{ $labels.job }}"}', 'value': 0}]}]}]}))
    assert play_rule_tests(tmp_path/'test.yml') == []
    done = subprocess.run([needs('promtool', 'tests rules'), 'test', 'rules', tmp_path/'test.yml'], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_an_error_in_one_rule_loses_no_alert_of_another():
    rules = [{'alert': 'Down', 'expr': 'up == 0'}, {'alert': 'Odd', 'expr': 'up', 'annotations': {'summary': '{{ odd }}'}}]
    watch = EmbeddedPrometheus({}, {'groups': [{'rules': rules}]}, '')
    watch.samples.scrape('reader', 'host', None, 0)
    with pytest.raises(ValueError, match='odd'): watch.judge(0)
    del rules[1]
    assert [(status, o.labels['alertname']) for status, o in watch.judge(15)] == [('firing', 'Down')]


def test_an_alert_carries_labels_and_words(small):
    watch, at = small
    for i in range(3): at(15*i, 2)
    (alert,) = watch.active.values()
    assert alert.labels == {'a': 'b', 'job': 'j', 'instance': 'i', 'severity': 'page', 'alertname': 'High'}
    assert alert.annotations == {'summary': 'b'}


def test_a_webhook_that_is_away_hears_it_later(small):
    watch, at = small
    for i in range(2): at(15*i, 2)
    watch.samples.scrape('j', 'i', 'x{a="b"} 2\n', 30.)
    watch.hook = 'http://127.0.0.1:1'
    watch.tell(watch.judge(30.), 30.)
    hook = AlertReceiver()
    with on_free_port(hook, lifespan='off') as watch.hook:
        watch.tell([], 45.)
        watch.tell([], 60.)
    assert [(o.alert, o.status, o.severity, o.summary) for o in hook.notes] == [('High', 'firing', 'page', 'b')]


@pytest.mark.slow
def test_the_embedded_rules_tell_the_stories_as_promtool_does(root):
    "The alerts of two stories of rules_test.yml, evaluated by us at each minute."
    for fast, minutes in ((True, 70), (False, 420)):
        watch, rung = EmbeddedPrometheus({}, load_deploy_file('prometheus/rules.yml', 1), ''), {}
        good = bad = 0
        for minute in range(minutes + 1):
            if minute: good, bad = (good + 60*(minute <= 60), bad + 60*(minute > 60)) if fast else (good + 96, bad + 4)
            watch.samples.scrape('reader', 'a', f'ocr_predictions_total{{status="200"}} {good}\nocr_predictions_total{{status="500"}} {bad}\n', 60.*minute)
            for status, o in watch.judge(60.*minute): rung.setdefault((o.labels['alertname'], status), (minute, o.annotations['summary']))
        name = 'BudgetBurnsFast' if fast else 'BudgetBurnsSlowly'
        assert (name, 'firing') in rung
        assert (not fast) or 61 < rung[name, 'firing'][0] <= 66
        assert fast or ('BudgetBurnsFast', 'firing') not in rung


def minutes(*failed, images=100): return np.full((1, len(failed)), images), np.array([failed])


def test_a_rule_that_waits_is_set_back_by_one_good_minute():
    rings = over(.01, lasting=2)(*minutes(5, 5, 0, 5, 5, 5, 5, 0))
    assert rings[0].tolist() == [False]*5 + [True, True, False]


def test_a_burn_rate_needs_both_windows():
    rings = burns(10, .005, long=6, short=2)(*minutes(0, 0, 20, 20, 20, 0, 0, 0))
    assert rings[0].tolist() == [False, False, True, True, True, True, False, False]
    assert failed_ratio(6, *minutes(0, 0, 20, 20))[0, -1] == .1 # what is before the first minute is no image


def test_rules_are_tried_on_calm_weeks_and_on_faults():
    table = try_rules({'any error': over(0), 'never': over(1)}, {'all fail': (1., 1)}, weeks=2, seed=0)
    assert table.loc['any error', 'false calls a week'] > 100
    assert table.loc['any error', 'all fail'] == 1
    assert table.loc['never', 'false calls a week'] == 0
    assert math.isnan(table.loc['never', 'all fail'])


def test_weeks_in_which_a_rule_misses_a_fault_count_as_long():
    def late(images, failed): # after 5, 10 and 20 minutes, and never in two weeks of five
        rings = np.zeros(images.shape, bool)
        for week, minute in enumerate((5, 10, 20)): rings[week, minute - 1:] = True
        return rings
    assert try_rules({'late': late}, {'all fail': (1., 1)}, weeks=5, seed=0, start=0, wait=60).loc['late', 'all fail'] == 20


# From a fault to the webhook

@pytest.fixture(params=[True, False], ids=['embedded', 'prometheus'])
def embedded(request):
    if not request.param:
        for o in (*PROMETHEUS_PROGRAMS, 'amtool'): needs(o, 'watches and tells')
    return request.param


@pytest.mark.slow
def test_a_fault_reaches_the_webhook_and_its_end_too(embedded, engine, live, lines, tmp_path):
    shelf, client, url, key = live
    hook = AlertReceiver()
    with ExitStack() as stack:
        hook_url = stack.enter_context(on_free_port(hook, lifespan='off'))
        monitor = stack.enter_context(DriftMonitor(tmp_path/'drift.db', FEATURES, window=50))
        rows = pd.DataFrame(np.random.default_rng(0).normal(size=(150, len(FEATURES))), columns=FEATURES)
        monitor.refer(rows[:100])
        for o in rows[100:].to_dict('records'): monitor.track(o)
        targets = {'reader': url, 'probe': stack.enter_context(run_probe(line_probe(url, key, lines[:4]), .3)),
                   'drift': stack.enter_context(on_free_port(make_asgi_app(drift_registry(monitor, 'ocr')), lifespan='off'))}
        watch = stack.enter_context(run_monitoring(targets, hook_url, 200, .3, embedded))
        def wait(true):
            until = time.monotonic() + 30
            while not true(): assert time.monotonic() < until; time.sleep(.1)
        wait(lambda: watch.now('ocr_model_accuracy{measure="characters"} > 0.9'))
        assert set(watch.now('up').values()) == {1.}
        shelf.engine, shelf.version, good = slipped(engine), 'reader/2', shelf.engine
        client.post('/v1/models/reload').raise_for_status()
        note = hook.wait('AccuracyDropped', seconds=60)
        assert note.severity == 'page'
        assert 'reader/2' in note.summary
        shelf.engine, shelf.version = good, 'reader/1'
        client.post('/v1/models/reload').raise_for_status()
        assert hook.wait('AccuracyDropped', 'resolved', 60).at > note.at
        def empty():
            client.post('/v1/read', headers={'Authorization': 'Bearer nobody'}) # for the panel of refusals
            end = time.time()
            def drawn(panel): return any(watch.between(shorten_durations(expr, 200), end - 12, end, .5) for expr in panel.curves.values())
            return {panel.title for panel in PANELS if not drawn(panel)}
        wait(lambda: not empty())


def test_the_embedded_prometheus_outlives_a_turn_that_fails(capsys):
    rules = {'groups': [{'name': 'a', 'rules': [{'alert': 'Odd', 'expr': 'deriv(up[5m])'}]}]}
    receiver = AlertReceiver()
    with on_free_port(receiver, lifespan='off') as hook, run_monitoring({'gone': 'http://127.0.0.1:1'}, hook, every_s=.05, embedded=True, rules=rules) as watch:
        until(lambda: len(next(iter(watch.samples.series.values()), [[]])[0]) > 1, 20)
        watch.rules['groups'][0]['rules'][0]['expr'] = 'up == 0'
        assert receiver.wait('Odd', seconds=20).status == 'firing'
    assert 'deriv is not known here' in capsys.readouterr().err


@pytest.mark.slow
def test_a_service_that_is_gone_is_reported(embedded):
    registry, hook = CollectorRegistry(), AlertReceiver()
    Gauge('x', 'x', registry=registry)
    with on_free_port(hook, lifespan='off') as hook_url, ExitStack() as stack:
        url = stack.enter_context(on_free_port(make_asgi_app(registry), lifespan='off'))
        with run_monitoring({'reader': url}, hook_url, 200, .2, embedded) as watch:
            until = time.monotonic() + 20
            while not watch.now('up == 1'): assert time.monotonic() < until; time.sleep(.1)
            stack.close()
            assert hook.wait('ReaderDown', seconds=30).severity == 'page'


def test_a_notification_that_comes_again_is_counted_once(small):
    tries = []
    def tell(note):
        tries.append(note)
        if len(tries) == 1: raise OSError('no line')
    watch, _ = small
    watch.samples.scrape('job', 'i', 'x 5\n', 0)
    receiver = AlertReceiver(tell)
    with on_free_port(receiver, lifespan='off') as watch.hook:
        for at in (0, 30, 60): watch.tell(watch.judge(at), at)
    assert len(tries) == 2
    assert [(o.alert, o.status) for o in receiver.notes] == [('High', 'firing')]


def test_waiting_for_an_alert_in_vain_says_what_was_heard():
    with pytest.raises(TimeoutError, match=r'Slow was not firing .* Heard: nothing'): AlertReceiver().wait('Slow', seconds=.05)


def test_a_program_that_is_missing_says_where_it_comes_from(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    assert not has_prometheus()
    with pytest.raises(FileNotFoundError, match=r'prometheus is missing.*debian\.sh'), program_on_free_port('prometheus', tmp_path): pass


def test_a_program_that_does_not_start_says_why(tmp_path):
    needs('prometheus', 'refuses a configuration')
    (tmp_path/'bad.yml').write_text('nonsense: 1\n')
    with pytest.raises(ConnectionError, match='nonsense'):
        with program_on_free_port('prometheus', tmp_path, f"--config.file={tmp_path/'bad.yml'}", '--web.listen-address=127.0.0.1:{port}'): pass


def test_a_program_ends_with_its_block_even_after_an_error(tmp_path):
    needs('prometheus-alertmanager', 'is stopped')
    (tmp_path/'a.yml').write_text('route: {receiver: a}\nreceivers: [{name: a}]\n')
    with pytest.raises(RuntimeError, match='of the test'): # noqa: PT012 (the block is what is tested)
        with program_on_free_port('prometheus-alertmanager', tmp_path, f"--config.file={tmp_path/'a.yml'}", f"--storage.path={tmp_path/'d'}",
                     '--web.listen-address=127.0.0.1:{port}', '--cluster.listen-address=') as url:
            assert httpx.get(f'{url}/-/healthy', trust_env=False).status_code == 200
            raise RuntimeError('of the test')
    with pytest.raises(httpx.TransportError): httpx.get(f'{url}/-/healthy', trust_env=False)


def test_the_page_of_prometheus_is_pictured(tmp_path):
    "A page that cannot be built is one line of text, and its picture a few kilobytes."
    for o in (*PROMETHEUS_PROGRAMS, 'promtool'): needs(o, 'shows a page')
    needs('chromium', 'opens pages as a reader would')
    with serve_history([(T0 + 15*i, 'app', 'a', f'seen_total {i}\n') for i in range(21)]) as url:
        taken = page_picture(f'{url}/graph?g0.expr=seen_total&g0.tab=0&g0.range_input=5m&g0.end_input=2026-03-02%2009%3A05%3A00', tmp_path/'graph.png')
        assert page_picture(f'{url}/no/such/page', tmp_path/'none.png') is None
    assert taken.stat().st_size > 20_000


# Panels

def test_the_dashboard_is_made_from_the_panels(root):
    path = 'deploy/grafana/dashboards/reader.json'
    rewrite = (f"Write it anew: python -c \"from mlops_course.dashboards import make_dashboard; from mlops_course.reader.metrics import PANELS; "
               f"open('{path}', 'w').write(make_dashboard(PANELS, 'Reader'))\"")
    assert (root/path).read_text(encoding='utf-8') == make_dashboard(PANELS, 'Reader'), rewrite


def test_grafana_finds_its_way_through_the_dashboard():
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard
    board = json.loads(make_dashboard(PANELS, 'Reader'))
    assert json.loads(JSONEncoder().encode(Dashboard.from_json(board))) == board # Grafana's own types read what they wrote
    assert [o['title'] for o in board['panels']] == [o.title for o in PANELS]
    places = [tuple(o['gridPos'][k] for k in 'xywh') for o in board['panels']]
    assert len(set(places)) == len(places)
    assert all(x + w <= 24 for x, _, w, _ in places)
    for o in board['panels']:
        assert o['datasource'] == {'type': 'prometheus', 'uid': 'prometheus'}
        assert [t['refId'] for t in o['targets']] == list('ABCDEF'[:len(o['targets'])])


def test_rules_and_panels_ask_for_what_is_exported(lines, tmp_path):
    with DriftMonitor(tmp_path/'drift.db', FEATURES) as monitor:
        registries = ServiceMetrics(METRIC_PREFIX, 'images').registry, line_probe('', '', lines).registry, drift_registry(monitor, 'ocr')
        exported = {s.name for registry in registries for o in registry.collect() for s in (o, *o.samples)}
    exported |= {o['record'] for group in load_deploy_file('prometheus/rules.yml', 1)['groups'] for o in group['rules'] if 'record' in o}
    asked = {name for expr in OURS for name in re.findall(r'\bocr[_:][\w:]+', expr)}
    assert [o for o in asked if o not in exported and re.sub(r'_(total|bucket|sum|count)$', '', o) not in exported] == []


def test_a_dashboard_is_drawn_and_what_has_no_data_is_named():
    board = json.loads(make_dashboard(PANELS, 'Reader'))
    silent = board['panels'][8]['title']
    drawing, empty = draw_dashboard(board, lambda panel: [] if panel['title'] == silent else [('a', [10., 20., 90.], [1., 2., 3.])], 10., 90., [(50., 'red')])
    assert empty == [silent]
    assert len(drawing.convert('RGB').getcolors(1 << 20)) > 3


def test_the_last_point_before_a_gap_is_drawn():
    board = json.loads(make_dashboard([Panel('One', 'short', {'x': 'x'})], 'Demo'))
    def ink(times): # of the curve: blue
        drawn, _ = draw_dashboard(board, lambda _: [('x', times, [1.]*len(times))], 0, 600)
        return int((np.array(drawn.convert('RGB')).astype(int) @ [-1, 0, 1] > 60).sum())
    empty = ink([])
    assert ink([0, 200]) == empty, 'a line over the gap'
    assert ink([0, 50, 590]) > empty + 10


def test_a_panel_of_seven_curves_is_refused():
    six, seven = (Panel('Many', 'short', {str(i): f'x{i}' for i in range(n)}) for n in (6, 7))
    assert len(json.loads(make_dashboard([six], 'Demo'))['panels'][0]['targets']) == 6
    with pytest.raises(ValueError, match=r"'Many' has 7 curves.* Make two panels"): make_dashboard([six, seven], 'Demo')


def test_a_legend_shows_its_labels(): assert fill_legend('{{model}}, {{none}}', series_labels('x', model='a')) == 'a, '


# Routes

TREE = """
route:
  receiver: rest
  group_by: [alertname]
  group_wait: 1s
  group_interval: 2s
  repeat_interval: 5s
  routes:
    - {matchers: [severity = page], receiver: pager, routes: [{matchers: ['team =~ "ocr|data"'], receiver: ocr, continue: true, group_by: ['...']},
                                                              {matchers: [team = ocr], receiver: pager}]}
    - {match_re: {severity: tick.*}, receiver: tickets}
inhibit_rules:
  - {source_matchers: [alertname = Down], target_matchers: ['alertname =~ "Slow|Down"'], equal: [job]}
receivers: [{name: rest}, {name: pager}, {name: tickets}, {name: ocr}]
"""


@pytest.mark.parametrize('words', [
    '', 'severity=page', 'severity=ticket', 'severity=pages', 'severity=page team=ocr', 'severity=page team=data', 'severity=page team=ocr2', 'team=ocr'])
def test_an_alert_is_routed_as_by_amtool(tmp_path, words):
    (tmp_path/'routes.yml').write_text(TREE)
    command = [needs('amtool', 'tests routes'), 'config', 'routes', 'test', '--config.file=routes.yml', *words.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = find_routes(yaml.safe_load(TREE)['route'], dict(o.split('=') for o in words.split()))
    assert sorted(o['receiver'] for o in found) == sorted(done.stdout.strip().split(','))


@pytest.mark.parametrize('matcher', ['severity = page, team = ocr', '{severity="page",team="ocr"}', 'team = "a,b"', 'severity = page,', r'team =~ "o\\.r"',
                                     r'team =~ "o\.r"', r'team =~ o\.r', 'severity =~ pa{1}ge', '{}', 'severity != page, team != ocr', 'team=""'])
def test_a_matcher_of_several_conditions_holds_as_in_amtool(tmp_path, matcher):
    route = {'receiver': 'rest', 'routes': [{'matchers': [matcher], 'receiver': 'hit'}]}
    (tmp_path/'routes.yml').write_text(yaml.safe_dump({'route': route, 'receivers': [{'name': 'rest'}, {'name': 'hit'}]}))
    command = [needs('amtool', 'tests routes'), 'config', 'routes', 'test', '--config.file=routes.yml']
    for words in ('', 'severity=page', 'severity=page team=ocr', 'team=ocr', 'team=a,b', 'team=o.r', 'team=oxr'):
        done = subprocess.run([*command, *words.split()], cwd=tmp_path, capture_output=True, text=True, check=True)
        labels = dict(o.split('=') for o in words.split())
        assert [o['receiver'] for o in find_routes(route, labels)] == [done.stdout.strip()], words


def test_an_older_match_takes_its_value_as_it_is():
    labels = {'team': 'a "b", c'}
    assert matchers_hold({'match': labels, 'match_re': {'team': r'a ."b", \w'}}, labels) is False
    assert matchers_hold({'match': labels, 'match_re': {'team': r'a\s"b", \w'}}, labels)


@pytest.mark.parametrize('matcher', ['severity = "page', 'severity', 'team =~ "["', 'severity = page, team'])
def test_what_is_no_matcher_is_refused(matcher):
    with pytest.raises(ValueError, match='matcher'): matchers_hold({'matchers': [matcher]}, {'severity': 'page'})


def test_a_route_with_an_unknown_field_or_receiver_is_refused():
    config = yaml.safe_load(TREE)
    config['route']['receivers'] = 'pager'
    with pytest.raises(ValueError, match="has the field 'receivers'"): play_notifications(config, [FiringAlert({}, 0, 9)], 9)
    config = yaml.safe_load(TREE.replace('{name: rest}, ', ''))
    with pytest.raises(ValueError, match="The receiver 'rest' is not among"): play_notifications(config, [FiringAlert({}, 0, 9)], 9)


def played(story, until, **more):
    "Times of the messages, and the copies in each."
    config = {'route': {'receiver': 'pager', 'group_by': ['alertname']}, 'receivers': [{'name': 'pager'}], **more}
    return [(o.at, [a.get('copy', '') for a in o.alerts]) for o in play_notifications(config, story, until)]


def test_an_alert_that_fires_again_stands_once_in_a_message_of_a_new_group():
    story = [FiringAlert({'alertname': 'Failing', 'copy': 'one'}, start, start + 600.) for start in (0., 1231.)]
    assert played(story, 3000) == [(30, ['one']), (1261, ['one'])]
    two = [*story, FiringAlert({'alertname': 'Failing', 'copy': 'two'}, 0., 3000.)]
    assert played(two, 3000) == [(30, ['one', 'two']), (1530, ['one', 'two'])], 'the group is still there, and is looked at every 5 minutes'


def test_an_alert_that_was_held_back_for_a_while_is_not_told_twice():
    story = [*(FiringAlert({'alertname': 'Failing', 'copy': o}, 0., 4000.) for o in ('one', 'two')), FiringAlert({'alertname': 'Down'}, 500., 1500.)]
    rules = [{'source_matchers': ['alertname = Down'], 'target_matchers': ['copy = one']}]
    assert played(story, 4000, inhibit_rules=rules) == [(30, ['one', 'two']), (530, [''])]


@pytest.mark.slow
def test_messages_are_counted_as_alertmanager_sends_them(tmp_path):
    "A story of nine seconds: copies that come one after the other, one that comes late, and an alert that another one holds back."
    needs('prometheus-alertmanager', 'is started')
    heard = []
    async def hook(scope, receive, send):
        body, more = b'', True
        while more:
            message = await receive()
            body, more = body + message.get('body', b''), message.get('more_body')
        told = json.loads(body)
        heard.append((told['receiver'], sorted(o['labels'].get('copy', '') for o in told['alerts'] if o['status'] == 'firing')))
        await send({'type': 'http.response.start', 'status': 200, 'headers': []})
        await send({'type': 'http.response.body', 'body': b''})
    def alert(name, start, copy='', **more): return FiringAlert({'alertname': name, 'severity': 'page', 'copy': copy, 'job': 'a', **more}, start, 99.)
    story = [alert('Failing', 0, 'one'), alert('Failing', .3, 'two'), alert('Failing', 2., 'late'), alert('Down', 0.), alert('Slow', .1),
             alert('Slow', .1, 'other', job='b'),
             alert('Full', 0., severity='ticket')]
    config = yaml.safe_load(TREE)
    expected = sorted((o.receiver, sorted(a.get('copy', '') for a in o.alerts)) for o in play_notifications(config, story, 9.))
    with on_free_port(hook, lifespan='off') as url:
        for o in config['receivers']: o['webhook_configs'] = [{'url': url, 'send_resolved': False}]
        (tmp_path/'routes.yml').write_text(yaml.safe_dump(config))
        with program_on_free_port('prometheus-alertmanager', tmp_path, f"--config.file={tmp_path/'routes.yml'}", f"--storage.path={tmp_path/'alerts'}",
                                  '--web.listen-address=127.0.0.1:{port}', '--cluster.listen-address=') as manager:
            began = time.monotonic()
            for o in sorted(story, key=lambda o: o.start):
                time.sleep(max(0., began + o.start - time.monotonic()))
                httpx.post(f'{manager}/api/v2/alerts', json=[{'labels': {k: v for k, v in o.labels.items() if v}}], trust_env=False).raise_for_status()
            time.sleep(max(0., began + 9.3 - time.monotonic()))
    assert sorted(heard) == expected
