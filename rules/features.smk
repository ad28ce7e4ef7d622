# Log-mel frames of every clip, once per front end and machine. The job lists the machine's clips itself instead of reading the
# catalogue: a new recording of one machine makes a new catalogue, but leaves the features of the others as they are.


rule extract_features:
    input:
        unpack(extraction_inputs),
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
        cfg=lambda wildcards: extraction_settings(wildcards),
        recordings=lambda wildcards: recordings_key(
            wildcards.dataset, wildcards.machine
        ),
        code=code_of("extract_features.py"),
    script:
        "../workflow_scripts/extract_features.py"
