"""Say which lesson broke with which of the newest packages, as Markdown.

    .venv/bin/python scripts/newest.py --old OLD.lock --new requirements.lock --results _course/newest/report.json > report.md

The weekly workflow (.github/workflows/newest.yml) calls this after it has resolved, installed and run everything again.
Exit code 1 where something broke.
"""
import argparse
import ast
import json
import re
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent


def pins(lock: str) -> dict[str, str]:
    "Package -> version, as the text of a `lock` has it for this Python and this system."
    wanted = [Requirement(line) for line in lock.splitlines() if line.strip() and not line.startswith("#")]
    return {canonicalize_name(o.name): str(o.specifier).removeprefix("==") for o in wanted if o.marker is None or o.marker.evaluate()}


def changes(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    "Package -> its version before and after, for those that differ; an empty version means: not there."
    return {name: (old.get(name, ""), new.get(name, "")) for name in sorted({*old, *new}) if old.get(name) != new.get(name)}


def imported(source: str) -> set[str]:
    "The dotted names that the Python in `source` imports, wherever in it; notebook magics are skipped."
    code = "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines())
    try: nodes = list(ast.walk(ast.parse(code)))
    except SyntaxError: return set() # a cell in another language imports nothing of ours
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if not isinstance(node, ast.ImportFrom): continue
        start = "." * node.level + (node.module or "")
        inside = f"{start}." if node.module else start
        names |= {start, *(f"{inside}{alias.name}" for alias in node.names)} # what is imported may be a module itself
    return names


def modules_of(lesson: Path, package: Path) -> set[str]:
    "The top-level modules that a `lesson` imports, itself or through modules of the course in `package`."
    cells = json.loads(lesson.read_text(encoding="utf-8"))["cells"]
    codes = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    waiting = {(name, package) for code in codes for name in imported(code)} # a name, and the folder of who imports it
    seen: set[Path] = set()
    found: set[str] = set()
    while waiting:
        name, folder = waiting.pop()
        if not name.startswith((".", package.name)):
            found.add(name.partition(".")[0])
            continue
        inner = name.lstrip(".")
        dots = len(name) - len(inner)
        if not dots: folder, inner = package, name.removeprefix(package.name).lstrip(".")
        for _ in range(dots - 1): folder = folder.parent
        file = folder / f"{inner.replace('.', '/')}.py"
        if file in seen or not file.is_file(): continue
        seen.add(file)
        waiting |= {(o, file.parent) for o in imported(file.read_text(encoding="utf-8"))}
    return found


def packages_of(modules: Iterable[str]) -> set[str]:
    "The installed packages that bring `modules`."
    known = packages_distributions()
    return {canonicalize_name(o) for module in modules for o in known.get(module, [])}


def needed_by(packages: Iterable[str]) -> set[str]:
    "Everything that `packages` require, and that these require, as far as it is installed; without `packages` themselves."
    first = set(packages)
    seen, waiting = set(first), list(first)
    while waiting:
        try: wanted = requires(waiting.pop()) or []
        except PackageNotFoundError: continue
        for o in map(Requirement, wanted):
            name = canonicalize_name(o.name)
            if name not in seen and (o.marker is None or o.marker.evaluate({"extra": ""})):
                seen.add(name)
                waiting.append(name)
    return seen - first


def step(name: str, change: tuple[str, str]) -> str:
    "One change in a few words."
    before, after = change
    if not before: return f"{name} {after} (new)"
    if not after: return f"{name} {before} (gone)"
    return f"{name} {before} → {after}"


def cell(text: str) -> str:
    "`text` so that it fits into one cell of a Markdown table."
    return re.sub(r"\s+", " ", text).replace("|", "\\|").strip()


def last_line(traceback: str) -> str:
    "The line of a `traceback` that names the error, without colours."
    lines = [line for line in re.sub(r"\x1b\[[0-9;]*m", "", traceback).splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


def write_report(
    results: list[dict] | None,            # What became of each lesson; None where it never came to that
    changed: Mapping[str, tuple[str, str]], # Package -> version before and after
    suspects: Mapping[str, tuple[set[str], set[str]]], # Lesson -> packages it imports, packages that those need
) -> str:
    "The report, in Markdown."
    every = "\n".join(f"- {cell(step(*o))}" for o in changed.items()) or "- nothing"
    tail = f"\n<details><summary>All that changed ({len(changed)})</summary>\n\n{every}\n\n</details>\n"
    if results is None:
        return f"The newest releases could not be resolved, installed or imported together, so no lesson ran. The job's log says why.\n{tail}"
    broken = [o for o in results if o["status"] != "passed"]
    if not broken: return f"All {len(results)} lessons run with the newest releases.\n{tail}"
    rows = []
    for o in broken:
        direct, behind = ({name: changed[name] for name in sorted(names) if name in changed} for names in suspects[o["lesson"]])
        named = ["<br>".join(cell(step(*p)) for p in group.items()) or "none" for group in (direct, behind)]
        rows.append(f"| {o['lesson']} | {o['status']} | {cell(last_line(o.get('traceback') or ''))} | {named[0]} | {named[1]} |")
    head = "| lesson | outcome | error | imports, and changed | needed by those, and changed |\n|---|---|---|---|---|"
    return "\n".join([f"{len(broken)} of {len(results)} lessons break with the newest releases.\n", head, *rows]) + f"\n{tail}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--old", type=Path, required=True, help="the lock that works")
    parser.add_argument("--new", type=Path, required=True, help="the lock with the newest releases")
    parser.add_argument("--results", type=Path, required=True, help="report.json of `mlops-course run`; not there if nothing ran")
    args = parser.parse_args()
    sys.stdout.reconfigure(encoding="utf-8") # type: ignore[union-attr]  # Windows would write its own encoding
    changed = changes(*(pins(o.read_text(encoding="utf-8")) for o in (args.old, args.new)))
    results = json.loads(args.results.read_text(encoding="utf-8"))["lessons"] if args.results.is_file() else None
    suspects = {}
    for o in results or []:
        if o["status"] == "passed": continue
        direct = packages_of(modules_of(ROOT / "nbs" / f"{o['lesson']}.ipynb", ROOT / "mlops_course"))
        suspects[o["lesson"]] = direct, needed_by(direct)
    print(write_report(results, changed, suspects))
    sys.exit(results is None or any(o["status"] != "passed" for o in results))


if __name__ == "__main__":
    main()
