"Monitoring, drift and the cost of a page."
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory


# What does it cost to count, and how long does a fault stay unheard? The rules of lesson 18 are shortened a thousand
# times, so that `for: 5m` is 0.3 s and what is left is the way: probe, scrape, rule, webhook.
def monitoring_figures() -> Iterator[dict]:
    "Seconds from a fault to the webhook, and microseconds that a metric costs."
    from dataclasses import replace

    import httpx
    from prometheus_client import CollectorRegistry, Counter, Histogram

    from mlops_course.base.servers import on_free_port
    from mlops_course.base.settings import ApiSettings
    from mlops_course.keys import KeyStore
    from mlops_course.monitoring import AlertReceiver
    from mlops_course.probe import run_probe
    from mlops_course.prometheus import has_prometheus, run_monitoring
    from mlops_course.reader.custom import load_custom, warm_up_engine
    from mlops_course.reader.metrics import line_probe
    from mlops_course.reader.recognition import ALPHABET
    from mlops_course.reader.serving import create_app
    from mlops_course.reader.trials import draw_trial_lines
    from mlops_course.serving import ServedModel
    registry = CollectorRegistry()
    counter = Counter('c', 'c', ['model', 'status'], registry=registry)
    seconds = Histogram('s', 's', ['model'], registry=registry)
    child = counter.labels('reader/1', 200)
    calls = {'counter': lambda: counter.labels('reader/1', 200).inc(), 'counter, labels looked up before': child.inc,
             'histogram': lambda: seconds.labels('reader/1').observe(.02)}
    for what,call in calls.items():
        start = time.process_time()
        for _ in range(100_000): call()
        yield dict(figure='metric', what=what, us=10*(time.process_time() - start))
    good,bad = warm_up_engine(load_custom()),warm_up_engine(load_custom())
    bad.net.design = replace(bad.net.design, alphabet=ALPHABET[1:] + ALPHABET[0])
    class Shelf:
        engine,version = good,'good'
        def load(self): return ServedModel(self.engine, self.version, 'for a measurement')
    for embedded in (False, True) if has_prometheus() else (True,):
        with TemporaryDirectory(ignore_cleanup_errors=True) as tmp:
            shelf,hook = Shelf(),AlertReceiver()
            app = create_app(shelf, tmp, ApiSettings(rate=1e6, burst=10**6))
            key = KeyStore(Path(tmp, 'keys.json')).add('probe', 'admin')
            with on_free_port(app) as url, on_free_port(hook, lifespan='off') as hook_url, \
                 run_probe(line_probe(url, key, draw_trial_lines(8, 0, ('render',))['render']), .3) as probe_url, \
                 run_monitoring({'reader': url, 'probe': probe_url}, hook_url, 1000, .3, embedded) as watch:
                while not watch.now('ocr_model_accuracy > 0.9'): time.sleep(.1)
                shelf.engine,shelf.version = bad,'bad'
                start = time.time()
                httpx.post(f'{url}/v1/models/reload', headers={'Authorization': f'Bearer {key}'}, timeout=60, trust_env=False).raise_for_status()
                note = hook.wait('AccuracyDropped')
                yield dict(figure='fault to webhook', by=watch.name, seconds=note.at - start, of_them_asked_by_the_rule=.3)


