"The service and what stands around it."
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from mlops_course.base.files import find_root

# The service of lesson 13 beside what many tutorials write: a Flask app around `easyocr.Reader`. Both run in processes
# of their own and get the same images from the same number of users, one after the other. [Locust](https://locust.io)
# asks, from a third process: imported into this one, it would change how sockets work.
FLASK = """import sys
import numpy as np
from flask import Flask, request
from PIL import Image
from mlops_course.reader.engines import load_easyocr
app,read = Flask('plain'),load_easyocr()
@app.post('/read')
def answer(): return read(np.asarray(Image.open(request.files['file'].stream).convert('RGB'))).to_dict()
@app.get('/health')
def health(): return 'ok'
app.run('127.0.0.1', int(sys.argv[1]), threaded=True)
"""


LOCUST = """import os
from pathlib import Path
from locust import HttpUser, task
image = Path(os.environ['IMAGE']).read_bytes()
class User(HttpUser):
    @task
    def read(self): self.client.post(os.environ['AT'], files={'file': ('image.png', image)}, headers={'Authorization': 'Bearer ' + os.environ['KEY']})
"""


def load_of(
    command:list[str], # Starts a server; its port is put behind it
    reads:dict[str, tuple[str, Path]], # Kind -> where it is read, and the image
    env:dict[str, str],
    users:int=4,
    seconds:int=8,     # For each kind
) -> Iterator[dict]:   # Of each kind: requests, failures, requests a second and percentiles in ms
    "How a server does while `users` ask without a pause."
    import numpy as np

    from mlops_course.base.processes import ServerProcess, free_port
    url = f'http://127.0.0.1:{(port := free_port())}'
    with TemporaryDirectory() as tmp:
        (Path(tmp)/'locustfile.py').write_text(LOCUST, encoding='utf-8')
        with ServerProcess([*command, str(port)], f'{url}/health', Path(tmp)/'server.log', env):
            for kind,(at,image) in reads.items():
                asked = subprocess.run([sys.executable, '-m', 'locust', '-f', str(Path(tmp)/'locustfile.py'), '--host', url,
                    '--headless', '-u', str(users), '-r', str(users), '-t', f'{seconds}s', '--stop-timeout', '60', '--json', '--skip-log'],
                    env=os.environ | env | {'AT': at, 'IMAGE': str(image)}, capture_output=True, text=True, check=False)
                found = json.loads(asked.stdout[asked.stdout.index('['):])[0]
                times = np.repeat([float(o) for o in found['response_times']], list(found['response_times'].values()))
                yield {'image': kind, 'users': users, 'requests': found['num_requests'], 'failures': found['num_failures'],
                       'per_second': users*1000/times.mean(), # each user has one request under way, always
                       **{f'p{o}_ms': float(np.percentile(times, o)) for o in (50, 95, 99)}}


def serving_figures() -> Iterator[dict]:
    "A line and a page through our service and through a plain Flask app around EasyOCR: throughput and percentiles, same machine, same run."
    from PIL import Image

    from mlops_course.keys import KeyStore
    from mlops_course.reader.lines import line_batch
    limits = {f'MLOPS_COURSE_SERVICES__API__{o}': '1000000' for o in ('RATE', 'BURST')} # a key may ask as often as it likes
    with TemporaryDirectory() as tmp:
        line,page = Path(tmp, 'line.png'),find_root()/'data'/'pages'/'render_3.png'
        Image.fromarray(line_batch(1, 0, 'v1', 'test')[0][0]).save(line)
        env = {**limits, 'KEY': KeyStore(Path(tmp, 'keys.json')).add('bench')}
        servers = {'ours': ([sys.executable, '-c', 'from mlops_course.tools.cli import main; main()', 'serve', '--folder', tmp, '--port'],
                            {'line': ('/v1/read?line=true', line), 'page': ('/v1/read', page)}),
                   'Flask and EasyOCR': ([sys.executable, '-c', FLASK], {'line': ('/read', line), 'page': ('/read', page)})}
        for name,(command,reads) in servers.items():
            for found in load_of(command, reads, env): yield dict(figure='service', service=name, **found)


