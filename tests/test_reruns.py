"""What runs again after a change, and only that: configuration keys, modules, recordings, and changes that are none."""

import ast
import os
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from asdflow import provenance
from asdflow.configuration import merge, read_yaml
from asdflow_plan.plan import planned_jobs, planned_workflow

from tests.conftest import REPOSITORY
from tests.pretended_run import pretend_run
from tests.workflow import planned, snakemake

CHECKOUT = ("Snakefile", "config.yaml", "configs", "rules", "schemas", "workflow_scripts", "envs", "report")
# without what is made of several systems' scores, so that the table counts each stage once
SMOKE = {
    key: value
    for key, value in read_yaml(REPOSITORY / "configs" / "smoke.yaml").items()
    if key not in ("ensembles", "ablations")
}

# The stages of the smoke run and what follows from each, counted in jobs: one data set of six machines, three systems
# (attribute_aware and frozen on eat_small, logmel_knn on logmel_statistics), two seeds.
REPORT = {"report": 1}
EVALUATE = {"evaluate": 1, **REPORT}


def scored(systems):
    return {"score": 2 * systems, **EVALUATE}


def tuned(systems):
    """attribute_aware with both seeds, and so many systems in all: the others train nothing, so one job serves every seed."""
    return {"finetune": 1 + systems, **scored(systems)}


UNTUNED = {"finetune": 1, **scored(1)}
LABELLED = {"label": 1, "label_unadapted": 1, **tuned(1)}  # the one system that clusters embeddings
PRETRAINED = {"pretrain": 1, "embed": 1, "label": 1, **tuned(2)}
EAT_MADE = {"fetch_encoder": 1, **PRETRAINED, "embed": 2, "label_unadapted": 1}
CATALOGUED = {
    "catalogue": 1,
    "find_duplicates": 1,
    **PRETRAINED,
    "label": 3,
    "label_unadapted": 1,
    **tuned(3),
}
EXTRACTED = {"extract_features": 6, **CATALOGUED, "embed": 3}
EVERYTHING = {"synthesize": 1, **EXTRACTED, "fetch_encoder": 2}
MADE_AGAIN = {rule: n for rule, n in EVERYTHING.items() if rule != "fetch_encoder"}
NOTHING: dict[str, int] = {}


def system(name, **keys):
    return {"systems": {name: keys}}


def encoder(name, **keys):
    return {"encoders": {name: keys}}


def demo(**keys):
    return {"datasets": {"demo": keys}}


