"The service (lesson 13): checks, limits, records, swaps and shutdowns, over real HTTP on this machine."
import asyncio
import io
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path

import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import Shelf, until
from fastapi import FastAPI, HTTPException
from fastapi.responses import PlainTextResponse, RedirectResponse
from limits import parse as parse_limit
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from PIL import Image

from mlops_course import http as serving_http
from mlops_course import uploads
from mlops_course.base.history import AuditLog, seal_entry, verify_audit
from mlops_course.base.images import load_image
from mlops_course.base.servers import on_free_port, uvicorn_options
from mlops_course.base.settings import ApiSettings
from mlops_course.batching import Batcher, Deferred
from mlops_course.contract import contract_failures
from mlops_course.fetching import fetch_image, is_public, public_address
from mlops_course.keys import KeyStore
from mlops_course.limits import TokenBucket
from mlops_course.reader import custom, serving
from mlops_course.reader.custom import CustomEngine, load_custom, read_images, warm_up_engine
from mlops_course.reader.layout import Reading
from mlops_course.reader.lines import line_batch
from mlops_course.reader.serving import ModelSource, create_app
from mlops_course.tools.cli import main
from mlops_course.uploads import load_upload

OPEN = ApiSettings(rate=1e6, burst=10**6)
INSIDES = re.compile(r'Traceback|File "|/tmp|/home|/work|/usr|site-packages|mlops_course|\.py\b')


def png(image):
    "The bytes of an image file."
    to = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(to, 'PNG')
    return to.getvalue()


class Held:
    "A real net that reads only while its gate is open."
    def __init__(self, net):
        self.net, self.design, self.gate = net, net.design, threading.Event()
    def log_probs(self, images):
        assert self.gate.wait(60)
        return self.net.log_probs(images)


@pytest.fixture(scope='module')
def engine():
    return warm_up_engine(load_custom())


@pytest.fixture(scope='module')
def page(root):
    return (root/'data'/'pages'/'render_3.png').read_bytes()


@pytest.fixture(scope='module')
def line():
    return png(line_batch(1, 3, 'v1', 'test')[0][0])


class Client(httpx.Client):
    "Knows the service, and has a key."
    def __init__(self, url, app, role='reader'):
        self.service, self.url, self.folder = app.state.service, url, Path(app.state.service.audit.path).parent
        super().__init__(base_url=url, headers={'Authorization': f"Bearer {self.service.keys.add(role, role)}"}, timeout=60, trust_env=False)
    def read(self, data, **params): return self.post('/v1/read', files={'file': data}, params=params)
    def record(self): return [json.loads(o) for o in (self.folder/'audit.jsonl').read_text().splitlines()]


@contextmanager
def started(source, folder, limits=OPEN, role='reader'):
    app = create_app(source, folder, limits)
    with on_free_port(app) as url, Client(url, app, role) as client: yield client


@pytest.fixture(scope='module')
def client(engine, tmp_path_factory):
    with started(Shelf(engine), tmp_path_factory.mktemp('serving')) as found: yield found


@pytest.fixture
def held(engine):
    net = Held(engine.net)
    found = CustomEngine(net)
    found.detect = engine.detect
    yield found
    net.gate.set()


def problem(response, status):
    "The words of a refusal, in the one shape that all have."
    assert (response.status_code, response.json()['status'], set(response.json())) == (status, status, {'status', 'error'})
    assert not INSIDES.search(response.text)
    return response.json()['error']


# Reading

def test_a_page_is_read_as_the_engine_reads_it(client, engine, page, root):
    found = client.read(page)
    alone = engine(load_image(root/'data'/'pages'/'render_3.png'))
    answer = found.json()
    assert found.status_code == 200
    assert (answer['text'], answer['engine'], answer['model']) == (alone.text, 'custom', 'reader/1')
    assert [o['text'] for o in answer['lines']] == [o.text for o in alone.lines]
    assert answer['sha256'] == sha256(page).hexdigest()


def test_a_line_is_read_as_a_line(client, line):
    assert client.read(line, line=True).json()['text'] == line_batch(1, 3, 'v1', 'test')[0][1]


@pytest.mark.slow
def test_images_read_together_are_read_as_if_alone(engine, root):
    pages = [load_image(root/'data'/'pages'/o) for o in ('render_1.png', 'photo_simulated_1.jpg', 'render_3.png')]
    lines = [np.stack([o]*3, 2) for o, _ in line_batch(6, 0, 'v1', 'test')]
    for images, line in ((pages, False), (lines, True)):
        together = read_images(engine, images, line)
        alone = [CustomEngine(engine.net, line)(o) for o in images]
        assert [o.text for o in together] == [o.text for o in alone]
        assert [o.engine for o in together] == [o.engine for o in alone]


def test_a_blank_page_has_no_text_and_is_no_error(client):
    assert client.read(png(Image.new('L', (200, 100), 255))).json()['text'] == ''


def test_many_images_come_back_each_with_its_number_and_a_bad_one_stops_nothing(client, page, line):
    found = client.post('/v1/batch', files=[('file', page), ('file', b'no image'), ('file', line)])
    rows = [json.loads(o) for o in found.text.splitlines()]
    assert found.headers['content-type'] == 'application/x-ndjson'
    assert sorted(o['index'] for o in rows) == [0, 1, 2]
    by_index = {o['index']: o for o in rows}
    assert by_index[0]['text'] == client.read(page).json()['text']
    assert by_index[1]['status'] == 422
    assert by_index[2]['sha256'] == sha256(line).hexdigest()
    assert by_index[2]['receipt'] in (client.folder/'audit.jsonl').read_text()


def test_many_images_are_streamed_back_before_the_last_is_read(held, tmp_path, line):
    with started(Shelf(held), tmp_path, ApiSettings(batch=1, rate=1e6, burst=99)) as client:
        held.net.gate.set()
        with client.stream('POST', '/v1/batch', params={'line': True}, files=[('file', line)]*3) as found:
            lines = found.iter_lines()
            next(lines)
            held.net.gate.clear()
            taken = client.service.taken
            held.net.gate.set()
            assert len(list(lines)) == 2
        assert taken == 1 # it had not ended when the first line was here


def test_too_many_or_no_images_are_refused(client, line):
    assert '0 images came, 1 was expected' in problem(client.post('/v1/read', files={'other': line}), 422)
    assert problem(client.post('/v1/read', files=[('file', line)]*2), 400)
    assert problem(client.post('/v1/batch', files=[('file', line)]*17), 400)
    assert problem(client.post('/v1/read'), 422)


# What those need who run it

def test_health_ready_models_and_metrics_answer(client, line):
    client.read(line)
    assert client.get('/health').json() == {'status': 'ok'}
    assert client.get('/ready').json() == {'ready': True, 'model': 'reader/1'}
    models = client.get('/v1/models').json()
    assert models['serving'] == {'version': 'reader/1', 'why': 'of the test'}
    assert models['registered'][0]['aliases'] == ['champion']
    metrics = client.get('/metrics').text
    for o in ('ocr_predictions_total{engine="custom",model="reader/1",status="200"}', 'ocr_prediction_duration_seconds_bucket{', 'ocr_places_taken'):
        assert o in metrics


def test_predictions_are_counted_by_what_became_of_them(engine, tmp_path, line):
    with started(Shelf(engine), tmp_path) as client:
        for o in (line, line, b'no image'): client.read(o)
        value = client.service.meters.registry.get_sample_value
        mine = {'engine': 'custom', 'model': 'reader/1'}
        assert [value('ocr_predictions_total', {**mine, 'status': o}) for o in ('200', '422', '500')] == [2, 1, 0]
        assert value('ocr_prediction_duration_seconds_count', mine) == 2


