"""Resolve settings.ini into requirements.lock, for Linux, macOS and Windows at once.

    .venv/bin/python scripts/lock.py             keep the present pins, add what is missing
    .venv/bin/python scripts/lock.py --upgrade   take the newest of everything

Torch's CUDA packages stay out of the lock: torch pins them itself, and its CPU build has none.
"""
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from shlex import split
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
CUDA = re.compile(r"^(nvidia-|cuda-|triton)")
HEADER = """\
# Every pin, transitively, for Python 3.11 to 3.13 on Linux, macOS and Windows. Made by scripts/lock.py: do not edit.
# Torch's own CUDA packages are not listed: torch pins them exactly where its build needs them.
"""


def without_cuda(lock: str) -> str:
    "The text of `lock` without the packages that only torch's CUDA build asks for."
    blocks = re.split(r"^(?=\S)", lock, flags=re.M)
    return "".join(b for b in blocks if not CUDA.match(b) and not b.startswith("#"))


def main() -> None:
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    wanted = split(config["DEFAULT"]["requirements"]) + split(config["DEFAULT"]["dev_requirements"])
    with TemporaryDirectory() as tmp:
        source, out = Path(tmp, "requirements.in"), Path(tmp, "requirements.lock")
        source.write_text("\n".join(wanted), encoding="utf-8")
        if LOCK.exists(): out.write_text(LOCK.read_text(encoding="utf-8"), encoding="utf-8")
        subprocess.run(
            [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--no-header",
             "--no-annotate", "--overrides", ROOT/"scripts"/"overrides.txt", source, "--output-file", out, *sys.argv[1:]], check=True)
        LOCK.write_text(HEADER + without_cuda(out.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{LOCK.name}: {sum('==' in line for line in LOCK.read_text().splitlines())} packages")


if __name__ == "__main__":
    main()
