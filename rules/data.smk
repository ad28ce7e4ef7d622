# Recordings and their catalogue. What is fetched carries no code digest and none of the transfer's settings: checksums say
# what is right, and an edit of the downloader must not fetch a hundred gigabytes again.


rule download:
    output:
        record=f"{DATA}/archives/{{dataset}}/{{archive}}.json",
    log:
        f"{LOGS}/download/{{dataset}}/{{archive}}.log",
    benchmark:
        f"{BENCHMARKS}/download/{{dataset}}/{{archive}}.tsv"
    wildcard_constraints:
        dataset=any_of(datasets_from("dcase")),
        archive=r"[^/]+\.zip",
    retries: 1
    conda:
        "../envs/asdflow.yaml"
    threads: 1
    resources:
        mem_mb=500,
        runtime=720,
    params:
        cfg=lambda wildcards: stage_config(
            archives=[
                a
                for a in archive_identity(wildcards.dataset)
                if a[-1] == wildcards.archive
            ]
        ),
    script:
        "../workflow_scripts/download.py"


rule unpack:
    input:
        records=lambda wildcards: archive_records(wildcards.dataset, wildcards.machine),
    output:
        record=f"{DATA}/{{dataset}}/{{machine}}.unpacked.json",
    log:
        f"{LOGS}/unpack/{{dataset}}/{{machine}}.log",
    benchmark:
        f"{BENCHMARKS}/unpack/{{dataset}}/{{machine}}.tsv"
    wildcard_constraints:
        dataset=any_of(datasets_from("dcase")),
        machine=r"\w+",
    conda:
        "../envs/asdflow.yaml"
    threads: 1
    resources:
        mem_mb=500,
        runtime=120,
    params:
        cfg=lambda wildcards: stage_config(
            archives=archive_identity(wildcards.dataset, wildcards.machine)
        ),
    script:
        "../workflow_scripts/unpack.py"


rule fetch_labels:
    output:
        labels=f"{DATA}/{{dataset}}/evaluation_labels.csv",
        hidden_attributes=f"{DATA}/{{dataset}}/hidden_attributes.csv",
    log:
        f"{LOGS}/fetch_labels/{{dataset}}.log",
    benchmark:
        f"{BENCHMARKS}/fetch_labels/{{dataset}}.tsv"
    wildcard_constraints:
        dataset=any_of(datasets_from("dcase")),
    retries: 1
    conda:
        "../envs/asdflow.yaml"
    threads: 1
    resources:
        mem_mb=500,
        runtime=60,
    params:
        cfg=lambda wildcards: stage_config(
            **{key: config["datasets"][wildcards.dataset][key] for key in LABEL_KEYS}
        ),
    script:
        "../workflow_scripts/fetch_labels.py"


rule synthesize:
    output:
        recordings=directory(f"{DATA}/{{dataset}}"),
        hidden_attributes=f"{DATA}/{{dataset}}.hidden_attributes.csv",
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
        mem_mb=growing(2000),
        runtime=growing(10),
    params:
        cfg=lambda wildcards: synthesis_settings(wildcards.dataset),
        code=code_of("synthesize.py"),
    script:
        "../workflow_scripts/synthesize.py"


rule catalogue:
    input:
        unpack(catalogue_inputs),
    output:
        clips=f"{RESULTS}/{{dataset}}/clips.parquet",
    log:
        f"{LOGS}/catalogue/{{dataset}}.log",
    benchmark:
        f"{BENCHMARKS}/catalogue/{{dataset}}.tsv"
    # Before anything is computed from recordings, all that is wrong with them is said at once.
    priority: 1
    conda:
        "../envs/asdflow.yaml"
    threads: workflow.cores
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        cfg=lambda wildcards: catalogue_settings(wildcards.dataset),
        recordings=lambda wildcards: recordings_key(wildcards.dataset),
        code=code_of("catalogue.py"),
    script:
        "../workflow_scripts/catalogue.py"
