"Google Vision (lesson 14): the real client against a stand-in, breaker, budget, honest fallback, and the page in a browser."
import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import cv2
import httpx
import numpy as np
import pybreaker
import pytest
from click.testing import CliRunner

from mlops_course.base.files import find_root
from mlops_course.base.images import load_image
from mlops_course.base.servers import on_free_port
from mlops_course.base.settings import ApiSettings, VisionSettings
from mlops_course.http import INTERNAL_ERROR
from mlops_course.reader.breaker import FAILURE_REASONS, CircuitBreaker, VisionError, call_with_retry
from mlops_course.reader.budget import MonthlyBudget, monthly_cost_usd, monthly_image_limit
from mlops_course.reader.engines import Engine
from mlops_course.reader.google import MAX_CALL_IMAGES, SIMULATED_FAULTS, FakeVisionServer, to_annotation
from mlops_course.reader.layout import Line, Reading, draw_boxes
from mlops_course.reader.line_engines import open_engine
from mlops_course.reader.page import SERVICE_ENGINE, add_page, message_html, read_and_audit, reading_caption
from mlops_course.reader.serving import create_app, read_image
from mlops_course.reader.vision import (
    MAX_IMAGE_BYTES,
    FallbackEngine,
    FallbackReading,
    GoogleVision,
    annotation_lines,
    connect_google,
    connect_local,
    encode_image,
)
from mlops_course.scoring import cer
from mlops_course.tools.cli import main

ROOT = find_root()
PAGE = ROOT/'data'/'pages'/'render_1.png'
TEXTS = ['Route 110', '07:47', "St. John's Rd 5/6"]


def box(left, top, right, bottom): return [[left, top], [right, top], [right, bottom], [left, bottom]]


def fixed(image):
    "Three lines, whatever the image: what comes back must be these."
    return [Line(text, .9, box(10, 10 + 30*i, 10 + 12*len(text), 30 + 30*i)) for i, text in enumerate(TEXTS)]


@pytest.fixture
def stand_in():
    with FakeVisionServer(Engine('fixed', fixed)) as server: yield server


@pytest.fixture
def vision(stand_in, tmp_path):
    with connect_local(stand_in.address) as client:
        yield GoogleVision(client, MonthlyBudget(tmp_path/'budget.db', 100), deadline_s=1., first_wait_s=.02)


@pytest.fixture(scope='module')
def white(): return np.full((120, 300, 3), 255, np.uint8)


def local(image): return [Line('read here', .5, box(0, 0, 50, 10))]


class Clock:
    now = 0.
    def __call__(self): return self.now


# --- the protocol

def test_a_real_page_comes_back_as_it_was_read(tmp_path):
    engine = open_engine('custom')
    with FakeVisionServer(engine) as server, connect_local(server.address) as client:
        found = Engine('vision', GoogleVision(client, MonthlyBudget(tmp_path/'b.db', 9)).read)(load_image(PAGE))
    own = engine(load_image(PAGE))
    assert found.text == own.text
    for ours, theirs in zip(own.lines, found.lines):
        assert np.abs(np.array(ours.box) - theirs.box).max() <= 1
        assert ours.confidence == pytest.approx(theirs.confidence, abs=1e-3)


def test_the_answer_has_pages_blocks_paragraphs_words_and_symbols(vision, white):
    answer, = vision.ask([encode_image(white)])
    page, = answer.full_text_annotation.pages
    assert (page.width, page.height) == (300, 120)
    words = [word for block in page.blocks for paragraph in block.paragraphs for word in paragraph.words]
    assert [''.join(o.text for o in word.symbols) for word in words][:5] == ['Route', '110', '07', ':', '47']
    for word in words:
        left = [min(v.x for v in o.bounding_box.vertices) for o in word.symbols]
        assert left == sorted(left)
        assert 0 < word.confidence <= 1
        assert len(word.bounding_box.vertices) == 4


def test_lines_keep_their_marks_and_spaces(vision, white):
    assert [o.text for o in vision.read(white)] == TEXTS


def test_a_slanted_line_keeps_its_corners():
    slanted = [[10, 10], [110, 40], [105, 60], [5, 30]]
    found, = annotation_lines(to_annotation(Reading('x', [Line('a tilted line', .7, slanted)], 0.), (100, 200)), (100, 200))
    assert np.abs(np.array(found.box) - slanted).max() <= 1


BREAKS = [('SPACE', 'ab cd'), ('SURE_SPACE', 'ab cd'), ('HYPHEN', 'ab-|cd'), ('EOL_SURE_SPACE', 'ab|cd'), ('UNKNOWN', 'abcd')]


@pytest.mark.parametrize(('kind', 'ends'), BREAKS)
def test_every_kind_of_break_is_understood(kind, ends):
    from google.cloud import vision as google
    def word(text, left, ending):
        vertices = [google.Vertex(x=x, y=y) for x, y in box(left, 0, left + 20, 10)]
        symbols = [google.Symbol(text=o) for o in text]
        symbols[-1].property.detected_break.type_ = google.TextAnnotation.DetectedBreak.BreakType[ending]
        return google.Word(symbols=symbols, bounding_box=google.BoundingPoly(vertices=vertices), confidence=.5)
    paragraph = google.Paragraph(words=[word('ab', 0, kind), word('cd', 30, 'LINE_BREAK')])
    found = annotation_lines(google.TextAnnotation(pages=[google.Page(blocks=[google.Block(paragraphs=[paragraph])])]), (50, 100))
    assert '|'.join(o.text for o in found) == ends


