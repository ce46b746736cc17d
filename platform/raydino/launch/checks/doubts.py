"""What can work but is likely to be a mistake: the warnings of preflight."""

from raydino.config import in_steps
from raydino.launch.checks.machine import Machine
from raydino.launch.checks.memory import memory_warnings
from raydino.launch.checks.numbers import Facts
from raydino.launch.cluster import ClusterConfig
from raydino.launch.terminal.shown import in_bytes, public_uri
from raydino.methods import rules
from raydino.methods.config import SelfDistillationConfig
from raydino.recipe import Recipe

RAY_TESTED = "2.60."
PROTOTYPES_MOST = 0.5  # of the images
MEMORY_MOST = 0.25  # of the run that the teacher remembers
READ_MOST = 1.1  # rows read for each row used or left out; folders written by curation stay below it
SHARED_MEMORY_LEAST = 0.3  # below this share of the object store, Ray falls back to /tmp and reads at disk speed


def doubts(recipe: Recipe, cluster: ClusterConfig, facts: Facts, machine: Machine) -> list[str]:
    """A line for everything that is likely to be a mistake but can work."""
    out = []
    if machine.ray and not machine.ray.startswith(RAY_TESTED):
        out.append(f"Ray {machine.ray} is installed; raydino is tested with {RAY_TESTED}x.")
    if not cluster.is_local and cluster.tracker().startswith("sqlite:"):
        out.append(
            f"cluster.tracking_uri = {public_uri(cluster.tracker())} is a file, but the run may be recorded from "
            f"another node (cluster.address = {cluster.address}); give an MLflow server, or shared storage."
        )
    store = cluster.store_bytes(gpus=machine.gpus, memory=machine.memory, shared=machine.shared_memory)
    if cluster.is_local and machine.shared_memory < SHARED_MEMORY_LEAST * store:
        out.append(
            f"/dev/shm has {in_bytes(machine.shared_memory)} free for an object store of {in_bytes(store)} "
            "(cluster.object_store_mb); Ray will use the disk instead. In a container, give it more with --shm-size."
        )
    if cluster.is_local and not cluster.use_gpu(machine.gpus):
        if machine.gpus:
            out.append(f"cluster.gpu = false, but this machine has {machine.gpus} GPU(s).")
        if recipe.data.fast_crops == "device":
            out.append(
                "data.fast_crops = device: without a GPU colours take the CPU longer than True; use that (a new run)."
            )
    if facts.dropped * 20 > facts.images:
        out.append(
            f"{facts.dropped:,} of {facts.images:,} images ({facts.dropped / facts.images:.0%}) are left out of each "
            "epoch, another part every time; a smaller global_batch leaves out fewer."
        )
    # Whole row groups are read, so rows that an epoch leaves out cost a factor of their own, and no setting saves it.
    if facts.read_amplification * facts.used > READ_MOST:
        remedy = (
            f"a smaller number of lanes reads less (lanes = {recipe.lanes}; a new run)"
            if facts.curated
            else "its row groups are large for so few images: `python recipes/curate.py --source PATH --out NEW` rewrites them"
        )
        out.append(
            f"data.path = {recipe.data.path}: {facts.read_amplification:.2f} rows are read for each row used, more than "
            f"{READ_MOST}; {remedy}."
        )
    out += [*_of_sizes(recipe, facts), *_of_claims(recipe, facts), *_of_nothing(recipe, cluster)]
    out += memory_warnings(cluster, machine, facts.memory, facts.memory_with)
    if in_steps(recipe.optim.warmup, recipe.steps) == 0 and recipe.steps * recipe.global_batch >= facts.images:
        out.append(
            "optim.warmup = 0: vision transformers usually diverge without a warm-up; 0.1 is the published share."
        )
    return out


def _of_sizes(recipe: Recipe, facts: Facts) -> list[str]:
    """Where prototypes and teacher do not suit the number of images and the length of the run (methods/rules.py)."""
    out, method = [], recipe.method
    if isinstance(method, SelfDistillationConfig) and method.head.prototypes > max(
        PROTOTYPES_MOST * facts.images, 2 * rules.prototypes(facts.images)
    ):
        out.append(
            f"method.head.prototypes = {method.head.prototypes:,} for {facts.images:,} images: most of them will be met by no "
            f"image in an epoch; {rules.prototypes(facts.images):,} suit so many."
        )
    start = method.teacher_momentum.start
    fitting = rules.teacher_momentum(steps=recipe.steps, global_batch=recipe.global_batch)
    if (
        recipe.init.parts != "all"
        and start < 1
        and 1 / (1 - start) > max(MEMORY_MOST * recipe.steps, 1.5 / (1 - fitting))
    ):
        out.append(
            f"method.teacher_momentum.start = {start}: the teacher remembers {1 / (1 - start):,.0f} steps of a run of "
            f"{recipe.steps:,}, so it stays near its random start; {fitting} suits this length."
        )
    return out


def _of_claims(recipe: Recipe, facts: Facts) -> list[str]:
    """What curation while training streams cannot promise."""
    if not recipe.data.stream_dedup:
        return []
    if facts.curated and not recipe.data.stream_against:
        return [
            f"data.stream_dedup = true: data.path = {recipe.data.path} was written by curation, which left no byte-identical "
            "copies; leave it out, and the run can be repeated bit for bit."
        ]
    return [
        "data.stream_dedup = true refuses byte-identical copies only; resized, recompressed and cropped ones stay, of evaluation "
        "images too. The copy that comes first is trained on: with several workers the images are not the same from run to "
        "run, they differ with cluster.workers, and a resumed run does not repeat the interrupted one bit for bit. The exact "
        "way: `python recipes/curate.py --source PATH --out NEW`."
    ]


def _of_nothing(recipe: Recipe, cluster: ClusterConfig) -> list[str]:
    """Settings of the cluster that do nothing for this run."""
    out, name = [], type(recipe.method).__name__
    if cluster.workers == 1 and cluster.parallel == "fsdp":
        out.append("cluster.parallel = fsdp with cluster.workers = 1: there is nobody to share with; use ddp.")
    if cluster.workers == 1 and cluster.gradient_reduction == "bf16":
        out.append(
            "cluster.gradient_reduction = bf16 with cluster.workers = 1: no gradient is sent, so it does nothing."
        )
    if cluster.fixed_shapes and recipe.views.masks is None:
        out.append(f"cluster.fixed_shapes = true: {name} masks no patches here, so it does nothing; leave it out.")
    if cluster.losses == "triton" and not isinstance(recipe.method, SelfDistillationConfig):
        out.append(f"cluster.losses = triton: {name} has no losses over prototypes, so it does nothing; leave it out.")
    return out
