"Releases (lesson 17): splits and bets whose error rates are known, and live services that are replaced, broken, slowed and killed under load."
import json
from collections import Counter
from contextlib import ExitStack
from math import comb
from time import sleep
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from PIL import Image

from mlops_course.base.history import AuditLog, sha256_of_text, verify_audit
from mlops_course.base.servers import on_free_port
from mlops_course.canary import watch_canary_step
from mlops_course.experiments import (
    RateDifference,
    assign_arm,
    bucket_of,
    e_value,
    interval_half_width,
    rate_difference,
    ratio_and_spread,
    running_differences,
    users_needed,
)
from mlops_course.keys import KeyStore
from mlops_course.load import LoadGenerator
from mlops_course.reader.lines import line_batch
from mlops_course.reader.recognition import ALPHABET
from mlops_course.reader.releases import line_requests, reader_router, reader_slot
from mlops_course.registry_history import MODEL_NAME, append_history, expected_aliases, model_history
from mlops_course.release import decision_recorder, run_canary
from mlops_course.router import Routes
from mlops_course.scoring import score
from mlops_course.slots import Release, Slot, issue_keys, read_release
from mlops_course.store import open_store
from mlops_course.verdicts import (
    BadCount,
    CanaryDecision,
    CanaryPolicy,
    alpha_for_look,
    compare_signals,
    excess,
    failed_answers,
    quantile_edge,
    read_metrics,
    worse_p_value,
)

USERS = [f'user {o}' for o in range(4000)]


def rows_of(edits, chars=10, lines=2, kind='render', first=0):
    "Users with these edits in each of their lines."
    items = {f'{first + u}:{i}': e for u, e in enumerate(edits) for i in range(lines)}
    return score({k: 'y'*e + 'x'*(chars - e) for k, e in items.items()}, dict.fromkeys(items, 'x'*chars),
                 user={k: k.split(':')[0] for k in items}, kind=dict.fromkeys(items, kind))


# The split

def test_a_split_is_near_its_share_and_the_same_each_time():
    arms = [assign_arm(o, 'a', .3) for o in USERS]
    assert .27 < arms.count('challenger')/len(arms) < .33
    assert arms == [assign_arm(o, 'a', .3) for o in USERS]


def test_a_larger_share_takes_the_challenger_from_nobody():
    small, large = ({o for o in USERS if assign_arm(o, 'a', share) == 'challenger'} for share in (.01, .5))
    assert small < large


def test_nobody_and_everybody_are_shares_too():
    assert {assign_arm(o, 'a', 0.) for o in USERS} == {'champion'}
    assert {assign_arm(o, 'a', 1.) for o in USERS} == {'challenger'}


def test_splits_with_other_salts_are_independent():
    a, b = (np.array([bucket_of(o, salt) for o in USERS]) for salt in 'ab')
    assert abs(np.corrcoef(a, b)[0, 1]) < .05


def test_salt_and_user_cannot_be_mixed_up():
    assert bucket_of('1user', 'a') != bucket_of('user', 'a1')


# Differences

def test_a_contrast_is_the_difference_of_the_corpus_rates():
    found = rate_difference(rows_of([1, 2, 3, 2]), rows_of([0, 1, 1, 0]))
    assert found.difference == pytest.approx(2/40 - 8/40)
    assert found.se > 0


def test_equal_users_leave_no_doubt_and_no_alarm():
    assert rate_difference(rows_of([1, 1]), rows_of([1, 1])).p == 1.


def test_lines_of_one_user_do_not_shrink_the_error():
    edits = np.random.default_rng(0).integers(0, 5, 200).tolist()
    few, many = (rate_difference(rows_of(edits[:100], lines=o), rows_of(edits[100:], lines=o)) for o in (1, 9))
    assert many.se == pytest.approx(few.se)
    assert rate_difference(rows_of(edits[:100], lines=9), rows_of(edits[100:], lines=9), unit=None).se < .5*few.se