KEYS = {
    # recordings and catalogue
    "seed of the recordings": (demo(seed=7), MADE_AGAIN),
    "number of clips": (demo(counts={"test": 5}), MADE_AGAIN),
    "one machine's level": (demo(machines={"fan": {"snr_db": 1.0}}), MADE_AGAIN),
    "attributes hidden": (demo(machines={"fan": {"hide_attributes": True}}), MADE_AGAIN),
    "channel taken": (demo(audio={"channel": "first"}), {**EXTRACTED}),
    "resampling refused": (demo(audio={"resample": False}), {**EXTRACTED}),
    "year of the metrics": (demo(rules_of=2024), EVALUATE),
    # features and encoders
    "front end": (
        encoder("logmel_statistics", front_end="stft"),
        {"extract_features": 6, "fetch_encoder": 1, "embed": 1, **UNTUNED},
    ),
    "encoder's depth": (encoder("eat_small", architecture={"depth": 3}), EAT_MADE),
    "encoder's seed": (encoder("eat_small", seed=5), EAT_MADE),
    "other encoder's seed": (
        encoder("logmel_statistics", seed=5),
        {"fetch_encoder": 1, "embed": 1, **UNTUNED},
    ),
    "pre-training's learning rate": (encoder("eat_small", pretraining={"learning_rate": 1e-3}), PRETRAINED),
    "pre-training's masks": (encoder("eat_small", pretraining={"masks": 5}), PRETRAINED),
    "pre-training's decoder": (encoder("eat_small", pretraining={"decoder": {"layers": 3}}), PRETRAINED),
    "no pre-training": (
        encoder("eat_small", pretraining=None),
        {"fetch_encoder": 1, **{rule: n for rule, n in PRETRAINED.items() if rule != "pretrain"}},
    ),
    # embeddings, labels
    "pooling for clusters": (encoder("eat_small", pooling={"kind": "mean"}), {"embed": 2, **LABELLED}),
    "batch of the embedding": (encoder("eat_small", batch_size=8), {"embed": 2, **LABELLED}),
    "clusters per group": (system("attribute_aware", labels={"max_clusters": 12}), LABELLED),
    "linkage": (system("attribute_aware", labels={"method": "average"}), LABELLED),
    "labels of a system without clusters": (
        system("frozen", labels={"kind": "machine"}),
        {"label": 1, **UNTUNED},
    ),
    # tuning
    "steps": (system("attribute_aware", tuning={"steps": 21}), tuned(1)),
    "margin": (system("attribute_aware", objective={"arcface": {"margin": 0.2}}), tuned(1)),
    "augmentation": (system("attribute_aware", augmentation={"mixup": {"probability": 0.5}}), tuned(1)),
    "pooling": (system("attribute_aware", pooling={"crops": 3}), tuned(1)),
    "pooling of a frozen system": (system("frozen", pooling={"kind": "mean"}), UNTUNED),
    # back end, threshold, evaluation, report
    "neighbours": (system("frozen", backend={"neighbours": 3}), scored(1)),
    "back end's metric": (system("logmel_knn", backend={"metric": "cosine"}), scored(1)),
    "false-alarm rate": (system("logmel_knn", decision={"false_alarm_rate": 0.05}), scored(1)),
    "baseline": ({"run": {"baseline": "attribute_aware"}}, EVALUATE),
    "a further seed": ({"run": {"seeds": [0, 1, 2]}}, {"finetune": 1, "score": 3, **EVALUATE}),
    "one seed less": ({"run": {"seeds": [0]}}, EVALUATE),
    "one system less": ({"run": {"systems": ["attribute_aware", "frozen"]}}, EVALUATE),
    "a system's title": (system("frozen", title="Another title"), REPORT),
    # where and how, which decides no result
    "device": ({"device": "cpu"}, NOTHING),
    "threads": ({"training_threads": 1}, NOTHING),
    "devices": ({"training_devices": 2}, NOTHING),
    "log lines of fine-tuning": (system("attribute_aware", tuning={"log_every": 3}), NOTHING),
    "log lines of pre-training": (encoder("eat_small", pretraining={"log_every": 3}), NOTHING),
    "checkpoints of pre-training": (encoder("eat_small", pretraining={"checkpoint_minutes": 1}), NOTHING),
    "checkpoints of fine-tuning": (system("attribute_aware", tuning={"checkpoint_minutes": 1}), NOTHING),
    "downloads": ({"download": {"parallel": 1, "timeout_s": 5}}, NOTHING),
    "detection": ({"detect": {"machine": "fan", "recordings": "somewhere"}}, NOTHING),
    "another results folder": ({"results_dir": "results-other"}, {**EXTRACTED, "fetch_encoder": 2}),
    # traps
    "two values swapped": (
        system("attribute_aware", tuning={"learning_rate": 1.0e-2, "head_learning_rate": 1.5e-3}),
        tuned(1),
    ),
    "a value moved between keys": (
        system("attribute_aware", tuning={"frozen_share": 0.98, "weight_average": 0.5}),
        tuned(1),
    ),
    "a value moved to another system": (
        merge(
            system("frozen", backend={"normalisation": "local_density"}),
            system("logmel_knn", backend={"normalisation": "none"}),
        ),
        scored(1),
    ),
    "a default made explicit": (
        system("attribute_aware", tuning={"weight_decay": 0.05}, decision={"method": "gamma"}),
        NOTHING,
    ),
    "a whole number where a fraction may stand": (
        merge(system("attribute_aware", objective={"arcface": {"scale": 30.0}}), demo(clip_seconds=2)),
        NOTHING,
    ),
    "keys in another order": (
        system("attribute_aware", tuning={"batch_size": 16, "steps": 20}),
        NOTHING,
    ),
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A fresh clone: the same files with other times, in another place."""
    folder = tmp_path_factory.mktemp("clone")
    for name in CHECKOUT:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(
                source,
                folder / name,
                ignore=shutil.ignore_patterns("__pycache__"),
                copy_function=shutil.copyfile,
            )
        else:
            shutil.copyfile(source, folder / name)
    (folder / "smoke.yaml").write_text(yaml.safe_dump(SMOKE, sort_keys=False))
    return folder


@pytest.fixture(scope="module")
def finished(smoke_run, checkout, tmp_path_factory):
    """The finished smoke run, its tables and report recorded as made without ensembles and ablations."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    shutil.copytree(smoke_run, folder)
    assert pretend_run(folder, smoke_files(checkout), snakefile=checkout / "Snakefile") == 2
    return folder


def jobs(checkout, directory, *overlays, config=None):
    """Rule -> number of jobs that would run."""
    files = [checkout / "config.yaml", *overlays]
    with planned_workflow(checkout / "Snakefile", directory, files, config) as workflow:
        return dict(Counter(job.rule for job in planned_jobs(workflow)))


def smoke_files(checkout):
    return [checkout / "config.yaml", checkout / "smoke.yaml"]


def overlaid(tmp_path, content):
    path = tmp_path / "overlay.yaml"
    path.write_text(yaml.safe_dump(merge(SMOKE, content), sort_keys=False))
    return path


@pytest.mark.parametrize("name", KEYS)
def test_a_changed_key_reruns_what_it_decides(name, checkout, finished, tmp_path):
    change, expected = KEYS[name]
    assert jobs(checkout, finished, overlaid(tmp_path, change)) == expected


# Code: expected jobs and the files they hold for. The first file of a group is edited and planned; the others must be reached by
# exactly the same jobs. Jobs that the default target does not ask for (export, submit, detect, download, ...) are not shown.
TRAINED = {**PRETRAINED, **tuned(3)}
EMBEDDED = {"embed": 3, **LABELLED, **tuned(3)}
LOADED = {**EMBEDDED, **TRAINED, "embed": 3}
FETCHED = {"fetch_encoder": 2, **LOADED}
REREAD = {"extract_features": 6, **LOADED}
FILES = [
    (EVERYTHING, "files __init__ errors job leases locks running"),
    (EVERYTHING, "data/__init__"),
    (MADE_AGAIN, "data/naming"),
    (
        MADE_AGAIN,
        "data/synthetic data/machinery/__init__ data/machinery/acting data/machinery/background data/machinery/machine"
        " data/machinery/rotating data/machinery/signals ../synthesize",
    ),
    (EXTRACTED, "data/catalogue data/audio data/listing"),
    (EXTRACTED, "tables"),
    (CATALOGUED, "data/counts data/evaluation_labels ../catalogue"),
    ({**FETCHED, **REREAD, "label": 3}, "features/__init__"),
    ({**FETCHED, **REREAD}, "features/front_end"),
    (REREAD, "features/store"),
    (REREAD, "features/extract ../extract_features"),
    (TRAINED, "features/sources"),
    ({"find_duplicates": 1}, "data/duplicates ../find_duplicates"),
    ({**EMBEDDED, "label": 3}, "features/embeddings"),
    (FETCHED, "models/loading models/encoder models/__init__"),
    (FETCHED, "weights"),
    (FETCHED, "models/fetching ../fetch_encoder"),
    ({**EAT_MADE}, "models/eat"),
    ({"fetch_encoder": 1, "embed": 1, **UNTUNED}, "models/logmel_statistics"),
    (EMBEDDED, "models/pooling"),
    ({"embed": 3, **LABELLED}, "models/embed ../embed"),
    (LOADED, "device"),
    ({"label": 3, "label_unadapted": 1, **tuned(3)}, "clustering ../label"),
    (TRAINED, "training/progress training/checkpoint training/schedule"),
    (TRAINED, "training/__init__"),
    (TRAINED, "provenance"),
    (
        PRETRAINED,
        "training/self_distillation training/pretrain training/masking training/memory training/sampling training/processes"
        " ../pretrain",
    ),
    (
        tuned(3),
        "training/objectives training/finetune training/network training/adaptation"
        " training/autoencoder training/embedding_model ../finetune",
    ),
    (tuned(3), "training/material"),
    (tuned(3), "training/augmentation"),
    (
        scored(3),
        "detection/backends detection/score detection/detector detection/neighbours detection/threshold ../score",
    ),
    (scored(3), "detection/official detection/__init__"),
    (EVALUATE, "detection/evaluate ../evaluate"),
    (EVALUATE, "detection/bootstrap"),
    (
        REPORT,
        "report/figures report/__init__ report/augmented"
        " report/book report/build report/dataset report/evidence report/exports report/findings"
        " report/maps report/inputs"
        " report/media report/pages report/provenance_view report/published report/rule_graph report/significance report/svg"
        " report/tables ablations report/workflow report/style.css report/templates/page.js report/templates/ablation.html.j2"
        " report/templates/index.html.j2 report/templates/machine.html.j2 report/templates/overview.html.j2"
        " report/templates/parts.html.j2 report/templates/provenance.html.j2 report/templates/representation.html.j2"
        " report/templates/training.html.j2 ../report",
    ),
    (
        NOTHING,
        "cli configuration slurm_arrays why workstation data/archives data/download data/labels data/transfer data/unpack data/zenodo"
        " detection/command detection/detect detection/drift detection/ensemble detection/evaluate_submission detection/plot"
        " detection/submission detection/system detection/watch detection/windows models/beats models/stft_cnn report/compare"
        " training/recipes ../asdflow_plan/__init__ ../asdflow_plan/plan ../detect ../download ../ensemble ../export ../fetch_labels"
        " ../submit ../unpack ../why",
    ),
]


def code_file(name, checkout):
    path = checkout / "workflow_scripts" / "asdflow" / name
    path = path if path.suffix in provenance.DATA_SUFFIXES else path.with_name(f"{path.name}.py")
    return Path(os.path.normpath(path))


@pytest.fixture(scope="module")
def readers(checkout, finished):
    """Code file -> the jobs that reach it, each as rule and wildcards."""
    found = defaultdict(set)
    with planned_workflow(checkout / "Snakefile", finished, smoke_files(checkout)) as workflow:
        for job in workflow.dag.jobs:
            for name in job.params.get("code", {}):
                found[checkout / "workflow_scripts" / name].add((job.rule.name, *map(str, job.wildcards)))
    return found


@pytest.fixture
def edited():
    """Edit files of the checkout for one test."""
    texts: dict[Path, str] = {}

    def edit(path, change):
        texts.setdefault(path, path.read_text(encoding="utf-8"))
        path.write_text(change(texts[path]), encoding="utf-8")

    yield edit
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(("expected", "names"), FILES, ids=[names.split()[0] for _, names in FILES])
def test_an_edited_file_reruns_the_stages_that_reach_it(expected, names, checkout, finished, readers, edited):
    first, *others = [code_file(name, checkout) for name in names.split()]
    assert [str(path) for path in others if readers[path] != readers[first]] == []
    addition = "\nCHANGED = 1\n" if first.suffix == ".py" else "\n<!-- changed -->\n"
    edited(first, lambda text: text + addition)
    assert jobs(checkout, finished, *smoke_files(checkout)[1:]) == expected


def test_the_table_of_files_is_complete(checkout):
    listed = [code_file(name, checkout) for _, names in FILES for name in names.split()]
    present = {
        path
        for path in (checkout / "workflow_scripts").rglob("*")
        if path.is_file() and path.suffix in {".py", *provenance.DATA_SUFFIXES}
    }
    assert sorted(listed) == sorted(present)


def test_comments_documentation_and_layout_rerun_nothing(checkout, finished, edited):
    def rewritten(text):
        tree = ast.parse(text)
        if ast.get_docstring(tree):
            tree.body[0] = ast.Expr(ast.Constant("Another text."))
        return "# A comment.\n\n" + ast.unparse(tree) + "\n\n\n"

    for path in sorted((checkout / "workflow_scripts").rglob("*.py")):
        edited(path, rewritten)
    assert jobs(checkout, finished, *smoke_files(checkout)[1:]) == NOTHING


def test_a_fresh_clone_with_existing_results_reruns_nothing(checkout, finished):
    assert jobs(checkout, finished, *smoke_files(checkout)[1:]) == NOTHING


def test_snakemake_itself_says_the_same_as_the_planner(finished, tmp_path):
    overlay = overlaid(tmp_path, KEYS["clusters per group"][0])
    assert planned(snakemake(finished, "--dry-run", overlays=[overlay]).stdout) == LABELLED


def test_a_value_that_snakemake_would_overlook_is_refused(checkout, finished):
    with planned_workflow(checkout / "Snakefile", finished, smoke_files(checkout)) as workflow:
        stage_config = workflow.globals["stage_config"]
        with pytest.raises(TypeError, match="is no plain value"):
            stage_config(recipe={"corpus": [Path("recordings")]})
        assert str(stage_config(b=1, a={"d": (2,), "c": None})) == "{'a': {'c': None, 'd': [2]}, 'b': 1}"


# Recordings of one's own.


def recordings(folder, machines=("a", "b")):
    for machine in machines:
        for split, count in (("train", 3), ("test", 2)):
            (folder / machine / split).mkdir(parents=True)
            for number in range(count):
                record(folder / machine / split / f"section_00_source_{split}_normal_{number:04d}_spd_1.wav")
    return folder


def record(path, value=0.1):
    soundfile.write(path, np.full(1600, value), 16000)


@pytest.fixture
def own(checkout, tmp_path):
    """A finished run on recordings of one's own: the planner of its jobs, and the folder of recordings."""
    folder = recordings(tmp_path / "recordings")
    overlay = tmp_path / "own.yaml"
    overlay.write_text(
        "results_dir: results-own\nrun: {datasets: [own], seeds: [0], systems: [attribute_aware, logmel_knn]}\n"
        f"datasets: {{own: {{source: folder, path: {folder}}}}}\n"
    )
    run = tmp_path / "run"
    run.mkdir()
    files = [checkout / "config.yaml", overlay]
    pretend_run(run, files, snakefile=checkout / "Snakefile")
    assert jobs(checkout, run, overlay) == NOTHING
    return lambda: jobs(checkout, run, overlay), folder


ALL_OF_OWN = {
    "catalogue": 1,
    "extract_features": 1,
    "find_duplicates": 1,
    "pretrain": 1,
    "embed": 3,
    "label": 2,
    "finetune": 2,
    "score": 2,
    "evaluate": 1,
    "report": 1,
}


def test_an_added_recording_reruns_its_machine_s_features_and_what_follows(own):
    would_run, folder = own
    record(folder / "a" / "train" / "section_00_source_train_normal_0099_spd_1.wav")
    assert would_run() == ALL_OF_OWN


def test_a_removed_recording_reruns_its_machine_s_features_and_what_follows(own):
    would_run, folder = own
    next((folder / "b" / "train").iterdir()).unlink()
    assert would_run() == ALL_OF_OWN


def test_a_new_machine_reruns_only_its_own_features_and_what_follows(own):
    would_run, folder = own
    recordings(folder, ["c"])
    assert would_run() == ALL_OF_OWN


def test_a_file_beside_the_recordings_reruns_nothing(own):
    would_run, folder = own
    (folder / "a" / "train" / "notes.txt").write_text("recorded on a Tuesday")
    assert would_run() == NOTHING
