"Google Vision (lesson 14): the real client against a stand-in, breaker, budget, honest fallback, and the page in a browser."
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from mlops_course.ocr import Engine, Line, Reading, load_image
from mlops_course.project import Vision
from mlops_course.scoring import cer
from mlops_course.tools.cli import main
from mlops_course.tools.house import find_root
from mlops_course.training import open_engine
from mlops_course.vision import (
    BATCH,
    FAULTS,
    MOST_BYTES,
    WHY,
    Breaker,
    Budget,
    Fallback,
    GoogleVision,
    NotRead,
    StandIn,
    annotation_of,
    connect_google,
    connect_local,
    cost_usd,
    encode,
    lines_of,
    most_images,
    open_vision,
)

ROOT = find_root()
PAGE = ROOT/'data'/'pages'/'render_1.png'
TEXTS = ['Route 110', '07:47', "St. John's Rd 5/6"]


def box(left, top, right, bottom): return [[left, top], [right, top], [right, bottom], [left, bottom]]


def fixed(image):
    "Three lines, whatever the image: what comes back must be these."
    return [Line(text, .9, box(10, 10 + 30*i, 10 + 12*len(text), 30 + 30*i)) for i, text in enumerate(TEXTS)]


@pytest.fixture
def stand_in():
    with StandIn(Engine('fixed', fixed)) as server: yield server


@pytest.fixture
def vision(stand_in, tmp_path):
    with connect_local(stand_in.address) as client:
        yield GoogleVision(client, Budget(tmp_path/'budget.db', 100), deadline_s=.6, first_wait_s=.02)


@pytest.fixture(scope='module')
def white(): return np.full((120, 300, 3), 255, np.uint8)


def local(image): return [Line('read here', .5, box(0, 0, 50, 10))]


class Clock:
    now = 0.
    def __call__(self): return self.now


# --- the protocol

def test_a_real_page_comes_back_as_it_was_read(tmp_path):
    engine = open_engine('custom')
    with StandIn(engine) as server, connect_local(server.address) as client:
        found = Engine('vision', GoogleVision(client, Budget(tmp_path/'b.db', 9)).read)(load_image(PAGE))
    own = engine(load_image(PAGE))
    assert found.text == own.text
    for ours, theirs in zip(own.lines, found.lines):
        assert np.abs(np.array(ours.box) - theirs.box).max() <= 1
        assert ours.confidence == pytest.approx(theirs.confidence, abs=1e-3)


def test_the_answer_has_pages_blocks_paragraphs_words_and_symbols(vision, white):
    answer, = vision.ask([encode(white)])
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
    found, = lines_of(annotation_of(Reading('x', [Line('a tilted line', .7, slanted)], 0.), (100, 200)), (100, 200))
    assert np.abs(np.array(found.box) - slanted).max() <= 1


@pytest.mark.parametrize(('kind', 'ends'), [('SPACE', 'ab cd'), ('SURE_SPACE', 'ab cd'), ('HYPHEN', 'ab-|cd'), ('EOL_SURE_SPACE', 'ab|cd'), ('UNKNOWN', 'abcd')])
def test_every_kind_of_break_is_understood(kind, ends):
    from google.cloud import vision as google
    def word(text, left, ending):
        vertices = [google.Vertex(x=x, y=y) for x, y in box(left, 0, left + 20, 10)]
        symbols = [google.Symbol(text=o) for o in text]
        symbols[-1].property.detected_break.type_ = google.TextAnnotation.DetectedBreak.BreakType[ending]
        return google.Word(symbols=symbols, bounding_box=google.BoundingPoly(vertices=vertices), confidence=.5)
    paragraph = google.Paragraph(words=[word('ab', 0, kind), word('cd', 30, 'LINE_BREAK')])
    found = lines_of(google.TextAnnotation(pages=[google.Page(blocks=[google.Block(paragraphs=[paragraph])])]), (50, 100))
    assert '|'.join(o.text for o in found) == ends


def test_a_blank_page_has_no_lines(tmp_path, white):
    with StandIn(Engine('blind', lambda image: [])) as server, connect_local(server.address) as client:
        assert GoogleVision(client, Budget(tmp_path/'b.db', 9)).read(white) == []


