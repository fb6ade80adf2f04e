"""The checks of pre-commit that no other command makes. The tests call them too.

    .venv/bin/python scripts/hooks.py clean NOTEBOOK…   is each as nbdev_clean leaves it?
    .venv/bin/python scripts/hooks.py export            is mlops_course/ what nbs/ exports?
"""
import json
import os
import shutil
import subprocess
import sys
from difflib import unified_diff
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent


def unclean(notebook: Path) -> str:
    "What is wrong with a `notebook` that nbdev_clean would change, or nothing."
    from execnb.nbio import nb2str
    from nbdev.clean import clean_nb
    from nbdev.config import get_config
    config = get_config(path=ROOT)
    before = notebook.read_text(encoding="utf-8")
    name = notebook.resolve().relative_to(ROOT).as_posix()
    try: notebook_data = json.loads(before)
    except ValueError as e: return f"{name} is no notebook, or damaged ({e}). Bring it back from git, or remove it"
    clean_nb(notebook_data, False, config.allowed_metadata_keys.split(), config.allowed_cell_metadata_keys.split(), config.clean_ids)
    after = nb2str(notebook_data)
    if before == after: return ""
    return f"{name} is not clean ({difference(before, after)}). Call: .venv/bin/nbdev_clean --fname {name}"


def stale_exports(root: Path = ROOT) -> list[str]:
    "Each module under `root` that is not what the notebooks export, in words."
    with TemporaryDirectory() as tmp:
        shutil.copy(root / "settings.ini", tmp)
        shutil.copytree(root / "nbs", Path(tmp, "nbs"), ignore=shutil.ignore_patterns(".*", "*.tmp"))
        # Exported into an empty folder, so that a module whose notebook is gone is noticed.
        command = [sys.executable, ROOT / "scripts" / "export.py"]
        done = subprocess.run(command, cwd=tmp, capture_output=True, text=True, env={**os.environ, "PYTHONUTF8": "1"})
        if done.returncode: return [f"scripts/export.py fails: {done.stderr.strip().splitlines()[-1]}"]
        made = {o.relative_to(tmp): o.read_text(encoding="utf-8") for o in Path(tmp, "mlops_course").rglob("*.py")}
    here = {o.relative_to(root): o.read_text(encoding="utf-8") for o in (root / "mlops_course").rglob("*.py")}
    said = [f"{name.as_posix()} is exported by no notebook: remove it" for name in sorted(here.keys() - made.keys())]
    said += [f"{name.as_posix()} is not there" for name in sorted(made.keys() - here.keys())]
    for name in sorted(made.keys() & here.keys()):
        if made[name] != here[name]: said.append(f"{name.as_posix()} differs from its notebook: {difference(here[name], made[name])}")
    return said


def difference(before: str, after: str) -> str:
    "The first lines in which two texts differ."
    lines = unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    return "; ".join([o[:100] for o in lines if o[:1] in "+-" and o[:3] not in ("+++", "---")][:3]) or "only line endings differ"


def main(words: list[str]) -> None:
    if words[:1] == ["clean"]: said = list(filter(None, (unclean(Path(o)) for o in words[1:])))
    elif words == ["export"]: said = stale_exports()
    else: sys.exit(f"Not a check: {' '.join(words) or 'nothing'}.\n{__doc__}")
    if words == ["export"] and said: said.append("Write in nbs/, then call: make env")
    sys.exit("\n".join(said) or 0)


if __name__ == "__main__":
    main(sys.argv[1:])