def test_a_blank_page_has_no_lines(tmp_path, white):
    with FakeVisionServer(Engine('blind', lambda image: [])) as server, connect_local(server.address) as client:
        assert GoogleVision(client, MonthlyBudget(tmp_path/'b.db', 9)).read(white) == []


def test_one_bad_image_does_not_spoil_the_batch(vision, white):
    good, bad, more = vision.ask([encode_image(white), b'no image', encode_image(white)])
    assert (good.error.code, bad.error.code, more.error.code) == (0, 3, 0)
    assert bad.error.message == 'Bad image data.'
    assert good.full_text_annotation.text == more.full_text_annotation.text != ''


def test_too_many_images_in_a_call_are_refused(vision, white):
    with pytest.raises(VisionError, match='Too many images') as caught: vision.ask([b'x']*(MAX_CALL_IMAGES + 1))
    assert caught.value.why == 'refused'


def test_a_large_photo_is_sent_as_jpeg(white):
    assert encode_image(white).startswith(b'\x89PNG')
    noise = np.random.default_rng(0).integers(0, 255, (1800, 1800, 3), dtype=np.uint8)
    data = encode_image(noise)
    assert data.startswith(b'\xff\xd8')
    assert len(data) <= MAX_IMAGE_BYTES
    assert cv2.imdecode(np.frombuffer(data, np.uint8), 1).shape == noise.shape


def test_the_stand_in_listens_on_this_machine_only_and_stops(white):
    with FakeVisionServer(Engine('fixed', fixed)) as server:
        host, port = server.address.split(':')
        assert host == '127.0.0.1'
        socket.create_connection((host, int(port)), timeout=5).close()
    with pytest.raises(OSError, match=r'refused|reset'): socket.create_connection((host, int(port)), timeout=5)


# --- what can go wrong, and one deadline for all of it

@pytest.mark.parametrize('fault', sorted(SIMULATED_FAULTS))
def test_every_fault_has_its_reason(vision, stand_in, white, fault):
    stand_in.fault = fault
    with pytest.raises(VisionError) as caught: vision.read(white)
    assert caught.value.why == ('deadline' if fault == 'slow' else fault)
    assert str(caught.value).startswith(FAILURE_REASONS[caught.value.why])


@pytest.mark.parametrize('fault', ['slow', 'unavailable'])
def test_the_deadline_holds_over_all_tries(vision, stand_in, white, fault):
    stand_in.next.extend(['unavailable', 'unavailable'])
    stand_in.fault = fault
    start = time.monotonic()
    with pytest.raises(VisionError): vision.read(white)
    assert time.monotonic() - start < vision.deadline_s + .5
    assert stand_in.calls >= 3


def test_a_short_trouble_is_survived(vision, stand_in, white):
    stand_in.next.extend(['unavailable', 'unavailable', 'unavailable'])
    assert [o.text for o in vision.read(white)] == TEXTS
    assert (stand_in.calls, stand_in.images) == (4, 1)


@pytest.mark.parametrize('fault', ['quota', 'denied', 'failed', 'slow'])
def test_what_would_not_pass_is_not_tried_again(vision, stand_in, white, fault):
    stand_in.fault = fault
    with pytest.raises(VisionError): vision.read(white)
    assert stand_in.calls == 1


def test_a_server_that_is_gone_is_unavailable(vision, stand_in, white):
    stand_in.server.stop(0).wait()
    with pytest.raises(VisionError) as caught: vision.read(white)
    assert caught.value.why == 'unavailable'


def test_waiting_times_differ_and_grow(vision, stand_in, white, monkeypatch):
    waits = []
    monkeypatch.setattr('google.api_core.retry.retry_unary.time.sleep', waits.append)
    vision.deadline_s, vision.breaker = 5., CircuitBreaker(failures=99)
    for _ in range(20):
        stand_in.next.extend(['unavailable']*4)
        vision.read(white)
    rounds = np.array(waits).reshape(20, 4)
    assert (np.diff(rounds.mean(axis=0)) > 0).all()
    assert (rounds <= vision.first_wait_s*2.**np.arange(4)).all()
    assert len(set(waits)) == 80


def test_each_try_is_told_what_is_left():
    from google.api_core.exceptions import ServiceUnavailable
    told = []
    def call(left):
        told.append(left)
        if len(told) < 4: raise ServiceUnavailable('not yet')
        return 'read'
    assert call_with_retry(call, 5., .05) == 'read'
    assert told == sorted(told, reverse=True)
    assert all(0 < o <= 5 for o in told)


# --- the breaker

def failing(breaker, why='unavailable'):
    with pytest.raises(VisionError), breaker.asking(): raise VisionError(why)


def test_the_breaker_opens_after_so_many_failures_in_a_row():
    breaker = CircuitBreaker(failures=3)
    for _ in range(2): failing(breaker)
    with breaker.asking(): pass # one success begins the row anew
    for _ in range(2): failing(breaker)
    assert breaker.state == 'closed'
    failing(breaker)
    assert breaker.state == 'open'
    with pytest.raises(VisionError, match='30 s more') as caught, breaker.asking(): pytest.fail('asked')
    assert caught.value.why == 'resting'


@pytest.mark.parametrize('why', ['refused', 'budget'])
def test_what_is_not_google_s_health_does_not_open_it(why):
    breaker = CircuitBreaker(failures=1)
    for _ in range(3): failing(breaker, why)
    assert breaker.state == 'closed'


