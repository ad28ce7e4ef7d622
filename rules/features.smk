# Log-mel frames of every clip, once per front end and machine.


rule extract_features:
    input:
        # Only this machine's recordings decide: they stand in `recordings`, so a new clip of another machine changes nothing here.
        clips=lambda wildcards: ancient(clips_of(wildcards.dataset)),
    output:
        features=f"{RESULTS}/{{dataset}}/features/{{front_end}}/{{machine}}.h5",
    log:
        f"{LOGS}/extract_features/{{dataset}}/{{front_end}}/{{machine}}.log",
    benchmark:
        f"{BENCHMARKS}/extract_features/{{dataset}}/{{front_end}}/{{machine}}.tsv"
    conda:
        "../envs/asdflow.yaml"
    threads: 1
    resources:
        mem_mb=growing(2000),
        runtime=growing(60),
    params:
        cfg=lambda wildcards: stage_config(
            audio=config["datasets"][wildcards.dataset]["audio"]
        ),
        recordings=lambda wildcards: recordings_key(
            wildcards.dataset, wildcards.machine
        ),
        code=code_digest("extract_features.py"),
    script:
        "../workflow_scripts/extract_features.py"
