# The encoder of a system, tuned on its labels, and its embeddings of every clip.


rule finetune:
    input:
        unpack(finetuning_inputs),
    output:
        model=f"{RESULTS}/{{dataset}}/{{system}}/seed_{{seed}}/model.safetensors",
        config=f"{RESULTS}/{{dataset}}/{{system}}/seed_{{seed}}/model.json",
        history=f"{RESULTS}/{{dataset}}/{{system}}/seed_{{seed}}/history.parquet",
        embeddings=f"{RESULTS}/{{dataset}}/{{system}}/seed_{{seed}}/embeddings.h5",
    log:
        f"{LOGS}/finetune/{{dataset}}/{{system}}/seed_{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/finetune/{{dataset}}/{{system}}/seed_{{seed}}.tsv"
    retries: 2
    conda:
        "../envs/asdflow.yaml"
    threads: 1
    resources:
        gpu=needs_gpu(),
        mem_mb=lambda wildcards, attempt: attempt * finetuning_memory(),
        runtime=720,
    params:
        cfg=lambda wildcards: stage_config(
            system=tuning_settings(wildcards.system),
            datasets=training_datasets(wildcards.dataset, wildcards.system),
        ),
        code=lambda wildcards: code_of(
            "finetune.py", architecture_of(system_entry(wildcards.system)["encoder"])
        ),
        checkpoints=f"{CHECKPOINTS}/finetune/{{dataset}}/{{system}}/seed_{{seed}}",
    script:
        "../workflow_scripts/finetune.py"