def test_confidence_is_counted_and_nothing_read_counts_as_none_at_all(engine, tmp_path, line):
    with started(Shelf(engine), tmp_path) as client:
        for o in (line, png(np.full((32, 200, 3), 255, np.uint8))): client.read(o, line=True)
        value = client.service.meters.registry.get_sample_value
        assert value('ocr_confidence_bucket', {'engine': 'custom', 'model': 'reader/1', 'le': '0.5'}) == 1
        assert value('ocr_confidence_bucket', {'engine': 'custom', 'model': 'reader/1', 'le': '1.0'}) == 2


def test_images_that_wait_are_counted_while_they_wait(held, tmp_path, line):
    with started(Shelf(held), tmp_path, OPEN.model_copy(update={'batch': 1})) as client, ThreadPoolExecutor(3) as pool:
        waiting = lambda: client.service.meters.registry.get_sample_value('ocr_queue_images')
        assert waiting() == 0
        asked = [pool.submit(client.read, line, line=True) for _ in range(3)]
        until(lambda: waiting() == 2) # and one is being read
        held.net.gate.set()
        assert [o.result().status_code for o in asked] == [200]*3
        assert waiting() == 0


def test_the_description_has_examples_and_says_how_to_show_a_key(client):
    said = client.get('/openapi.json').json()
    read = said['paths']['/v1/read']['post']
    assert read['responses']['200']['content']['application/json']['example']['text']
    for path in ('/health', '/ready', '/v1/models'): # what is promised is what comes
        assert said['paths'][path]['get']['responses']['200']['content']['application/json']['example'].keys() == client.get(path).json().keys()
    assert said['paths']['/v1/models/reload']['post']['responses']['200']['content']['application/json']['example'] == {'before': 'reader/2', 'now': 'reader/3'}
    for status in ('401', '413', '422', '429', '503', '504'):
        assert read['responses'][status]['content']['application/json']['example']['status'] == int(status)
    assert read['requestBody']['content']['multipart/form-data']['schema']['properties']['file']['format'] == 'binary'
    assert read['security'] == [{'HTTPBearer': []}]
    assert 'security' not in said['paths']['/health']['get']


def test_no_page_of_ours_loads_scripts_from_elsewhere(client):
    assert {client.get(o).status_code for o in ('/docs', '/redoc')} == {404}


# Keys and roles

@pytest.mark.parametrize('header', [{}, {'Authorization': 'Bearer wrong'}, {'Authorization': 'Basic YTpi'}, {'Authorization': b'Bearer \xff\xfe'}])
def test_without_a_known_key_nothing_is_read(client, line, header):
    found = httpx.post(f'{client.url}/v1/read', files={'file': line}, headers=header)
    problem(found, 401)
    assert found.headers['www-authenticate'] == 'Bearer'


def test_a_key_counts_from_the_moment_it_is_made_to_the_moment_it_is_revoked(client):
    elsewhere = KeyStore(client.folder/'keys.json')
    key = elsewhere.add('guest')
    def ask(): return httpx.get(f'{client.url}/v1/models', headers={'Authorization': f'Bearer {key}'}).status_code
    assert ask() == 200
    elsewhere.revoke('guest')
    assert ask() == 401


def test_keys_are_kept_as_hashes_and_for_nobody_else(tmp_path):
    keys = KeyStore(tmp_path/'keys.json')
    key = keys.add('ana', 'admin')
    assert key not in (tmp_path/'keys.json').read_text()
    assert keys.find(key).name == 'ana'
    assert len(key) >= 43
    if os.name != 'nt': assert (tmp_path/'keys.json').stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(('name', 'role', 'words'), [('ana', 'reader', 'There is a key for ana already'), ('ben', 'king', 'choose among reader, admin'),
                                                     ('', 'reader', 'expected one that tells people apart'), ('a\nb', 'reader', 'tells people apart')])
def test_a_key_that_cannot_be_made_is_refused(tmp_path, name, role, words):
    keys = KeyStore(tmp_path/'keys.json')
    keys.add('ana')
    with pytest.raises(ValueError, match=words): keys.add(name, role)


def test_an_unknown_key_cannot_be_revoked(tmp_path):
    with pytest.raises(ValueError, match=r'No key for ana\. There are keys for nobody'): KeyStore(tmp_path/'keys.json').revoke('ana')


def test_two_reloads_come_one_after_the_other(engine, tmp_path):
    inside, most = [], []
    class Slow(Shelf):
        def load(self):
            inside.append(1)
            most.append(len(inside))
            time.sleep(.2)
            inside.pop()
            return super().load()
    with started(Slow(engine), tmp_path, role='admin') as client, ThreadPoolExecutor(2) as threads:
        assert [o.status_code for o in threads.map(lambda _: client.post('/v1/models/reload'), range(2))] == [200, 200]
    assert most == [1]*3


def test_a_reader_may_not_reload_and_the_attempt_is_on_record(client):
    problem(client.post('/v1/models/reload'), 403)
    last = client.record()[-1]
    assert (last['who'], last['what'], last['status']) == ('reader', 'reload', 403)


# Limits

def raw(client, head, body=b'', wait=30):
    "What comes back for bytes that no decent client would send."
    with socket.create_connection(('127.0.0.1', int(client.url.rpartition(':')[2])), timeout=wait) as s:
        s.sendall(head.replace('\n', '\r\n').encode() + b'\r\n' + body)
        return s.recv(65536).decode()


def head(client, size, key=True):
    return (f"POST /v1/read HTTP/1.1\nHost: x\nContent-Type: multipart/form-data; boundary=abc\nContent-Length: {size}\n"
            + (f"Authorization: {client.headers['Authorization']}\n" if key else ''))


def test_a_body_without_a_key_is_not_waited_for(client):
    assert ' 401 ' in raw(client, head(client, 5000, key=False))


def test_a_body_that_says_it_is_too_large_is_not_waited_for(client):
    assert ' 413 ' in raw(client, head(client, 10**9))


@pytest.mark.parametrize('size', ['-1', 'x', '9'*5000, '1e3'])
def test_a_nonsensical_length_is_no_fault_of_the_service(client, size):
    assert ' 4' in raw(client, head(client, size)).partition('\r')[0]


def test_a_body_that_does_not_say_its_size_is_counted(engine, tmp_path):
    sent = []
    def endless():
        yield b'--abc\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
        for _ in range(2000):
            sent.append(2**16)
            yield b'x'*2**16
    with started(Shelf(engine), tmp_path, ApiSettings(image_mb=1)) as client:
        found = client.post('/v1/read', content=endless(), headers={'Content-Type': 'multipart/form-data; boundary=abc'})
        assert 'More than 1.1 MB came' in problem(found, 413)
    assert sum(sent) < 100*10**6 # it did not listen to the end


def test_each_of_many_images_has_its_own_limit(engine, tmp_path, line):
    with started(Shelf(engine), tmp_path, ApiSettings(image_mb=.1)) as client:
        assert 'More than 0.1 MB came' in problem(client.post('/v1/batch', files=[('file', line), ('file', b'x'*200_000)]), 413)


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(uploads, 'load_image', lambda *_, **__: pytest.fail('it was decoded'))
    with pytest.raises(HTTPException) as e: load_upload(io.BytesIO(png(Image.new('1', (3000, 3000)))), 10**6)
    assert e.value.status_code == 413
    assert '3,000×3,000' in e.value.detail


def test_too_many_pixels_are_413_over_http(client):
    assert 'at most 20,000,000 are read' in problem(client.read(png(Image.new('1', (6000, 6000)))), 413)


