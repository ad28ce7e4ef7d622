# Labels to fine-tune on: true attributes, and clusters of embeddings where a machine hides them.


rule label:
    input:
        unpack(lambda wildcards: label_inputs(wildcards.dataset, wildcards.system)),
    output:
        labels=f"{RESULTS}/{{dataset}}/{{system}}/labels.parquet",
        clusters=f"{RESULTS}/{{dataset}}/{{system}}/clusters.npz",
    log:
        f"{LOGS}/label/{{dataset}}/{{system}}.log",
    benchmark:
        f"{BENCHMARKS}/label/{{dataset}}/{{system}}.tsv"
    conda:
        "../envs/asdflow.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        cfg=lambda wildcards: stage_config(
            labels=system_entry(wildcards.system)["labels"],
            datasets=training_datasets(wildcards.dataset, wildcards.system),
        ),
        code=code_of("label.py"),
    script:
        "../workflow_scripts/label.py"


# The same labels from the encoder before its pre-training: what the adaptation is worth, measured by agreement with the truth.
use rule label as label_unadapted with:
    input:
        unpack(
            lambda wildcards: label_inputs(
                wildcards.dataset, wildcards.system, unadapted=True
            )
        ),
    output:
        labels=f"{RESULTS}/{{dataset}}/{{system}}/labels_unadapted.parquet",
        clusters=f"{RESULTS}/{{dataset}}/{{system}}/clusters_unadapted.npz",
    log:
        f"{LOGS}/label_unadapted/{{dataset}}/{{system}}.log",
    benchmark:
        f"{BENCHMARKS}/label_unadapted/{{dataset}}/{{system}}.tsv"