def test_an_error_of_ours_does_not_open_it_and_gives_the_turn_back():
    clock = Clock()
    breaker = CircuitBreaker(failures=1, rest_s=10, clock=clock)
    with pytest.raises(KeyError), breaker.asking(): raise KeyError('ours')
    assert breaker.state == 'closed'
    failing(breaker)
    clock.now = 11
    with pytest.raises(KeyError), breaker.asking(): raise KeyError('ours')
    assert breaker.state == 'half-open'
    with breaker.asking(): pass
    assert breaker.state == 'closed'


@pytest.mark.parametrize(('why', 'after'), [(None, 'closed'), ('refused', 'closed'), ('unavailable', 'open'), ('budget', 'half-open')])
def test_the_one_that_tries_decides(why, after):
    clock = Clock()
    breaker = CircuitBreaker(failures=2, rest_s=10, clock=clock)
    for _ in range(2): failing(breaker)
    clock.now = 10
    assert breaker.state == 'half-open'
    if why: failing(breaker, why)
    else:
        with breaker.asking(): pass
    assert breaker.state == after


def test_only_one_tries_while_it_is_half_open():
    clock = Clock()
    breaker = CircuitBreaker(failures=1, rest_s=10, clock=clock)
    failing(breaker)
    clock.now = 10
    with breaker.asking():
        assert breaker.state == 'half-open'
        for _ in range(3):
            with pytest.raises(VisionError), breaker.asking(): pytest.fail('a second one asked')


def test_of_many_threads_one_gets_through():
    clock = Clock()
    breaker = CircuitBreaker(failures=1, rest_s=10, clock=clock)
    failing(breaker)
    clock.now = 10
    together, asked = threading.Barrier(16), []
    def caller(i):
        together.wait()
        try:
            with breaker.asking():
                asked.append(i)
                time.sleep(.05)
        except VisionError: pass
    with ThreadPoolExecutor(16) as pool: list(pool.map(caller, range(16)))
    assert len(asked) == 1
    assert breaker.state == 'closed'


def test_one_that_never_comes_back_does_not_block_the_others():
    clock = Clock()
    breaker = CircuitBreaker(failures=1, rest_s=10, clock=clock)
    failing(breaker)
    clock.now = 10
    breaker.enter()
    clock.now = 20
    with breaker.asking(): pass
    assert breaker.state == 'closed'


def test_late_news_changes_nothing():
    breaker = CircuitBreaker(failures=1)
    slow = breaker.enter()
    failing(breaker)
    breaker.leave(slow, True)
    assert breaker.state == 'open'


def calls_meet(call):
    "Whether two threads can be inside `call` at the same time."
    both = threading.Barrier(2)
    def meet(_):
        try: call(partial(both.wait, 1))
        except threading.BrokenBarrierError: return False
        return True
    with ThreadPoolExecutor(2) as pool: return list(pool.map(meet, range(2))) == [True, True]


def test_callers_do_not_wait_for_each_other_as_they_do_with_pybreaker():
    ours, theirs = CircuitBreaker(), pybreaker.CircuitBreaker(fail_max=9)
    def guarded(wait):
        with ours.asking(): wait()
    assert calls_meet(guarded)
    assert not calls_meet(theirs.call) # it holds its lock during the call: one slow answer blocks all callers


def test_an_open_breaker_asks_nobody(vision, stand_in, white):
    stand_in.fault = 'quota'
    for _ in range(5):
        with pytest.raises(VisionError): vision.read(white)
    assert stand_in.calls == 3
    with pytest.raises(VisionError) as caught: vision.read(white)
    assert caught.value.why == 'resting'
    assert vision.budget.spent == 0


# --- the budget

def test_the_budget_survives_a_restart(tmp_path):
    with MonthlyBudget(tmp_path/'b.db', 3).take(2): pass
    again = MonthlyBudget(tmp_path/'b.db', 3)
    assert again.spent == 2
    with pytest.raises(VisionError, match='2 of 3 images') as caught, again.take(2): pytest.fail('spent')
    assert caught.value.why == 'budget'
    with again.take(): pass
    assert again.spent == 3


def test_a_new_month_begins_at_zero(tmp_path):
    day = [datetime(2026, 1, 31, 23, tzinfo=UTC)]
    budget = MonthlyBudget(tmp_path/'b.db', 1, lambda: day[0])
    with budget.take(): day[0] = datetime(2026, 2, 1, tzinfo=UTC)
    assert budget.spent == 0
    day[0] = datetime(2026, 1, 31, tzinfo=UTC)
    assert budget.spent == 1


def test_what_is_given_back_goes_to_the_month_it_was_taken_from(vision, stand_in, white):
    day = [datetime(2026, 1, 31, tzinfo=UTC)]
    vision.budget.today = lambda: day[0]
    stand_in.fault = 'quota'
    real = vision.client
    class Midnight:
        def batch_annotate_images(self, **given):
            day[0] = datetime(2026, 2, 1, tzinfo=UTC)
            return real.batch_annotate_images(**given)
    vision.client = Midnight()
    with pytest.raises(VisionError): vision.read(white)
    assert vision.budget.spent == 0
    day[0] = datetime(2026, 1, 31, tzinfo=UTC)
    assert vision.budget.spent == 0


