"Runs, searches, the registry and the pipeline."
import os
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

from mlops_course.base.files import find_root


# A store that is new makes its tables first. A metric is written down at once, and sent with others.
def tracking_figures() -> Iterator[dict]:
    "Seconds to open a store, and microseconds to log a metric: to write it down, and until it has arrived."
    from mlops_course.spool import spooled_run
    from mlops_course.store import open_store
    start = time.perf_counter()
    import_module('mlflow')
    yield dict(figure='mlflow imported', seconds=time.perf_counter() - start)
    with TemporaryDirectory(ignore_cleanup_errors=True) as tmp:
        for state in ('new', 'old'):
            start = time.perf_counter()
            store = open_store(Path(tmp, 'mlflow.db'), 'bench')
            yield dict(figure='store opened', store=state, seconds=time.perf_counter() - start)
        n = 5000
        with spooled_run(store) as run:
            run.next_s = float('inf') # nothing is sent meanwhile
            start = time.perf_counter()
            for step in range(n): run.metrics({'cer': step/n}, step)
            written = time.perf_counter() - start
            run.send(now=True)
            yield dict(figure='metric logged', written_us=1e6*written/n, arrived_us=1e6*(time.perf_counter() - start)/n)


# What does bookkeeping add to a trial? The same small search, without and with a run for each trial, after one trial
# to warm up.
def tuning_figures() -> Iterator[dict]:
    "Seconds for a trial of 64 steps, without and with its run on record."
    from functools import partial

    import mlflow
    import optuna

    from mlops_course.reader.search import RECIPE, train_trial
    from mlops_course.store import open_store
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    objective = partial(train_trial, recipe=RECIPE.model_copy(update={'steps': 64}), names=['rate'])
    with TemporaryDirectory(ignore_cleanup_errors=True) as tmp:
        store = open_store(Path(tmp, 'mlflow.db'), 'bench')
        mlflow.set_tracking_uri(store.uri)
        mlflow.set_experiment(store.experiment)
        for recorded in (False, True):
            study = optuna.create_study(storage=f'sqlite:///{tmp}/{recorded}.db', sampler=optuna.samplers.RandomSampler(0),
                                        pruner=optuna.pruners.NopPruner())
            with mlflow.start_run() as run:
                search = partial(objective, parent=run.info.run_id if recorded else '')
                study.optimize(search, n_trials=1)
                start = time.perf_counter()
                study.optimize(search, n_trials=5)
                yield dict(figure='trial', recorded=recorded, seconds=(time.perf_counter() - start)/5)


def registry_figures() -> Iterator[dict]:
    "What a registry costs: trying a model, registering it, loading it by its alias, deciding on a promotion."
    from mlops_course.base.settings import Gates
    from mlops_course.reader.package import load_version, promote_reader, register_reader
    from mlops_course.reader.tracked import train_tracked
    from mlops_course.reader.training import Recipe
    from mlops_course.reader.trials import draw_trial_lines, evaluate_model
    from mlops_course.store import open_store
    with TemporaryDirectory(ignore_cleanup_errors=True) as tmp:
        store,lines = open_store(Path(tmp, 'mlflow.db')),draw_trial_lines(100, 0)
        trained = [train_tracked(Recipe(steps=2, batch=2, seed=o), store) for o in range(2)]
        def timed(step, call):
            cpu,start = time.process_time(),time.perf_counter()
            call()
            return dict(figure='registry', step=step, seconds=time.perf_counter() - start, cpu_seconds=time.process_time() - cpu)
        yield {**timed('try a model', lambda: evaluate_model(trained[0][0], lines)), 'lines': 300}
        for i,(_,run_id) in enumerate(trained, 1):
            yield timed(f'register version {i}', lambda run_id=run_id: register_reader(store, run_id, lines, 'bench', 'bench'))
            yield timed(f'decide on version {i}', lambda: promote_reader(store, lines, 'bench', 'bench', gates=Gates(p95_ms=1e6)))
        yield timed('load the champion', lambda: load_version(store))


# What does it cost that lesson 16's flow is kept and resumed? A flow of the nine steps, where each does nothing: once
# anew, once with everything there. Beside it Prefect's server, and a job under act.
def pipeline_figures() -> Iterator[dict]:
    "Seconds until Prefect's server is there, for a flow of nine empty steps anew and kept, for each step, and for a job under act."
    from contextlib import ExitStack

    from mlops_course.pipelines import make_flow
    from mlops_course.prefect_server import PrefectServer
    from mlops_course.reader.steps import STEPS, Order
    from mlops_course.workflows import run_workflow
    def timed(step, call):
        cpu,start = time.process_time(),time.perf_counter()
        found = call()
        return found,dict(figure='pipeline', step=step, seconds=time.perf_counter() - start, cpu_seconds=time.process_time() - cpu)
    runs = os.environ.get('MLOPS_COURSE_PATHS__RUNS')
    empty = {name: o._replace(does=lambda order, done: {}, code=(), imports=False, alone=False) for name,o in STEPS.items()}
    with TemporaryDirectory(ignore_cleanup_errors=True) as tmp:
        os.environ['MLOPS_COURSE_PATHS__RUNS'] = tmp
        try:
            with ExitStack() as stack:
                yield timed('the server starts', lambda: stack.enter_context(PrefectServer(Path(tmp, 'prefect'))))[1]
                flow,order = make_flow(empty, Order),Order()
                flow(Order(seed=1), 'bench') # the first one imports
                for step in ('nine steps anew', 'nine steps, eight of them kept'):
                    line = timed(step, lambda: flow(order, 'bench'))[1]
                    yield {**line, 'ms_a_step': 1000*line['seconds']/len(empty)}
        finally:
            if runs is None: del os.environ['MLOPS_COURSE_PATHS__RUNS']
            else: os.environ['MLOPS_COURSE_PATHS__RUNS'] = runs
        workflow = find_root()/'.github'/'workflows'/'deliver.yml'
        asked = Order(checks=('zizmor',)).model_dump_json()
        (ran,_),line = timed('a job under act: zizmor', lambda: run_workflow(workflow, Path(tmp, 'act'), 'quality', variables={'ORDER': asked}))
        yield {**line, 'steps': len(ran), 'failed': sum(o.outcome != 'success' for o in ran)}
