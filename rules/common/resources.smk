# What jobs ask for: memory, time, devices.
def growing(amount: int):
    """A resource that is asked for again, twice and three times over, when a job is tried again."""
    return lambda wildcards, attempt: amount * attempt


def pretraining_threads() -> int:
    """CPU threads of one task: processes on one node share a task, on several nodes each is a task of its own."""
    alone = config["training_nodes"] == 1
    return config["training_threads"] * (config["training_devices"] if alone else 1)


def several_devices() -> dict:
    """What pre-training on several devices asks of Snakemake and of SLURM; the result does not depend on it."""
    devices, nodes = config["training_devices"], config["training_nodes"]
    if nodes == 1:
        return {"devices": devices, "nodes": 1}
    # `mpi` has the plugin leave the start of the tasks to the job itself, which calls srun
    return {
        "devices": devices,
        "nodes": nodes,
        "mpi": "srun",
        "tasks": devices * nodes,
        "tasks_per_gpu": 0,
        "slurm_extra": f"--ntasks-per-node={devices}"
        + (f" --gpus-per-node={devices}" if needs_gpu() else "")
        + " --signal=TERM@120",
    }


# Memory in MB, of the main memory. Measured on the CPU: Python, PyTorch and a stage's windows onto the feature cache take 0.5
# to 0.8 GB whatever the data's size (docs/cluster.md). Estimated: the driver's part on a GPU, and 4 bytes a weight and copy.


def base_memory() -> int:
    return 4000 if needs_gpu() else 1500


def million_weights(encoder: str) -> float:
    """A transformer's size from its width and depth, as in its blocks' matrices; 1 for the small encoders."""
    shape = encoder_entry(encoder)["architecture"]
    width, depth = shape.get("width"), shape.get("depth")
    if shape["name"] == "beats":
        width, depth = 768, 12
    return 12 * width**2 * depth / 1e6 if width and depth else 1.0


def embedding_memory(encoder: str) -> int:
    """Two copies of the weights while they are loaded; on the CPU the activations of a batch besides."""
    weights = million_weights(encoder)
    return round(base_memory() + 8 * weights + (0 if needs_gpu() else 20 * weights))


def training_memory(encoder: str) -> int:
    """Weights, teacher, gradient and two moments, all once more in a checkpoint; on the CPU the activations besides."""
    weights = million_weights(encoder)
    processes = config["training_devices"]
    return round(
        (base_memory() + 40 * weights + (0 if needs_gpu() else 100 * weights))
        * processes
    )


def finetuning_memory() -> int:
    """Of the run's largest encoder: an array of jobs has one request for all."""
    encoders = [config["systems"][name]["encoder"] for name in RUN["systems"]]
    return max(
        round(base_memory() + (32 if needs_gpu() else 132) * million_weights(name))
        for name in encoders
    )
