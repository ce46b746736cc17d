"""How a method runs on several ranks."""

import pytest
import torch
from torch import nn

from raydino.config import ConfigError
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
