# One self-contained page set, and the record of the run it shows.


rule report:
    input:
        clips=[clips_of(name) for name in RUN["datasets"]],
        metrics=[f"{RESULTS}/{name}/metrics.csv" for name in RUN["datasets"]],
        official=[f"{RESULTS}/{name}/official_scores.csv" for name in RUN["datasets"]],
        scores=[
            path
            for name in RUN["datasets"]
            for path in runs_of(name, "scores.parquet")
        ],
        histories=[
            path
            for name in RUN["datasets"]
            for path in runs_of(name, "history.parquet")
        ],
        labels=[path for name in RUN["datasets"] for path in label_files(name)],
        embeddings=[path for name in RUN["datasets"] for path in shown_embeddings(name)],
        encoders=[f"{encoder_directory(name)}/history.parquet" for name in PRETRAINED],
    output:
        page=report(
            f"{RESULTS}/report/index.html",
            caption="../report/overview.rst",
            category="Report",
        ),
    log:
        f"{LOGS}/report.log",
    benchmark:
        f"{BENCHMARKS}/report.tsv"
    conda:
        "../envs/asdflow.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        cfg=report_config(),
        code=code_digest("report.py"),
    script:
        "../workflow_scripts/report.py"