def test_whoever_asks_too_often_waits_and_others_do_not(engine, tmp_path, line):
    with started(Shelf(engine), tmp_path, ApiSettings(rate=.1, burst=2)) as client:
        found = [client.read(line, line=True) for _ in range(3)]
        assert [o.status_code for o in found] == [200, 200, 429]
        assert 1 <= int(found[2].headers['retry-after']) <= 10
        problem(found[2], 429)
        other = client.service.keys.add('other')
        assert client.post('/v1/read', files={'file': line}, headers={'Authorization': f'Bearer {other}'}).status_code == 200


def test_many_images_cost_as_much_as_many_requests(engine, tmp_path, line):
    with started(Shelf(engine), tmp_path, ApiSettings(rate=.1, burst=4)) as client:
        assert client.post('/v1/batch', files=[('file', line)]*4).status_code == 200
        assert client.read(line).status_code == 429


def test_a_bucket_fills_again_and_never_beyond_its_brim():
    now = [0.]
    bucket = TokenBucket(2, 3, lambda: now[0])
    bucket.pay(3)
    assert bucket.wait() == pytest.approx(.5)
    now[0] = .5
    assert bucket.wait() == 0
    now[0] = 1000.
    assert (bucket.wait(), bucket.tokens) == (0, 3)
    bucket.pay(7) # more than there are
    assert bucket.wait() == pytest.approx(2.5)


def test_a_batch_above_the_burst_is_let_in_once_and_paid_for_as_it_never_is_with_limits():
    theirs, twenty = MovingWindowRateLimiter(MemoryStorage()), parse_limit("20 per 2 seconds")
    assert not theirs.hit(twenty, "ana", cost=30)
    assert not theirs.hit(twenty, "bob", cost=21) # a fresh key: no waiting helps
    now = [0.]
    ours = TokenBucket(10, 20, lambda: now[0])
    assert ours.wait() == 0
    ours.pay(30)
    now[0] = ours.wait() + 1e-6
    assert (now[0] > 1, ours.wait()) == (True, 0)


def test_a_full_service_says_so_at_once_and_is_alive(held, tmp_path, line):
    with started(Shelf(held), tmp_path, ApiSettings(places=2, rate=1e6, burst=99)) as client, ThreadPoolExecutor(2) as pool:
        first = [pool.submit(client.read, line, line=True) for _ in range(2)]
        until(lambda: client.service.taken == 2)
        found = client.read(line)
        assert 'All 2 places are taken' in problem(found, 503)
        assert int(found.headers['retry-after']) >= 1
        assert client.get('/health').status_code == 200
        assert client.get('/ready').status_code == 503
        held.net.gate.set()
        assert [o.result().status_code for o in first] == [200, 200]
        until(lambda: client.service.taken == 0)
        assert client.read(line).status_code == 200


def test_one_key_may_take_some_places_and_leaves_the_others_to_others(engine, tmp_path, line):
    with started(Shelf(engine), tmp_path, OPEN.model_copy(update={'places': 6, 'places_per_key': 3})) as client, ExitStack() as after:
        for _ in range(3): # half a request each, as long as the time limit allows
            sock = after.enter_context(socket.create_connection((client.base_url.host, client.base_url.port)))
            sock.sendall(head(client, 5000).replace('\n', '\r\n').encode() + b'\r\n--abc\r\n')
        until(lambda: client.service.taken == 3)
        refused = client.read(line, line=True)
        assert '3 requests with your key are inside already' in problem(refused, 429)
        assert int(refused.headers['retry-after']) >= 1
        other = {'Authorization': f"Bearer {client.service.keys.add('other')}"}
        found = client.post('/v1/read', files={'file': line}, params={'line': True}, headers=other)
        assert (found.status_code, client.service.taken) == (200, 3)
        after.close()
        until(lambda: client.service.taken == 0)
        assert client.read(line, line=True).status_code == 200


def test_one_key_cannot_fill_a_service_as_it_comes():
    assert ApiSettings().places_per_key < ApiSettings().places


def test_a_reading_that_takes_too_long_is_given_up_and_on_record(held, tmp_path, line):
    with started(Shelf(held), tmp_path, ApiSettings(timeout_s=.5)) as client:
        problem(client.read(line, line=True), 504)
        assert client.record()[-1]['status'] == 504
        held.net.gate.set()
        until(lambda: client.read(line, line=True).status_code == 200) # a busy machine may take longer than half a second


def test_an_image_that_comes_too_slowly_is_given_up(engine, tmp_path):
    with started(Shelf(engine), tmp_path, ApiSettings(timeout_s=.5)) as client:
        assert ' 408 ' in raw(client, head(client, 5000), b'--abc\r\n')
        until(lambda: client.service.taken == 0)


def test_arrival_and_reading_share_one_time_limit(held, tmp_path, line):
    with started(Shelf(held), tmp_path, ApiSettings(timeout_s=3.)) as client:
        body = b'--abc\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n' + line + b'\r\n--abc--\r\n'
        begun = time.monotonic()
        with socket.create_connection((client.base_url.host, client.base_url.port)) as sock:
            sock.sendall(head(client, len(body)).replace('\n', '\r\n').encode() + b'\r\n' + body[:50])
            time.sleep(2)
            sock.sendall(body[50:])
            assert b' 504 ' in sock.recv(1000)
        assert time.monotonic() - begun < 4.5 # two limits would be 5 s
        held.net.gate.set()


def test_who_hangs_up_is_no_fault_of_ours(engine, tmp_path, capfd):
    with started(Shelf(engine), tmp_path) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port)) as sock:
            sock.sendall(head(client, 5000).replace('\n', '\r\n').encode() + b'\r\n--abc\r\n')
        value = client.service.meters.registry.get_sample_value
        until(lambda: value('ocr_refusals_total', {'status': '499'}) == 1)
        assert value('ocr_refusals_total', {'status': '500'}) is None
    assert 'Traceback' not in ''.join(capfd.readouterr())


# Pages that take long

class Doubtful(CustomEngine):
    "A real engine to which each page is doubtful. What it does about that is to wait."
    def __call__(self, image):
        time.sleep(.4)
        return Reading(self.name, [], .4)


@pytest.fixture
def doubtful(engine, monkeypatch):
    found = Doubtful(engine.net)
    found.detect = engine.detect
    monkeypatch.setattr(custom, 'is_doubtful', lambda lines: True)
    return found


@pytest.mark.slow
def test_a_batch_of_doubtful_pages_comes_back_one_by_one_and_nobody_else_waits(doubtful, tmp_path, page, line):
    with started(Shelf(doubtful), tmp_path, ApiSettings(rate=1e6, burst=10**6, images=6, batch=3, timeout_s=2.2)) as client:
        with ThreadPoolExecutor(1) as thread:
            begun = time.monotonic()
            def batch():
                with client.stream('POST', '/v1/batch', files=[('file', page)]*6) as found:
                    return [(time.monotonic() - begun, json.loads(o)) for o in found.iter_lines()]
            running = thread.submit(batch)
            time.sleep(.6)
            asked = time.monotonic()
            assert client.read(line, line=True).status_code == 200
            assert time.monotonic() - asked < 1 # one page at most was in the way, and not six
            answers = running.result()
    assert sorted(o['index'] for _, o in answers) == list(range(6))
    assert {o['engine'] for _, o in answers} == {'custom'} # all of them: two groups have two time limits
    assert answers[0][0] < answers[-1][0] - 1


