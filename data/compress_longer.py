"""Train students and adapters for longer than lesson 10 has time for, and write data/compression/longer.json, with the teacher beside it.

    python data/compress_longer.py [FOLDER OF THE TEACHER]

Lesson 10 loads what this writes, and says so. The teacher is trained on v1 first, if none is named. One thread; about a quarter of an hour on a quiet machine.
"""
import json
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time

import torch

from mlops_course.base.files import write_json
from mlops_course.reader.compression import (
    TeacherCache,
    adapt,
    draw_from,
    draw_kinds,
    make_distillation_loss,
    save_adapter,
)
from mlops_course.reader.net import Recogniser
from mlops_course.reader.training import Recipe, draw_lines, model_cer, train
from mlops_course.reader.weights import load_recogniser, save_recogniser, weights_mb

FILE = Path(__file__).resolve().parent/'compression'/'longer.json'
TEACHER_STEPS,STUDENT_STEPS,LONGER_STEPS,ADAPT_STEPS,LABELLED,SEEDS = 700, 300, 540, 200, 256, (0, 1)


def same_lines(n: int, _seed: int, *rest) -> list:
    "The same lines for every chunk of a training."
    return draw_lines(n, 0, *rest)


def students(teacher: Recogniser, folder: str) -> list[dict]:
    "Students of a quarter of the size, by how many labels they had and by whom they were taught."
    test,answers,rows = draw_lines(300, 1, 'v1', 'test'),TeacherCache(teacher, folder),[]
    for seed in SEEDS:
        recipe = Recipe(steps=STUDENT_STEPS, width=teacher.design.width//2, depth=teacher.design.depth, seed=seed)
        longer = recipe.model_copy(update={'steps': LONGER_STEPS})
        ways: dict[tuple[str, str], dict] = {
            ('few', 'labels'): {'draw': draw_from(draw_lines(LABELLED, 2 + seed, 'v1', 'train'))},
            ('none', 'teacher'): {'draw': same_lines, 'loss': make_distillation_loss(answers, alpha=1)},
            ('unlimited', 'labels'): {},
            ('unlimited', 'labels and teacher'): {'loss': make_distillation_loss(answers)},
            ('unlimited', 'labels, longer'): {'recipe': longer}} # about as long as the teacher needs to answer
        for (labels,by),way in ways.items():
            start = process_time()
            net,_ = train(**{'recipe': recipe, 'every': LONGER_STEPS, 'valid': test[:20], **way})
            rows.append({'labels': labels, 'taught by': by, 'seed': seed, 'cpu_s': round(process_time() - start, 1), 'cer': round(model_cer(net, test), 5)})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def adapters(teacher: Recogniser, folder: Path) -> list[dict]:
    "Ways to teach the display font, and what each does to the old ones."
    old,new = draw_lines(200, 1, 'v1', 'test'),draw_kinds(display=1)(200, 3, split='test')
    displays,mixture = draw_kinds(display=1),draw_kinds(display=.5, render=.5)
    save_recogniser(teacher, folder/'teacher')
    recipe,rows = Recipe(steps=ADAPT_STEPS),[]
    def everything(draw):
        return train(recipe.model_copy(update={'rate': 1e-3}), net=load_recogniser(folder/'teacher'), draw=draw, every=ADAPT_STEPS, valid=new[:20])[0]
    def lora(**how): return adapt(teacher, recipe, displays, every=ADAPT_STEPS, valid=new[:20], **how)[0]
    ways = {'nothing': lambda: teacher, 'all weights': lambda: everything(displays), 'all weights, old lines too': lambda: everything(mixture),
            **{f'LoRA rank {rank}': lambda rank=rank: lora(rank=rank, alpha=2*rank) for rank in (1, 4, 16)},
            'LoRA rank 4, eye only': lambda: lora(targets=('eye',)), 'LoRA rank 4, say only': lambda: lora(targets=('say',))}
    for how,way in ways.items():
        start = process_time()
        net = way()
        seconds = process_time() - start
        (save_adapter if 'LoRA' in how else save_recogniser)(net, folder/'made')
        rows.append({'how': how, 'display': round(model_cer(net, new), 5), 'old fonts': round(model_cer(net, old), 5), 'cpu_s': round(seconds, 1),
                     'mb': round(weights_mb(folder/'made'/('adapter_model.safetensors' if 'LoRA' in how else 'weights.safetensors')), 4)})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    named = len(sys.argv) > 1
    teacher = load_recogniser(sys.argv[1]) if named else train(Recipe(steps=TEACHER_STEPS), every=TEACHER_STEPS)[0]
    if not named: save_recogniser(teacher, FILE.parent/'teacher', data='v1', steps=TEACHER_STEPS, seed=0) # lesson 10 begins with it
    error = model_cer(teacher, draw_lines(300, 1, 'v1', 'test'))
    with TemporaryDirectory() as tmp:
        about = {'date': datetime.now(UTC).date().isoformat(), 'machine': f'{platform.machine()}, {platform.system()}', 'torch': torch.__version__,
                 'student_steps': STUDENT_STEPS, 'longer_steps': LONGER_STEPS, 'adapt_steps': ADAPT_STEPS, 'labelled': LABELLED,
                 'teacher': f"a net of {sum(o.numel() for o in teacher.parameters()):,} weights with a CER of {error:.3f}"}
        found = {'about': about, 'adapters': adapters(teacher, Path(tmp)), 'students': students(teacher, f'{tmp}/answers')}
    FILE.parent.mkdir(exist_ok=True)
    write_json(FILE, found)


if __name__ == '__main__':
    main()