def test_a_single_user_is_refused():
    with pytest.raises(ValueError, match=r'Found 1 unit.*Wait for more users'): rate_difference(rows_of([1]), rows_of([1, 2]))


def test_every_look_says_what_a_contrast_would_have_said():
    rng = np.random.default_rng(1)
    edits, treated = rng.integers(0, 6, 120), rng.random(120) < .4
    difference, se = running_differences(2.*edits, np.full(120, 20.), treated, [40, 120])
    for at, *found in zip((40, 120), difference, se):
        meant = rate_difference(rows_of(edits[:at][~treated[:at]].tolist()), rows_of(edits[:at][treated[:at]].tolist()))
        assert found == pytest.approx(meant[:2])


def test_a_sample_of_the_size_that_was_asked_finds_the_difference_as_often_as_promised():
    rng, spread, wanted = np.random.default_rng(2), .2, .05
    n = users_needed(spread, wanted, power=.8)//2
    found = [RateDifference(o, spread*(2/n)**.5).p < .05 for o in rng.normal(wanted, spread*(2/n)**.5, 4000)]
    assert .77 < np.mean(found) < .83


def test_a_small_share_needs_more_users():
    assert users_needed(.2, .05, share=.01) > 20*users_needed(.2, .05)


@pytest.mark.parametrize('wrong', [(0, .1), (.2, 0), (.2, .1, .05, .8, 1.)])
def test_a_size_that_cannot_be_planned_is_refused(wrong):
    with pytest.raises(ValueError, match='change your mind'): users_needed(*wrong)


@pytest.mark.parametrize('wrong', [{'power': 1.5}, {'alpha': 0}, {'alpha': .5, 'power': .4}])
def test_rates_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match='expected both between 0 and 1'): users_needed(.2, .1, **wrong)


# Looking again and again

def test_the_bet_and_its_interval_agree():
    d, se = np.meshgrid(np.linspace(-.3, .3, 61), np.linspace(.005, .1, 40))
    assert ((e_value(d, se, .05) >= 20) == (np.abs(d) >= interval_half_width(se, .05))).all()


def test_the_bet_is_fair_where_nothing_differs():
    se = .03
    d = np.random.default_rng(4).normal(0, se, 400_000)
    assert e_value(d, se, .02).mean() == pytest.approx(1, abs=.02)


@pytest.mark.parametrize('expected', [.01, .05, .2])
def test_looking_every_day_keeps_the_error_rate_of_the_bet_and_not_of_the_naive_test(expected):
    rng = np.random.default_rng(5)
    noise = rng.normal(0, .3, (2000, 1000)).cumsum(1)[:, 49::50]
    n = np.arange(50, 1001, 50)
    difference, se = noise/n, .3/np.sqrt(n)
    assert (e_value(difference, se, expected) >= 20).any(1).mean() <= .05
    assert .18 < (np.abs(difference/se) > 1.96).any(1).mean() < .32


def test_all_looks_together_spend_alpha():
    assert sum(alpha_for_look(.01, o) for o in range(1, 100_000)) == pytest.approx(.01, rel=1e-4)


# Shares of bad answers

def test_shares_are_compared_exactly():
    assert worse_p_value(BadCount(1, 5), BadCount(0, 400)) == pytest.approx(5/405)
    assert worse_p_value(BadCount(2, 2), BadCount(0, 8)) == pytest.approx(1/comb(10, 2))
    assert worse_p_value(BadCount(0, 5), BadCount(9, 400)) == 1
    assert worse_p_value(BadCount(5, 5), BadCount(0, 0)) == 1 # nothing to compare with


def test_what_is_tolerated_raises_no_alarm():
    assert worse_p_value(BadCount(60, 1000), BadCount(40, 1000)) < .05
    assert worse_p_value(BadCount(60, 1000), BadCount(40, 1000), 2.) > .5