def test_one_bad_image_does_not_spoil_the_batch(vision, white):
    good, bad, more = vision.ask([encode(white), b'no image', encode(white)])
    assert (good.error.code, bad.error.code, more.error.code) == (0, 3, 0)
    assert bad.error.message == 'Bad image data.'
    assert good.full_text_annotation.text == more.full_text_annotation.text != ''


def test_too_many_images_in_a_call_are_refused(vision, white):
    with pytest.raises(NotRead, match='Too many images') as caught: vision.ask([b'x']*(BATCH + 1))
    assert caught.value.why == 'refused'


def test_a_large_photo_is_sent_as_jpeg(white):
    assert encode(white).startswith(b'\x89PNG')
    noise = np.random.default_rng(0).integers(0, 255, (1800, 1800, 3), dtype=np.uint8)
    data = encode(noise)
    assert data.startswith(b'\xff\xd8')
    assert len(data) <= MOST_BYTES
    assert cv2.imdecode(np.frombuffer(data, np.uint8), 1).shape == noise.shape


def test_the_stand_in_listens_on_this_machine_only_and_stops(white):
    import socket
    with StandIn(Engine('fixed', fixed)) as server:
        host, port = server.address.split(':')
        assert host == '127.0.0.1'
        socket.create_connection((host, int(port)), timeout=5).close()
    with pytest.raises(OSError, match=r'refused|reset'): socket.create_connection((host, int(port)), timeout=5)


# --- what can go wrong, and one deadline for all of it

@pytest.mark.parametrize('fault', sorted(FAULTS))
def test_every_fault_has_its_reason(vision, stand_in, white, fault):
    stand_in.fault = fault
    with pytest.raises(NotRead) as caught: vision.read(white)
    assert caught.value.why == ('deadline' if fault == 'slow' else fault)
    assert str(caught.value).startswith(WHY[caught.value.why])


@pytest.mark.parametrize('fault', ['slow', 'unavailable'])
def test_the_deadline_holds_over_all_tries(vision, stand_in, white, fault):
    stand_in.next.extend(['unavailable', 'unavailable'])
    stand_in.fault = fault
    start = time.monotonic()
    with pytest.raises(NotRead): vision.read(white)
    assert time.monotonic() - start < vision.deadline_s + .5
    assert stand_in.calls >= 3


def test_a_short_trouble_is_survived(vision, stand_in, white):
    stand_in.next.extend(['unavailable', 'unavailable', 'unavailable'])
    assert [o.text for o in vision.read(white)] == TEXTS
    assert (stand_in.calls, stand_in.images) == (4, 1)


@pytest.mark.parametrize('fault', ['quota', 'denied', 'failed', 'slow'])
def test_what_would_not_pass_is_not_tried_again(vision, stand_in, white, fault):
    stand_in.fault = fault
    with pytest.raises(NotRead): vision.read(white)
    assert stand_in.calls == 1


def test_a_server_that_is_gone_is_unavailable(vision, stand_in, white):
    stand_in.server.stop(0).wait()
    with pytest.raises(NotRead) as caught: vision.read(white)
    assert caught.value.why == 'unavailable'


def test_waiting_times_differ_and_grow(vision, stand_in, white, monkeypatch):
    waits = []
    monkeypatch.setattr('google.api_core.retry.retry_unary.time.sleep', waits.append)
    vision.deadline_s, vision.breaker = 5., Breaker(failures=99)
    for _ in range(20):
        stand_in.next.extend(['unavailable']*4)
        vision.read(white)
    rounds = np.array(waits).reshape(20, 4)
    assert (np.diff(rounds.mean(axis=0)) > 0).all()
    assert (rounds <= vision.first_wait_s*2.**np.arange(4)).all()
    assert len(set(waits)) == 80


# --- the breaker

def failing(breaker, why='unavailable'):
    with pytest.raises(NotRead), breaker.asking(): raise NotRead(why)


