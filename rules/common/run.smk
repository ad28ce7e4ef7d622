# The run as a whole: its lock, what it shares, its last lines.
def share_between_checkouts(*names: str) -> None:
    """With `snakemake --cache`, keep what these rules make in the folder $SNAKEMAKE_OUTPUT_CACHE, and take from there what it has.

    Not by the directive `cache`, which warns in every run without it and goes with no benchmark: a shared result has none.
    """
    if workflow.workflow_settings.cache is None:
        return
    for name in names:
        shared = workflow.get_rule(name)
        shared._benchmark = None  # the setter takes files only
        shared.cache = RuleCache.from_rule(shared, "omit-software")


entered = []
started = time.monotonic()

# Jobs of one machine share its memory: what they ask for together stays below. A cluster has its own limits.
if (
    workflow.is_main_process
    and "mem_mb" not in workflow.global_resources
    and workflow.global_resources["_nodes"].value is None
):
    workflow.register_resource("mem_mb", workstation.memory_for_jobs())


def only_asks() -> bool:
    """Whether this run only tells what another would do."""
    return {job.rule.name for job in workflow.dag.jobs} == {"why"}


def enter_results_folder() -> list:
    """The lock of the results folder, held until this process ends, however it ends."""
    if only_asks():
        return []
    try:
        lock, message = running.enter(Path(RESULTS))
    except InputError as error:
        raise WorkflowError(str(error)) from None
    if message:
        print(message, file=sys.stderr, flush=True)
    running.pass_sigterm_on(lock, Path(RESULTS))
    return [lock]


def check_arrays() -> None:
    """Refuse limits under which jobs that go into an array could be left out of it: the plugin would wait for them without end."""
    setting = getattr(workflow.executor_settings, "array_jobs", None) or ""
    arrays = {name.strip() for name in setting.replace(";", ",").split(",")}
    waiting = list(workflow.dag.needrun_jobs())
    if not any(job.rule.name in arrays or "all" in arrays for job in waiting):
        return
    jobs = {workflow.dag.get_job_group(job) or job for job in waiting}
    pace = workflow.scheduling_settings.max_jobs_per_timespan
    limits = {
        "jobs": workflow.global_resources["_nodes"].value,
        "max-jobs-per-timespan": pace and pace.max_jobs,
    }
    if "gpu" in workflow.global_resources:
        limits["resources: gpu"] = workflow.global_resources["gpu"].value
    problems = slurm_arrays.limits_in_the_way(len(jobs), limits)
    if problems:
        remedy = "raise them, or take `slurm-array-jobs` out of the profile"
        raise WorkflowError(
            str(InputError("These limits are too low for arrays:", problems, remedy))
        )


def run_jobs() -> list:
    """The jobs of this run and how they ended; those without files of their own are left out."""
    failed = {
        job
        for item in workflow.scheduler.failed
        for job in (item.jobs if item.is_group() else [item])
    }
    return [
        workstation.RunJob(
            job.rule.name,
            " ".join(job.wildcards),
            Path(job.log[0]) if job.log else None,
            Path(job.benchmark) if job.benchmark else None,
            (
                "failed"
                if job in failed
                else "done" if workflow.dag.finished(job) else "waiting"
            ),
        )
        for level in workflow.dag.toposorted()
        for job in sorted(level, key=lambda job: (job.rule.name, list(job.wildcards)))
        if job.output and workflow.dag.needrun(job)
    ]


def tell_how_it_went() -> None:
    """The last lines of a run."""
    for lock in entered:
        running.leave(lock)
    if not only_asks():
        page = Path(RESULTS) / "report" / "index.html"
        command = "the same command with the target `why`"
        print(
            workstation.closing_summary(
                run_jobs(), time.monotonic() - started, page, command
            ),
            flush=True,
        )


wildcard_constraints:
    dataset=any_of(sorted(config["datasets"])),
    system=any_of(sorted(config["systems"])),
    encoder=any_of(sorted({*PRETRAINED, *PLAIN})),
    seed=r"\d+",
    front_end=r"\w+",
