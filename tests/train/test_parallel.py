"""How a method runs on several ranks."""

import pytest
import torch
from torch import nn

from raydino.config import ConfigError
from raydino.methods.config import DINOConfig
from raydino.methods.method import Method
from raydino.nn.config import BackboneConfig
from raydino.train import parallel


def _refusal(rank: int) -> str:
    try:
        parallel.replicate(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), torch.device("cpu"))
    except ConfigError as error:
        return str(error)
    return ""


def test_replicate__batch_norm_is_refused_on_several_cpu_ranks(gloo):
    assert all("batch norm is synchronised on GPUs only" in text for text in gloo(_refusal, 2))


def test_replicate__one_rank_is_left_alone():
    method = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert parallel.replicate(method, torch.device("cpu")) is method


def test_replicate__batch_norm_of_student_and_teacher_is_synchronised_on_gpus(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parallel.collectives, "world_size", lambda: 2)
    monkeypatch.setattr(parallel, "DistributedDataParallel", lambda method, **_: method)
    method = nn.ModuleDict({"student": nn.BatchNorm2d(3), "teacher": nn.Sequential(nn.BatchNorm2d(3))})
    weight = method["student"].weight
    made = parallel.replicate(method, torch.device("cuda:0"))
    assert isinstance(made["student"], nn.SyncBatchNorm) and isinstance(made["teacher"][0], nn.SyncBatchNorm)
    assert made["student"].weight is weight  # the optimiser holds it


def _tiny() -> Method:
    return DINOConfig().override({"head.prototypes": 8}).build(BackboneConfig(width=32, depth=1, heads=1), steps=1)


def test_fuse_losses__is_refused_without_gpu_or_triton(monkeypatch: pytest.MonkeyPatch):
    with torch.device("meta"):
        method = _tiny()
    with pytest.raises(ConfigError, match=r"cluster\.losses = triton: .*no GPU.* set it to torch"):
        parallel.fuse_losses(method, torch.device("cpu"))
    monkeypatch.setattr(parallel, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"cluster\.losses = triton: .*not installed.* set it to torch"):
        parallel.fuse_losses(method, torch.device("cuda:0"))
    assert not method.fused_losses
    monkeypatch.setattr(parallel, "find_spec", lambda name: name)
    parallel.fuse_losses(method, torch.device("cuda:0"))
    assert method.fused_losses
