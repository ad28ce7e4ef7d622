# asdflow: from machine recordings to anomaly detectors and an honest comparison of the ways to build one.
from snakemake.utils import min_version

min_version("9.27")


configfile: "config.yaml"


include: "rules/common.smk"
include: "rules/data.smk"
include: "rules/features.smk"
include: "rules/duplicates.smk"
include: "rules/encoders.smk"
include: "rules/labels.smk"
include: "rules/finetune.smk"
include: "rules/scoring.smk"
include: "rules/detection.smk"
include: "rules/report.smk"
include: "rules/why.smk"


# On a cluster these stay on the login node: the others seldom reach the internet.
localrules:
    download,
    fetch_labels,
    fetch_encoder,


share_between_checkouts("fetch_encoder", "extract_features", "pretrain")


rule all:
    default_target: True
    input:
        report=f"{RESULTS}/report/index.html",
        duplicates=f"{RESULTS}/duplicates.csv",
        metrics=expand(f"{RESULTS}/{{dataset}}/metrics.csv", dataset=RUN["datasets"]),
        official=expand(
            f"{RESULTS}/{{dataset}}/official_scores.csv", dataset=RUN["datasets"]
        ),


rule data:
    input:
        clips=[clips_of(name) for name in sorted(config["datasets"])],
        duplicates=f"{RESULTS}/duplicates.csv",


rule submissions:
    input:
        [
            path
            for name in RUN["datasets"]
            for path in runs_of(name, "submission", SCORED)
        ],


rule models:
    input:
        [path for name in RUN["datasets"] for path in runs_of(name, "export")],


onstart:
    check_arrays()
    entered.extend(enter_results_folder())


onsuccess:
    tell_how_it_went()


onerror:
    tell_how_it_went()