@pytest.mark.slow
def test_a_batch_that_began_is_finished_when_the_service_stops(doubtful, tmp_path, page):
    with ThreadPoolExecutor(1) as thread:
        with started(Shelf(doubtful), tmp_path, ApiSettings(rate=1e6, burst=10**6, images=6, batch=1, timeout_s=1.)) as client:
            running = thread.submit(httpx.post, f'{client.url}/v1/batch', files=[('file', page)]*6, headers=client.headers, timeout=60, trust_env=False)
            until(lambda: client.service.taken == 1)
            time.sleep(.3)
        assert ['text' in json.loads(o) for o in running.result().text.splitlines()] == [True]*6


def test_what_is_for_later_waits_for_all_others():
    done = []
    def work(jobs):
        done.append(''.join(jobs))
        return [Deferred(o.upper()) if o in 'ab' else o for o in jobs]
    async def story():
        async with Batcher(work, most=2, wait_s=.05) as batcher: return await asyncio.gather(*map(batcher, 'abcde'))
    assert asyncio.run(story()) == ['A', 'B', 'c', 'd', 'e']
    assert done == ['ab', 'cd', 'e', 'A', 'B']


def test_what_was_begun_is_done_when_a_batcher_ends():
    done = []
    async def story():
        async with Batcher(lambda jobs: [done.append(o) for o in jobs], most=1) as batcher:
            asked = [asyncio.create_task(batcher(o)) for o in 'abc']
            await asyncio.sleep(0)
        return [o.done() for o in asked]
    assert asyncio.run(story()) == [True]*3
    assert done == ['a', 'b', 'c']


# Micro-batches

def run_batcher(jobs, **options):
    "What a batcher makes of jobs that come at once, and how it grouped them."
    groups = []
    def work(batch):
        groups.append(batch)
        return [ValueError('odd') if o == 'odd' else o.upper() for o in batch]
    async def go():
        async with Batcher(work, **options) as batcher: return await asyncio.gather(*map(batcher, jobs), return_exceptions=True)
    return asyncio.run(go()), groups


def test_jobs_that_come_together_are_done_together():
    found, groups = run_batcher('abcdefg', most=3, wait_s=.2)
    assert found == list('ABCDEFG')
    assert [len(o) for o in groups] == [3, 3, 1]


def test_a_lonely_job_waits_no_longer_than_it_must():
    start = time.perf_counter()
    assert run_batcher('a', most=8, wait_s=.05)[0] == ['A']
    assert time.perf_counter() - start < 5


def test_an_error_concerns_its_own_job_only():
    found, _ = run_batcher(['a', 'odd', 'b'], wait_s=.2)
    assert (found[0], str(found[1]), found[2]) == ('A', 'odd', 'B')


def test_who_gave_up_is_not_worked_for():
    done, gate = [], threading.Event()
    def work(batch):
        gate.wait(30)
        done.extend(batch)
        return batch
    async def go():
        async with Batcher(work, most=1, wait_s=0) as batcher:
            first = asyncio.create_task(batcher('first'))
            with pytest.raises(TimeoutError): await asyncio.wait_for(batcher('second'), .1)
            gate.set()
            await first
    asyncio.run(go())
    assert done == ['first']


def test_an_image_that_breaks_the_engine_does_not_harm_its_neighbours(engine, tmp_path, line, page, monkeypatch):
    together = serving.read_without_detector
    def fragile(engine, images, line):
        if any(o.shape[0] == 99 for o in images): raise RuntimeError('no such image')
        return together(engine, images, line)
    monkeypatch.setattr(serving, 'read_without_detector', fragile)
    with started(Shelf(engine), tmp_path, ApiSettings(wait_ms=300, rate=1e6, burst=99)) as client:
        bad = png(Image.new('L', (99, 99)))
        found = client.post('/v1/batch', files=[('file', o) for o in (page, bad, line)])
        rows = sorted(map(json.loads, found.text.splitlines()), key=lambda o: o['index'])
    assert [o.get('status') for o in rows] == [None, 500, None]


def test_an_image_that_breaks_its_decoder_does_not_harm_its_neighbours(engine, line, monkeypatch):
    load = serving.load_upload
    def fragile(file, max_pixels):
        if file.read() == b'odd': raise AttributeError('no such tag')
        return load(file, max_pixels)
    monkeypatch.setattr(serving, 'load_upload', fragile)
    jobs = [serving.ReadJob(io.BytesIO(o), True) for o in (line, b'odd', line)]
    first, odd, last = serving.read_jobs(serving.ServedModel(engine, 'shipped', ''), jobs, 10**7)
    assert first.text == last.text != ''
    assert isinstance(odd, AttributeError)


def test_a_broken_worker_tells_all_who_wait_and_goes_on():
    async def go():
        def work(batch):
            if 'bad' in batch: raise RuntimeError('broken')
            return batch
        async with Batcher(work, wait_s=.1) as batcher:
            found = await asyncio.gather(batcher('bad'), batcher('a'), return_exceptions=True)
            return [*map(str, found), await batcher('b')]
    assert asyncio.run(go()) == ['broken', 'broken', 'b']


@pytest.mark.parametrize('results', [None, [], [1, 2]])
def test_who_gets_no_result_is_told_and_the_worker_goes_on(results):
    async def go():
        answers = iter([results, ['next']])
        async with Batcher(lambda jobs: next(answers)) as batcher, asyncio.timeout(20):
            with pytest.raises((TypeError, ValueError)): await batcher('job')
            assert await batcher('job') == 'next'
    asyncio.run(go())


def test_requests_at_once_share_passes(engine, tmp_path, line):
    with started(Shelf(engine), tmp_path, ApiSettings(batch=8, wait_ms=200, rate=1e6, burst=99)) as client, ThreadPoolExecutor(8) as pool:
        assert {o.status_code for o in pool.map(lambda _: client.read(line, line=True), range(8))} == {200}
        assert client.service.meters.registry.get_sample_value('ocr_batch_images_count') < 8


# Models

def test_who_is_being_read_finishes_on_the_old_model(held, engine, tmp_path, line):
    source = Shelf(held)
    with started(source, tmp_path, role='admin') as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.read, line, line=True)
        until(lambda: client.service.taken == 1)
        time.sleep(.2) # it is in the thread now
        source.engine, source.version = engine, 'reader/2'
        assert client.post('/v1/models/reload').json() == {'before': 'reader/1', 'now': 'reader/2'}
        assert client.get('/ready').json()['model'] == 'reader/2'
        held.net.gate.set()
        assert first.result().json()['model'] == 'reader/1'
        assert client.read(line, line=True).json()['model'] == 'reader/2'


def test_a_model_that_cannot_be_loaded_does_not_replace_the_old_one(engine, tmp_path, line):
    source = Shelf(engine)
    with started(source, tmp_path, role='admin') as client:
        source.error = ValueError('/secret/place is damaged')
        said = problem(client.post('/v1/models/reload'), 503)
        assert 'reader/1 stays' in said
        assert 'secret' not in said
        assert client.read(line).json()['model'] == 'reader/1'
        assert [(o['what'], o['status']) for o in client.record()] == [('reload', 503), ('read', 200)]


def test_without_a_registry_the_shipped_model_is_served_and_says_why(monkeypatch):
    monkeypatch.setattr(serving, 'project_store', lambda: None)
    model = ModelSource().load()
    assert (model.version, model.why) == ('shipped', 'the recogniser in data/recogniser, since there is no registry')
    assert ModelSource().models() == []


# The record

def test_the_record_says_who_what_which_model_and_how_long(engine, tmp_path, line):
    with started(Shelf(engine), tmp_path) as client:
        receipt = client.read(line).headers['x-audit']
        client.read(b'no image')
        first, second = client.record()
    assert (first['who'], first['what'], first['status'], first['model'], first['sha256']) == ('reader', 'read', 200, 'reader/1', sha256(line).hexdigest())
    assert first['seconds'] > 0
    assert (second['status'], second['sha256']) == (422, sha256(b'no image').hexdigest())
    assert first['hash'] == receipt == second['before']
    assert verify_audit(tmp_path/'audit.jsonl', [receipt]) == []


