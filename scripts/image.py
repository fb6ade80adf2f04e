"""Build the service's image, try it, and print what was measured.

    .venv/bin/python scripts/image.py                  build and try
    .venv/bin/python scripts/image.py --cold           without what earlier builds have left
    .venv/bin/python scripts/image.py --record         the same, and keep it in data/image/build.json
    .venv/bin/python scripts/image.py --naive SECONDS  and look into localhost/naive too, the wrong way of lesson 15: built by hand
                                                       with data/image/naive.Dockerfile, which took so long

Needs podman and buildah (scripts/debian.sh).
"""
import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from mlops_course.base.images import load_image
from mlops_course.containers import HARDENING_OPTIONS, IMAGE_TAG, build_image, podman, run_container
from mlops_course.image_layers import find_risks, make_sbom, open_image
from mlops_course.reader.custom import load_custom

ROOT = Path(__file__).resolve().parent.parent
BASE = "docker.io/library/python:3.11-slim"
RECORD = ROOT / "data" / "image" / "build.json"


def fetch_wheels(to: Path, names: Sequence[str] = ("requirements.lock", "build.lock")) -> Path:
    "The packages of an image's locks, each with the hash that the lock names."
    locks = [f"--requirement={ROOT / 'deploy' / o}" for o in names]
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation",
                    "--require-hashes", f"--dest={to}", *locks], check=True, stderr=subprocess.DEVNULL)
    return to


def size_mb(image: str) -> float:
    "What `image` takes on disk."
    return int(podman("image", "inspect", "--format", "{{.Size}}", image)) / 1e6


def words(made_by: str) -> str:
    "The instruction as a person wrote it, without what the engine adds."
    return re.sub(r"(/bin/sh -c )?(#\(nop\) )?|\b(dir|multi|file):\w+ in ", "", made_by).strip()[:80]


def look_inside(image: str) -> dict:
    "What a scanner finds in `image`."
    with TemporaryDirectory() as tmp:
        podman("push", "--disable-compression", image, f"oci:{tmp}/image", program="buildah")
        config, layers = open_image(Path(tmp, "image"))
    found = find_risks(layers)
    count = {k: sum(o.kind == k for o in found) for k in ("secret", "setuid", "writable")}
    packages = [o for o in layers if "pip install" in o.made_by or any(p.startswith("packages/") for p in o.rights)]
    return {
        "mb": size_mb(image), "base_mb": size_mb(BASE), "packages_mb": sum(o.size for o in packages) / 1e6,
        "user": config.get("User", ""),
        "layers": [{"made_by": words(o.made_by), "mb": round(o.size / 1e6, 3)} for o in layers],
        "found": sorted({o.path for o in found if o.kind == "secret"})[:4],
        "secrets": count["secret"], "setuid": count["setuid"], "writable": count["writable"], "components": len(make_sbom(layers)["components"]),
    }


def try_out() -> dict:
    "Start the image with few rights, read a page, stop it."
    page = ROOT / "data" / "pages" / "render_3.png"
    volume = "reader-try"
    podman("volume", "create", volume)
    try:
        key = podman("run", "--rm", *HARDENING_OPTIONS, "--volume", f"{volume}:/var/reader", IMAGE_TAG, "keys", "add", "try").splitlines()[-1]
        start = time.perf_counter()
        with run_container(IMAGE_TAG, *HARDENING_OPTIONS, "--volume", f"{volume}:/var/reader") as (name, url):
            ready_s = time.perf_counter() - start
            answer = httpx.post(f"{url}/v1/read", files={"file": page.read_bytes()}, headers={"Authorization": f"Bearer {key}"}, timeout=60)
            podman("healthcheck", "run", name)
            start = time.perf_counter()
            podman("stop", "--time", "10", name)
            stop_s = time.perf_counter() - start
    finally:
        podman("volume", "rm", "--force", volume)
    return {"ready_s": ready_s, "stop_s": stop_s, "same_text": answer.json().get("text") == load_custom()(load_image(page)).text}


def changed_again(wheels: Path) -> float:
    "Seconds of a second build, after a change of code."
    with TemporaryDirectory() as tmp:
        copy = Path(tmp, "course")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "_course", "_site", "__pycache__"))
        with (copy / "mlops_course" / "serving.py").open("a") as file: file.write("# changed\n")
        return build_image(copy, tag="localhost/reader-changed", wheels=wheels)


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("--cold", action="store_true")
    asked.add_argument("--record", action="store_true")
    asked.add_argument("--naive", type=float)
    args = asked.parse_args()
    subprocess.run(["bash", ROOT / "scripts" / "base_image.sh"], check=True, stdout=sys.stderr)
    if args.cold or args.record:
        for image in set(podman("images", "--quiet", "--filter", "label=org.opencontainers.image.title=reader").split()): podman("rmi", "--force", image)
        podman("image", "prune", "--force")
    with TemporaryDirectory() as tmp:
        wheels = fetch_wheels(Path(tmp))
        seconds = build_image(ROOT, wheels=wheels)
        again_s = changed_again(wheels)
    on = f"{datetime.now(UTC):%d %B %Y}, on two cores that others used too"
    found = {"files": {o: sha256((ROOT / o).read_bytes()).hexdigest() for o in ("deploy/Dockerfile", "deploy/requirements.lock")},
             "ours": {"on": on, "seconds": seconds, "again_s": again_s, **look_inside(IMAGE_TAG), **try_out()}}
    known = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    if args.naive: known["naive"] = {"on": on, "seconds": args.naive, **look_inside("localhost/naive")}
    found = json.loads(json.dumps({**known, **found}), parse_float=lambda o: round(float(o), 2))
    print(json.dumps(found, indent=1))
    if args.record: RECORD.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