# What lies between a page and Google's answer that is ours to answer for? An engine that does nothing stands behind
# the stand-in, so what is left is encoding, Google's client, gRPC and putting lines together. Beside it, what the care
# costs: the breaker and the budget, each by itself.
def vision_figures() -> Iterator[dict]:
    "Milliseconds of a page through Google's client and the stand-in, and what breaker and budget add."
    from mlops_course.base.images import load_image
    from mlops_course.reader.breaker import CircuitBreaker
    from mlops_course.reader.budget import MonthlyBudget
    from mlops_course.reader.custom import load_custom
    from mlops_course.reader.engines import Engine
    from mlops_course.reader.google import FakeVisionServer
    from mlops_course.reader.vision import FallbackEngine, GoogleVision, connect_local
    page = load_image(find_root()/'data'/'pages'/'render_1.png')
    own = load_custom()
    lines = own(page).lines
    def per_call(call, n):
        call()
        cpu,start = time.process_time(),time.perf_counter()
        for _ in range(n): call()
        return (time.perf_counter() - start)/n,(time.process_time() - cpu)/n
    with TemporaryDirectory(ignore_cleanup_errors=True) as tmp, FakeVisionServer(Engine('known', lambda image: lines)) as far, \
         connect_local(far.address) as client:
        budget,breaker = MonthlyBudget(Path(tmp, 'budget.db'), 10**9),CircuitBreaker()
        read = FallbackEngine(GoogleVision(client, budget, breaker, name='stand-in'), own)
        def asked():
            with breaker.asking(): pass
        def taken():
            with budget.take(): pass
        for step,call,n in (('a page of 34 lines', lambda: read(page), 50), ('breaker', asked, 20_000), ('budget', taken, 200)):
            seconds,cpu = per_call(call, n)
            yield dict(figure='vision', step=step, ms=1000*seconds, cpu_ms=1000*cpu)
        far.fault = 'quota'
        for _ in range(breaker.failures): read(page)
        seconds,cpu = per_call(lambda: read(page), 20)
        yield dict(figure='vision', step='fallback to our own engine, breaker open', ms=1000*seconds, cpu_ms=1000*cpu)


def container_figures() -> Iterator[dict]:
    "Seconds to build the image from nothing and after a change of code, its size, and seconds until it is ready; nothing without podman."
    from shutil import which
    if not which('podman'): return
    done = subprocess.run([sys.executable, str(find_root()/'scripts'/'image.py'), '--cold'], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)['ours']
    yield dict(figure='image', **{k: found[k] for k in ('seconds', 'again_s', 'mb', 'base_mb', 'packages_mb', 'ready_s', 'stop_s')})


# What does a router cost, and how long does a bad release live? A line is read with the router before the service and
# without, one at a time. Then a tenth of a thousand users get a release that fails on capitals, and the clock runs
# from that moment until nobody has it any more.
def release_figures() -> Iterator[dict]:
    "Milliseconds that the router of lesson 17 adds to a request, and seconds from a fault to its rollback."
    import httpx
    import numpy as np
    import onnx
    from PIL import Image

    from mlops_course.base.servers import on_free_port
    from mlops_course.load import LoadGenerator
    from mlops_course.reader.lines import line_batch
    from mlops_course.reader.recognition import ALPHABET
    from mlops_course.reader.releases import line_requests, reader_router, reader_slot
    from mlops_course.release import run_canary
    from mlops_course.router import Routes
    from mlops_course.slots import Release, issue_keys
    from mlops_course.verdicts import CanaryPolicy
    good = Release(find_root()/'data'/'recogniser', 'good')
    with TemporaryDirectory(ignore_cleanup_errors=True) as tmp, reader_slot(Path(tmp, 'blue'), good) as blue, \
         reader_slot(Path(tmp, 'green'), good) as green:
        for o in (blue, green): o.wait()
        keys = list(issue_keys([blue, green], [f'user {o}' for o in range(1000)]).values())
        images = []
        for i,(image,_) in enumerate(line_batch(20, 0, 'v1', 'test')):
            Image.fromarray(image).save(Path(tmp, f'{i}.png'))
            images.append(Path(tmp, f'{i}.png').read_bytes())
        router = reader_router(Routes(blue.url, green.url))
        with on_free_port(router) as url, httpx.Client(headers={'Authorization': f'Bearer {keys[0]}'}, timeout=60, trust_env=False) as client:
            def ms(at):
                times = []
                for i in range(150):
                    start = time.perf_counter()
                    client.post(f'{at}/v1/read', params={'line': True}, files={'file': images[i % 20]}).raise_for_status()
                    times.append(1000*(time.perf_counter() - start))
                return float(np.median(times[20:]))
            direct,routed = ms(blue.url),ms(url)
            yield dict(figure='router', direct_ms=direct, routed_ms=routed, adds_ms=routed - direct)
            model,folder = onnx.load(Path(good.folder)/'model.onnx'),Path(tmp, 'old')
            design = json.loads(next(o.value for o in model.metadata_props if o.key == 'design'))
            onnx.helper.set_model_props(model, {'design': json.dumps({**design, 'alphabet': ALPHABET[:36]})})
            folder.mkdir()
            onnx.save(model, folder/'model.onnx')
            green.put(Release(folder, 'fails on capitals'))
            with LoadGenerator(url, keys, line_requests(images)) as load: verdict = list(run_canary(router, blue, green, (.1, 1.), CanaryPolicy()))[-1]
            yield dict(figure='rollback', reason=verdict.reason, seconds=verdict.seconds, answers_until_then=verdict.answers,
                       requests_per_s=len(load.answers)/load.answers[-1][0], lost=load.lost)
