"""Build the course's environment in .venv: packages from requirements.lock, the library, the Jupyter kernel.

    python3.11 scripts/environment.py     (Windows: py -3.11 scripts\\environment.py)

Needs only Python and, the first time, a package index. A second call does nothing twice, and brings back what is gone.
"""
import os
import re
import subprocess
import sys
import time
import venv
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"


def program(name: str) -> Path:
    "The program `name` of the environment."
    return VENV / "Scripts" / f"{name}.exe" if os.name == "nt" else VENV / "bin" / name


PYTHON = program("python")


def digest(paths: list[Path]) -> str:
    "One hash of the names and contents of `paths`."
    return sha256(b"".join(p.relative_to(ROOT).as_posix().encode() + p.read_bytes() for p in sorted(paths))).hexdigest()


def run(*command: str | Path) -> None:
    "Run `command` in the project, with pip's own sources shown to uv too."
    env = dict(os.environ)
    if "PIP_FIND_LINKS" in env: env.setdefault("UV_FIND_LINKS", env["PIP_FIND_LINKS"])
    result = subprocess.run([str(c) for c in command], cwd=ROOT, env=env)
    if result.returncode:
        sys.exit(f"\nStopped: `{' '.join(map(str, command[:6]))} …` failed with exit code {result.returncode}. "
                 "Its message stands above; mend that and call this again: what is done stays done.")


def once(name: str, inputs: list[Path], products: list[Path], *commands: tuple[str | Path, ...]) -> None:
    "Run `commands` unless they already succeeded for these very `inputs`, and all that they make is still there."
    stamp, wanted = VENV / f"done-{name}", digest(inputs) + sys.version
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted and all(p.exists() for p in products): return
    print(f"== {name}", flush=True)
    start = time.monotonic()
    for command in commands: run(*command)
    stamp.write_text(wanted, encoding="utf-8")
    print(f"   {name} took {time.monotonic()-start:.0f} s", flush=True)


def made_here() -> bool:
    "Is there an environment, and was it made for this very folder? Its programs hold the path of their Python."
    note = VENV / "pyvenv.cfg"
    return PYTHON.exists() and note.exists() and f" {VENV}\n" in note.read_text(encoding="utf-8")


def exported(notebooks: list[Path]) -> list[Path]:
    "The modules that `notebooks` are exported to."
    names = [name for p in notebooks for name in re.findall(r'"#\| default_exp ([\w.]+)', p.read_text(encoding="utf-8"))]
    return [ROOT / "mlops_course" / f"{name.replace('.', '/')}.py" for name in names]


def main() -> None:
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        found = sys.version.split()[0]
        sys.exit(f"This is Python {found}; the course needs 3.11, 3.12 or 3.13. "
                 f"Install one and call it by name: python3.11 {sys.argv[0]}")
    if not made_here():
        print("== virtual environment", flush=True)
        try: venv.create(VENV, clear=True, with_pip=True)
        except subprocess.CalledProcessError as e:
            sys.exit(f"This Python cannot make a virtual environment with pip in it ({e}). On Debian and Ubuntu: sudo apt-get install python3-venv")
    lock, overrides = ROOT / "requirements.lock", ROOT / "scripts" / "overrides.txt"
    uv = next(line for line in lock.read_text(encoding="utf-8").splitlines() if line.startswith("uv=="))
    pip = (PYTHON, "-m", "pip", "--disable-pip-version-check", "--no-input")
    install = (PYTHON, "-m", "uv", "pip", "install", "--python", PYTHON)
    packaging, notebooks = [ROOT / "settings.ini", ROOT / "setup.py"], list((ROOT / "nbs").rglob("[!.]*.ipynb"))
    # Environments of before hold the other OpenCV, which writes the same folder: removed first, or it would take files along.
    twin = (PYTHON, "-m", "uv", "pip", "uninstall", "--quiet", "--python", PYTHON, "opencv-python")
    once("packages", [lock, overrides], [program("uv"), program("nbdev_export")],
         (*pip, "install", "--quiet", uv), twin, (*install, "-r", lock, "--overrides", overrides))
    once("library", [lock, *packaging], [program("mlops-course")],
         (*install, "--quiet", "--no-deps", "--no-build-isolation", "--editable", ROOT))
    export = ROOT / "scripts" / "export.py"
    once("export", [lock, export, *packaging, *notebooks], exported(notebooks), (PYTHON, export))
    feed = "from mlops_course.reader.feed import fetch_feed; fetch_feed()"
    once("feed", [lock, ROOT / "mlops_course" / "reader" / "feed.py"], [ROOT / "data" / "feed" / "cairns_gtfs.zip"], (PYTHON, "-c", feed))
    reviews = "from mlops_course.reviews.data import fetch_reviews; fetch_reviews()"
    once("reviews", [lock, ROOT / "mlops_course" / "reviews" / "data.py"], [ROOT / "data" / "reviews" / "reviews.csv"], (PYTHON, "-c", reviews))
    jupyter = "from mlops_course.tools.house import install_jupyter; install_jupyter()"
    share = VENV / "share" / "jupyter"
    once("jupyter", [lock, ROOT / "mlops_course" / "tools" / "house.py"],
         [share / "kernels" / "mlops-course" / "kernel.json", share / "lab" / "settings" / "overrides.json"], (PYTHON, "-c", jupyter))


if __name__ == "__main__":
    main()