METRICS = """# TYPE ocr_predictions_total counter
ocr_predictions_total{model="a",status="200"} 90.0
ocr_predictions_total{model="b",status="200"} 6.0
ocr_predictions_total{model="b",status="500"} 4.0
ocr_predictions_total{model="b",status="422"} 7.0
# TYPE ocr_prediction_duration_seconds histogram
ocr_prediction_duration_seconds_bucket{le="0.005",model="a"} 50.0
ocr_prediction_duration_seconds_bucket{le="0.01",model="a"} 95.0
ocr_prediction_duration_seconds_bucket{le="+Inf",model="a"} 96.0
# TYPE ocr_confidence histogram
ocr_confidence_bucket{le="0.9",model="a"} 12.0
ocr_confidence_bucket{le="+Inf",model="a"} 96.0
"""


def test_metrics_are_read_for_all_models_together_and_a_bad_image_is_no_fault():
    found = read_metrics(METRICS, 'ocr')
    assert failed_answers(found) == (4, 100)
    assert excess(found, 'prediction_duration_seconds_bucket', '0.01') == (1, 96)
    assert quantile_edge(found, 'prediction_duration_seconds_bucket', .95) == '0.01'
    assert quantile_edge(found, 'prediction_duration_seconds_bucket', .5) == '0.005'


def test_each_trouble_raises_its_own_signal():
    old = read_metrics(METRICS.replace('500"} 4.0', '500"} 0.0'), 'ocr')
    slow = read_metrics(METRICS.replace('0.01",model="a"} 95', '0.01",model="a"} 10').replace('500"} 4.0', '500"} 0.0'), 'ocr')
    doubtful = read_metrics(METRICS.replace('0.9",model="a"} 12', '0.9",model="a"} 80').replace('500"} 4.0', '500"} 0.0'), 'ocr')
    broken = read_metrics(METRICS.replace('500"} 4.0', '500"} 40.0'), 'ocr')
    for new, compared, wanted in ((old, BadCount(2, 50), []), (slow, BadCount(2, 50), ['latency']), (doubtful, BadCount(2, 50), ['confidence']),
                                  (broken, BadCount(2, 50), ['errors']), (old, BadCount(45, 50), ['disagreement'])):
        assert [o.name for o in compare_signals(new, old, compared) if o.alarm(1e-4)] == wanted


class Counting:
    "A slot without a process: at each look it has given some more answers, a part of them doubtful."
    def __init__(self, each, doubtful): self.each, self.doubtful, self.looks = each, doubtful, -1
    def metrics(self):
        self.looks += 1
        n = self.each*self.looks
        return Counter({('predictions_total', '200'): n, ('confidence_bucket', '0.9'): round(n*self.doubtful), ('confidence_bucket', '+Inf'): n})


def watched(doubtful, least=60, **caution):
    "What comes of a step in which answers trickle in one by one."
    return watch_canary_step(Counting(1, doubtful), Counting(4, .05), SimpleNamespace(counts=Counter()), [Counter()]*3, least,
                             CanaryPolicy(every_s=0, **caution), .01/12)


def test_answers_that_trickle_in_one_by_one_still_raise_an_alarm():
    assert watched(.4)[0].name == 'confidence' # with a look for each answer there was none


def test_a_step_without_trouble_ends_with_enough_answers():
    assert watched(.05) == (None, 60)


def test_a_step_that_gets_too_few_answers_goes_back():
    wrong, n = watched(.05, least=10**6, longest_s=.01)
    assert wrong.name == 'too few'
    assert n < 10**6


def stand_ins(doubtful=.05):
    "A router and two slots, as far as a canary needs them."
    slots = Counting(4, .05), Counting(1, doubtful)
    for slot, name in zip(slots, ('old', 'new')): slot.url, slot.release = name, Release('', name)
    return SimpleNamespace(counts=Counter(), routes=Routes('old', 'new')), *slots


@pytest.mark.parametrize('what', ['forward', 'done'])
def test_a_release_that_cannot_be_recorded_goes_back(what):
    router, *slots = stand_ins()
    def record(verdict):
        if verdict.what == what: raise OSError('the disk is full')
    with pytest.raises(OSError, match='the disk is full'): list(run_canary(router, *slots, (.5, 1.), CanaryPolicy(least=(10,), every_s=0), record))
    assert router.routes == Routes('old', 'new')


