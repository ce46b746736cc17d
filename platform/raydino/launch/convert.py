"""A training file of DINOv2's official code as a recipe of raydino: the command line of recipes/convert.py.

`recipe_of` gives the recipe that trains the same, `left_behind` what has no place in one. Lengths become shares of the run, so
that `--steps` shortens all of them alike.
"""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from raydino.config import ConfigError, in_file, read_yaml_file
from raydino.launch.official import Official, OfficialStudent, OfficialTrain
from raydino.launch.terminal.arguments import parser_of
from raydino.methods.config import DINOv2Config
from raydino.nn.config import BackboneConfig
from raydino.recipe import Recipe
from raydino.schedule import constant, cosine
from raydino.train.config import Cadence, OptimConfig
from raydino.views import Crops, Masks

ARCHITECTURES = {"vit_small": "vit_small", "vit_base": "vit_base", "vit_large": "vit_large", "vit_giant2": "vit_giant"}
SAVED_EVERY = 3  # official epochs; fixed in the official code, whatever train.saveckp_freq says


def recipe_of(official: Official, *, gpus: int, name: str) -> Recipe:
    """The recipe that trains as `official` does on `gpus` GPUs, which its batch is counted per. Raises ConfigError."""
    optim, train = official.optim, official.train
    return Recipe().override(
        {
            "name": name,
            "seed": train.seed,
            "steps": optim.epochs * train.OFFICIAL_EPOCH_LENGTH,
            "global_batch": train.batch_size_per_gpu * gpus,
            "lanes": gpus,
            "backbone": _backbone(official.student),
            "method": _method(official),
            "optim": OptimConfig(
                lr=optim.base_lr,
                min_lr=optim.min_lr,
                warmup=optim.warmup_epochs / optim.epochs,
                weight_decay=cosine(optim.weight_decay, optim.weight_decay_end),
                betas=(optim.adamw_beta1, optim.adamw_beta2),
                clip=optim.clip_grad,
                layer_decay=optim.layerwise_decay,
                patch_embed_lr=optim.patch_embed_lr_mult,
            ),
            "cadence": Cadence(
                log=50,
                evaluate=official.evaluation.eval_period_iterations,
                checkpoint=SAVED_EVERY * train.OFFICIAL_EPOCH_LENGTH,
            ),
        }
    )


def _backbone(student: OfficialStudent) -> BackboneConfig:
    given = (student.interpolate_antialias, student.interpolate_offset)
    if given not in ((False, 0.1), (True, 0.0)):
        raise ConfigError(
            f"student.interpolate_antialias = {given[0]} with student.interpolate_offset = {given[1]}: position embeddings are "
            "resampled as (false, 0.1) or (true, 0.0) here, the two ways of the released models; give one of them"
        )
    giant = student.arch == "vit_giant2"  # timm knows DINOv2's alone, whose own feed-forward layer is SwiGLU
    base = ARCHITECTURES[student.arch]
    return BackboneConfig(
        name=f"{base}_patch14_dinov2" if giant or student.patch_size == 14 else f"{base}_patch16_224",
        patch_size=student.patch_size,
        ffn="swiglu" if student.ffn_layer != "mlp" else "mlp" if giant else "model",
        registers=student.num_register_tokens,
        layer_scale=student.layerscale or 0.0,
        drop_path=student.drop_path_rate,
        stochastic_depth="batch_subset",
        position_resampling="antialias" if student.interpolate_antialias else "offset",
    )


def _method(official: Official) -> DINOv2Config:
    crops, teacher, ibot, epochs = official.crops, official.teacher, official.ibot, official.optim.epochs
    default = DINOv2Config()
    temperature = teacher.warmup_teacher_temp_epochs / epochs
    views = (crops.global_crops_size, crops.global_crops_scale, crops.local_crops_size, crops.local_crops_scale)
    global_size, global_scale, local_size, local_scale = views
    return default.override(
        {
            "global_crops": {"size": global_size, "scale": global_scale},
            "local_crops": Crops(count=crops.local_crops_number, size=local_size, scale=local_scale),
            "head": official.dino.head,
            "ibot_head": ibot.head if ibot.separate_head else None,
            "masks": Masks(probability=ibot.mask_sample_probability, ratio=ibot.mask_ratio_min_max),
            "dino_weight": official.dino.loss_weight,
            "ibot_weight": ibot.loss_weight,
            "koleo_weight": official.dino.koleo_loss_weight,
            "centering": "softmax" if official.train.centering == "centering" else "sinkhorn_knopp",
            "teacher_momentum": cosine(teacher.momentum_teacher, teacher.final_momentum_teacher),
            "teacher_temperature": constant(
                teacher.teacher_temp, warmup=temperature, warmup_from=teacher.warmup_teacher_temp
            ),
            "freeze_last_layer": official.optim.freeze_last_layer_epochs / epochs,
        }
    )


def left_behind(official: Official, *, gpus: int) -> list[str]:
    """What of the file has no place in a recipe, and where it is said here: a line each."""
    train, weights = official.train, official.student.pretrained_weights
    lines = [
        f"train.dataset_path = {train.dataset_path}: give --data PATH, a folder of Parquet or of curate.py",
        f"{gpus} GPUs: --cluster.workers; any number that divides lanes = {gpus} sees the same images in the same order",
        "compute_precision: here bf16 where the device has it, without a gradient scaler (--cluster.precision)",
    ]
    if weights:
        lines.append(
            f"student.pretrained_weights = {weights}: export.py --import {Path(weights).name} --arch NAME --out FOLDER, then "
            "--init.weights FOLDER; heads begin afresh"
        )
    if train.saveckp_freq != OfficialTrain().saveckp_freq:
        lines.append(
            f"train.saveckp_freq = {train.saveckp_freq}: the official code does not read it and saves every {SAVED_EVERY} "
            "epochs; --cadence.checkpoint"
        )
    return lines


def main(description: str, argv: Sequence[str] | None = None) -> int:
    """Carry out the command line; returns the exit status."""
    parser = parser_of(description)
    parser.add_argument("file", type=Path, help="training file of DINOv2's official code, such as vitl14.yaml")
    parser.add_argument("--gpus", type=int, required=True, help="GPUs that it is meant for: its batch is given per GPU")
    parser.add_argument("--out", type=Path, required=True, help="YAML to write; an existing one is not overwritten")
    options = parser.parse_args(argv)
    try:
        if options.gpus < 1:
            raise ConfigError(f"gpus = {options.gpus}: give the number of GPUs, 1 or more")
        if options.out.exists():
            raise ConfigError(f"out = {options.out}: there is something; give another name")
        recipe, notes = _converted(options.file, gpus=options.gpus)
        options.out.write_text("".join(f"# {line}\n" for line in notes) + recipe.to_yaml())
    except (ConfigError, OSError) as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return 2
    print(f"{options.out}: {recipe.name}, {recipe.steps:,} steps of {recipe.global_batch:,} images")
    print("not in it, because it does not belong to a recipe:", *(f"  {line}" for line in notes), sep="\n")
    print(f"python recipes/dinov2.py --config {shlex.quote(str(options.out))} --data PATH --dry-run")
    return 0


def _converted(file: Path, *, gpus: int) -> tuple[Recipe, list[str]]:
    name = "dinov2-" + re.sub(r"[^a-z0-9.-]+", "-", file.stem.lower()).strip("-.")
    try:
        official = Official().override(read_yaml_file(file))
        return recipe_of(official, gpus=gpus, name=name), left_behind(official, gpus=gpus)
    except ConfigError as error:
        raise in_file(error, file) from None