@pytest.fixture
def record(tmp_path):
    audit = AuditLog(tmp_path/'audit.jsonl')
    receipts = [audit.add(who=o, what='read') for o in ('ana', 'ben', 'eve', 'zoe')]
    audit.close()
    return tmp_path/'audit.jsonl', receipts


@pytest.mark.parametrize(('change', 'words'), [
    (lambda o: [o[0], o[1].replace('ben', 'eve'), *o[2:]], 'line 2 was changed'),
    (lambda o: [o[0], o[1].replace('"n": 2', '"n":  2'), *o[2:]], 'line 2 was changed'),
    (lambda o: [o[0], *o[2:]], 'line 2 does not follow'),
    (lambda o: [o[0], o[2], o[1], o[3]], 'line 2 does not follow'),
    (lambda o: [o[0], o[0], *o[1:]], 'line 2 does not follow'),
    (lambda o: o[1:], 'line 1 does not follow'),
    (lambda o: [*o[:3], o[3][:20]], 'line 4 was changed or cut off'),
    (lambda o: [o[0], seal_entry({**json.loads(o[1]), 'who': 'eve'}), *o[2:]], 'line 2 was changed'),
    (lambda o: [*o, '[]'], 'line 5 was changed'),
    (lambda o: [o[0], '{"n":' + '['*100_000, *o[2:]], 'line 2 was changed'),
    (lambda o: [o[0], '{"n": ' + '['*900 + ']'*900 + ', "hash": "1"}', *o[2:]], 'line 2 was changed'), # it can be read, but not written
    (lambda o: [o[0], '{"hash": [1]}', *o[2:]], 'line 2 was changed'),
])
def test_tampering_is_found_at_its_line(record, change, words):
    path, _ = record
    path.write_text('\n'.join(change(path.read_text().splitlines())) + '\n')
    assert words in verify_audit(path)[0]


def test_an_end_that_was_cut_off_is_found_by_receipts(record):
    path, receipts = record
    path.write_text('\n'.join(path.read_text().splitlines()[:2]) + '\n')
    assert verify_audit(path) == [] # the rest is whole
    assert len(verify_audit(path, receipts)) == 2


def test_a_record_that_was_written_anew_is_found_by_receipts(record):
    path, receipts = record
    entries, before, lines = [json.loads(o) for o in path.read_text().splitlines()], '', []
    for o in entries:
        o.pop('hash')
        lines.append(seal_entry({**o, 'who': 'ana', 'before': before}))
        before = json.loads(lines[-1])['hash']
    path.write_text('\n'.join(lines) + '\n')
    assert verify_audit(path) == []
    assert len(verify_audit(path, receipts)) == 3 # the first was ana's


def test_a_record_goes_on_after_a_restart_and_after_a_power_cut(record):
    path, receipts = record
    with path.open('a') as f: f.write('{"n": 5, "wh')
    audit = AuditLog(path)
    receipts.append(audit.add(who='ana', what='read'))
    audit.close()
    assert verify_audit(path, receipts) == []
    assert len(path.read_text().splitlines()) == 5


def test_two_services_do_not_write_into_one_record(tmp_path):
    audit = AuditLog(tmp_path/'audit.jsonl')
    with pytest.raises(BlockingIOError, match='Another service writes to'): AuditLog(tmp_path/'audit.jsonl')
    audit.close()
    AuditLog(tmp_path/'audit.jsonl').close()


def test_a_record_with_a_damaged_end_is_not_continued(record):
    path, _ = record
    path.write_text(path.read_text() + 'nonsense\n')
    with pytest.raises(ValueError, match=r'is damaged\. `mlops-course audit`'): AuditLog(path)


@pytest.mark.parametrize('end', ['[]', '{"n": 5}', '['*50_000])
def test_a_record_that_ends_with_no_entry_is_damaged_too_and_not_kept_open(record, end):
    path, _ = record
    whole = path.read_text()
    path.write_text(whole + f'{end}\n')
    with pytest.raises(ValueError, match='is damaged') as found: AuditLog(path)
    path.write_text(whole)
    AuditLog(path).close() # though the error, with all that it refers to, is still there
    assert found


def test_a_closed_record_writes_into_no_other_file(tmp_path):
    audit = AuditLog(tmp_path/'audit.jsonl')
    audit.close()
    with (tmp_path/'other').open('wb', buffering=0) as other: # it gets the number of the file that was closed
        with pytest.raises(ValueError, match='is closed'): audit.add(who='ana', what='read')
        audit.close() # again, which must not close the other file
        assert other.write(b'whole') == 5
    assert (tmp_path/'other').read_bytes() == b'whole'
    assert (tmp_path/'audit.jsonl').read_bytes() == b''


def test_threads_write_one_whole_chain(tmp_path):
    audit = AuditLog(tmp_path/'audit.jsonl')
    with ThreadPoolExecutor(8) as pool: receipts = list(pool.map(lambda i: audit.add(who=str(i), what='read'), range(100)))
    audit.close()
    assert verify_audit(tmp_path/'audit.jsonl', receipts) == []


def test_an_entry_is_on_the_disk_before_anybody_is_told(record, monkeypatch):
    kept = []
    monkeypatch.setattr(os, 'fsync', lambda file: kept.append(os.fstat(file).st_size))
    audit = AuditLog(record[0])
    audit.add(who='ana')
    assert kept == [record[0].stat().st_size]
    audit.close()


def test_a_full_disk_leaves_no_half_line(record, monkeypatch):
    path, receipts = record
    audit, write = AuditLog(path), os.write
    monkeypatch.setattr(os, 'write', lambda file, data: write(file, data[:10]))
    with pytest.raises(OSError, match='the disk is full'): audit.add(who='ana', what='read')
    monkeypatch.undo()
    receipts.append(audit.add(who='ana', what='read'))
    audit.close()
    assert verify_audit(path, receipts) == []


def test_nothing_is_answered_that_is_not_on_record(engine, tmp_path, page, monkeypatch):
    with started(Shelf(engine), tmp_path) as client:
        def full(**_): raise OSError('/disk is full')
        monkeypatch.setattr(client.service.audit, 'add', full)
        assert 'Central' not in problem(client.read(page), 500)
        problem(client.read(b'no image'), 500)
        found = re.findall(r'ocr_predictions_total\{.*status="(\d+)"\} (\d+)', client.get('/metrics').text)
    assert {status: int(n) for status, n in found if n != '0'} == {'500': 2} # counted as it was answered


# Hostile and broken requests