def test_a_release_that_comes_through_changes_places():
    router, *slots = stand_ins()
    assert [o.what for o in run_canary(router, *slots, (.5, 1.), CanaryPolicy(least=(10,), every_s=0))] == ['forward', 'done']
    assert router.routes == Routes('new', 'old')


class Failing(Counting):
    "A slot of which a part of the answers are failures."
    def metrics(self):
        found = super().metrics()
        n = found['predictions_total', '200']
        return Counter({('predictions_total', '200'): n - round(n*self.doubtful), ('predictions_total', '500'): round(n*self.doubtful)})


@pytest.mark.parametrize(('champions', 'reason'), [(0, 'too few'), (10, 'errors')])
def test_a_release_is_never_compared_with_nothing(champions, reason):
    router, champion, challenger = stand_ins()
    champion.each, failing = champions, Failing(50, 1.)
    failing.url, failing.release = challenger.url, challenger.release
    done = list(run_canary(router, champion, failing, (1.,), CanaryPolicy(least=(40,), every_s=0, longest_s=.2)))
    assert [(o.what, o.reason) for o in done] == [('back', reason)]
    assert router.routes == Routes('old', 'new')


def test_a_canary_that_nobody_uses_goes_back():
    router, champion, challenger = stand_ins()
    challenger.each = 0
    done = list(run_canary(router, champion, challenger, (.5, 1.), CanaryPolicy(least=(1,), every_s=0, longest_s=.1)))
    assert [(o.what, o.reason, o.answers) for o in done] == [('back', 'too few', 0)]


@pytest.mark.parametrize('least', [(), (0,), (20, 0)])
def test_a_step_without_answers_cannot_be_asked_for(least):
    with pytest.raises(ValueError, match='Expected a number of answers above 0'): CanaryPolicy(least=least)


@pytest.mark.parametrize('steps', [(), (0., 1.), (10, 100), (float('nan'),)])
def test_steps_that_are_no_shares_are_refused(steps):
    router, *slots = stand_ins()
    with pytest.raises(ValueError, match='Expected one or more shares of the users'): list(run_canary(router, *slots, steps))
    assert router.routes == Routes('old', 'new')


def test_a_verdict_is_in_the_audit_log_with_its_reason(tmp_path):
    audit = AuditLog(tmp_path/'audit.jsonl')
    record = decision_recorder(audit, why='more fonts')
    receipt = record(CanaryDecision('back', 'reader/2', 'reader/1', .01, 'errors', '5 of 5 failed', 5, .5))
    audit.close()
    entry = json.loads((tmp_path/'audit.jsonl').read_text())
    assert (entry['what'], entry['reason'], entry['why'], entry['version']) == ('back', 'errors', 'more fonts', 'reader/2')
    assert verify_audit(tmp_path/'audit.jsonl', [receipt]) == []


def test_the_registry_promotes_who_came_through_and_refuses_who_was_taken_back(tmp_path):
    store, audit = open_store(tmp_path/'mlflow.db'), AuditLog(tmp_path/'audit.jsonl')
    store.client.create_registered_model(MODEL_NAME)
    for version in (1, 2):
        store.client.create_model_version(MODEL_NAME, str(tmp_path))
        append_history(store, MODEL_NAME, 'registered', version, 'ana', 'a test')
    def verdict(what, share, reason=''): return CanaryDecision(what, 'reader', 'reader/0', share, reason, 'seen', 9, .1)
    record = decision_recorder(audit, store, 1)
    for o in (verdict('forward', .1), verdict('stopped', .1, 'champion'), verdict('done', 1.)): record(o)
    decision_recorder(audit, store, 2)(verdict('back', .1, 'latency'))
    entries = model_history(store)
    assert [(o['version'], o['what']) for o in entries[2:]] == [(1, 'canary'), (1, 'canary'), (1, 'promoted'), (2, 'refused')]
    assert entries[-1]['gates'] == ['latency: seen']
    with pytest.raises(ValueError, match='Version 2 was refused: latency: seen'): decision_recorder(audit, store, 2)
    with pytest.raises(ValueError, match='Version 9 is not in the registry'): decision_recorder(audit, store, 9)
    audit.close()
    assert expected_aliases(entries) == {'champion': 1}
    assert len((tmp_path/'audit.jsonl').read_text().splitlines()) == 4


