"""Strict reading of the configuration: named parts merged, defaults filled in, every mistake listed at once."""

from __future__ import annotations

import copy
import difflib
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from asdflow.ablations import every_row, row_entries, table_problems
from asdflow.errors import InputError

PARTS = ("datasets", "encoders", "systems")


def load_configuration(config: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """Resolve a run: the given keys, every named part it reaches, and all defaults.

    Parameters
    ----------
    config : as Snakemake merged it from the configuration files and the command line.
    root : folder that holds `configs/` and `schemas/`.

    Returns
    -------
    The configuration with `datasets`, `encoders` and `systems` holding exactly the parts this run reaches, complete.

    Raises
    ------
    InputError : unknown keys, wrong types or values, unknown names; all of them in one message.
    """
    schema = read_yaml(root / "schemas" / "config.schema.yaml")
    problems: list[str] = []
    resolved = complete(dict(config), schema, "config", problems, schema)
    if not problems:
        run = resolved["run"]
        run["baseline"] = run["baseline"] or run["systems"][-1]
        _add_ablations(resolved, problems)
    if not problems:
        _resolve_parts(resolved, root, schema, problems)
        problems += _ensemble_problems(resolved)
    if problems:
        raise InputError(
            "The configuration is not valid:",
            problems,
            "correct the keys named above in config.yaml, the overlay or configs/; schemas/config.schema.yaml describes every key",
        )
    return resolved


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML file that holds a mapping."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML", [str(error)], "correct the line named above") from error
    if not isinstance(content, dict):
        raise InputError(
            f"{path} does not hold a mapping of keys to values", remedy="write `key: value` lines"
        )
    return content


def _resolve_parts(config: dict[str, Any], root: Path, schema: dict[str, Any], problems: list[str]) -> None:
    """Replace the three tables of named parts by the parts that the run reaches, following the names from systems to data sets."""
    given = {kind: config[kind] for kind in PARTS}
    found: dict[str, dict[str, Any]] = {kind: {} for kind in PARTS}
    queue = [("systems", name) for name in config["run"]["systems"]]
    queue += [("datasets", name) for name in config["run"]["datasets"]]
    while queue:
        kind, name = queue.pop(0)
        if name in found[kind]:
            continue
        part = _named_part(kind, name, given[kind], root, problems)
        if part is None:
            continue
        part = complete(part, schema["$defs"][kind.removesuffix("s")], f"{kind}.{name}", problems, schema)
        found[kind][name] = part
        if not problems:
            queue += _references(kind, part)
    config.update({kind: dict(sorted(parts.items())) for kind, parts in found.items()})


def _add_ablations(config: dict[str, Any], problems: list[str]) -> None:
    """Make every row of every ablation table a system of the run."""
    for name, table in config["ablations"].items():
        wrong = table_problems(name, table)
        problems += wrong
        if wrong:
            continue
        table["rows"] = every_row(table)
        empty: dict[str, Any] = {}
        for system, entries in row_entries(name, table).items():
            given = config["systems"].get(system, {})
            config["systems"][system] = functools.reduce(merge, [*entries, given], empty)
            if system not in config["run"]["systems"]:
                config["run"]["systems"].append(system)


def _ensemble_problems(config: Mapping[str, Any]) -> list[str]:
    """Ensembles of systems that the run has not, or with the name of one."""
    problems = [
        f"ensembles.{name}: is also the name of a system"
        for name in config["ensembles"]
        if name in config["systems"]
    ]
    for name, entry in config["ensembles"].items():
        missing = [system for system in entry["systems"] if system not in config["run"]["systems"]]
        problems += [f"ensembles.{name}.systems: '{system}' is not in run.systems" for system in missing]
    return problems


def _references(kind: str, part: dict[str, Any]) -> list[tuple[str, str]]:
    """The parts that a part names."""
    if kind == "systems":
        return [("encoders", part["encoder"]), *(("datasets", name) for name in part["extra_datasets"])]
    if kind == "encoders":
        names = (
            [("encoders", part["init"])] if isinstance(part["init"], str) and part["init"] != "none" else []
        )
        recipe = part["pretraining"] or {"datasets": []}
        return names + [("datasets", name) for name in recipe["datasets"] if name != "run"]
    return []


def _named_part(
    kind: str,
    name: str,
    given: Mapping[str, Any],
    root: Path,
    problems: list[str],
    followed: tuple[str, ...] = (),
) -> dict[str, Any] | None:
    """One part: its file under configs/, or the part it says it is `like`, with what the configuration gives laid over it.

    given : the configuration's own entries of this kind. followed : the names that led here by `like`.
    """
    own = given.get(name)
    path = root / "configs" / kind / f"{name}.yaml"
    if path.is_file():
        return merge(read_yaml(path), own or {})
    if not isinstance(own, dict):
        known = sorted({*(file.stem for file in path.parent.glob("*.yaml")), *given})
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
        problems.append(
            f"{kind.removesuffix('s')} '{name}' is neither in configs/{kind}/ nor under '{kind}:'; {hint}"
        )
        return None
    if "like" not in own:
        return copy.deepcopy(own)
    followed = (*followed, name)
    if own["like"] in followed:
        problems.append(f"{kind}.{name}.like: {' -> '.join((*followed, own['like']))} leads in a circle")
        return None
    base = _named_part(kind, str(own["like"]), given, root, problems, followed)
    return None if base is None else merge(base, {key: item for key, item in own.items() if key != "like"})