@pytest.mark.parametrize(('fault', 'billed'), [('', 1), ('quota', 0), ('denied', 0), ('slow', 1), ('failed', 1), ('unavailable', 0)])
def test_what_is_billed(vision, stand_in, white, fault, billed):
    stand_in.fault = fault
    FallbackEngine(vision, Engine('local', local))(white)
    assert vision.budget.spent == billed


def test_a_bad_image_in_a_batch_is_billed_with_the_others(vision, white):
    vision.ask([encode_image(white), b'no image'])
    assert vision.budget.spent == 2


def test_a_spent_budget_calls_nobody(vision, stand_in, white):
    vision.budget.most = 0
    with pytest.raises(VisionError) as caught: vision.read(white)
    assert (caught.value.why, stand_in.calls) == ('budget', 0)


SPENDER = """
import sys
from mlops_course.reader.breaker import VisionError
from mlops_course.reader.budget import MonthlyBudget
budget, got = MonthlyBudget(sys.argv[1], 150), 0
sys.stdin.readline() # all start together
for _ in range(100):
    try:
        with budget.take(): got += 1
    except VisionError: pass
print(got)
"""


@pytest.mark.slow # starts Python anew
def test_two_processes_cannot_both_spend_the_last_image(tmp_path):
    MonthlyBudget(tmp_path/'b.db', 150)
    both = [subprocess.Popen([sys.executable, '-c', SPENDER, str(tmp_path/'b.db')], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for o in both:
        o.stdin.write('\n')
        o.stdin.flush()
    got = [int(o.communicate(timeout=60)[0]) for o in both]
    assert sum(got) == 150
    assert MonthlyBudget(tmp_path/'b.db', 150).spent == 150


def test_a_damaged_budget_stops_the_spending(tmp_path):
    (tmp_path/'b.db').write_bytes(b'not a database at all'*50)
    with pytest.raises(ValueError, match="Look at Google's bill"): MonthlyBudget(tmp_path/'b.db', 1)


def test_a_budget_that_is_damaged_meanwhile_sends_nothing_and_another_reads(tmp_path):
    budget = MonthlyBudget(tmp_path/'b.db', 10)
    (tmp_path/'b.db').write_bytes(b'not a database at all'*50)
    asked = []
    client = SimpleNamespace(batch_annotate_images=lambda **_: asked.append(1))
    local = Engine('local', lambda image: [Line('by us', 1., [[0, 0], [1, 0], [1, 1], [0, 1]])])
    found = FallbackEngine(GoogleVision(client, budget), local)(np.zeros((32, 200, 3), np.uint8))
    assert (found.engine, found.text, found.why, asked) == ('local', 'by us', 'uncounted', [])
    assert str(tmp_path) not in found.said


@pytest.mark.parametrize(('budget_usd', 'most'), [(0, 1000), (1.5, 2000), (.3, 1200), (.001, 1000)])
def test_the_budget_buys_whole_images_beyond_the_free_ones(budget_usd, most):
    terms = VisionSettings(budget_usd=budget_usd)
    assert monthly_image_limit(terms) == most
    assert monthly_cost_usd(most, terms) <= budget_usd + 1e-9
    assert monthly_cost_usd(1000, terms) == 0


# --- the honest fallback

@pytest.mark.parametrize('fault', sorted(SIMULATED_FAULTS))
def test_the_answer_says_who_read_it_and_why(vision, stand_in, white, fault):
    engine = FallbackEngine(vision, Engine('local', local))
    stand_in.fault = fault
    answer = engine(white)
    assert (answer.engine, answer.text) == ('local', 'read here')
    assert answer.why in FAILURE_REASONS
    assert answer.said.startswith(FAILURE_REASONS[answer.why])
    stand_in.fault = ''
    answer = engine(white)
    assert (answer.engine, answer.why, answer.said) == ('vision', '', '')
    assert [o.text for o in answer.lines] == TEXTS


def test_seconds_include_the_wait_for_vision(vision, stand_in, white):
    stand_in.fault = 'slow'
    assert FallbackEngine(vision, Engine('local', local))(white).seconds >= vision.deadline_s


def test_a_stand_in_does_not_sign_as_google(stand_in, tmp_path, white):
    with connect_local(stand_in.address) as client:
        assert FallbackEngine(GoogleVision(client, MonthlyBudget(tmp_path/'b.db', 9), name='stand-in'), Engine('local', local))(white).engine == 'stand-in'


def test_an_error_of_ours_is_not_hidden(vision):
    with pytest.raises(TypeError, match='load_image'): FallbackEngine(vision, Engine('local', local))('page.png')


def test_the_account_can_be_written_as_json(vision, stand_in, white):
    stand_in.fault = 'quota'
    told = json.loads(json.dumps(FallbackEngine(vision, Engine('local', local))(white).to_dict()))
    assert (told['engine'], told['why'], told['text']) == ('local', 'quota', 'read here')


# --- with and without a key

WITHOUT = """
import json, sys
seen = []
sys.addaudithook(lambda name, args: seen.append(name) if name in ('socket.connect', 'socket.getaddrinfo', 'socket.sendto') else None)
from mlops_course.base.images import load_image
from mlops_course.reader.vision import open_vision
answer = open_vision()(load_image(sys.argv[1]))
print(json.dumps([answer.engine, answer.why, answer.text, seen, [o for o in ('grpc', 'google.cloud.vision', 'google.auth') if o in sys.modules]]))
"""


@pytest.mark.slow # starts Python anew
def test_without_a_key_nothing_leaves_the_machine():
    env = os.environ | {'GOOGLE_APPLICATION_CREDENTIALS': ''}
    done = subprocess.run([sys.executable, '-c', WITHOUT, str(PAGE)], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    engine, why, text, seen, loaded = json.loads(done.stdout)
    assert (engine, why) == ('custom', 'credentials')
    assert cer(text, open_engine('custom')(load_image(PAGE)).text) == 0
    assert (seen, loaded) == ([], []) # no connection, and not even the means to make one


def key_file(folder):
    "A key file of the right form for an account that does not exist."
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import rsa
    pem = rsa.generate_private_key(65537, 2048).private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()).decode()
    path = folder/'key.json'
    path.write_text(json.dumps({'type': 'service_account', 'project_id': 'p', 'private_key_id': '1', 'private_key': pem,
                                'client_email': 'reader@p.iam.gserviceaccount.com', 'client_id': '1', 'token_uri': 'https://oauth2.googleapis.com/token'}))
    return path


def test_a_key_that_is_not_there_is_said_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match='GOOGLE_APPLICATION_CREDENTIALS'): connect_google(tmp_path/'none.json')


@pytest.mark.parametrize('text', ['', 'no json', '{}', '{"type": "service_account", "client_email": "a", "token_uri": "b", "private_key": "SECRET"}'])
def test_a_key_that_is_none_is_said_without_showing_it(tmp_path, text):
    (tmp_path/'key.json').write_text(text)
    with pytest.raises(ValueError, match='no JSON key of a service account') as caught: connect_google(tmp_path/'key.json')
    assert 'SECRET' not in str(caught.value)


OVER_TLS = """
import json, sys
from pathlib import Path
import numpy as np
from mlops_course.reader.engines import Engine
from mlops_course.reader.budget import MonthlyBudget
from mlops_course.reader.vision import GoogleVision, connect_google
key, address, budget = sys.argv[1:]
with connect_google(key, address) as client:
    print(json.dumps([o.text for o in GoogleVision(client, MonthlyBudget(budget, 9), deadline_s=20).read(np.full((120, 300, 3), 255, np.uint8))]))
"""


@pytest.mark.slow # starts Python anew
def test_with_a_key_the_same_code_speaks_tls_and_proves_who_it_is(tmp_path):
    "All of the way to Google except Google: its client, its key file, TLS, a signed token; the certificate is ours."
    import grpc
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, 'localhost')])
    made = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(private.public_key()).serial_number(1)
            .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC)).not_valid_after(datetime(2090, 1, 1, tzinfo=UTC))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName('localhost')]), False).sign(private, hashes.SHA256()))
    certificate = made.public_bytes(s.Encoding.PEM)
    (tmp_path/'roots.pem').write_bytes(certificate)
    pem = private.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    tokens = []
    class Watched(FakeVisionServer):
        def listen(self): return self.server.add_secure_port('127.0.0.1:0', grpc.ssl_server_credentials([(pem, certificate)]))
        def batch(self, request, context):
            tokens.append(dict(context.invocation_metadata()).get('authorization', ''))
            return super().batch(request, context)
    with Watched(Engine('fixed', fixed)) as server:
        env = os.environ | {'GRPC_DEFAULT_SSL_ROOTS_FILE_PATH': str(tmp_path/'roots.pem'), 'no_grpc_proxy': 'localhost'}
        command = [sys.executable, '-c', OVER_TLS, str(key_file(tmp_path)), server.address.replace('127.0.0.1', 'localhost'), str(tmp_path/'b.db')]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == TEXTS
    assert [o.startswith('Bearer ey') for o in tokens] == [True]