def test_nothing_is_promoted_that_the_audit_log_has_no_room_for(tmp_path, monkeypatch):
    store, audit = open_store(tmp_path/'mlflow.db'), AuditLog(tmp_path/'audit.jsonl')
    store.client.create_registered_model(MODEL_NAME)
    store.client.create_model_version(MODEL_NAME, str(tmp_path))
    append_history(store, MODEL_NAME, 'registered', 1, 'ana', 'a test')
    def full(**what): raise OSError('the disk is full')
    monkeypatch.setattr(audit, 'add', full)
    with pytest.raises(OSError, match='the disk is full'): decision_recorder(audit, store, 1)(CanaryDecision('done', 'new', 'old', 1., '', 'seen', 9, .1))
    audit.close()
    assert [o['what'] for o in model_history(store)] == ['registered']


def test_a_release_that_a_slot_cannot_load_is_not_loaded_at_its_next_start(tmp_path, monkeypatch):
    good, bad = Release('good', 'reader/1'), Release('bad', 'reader/2')
    slot = Slot(tmp_path, good, 'app:it', 'ocr')
    slot.admin = {}
    slot.point(good)
    monkeypatch.setattr('httpx.post', lambda *_, **__: httpx.Response(409, json={'error': 'damaged'}))
    with pytest.raises(ValueError, match='reader/2 could not be loaded: damaged'): slot.put(bad)
    assert slot.release == read_release(tmp_path/'release.json') == good
    monkeypatch.undo()
    with pytest.raises(ConnectionError, match='reader/1 does not answer, so reader/2 waits for its start'): slot.put(bad)
    assert slot.release == read_release(tmp_path/'release.json') == bad


def test_keys_that_are_issued_again_replace_those_before(tmp_path):
    slot = Slot(tmp_path, Release('good', 'reader/1'), 'app:it', 'ocr')
    first, second = issue_keys([slot], ['ana', 'ben']), issue_keys([slot], ['ana'])
    keys = KeyStore(tmp_path/'keys.json')
    assert sorted(o.name for o in keys) == ['ana', 'ben']
    assert keys.find(first['ana']) is None
    assert [keys.find(o).name for o in (second['ana'], first['ben'])] == ['ana', 'ben']


def test_nobody_releases_without_saying_why(tmp_path):
    audit = AuditLog(tmp_path/'audit.jsonl')
    with pytest.raises(ValueError, match='Say who does this'): decision_recorder(audit, why=' ')
    audit.close()


def test_ratio_knows_the_rate():
    rate, spread = ratio_and_spread(np.array([1., 3.]), np.array([10., 10.]))
    assert rate == pytest.approx(.2)
    assert spread == pytest.approx(.1*2**.5)


# Live services

def png(image, folder):
    Image.fromarray(image).save(folder/'line.png')
    return (folder/'line.png').read_bytes()


def with_alphabet(root, folder, letters):
    "The shipped recogniser with another alphabet."
    import onnx
    model = onnx.load(root/'data'/'recogniser'/'model.onnx')
    design = json.loads(next(o.value for o in model.metadata_props if o.key == 'design'))
    onnx.helper.set_model_props(model, {'design': json.dumps({**design, 'alphabet': letters})})
    folder.mkdir()
    onnx.save(model, folder/'model.onnx')
    return folder


