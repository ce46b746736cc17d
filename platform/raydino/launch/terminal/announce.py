"""What a run will do, printed before it is done."""

from collections.abc import Mapping
from pathlib import Path

from raydino.config import in_steps
from raydino.launch.checks.numbers import Facts
from raydino.launch.cluster import ClusterConfig
from raydino.launch.terminal.shown import in_bytes, public_uri
from raydino.methods.distillation_config import DistillationConfig
from raydino.recipe import Recipe


def tokens_per_image(recipe: Recipe) -> tuple[int, int]:
    """Tokens per image that student and teacher compute: patches, cls and registers of their crops."""
    crops = (recipe.method.global_crops, recipe.method.local_crops)
    patch, extra = recipe.backbone.patch_size, 1 + recipe.backbone.registers
    each = [c.count * ((c.height // patch) * (c.width // patch) + extra) for c in crops]
    return sum(each), each[0]


def plan_text(
    recipe: Recipe,
    cluster: ClusterConfig,
    facts: Facts,
    *,
    warnings: list[str],
    run_dir: Path | None = None,
    done: int = 0,
) -> str:
    """What a run will do, for `--dry-run` and the start of a run: one line per matter, warnings last. `run_dir` None: the folder
    that the recipe's own fingerprint names. `done`: steps of the checkpoint that it goes on from."""
    steps, batch = recipe.steps, recipe.global_batch
    per_epoch = max(1, (facts.images - facts.dropped) // batch)
    warmup, (student, teacher) = in_steps(recipe.optim.warmup, steps), tokens_per_image(recipe)
    where = Path(cluster.storage) / (run_dir.name if run_dir else recipe.id)
    classes = f"{facts.classes} classes" if facts.classes else "no labels"
    share = f"; {facts.share:.1%} of those kept, by their weights" if facts.share < 1 else ""
    held_back = f"; {facts.held_back:,} more are held back for evaluation" if facts.held_back else ""
    micro = cluster.micro_batch(batch)
    rows = [
        ("run", f"{where.name} in {where}"),
        ("images", f"{facts.images:,} from {recipe.data.path}, {classes}{share}{held_back}"),
        ("length", f"{steps:,} steps of {batch:,} = {steps * batch:,} images = {steps / per_epoch:.3g} epochs"),
        (
            "epoch",
            f"{per_epoch:,} steps, {facts.dropped:,} images left over, reads {facts.read_amplification:.2f} rows for each used",
        ),
        (
            "batch",
            f"{cluster.workers} workers x {cluster.accumulate} micro-batches x {micro} images, {recipe.lanes} lanes",
        ),
        ("warm-up", f"{warmup:,} steps = {warmup / steps:.1%} of the run"),
        (
            "rate",
            f"{recipe.learning_rate:.3g} at its peak, from optim.lr by {recipe.method.learning_rate_batch}",
        ),
        ("tokens", f"{student:,} per image in the student, {teacher:,} in the teacher"),
        ("network", f"{recipe.backbone.name}, {facts.parameters / 1e6:.3g} M parameters with heads"),
        (
            "memory",
            f"{_shares(facts.memory)}a checkpoint is {in_bytes(facts.checkpoint_bytes)}",
        ),
        ("place", f"Ray {cluster.address}, decode_in {cluster.decode_in}, precision {cluster.precision}"),
        ("tracker", f"{public_uri(cluster.tracker())}, experiment {cluster.experiment}"),
    ]
    if done:
        rows.append(("resumes", f"after step {done:,} of {steps:,}"))
    if recipe.init.weights:
        what = "the last state" if recipe.init.parts == "all" else "the backbone"
        rows.append(("begins", f"with {what} of {recipe.init.weights} (sha256 {recipe.init.digest[:12]}…)"))
    if isinstance(method := recipe.method, DistillationConfig):
        frozen = method.teacher
        rows.append(("frozen", f"teacher of {frozen.weights}, {frozen.backbone.name} (sha256 {frozen.digest[:12]}…)"))
    if (small := recipe.method.curriculum) is not None:
        short = in_steps(small.length, steps)
        local = f" and {small.local_size}" if recipe.method.local_crops.count else ""
        rows.append(("sizes", f"crops of {small.global_size}{local} pixels for the first {short:,} steps"))
    if not facts.parameters:
        rows = [row for row in rows if row[0] != "memory"]
    if facts.images_per_second > 0:
        seconds = steps * batch / facts.images_per_second
        rows.append(
            ("time", f"{_duration(seconds)} at the probed {facts.images_per_second:,.3g} images/s, evaluations apart")
        )
    return "\n".join([*(f"{name:<9}{text}" for name, text in rows), *(f"warning  {text}" for text in warnings)])


def _shares(memory: Mapping[str, int]) -> str:
    """The memory of a worker and what it is for, the most first."""
    if not memory:
        return ""
    parts = sorted(((size, name) for name, size in memory.items() if size), reverse=True)
    total = sum(memory.values())
    return f"about {in_bytes(total)} per worker ({', '.join(f'{name} {in_bytes(size)}' for size, name in parts)}); "


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"
