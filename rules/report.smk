# One self-contained page set, and the record of the run it shows.


rule report:
    input:
        clips=[clips_of(name) for name in RUN["datasets"]],
        metrics=[f"{RESULTS}/{name}/metrics.csv" for name in RUN["datasets"]],
        official=[f"{RESULTS}/{name}/official_scores.csv" for name in RUN["datasets"]],
        scores=[
            path
            for name in RUN["datasets"]
            for path in runs_of(name, "scores.parquet", SCORED)
        ],
        histories=[
            path
            for name in RUN["datasets"]
            for path in tuned_files(name, "history.parquet")
        ],
        labels=[path for name in RUN["datasets"] for path in label_files(name)],
        embeddings=[path for name in RUN["datasets"] for path in shown_embeddings(name)],
        encoders=[f"{encoder_directory(name)}/history.parquet" for name in PRETRAINED],
    output:
        page=report(
            f"{RESULTS}/report/index.html",
            caption="../report/page.rst",
            category="Report",
        ),
        tables=report(
            directory(f"{RESULTS}/report/tables"),
            patterns=["{dataset}/{name}.csv"],
            caption="../report/tables.rst",
            category="Tables",
            labels={"dataset": "{dataset}", "table": "{name}"},
        ),
        overview=report(
            directory(f"{RESULTS}/report/overview"),
            patterns=["{dataset}/{name}.svg"],
            caption="../report/overview.rst",
            category="Overview",
            labels={"dataset": "{dataset}", "figure": "{name}"},
        ),
        roc=report(
            directory(f"{RESULTS}/report/roc"),
            patterns=["{dataset}/{name}.svg"],
            caption="../report/roc.rst",
            category="ROC",
            labels={"dataset": "{dataset}", "machine": "{name}"},
        ),
        scores=report(
            directory(f"{RESULTS}/report/scores"),
            patterns=["{dataset}/{name}.svg"],
            caption="../report/scores.rst",
            category="Scores",
            labels={"dataset": "{dataset}", "machine": "{name}"},
        ),
        clusters=report(
            directory(f"{RESULTS}/report/clusters"),
            patterns=["{dataset}/{name}.svg"],
            caption="../report/clusters.rst",
            category="Clusters",
            labels={"dataset": "{dataset}", "group": "{name}"},
        ),
        training=report(
            directory(f"{RESULTS}/report/training"),
            patterns=["{dataset}/{name}.svg"],
            caption="../report/training.rst",
            category="Training",
            labels={"dataset": "{dataset}", "run": "{name}"},
        ),
    log:
        f"{LOGS}/report.log",
    benchmark:
        f"{BENCHMARKS}/report.tsv"
    conda:
        "../envs/asdflow.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        cfg=report_config(),
        code=code_of("report.py"),
    script:
        "../workflow_scripts/report.py"
