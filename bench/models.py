"Engines, data, models and tests of models."
import csv
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from mlops_course.base.files import find_root


# Engines read the pages that the project ships, after one page to warm up. Their error is that of all pages together:
# edits by characters.
def engine_figures() -> Iterator[dict]:
    "Pages a second and character error rate of each engine, on the project's own pages."
    import pandas as pd

    from mlops_course.base.images import load_image
    from mlops_course.reader.engines import available_engines, load_engine
    from mlops_course.scoring import score
    folder = find_root()/'data'/'pages'
    labels = pd.read_csv(folder/'labels.csv')
    pages = {o: load_image(folder/o) for o in labels.file}
    for name in available_engines():
        engine = load_engine(name)
        engine(next(iter(pages.values())))
        start = time.perf_counter()
        preds = {file: engine(page).text for file,page in pages.items()}
        seconds = time.perf_counter() - start
        rows = score(preds, dict(zip(labels.file, labels.text, strict=True)))
        yield dict(figure='engine', engine=name, pages=len(pages), images_per_second=len(pages)/seconds, cer=float(rows.edits.sum()/rows.chars.sum()))


# Lines for training are drawn faster than they can be learned from, on one core.
def data_figures() -> Iterator[dict]:
    "Lines drawn a second on one core, for each version, and the time that a version of the data takes."
    import cv2

    from mlops_course.reader.datasets import make_version
    from mlops_course.reader.feed import load_feed
    from mlops_course.reader.lines import VERSION_MIXES, line_batch
    feed,threads = load_feed(),cv2.getNumThreads()
    cv2.setNumThreads(1) # two would only wait for each other on images as small as these
    for version in VERSION_MIXES:
        line_batch(2000, 0, version, feed=feed) # fonts and letters are drawn once and kept
        best = float('inf')
        for seed in range(1, 4):
            start = time.process_time()
            line_batch(2000, seed, version, feed=feed)
            best = min(best, time.process_time() - start)
        yield dict(figure='lines drawn a second', version=version, lines_per_s=round(2000/best))
    cv2.setNumThreads(threads)
    with TemporaryDirectory() as tmp:
        for version in VERSION_MIXES:
            start = time.perf_counter()
            make_version(version, Path(tmp, version), 1000, 20, feed=feed)
            yield dict(figure='data version of 1000 lines and 20 pages', version=version, seconds=time.perf_counter() - start)


# What a test of lesson 12 costs: a mutant of `scoring` with the project's own tests, and a case of a capability with
# one look and with two.
def testing_figures() -> Iterator[dict]:
    "Seconds for a mutant, and for a case of a capability."
    from functools import partial

    from mlops_course.base.settings import load_settings
    from mlops_course.base.stats import min_calls
    from mlops_course.behaviour import run_capabilities
    from mlops_course.mutation import make_mutants, run_mutants
    from mlops_course.reader.boxes import read_twice
    from mlops_course.reader.capabilities import CAPABILITIES
    from mlops_course.reader.recognition import OnnxRecogniser, read_lines
    from mlops_course.scoring import cer
    found = [m for o in (cer, min_calls) for m in make_mutants(o)]
    start = time.perf_counter()
    killed = run_mutants(found, find_root()/'tests'/'test_scoring.py', limit_s=120)['killed_by']
    yield dict(figure='mutant', mutants=len(found), survived=int((killed == '').sum()), seconds=(time.perf_counter() - start)/len(found))
    net = OnnxRecogniser(load_settings().paths.data/'recogniser'/'model.onnx')
    for name,read in (('one look', read_lines), ('two looks', read_twice)):
        start = time.perf_counter()
        tried = run_capabilities(partial(read, net), CAPABILITIES)
        yield dict(figure='capability case', reader=name, cases=len(tried), failed=int(tried['failed'].sum()), seconds=(time.perf_counter() - start)/len(tried))


