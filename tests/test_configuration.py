"""The configuration is strict: every mistake is named at once, every default is filled in, the shipped files are valid."""

from pathlib import Path

import pytest
from asdflow.configuration import complete, load_configuration, merge, read_yaml
from asdflow.errors import InputError

from tests.conftest import REPOSITORY

CONFIG = read_yaml(REPOSITORY / "config.yaml")
SCHEMA = read_yaml(REPOSITORY / "schemas" / "config.schema.yaml")
OVERLAYS = sorted((REPOSITORY / "configs").glob("*.yaml"))


def refused(overlay):
    with pytest.raises(InputError) as caught:
        load_configuration(merge(CONFIG, overlay), REPOSITORY)
    return str(caught.value)


def test_the_default_configuration_is_the_schema_s_defaults():
    assert complete({}, SCHEMA, "config", [], SCHEMA) == complete(CONFIG, SCHEMA, "config", [], SCHEMA)


def test_every_top_level_key_of_the_schema_stands_in_the_default_configuration():
    assert set(CONFIG) == set(SCHEMA["properties"])
    assert set(CONFIG["run"]) == set(SCHEMA["properties"]["run"]["properties"])


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_every_shipped_overlay_resolves(overlay):
    resolved = load_configuration(merge(CONFIG, read_yaml(overlay)), REPOSITORY)
    assert set(resolved["systems"]) == set(resolved["run"]["systems"])


@pytest.mark.parametrize("kind", ["datasets", "encoders", "systems"])
def test_every_shipped_part_is_valid(kind):
    for path in sorted((REPOSITORY / "configs" / kind).glob("*.yaml")):
        problems: list[str] = []
        complete(read_yaml(path), SCHEMA["$defs"][kind.removesuffix("s")], path.stem, problems, SCHEMA)
        assert problems == [], path


def test_every_key_of_the_schema_is_described():
    def undescribed(node, where):
        for name, rule in node.get("properties", {}).items():
            target = rule
            if "$ref" in rule:
                target = {**SCHEMA["$defs"][rule["$ref"].rsplit("/", 1)[1]], **rule}
            if "description" not in target and "const" not in target and "choose" not in target:
                yield f"{where}.{name}"
            yield from undescribed(rule, f"{where}.{name}")

    missing = list(undescribed(SCHEMA, "config"))
    for name, rule in SCHEMA["$defs"].items():
        missing += undescribed(rule, name)
    assert missing == []


def test_an_unknown_key_is_named_with_the_nearest_known_one():
    assert "config.run: unknown key 'seedz'; did you mean 'seeds'?" in refused({"run": {"seedz": [1]}})


def test_a_string_where_a_number_belongs_is_named_with_the_value():
    message = refused({"systems": {"attribute_aware": {"tuning": {"learning_rate": "1e-3"}}}})
    assert "systems.attribute_aware.tuning.learning_rate: '1e-3' is a string, where number belongs" in message


def test_an_unknown_system_is_named_with_the_nearest_known_one():
    assert "did you mean 'attribute_aware'" in refused({"run": {"systems": ["atribute_aware"]}})


def test_all_mistakes_come_in_one_message():
    message = refused({"device": "gpu", "results": "x", "run": {"seeds": ["one"]}})
    assert "config.device: 'gpu' is none of" in message
    assert "unknown key 'results'" in message
    assert "config.run.seeds[0]: 'one' is a string" in message


def test_a_default_made_explicit_changes_nothing():
    explicit = load_configuration(merge(CONFIG, {"device": "auto", "training_threads": 2}), REPOSITORY)
    assert explicit == load_configuration(CONFIG, REPOSITORY)


def test_only_the_parts_that_a_run_reaches_are_resolved():
    resolved = load_configuration(merge(CONFIG, {"run": {"systems": ["logmel_knn"]}}), REPOSITORY)
    assert list(resolved["systems"]) == ["logmel_knn"]
    assert list(resolved["encoders"]) == ["logmel_statistics"]


def test_a_file_that_is_not_yaml_is_named(tmp_path: Path):
    path = tmp_path / "broken.yaml"
    path.write_text("a: [1, 2")
    with pytest.raises(InputError, match=r"broken\.yaml is not valid YAML"):
        read_yaml(path)


def test_a_part_like_another_has_its_keys_and_its_own_laid_over_them():
    overlay = {
        "run": {"systems": ["warmer"]},
        "systems": {
            "warm": {"like": "attribute_aware", "tuning": {"steps": 7}},
            "warmer": {"like": "warm", "tuning": {"batch_size": 4}},
        },
    }
    resolved = load_configuration(merge(CONFIG, overlay), REPOSITORY)["systems"]
    shipped = load_configuration(CONFIG, REPOSITORY)["systems"]["attribute_aware"]
    tuning = {**shipped["tuning"], "steps": 7, "batch_size": 4}
    assert resolved == {"warmer": {**shipped, "tuning": tuning}}


def test_parts_that_are_like_each_other_are_refused():
    circle = {"one": {"like": "two"}, "two": {"like": "one"}}
    message = refused({"run": {"systems": ["one"]}, "systems": circle})
    assert "systems.two.like: one -> two -> one leads in a circle" in message


def test_a_part_like_an_unknown_one_is_refused_with_the_nearest_name():
    message = refused({"run": {"systems": ["mine"]}, "systems": {"mine": {"like": "attribute_awar"}}})
    assert "system 'attribute_awar' is neither in configs/systems/" in message
    assert "did you mean 'attribute_aware'?" in message
