"""What a result was made from: digests of the code a stage reaches, and the state of the repository and machine.

Code digests cover the abstract syntax trees, without docstrings, of a script and of every module of this package that it
reaches at any depth, by import or by a string that names it (a registry of modules imported when first asked for). Comments,
layout and documentation do not change them; any other edit in reach does.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import platform
import re
import subprocess
from collections.abc import Collection
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent


def code_digest(script: str | Path, package: Path = PACKAGE) -> str:
    """Digest of the code that `script` reaches (16 hexadecimal digits).

    Parameters
    ----------
    script : path of a Python file.
    package : directory of the package whose modules are followed.
    """
    return hashlib.sha256(repr(sorted(code_digests(script, package).items())).encode()).hexdigest()[:16]


def code_digests(
    script: str | Path, package: Path = PACKAGE, unused: Collection[Path] = ()
) -> dict[str, str]:
    """File -> digest (12 hexadecimal digits) of everything that `script` reaches, so that a changed file can be named.

    Files of the package are named from its parent folder on (`asdflow/files.py`), others by their own name. `unused` are
    modules that are not followed: members of a registry that a configuration does not pick. Else as `code_digest`.
    """
    found = {}
    for path in sorted(reached_files(Path(script), package, unused)):
        name = path.relative_to(package.parent) if path.is_relative_to(package) else path.name
        found[str(name)] = _syntax_digest(path, path.stat().st_mtime_ns)
    return found


def reached_files(script: Path, package: Path = PACKAGE, unused: Collection[Path] = ()) -> list[Path]:
    """The script and every file of `package` that it reaches, without those `unused`, in a fixed order.

    Besides modules these are the data files (templates, styles, tables) that lie in a reached package folder.
    """
    seen: dict[Path, None] = {}
    queue = [Path(script)]
    while queue:
        path = queue.pop()
        if path in seen or path in unused:
            continue
        seen[path] = None
        if path.suffix == ".py":
            queue.extend(_imported_files(path, path.stat().st_mtime_ns, package))
    folders = sorted(
        {path.parent for path in seen if path.is_relative_to(package) and path.parent != package}
    )
    data = [file for folder in folders for file in sorted(folder.rglob("*")) if file.suffix in DATA_SUFFIXES]
    return [Path(script), *sorted({*seen, *data} - {Path(script)})]


DATA_SUFFIXES = {".html", ".css", ".js", ".j2", ".yaml"}


@functools.lru_cache(maxsize=4096)
def _syntax_digest(path: Path, mtime_ns: int) -> str:
    """Digest of the syntax tree of a Python file without docstrings, or of the text of any other file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                _drop_docstring(node)
        text = ast.dump(tree)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _drop_docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    if ast.get_docstring(node, clean=False) is not None:
        node.body = node.body[1:]


@functools.lru_cache(maxsize=4096)
def _imported_files(path: Path, mtime_ns: int, package: Path) -> tuple[Path, ...]:
    """Files of `package` that one module imports or names in a string, wherever in it that stands."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute_module(node, path, package)
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names += re.findall(rf"^{package.name}(?:\.\w+)+", node.value)
    return tuple(file for name in names for file in _module_files(name, package))


def _absolute_module(node: ast.ImportFrom, path: Path, package: Path) -> str:
    """The full name of the module that a `from ... import` names, relative imports included."""
    if not node.level:
        return node.module or ""
    folder = path.parents[node.level - 1].relative_to(package.parent)
    return ".".join([*folder.parts, *([node.module] if node.module else [])])


def _module_files(name: str, package: Path) -> list[Path]:
    """The file of module `name` and the `__init__` files Python runs on the way to it, if it belongs to `package`."""
    parts = name.split(".")
    if parts[0] != package.name:
        return []
    files = []
    for depth in range(1, len(parts) + 1):
        base = package.parent.joinpath(*parts[:depth])
        files += [file for file in (base / "__init__.py", base.with_suffix(".py")) if file.is_file()]
    return files


def repository_state(root: Path) -> dict[str, Any]:
    """Commit and whether the tree differs from it; empty values outside a git checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        state = {"commit": git("rev-parse", "HEAD"), "branch": git("rev-parse", "--abbrev-ref", "HEAD")}
        return {**state, "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "branch": None, "dirty": None}


def machine_state() -> dict[str, Any]:
    """Hardware, operating system and the versions of the libraries that results depend on."""
    libraries = (
        "torch",
        "torchaudio",
        "numpy",
        "scipy",
        "scikit-learn",
        "pandas",
        "h5py",
        "snakemake",
        "lightning-fabric",
    )
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "versions": {name: metadata.version(name) for name in libraries},
    }


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU with its driver, told without importing torch."""
    return Path("/dev/nvidiactl").exists()


def _gpu_names() -> str:
    """What the NVIDIA driver calls this machine's GPUs; empty without a driver."""
    found = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        found += [line.split(":", 1)[1].strip() for line in lines if line.startswith("Model")]
    return ", ".join(found)


def _processor() -> str:
    """The processor's own name where Linux tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def run_record(configuration: dict[str, Any], benchmarks: Path, root: Path, command: str) -> dict[str, Any]:
    """What the report's provenance view tells of a run.

    Parameters
    ----------
    configuration : the resolved configuration.
    benchmarks : folder with Snakemake's benchmark tables, `<rule>/<job>.tsv`.
    root : the checkout.
    command : a command that makes the same run again.
    """
    machine = machine_state()
    return {
        "command": command,
        "git": repository_state(root),
        "configuration": configuration,
        "seeds": configuration["run"]["seeds"],
        "systems": configuration["run"]["systems"],
        "versions": {"python": machine["python"], **machine["versions"]},
        "hardware": {
            "processor": machine["processor"],
            "cores": os.cpu_count(),
            "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
            "gpu": _gpu_names() or "none",
            "platform": machine["platform"],
        },
        "benchmarks": [_benchmark(path, benchmarks) for path in sorted(benchmarks.rglob("*.tsv"))],
    }


def _benchmark(path: Path, folder: Path) -> dict[str, Any]:
    """Seconds and peak memory of one job from Snakemake's table."""
    names, values = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[:2])
    row = dict(zip(names, values, strict=True))
    rule, *job = path.relative_to(folder).with_suffix("").parts
    memory = row.get("max_rss", "-")
    return {
        "rule": rule,
        "job": " ".join(job),
        "seconds": float(row["s"]),
        "peak_memory_mb": float(memory) if memory not in ("-", "NA") else None,
    }
