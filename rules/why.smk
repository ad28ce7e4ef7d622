# What a run would do and why, in words; nothing is run.


localrules:
    why,


rule why:
    log:
        f"{LOGS}/why.log",
    conda:
        "../envs/asdflow.yaml"
    threads: 1
    resources:
        mem_mb=500,
        runtime=10,
    params:
        snakefile=workflow.main_snakefile,
        configfiles=[str(path) for path in workflow.configfiles],
        config=dict(workflow.config_settings.config),
    script:
        "../workflow_scripts/why.py"