def broken_images(page, seed=0):
    "A page, damaged in many ways."
    rng = np.random.default_rng(seed)
    for form in ('PNG', 'JPEG', 'GIF', 'TIFF', 'BMP', 'WEBP'):
        to = io.BytesIO()
        Image.open(io.BytesIO(page)).convert('L').resize((120, 70)).save(to, form)
        data = to.getvalue()
        for at in (0, 8, 30, len(data)//2, len(data) - 3): yield data[:at]
        for n in (1, 3, 10, 50):
            for _ in range(2):
                found = bytearray(data)
                for i in rng.integers(0, min(len(data), 400 if n < 10 else len(data)), n): found[i] = rng.integers(256)
                yield bytes(found)
    yield from (b'', b'GIF89a', b'\x89PNG\r\n\x1a\n', b'<html>no</html>', b'\0'*1000, rng.bytes(5000), b'%PDF-1.7', b'RIFF\x10\0\0\0WEBPVP8 ')


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::UserWarning') # Pillow's, about odd files
def test_broken_images_are_refused_and_never_a_fault(client, page):
    statuses = Counter()
    for data in broken_images(page):
        found = client.read(data, line=True)
        statuses[found.status_code] += 1
        if found.status_code != 200: problem(found, found.status_code)
    assert set(statuses) <= {200, 413, 422}
    assert statuses[422] > 30


@pytest.mark.slow
def test_no_answer_breaks_the_contract_or_tells_of_our_insides(engine, tmp_path):
    with started(Shelf(engine), tmp_path, role='admin') as client:
        found = contract_failures(client.url, 12, headers={'Authorization': client.headers['Authorization']}, secret=INSIDES.pattern,
                                  skip=('positive_data_acceptance',)) # whether an image is one, the description cannot say
    assert found['curl'].tolist() == []


@pytest.mark.parametrize(('kind', 'body'), [
    ('multipart/form-data', b''), ('multipart/form-data; boundary=', b'--\r\n'), ('multipart/form-data; boundary=abc', b'no boundary'),
    ('multipart/form-data; boundary=abc', b'--abc\r\nContent-Disposition: form-data\r\n\r\nx\r\n--abc--'), ('application/json', b'{"url": "x"}'),
    ('application/x-www-form-urlencoded', b'url=x'), ('text/\xff', b'x'), ('multipart/form-data; boundary=abc; charset=nonsense', b'--abc--\r\n'),
    ('multipart/form-data; boundary=abc', b'--abc\r\nContent-Disposition: form-data; name="file"; filename="../../etc/passwd"\r\n\r\nx\r\n--abc--\r\n'),
])
def test_malformed_bodies_are_the_fault_of_who_sent_them(client, kind, body):
    found = client.post('/v1/read', content=body, headers={'Content-Type': kind.encode('latin-1')})
    assert found.status_code in (400, 422)
    problem(found, found.status_code)


@pytest.mark.parametrize(('method', 'path', 'status'), [
    ('GET', '/nowhere', 404), ('GET', '/v1/read', 405), ('POST', '/v1/read?line=perhaps', 422), ('POST', '/v1/read?lines=true', 422)])
def test_every_refusal_has_one_shape(client, line, method, path, status):
    problem(client.request(method, path, files={'file': line}), status)


def test_a_fault_of_ours_shows_nothing_of_our_insides(engine, tmp_path, line, monkeypatch):
    with started(Shelf(engine), tmp_path) as client:
        def broken(*_, **more): raise RuntimeError('/secret/place: password 1234')
        monkeypatch.setattr(serving, 'read_without_detector', broken)
        assert problem(client.read(line), 500) == serving_http.INTERNAL_ERROR
        assert [json.loads(o)['error'] for o in client.post('/v1/batch', files=[('file', line)]*2).text.splitlines()] == [serving_http.INTERNAL_ERROR]*2
        until(lambda: client.service.taken == 0) # given back once the answer is out
        monkeypatch.undo()
        assert client.read(line).status_code == 200


# Addresses

def test_an_address_is_fetched_and_read_where_that_is_allowed(engine, tmp_path, line, monkeypatch):
    async def fetched(url, most, timeout_s):
        assert url == 'https://example.org/line.png'
        return io.BytesIO(line)
    monkeypatch.setattr(uploads, 'fetch_image', fetched) # over the network: see the tests below
    with started(Shelf(engine), tmp_path, ApiSettings(allow_urls=True)) as client:
        found = client.post('/v1/read', data={'url': 'https://example.org/line.png'}, files={'x': b''}, params={'line': True})
        assert found.json()['sha256'] == sha256(line).hexdigest()
        assert found.json()['text'] == line_batch(1, 3, 'v1', 'test')[0][1]


def test_addresses_are_refused_unless_allowed(client):
    assert 'Send the image itself' in problem(client.post('/v1/read', data={'url': 'https://example.org/page.png'}, files={'x': b''}), 422)


@pytest.mark.parametrize('address', ['127.0.0.1', '10.1.2.3', '192.168.0.1', '169.254.169.254', '0.0.0.0', '::1', 'fe80::1%eth0', '::ffff:127.0.0.1',
                                     '224.0.0.1', '100.64.0.1', 'fd00::1', '::10.0.0.1', '::ffff:0:10.0.0.1', '2002:a00:1::1', '64:ff9b::a00:1',
                                     '64:ff9b:1::a00:1', 'fec0::1', 'fc00::1', '2001:0:a00:1::1', '4000::1'])
def test_addresses_inside_our_walls_are_not_public(address):
    assert not is_public(address)


def test_a_public_address_is_public():
    assert is_public('8.8.8.8')
    assert is_public('2606:4700::1111')


@pytest.mark.parametrize('url', ['http://127.0.0.1/x', 'ftp://example.org/x', 'https://', 'file:///etc/passwd', 'https://user:pw@example.org/x', 'nonsense',
                                 'https://127.0.0.1/x', 'https://localhost/x', 'https://[::1]/x', 'https://x\x00y/', 'https://[nonsense', 'https://2130706433/x'])
def test_allowed_or_not_these_addresses_are_refused(engine, tmp_path, url):
    with started(Shelf(engine), tmp_path, ApiSettings(allow_urls=True)) as client:
        problem(client.post('/v1/read', data={'url': url}, files={'x': b''}), 422)


def test_the_host_that_is_asked_for_is_looked_up_and_reached_over_ipv4_where_it_can_be(monkeypatch):
    asked = []
    def look_up(host, *_, **more):
        asked.append(host)
        return [(0, 0, 0, '', (o, 443)) for o in ('93.184.216.34', '2606:4700::1111')]
    def allowed(address): return asked.append(address)
    monkeypatch.setattr(socket, 'getaddrinfo', look_up)
    assert public_address('example.org') == '93.184.216.34' # many machines have no IPv6
    with pytest.raises(HTTPException, match='not public'): asyncio.run(fetch_image('https://faß.de/page', 10, 20, allowed))
    assert asked[:2] == ['example.org', 'xn--fa-hia.de'] # as in the Host header, and not fass.de


@pytest.fixture(scope='module')
def certificate(tmp_path_factory):
    "A certificate for localhost that nobody else trusts, and its key."
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    folder, key = tmp_path_factory.mktemp('tls'), ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, 'localhost')]), datetime.now(UTC)
    made = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
            .not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName('localhost')]), False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), True).sign(key, hashes.SHA256()))
    (folder/'cert.pem').write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder/'key.pem').write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return folder/'cert.pem', folder/'key.pem'


@pytest.fixture(scope='module')
def elsewhere(certificate):
    "Another site, which speaks https."
    app = FastAPI()
    @app.get('/page')
    async def page(): return PlainTextResponse('the page')
    @app.get('/moved')
    async def moved(): return RedirectResponse('/page')
    @app.get('/large')
    async def large(): return PlainTextResponse('x'*10_000)
    with on_free_port(app, ssl_certfile=certificate[0], ssl_keyfile=certificate[1]) as url:
        yield url.replace('127.0.0.1', 'localhost'), ssl.create_default_context(cafile=certificate[0])


def test_what_is_fetched_comes_over_https_and_whole(elsewhere):
    url, trust = elsewhere
    def fetch(path, most=10**5, verify=trust): return asyncio.run(fetch_image(url + path, most, 20, lambda _: True, verify))
    with fetch('/page') as file:
        file.seek(0)
        assert file.read() == b'the page'
    for path, most, verify, status, words in (('/moved', 10**5, trust, 422, 'Redirects are not followed'), ('/large', 5000, trust, 413, 'came'),
                                              ('/page', 10**5, True, 422, 'Nothing could be fetched')): # the last does not trust it
        with pytest.raises(HTTPException, match=words) as e: fetch(path, most, verify)
        assert e.value.status_code == status


