"""Search with TPE and at random, at equal cost, for several seeds, and write data/tuning/searches.log. Lesson 09 reads it.

    python data/tune_longer.py [seeds, 10 if none]

One thread. The file is a journal that `optuna.storages.JournalStorage` opens; each search is a study in it.
"""
import sys
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time

import optuna
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from mlops_course.reader.search import RECIPE, train_trial
from mlops_course.reader.training import Recipe, draw_lines, model_cer, train
from mlops_course.tuning import spent_steps, stop_after

OUT = Path(__file__).parent/'tuning'/'searches.log'
FULL_TRIALS,FRESH = 8,1000
SAMPLERS = {'tpe': lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=5),
            'random': lambda seed: optuna.samplers.RandomSampler(seed + 1000)} # another seed: no trial in common


@cache
def fresh_lines(data, longest):
    "Lines of the validation split that no trial was judged by: the same population, another draw."
    return draw_lines(FRESH, 12345, data, 'valid', longest)


def fresh_cer(recipe):
    "The CER of a new training on fresh lines, and the CER that it reports on the 64 validation lines of the search."
    net,history = train(recipe, every=recipe.steps)
    return model_cer(net, fresh_lines(recipe.data, recipe.longest)),float(history['cer'].iloc[-1])


def search(sampler, seed, journal):
    "Make one search and append it to `journal`."
    start = process_time()
    recipe = RECIPE.model_copy(update={'seed': seed})
    study = optuna.create_study(study_name=f'{sampler} {seed}', sampler=SAMPLERS[sampler](seed),
                                pruner=optuna.pruners.MedianPruner(n_startup_trials=3))
    study.optimize(partial(train_trial, recipe=recipe), callbacks=[stop_after(FULL_TRIALS*recipe.steps, recipe.steps)])
    best = Recipe(**{**recipe.model_dump(), **study.best_params})
    fresh,again = fresh_cer(best)
    if again != study.best_value: raise SystemExit(f"Trained again, {best} has the CER {again} instead of {study.best_value}")
    facts = {'sampler': sampler, 'seed': seed, 'steps': spent_steps(study), 'fresh': fresh,
             'other_seed': fresh_cer(best.model_copy(update={'seed': seed + 1000}))[0], 'default': fresh_cer(recipe)[0],
             'made': f'{datetime.now(UTC):%Y-%m-%d}', 'on': 'one thread of a shared 2-core machine',
             'with': f'torch {torch.__version__}, optuna {optuna.__version__}'}
    for name,value in facts.items(): study.set_user_attr(name, value)
    study.set_user_attr('cpu_seconds', round(process_time() - start))
    copy = optuna.create_study(study_name=study.study_name, storage=journal)
    for name,value in study.user_attrs.items(): copy.set_user_attr(name, value)
    copy.add_trials(study.trials)
    print(study.study_name, len(study.trials), study.best_value, facts, flush=True)


def main(seeds=10):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    OUT.parent.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=OUT.parent) as tmp: # the old file stays until the new one is whole
        journal = JournalStorage(JournalFileBackend(str(Path(tmp, OUT.name))))
        for seed in range(seeds):
            for sampler in SAMPLERS: search(sampler, seed, journal)
        Path(tmp, OUT.name).replace(OUT)


if __name__ == '__main__': main(*map(int, sys.argv[1:]))