def test_the_command_line_says_who_read_and_why(monkeypatch):
    monkeypatch.setenv('GOOGLE_APPLICATION_CREDENTIALS', '')
    done = CliRunner().invoke(main, ['read', str(PAGE), '--engine', 'vision'])
    told = json.loads(done.stdout)
    assert (done.exit_code, told['engine'], told['why']) == (0, 'custom', 'credentials')


def test_the_command_line_stops_at_a_key_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv('GOOGLE_APPLICATION_CREDENTIALS', str(tmp_path/'none.json'))
    done = CliRunner().invoke(main, ['read', str(PAGE), '--engine', 'vision'])
    assert done.exit_code == 2
    assert 'GOOGLE_APPLICATION_CREDENTIALS' in done.stderr


# --- the page

def test_the_caption_counts_what_is_doubtful():
    reading = Reading('x', [Line('a', .9, box(0, 0, 9, 9)), Line('b', .5, box(0, 20, 9, 29))], .0421)
    assert reading_caption(reading) == '**2** lines · confidence **0.70**, 1 doubtful · **42** ms'
    assert reading_caption(Reading('x', [], .1)) == '**0** lines · **100** ms'


def test_the_caption_says_who_read_instead():
    said = reading_caption(FallbackReading('custom', [], .1, 'quota', 'Google says no'))
    assert '`custom` instead: Google says no' in said
    assert 'instead' not in reading_caption(FallbackReading('vision', [], .1, '', ''))


