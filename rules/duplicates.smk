# The same sound under several names, across data sets and splits.


rule find_duplicates:
    input:
        clips=[clips_of(name) for name in sorted(config["datasets"])],
    output:
        duplicates=f"{RESULTS}/duplicates.csv",
    log:
        f"{LOGS}/find_duplicates.log",
    benchmark:
        f"{BENCHMARKS}/find_duplicates.tsv"
    conda:
        "../envs/asdflow.yaml"
    threads: workflow.cores
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        cfg=stage_config(
            audio={name: entry["audio"] for name, entry in config["datasets"].items()}
        ),
        code=code_of("find_duplicates.py"),
    script:
        "../workflow_scripts/find_duplicates.py"
