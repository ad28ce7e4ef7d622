# Encoders: as published or with random weights, then adapted by self-supervised pre-training; and the embeddings they give.


rule fetch_encoder:
    input:
        checkpoint=lambda wildcards: checkpoint_files(wildcards.encoder),
    output:
        weights=f"{RESULTS}/encoders/{{encoder}}/encoder.safetensors",
        config=f"{RESULTS}/encoders/{{encoder}}/config.json",
    log:
        f"{LOGS}/fetch_encoder/{{encoder}}.log",
    benchmark:
        f"{BENCHMARKS}/fetch_encoder/{{encoder}}.tsv"
    wildcard_constraints:
        encoder=any_of(PLAIN),
    conda:
        "../envs/asdflow.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        cfg=lambda wildcards: stage_config(
            **{
                key: encoder_entry(wildcards.encoder)[key]
                for key in ("architecture", "front_end", "init", "seed")
            }
        ),
        code=lambda wildcards: code_of(
            "fetch_encoder.py", architecture_of(wildcards.encoder)
        ),
    script:
        "../workflow_scripts/fetch_encoder.py"


rule pretrain:
    input:
        unpack(pretraining_inputs),
    output:
        weights=f"{RESULTS}/encoders/{{encoder}}/encoder.safetensors",
        config=f"{RESULTS}/encoders/{{encoder}}/config.json",
        history=f"{RESULTS}/encoders/{{encoder}}/history.parquet",
    log:
        f"{LOGS}/pretrain/{{encoder}}.log",
    benchmark:
        f"{BENCHMARKS}/pretrain/{{encoder}}.tsv"
    wildcard_constraints:
        encoder=any_of(PRETRAINED),
    retries: 2
    conda:
        "../envs/asdflow.yaml"
    threads: pretraining_threads()
    resources:
        **several_devices(),
        gpu=needs_gpu() * config["training_devices"] * config["training_nodes"],
        mem_mb=lambda wildcards, attempt: attempt * training_memory(wildcards.encoder),
        runtime=1440,
    params:
        cfg=lambda wildcards: stage_config(
            recipe=without_pace(encoder_entry(wildcards.encoder)["pretraining"]),
            seed=encoder_entry(wildcards.encoder)["seed"],
            datasets=pretraining_datasets(wildcards.encoder),
        ),
        code=lambda wildcards: code_of(
            "pretrain.py", architecture_of(wildcards.encoder)
        ),
        checkpoints=f"{CHECKPOINTS}/pretrain/{{encoder}}",
    script:
        "../workflow_scripts/pretrain.py"


rule embed:
    input:
        unpack(lambda wildcards: encoder_files(wildcards.encoder)),
        features=lambda wildcards: features_of(wildcards.dataset, wildcards.encoder),
    output:
        embeddings=f"{RESULTS}/{{dataset}}/embeddings/{{encoder}}.h5",
    log:
        f"{LOGS}/embed/{{dataset}}/{{encoder}}.log",
    benchmark:
        f"{BENCHMARKS}/embed/{{dataset}}/{{encoder}}.tsv"
    conda:
        "../envs/asdflow.yaml"
    threads: 1
    resources:
        gpu=needs_gpu(),
        mem_mb=lambda wildcards, attempt: attempt * embedding_memory(wildcards.encoder),
        runtime=growing(120),
    params:
        cfg=lambda wildcards: stage_config(
            **{
                key: encoder_entry(wildcards.encoder)[key]
                for key in ("pooling", "batch_size")
            }
        ),
        code=lambda wildcards: code_of("embed.py", architecture_of(wildcards.encoder)),
    script:
        "../workflow_scripts/embed.py"