def test_a_message_stays_text():
    assert '<b>' not in message_html('<b>bold</b>')
    assert 'role="alert"' in message_html('x')
    assert message_html('') == ''


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The service with its page, beside a stand-in for Vision that reads with our own engine."
    folder, outside = tmp_path_factory.mktemp('site'), []
    def note(event, args): # for as long as Python runs: a hook cannot be taken away
        if event == 'socket.connect' and isinstance(args[1], tuple) and args[1][0] not in ('127.0.0.1', '::1'): outside.append(args[1])
        if event == 'socket.getaddrinfo' and args[0] not in (None, '127.0.0.1', 'localhost', '0.0.0.0'): outside.append(args[0])
    sys.addaudithook(note)
    own = open_engine('custom')
    with FakeVisionServer(own) as far, connect_local(far.address) as client:
        google = GoogleVision(client, MonthlyBudget(folder/'budget.db', 1000), CircuitBreaker(failures=99), name='stand-in')
        app = create_app(folder=folder/'service', limits=ApiSettings(rate=1000, burst=1000, max_pixels=1_000_000, image_mb=2))
        add_page(app, {'Vision': FallbackEngine(google, own), 'third': own})
        with on_free_port(app) as url:
            yield SimpleNamespace(url=url, app=app, service=app.state.service, far=far, own=own, folder=folder, outside=outside,
                                  key=app.state.service.keys.add('ana'))


@contextmanager
def signed_in(browser, site, name, key, **size):
    "A page of the browser in which `name` has signed in; it notes every address it asks for."
    tab = browser.new_page(viewport=size)
    tab.set_default_timeout(30_000)
    tab.asked, tab.errors = [], []
    tab.on('request', lambda o: tab.asked.append(o.url))
    tab.on('pageerror', lambda o: tab.errors.append(str(o)))
    try:
        tab.goto(f'{site.url}/page')
        tab.get_by_label('username').fill(name)
        tab.get_by_label('password').fill(key)
        tab.get_by_role('button', name='Login').click()
        tab.get_by_role('button', name='Read', exact=True).wait_for()
        yield tab
    finally: tab.close()


@pytest.fixture(scope='module')
def tab(browser, site):
    with signed_in(browser, site, 'ana', site.key, width=1300, height=1000) as opened: yield opened


def send(tab, path):
    "Put an image on the page, in place of the one before, and press the button."
    away = tab.get_by_label('Remove Image')
    if away.count():
        away.first.click()
        tab.wait_for_function("() => ![...document.querySelectorAll('.read')].some(o => o.checkVisibility())") # old results are gone
    if path:
        with tab.expect_response(lambda o: '/upload' in o.url): tab.locator('input[type=file]').first.set_input_files(path)
        tab.get_by_label('Remove Image').first.wait_for()
    tab.get_by_role('button', name='Read', exact=True).click()


def box_of(tab, name): return tab.locator('label', has_text=f'Text from {name}').locator('textarea')


def text_of(tab, name):
    "What stands in the box of an engine, once it is there."
    tab.wait_for_function("name => [...document.querySelectorAll('label')].some(o => o.innerText.includes(name) && o.querySelector('textarea')?.value)",
                          arg=f'Text from {name}')
    return box_of(tab, name).input_value()


def alert(tab, words):
    "The message, once it holds `words`."
    found = tab.get_by_role('alert').filter(has_text=words)
    found.wait_for()
    return found.inner_text()