# Start and stop

def test_tls_is_switched_on_by_configuration(engine, tmp_path, certificate):
    limits = ApiSettings(tls_certificate=certificate[0], tls_key=certificate[1])
    app = create_app(Shelf(engine), tmp_path, limits)
    with on_free_port(app) as url:
        assert url.startswith('https://')
        trust = ssl.create_default_context(cafile=certificate[0])
        assert httpx.get(url.replace('127.0.0.1', 'localhost') + '/health', verify=trust).status_code == 200


def test_half_of_tls_is_refused():
    with pytest.raises(ValueError, match='https needs both'): uvicorn_options(ApiSettings(tls_certificate='x.pem'))


def test_stopping_finishes_what_was_begun(held, tmp_path, line):
    with ThreadPoolExecutor(4) as pool:
        with started(Shelf(held), tmp_path) as client:
            found = [pool.submit(httpx.post, f'{client.url}/v1/read', files={'file': line}, headers=client.headers, timeout=60) for _ in range(3)]
            until(lambda: client.service.taken == 3)
            threading.Timer(.5, held.net.gate.set).start()
        assert [o.result().status_code for o in found] == [200]*3


def test_the_server_is_stopped_when_the_block_fails(engine, tmp_path):
    app = create_app(Shelf(engine), tmp_path)
    with pytest.raises(ZeroDivisionError), on_free_port(app) as url: 1/0 # noqa: B018
    with pytest.raises(httpx.ConnectError): httpx.get(url + '/health')


def test_an_answer_says_nothing_about_the_server(client):
    assert 'server' not in client.get('/health').headers


# The command line

def say(*words):
    found = CliRunner().invoke(main, [str(o) for o in words])
    return found.exit_code, found.output


def test_keys_are_managed_from_the_command_line(tmp_path):
    code, key = say('keys', 'add', 'ana', '--role', 'admin', '--folder', tmp_path)
    assert code == 0
    assert KeyStore(tmp_path/'keys.json').find(key.strip()).role == 'admin'
    assert json.loads(say('keys', 'list', '--folder', tmp_path)[1])['name'] == 'ana'
    assert say('keys', 'add', 'ana', '--folder', tmp_path)[0] == 2
    assert say('keys', 'revoke', 'ana', '--folder', tmp_path) == (0, '')
    assert say('keys', 'list', '--folder', tmp_path) == (0, '')


def test_a_damaged_file_of_keys_is_named(tmp_path):
    for text in ('{', '[{"name": "ana"}]'):
        (tmp_path/'keys.json').write_text(text)
        code, said = say('keys', 'list', '--folder', tmp_path)
        assert code == 2
        assert f'{tmp_path/"keys.json"} is damaged' in said


def test_a_record_that_is_not_there_is_asked_for_in_vain(tmp_path):
    assert say('audit', '--folder', tmp_path)[0] == 2
    assert 'There is no record in' in say('audit', '--folder', tmp_path)[1]


@pytest.mark.slow
def test_serve_says_what_is_wrong_before_it_says_that_it_serves(tmp_path, monkeypatch, root):
    monkeypatch.setenv('MLOPS_COURSE_PATHS__RUNS', str(tmp_path)) # no registry
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        code, said = say('serve', '--port', port, '--folder', tmp_path/'a')
    assert (code, 'Serving' in said) == (2, False)
    assert f'Port {port} of 127.0.0.1 cannot be opened' in said
    for name in ('CERTIFICATE', 'KEY'): monkeypatch.setenv(f'MLOPS_COURSE_SERVICES__API__TLS_{name}', str(tmp_path/f'{name}.pem'))
    code, said = say('serve', '--folder', tmp_path/'b')
    assert (code, 'Serving' in said) == (2, False)
    assert f"{tmp_path/'CERTIFICATE.pem'} and" in said
    for name in ('CERTIFICATE', 'KEY'): (tmp_path/f'{name}.pem').write_text('nonsense')
    assert say('serve', '--folder', tmp_path/'c')[0] == 2


def test_the_record_is_checked_from_the_command_line(record):
    path, receipts = record
    assert say('audit', *receipts, '--folder', path.parent) == (0, 'The record is whole\n')
    path.write_text(path.read_text().replace('ben', 'eve'))
    code, said = say('audit', '--folder', path.parent)
    assert code == 1
    assert 'line 2 was changed' in said
    assert say('audit', '--folder', path.parent/'nowhere')[0] == 2


def test_a_second_service_on_one_folder_is_told_in_one_line(record, monkeypatch, engine):
    path, _ = record
    monkeypatch.setattr(serving, 'ModelSource', lambda: Shelf(engine))
    audit = AuditLog(path)
    code, said = say('serve', '--folder', path.parent)
    audit.close()
    assert code == 2
    assert 'Another service writes to' in said


@pytest.mark.slow
@pytest.mark.skipif(os.name == 'nt', reason='Windows has no SIGTERM')
def test_a_terminated_process_finishes_what_it_began(tmp_path, root):
    key = KeyStore(tmp_path/'keys.json').add('ana')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    photo = (root/'data'/'pages'/'photo_simulated_1.jpg').read_bytes()
    command = [str(Path(sys.executable).with_name('mlops-course')), 'serve', '--port', str(port), '--folder', str(tmp_path)]
    env = os.environ | {'MLOPS_COURSE_PATHS__RUNS': str(tmp_path)} # no registry
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env)
    try:
        url = f'http://127.0.0.1:{port}'
        def up():
            assert process.poll() is None, process.stdout.read()
            try: return httpx.get(url + '/ready').status_code == 200
            except httpx.TransportError: return False
        until(up, 120)
        with ThreadPoolExecutor(4) as pool:
            found = [pool.submit(httpx.post, url + '/v1/read', files={'file': photo}, headers={'Authorization': f'Bearer {key}'}, timeout=60) for _ in range(4)]
            until(lambda: 'ocr_places_taken 4.0' in httpx.get(url + '/metrics').text, 30)
            process.send_signal(signal.SIGTERM)
            assert [o.result().status_code for o in found] == [200]*4
        assert process.wait(30) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
    assert verify_audit(tmp_path/'audit.jsonl', [o.result().headers['x-audit'] for o in found]) == []
    with pytest.raises(httpx.ConnectError): httpx.get(url + '/health')


@pytest.mark.slow
def test_a_new_champion_is_taken_up_under_load_and_nothing_is_lost(tmp_path, line):
    from mlops_course.base.settings import Gates
    from mlops_course.reader.package import promote_reader, register_reader
    from mlops_course.reader.tracked import train_tracked
    from mlops_course.reader.training import Recipe
    from mlops_course.reader.trials import draw_trial_lines
    from mlops_course.reader.weights import load_recogniser
    from mlops_course.store import open_store
    store = open_store(tmp_path/'mlflow.db')
    lines = draw_trial_lines(24, 0, ('render',))
    source = ModelSource(store)
    assert source.load().why == 'the recogniser in data/recogniser, since the registry has no champion of reader yet'
    net = load_recogniser(serving.load_settings().paths.data/'recogniser')
    _, run_id = train_tracked(Recipe(steps=1, batch=2, rate=1e-5), store, net=net)
    register_reader(store, run_id, lines, 'ana', 'a test')
    with started(source, tmp_path/'serving', role='admin') as client:
        found, stop = [], threading.Event()
        def ask():
            while not stop.is_set(): found.append(client.read(line, line=True))
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for o in threads: o.start()
        try:
            assert promote_reader(store, lines, 'ana', 'a test', gates=Gates(slices=('render',), lines=2, p95_ms=1e6)).passed
            assert client.post('/v1/models/reload').json() == {'before': 'shipped', 'now': 'reader/1'}
            n = len(found)
            until(lambda: len(found) > n + 8)
        finally:
            stop.set()
            for o in threads: o.join()
        assert {o.status_code for o in found} == {200}
        assert {o.json()['model'] for o in found} == {'shipped', 'reader/1'}
        assert len({o.json()['text'] for o in found}) == 1
        assert client.get('/v1/models').json()['registered'][0]['aliases'] == ['champion']
        assert verify_audit(tmp_path/'serving'/'audit.jsonl', [o.headers['x-audit'] for o in found]) == []


