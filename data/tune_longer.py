"""Search with TPE and at random, at equal cost, for several seeds, and write data/tuning/searches.json. Lesson 09 reads it.

    python data/tune_longer.py [CPU minutes, 9 if none]

One thread. It stops after the last seed that fits into its time; a seed is in the file with both searches, or not at all.
"""
import json
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time

import optuna
import torch

from mlops_course.base.files import write_json
from mlops_course.reader.search import RECIPE, reader_search, train_trial
from mlops_course.reader.training import Recipe, draw_lines, model_cer, train
from mlops_course.tuning import SAMPLERS, SearchLimits, open_tuning, run_trials, trial_steps

OUT = Path(__file__).parent/'tuning'/'searches.json'
FULL_TRIALS,FRESH = 8,1000

@cache
def fresh_lines(data, longest): return draw_lines(FRESH, 12345, data, 'test', longest)


def on_fresh_lines(recipe):
    "The CER of the reports' last, and that on lines which no search has seen."
    net,history = train(recipe, every=recipe.steps)
    return float(history['cer'].iloc[-1]),model_cer(net, fresh_lines(recipe.data, recipe.longest))


def one_search(search):
    "All trials of a search, what its winner claims, and what it is worth."
    with TemporaryDirectory(ignore_cleanup_errors=True) as tmp:
        tuning = open_tuning(Path(tmp)/'search.db', search)
        run_trials(tuning, train_trial, SearchLimits(steps=FULL_TRIALS*search.recipe['steps']))
        best,trials = tuning.study.best_trial,tuning.study.trials
    recipe = Recipe(**{**search.recipe, **best.params})
    again,fresh = on_fresh_lines(recipe)
    if again != best.value: raise SystemExit(f"Trained again, trial {best.number} has the CER {again} instead of {best.value}")
    _,other_seed = on_fresh_lines(recipe.model_copy(update={'seed': recipe.seed + 1000}))
    return {'sampler': search.sampler, 'seed': search.seed, 'steps': sum(trial_steps(o, search) for o in trials),
            'claimed': best.value, 'fresh': fresh, 'other_seed': other_seed, 'winner': best.number,
            'trials': [{'state': o.state.name, 'params': o.params, 'reports': {str(k): round(v, 6) for k,v in o.intermediate_values.items()}} for o in trials]}


def main(minutes=9.):
    start,done,seed,slowest = process_time(),[],0,0.
    while process_time() - start + slowest < 60*minutes:
        begun = process_time()
        search = reader_search(recipe := RECIPE.model_copy(update={'seed': seed}), seed=seed)
        _,default = on_fresh_lines(recipe)
        done += [{**one_search(search.model_copy(update={'sampler': o})), 'default': default} for o in SAMPLERS]
        slowest,seed = max(slowest, process_time() - begun),seed + 1
        said = {'made': f'{datetime.now(UTC):%Y-%m-%d}', 'on': 'one thread of a shared 2-core machine',
                'with': f'torch {torch.__version__}, optuna {optuna.__version__}', 'cpu_seconds': round(process_time() - start),
                'full_trials': FULL_TRIALS, 'fresh_lines': FRESH, 'search': reader_search().model_dump(mode='json'), 'searches': done}
        OUT.parent.mkdir(exist_ok=True)
        write_json(OUT, said)
        print(json.dumps({k: v for k,v in done[-1].items() if k != 'trials'}), flush=True)


if __name__ == '__main__': main(*map(float, sys.argv[1:]))