@pytest.mark.slow
class TestPage:
    "What people see, in Chromium."

    def test_a_fault_shows_nothing_of_our_insides_and_leaves_what_was_read(self, tab, site, monkeypatch):
        def broken(self, image): raise RuntimeError('/secret/place: boom')
        with monkeypatch.context() as broke:
            broke.setattr(FallbackEngine, '__call__', broken)
            send(tab, PAGE)
            alert(tab, INTERNAL_ERROR)
        assert text_of(tab, SERVICE_ENGINE) == site.own(load_image(PAGE)).text
        assert 'secret' not in tab.locator('body').inner_text()

    def test_a_picture_of_the_camera_is_read(self, browser, site):
        before = len((site.folder/'service'/'audit.jsonl').read_text().splitlines())
        with signed_in(browser, site, 'ana', site.key, width=1300, height=1000) as tab: # Chromium's camera films a bouncing ball
            tab.get_by_label('Capture from camera').click()
            tab.get_by_text('Click to Access Webcam').click()
            # Gradio drops a click that comes before the first frame
            tab.wait_for_function("() => [...document.querySelectorAll('video')].some(v => v.videoWidth && v.currentTime > 0)")
            tab.get_by_label('capture photo').click()
            tab.get_by_label('Remove Image').first.wait_for()
            tab.get_by_role('button', name='Read', exact=True).click()
            tab.get_by_alt_text(f'The page, with boxes by {SERVICE_ENGINE}').wait_for()
        entry = json.loads((site.folder/'service'/'audit.jsonl').read_text().splitlines()[before])
        assert (entry['who'], entry['what'], entry['status']) == ('ana', 'read', 200)

    def test_text_and_boxes_of_an_uploaded_page(self, tab, site):
        send(tab, PAGE)
        image = load_image(PAGE)
        reading = site.own(image)
        for name in (SERVICE_ENGINE, 'Vision'): assert text_of(tab, name) == reading.text
        for name in (SERVICE_ENGINE, 'Vision'):
            shown = tab.get_by_alt_text(f'The page, with boxes by {name}')
            shown.wait_for()
            data = tab.request.get(shown.get_attribute('src')).body()
            got = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
            expected = draw_boxes(image, reading)
            drawn = (expected != image).any(axis=2)
            assert drawn.sum() > 1000
            assert got.shape == expected.shape
            assert np.abs(got[drawn].astype(int) - expected[drawn]).mean() < 40 # the browser gets a compressed picture
            assert np.abs(got[drawn].astype(int) - image[drawn]).mean() > 80 # and it is not the bare page
        assert tab.get_by_text('34 lines').count() == 2
        assert not box_of(tab, 'third').is_visible()

    def test_a_broken_file_gets_a_sentence_and_no_old_results(self, tab, tmp_path):
        (tmp_path/'torn.png').write_bytes(PAGE.read_bytes()[:4000])
        send(tab, tmp_path/'torn.png')
        said = alert(tab, 'was cut off')
        assert str(tmp_path) not in said
        assert 'gradio' not in said
        assert not box_of(tab, SERVICE_ENGINE).is_visible()

    def test_other_refusals_say_what_to_do(self, tab, tmp_path):
        (tmp_path/'page.png').write_text('<html>not found</html>')
        cv2.imwrite(str(tmp_path/'huge.png'), np.full((1001, 1000), 255, np.uint8))
        (tmp_path/'heavy.png').write_bytes(PAGE.read_bytes() + bytes(2_100_000))
        send(tab, None)
        assert 'no image yet' in alert(tab, 'There is no image')
        send(tab, tmp_path/'page.png')
        assert 'is not an image' in alert(tab, 'Expected a JPEG')
        send(tab, tmp_path/'huge.png')
        assert 'Make it smaller' in alert(tab, '1,000×1,001')
        tab.get_by_label('Remove Image').first.click()
        tab.locator('input[type=file]').first.set_input_files(tmp_path/'heavy.png')
        tab.get_by_text('exceed the maximum allowed size').wait_for()

    def test_a_busy_service_says_so(self, tab, site):
        site.service.taken += site.service.limits.places
        try:
            send(tab, PAGE)
            assert 'try again' in alert(tab, 'places are taken')
        finally: site.service.taken -= site.service.limits.places

    def test_the_fallback_is_seen(self, tab, site):
        site.far.fault = 'quota'
        try:
            send(tab, PAGE)
            text_of(tab, 'Vision')
            tab.get_by_text('Read by custom instead: Vision says that we ask too often').wait_for()
        finally: site.far.fault = ''

    def test_a_revoked_key_reads_no_more(self, browser, site):
        with signed_in(browser, site, 'ben', site.service.keys.add('ben'), width=800, height=900) as ben:
            site.service.keys.revoke('ben')
            send(ben, PAGE)
            assert 'Ask for a new one' in alert(ben, 'revoked')

    def test_everything_fits_on_a_phone(self, browser, site):
        with signed_in(browser, site, 'ana', site.key, width=390, height=844) as phone:
            send(phone, PAGE)
            text_of(phone, 'Vision')
            assert phone.evaluate('() => { scrollTo(500, 0); return scrollX; }') == 0
            sides = [box_of(phone, name).bounding_box() for name in (SERVICE_ENGINE, 'Vision')]
            assert sides[1]['y'] > sides[0]['y'] + sides[0]['height'] # one below the other
            if shots := os.environ.get('MLOPS_COURSE_SHOTS'): phone.screenshot(path=f'{shots}/page_phone.png', full_page=True)

    def test_engines_stand_side_by_side_on_a_wide_screen(self, tab):
        send(tab, PAGE)
        text_of(tab, 'Vision')
        sides = [box_of(tab, name).bounding_box() for name in (SERVICE_ENGINE, 'Vision')]
        assert abs(sides[0]['y'] - sides[1]['y']) < 5
        assert sides[1]['x'] > sides[0]['x'] + sides[0]['width']
        if shots := os.environ.get('MLOPS_COURSE_SHOTS'): tab.screenshot(path=f'{shots}/page_wide.png', full_page=True)

    def test_nothing_was_asked_of_anybody_else(self, tab, site):
        assert [o for o in tab.asked if not o.startswith((f'{site.url}/', 'data:', 'blob:'))] == []
        assert tab.errors == []

    def test_the_server_called_nobody_either(self, tab, site):
        send(tab, PAGE)
        text_of(tab, 'Vision')
        assert site.outside == []

    def test_all_words_stand_out_from_what_is_behind_them(self, tab):
        from test_site import FAINT
        send(tab, PAGE)
        text_of(tab, 'Vision')
        assert tab.evaluate(FAINT) == []


@pytest.mark.slow
def test_the_page_lets_nobody_in_without_a_key(site):
    with httpx.Client(base_url=site.url, follow_redirects=True) as http:
        assert http.post('/page/gradio_api/upload', files={'files': ('x.png', b'x')}).status_code == 401
        assert http.post('/page/gradio_api/queue/join', json={'data': [None, []], 'fn_index': 0, 'session_hash': 'x'}).status_code == 401
        for name, key in (('ana', 'guess'), ('ben', site.key), ('', '')):
            assert http.post('/page/login', data={'username': name, 'password': key}).status_code >= 400


@pytest.mark.slow
def test_the_page_does_not_cost_the_service_its_routes(site):
    assert httpx.get(f'{site.url}/health').status_code == 200
    assert httpx.post(f'{site.url}/v1/read', files={'file': PAGE.read_bytes()}).status_code == 401
    told = httpx.post(f'{site.url}/v1/read', files={'file': PAGE.read_bytes()}, headers={'Authorization': f'Bearer {site.key}'}).json()
    assert told['text'] == site.own(load_image(PAGE)).text


