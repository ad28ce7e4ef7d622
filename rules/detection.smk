# A trained system as a folder that can be copied, and its verdict on new recordings.


rule export:
    input:
        clips=lambda wildcards: clips_of(wildcards.dataset),
        model=lambda wildcards: (
            f"{tuned_folder(wildcards.dataset, wildcards.system, wildcards.seed)}/model.safetensors"
        ),
        config=lambda wildcards: (
            f"{tuned_folder(wildcards.dataset, wildcards.system, wildcards.seed)}/model.json"
        ),
        detector=f"{RESULTS}/{{dataset}}/{{system}}/seed_{{seed}}/detector",
        encoder=lambda wildcards: encoder_files(
            system_entry(wildcards.system)["encoder"]
        )["weights"],
    output:
        model=directory(f"{RESULTS}/{{dataset}}/{{system}}/seed_{{seed}}/export"),
    log:
        f"{LOGS}/export/{{dataset}}/{{system}}/seed_{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/export/{{dataset}}/{{system}}/seed_{{seed}}.tsv"
    conda:
        "../envs/asdflow.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(30),
    params:
        cfg=lambda wildcards: stage_config(
            audio=config["datasets"][wildcards.dataset]["audio"],
            system=described_system(wildcards.system),
        ),
        code=code_of("export.py"),
    script:
        "../workflow_scripts/export.py"


rule detect:
    input:
        unpack(detection_inputs),
    output:
        decisions=f"{RESULTS}/detection.csv",
    log:
        f"{LOGS}/detect.log",
    benchmark:
        f"{BENCHMARKS}/detect.tsv"
    conda:
        "../envs/asdflow.yaml"
    threads: workflow.cores
    resources:
        mem_mb=growing(4000),
        runtime=growing(120),
    params:
        cfg=lambda wildcards: stage_config(machine=config["detect"]["machine"]),
        recordings=lambda wildcards: listing_digest(
            Path(config["detect"]["recordings"])
        ),
        code=code_of("detect.py"),
    script:
        "../workflow_scripts/detect.py"