# Our recogniser beside the others, on lines and pages that nobody trained on. Real receipt lines are not ours to ship;
# they are read where they are at hand.
def model_figures() -> Iterator[dict]:
    "Every engine on held-out lines and pages and, where they are at hand, on real receipt lines: errors and seconds, side by side."
    import cv2
    import numpy as np

    from mlops_course.base.images import load_image
    from mlops_course.reader.datasets import read_labels
    from mlops_course.reader.degradations import simulate_photo
    from mlops_course.reader.evaluation import draw_held_out
    from mlops_course.reader.fonts import FONTS, render_line
    from mlops_course.reader.line_engines import open_engine
    from mlops_course.scoring import rate, score
    slices = {part: (pairs, False) for part,pairs in draw_held_out(lines=100, pages=3).items()}
    real = find_root().parent/'shared'/'real'/'lines' # not ours to ship
    if (real/'labels.csv').is_file():
        table = read_labels(real/'labels.csv')
        slices['receipt lines'] = [(load_image(real/file, min_side=1), text) for file,text in zip(table['file'], table['text'])],True
        rng,fonts = np.random.default_rng(0),[o for o in FONTS if not o.startswith('cm')] # those lack characters
        drawn = [(render_line(text, fonts[rng.integers(len(fonts))], 24), text) for text in table['text']] # the same texts, for the gap between ours and real
        slices['receipt lines, rendered'] = [(cv2.cvtColor(image, cv2.COLOR_GRAY2RGB), text) for image,text in drawn],True
        slices['receipt lines, simulated photos'] = [(cv2.cvtColor(simulate_photo(image, rng, 1.), cv2.COLOR_GRAY2RGB), text) for image,text in drawn],True
    for part,(pairs,fold_case) in slices.items():
        for name in ('custom', 'easyocr', 'rapidocr', 'tesseract'):
            engine = open_engine(name, line=not part.startswith('page'))
            engine(pairs[0][0])
            start = time.perf_counter()
            preds = {str(i): engine(image).text for i,(image,_) in enumerate(pairs)}
            seconds = time.perf_counter() - start
            rows = score(preds, {str(i): text for i,(_,text) in enumerate(pairs)}, fold_case=fold_case)
            yield dict(figure='model', slice=part, engine=name, images=len(pairs), cer=rate(rows), seconds_per_image=seconds/len(pairs))


