# Anomaly scores and what they are worth.


rule score:
    input:
        clips=lambda wildcards: clips_of(wildcards.dataset),
        embeddings=lambda wildcards: (
            f"{tuned_folder(wildcards.dataset, wildcards.system, wildcards.seed)}/embeddings.h5"
        ),
    output:
        scores=f"{RESULTS}/{{dataset}}/{{system}}/seed_{{seed}}/scores.parquet",
        train_scores=f"{RESULTS}/{{dataset}}/{{system}}/seed_{{seed}}/train_scores.parquet",
        detector=directory(f"{RESULTS}/{{dataset}}/{{system}}/seed_{{seed}}/detector"),
    log:
        f"{LOGS}/score/{{dataset}}/{{system}}/seed_{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/score/{{dataset}}/{{system}}/seed_{{seed}}.tsv"
    conda:
        "../envs/asdflow.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        cfg=lambda wildcards: stage_config(
            backend=system_entry(wildcards.system)["backend"],
            decision=system_entry(wildcards.system)["decision"],
            held_out=system_entry(wildcards.system)["tuning"]["held_out"],
        ),
        code=code_of("score.py"),
    script:
        "../workflow_scripts/score.py"


rule ensemble:
    input:
        clips=lambda wildcards: clips_of(wildcards.dataset),
        scores=lambda wildcards: member_files(wildcards, "scores.parquet"),
        train_scores=lambda wildcards: member_files(wildcards, "train_scores.parquet"),
    output:
        scores=f"{RESULTS}/{{dataset}}/{{ensemble}}/seed_{{seed}}/scores.parquet",
        train_scores=f"{RESULTS}/{{dataset}}/{{ensemble}}/seed_{{seed}}/train_scores.parquet",
    log:
        f"{LOGS}/ensemble/{{dataset}}/{{ensemble}}/seed_{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/ensemble/{{dataset}}/{{ensemble}}/seed_{{seed}}.tsv"
    wildcard_constraints:
        ensemble=any_of(config["ensembles"]),
    conda:
        "../envs/asdflow.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        cfg=lambda wildcards: stage_config(
            members=config["ensembles"][wildcards.ensemble]["systems"],
            decision=config["ensembles"][wildcards.ensemble]["decision"],
        ),
        code=code_of("ensemble.py"),
    script:
        "../workflow_scripts/ensemble.py"


rule evaluate:
    input:
        clips=lambda wildcards: clips_of(wildcards.dataset),
        scores=lambda wildcards: runs_of(wildcards.dataset, "scores.parquet", SCORED),
        hidden_attributes=lambda wildcards: hidden_attributes_of(wildcards.dataset),
        labels=lambda wildcards: list(judged_labels(wildcards.dataset).values()),
        unadapted_labels=lambda wildcards: list(
            judged_labels(wildcards.dataset, "_unadapted").values()
        ),
    output:
        metrics=f"{RESULTS}/{{dataset}}/metrics.csv",
        official=f"{RESULTS}/{{dataset}}/official_scores.csv",
        intervals=f"{RESULTS}/{{dataset}}/intervals.csv",
        comparisons=f"{RESULTS}/{{dataset}}/comparisons.csv",
    log:
        f"{LOGS}/evaluate/{{dataset}}.log",
    benchmark:
        f"{BENCHMARKS}/evaluate/{{dataset}}.tsv"
    conda:
        "../envs/asdflow.yaml"
    threads: 1
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        cfg=lambda wildcards: stage_config(
            year=config["datasets"][wildcards.dataset]["rules_of"],
            runs=[[system, seed] for system in SCORED for seed in RUN["seeds"]],
            references=reference_systems(),
            labelled=list(judged_labels(wildcards.dataset)),
            labelled_unadapted=list(judged_labels(wildcards.dataset, "_unadapted")),
        ),
        code=code_of("evaluate.py"),
    script:
        "../workflow_scripts/evaluate.py"


rule submit:
    input:
        clips=lambda wildcards: clips_of(wildcards.dataset),
        scores=f"{RESULTS}/{{dataset}}/{{system}}/seed_{{seed}}/scores.parquet",
    output:
        submission=directory(
            f"{RESULTS}/{{dataset}}/{{system}}/seed_{{seed}}/submission"
        ),
    log:
        f"{LOGS}/submit/{{dataset}}/{{system}}/seed_{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/submit/{{dataset}}/{{system}}/seed_{{seed}}.tsv"
    wildcard_constraints:
        system=any_of(SCORED),
    conda:
        "../envs/asdflow.yaml"
    threads: 1
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        cfg=lambda wildcards: stage_config(
            year=config["datasets"][wildcards.dataset]["rules_of"],
            description=config["ensembles"].get(wildcards.system)
            or described_system(wildcards.system),
        ),
        code=code_of("submit.py"),
    script:
        "../workflow_scripts/submit.py"
