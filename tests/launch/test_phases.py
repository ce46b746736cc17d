"""Runs that begin with another: what a phase at a higher resolution and a distillation take over, and what they refuse."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import phases
import pytest
import torch
from PIL import Image
from torch import Tensor

from raydino import collectives
from raydino.config import ConfigError
from raydino.export import to_safetensors
from raydino.launch import evaluate, export
from raydino.launch.cluster import ClusterConfig
from raydino.launch.init import FOLDER, TEACHER, begin_from, keep, settled
from raydino.launch.lineage import parent_asked
from raydino.launch.model import open_model, teacher_targets
from raydino.launch.resume import run_meant
from raydino.launch.trials.prepare import Prepare
from raydino.launch.trials.trial import Trial
from raydino.launch.workers.worker import build_loop
from raydino.methods.config import DINOConfig, DINOv2Config, MethodConfig, SupervisedConfig
from raydino.methods.distillation import Distillation
from raydino.methods.method import Method
from raydino.nn.config import BackboneConfig, HeadConfig
from raydino.recipe import Recipe
from raydino.schedule import constant
from raydino.train.checkpoint import Checkpoint, save
from raydino.train.config import Cadence
from tests.export.conftest import a_model
from tests.launch.conftest import ROOT

CPU = torch.device("cpu")
CLUSTER = ClusterConfig(precision="fp32", attention="fused", threads=1)  # as a network that nobody has set up
STEPS = 20
HEAD = HeadConfig(prototypes=32, hidden=24, bottleneck=12, train_gain=True)
PARENT = Recipe(
    name="parent",
    steps=STEPS,
    global_batch=16,
    lanes=4,
    backbone=BackboneConfig(
        name="vit_tiny_patch16_224", patch_size=8, width=32, depth=2, heads=2, drop_path=0.1, layer_scale=0.1
    ),
    method=DINOv2Config().override(
        {"global_crops.size": 32, "local_crops": {"size": 16, "count": 2}, "head": HEAD, "ibot_head": HEAD}
    ),
    cadence=Cadence(log=1, evaluate=0, pictures=False),
).override({"data.window": 32, "evals.knn": {"k": 5, "bank": 100, "queries": 40}, "optim.warmup": 5})


def a_parent(folder: Path, recipe: Recipe = PARENT, *, seed: int = 1, status: str = "finished") -> Method:
    """The folder of a run that has come to an end, and the method as it was then: no two parts of it are alike."""
    torch.manual_seed(seed)
    method = recipe.method.build(recipe.backbone, steps=recipe.steps)
    with torch.no_grad():
        for value in [*method.parameters(), *method.buffers()]:
            value.add_(0.02 * torch.randn_like(value))
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    (folder / "summary.json").write_text(json.dumps({"status": status}))
    save(folder / "checkpoints", Checkpoint(recipe.steps, method.state_dict(), {}, {}), keep=2)
    return method.eval()


@pytest.fixture
def parent(tmp_path: Path) -> Method:
    return a_parent(tmp_path / "parent")


def a_phase(tmp_path: Path, **changes: Any) -> Recipe:
    return phases.HIGHRES["laptop"].recipe(PARENT, str(tmp_path / "parent")).override({"steps": 6, **changes})


def a_distillation(tmp_path: Path, **changes: Any) -> Recipe:
    student = {"backbone.width": 24, "method.head.hidden": 16, "method.ibot_head.hidden": 16, "steps": 6}
    return phases.DISTILL["laptop"].recipe(PARENT, str(tmp_path / "parent")).override({**student, **changes})


def begun(recipe: Recipe, run_dir: Path) -> Method:
    """The method of a run at its step 0."""
    run_dir.mkdir(exist_ok=True)
    recipe = settled(recipe)
    keep(recipe, run_dir)
    return build_loop(recipe, CLUSTER, CPU, run_dir).method.eval()


def enlarged(positions: Tensor, side: int) -> Tensor:
    """Position embeddings [1, 1 + P, D] on another grid by Pillow's bicubic filter, one dimension at a time."""
    grid = positions[0, 1:].unflatten(0, (4, 4)).numpy()
    planes = [
        np.asarray(Image.fromarray(grid[..., d]).resize((side, side), Image.Resampling.BICUBIC))
        for d in range(grid.shape[2])
    ]
    return torch.cat([positions[:, :1], torch.from_numpy(np.stack(planes, -1)).flatten(0, 1)[None]], 1)


