"""The house stays as docs/architecture.md draws it: layers import downwards only, nothing imports snakemake, envs equal the lock."""

import ast
import re

import pytest
import yaml
from asdflow.provenance import PACKAGE, code_digest, reached_files

from tests.conftest import REPOSITORY

GROUND = {
    "errors", "files", "tables", "weights", "locks", "leases", "device", "configuration", "ablations", "provenance", "job",
    "running", "why", "workstation", "slurm_arrays",
}  # fmt: skip
LAYERS = ["data", "features", "models", "clustering", "training", "detection", "report", "cli"]
MODULES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted((REPOSITORY / "workflow_scripts").glob("*.py"))


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            yield name.split(".")


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_its_own_room_and_the_rooms_below(path):
    room = room_of(path)
    if room == "__init__":
        return
    allowed = GROUND if room in GROUND else GROUND | set(LAYERS[: LAYERS.index(room) + 1])
    for parts in imported_rooms(path):
        assert parts[0] != "snakemake"
        if parts[0] == "asdflow" and len(parts) > 1:
            assert parts[1] in allowed, f"{path.name} imports {'.'.join(parts)}"


@pytest.mark.parametrize("path", MODULES + SCRIPTS, ids=lambda path: path.name)
def test_every_module_says_in_its_first_line_what_it_is_for(path):
    text = path.read_text(encoding="utf-8")
    if path.name != "__init__.py":
        assert ast.get_docstring(ast.parse(text)), path


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_one_main_with_a_guard(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert functions == ["main"]
    assert isinstance(tree.body[-1], ast.If)
    assert "__future__" not in path.read_text(encoding="utf-8")


FETCHING = {
    "download",
    "unpack",
    "fetch_labels",
}  # published checksums say what is right, whatever code fetches it


def test_every_rule_names_its_script_log_benchmark_conda_threads_and_resources():
    for path in sorted((REPOSITORY / "rules").glob("*.smk")):
        text = re.sub(r"#.*", "", path.read_text(encoding="utf-8"))
        for rule in re.split(r"^rule ", text, flags=re.M)[1:]:
            body = re.split(r"^(?:use rule|def|checkpoint) ", rule, flags=re.M)[0]
            for directive in (
                "output:",
                "params:",
                "cfg=",
                "code=",
                "log:",
                "benchmark:",
                "conda:",
                "threads:",
                "mem_mb=",
                "runtime=",
                "script:",
            ):
                if directive in ("output:", "benchmark:", "cfg=", "code=") and rule.split(":")[0] == "why":
                    continue  # it makes nothing
                if directive == "code=" and rule.split(":")[0] in FETCHING:
                    continue
                assert directive in body, f"{path.name}: rule {rule.split(':')[0]} has no {directive}"


def locked_versions():
    lock = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^ ;\\]+)", lock, flags=re.M))


@pytest.mark.parametrize("path", sorted((REPOSITORY / "envs").glob("*.yaml")), ids=lambda path: path.stem)
def test_conda_environments_hold_the_locked_versions(path):
    locked = locked_versions()
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))["dependencies"]
    pip = [pin for entry in entries if isinstance(entry, dict) for pin in entry["pip"]]
    conda = [
        entry for entry in entries if isinstance(entry, str) and not entry.startswith(("python ", "pip"))
    ]
    assert conda and pip
    for pin in conda + pip:
        name, version = (part.strip() for part in re.split(r"=+", pin, maxsplit=1))
        assert locked[name] == version, f"{path.name}: {pin}"


def test_the_lock_holds_hashes_and_names_no_address():
    lock = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8")
    assert "://" not in lock
    assert lock.count("==") > 100
    for block in re.split(r"^(?=[A-Za-z0-9])", lock, flags=re.M)[1:]:
        assert "--hash=sha256:" in block


def small_package(tmp_path):
    package = tmp_path / "asdflow"
    (package / "room").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "room" / "__init__.py").write_text("")
    (package / "room" / "near.py").write_text("from asdflow.room import far\n")
    (package / "room" / "far.py").write_text('"""Doc."""\nVALUE = 1\n')
    (package / "other.py").write_text("VALUE = 1\n")
    script = tmp_path / "script.py"
    script.write_text("def main(smk):\n    from asdflow.room.near import far\n")
    return script, package


def test_a_code_digest_ignores_comments_and_docstrings(tmp_path):
    script, package = small_package(tmp_path)
    before = code_digest(script, package)
    (package / "room" / "far.py").write_text('"""Another text."""\n\n# a comment\nVALUE = 1\n')
    assert code_digest(script, package) == before


def test_a_code_digest_follows_imports_over_two_hops(tmp_path):
    script, package = small_package(tmp_path)
    before = code_digest(script, package)
    (package / "room" / "far.py").write_text("VALUE = 22\n")
    assert code_digest(script, package) != before


def test_a_code_digest_ignores_modules_that_are_not_reached(tmp_path):
    script, package = small_package(tmp_path)
    before = code_digest(script, package)
    (package / "other.py").write_text("VALUE = 22\n")
    assert code_digest(script, package) == before
    assert package / "other.py" not in reached_files(script, package)
