"""What the tests share: where the genuine recordings and golden values are, and one thread per test process."""

import os
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="../shared (genuine recordings, golden values) is not here"
)

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

_skipped_for_shared: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember the tests that skipped because ../shared is missing, although the caller says that it is there."""
    if report.skipped and "../shared" in str(report.longrepr):
        _skipped_for_shared.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if os.environ.get("ASDFLOW_EXPECT_SHARED") and _skipped_for_shared:
        print(f"\n{len(_skipped_for_shared)} tests skipped for lack of ../shared although it is here")
        session.exitstatus = 1


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished smoke run, made once for all test processes. Work on a copy: others read it."""
    from asdflow.locks import exclusive

    from tests.workflow import snakemake

    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, log = base / "smoke", base / "smoke.log"
    with exclusive(base / "smoke.lock"):
        if not log.exists():
            folder.mkdir()
            on_cpu = {"CUDA_VISIBLE_DEVICES": ""}  # the same bytes on every machine
            done = snakemake(folder, overlays=[REPOSITORY / "configs" / "smoke.yaml"], environment=on_cpu)
            log.write_text(f"{done.returncode}\n{done.stdout}")
    code, _, output = log.read_text().partition("\n")
    assert code == "0", output[-6000:]
    return folder
