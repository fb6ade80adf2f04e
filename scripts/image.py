"""Build the service's image, try it, and print what was measured.

    .venv/bin/python scripts/image.py                  build and try
    .venv/bin/python scripts/image.py --product scans  the image of another product, with the model that
                                                       mlops-course models export champion --name scans has written
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
from mlops_course.container_engine import HARDENING_OPTIONS, build_image, podman, run_container
from mlops_course.image_layers import find_risks, make_sbom, open_image
from mlops_course.reader.custom import load_custom
from mlops_course.tools.products import PRODUCTS, find_product

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
    return re.sub(r"(\|\d+ (\w+=\S* )+)?(/bin/sh -c )?(#\(nop\) )?|\b(dir|multi|file):\w+ in ", "", made_by).strip()[:80]


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


def ask(url: str, headers: dict, name: str) -> dict:
    "Let the reader read a page, and compare with what it reads here. Send any other product its probe."
    if name == "reader":
        page = ROOT / "data" / "pages" / "render_3.png"
        answer = httpx.post(f"{url}/v1/read", files={"file": page.read_bytes()}, headers=headers, timeout=60)
        return {"same_text": answer.json().get("text") == load_custom()(load_image(page)).text}
    product = find_product(name)[0]
    probe = product.probe(product.order(), 8)
    answers = [httpx.post(f"{url}{probe.path}", params=probe.params, files={"file": o}, headers=headers, timeout=60) for o in probe.files]
    measures, fault = probe.judge([o.raise_for_status().json() for o in answers])
    return {**measures, "fault": fault}


def try_out(name: str = PRODUCTS[0]) -> dict:
    "Start the image with few rights, ask it something, stop it."
    image, volume = f"localhost/{name}", f"{name}-try"
    podman("volume", "create", volume)
    try:
        key = podman("run", "--rm", *HARDENING_OPTIONS, "--volume", f"{volume}:/var/reader", image, "keys", "add", "try").splitlines()[-1]
        start = time.perf_counter()
        with run_container(image, *HARDENING_OPTIONS, "--volume", f"{volume}:/var/reader") as (container, url):
            ready_s = time.perf_counter() - start
            found = ask(url, {"Authorization": f"Bearer {key}"}, name)
            podman("healthcheck", "run", container)
            start = time.perf_counter()
            podman("stop", "--time", "10", container)
            stop_s = time.perf_counter() - start
    finally:
        podman("volume", "rm", "--force", volume)
    return {"ready_s": ready_s, "stop_s": stop_s, **found}


def changed_again(wheels: Path, **arguments: str) -> float:
    "Seconds of a second build, after a change of code."
    with TemporaryDirectory() as tmp:
        copy = Path(tmp, "course")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "_course", "_site", "__pycache__"))
        with (copy / "mlops_course" / "serving.py").open("a") as file: file.write("# changed\n")
        return build_image(copy, tag="localhost/reader-changed", wheels=wheels, **arguments)


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("--cold", action="store_true")
    asked.add_argument("--record", action="store_true")
    asked.add_argument("--naive", type=float)
    asked.add_argument("--product", default=PRODUCTS[0], choices=PRODUCTS)
    args = asked.parse_args()
    name, folder = args.product, find_product(args.product)[0].model_folder
    if args.record and name != PRODUCTS[0]: asked.error(f"--record keeps the numbers of {PRODUCTS[0]}: leave out --product")
    if not (ROOT / folder / "model.onnx").is_file():
        asked.error(f"No model.onnx in {folder}, and the image takes it from there. Run: mlops-course models export champion --name {name}")
    subprocess.run(["bash", ROOT / "scripts" / "base_image.sh"], check=True, stdout=sys.stderr)
    if args.cold or args.record:
        for image in set(podman("images", "--quiet", "--filter", f"label=org.opencontainers.image.title={name}").split()): podman("rmi", "--force", image)
        podman("image", "prune", "--force")
    with TemporaryDirectory() as tmp:
        wheels = fetch_wheels(Path(tmp))
        seconds = build_image(ROOT, tag=f"localhost/{name}", wheels=wheels, product=name, model=folder)
        again_s = changed_again(wheels, product=name, model=folder)
    on = f"{datetime.now(UTC):%d %B %Y}, on two cores that others used too"
    found = {"files": {o: sha256((ROOT / o).read_bytes()).hexdigest() for o in ("deploy/Dockerfile", "deploy/requirements.lock")},
             "ours": {"on": on, "seconds": seconds, "again_s": again_s, **look_inside(f"localhost/{name}"), **try_out(name)}}
    known = json.loads(RECORD.read_text(encoding="utf-8")) if name == PRODUCTS[0] and RECORD.exists() else {}
    if args.naive: known["naive"] = {"on": on, "seconds": args.naive, **look_inside("localhost/naive")}
    found = json.loads(json.dumps({**known, **found}), parse_float=lambda o: round(float(o), 2))
    print(json.dumps(found, indent=1))
    if args.record: RECORD.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