# Another model than the reader

TOY = """
import sys
from types import SimpleNamespace
from typing import Annotated

import joblib
from fastapi import Depends, Request, Response

from mlops_course.admission import arriving, entered
from mlops_course.batching import isolate_failures
from mlops_course.http import http_error
from mlops_course.keys import ApiKey
from mlops_course.service import Service
from mlops_course.service_app import build_app
from mlops_course.serving import ServedModel, key_dependency
from mlops_course.slots import read_release


class Flowers:
    def __init__(self, path): self.path = path
    def load(self):
        release = read_release(self.path)
        engine = SimpleNamespace(name='flowers', net=joblib.load(f'{release.folder}/model.joblib'))
        return ServedModel(engine, release.version, 'of the test')
    def models(self): return []


def work(model, rows):
    def labels(rows): return [(int(o.argmax()), float(o.max())) for o in model.engine.net.predict_proba(rows)]
    return isolate_failures(labels, rows)


def add_flowers(app, service):
    known = key_dependency(service.keys)
    @app.post('/v1/predict')
    async def predict(request: Request, response: Response, key: Annotated[ApiKey, Depends(known)]) -> dict:
        async with entered(service, request, key, 1000) as visit:
            try:
                async with arriving(service, visit): row = [float(o) for o in await visit.request.json()]
            except (TypeError, ValueError) as e: raise http_error(422, 'A list of four numbers was expected') from e
            async with service.on_record(key.name, 'predict', engine=service.model.engine.name) as entry:
                label, sure = await service.result(row, entry, visit.until)
        service.meters.observe(entry, sure)
        response.headers['X-Audit'] = entry['receipt']
        return {'label': label, 'model': entry['model']}
    @app.get('/modules')
    async def modules() -> list: return [o for o in sys.modules if o.startswith('mlops_course')]


def serve_flowers(path, folder, limits):
    return build_app(Service(Flowers(path), folder, limits, work, 'flowers', 'rows'), add_flowers, title='Flowers')
"""

STORY = """
import json
import sys
from pathlib import Path
from time import sleep

import httpx
import joblib
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from toy import serve_flowers

from mlops_course.base.history import AuditLog, verify_audit
from mlops_course.base.servers import on_free_port
from mlops_course.base.settings import ApiSettings
from mlops_course.load import LoadGenerator
from mlops_course.release import run_canary, decision_recorder
from mlops_course.router import Router, Routes
from mlops_course.slots import Release, Slot, issue_keys
from mlops_course.verdicts import CanaryPolicy

work = Path(sys.argv[1])
rows, labels = load_iris(return_X_y=True)
def release(version, columns=4):
    (work/version).mkdir()
    joblib.dump(LogisticRegression(max_iter=1000).fit(rows[:, :columns], labels), work/version/'model.joblib')
    return Release(str(work/version), version)
good, better, broken = release('flowers-1'), release('flowers-2'), release('flowers-3', 3) # the last wants three numbers
said = {}

(work/'alone').mkdir()
(work/'alone'/'release.json').write_text(json.dumps(good._asdict()))
app = serve_flowers(work/'alone'/'release.json', work/'alone', ApiSettings(rate=.01, burst=3))
headers = {'Authorization': f"Bearer {app.state.service.keys.add('ana')}"}
with on_free_port(app) as url, httpx.Client(base_url=url, headers=headers, trust_env=False) as client:
    def ask(**more): return client.post('/v1/predict', **more)
    answer = ask(json=rows[0].tolist())
    said['answer'] = answer.json()
    said['statuses'] = [httpx.post(f'{url}/v1/predict', json=[]).status_code, *(ask(**o).status_code for o in (
        {'json': 'x'}, {'content': b' '*2000}, {'json': [1]}))] # no key, no list, too much, and one too often
    said['metrics'] = client.get('/metrics').text
said['audit'] = verify_audit(work/'alone'/'audit.jsonl', [answer.headers['X-Audit']])

slots = [Slot(work/o, good, 'toy:serve_flowers', 'flowers') for o in ('blue', 'green')]
audit = AuditLog(work/'audit.jsonl')
with slots[0] as blue, slots[1] as green:
    for o in slots: o.wait()
    keys = list(issue_keys(slots, [f'user {o}' for o in range(200)]).values())
    requests = [{'url': '/v1/predict', 'json': o.tolist()} for o in rows]
    def released(champion, challenger, new):
        challenger.put(new)
        router = Router(Routes(champion.url, challenger.url, shadow=.5), '/v1/predict', lambda a, b: a['label'] != b['label'])
        with on_free_port(router) as url, LoadGenerator(url, keys, requests) as load:
            verdicts = list(run_canary(router, champion, challenger, (.3, 1.), CanaryPolicy(least=(20, 40), tolerance=5.), decision_recorder(audit)))
            n = len(load.answers)
            while len(load.answers) < n + 10: sleep(.02)
        return {'whats': [o.what for o in verdicts], 'reason': verdicts[-1].reason, 'lost': load.lost, 'compared': router.counts['compared'],
                'champion': httpx.get(f'{router.routes.champion}/ready', trust_env=False).json()['model']}
    said['forward'], said['back'] = released(blue, green, better), released(green, blue, broken)
    said['modules'] = [*sys.modules, *httpx.get(f'{green.url}/modules', trust_env=False).json()]
audit.close()
said['modules'] = [o for o in said['modules'] if o.startswith('mlops_course.')]
said['releases'] = verify_audit(work/'audit.jsonl'), len((work/'audit.jsonl').read_text().splitlines())
print(json.dumps(said))
"""


@pytest.mark.slow
def test_another_model_is_served_released_and_taken_back_without_anything_of_the_reader(tmp_path, root):
    for name, text in (('toy', TOY), ('story', STORY)): (tmp_path/f'{name}.py').write_text(text)
    (tmp_path/'work').mkdir()
    env = os.environ | {'PYTHONPATH': str(tmp_path)} # for the slots as well
    done = subprocess.run([sys.executable, tmp_path/'story.py', tmp_path/'work'], cwd=root, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said['answer'] == {'label': 0, 'model': 'flowers-1'}
    assert said['statuses'] == [401, 422, 413, 429]
    for o in ('flowers_predictions_total{engine="flowers",model="flowers-1",status="200"} 1.0', 'flowers_batch_rows_count', 'flowers_places_taken',
              'flowers_refusals_total{status="429"} 1.0', 'flowers_confidence_bucket'):
        assert o in said['metrics']
    assert 'ocr' not in said['metrics']
    assert said['audit'] == []
    assert (said['forward']['whats'], said['forward']['champion'], said['forward']['lost']) == (['forward', 'done'], 'flowers-2', 0)
    assert said['forward']['compared'] > 0
    assert (said['back']['whats'], said['back']['reason'], said['back']['champion'], said['back']['lost']) == (['back'], 'errors', 'flowers-2', 0)
    assert said['releases'] == [[], 3]
    assert 'mlops_course.serving' in said['modules']
    assert [o for o in said['modules'] if o.startswith(('mlops_course.reader', 'mlops_course.tools'))] == []
