# Recordings and their catalogue.


rule synthesize:
    output:
        recordings=directory(f"{DATA}/{{dataset}}"),
        hidden_attributes=f"{DATA}/{{dataset}}.hidden_attributes.csv",
    params:
        cfg=lambda wildcards: stage_config(**config["datasets"][wildcards.dataset]),
        code=code_digest("synthesize.py"),
    log:
        f"{LOGS}/synthesize/{{dataset}}.log",
    benchmark:
        f"{BENCHMARKS}/synthesize/{{dataset}}.tsv"
    wildcard_constraints:
        dataset=any_of(datasets_from("synthetic")),
    conda:
        "../envs/asdflow.yaml"
    threads: workflow.cores
    resources:
        mem_mb=2000,
        runtime=10,
    script:
        "../workflow_scripts/synthesize.py"


rule catalogue:
    input:
        unpack(catalogue_inputs),
    output:
        clips=f"{RESULTS}/{{dataset}}/clips.parquet",
    params:
        cfg=lambda wildcards: catalogue_settings(wildcards.dataset),
        recordings=lambda wildcards: recordings_key(wildcards.dataset),
        code=code_digest("catalogue.py"),
    log:
        f"{LOGS}/catalogue/{{dataset}}.log",
    benchmark:
        f"{BENCHMARKS}/catalogue/{{dataset}}.tsv"
    conda:
        "../envs/asdflow.yaml"
    threads: workflow.cores
    resources:
        mem_mb=2000,
        runtime=30,
    script:
        "../workflow_scripts/catalogue.py"
