"""The reasons for a rerun, in words, and the last lines of a run."""

from pathlib import Path

import pytest
import yaml
from asdflow.configuration import merge, read_yaml
from asdflow.why import PlannedJob, explain, reasons_of
from asdflow.workstation import LAST_LINES, RunJob, closing_summary, memory_for_jobs
from asdflow_plan.plan import planned_jobs, planned_workflow

from tests.conftest import REPOSITORY
from tests.pretended_run import pretend_run
from tests.workflow import snakemake

SMOKE = REPOSITORY / "configs" / "smoke.yaml"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A results folder with records of a finished run, in which the tests change what they like."""
    folder = tmp_path_factory.mktemp("pretended")
    pretend_run(folder, [REPOSITORY / "config.yaml", SMOKE])
    return folder


def explained(folder, change=None):
    overlay = folder / "overlay.yaml"
    overlay.write_text(yaml.safe_dump(merge(read_yaml(SMOKE), change or {}), sort_keys=False))
    with planned_workflow(
        REPOSITORY / "Snakefile", folder, [REPOSITORY / "config.yaml", overlay]
    ) as workflow:
        return explain(planned_jobs(workflow))


def test_nothing_to_do_is_said_in_one_sentence(finished):
    assert (
        explained(finished) == "Nothing would run: every result is as its configuration, code and inputs say."
    )


def test_a_changed_key_is_named_with_both_values(finished):
    text = explained(finished, {"systems": {"frozen": {"backend": {"neighbours": 3}}}})
    assert text.startswith("4 jobs would run.")
    assert "score demo/frozen seed 0, demo/frozen seed 1\n    backend.neighbours: 1 -> 3" in text
    assert "What follows from these: evaluate (1)" in text


def test_two_swapped_values_are_both_named(finished):
    change = {"tuning": {"learning_rate": 1.0e-2, "head_learning_rate": 1.5e-3}}
    text = explained(finished, {"systems": {"attribute_aware": change}})
    assert "system.tuning.head_learning_rate: 0.01 -> 0.0015" in text
    assert "system.tuning.learning_rate: 0.0015 -> 0.01" in text


def test_a_missing_output_is_named(finished):
    path = finished / "results-smoke" / "demo" / "metrics.csv"
    path.unlink()
    text = explained(finished)
    path.touch()
    assert "evaluate demo\n    output missing: results-smoke/demo/metrics.csv\n" in text
    assert "What follows from these: report (1)" in text


def test_a_replaced_input_is_named(finished):
    embeddings = finished / "results-smoke" / "demo" / "frozen" / "seed_0" / "embeddings.h5"
    embeddings.write_bytes(b"other embeddings")
    text = explained(finished)
    embeddings.write_bytes(b"")
    assert "input newer than the output: results-smoke/demo/frozen/seed_0/embeddings.h5" in text


def test_what_was_never_made_is_said_once_for_many_jobs(tmp_path):
    text = explained(tmp_path)
    assert "extract_features demo/eat_logmel/bearing, demo/eat_logmel/fan" in text and "and 2 more" in text
    assert text.count("not made yet") == text.count("\n\n")


def recorded(before, today, **more):
    return PlannedJob(
        "finetune",
        {"dataset": "demo", "system": "aware", "seed": "0"},
        params=[repr(value) for value in today],
        recorded_params=[repr(value) for value in before],
        **more,
    )


def test_a_changed_module_is_named():
    before = {"asdflow/training/objectives.py": "aa", "asdflow/files.py": "bb", "finetune.py": "cc"}
    job = recorded([before], [{**before, "asdflow/training/objectives.py": "dd", "finetune.py": "ee"}])
    assert reasons_of(job) == ["module asdflow/training/objectives.py changed", "file finetune.py changed"]


def test_a_module_that_is_newly_imported_and_one_that_no_longer_is_are_named():
    job = recorded([{"asdflow/old.py": "aa", "f.py": "b"}], [{"asdflow/new.py": "aa", "f.py": "b"}])
    assert reasons_of(job) == [
        "module asdflow/new.py is newly used",
        "module asdflow/old.py is no longer used",
    ]


def test_changed_recordings_are_called_so():
    job = recorded([{"listing": "aa"}], [{"listing": "bb"}])
    assert reasons_of(job) == ["recordings were added, removed or replaced"]


def test_added_and_dropped_inputs_are_named():
    job = recorded([], [], recorded_inputs=["a.h5", "b.h5"], inputs=["b.h5", "c.h5"])
    assert reasons_of(job) == ["input added: c.h5", "input no longer used: a.h5"]


def test_an_interrupted_job_is_called_so():
    assert reasons_of(PlannedJob("pretrain", interrupted=True)) == [
        "an earlier run ended while it was writing, so its output is not whole"
    ]


def test_the_target_why_explains_and_runs_nothing(finished):
    overlay = finished / "more.yaml"
    overlay.write_text("systems: {logmel_knn: {decision: {false_alarm_rate: 0.2}}}\n")
    done = snakemake(finished, "why", overlays=[SMOKE, overlay])
    assert done.returncode == 0, done.stdout[-3000:]
    assert (
        "score demo/logmel_knn seed 0, demo/logmel_knn seed 1\n    decision.false_alarm_rate: 0.1 -> 0.2"
        in done.stdout
    )
    assert "Finished:" not in done.stdout
    assert (
        finished / "results-smoke" / "demo" / "logmel_knn" / "seed_0" / "scores.parquet"
    ).stat().st_size == 0


# The end of a run.


def benchmark(path: Path, seconds):
    path.write_text(f"s\th:m:s\n{seconds}\t0:00:00\n")
    return path


def test_a_finished_run_says_what_ran_how_long_and_where_the_report_is(tmp_path):
    page = tmp_path / "index.html"
    page.write_text("")
    jobs = [
        RunJob(
            "score", f"demo frozen {seed}", benchmark=benchmark(tmp_path / f"{seed}.tsv", 40.2), state="done"
        )
        for seed in range(2)
    ]
    text = closing_summary([*jobs, RunJob("report", state="done")], 3725.4, page, "why")
    assert text.splitlines() == [
        "Finished: 3 jobs in 1:02:05.",
        "  score      2 jobs  0:01:20",
        "  report      1 job  0:00:00",
        f"Report: {page}",
    ]


def test_a_failed_run_lists_every_failed_job_with_its_last_message_and_what_to_do(tmp_path):
    log = tmp_path / "b.log"
    log.write_text(
        "[12:00:00] embed: starting\n[12:00:01] embed: Features are damaged:\n  - fan.h5\nRemedy: remove it\n"
    )
    jobs = [
        RunJob("extract_features", "demo fan", state="done"),
        RunJob("finetune", "demo frozen 0", log=tmp_path / "none.log", state="failed"),
        RunJob("embed", "demo eat", log=log, state="failed"),
        RunJob("report"),
    ]
    text = closing_summary(jobs, 5, None, "snakemake why")
    assert text.startswith("Not finished after 0:00:05: 1 job done, 2 failed, 1 not started.")
    assert "FAILED finetune demo frozen 0\n    it left no log" in text
    assert (
        f"FAILED embed demo eat\n    log: {log}\n    [12:00:01] embed: Features are damaged:\n      - fan.h5\n"
        in text
    )
    assert "starting" not in text
    assert text.endswith(
        "start the same command again: it goes on from here, training from its\nlast checkpoint. "
        "What is left, and why: snakemake why"
    )


def test_a_long_message_is_cut(tmp_path):
    log = tmp_path / "a.log"
    log.write_text("[12:00:00] a: many\n" + "".join(f"  - {n}\n" for n in range(50)))
    text = closing_summary([RunJob("a", log=log, state="failed")], 5, None, "why")
    assert text.count("\n      - ") == LAST_LINES - 1 and "    ...\n" in text


def test_memory_for_jobs_is_less_than_the_machine_has():
    meminfo = Path("/proc/meminfo").read_text().split()
    assert 0 < memory_for_jobs() < int(meminfo[1]) * 1024 / 10**6