# A recogniser made smaller in the ways of lesson 10: error, size, and processor time of one thread for a line. It is
# the one that the project ships.
def compression_figures() -> Iterator[dict]:
    "Error, size and speed of lesson 10's teacher, a distilled student, and what ONNX and eight bits make of both."
    from mlops_course.reader import compression as c
    from mlops_course.reader.quantisation import quantise
    from mlops_course.reader.recognition import OnnxRecogniser
    from mlops_course.reader.training import Recipe, draw_lines
    from mlops_course.reader.weights import export_onnx, load_recogniser, save_recogniser, weights_mb
    teacher = load_recogniser(find_root()/'data'/'compression'/'teacher')
    test,usual = draw_lines(300, 1, 'v1', 'test'),[o for o,_ in draw_lines(64, 4, 'v1', 'train')]
    displays = c.draw_kinds(display=1)
    new = displays(300, 3, '', 'test')
    with TemporaryDirectory() as tmp:
        folder,recipe = Path(tmp),Recipe(steps=300, width=teacher.design.width//2, depth=teacher.design.depth)
        student,_ = c.distill(teacher, recipe, folder/'answers', every=recipe.steps)
        for name,net in (('teacher', teacher), ('student', student)):
            save_recogniser(net, folder/name)
            yield dict(figure='variant', variant=name, mb=weights_mb(folder/name), **c.measure_model(net, test))
            whole = export_onnx(net, folder/f'{name}.onnx')
            static,dynamic = quantise(whole, folder/f'{name}8.onnx', usual),quantise(whole, folder/f'{name}d.onnx', dynamic=True)
            for way,path in {'ONNX': whole, 'int8': static, 'int8 dynamic': dynamic}.items():
                yield dict(figure='variant', variant=f'{name}, {way}', mb=weights_mb(path), **c.measure_model(OnnxRecogniser(path), test))
        adapted,_ = c.adapt(teacher, Recipe(steps=100), displays, every=100)
        merged = c.merge_adapter(adapted)
        save_recogniser(merged, folder/'merged')
        for name,net,path in (('adapter', adapted, c.save_adapter(adapted, folder/'adapter')), ('adapter, merged', merged, folder/'merged')):
            yield dict(figure='variant', variant=name, mb=weights_mb(path), display_cer=c.model_cer(net, new), **c.measure_model(net, test))


# Reviews: cleaned and counted, trained and judged, and scored in a file. The texts repeat after 25,000.
def review_figures() -> Iterator[dict]:
    "Seconds to count 50,000 reviews, to train and evaluate on 25,000, and reviews scored a second, with accuracy, size and memory."
    import os

    from mlops_course.base.memory import peak_memory_mb
    from mlops_course.reviews.batch import predict_file
    from mlops_course.reviews.data import reviews_file
    from mlops_course.reviews.files import read_table
    from mlops_course.reviews.model import load_reviews
    from mlops_course.reviews.training import train_reviews
    frame,_ = read_table(reviews_file())
    imdb,lines = (frame[(frame['source'] == 'imdb') == o]['review'].tolist() for o in (True, False))
    with TemporaryDirectory() as tmp:
        start = time.perf_counter()
        card = train_reviews(reviews_file(), Path(tmp, 'model'), where=('source', 'imdb'))
        yield dict(figure='reviews trained', seconds=time.perf_counter() - start,
                   **{o: card[o] for o in ('reviews', 'accuracy', 'accuracy_low', 'accuracy_high', 'size_mb')})
        model,_ = load_reviews(Path(tmp, 'model'))
        start = time.perf_counter()
        entries = sum(model.counts.transform((imdb*2)[i:i + 5000]).nnz for i in range(0, 50_000, 5000))
        yield dict(figure='reviews cleaned and counted', reviews=50_000, entries=int(entries), seconds=time.perf_counter() - start)
        counted = model.counts.transform(imdb)
        start = time.perf_counter()
        _ = counted @ model.weights + model.intercept > 0
        yield dict(figure='reviews predicted, counted before', per_s=round(len(imdb)/(time.perf_counter() - start)))
        for kind,texts,n in (('IMDB', imdb, 200_000), ('lines of Rotten Tomatoes', lines, 10_000_000)):
            start = time.perf_counter()
            for i in range(0, len(texts), 5000): model(texts[i:i + 5000])
            yield dict(figure='reviews scored in memory, one core', kind=kind, per_s=round(len(texts)/(time.perf_counter() - start)))
            with Path(tmp, 'in.csv').open('w', encoding='utf-8', newline='') as file:
                csv.writer(file).writerows([['review'], *([o] for o in texts)])
                for _ in range(n//len(texts) - 1): csv.writer(file).writerows([o] for o in texts)
            start = time.perf_counter()
            said = predict_file(Path(tmp, 'model'), Path(tmp, 'in.csv'), Path(tmp, 'out.csv'), jobs=os.cpu_count() or 1)
            seconds = time.perf_counter() - start
            yield dict(figure='reviews scored from a file', kind=kind, rows=said['rows'], mb=round(os.path.getsize(Path(tmp, 'in.csv'))/1e6),
                       per_s=round(said['rows']/seconds), peak_mb=round(peak_memory_mb()))
            Path(tmp, 'out.csv').unlink()


# Scans are phantoms, drawn for the measurement. The same net is trained on files split at random and on patients kept whole.
def scan_figures() -> Iterator[dict]:
    "Seconds of a training on phantoms, its accuracy with each way of splitting, and milliseconds for a scan."
    from mlops_course.scans.folder import load_scans, read_scans
    from mlops_course.scans.ingest import PhantomParams, ScanParams, SplitParams
    from mlops_course.scans.model import ScanModel
    from mlops_course.scans.phantoms import make_phantoms
    from mlops_course.scans.training import train_folder
    with TemporaryDirectory() as tmp:
        folder = make_phantoms(Path(tmp, 'phantoms'), copies=24)
        for by in ('file', 'patient'):
            start = time.perf_counter()
            found = train_folder(folder, Path(tmp, by), ScanParams(seed=0, phantoms=PhantomParams(), split=SplitParams(by=by)), lambda _: None)
            yield dict(figure='scans trained', split_by=by, seconds=time.perf_counter() - start, accuracy=found['accuracy'],
                       sensitivity=found['sensitivity']['value'])
        images,model = load_scans(folder, read_scans(folder)['file'][:200]),ScanModel(Path(tmp, 'patient'))
        start = time.perf_counter()
        for o in images: model(o)
        yield dict(figure='scan classified', ms=1000*(time.perf_counter() - start)/len(images))