def test_highres__step_0_is_the_parents_last_with_positions_of_the_larger_grid(tmp_path: Path, parent: Method):
    method = begun(a_phase(tmp_path), tmp_path / "phase")
    was, now = parent.state_dict(), method.state_dict()
    assert was.keys() == now.keys()
    for name, value in was.items():
        if name.endswith("pos_embed"):
            torch.testing.assert_close(now[name], enlarged(value, 6), atol=1e-5, rtol=0)
        else:
            assert torch.equal(now[name], value), name
    assert {n for n, p in method.named_parameters() if p.requires_grad} == {
        n for n, p in parent.named_parameters() if p.requires_grad
    }
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        for network, before in ((method.student, parent.student), (method.teacher, parent.teacher)):
            torch.testing.assert_close(network.backbone(images).cls, before.backbone(images).cls, atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", [DINOConfig(), SupervisedConfig(classes=3)], ids=["dino", "supervised"])
def test_highres__goes_on_with_every_method(tmp_path: Path, config: MethodConfig):
    sizes = {"global_crops.size": 32, "local_crops": {"size": 16, "count": 2}}
    small = {**sizes, **({"head": HEAD} if isinstance(config, DINOConfig) else {})}
    recipe = PARENT.override({"method": config.override(small)})
    was = a_parent(tmp_path / "parent", recipe).state_dict()
    phase = phases.HIGHRES["laptop"].recipe(recipe, str(tmp_path / "parent")).override({"steps": 6})
    now = begun(phase, tmp_path / "phase").state_dict()
    assert was.keys() == now.keys()
    assert [name for name in was if not torch.equal(now[name], was[name])] == [
        f"{network}.backbone.vit.pos_embed" for network in ("student", "teacher")
    ]


def test_highres__at_the_parents_size_features_are_the_parents_bit_for_bit(tmp_path: Path, parent: Method):
    same = {"method.global_crops.size": 32, "method.local_crops.size": 16}
    method = begun(a_phase(tmp_path, **same), tmp_path / "phase")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(method.teacher.backbone(images).cls, parent.teacher.backbone(images).cls)
        assert torch.equal(method.student.backbone(images).patches, parent.student.backbone(images).patches)


def test_highres__enlarges_crops_compresses_schedules_and_keeps_all_else():
    grown = {"length": 5, "global_size": 16, "local_size": 8}
    before = PARENT.override({"method.teacher_momentum.warmup": 4, "seed": 3, "method.curriculum": grown})
    phase = phases.HighResolution("laptop", enlarge=1.5, steps=200, rate=0.1).recipe(before, "RUN")
    assert (phase.method.global_crops.size, phase.method.local_crops.size) == (48, 24)
    assert phase.method.curriculum is None and phase.name == "parent-highres"
    assert phase.optim.lr == pytest.approx(0.1 * before.optim.lr)
    assert (phase.init.weights, phase.init.parts) == ("RUN", "all")
    assert (phase.optim.warmup, phase.method.teacher_momentum.warmup) == (5 / 20, 4 / 20)
    for step in range(20):  # every schedule at ten times the length
        for name in ("teacher_momentum", "teacher_temperature"):
            old, new = getattr(before.method, name), getattr(phase.method, name)
            if step >= 6:  # a linear warm-up includes both of its ends, so that longer ones are not quite in proportion
                assert new.at(10 * step, steps=200) == pytest.approx(old.at(step, steps=20))
    untouched = ("seed", "global_batch", "lanes", "data", "backbone", "evals")
    assert all(getattr(phase, name) == getattr(before, name) for name in untouched)
    assert phase.method.head == before.method.head and phase.method.masks == before.method.masks


@pytest.mark.parametrize(
    ("size", "by", "patch", "expected"),
    [(224, 518 / 224, 14, 518), (224, 416 / 224, 16, 416), (98, 518 / 224, 14, 224), ((32, 48), 1.5, 8, (48, 72))],
)
def test_enlarged__sides_are_whole_patches(size: Any, by: float, patch: int, expected: Any):
    assert phases.enlarged(size, by, patch) == expected


def test_distillation__begins_with_the_parents_teacher_and_its_centres(tmp_path: Path, parent: Method):
    method = begun(a_distillation(tmp_path), tmp_path / "student")
    assert isinstance(method, Distillation)
    theirs = parent.teacher.state_dict()
    assert theirs.keys() == method.frozen.state_dict().keys()
    assert all(torch.equal(value, theirs[name]) for name, value in method.frozen.state_dict().items())
    for name in ("centering", "ibot_centering"):
        assert torch.equal(getattr(method, name).center, getattr(parent, name).center)
    assert method.student.backbone.width == 24
    fresh = build_loop(a_distillation(tmp_path), CLUSTER, CPU).method
    assert all(torch.equal(a, b) for a, b in zip(fresh.student.parameters(), method.student.parameters(), strict=True))
    assert teacher_targets(str(tmp_path / "parent")) is not None
    # its recipe: no stochastic depth, and a network of the parent's that is not the student's
    recipe = a_distillation(tmp_path)
    assert recipe.backbone.drop_path == 0.0 and recipe.method.teacher.backbone == PARENT.backbone


def test_begin_from__a_restart_loads_the_frozen_teacher_and_nothing_else(tmp_path: Path, parent: Method):
    recipe = settled(a_distillation(tmp_path))
    (tmp_path / "student").mkdir()
    keep(recipe, tmp_path / "student")
    (tmp_path / "parent").rename(tmp_path / "gone")  # the run has its own copy
    method = build_loop(recipe, CLUSTER, CPU, tmp_path / "student", fresh=False).method
    assert torch.equal(method.frozen.backbone.mask_token, parent.teacher.backbone.mask_token)
    phase = settled(a_phase(tmp_path, **{"init.weights": str(tmp_path / "gone")}))
    (tmp_path / "phase").mkdir()
    keep(phase, tmp_path / "phase")
    restarted = build_loop(phase, CLUSTER, CPU, tmp_path / "phase", fresh=False).method.state_dict()
    plain = build_loop(phase, CLUSTER, CPU).method.state_dict()
    assert all(torch.equal(value, plain[name]) for name, value in restarted.items())  # a checkpoint will be loaded


def test_copies__that_were_changed_are_refused(tmp_path: Path, parent: Method):
    a_parent(tmp_path / "other", seed=2)
    for name, make, folder in (("phase", a_phase, FOLDER), ("student", a_distillation, TEACHER)):
        run_dir = tmp_path / name
        recipe = settled(make(tmp_path))
        run_dir.mkdir()
        keep(recipe, run_dir)
        weights = run_dir / folder / "state.safetensors"
        (tmp_path / "again").mkdir(exist_ok=True)
        field = "init.weights" if name == "phase" else "method.teacher.weights"
        digest = "init.digest" if name == "phase" else "method.teacher.digest"
        other = settled(make(tmp_path).override({field: str(tmp_path / "other")}))
        (tmp_path / f"{name}-other").mkdir()
        keep(other, tmp_path / f"{name}-other")
        weights.write_bytes((tmp_path / f"{name}-other" / folder / "state.safetensors").read_bytes())
        with pytest.raises(ConfigError, match=f"{digest} = "):
            begin_from(recipe.method.build(recipe.backbone, steps=6), run_dir, recipe)
        weights.write_bytes(b"no weights")
        with pytest.raises(ConfigError, match="damaged"):
            begin_from(recipe.method.build(recipe.backbone, steps=6), run_dir, recipe)


@pytest.mark.parametrize(("make", "field"), [(a_phase, "init.digest"), (a_distillation, "method.teacher.digest")])
def test_parent__that_changed_is_another_run_and_is_refused_on_resume(
    tmp_path: Path, parent: Method, make: Callable[..., Recipe], field: str
):
    first = settled(make(tmp_path))
    assert settled(make(tmp_path)) == first  # the same command is the same run
    (tmp_path / first.id).mkdir()
    (tmp_path / first.id / "recipe.yaml").write_text(first.to_yaml())
    a_parent(tmp_path / "parent", PARENT.override({"steps": STEPS + 1}), seed=2)
    second = settled(make(tmp_path))
    assert second.id != first.id
    with pytest.raises(ConfigError, match=field.replace(".", r"\.") + ": [0-9a-f]{64} → [0-9a-f]{64}"):
        run_meant(second, tmp_path, resume=True)
    with pytest.raises(ConfigError, match=field.replace(".", r"\.") + " = [0-9a-f]{64}: .* has [0-9a-f]{64}"):
        keep(first, tmp_path / first.id)  # it was to be these weights and no others


def test_settled__refuses_what_cannot_go_on_and_says_what_would(tmp_path: Path, parent: Method):
    def refused(recipe: Recipe, text: str) -> None:
        with pytest.raises(ConfigError, match=text):
            settled(recipe)

    refused(
        a_phase(tmp_path, **{"method.head.prototypes": 64}), r"method\.head = .*; leave method\.head as that run has it"
    )
    refused(a_phase(tmp_path, **{"backbone.depth": 3}), r"backbone\.depth = 3, and it has 2")
    refused(
        a_phase(tmp_path, **{"method.centering": "sinkhorn_knopp"}),
        r"method\.centering = sinkhorn_knopp, and it has soft",
    )
    refused(a_phase(tmp_path, **{"data.normalisation.mean": (0.5,)}), r"data\.normalisation = ")
    dino = DINOConfig().override({"global_crops.size": 48, "local_crops.size": 24})
    refused(a_phase(tmp_path, method=dino), "is a run of DINOv2Config and this one of DINOConfig")
    refused(a_phase(tmp_path, **{"init.weights": "nowhere"}), r"init\.weights = 'nowhere': it is no run's folder")
    refused(
        a_phase(tmp_path, **{"init.weights": f"{tmp_path}/parent@3"}),
        r"no checkpoint of that step is kept; give one of 20",
    )
    another = {"method.teacher.backbone.depth": 3}
    refused(
        a_distillation(tmp_path, **another), r"method\.teacher\.backbone\.depth = 3, and it has 2: .*leave these out"
    )
    refused(
        a_distillation(tmp_path, **{"method.teacher.weights": ""}),
        r"needs a teacher; train one \(python recipes/dinov2\.py\)",
    )
    a_parent(tmp_path / "parent", status="unfinished")
    for make in (a_phase, a_distillation):
        refused(make(tmp_path), "that run is not finished; let it finish, or name a step")
    given = {"init.weights": f"{tmp_path}/parent@{STEPS}"}
    assert settled(a_phase(tmp_path, **given)).init.digest
    with pytest.raises(ConfigError, match="a run of DINOConfig, whose heads score no patches"):
        phases.DISTILL["laptop"].recipe(Recipe(method=DINOConfig()), "RUN")
    with pytest.raises(ConfigError, match=r"parts, digest and frozen_steps are about weights"):
        Recipe().override({"init.parts": "all"})


def test_settled__a_teacher_that_never_scored_patches_is_refused(tmp_path: Path):
    a_parent(tmp_path / "parent", PARENT.override({"method.ibot_weight": 0.0, "method.ibot_head": None}))
    recipe = a_distillation(tmp_path, **{"method.ibot_head": None, "method.teacher.ibot_head": None})
    with pytest.raises(ConfigError, match=r"method\.ibot_weight = 1\.0: .* never learned to score patches"):
        settled(recipe)
    assert settled(recipe.override({"method.ibot_weight": 0.0})).method.teacher.digest


def _loaded(recipes: dict[str, Recipe], folder: str, rank: int) -> dict[str, dict[str, Tensor]]:
    found = {}
    for name, recipe in recipes.items():
        for parallel in ("ddp", "fsdp"):
            cluster = ClusterConfig(precision="fp32", threads=1, workers=2, parallel=parallel)
            method = build_loop(recipe, cluster, CPU, Path(folder, name)).method
            frozen = method.frozen.state_dict() if isinstance(method, Distillation) else {}
            state = {**method.state_dict(), **{f"frozen.{key}": value for key, value in frozen.items()}}
            found[f"{name} {parallel}"] = {key: collectives.whole(value).clone() for key, value in state.items()}
    return found


def test_begin_from__every_rank_has_the_files_weights_replicated_or_sharded(
    tmp_path: Path, parent: Method, gloo: Callable[..., list[dict[str, dict[str, Tensor]]]]
):
    """A backbone from exported weights, all of a run's state, and a frozen teacher."""
    (tmp_path / "weights").mkdir()
    model = a_model("plain")
    to_safetensors.write(model, tmp_path / "weights")
    fields = {name: getattr(model.config, name) for name in BackboneConfig.model_fields}
    backbone = PARENT.override(
        {"backbone": fields, "data.normalisation": model.normalisation, "init.weights": f"{tmp_path}/weights"}
    ).override({"method.global_crops.size": model.size})
    recipes = {"backbone": backbone, "all": a_phase(tmp_path), "teacher": a_distillation(tmp_path)}
    for name, recipe in recipes.items():
        recipes[name] = settled(recipe)
        (tmp_path / name).mkdir()
        keep(recipes[name], tmp_path / name)
    own, theirs = model.backbone.state_dict(), parent.state_dict()
    for rank in gloo(lambda rank: _loaded(recipes, str(tmp_path), rank), 2):
        for parallel in ("ddp", "fsdp"):
            for name, value in own.items():
                for network in ("student", "teacher"):
                    assert torch.equal(rank[f"backbone {parallel}"][f"{network}.backbone.{name}"], value)
            for name, value in theirs.items():
                if not name.endswith("pos_embed"):
                    assert torch.equal(rank[f"all {parallel}"][name], value)
                if name.startswith("teacher."):
                    frozen = rank[f"teacher {parallel}"][name.replace("teacher.", "frozen.", 1)]
                    assert torch.equal(frozen, value)


def test_sweep__a_trial_begins_with_the_weights_and_the_teacher(tmp_path: Path, parent: Method, small_images: Path):
    prepare = Prepare(ClusterConfig(storage=str(tmp_path)), parent=None, judged=False)
    for name, make in (("phase", a_phase), ("student", a_distillation)):
        recipe = settled(make(tmp_path, **{"data.path": str(small_images)}))
        run_dir = tmp_path / f"trial-{name}"
        run_dir.mkdir()
        job = prepare(Trial(name, recipe.override({"optim.lr": 1e-3}), "group"), run_dir)
        method = build_loop(job.recipe, CLUSTER, CPU, job.run_dir).method
        network = method.frozen if isinstance(method, Distillation) else method.teacher
        assert torch.equal(network.backbone.mask_token, parent.teacher.backbone.mask_token)


def test_open_model__the_teacher_of_both_is_the_moving_average(tmp_path: Path, parent: Method):
    for name, make, side in (("phase", a_phase, 48), ("student", a_distillation, 32)):
        recipe, run_dir = settled(make(tmp_path)), tmp_path / name
        method = begun(recipe, run_dir)
        (run_dir / "recipe.yaml").write_text(recipe.to_yaml())
        with torch.no_grad():
            for value in method.student.parameters():
                value.add_(1.0)
        save(run_dir / "checkpoints", Checkpoint(6, method.state_dict(), {}, {}), keep=2)
        model, images = open_model(str(run_dir)), torch.randn(2, 3, side, side)
        assert model.size == side
        with torch.no_grad():
            assert torch.equal(model.backbone(images).cls, method.teacher.backbone(images).cls)
    assert teacher_targets(str(tmp_path / "student")) == "its targets are those of another run's teacher"
    assert callable(teacher_targets(str(tmp_path / "phase")))


@pytest.mark.parametrize(("make", "kinds"), [(a_phase, phases.HIGHRES), (a_distillation, phases.DISTILL)])
def test_run__without_its_parent_goes_on_from_its_recipe_and_its_copy(
    tmp_path: Path, parent: Method, make: Callable[..., Recipe], kinds: dict[str, Any]
):
    """`--config runs/RUN/recipe.yaml --resume auto` is the same run."""
    recipe = settled(make(tmp_path))
    keep(recipe, tmp_path)
    (tmp_path / "parent").rename(tmp_path / "gone")
    again = settled(kinds["laptop"].recipe(None).from_yaml(recipe.to_yaml()))
    assert again == recipe
    keep(again, tmp_path)
    build_loop(again, CLUSTER, CPU, tmp_path)


def test_parent_asked__takes_either_spelling_and_the_last_of_them(tmp_path: Path):
    a_parent(tmp_path / "parent")
    at = str(tmp_path / "parent")
    for words in (["--from", at], [f"--from={at}@20"], ["--from", "x", "--steps", "3", "--init.weights", at]):
        recipe, spec = parent_asked("init.weights", words)
        assert recipe == PARENT and spec.removesuffix("@20") == at
    assert parent_asked("init.weights", ["--from", "timm:vit_small"]) == (None, "timm:vit_small")
    assert parent_asked("init.weights", ["--teacher", at]) == (None, "")
    (tmp_path / "parent" / "recipe.yaml").write_text("method: {masks: 3, nothing: 4}\n")
    with pytest.raises(ConfigError, match="method has the fields masks, nothing, as no class of this version"):
        parent_asked("init.weights", ["--from", at])


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "flags", "kind"),
    [
        ("highres", ("--from",), "timm"),
        ("distill", ("--method.head.hidden", "16", "--backbone.width", "24", "--teacher"), "safetensors"),
    ],
)
def test_run__trains_evaluates_and_exports(
    ray_cluster: None,
    recipe_here: Callable[..., tuple[int, str]],
    small_images: Path,
    storage: Path,
    tmp_path: Path,
    script: str,
    flags: tuple[str, ...],
    kind: str,
):
    plain = {"method.teacher_temperature": constant(0.04), "method.freeze_last_layer": 0, "name": f"of-{script}"}
    a_parent(tmp_path / "parent", PARENT.override({**plain, "data.path": str(small_images)}))
    given = (
        *flags,
        str(tmp_path / "parent"),
        "--steps",
        "4",
        "--cluster.storage",
        str(storage),
        "--cluster.threads",
        "1",
    )
    at = ROOT / "recipes" / f"{script}.py"
    status, said = recipe_here(*given, "--dry-run", script=at, given=())
    assert status == 0 and "memory" in said, said
    status, said = recipe_here(*given, script=at, given=())
    assert status == 0, said
    (run_dir,) = storage.glob(f"of-{script}-*")
    assert json.loads((run_dir / "summary.json").read_text())["status"] == "finished"
    status, said = recipe_here(*given, script=at, given=())
    assert status == 0 and "is finished" in said
    words = ["--model", str(run_dir), "--data", str(small_images), "--evals", "knn", "--untracked"]
    assert evaluate.main("", words) == 0
    assert export.main("", ["--model", str(run_dir), "--format", kind, "--out", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(("script", "flag"), [("highres", "--from"), ("distill", "--teacher")])
def test_command__says_what_to_do_first(recipe_here: Callable[..., tuple[int, str]], script: str, flag: str):
    at = ROOT / "recipes" / f"{script}.py"
    status, said = recipe_here(script=at, given=())
    assert status == 2 and f"{flag} (" in said and "python recipes/dinov2.py" in said
    status, said = recipe_here("--help", script=at, given=())
    assert status == 0 and flag in said