def test_the_breaker_opens_after_so_many_failures_in_a_row():
    breaker = Breaker(failures=3)
    for _ in range(2): failing(breaker)
    with breaker.asking(): pass # one success begins the row anew
    for _ in range(2): failing(breaker)
    assert breaker.state == 'closed'
    failing(breaker)
    assert breaker.state == 'open'
    with pytest.raises(NotRead, match='30 s more') as caught, breaker.asking(): pytest.fail('asked')
    assert caught.value.why == 'resting'


@pytest.mark.parametrize('why', ['refused', 'budget'])
def test_what_is_not_google_s_health_does_not_open_it(why):
    breaker = Breaker(failures=1)
    for _ in range(3): failing(breaker, why)
    assert breaker.state == 'closed'


def test_an_error_of_ours_does_not_open_it_and_gives_the_turn_back():
    clock = Clock()
    breaker = Breaker(failures=1, rest_s=10, clock=clock)
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
    breaker = Breaker(failures=2, rest_s=10, clock=clock)
    for _ in range(2): failing(breaker)
    clock.now = 10
    assert breaker.state == 'half-open'
    if why: failing(breaker, why)
    else:
        with breaker.asking(): pass
    assert breaker.state == after


def test_only_one_tries_while_it_is_half_open():
    clock = Clock()
    breaker = Breaker(failures=1, rest_s=10, clock=clock)
    failing(breaker)
    clock.now = 10
    with breaker.asking():
        assert breaker.state == 'half-open'
        for _ in range(3):
            with pytest.raises(NotRead), breaker.asking(): pytest.fail('a second one asked')


def test_of_many_threads_one_gets_through():
    clock = Clock()
    breaker = Breaker(failures=1, rest_s=10, clock=clock)
    failing(breaker)
    clock.now = 10
    together, asked = threading.Barrier(16), []
    def caller(i):
        together.wait()
        try:
            with breaker.asking():
                asked.append(i)
                time.sleep(.05)
        except NotRead: pass
    with ThreadPoolExecutor(16) as pool: list(pool.map(caller, range(16)))
    assert len(asked) == 1
    assert breaker.state == 'closed'


def test_one_that_never_comes_back_does_not_block_the_others():
    clock = Clock()
    breaker = Breaker(failures=1, rest_s=10, clock=clock)
    failing(breaker)
    clock.now = 10
    breaker.enter()
    clock.now = 20
    with breaker.asking(): pass
    assert breaker.state == 'closed'


def test_late_news_changes_nothing():
    breaker = Breaker(failures=1)
    slow = breaker.enter()
    failing(breaker)
    breaker.leave(slow, True)
    assert breaker.state == 'open'


def test_an_open_breaker_asks_nobody(vision, stand_in, white):
    stand_in.fault = 'quota'
    for _ in range(5):
        with pytest.raises(NotRead): vision.read(white)
    assert stand_in.calls == 3
    with pytest.raises(NotRead) as caught: vision.read(white)
    assert caught.value.why == 'resting'
    assert vision.budget.spent == 0


# --- the budget

def test_the_budget_survives_a_restart(tmp_path):
    with Budget(tmp_path/'b.db', 3).take(2): pass
    again = Budget(tmp_path/'b.db', 3)
    assert again.spent == 2
    with pytest.raises(NotRead, match='2 of 3 images') as caught, again.take(2): pytest.fail('spent')
    assert caught.value.why == 'budget'
    with again.take(): pass
    assert again.spent == 3


def test_a_new_month_begins_at_zero(tmp_path):
    day = [datetime(2026, 1, 31, 23, tzinfo=UTC)]
    budget = Budget(tmp_path/'b.db', 1, lambda: day[0])
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
    with pytest.raises(NotRead): vision.read(white)
    assert vision.budget.spent == 0
    day[0] = datetime(2026, 1, 31, tzinfo=UTC)
    assert vision.budget.spent == 0


@pytest.mark.parametrize(('fault', 'billed'), [('', 1), ('quota', 0), ('denied', 0), ('slow', 1), ('failed', 1), ('unavailable', 0)])
def test_what_is_billed(vision, stand_in, white, fault, billed):
    stand_in.fault = fault
    Fallback(vision, Engine('local', local))(white)
    assert vision.budget.spent == billed