class Street:
    "Two slots, keys for their users, and images."
    def __init__(self, root, folder, slots):
        self.good, self.folder, self.slots = Release(root/'data'/'recogniser', 'reader/1'), folder, slots
        self.keys = list(issue_keys(slots, USERS[:1000]).values())
        self.lines = line_requests(png(o, folder) for o, _ in line_batch(30, 0, 'v1', 'test'))
        self.caution = CanaryPolicy(least=(10, 20, 30))

    def release(self, challenger, steps=(.1, .5, 1.), spoil=None, **routes):
        "Verdicts, the load, and the router, after a canary under load."
        champion = next(o for o in self.slots if o is not challenger)
        router, verdicts = reader_router(Routes(champion.url, challenger.url, **{'shadow': .5, **routes})), []
        with on_free_port(router) as url, LoadGenerator(url, self.keys, self.lines) as load:
            for o in run_canary(router, champion, challenger, steps, self.caution, verdicts.append):
                if spoil and o.passed: spoil()
            sent = []
            for n in (10, 20): # what was under way is finished first
                wanted = len(load.answers) + n
                while len(load.answers) < wanted: sleep(.02)
                sent.append(router.counts['challenger'])
            assert sent[0] == sent[1], "somebody is still sent to the challenger"
        return verdicts, load, router


