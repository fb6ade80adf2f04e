"""Resolve settings.ini into requirements.lock, for Linux, macOS and Windows at once, and the image's part of it into deploy/.

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

# What the service imports; all else of the course stays out of its image. The second list builds what comes as source only.
# The third is for MLflow's own image, with the driver for PostgreSQL.
IMAGE = {
    "requirements.lock": """click dumb-init fastapi filelock httpx numpy onnxruntime opencv-python-headless pillow prometheus-client pydantic
        pydantic-settings python-dotenv python-multipart pyyaml rapidocr structlog threadpoolctl tqdm uvicorn""",
    "build.lock": "setuptools wheel",
    "mlflow/requirements.lock": "mlflow psycopg2-binary",
}


def without_cuda(lock: str) -> str:
    "The text of `lock` without the packages that only torch's CUDA build asks for."
    blocks = re.split(r"^(?=\S)", lock, flags=re.M)
    return "".join(b for b in blocks if not CUDA.match(b) and not b.startswith("#"))


def lock_image() -> None:
    "Write the locks of the image: the versions of requirements.lock, and the hash of each file."
    pins = LOCK.read_text(encoding="utf-8")
    with TemporaryDirectory() as tmp:
        Path(tmp, "pins").write_text(pins, encoding="utf-8")
        for name, wanted in IMAGE.items():
            Path(tmp, "in").write_text("\n".join(wanted.split()), encoding="utf-8")
            found = subprocess.run(
                [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--generate-hashes", "--python-platform", "linux",
                 "--python-version", "3.11", "--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links",
                 "--constraints", Path(tmp, "pins"), Path(tmp, "in")], check=True, capture_output=True, text=True).stdout
            (ROOT / "deploy" / name).write_text("# The image's part of requirements.lock. Made by scripts/lock.py: do not edit.\n" + found, encoding="utf-8")


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
    lock_image()
    print(f"{LOCK.name}: {sum('==' in line for line in LOCK.read_text().splitlines())} packages")


if __name__ == "__main__":
    main()