# What does drift cost to notice, how often does the monitor ring for nothing, and how many lines after a change does
# it ring? Of lesson 19; photographs are simulated.
def drift_figures() -> Iterator[dict]:
    "Microseconds of `track`, milliseconds of a measurement and a look, false alarms, and lines until the alarm."
    import numpy as np
    import pandas as pd

    from mlops_course.base.settings import load_settings
    from mlops_course.drift import drift_lower_bounds, drift_over_time, drift_report, psi
    from mlops_course.drift_store import DriftMonitor
    from mlops_course.reader.features import FEATURES, Sensor, image_features
    from mlops_course.reader.trials import draw_trial_lines
    from mlops_course.reader.weights import load_recogniser
    lines = {'render': draw_trial_lines(1250, 0, ('render',))['render'], **draw_trial_lines(300, 0, ('photo_simulated', 'display'))}
    sensor = Sensor(load_recogniser(load_settings().paths.data/'compression'/'teacher'), [o for o,_ in lines['render'][:150]])
    start = time.process_time()
    for image,_ in lines['render'][:300]: image_features(image)
    yield dict(figure='measure', what='image alone', ms=(time.process_time() - start)/.3)
    start = time.process_time()
    rows = {k: pd.DataFrame([sensor(image).values for image,_ in o[150*(k == 'render'):]]) for k,o in lines.items()}
    yield dict(figure='measure', what='image, net and answer', ms=1000*(time.process_time() - start)/sum(map(len, rows.values())))
    with TemporaryDirectory(ignore_cleanup_errors=True) as tmp:
        with DriftMonitor(Path(tmp)/'drift.db', FEATURES) as monitor:
            row,costs = dict.fromkeys(FEATURES, .5),[]
            start = time.process_time()
            for _ in range(50_000):
                before = time.perf_counter_ns()
                monitor.track(row, 'a'*64, 'reader/1', 'Central 07:15')
                costs.append(time.perf_counter_ns() - before)
            monitor.flush()
            yield dict(figure='track', us_with_its_writing=20*(time.process_time() - start), us_p99_of_a_call=float(np.quantile(costs, .99))/1000)
            monitor.refer(rows['render'][:500])
            for o in rows['photo_simulated'][list(FEATURES)][:200].to_numpy().tolist(): monitor.track(dict(zip(FEATURES, o)))
            monitor.flush()
            start = time.process_time()
            for _ in range(20): monitor.judge()
            yield dict(figure='look', lines=200, reference=500, ms=50*(time.process_time() - start))
        start = time.process_time()
        drift_report(rows['render'][:500], rows['photo_simulated'][:200], Path(tmp)/'report.html')
        yield dict(figure='Evidently', seconds_with_import=time.process_time() - start, page_mb=(Path(tmp)/'report.html').stat().st_size/1e6)
    rng = np.random.default_rng(0)
    calm = rows['render']
    def day():
        order = rng.permutation(len(calm))
        return calm.iloc[order[:500]],calm.iloc[order[500:600]]
    days = [day() for _ in range(1000)]
    rules:dict[str, Callable[..., bool]] = {'PSI above 0.1': lambda a,b: max(psi(a[o], b[o]) for o in FEATURES) > .1,
        'PSI above 0.25': lambda a,b: max(psi(a[o], b[o]) for o in FEATURES) > .25,
        'moved, 1 % allowed': lambda a,b: max(drift_lower_bounds(a, b).values()) > 0,
        'moved by a fifth': lambda a,b: max(drift_lower_bounds(a, b).values()) > .2}
    for name,rings in rules.items():
        yield dict(figure='false alarms', rule=name, lines=100, reference=500, days=len(days), share=float(np.mean([rings(*o) for o in days])))
    for kind in ('photo_simulated', 'display'):
        for share in (.25, .5, 1.):
            found = []
            for _ in range(20):
                order,other = rng.permutation(len(calm)),rng.random(400) < share
                after = pd.concat([rows[kind].sample(other.sum(), replace=True, random_state=rng),
                                   calm.iloc[order[500:]].sample((~other).sum(), replace=True, random_state=rng)]).sample(frac=1, random_state=rng)
                moves = drift_over_time(calm.iloc[order[:500]], pd.concat([calm.iloc[order[500:700]], after]), 200, 10).max(axis=1)
                found.append(next((at - 200 for at,o in zip(range(200, 601, 10), moves) if o > .2), float('nan')))
            rang = [o for o in found if o == o]
            yield dict(figure='delay', change=kind, share=share, window=200, rang=len(rang)/len(found), lines=float(np.median(rang)) if rang else None)


# What does a page cost, each way of reading it, and what do more workers bring? Lesson 20 explains the ways and the
# model.
def performance_figures() -> Iterator[dict]:
    "Milliseconds a page in each way, of a known page, and seconds of a folder by workers, with the model's error."
    import cv2

    from mlops_course import performance as p
    from mlops_course.base.images import write_png
    from mlops_course.base.settings import load_settings
    from mlops_course.cache import ReadingCache
    from mlops_course.reader import folder
    from mlops_course.reader.custom import SHIPPED_RECOGNISER, CustomEngine, load_custom, read_images, warm_up_engine
    from mlops_course.reader.pages import render_page
    from mlops_course.reader.weights import load_recogniser
    from mlops_course.workers import local_cluster
    cv2.setNumThreads(1)
    images = [cv2.cvtColor(render_page(seed=o, split='test').image, cv2.COLOR_GRAY2RGB) for o in range(32)]
    few,onnx,torch = images[:8],warm_up_engine(load_custom()),CustomEngine(load_recogniser(load_settings().paths.data/SHIPPED_RECOGNISER))
    ways = {'PyTorch': lambda: [torch(o) for o in few], 'ONNX': lambda: [onnx(o) for o in few], 'ONNX, 8 together': lambda: read_images(onnx, few)}
    for way,read in ways.items(): yield dict(figure='page', way=way, **p.measure_cost(read, len(few))._asdict())
    with TemporaryDirectory(ignore_cleanup_errors=True) as tmp:
        cache,reading = ReadingCache(Path(tmp, 'cache.db')),onnx(few[0]).to_dict()
        def keep():
            for o in range(1000): cache.put(str(o), reading)
        def find():
            for o in range(1000): cache.get(str(o))
        for way,call in {'kept in the cache': keep, 'known to the cache': find}.items():
            yield dict(figure='page', way=way, **p.measure_cost(call, 1000)._asdict())
        cache.close()
        for n in (8, 32):
            Path(tmp, f'{n}').mkdir()
            for i,image in enumerate(images[:n]): write_png(Path(tmp, f'{n}', f'{i}.png'), image)
        measured = []
        for jobs in sorted({1, 2, os.cpu_count() or 1}):
            with local_cluster(jobs) as cluster:
                for n in (8, 8, 32): # the first loads the models
                    start = time.perf_counter()
                    list(folder.read_folder(Path(tmp, f'{n}'), Path(tmp, f'{n} {jobs} {start}.jsonl'), cluster.scheduler_address, at_once=1, in_flight=jobs))
                    measured.append((n, jobs, time.perf_counter() - start))
        kept = [o for i,o in enumerate(measured) if i % 3]
        for n,jobs,seconds in kept: yield dict(figure='folder', pages=n, workers=jobs, seconds=seconds)
        yield dict(figure='scaling', **p.fit_scaling(kept)._asdict())