@pytest.mark.slow
def test_the_camera_does_not_mirror_and_looks_outwards(site):
    import gradio as gr
    photo = next(o for o in site.app.routes[-1].app.get_blocks().blocks.values() if isinstance(o, gr.Image) and o.interactive is not False)
    assert set(photo.sources) == {'upload', 'webcam', 'clipboard'}
    assert photo.webcam_options.mirror is False
    assert photo.webcam_options.constraints['video']['facingMode'] == 'environment'


@pytest.mark.slow
def test_a_slow_engine_does_not_take_the_service_with_it(tmp_path):
    import asyncio
    import io
    service_app = create_app(folder=tmp_path, limits=ApiSettings(timeout_s=30))
    service = service_app.state.service
    async def story():
        threads = ThreadPoolExecutor(4)
        async with service_app.router.lifespan_context(service_app):
            await read_image(service, io.BytesIO(PAGE.read_bytes()))
            slow = [asyncio.create_task(read_and_audit(service, 'ana', 'slow', lambda image: time.sleep(4) or Reading('slow', [], 4.),
                                                       io.BytesIO(PAGE.read_bytes()), load_image(PAGE), threads)) for _ in range(12)]
            await asyncio.sleep(.5)
            start = time.monotonic()
            await read_image(service, io.BytesIO(PAGE.read_bytes()))
            took = time.monotonic() - start
            for o in slow: o.cancel()
            await asyncio.gather(*slow, return_exceptions=True)
            threads.shutdown(wait=False, cancel_futures=True)
        return took
    with ThreadPoolExecutor(1) as thread: assert thread.submit(asyncio.run, story()).result() < 3 # a loop of its own: the browser has one here


@pytest.mark.slow
def test_every_engine_that_was_asked_is_on_record(site):
    import asyncio
    import io
    entries = (site.folder/'service'/'audit.jsonl').read_text(encoding='utf-8').splitlines()
    async def story(): # on the loop of this thread nothing of the site runs; the record is a file
        with ThreadPoolExecutor(1) as threads:
            return await read_and_audit(site.service, 'ana', 'third', site.own, io.BytesIO(PAGE.read_bytes()), load_image(PAGE), threads)
    count = partial(site.service.meters.registry.get_sample_value, 'ocr_predictions_total', {'engine': 'custom', 'model': '', 'status': '200'})
    before = count() or 0
    with ThreadPoolExecutor(1) as thread: thread.submit(asyncio.run, story()).result()
    assert count() == before + 1
    new = [json.loads(o) for o in (site.folder/'service'/'audit.jsonl').read_text(encoding='utf-8').splitlines()[len(entries):]]
    assert [(o['who'], o['what'], o['engine'], o['status']) for o in new] == [('ana', 'page, third', 'custom', 200)]
    assert new[0]['sha256'] == sha256(PAGE.read_bytes()).hexdigest()


@pytest.mark.slow
def test_serve_offers_the_page_when_asked(tmp_path):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    command = [sys.executable, '-c', 'from mlops_course.tools.cli import main; main()', 'serve', '--page', '--port', str(port), '--folder', str(tmp_path)]
    env = os.environ | {'GOOGLE_APPLICATION_CREDENTIALS': ''}
    server = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        until_s = time.monotonic() + 120
        while True:
            try:
                found = httpx.get(f'http://127.0.0.1:{port}/page/', timeout=10)
                break
            except httpx.TransportError:
                assert server.poll() is None, server.stdout.read()
                assert time.monotonic() < until_s
                time.sleep(.2)
        assert found.status_code == 200
        assert 'as password your key' in found.text
    finally: server.terminate()
    assert 'Its page for people: /page' in server.communicate(timeout=60)[0]


@pytest.mark.slow
@pytest.mark.parametrize('where', ['photo', 'stream', 'engines', 'address'])
def test_a_page_reads_only_what_was_uploaded(site, where, tmp_path):
    "Whoever has a key may write a program that sends any path or address; on a mounted page Gradio itself would follow it."
    secret = tmp_path/'secret.txt'
    secret.write_text('TOP SECRET')
    asked = []
    class Bait(BaseHTTPRequestHandler):
        def do_GET(self): asked.append(self.path)
    with HTTPServer(('127.0.0.1', 0), Bait) as bait, httpx.Client(base_url=site.url, follow_redirects=True, timeout=20) as http:
        threading.Thread(target=bait.handle_request, daemon=True).start()
        http.post('/page/login', data={'username': 'ana', 'password': site.key})
        path = f'http://127.0.0.1:{bait.server_port}/x.png' if where == 'address' else str(secret)
        file = {'path': path, 'meta': {'_type': 'gradio.FileData'}, 'orig_name': 'x.png', 'is_stream': where == 'stream'}
        fn = next(o['id'] for o in http.get('/page/config').json()['dependencies'] if len(o['inputs']) == 2)
        data = [None, [file]] if where == 'engines' else [file, [SERVICE_ENGINE]]
        http.post('/page/gradio_api/queue/join', json={'data': data, 'fn_index': fn, 'session_hash': f'thief {where}'}).raise_for_status()
        with http.stream('GET', '/page/gradio_api/queue/data', params={'session_hash': f'thief {where}'}) as told:
            said = ''.join(until(told.iter_text(), 'process_completed'))
        assert 'TOP' not in said
        assert json.loads(said[said.rindex('data: ') + 6:])['success'] is False
        assert asked == []
        assert http.get(f'/page/gradio_api/file={secret}').status_code in (403, 404)


def until(texts, last):
    "The pieces of a stream until one holds `last`."
    for o in texts:
        yield o
        if last in o: return
