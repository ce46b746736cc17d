"""The Triton kernel, in Triton's interpreter and on a GPU where there is one, against torch's log-softmax and autograd in
float64; and that it compiles for GPUs.

In processes of their own: whether Triton interprets is settled when it is first imported, and the shape checks of the other
tests wrap functions, which Triton cannot read.
"""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed: it comes with torch on Linux alone")

ROOT = Path(__file__).resolve().parents[2]
TEMPERATURE = 0.07
BLOCK = 64  # in the place of 8192, since the interpreter is slow
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") else "cuda"
CASES: dict[str, dict[str, Any]] = {
    "a_part_of_a_block": {"views": 3, "rows": 5, "prototypes": 19},
    "one_block": {"views": 2, "rows": 3, "prototypes": BLOCK},
    "one_more_than_a_block": {"views": 2, "rows": 3, "prototypes": BLOCK + 1},
    "many_blocks_and_a_part": {"views": 10, "rows": 2, "prototypes": 9 * BLOCK + 13},
    "one_prototype": {"views": 1, "rows": 2, "prototypes": 1},
    "bfloat16": {"views": 2, "rows": 4, "prototypes": 150, "dtype": torch.bfloat16},
    "float16": {"views": 2, "rows": 4, "prototypes": 150, "dtype": torch.float16},
    "float64_is_left_to_torch": {"views": 2, "rows": 2, "prototypes": 70, "dtype": torch.float64},
    "rows_apart_in_memory": {"views": 2, "rows": 3, "prototypes": 70, "layout": "rows"},
    "prototypes_apart_in_memory": {"views": 2, "rows": 3, "prototypes": 70, "layout": "prototypes"},
    "targets_apart_in_memory": {"views": 2, "rows": 3, "prototypes": 70, "layout": "targets"},
    "far_apart": {"views": 1, "rows": 4, "prototypes": 200, "spread": 1e4},
    "largest_in_the_last_block": {"views": 1, "rows": 2, "prototypes": 200, "rising": True},
}
TEACHERS = (1, 2, 3)


def made(
    views: int,
    rows: int,
    prototypes: int,
    *,
    dtype: torch.dtype = torch.float32,
    layout: str = "",
    spread: float = 1.0,
    rising: bool = False,
    device: str = "cpu",
) -> tuple[Tensor, list[Tensor], list[float], Tensor]:
    draw = torch.Generator().manual_seed(views * prototypes)
    scores = spread * torch.randn(views, rows, prototypes, generator=draw)
    if rising:
        scores = scores.sort(dim=-1).values
    scores = scores.to(device, dtype)
    if layout == "rows":
        scores = torch.cat([scores, scores], dim=2)[:, :, :prototypes]
    if layout == "prototypes":
        scores = scores.transpose(1, 2).contiguous().transpose(1, 2)
    masses = [1.0 + view for view in range(views)]
    targets = [mass * torch.softmax(4 * torch.randn(rows, prototypes, generator=draw), dim=-1) for mass in masses]
    outer = torch.rand(views, rows, generator=draw).to(device)
    targets = [target.to(device) for target in targets]
    if layout == "targets":
        targets = [target.T.contiguous().T for target in targets]
    return scores, targets, masses, outer


def slow(scores: Tensor, targets: list[Tensor], outer: Tensor) -> tuple[Tensor, Tensor]:
    scores = scores.double().requires_grad_()
    losses = -(torch.stack(targets).double() * torch.log_softmax(scores / TEMPERATURE, dim=-1)).sum(-1)
    (gradient,) = torch.autograd.grad((losses * outer.double()).sum(), scores)
    return losses.detach(), gradient


def run(part: str, folder: Path, **environment: str) -> Any:
    """What the function `part` of this file returns in a process of its own."""
    found = folder / "found"
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, part, str(found)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "platform"), "TRITON_CACHE_DIR": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return pickle.loads(found.read_bytes())


def computed() -> dict[str, Any]:
    """Every case through the kernel."""
    from raydino.nn import cross_entropy_triton as kernel
    from raydino.nn.cross_entropy import cross_entropy
    from raydino.nn.losses import dino_loss, ibot_loss

    kernel.BLOCK = BLOCK
    found: dict[str, Any] = {}
    for name, case in CASES.items():
        scores, targets, masses, outer = made(**case, device=DEVICE)
        scores.requires_grad_()
        with torch.no_grad():
            alone = cross_entropy(scores, targets, masses, temperature=TEMPERATURE, fused=True)
        before = scores.detach().clone()
        losses = cross_entropy(scores, targets, masses, temperature=TEMPERATURE, fused=True)
        unharmed = torch.equal(before.cpu(), made(**case)[0])
        overwritten = not torch.equal(before, scores.detach())
        (gradient,) = torch.autograd.grad((losses * outer).sum(), scores)
        taken = gradient.data_ptr() == scores.data_ptr()
        found[name] = (losses.detach().cpu(), gradient.cpu(), alone.cpu(), unharmed, overwritten and taken)

    scores = torch.zeros(1, 0, 8, requires_grad=True, device=DEVICE)
    target = torch.zeros(0, 8, device=DEVICE)
    cross_entropy(scores, [target], [1.0], temperature=TEMPERATURE, fused=True).sum().backward()
    assert scores.grad is not None
    found["no_rows"] = scores.grad.cpu()

    for teachers in TEACHERS:
        scores, targets, *_ = made(5, 4, 150, device=DEVICE)
        scores.requires_grad_()
        probs = torch.stack([target / target.sum(-1, keepdim=True) for target in targets[:teachers]])
        shares = dino_loss(student_scores=scores * 1.0, teacher_probs=probs, temperature=TEMPERATURE, fused=True)
        (gradient,) = torch.autograd.grad(shares[0] + shares[1], scores)
        found[f"dino_{teachers}"] = (torch.stack(shares).detach().cpu(), gradient.cpu())
    scores, targets, _, outer = made(1, 6, 150, device=DEVICE)
    scores = scores[0].requires_grad_()
    given = {"teacher_probs": targets[0], "weights": outer[0], "crops": 3, "temperature": TEMPERATURE, "fused": True}
    loss = ibot_loss(student_scores=scores * 1.0, **given)
    (gradient,) = torch.autograd.grad(loss, scores)
    found["ibot"] = (loss.detach().cpu(), gradient.cpu())

    scores, targets, masses, _ = made(1, 3, 7, device=DEVICE)
    scores = scores.requires_grad_() * 1.0
    other = (scores**2).sum()  # needs the scores as they were
    losses = cross_entropy(scores, targets, masses, temperature=TEMPERATURE, fused=True)
    try:
        (losses.sum() + other).backward()
    except RuntimeError as error:
        found["shared"] = str(error)
    return found


