"What the figures share."
import subprocess
import time
from pathlib import Path


def seconds_of(
    *command:str|Path, # Program and its words
    cwd:Path|None=None,
    env:dict|None=None,
) -> float:
    "How long `command` takes; an error if it fails."
    start = time.perf_counter()
    done = subprocess.run([str(o) for o in command], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode: raise ValueError(f"`{' '.join(map(str, command))}` failed: {(done.stderr or done.stdout)[-500:]}")
    return time.perf_counter() - start