def merge(base: dict[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """`overlay` laid over `base`, mappings merged key by key, everything else replaced.

    A mapping with another `name` (a back end, an architecture) is another thing and replaces the whole.
    """
    result = copy.deepcopy(base)
    for key, value in overlay.items():
        below = result.get(key)
        if (
            isinstance(value, Mapping)
            and isinstance(below, dict)
            and value.get("name", below.get("name")) == below.get("name")
        ):
            result[key] = merge(below, value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def complete(
    value: Any, schema: dict[str, Any], where: str, problems: list[str], root: dict[str, Any]
) -> Any:
    """Check `value` against `schema` and return it with every default filled in; mistakes are added to `problems`.

    Besides JSON Schema the keyword `choose: {key: K, among: {V: schema}}` picks the schema of a mapping by its key K.
    """
    schema = _concrete(value, schema, root)
    if isinstance(value, dict) and schema.get("type") in ("object", ["object", "null"]):
        return _complete_mapping(value, schema, where, problems, root)
    if isinstance(value, list) and "items" in schema:
        value = [
            complete(item, schema["items"], f"{where}[{i}]", problems, root) for i, item in enumerate(value)
        ]
        schema = {key: rule for key, rule in schema.items() if key != "items"}
    shallow = {
        key: rule
        for key, rule in schema.items()
        if key not in ("properties", "additionalProperties", "required")
    }
    for error in jsonschema.Draft202012Validator(shallow).iter_errors(value):
        problems.append(f"{where}: {_explain(error)}")
    return _number(value, schema)


def _number(value: Any, schema: Mapping[str, Any]) -> Any:
    """A number as the schema's type says, so that 30 and 30.0 are one value: they must not count as a change."""
    kinds = schema.get("type", ())
    kinds = {kinds} if isinstance(kinds, str) else set(kinds)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if "number" in kinds:
        return float(value)
    return int(value) if "integer" in kinds and float(value).is_integer() else value


def _complete_mapping(
    value: dict[str, Any], schema: dict[str, Any], where: str, problems: list[str], root: dict[str, Any]
) -> dict[str, Any]:
    properties = schema.get("properties", {})
    others = schema.get("additionalProperties", False)
    result = {}
    for key, item in value.items():
        name = str(key)
        if name in properties:
            result[name] = complete(item, properties[name], f"{where}.{name}", problems, root)
        elif isinstance(others, dict):
            result[name] = complete(item, others, f"{where}.{name}", problems, root)
        else:
            near = difflib.get_close_matches(name, properties, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(properties)}"
            problems.append(f"{where}: unknown key '{name}'; {hint}")
    for name, rule in properties.items():
        if name in result:
            continue
        rule = _concrete(None, rule, root)
        if "default" in rule:
            result[name] = complete(copy.deepcopy(rule["default"]), rule, f"{where}.{name}", problems, root)
        elif name in schema.get("required", ()):
            problems.append(f"{where}: the key '{name}' is missing ({rule.get('description', 'required')})")
    if len(result) < schema.get("minProperties", 0):
        problems.append(f"{where}: needs at least {schema['minProperties']} entries")
    return result


def _concrete(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """Follow `$ref` and `choose` to the schema that holds for this value."""
    while True:
        if "$ref" in schema:
            target: Any = root
            for step in schema["$ref"].removeprefix("#/").split("/"):
                target = target[step]
            schema = {**target, **{key: rule for key, rule in schema.items() if key != "$ref"}}
        elif "choose" in schema and isinstance(value, dict):
            choice = schema["choose"]
            branch = choice["among"].get(value.get(choice["key"], choice.get("default")))
            if branch is None:
                allowed = {
                    "enum": sorted(choice["among"]),
                    "description": f"chooses the other keys; one of {sorted(choice['among'])}",
                }
                return {
                    "type": "object",
                    "properties": {choice["key"]: allowed},
                    "required": [choice["key"]],
                    "additionalProperties": {},
                }
            schema = branch
        else:
            return schema


def _explain(error: jsonschema.ValidationError) -> str:
    """One line on what is wrong with a value and what would be right."""
    value, rule = error.instance, error.validator_value
    if error.validator == "type":
        wanted = " or ".join(rule) if isinstance(rule, list) else str(rule)
        text = f"{value!r} is {_kind(value)}, where {wanted} belongs"
        if isinstance(value, str) and wanted in ("number", "integer", "number or null", "integer or null"):
            text += " (YAML reads 1e-3 as text: write 0.001 or 1.0e-3, without quotes)"
        return text
    if error.validator == "enum":
        allowed = [str(item) for item in rule] if isinstance(rule, list) else []
        near = difflib.get_close_matches(str(value), allowed, n=1)
        return f"{value!r} is none of {', '.join(allowed)}" + (f"; did you mean '{near[0]}'?" if near else "")
    return error.message


def _kind(value: Any) -> str:
    kinds = {
        str: "a string",
        bool: "true or false",
        int: "an integer",
        float: "a number",
        list: "a list",
        dict: "a mapping",
    }
    return "empty" if value is None else kinds.get(type(value), type(value).__name__)