def compiled() -> dict[str, dict[str, str]]:
    """PTX of the kernel as `forward` launches it, for two kinds of GPU and two precisions."""
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase
    from triton.runtime import driver

    from raydino.nn import cross_entropy_triton as kernel

    class NoGPU(DriverBase):
        capability = 0

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", self.capability, 32)

        def get_current_device(self) -> int:
            return self.capability  # what is compiled is kept by device

        def get_current_stream(self, device: int) -> int:
            return 0

    NoGPU.__abstractmethods__ = frozenset()
    driver.set_active(NoGPU())
    launch, made_of = kernel._row.run, {}
    for capability in (80, 90):
        for dtype in (torch.bfloat16, torch.float32):
            NoGPU.capability = capability
            name = f"sm_{capability} {dtype}"
            kernel._row.run = lambda *a, warmup, name=name, **k: made_of.update({name: launch(*a, warmup=True, **k)})
            scores, targets, masses, _ = made(10, 2, 16_384, dtype=dtype)
            kernel.forward(scores, [*targets[:2], *targets[2:3] * 8], masses, temperature=TEMPERATURE, wanted=True)
    return {name: {"ptx": one.asm["ptx"]} for name, one in made_of.items()}


@pytest.fixture(scope="module", params=["interpreted", pytest.param("on_a_gpu", marks=pytest.mark.gpu)])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if request.param == "on_a_gpu" and not torch.cuda.is_available():
        pytest.skip("no GPU for the kernel: its values are those of Triton's interpreter")
    environment = {"TRITON_INTERPRET": "1"} if request.param == "interpreted" else {}
    return run("computed", tmp_path_factory.mktemp(request.param), **environment)


@pytest.mark.parametrize("name", CASES)
def test_cross_entropy__fused_has_the_losses_and_gradients_of_every_row(found, name: str):
    scores, targets, _, outer = made(**CASES[name])
    expected, gradient = slow(scores, targets, outer)
    losses, slope, alone, unharmed, overwritten = found[name]
    assert losses.dtype == torch.promote_types(scores.dtype, torch.float32) and slope.dtype == scores.dtype
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-4)
    exact = scores.dtype in (torch.float32, torch.float64)
    near = {"rtol": 1e-4, "atol": 1e-4} if exact else {"rtol": 0.02, "atol": 0.02}
    torch.testing.assert_close(slope.double(), gradient, **near)
    assert torch.equal(alone, losses)
    assert unharmed, "scores were overwritten where no gradient was wanted"
    assert overwritten, "the gradient lies in other memory than the scores"


def test_cross_entropy__fused_without_rows(found):
    assert found["no_rows"].shape == (1, 0, 8)


@pytest.mark.parametrize("teachers", TEACHERS)
def test_dino_loss__fused_is_all_pairs(found, teachers: int):
    scores, targets, *_ = made(5, 4, 150)
    scores = scores.double().requires_grad_()
    logs, shares = torch.log_softmax(scores / TEMPERATURE, dim=-1), [0.0, 0.0]
    for at, target in enumerate(targets[:teachers]):
        for view in range(5):
            if view != at:
                probs = target.double() / target.double().sum(-1, keepdim=True)
                shares[view >= teachers] = shares[view >= teachers] - (probs * logs[view]).sum(-1).mean()
    expected = torch.stack([torch.as_tensor(share) / (teachers * 4) for share in shares])
    (gradient,) = torch.autograd.grad(expected.sum(), scores)
    torch.testing.assert_close(found[f"dino_{teachers}"][0].double(), expected.detach().double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[f"dino_{teachers}"][1].double(), gradient, rtol=1e-4, atol=1e-5)


def test_ibot_loss__fused_is_the_weighted_mean(found):
    scores, targets, _, outer = made(1, 6, 150)
    losses, gradient = slow(scores, targets, outer)
    torch.testing.assert_close(found["ibot"][0].double(), (losses[0] * outer[0]).sum() / 3, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["ibot"][1].double(), gradient[0] / 3, rtol=1e-4, atol=1e-4)


def test_cross_entropy__fused_scores_that_something_else_needs_are_not_used_wrongly(found):
    assert "modified by an inplace operation" in found["shared"]


def test_kernel__compiles_for_gpus_with_loads_and_stores_of_16_bytes(tmp_path):
    ptx = run("compiled", tmp_path)
    assert len(ptx) == 4
    for name, one in ptx.items():
        words = [word for word in one["ptx"].split() if word.startswith(("ld.global", "st.global"))]
        single = [word for word in words if ".v4." not in word]
        assert len(single) == 1, (name, words)  # the row's loss


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(pickle.dumps(globals()[sys.argv[1]]()))