def test_a_bad_image_in_a_batch_is_billed_with_the_others(vision, white):
    vision.ask([encode(white), b'no image'])
    assert vision.budget.spent == 2


def test_a_spent_budget_calls_nobody(vision, stand_in, white):
    vision.budget.most = 0
    with pytest.raises(NotRead) as caught: vision.read(white)
    assert (caught.value.why, stand_in.calls) == ('budget', 0)


SPENDER = """
import sys
from mlops_course.vision import Budget, NotRead
budget, got = Budget(sys.argv[1], 150), 0
sys.stdin.readline() # all start together
for _ in range(100):
    try:
        with budget.take(): got += 1
    except NotRead: pass
print(got)
"""


@pytest.mark.slow # starts Python anew
def test_two_processes_cannot_both_spend_the_last_image(tmp_path):
    Budget(tmp_path/'b.db', 150)
    both = [subprocess.Popen([sys.executable, '-c', SPENDER, str(tmp_path/'b.db')], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for o in both:
        o.stdin.write('\n')
        o.stdin.flush()
    got = [int(o.communicate(timeout=60)[0]) for o in both]
    assert sum(got) == 150
    assert Budget(tmp_path/'b.db', 150).spent == 150


def test_a_damaged_budget_stops_the_spending(tmp_path):
    (tmp_path/'b.db').write_bytes(b'not a database at all'*50)
    with pytest.raises(ValueError, match="Look at Google's bill"): Budget(tmp_path/'b.db', 1)


@pytest.mark.parametrize(('budget_usd', 'most'), [(0, 1000), (1.5, 2000), (.3, 1200), (.001, 1000)])
def test_the_budget_buys_whole_images_beyond_the_free_ones(budget_usd, most):
    terms = Vision(budget_usd=budget_usd)
    assert most_images(terms) == most
    assert cost_usd(most, terms) <= budget_usd + 1e-9
    assert cost_usd(1000, terms) == 0


# --- the honest fallback

@pytest.mark.parametrize('fault', sorted(FAULTS))
def test_the_answer_says_who_read_it_and_why(vision, stand_in, white, fault):
    engine = Fallback(vision, Engine('local', local))
    stand_in.fault = fault
    answer = engine(white)
    assert (answer.engine, answer.text) == ('local', 'read here')
    assert answer.why in WHY
    assert answer.said.startswith(WHY[answer.why])
    stand_in.fault = ''
    answer = engine(white)
    assert (answer.engine, answer.why, answer.said) == ('vision', '', '')
    assert [o.text for o in answer.lines] == TEXTS


def test_seconds_include_the_wait_for_vision(vision, stand_in, white):
    stand_in.fault = 'slow'
    assert Fallback(vision, Engine('local', local))(white).seconds >= vision.deadline_s


def test_a_stand_in_does_not_sign_as_google(stand_in, tmp_path, white):
    with connect_local(stand_in.address) as client:
        assert Fallback(GoogleVision(client, Budget(tmp_path/'b.db', 9), name='stand-in'), Engine('local', local))(white).engine == 'stand-in'


def test_an_error_of_ours_is_not_hidden(vision):
    with pytest.raises(TypeError, match='load_image'): Fallback(vision, Engine('local', local))('page.png')


def test_the_account_can_be_written_as_json(vision, stand_in, white):
    stand_in.fault = 'quota'
    told = json.loads(json.dumps(Fallback(vision, Engine('local', local))(white).to_dict()))
    assert (told['engine'], told['why'], told['text']) == ('local', 'quota', 'read here')


# --- with and without a key

WITHOUT = """
import json, sys
seen = []
sys.addaudithook(lambda name, args: seen.append(name) if name in ('socket.connect', 'socket.getaddrinfo', 'socket.sendto') else None)
from mlops_course.ocr import load_image
from mlops_course.vision import open_vision
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
from mlops_course.ocr import Engine
from mlops_course.vision import Budget, GoogleVision, connect_google
key, address, budget = sys.argv[1:]
with connect_google(key, address) as client:
    print(json.dumps([o.text for o in GoogleVision(client, Budget(budget, 9), deadline_s=20).read(np.full((120, 300, 3), 255, np.uint8))]))
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
    class Watched(StandIn):
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
