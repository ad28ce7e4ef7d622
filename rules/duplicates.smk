# The same sound under several names, across data sets and splits.


rule find_duplicates:
    input:
        features=duplicate_inputs(),
    output:
        duplicates=f"{RESULTS}/duplicates.csv",
    log:
        f"{LOGS}/find_duplicates.log",
    benchmark:
        f"{BENCHMARKS}/find_duplicates.tsv"
    conda:
        "../envs/asdflow.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        cfg=stage_config(datasets=sorted(config["datasets"])),
        code=code_digest("find_duplicates.py"),
    script:
        "../workflow_scripts/find_duplicates.py"