@pytest.fixture(scope='module')
def street(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp('street')
    with ExitStack() as after:
        slots = [after.enter_context(reader_slot(folder/o, Release(root/'data'/'recogniser', 'reader/1'))) for o in ('blue', 'green')]
        for o in slots: o.wait()
        yield Street(root, folder, slots)


@pytest.mark.slow
def test_a_good_release_reaches_everybody_and_loses_nothing(street):
    champion, challenger = street.slots
    challenger.put(street.good._replace(version='reader/2'))
    verdicts, load, router = street.release(challenger)
    assert [(o.what, o.share) for o in verdicts] == [('forward', .1), ('forward', .5), ('done', 1.)]
    assert load.lost == 0
    assert (router.routes.champion, router.routes.challenger, router.routes.share) == (challenger.url, champion.url, 0.)


@pytest.mark.slow
def test_blue_and_green_change_places_and_back_without_losing_a_request(street):
    blue, green = street.slots
    green.put(street.good)
    router = reader_router(Routes(blue.url, green.url))
    with on_free_port(router) as url, LoadGenerator(url, street.keys, street.lines) as load:
        for at in (green.url, blue.url):
            n = len(load.answers)
            while len(load.answers) < n + 30: sleep(.02)
            router.routes = router.routes.exchanged()
            assert router.routes.champion == at
    assert load.lost == 0


@pytest.mark.slow
def test_each_bad_release_is_taken_back_for_its_own_reason_and_loses_nothing(street, root):
    _, challenger = street.slots
    letters = ALPHABET[1:] + ALPHABET[0]
    bad = {'errors': Release(with_alphabet(root, street.folder/'old', ALPHABET[:36]), 'old'),
           'latency': street.good._replace(version='slow', delay_s=.5),
           'disagreement': Release(with_alphabet(root, street.folder/'slipped', letters), 'slipped')}
    for reason, release in bad.items():
        challenger.put(release)
        verdicts, load, router = street.release(challenger)
        assert (verdicts[-1].what, verdicts[-1].reason) == ('back', reason)
        assert verdicts[-1].seconds < 30 # a few, on a quiet machine
        assert load.lost == 0
        assert router.routes.share == 0


@pytest.mark.slow
def test_the_router_and_the_statistics_mean_the_same_users_and_an_interrupted_release_goes_back(street):
    champion, challenger = street.slots
    challenger.put(street.good)
    router = reader_router(Routes(champion.url, challenger.url))
    with on_free_port(router) as url:
        release = run_canary(router, champion, challenger, (.3, 1.), street.caution)
        with LoadGenerator(url, street.keys, street.lines) as load: next(release)
        assert router.routes.share == .3
        release.close() # whoever watched went away
    assert router.routes.share == 0
    served = {by: {user for _, user, _, o in load.answers if o == by} for by in ('champion', 'challenger')}
    assert served['challenger']
    assert {assign_arm(sha256_of_text(f'Bearer {street.keys[o]}'), 'release', .3) for o in served['challenger']} == {'challenger'}
    assert load.lost == 0


@pytest.mark.parametrize(('answer', 'strange'), [('{"text": "Central"}', 0), ('{"text": "nonsense"}', 1), ('not JSON', 1), ('{}', 1), ('null', 1)])
def test_an_answer_that_cannot_be_compared_is_no_agreement(answer, strange):
    import httpx
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import Route
    def service(text):
        async def read(request): return Response(text, media_type='application/json')
        return Starlette(routes=[Route('/v1/read', read, methods=['POST'])])
    with on_free_port(service('{"text": "Central"}')) as champion, on_free_port(service(answer)) as challenger:
        router = reader_router(Routes(champion, challenger, share=1., shadow=1.))
        with on_free_port(router) as url: found = httpx.post(f'{url}/v1/read', trust_env=False) # what was begun is compared when it ends
    assert (found.status_code, found.text) == (200, answer)
    assert (router.counts['compared'], router.counts['strange']) == (1, strange)


@pytest.mark.parametrize('target', ['/v1/read?line=true', '/a%25b', '/a%2Fb?c=%26', '/what?q=what?', '/ü?ö'])
def test_an_address_is_passed_on_as_it_came(target):
    import httpx
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    async def echo(request): return PlainTextResponse(b'?'.join([request.scope['raw_path'], request.scope['query_string']]))
    with (on_free_port(Starlette(routes=[Route('/{path:path}', echo)])) as service, on_free_port(reader_router(Routes(service))) as url):
        straight, routed = (httpx.get(f'{o}{target}', trust_env=False) for o in (service, url))
    assert (routed.status_code, routed.text) == (200, straight.text)


@pytest.mark.slow
def test_a_release_without_the_keys_of_the_users_goes_back_for_errors_and_loses_nothing(street):
    _, challenger = street.slots
    challenger.put(street.good._replace(version='keyless'))
    keys = KeyStore(challenger.folder/'keys.json')
    all_keys = list(keys)
    keys.write([o for o in all_keys if o.name == 'release'])
    try: verdicts, load, _ = street.release(challenger)
    finally: keys.write(all_keys)
    assert (verdicts[-1].what, verdicts[-1].reason) == ('back', 'errors')
    assert verdicts[-1].seconds < 60 # and not after `longest_s`
    assert load.lost == 0


@pytest.mark.slow
def test_a_dead_champion_stops_a_release_and_says_nothing_against_the_challenger(root, tmp_path):
    with ExitStack() as after:
        champion, challenger = (after.enter_context(reader_slot(tmp_path/o, Release(root/'data'/'recogniser', o))) for o in ('old', 'new'))
        for o in (champion, challenger): o.wait()
        keys = list(issue_keys([champion, challenger], USERS[:200]).values())
        lines, router = line_requests(png(o, tmp_path) for o, _ in line_batch(5, 0, 'v1', 'test')), reader_router(Routes(champion.url, challenger.url))
        with on_free_port(router) as url, LoadGenerator(url, keys, lines) as load:
            verdicts = []
            for o in run_canary(router, champion, challenger, (.5, 1.), CanaryPolicy(least=(10, 10**6)), verdicts.append):
                if o.passed: champion.kill()
            n = len(load.answers)
            while len(load.answers) < n + 20: sleep(.02)
    assert [(o.what, o.reason) for o in verdicts] == [('forward', ''), ('stopped', 'champion')]
    assert 'old does not answer' in verdicts[-1].said
    assert load.lost == 0


@pytest.mark.slow
def test_a_killed_process_loses_nothing(street):
    _, challenger = street.slots
    challenger.put(street.good)
    verdicts, load, _ = street.release(challenger, (.3, 1.), spoil=challenger.kill)
    assert [(o.what, o.reason) for o in verdicts] == [('forward', ''), ('back', 'process')]
    assert load.lost == 0
    with pytest.raises(ConnectionError, match='did not start'): challenger.wait(5)
