"""The keys of a training file of DINOv2's official code, with the defaults and limits of that code.

Its files say only what differs from dinov2/configs/ssl_default_config.yaml (Apache-2.0), whose values stand here.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from raydino.config import Config
from raydino.nn.config import HeadConfig
from raydino.views import Positive, Probability

Unused = Any
"""A key that the official training does not read, or that is about its machines."""


class OfficialHead(Config):
    """What `dino` and `ibot` share."""

    loss_weight: float = 1.0
    head_n_prototypes: Positive = 65_536
    head_bottleneck_dim: Positive = 256
    head_nlayers: Positive = 3
    head_hidden_dim: Positive = 2048

    @property
    def head(self) -> HeadConfig:
        """The same head here; its gain is trained, as always in DINOv2's code."""
        return HeadConfig(
            prototypes=self.head_n_prototypes,
            bottleneck=self.head_bottleneck_dim,
            layers=self.head_nlayers,
            hidden=self.head_hidden_dim,
            train_gain=True,
        )


class OfficialDINO(OfficialHead):
    """Section `dino`."""

    koleo_loss_weight: float = 0.1


class OfficialIBOT(OfficialHead):
    """Section `ibot`."""

    mask_sample_probability: Probability = 0.5
    mask_ratio_min_max: tuple[Probability, Probability] = (0.1, 0.5)
    separate_head: bool = False


class OfficialTrain(Config):
    """Section `train`."""

    batch_size_per_gpu: Positive = 64
    dataset_path: str = "ImageNet:split=TRAIN"
    seed: Annotated[int, Field(ge=0)] = 0
    OFFICIAL_EPOCH_LENGTH: Positive = 1250
    centering: Literal["centering", "sinkhorn_knopp"] = "centering"
    output_dir: Unused = "."
    saveckp_freq: Unused = 20
    num_workers: Unused = 10
    cache_dataset: Unused = True


class OfficialStudent(Config):
    """Section `student`."""

    arch: Literal["vit_small", "vit_base", "vit_large", "vit_giant2"] = "vit_large"
    patch_size: Positive = 16
    drop_path_rate: Probability = 0.3
    drop_path_uniform: Literal[True] = True
    layerscale: Annotated[float, Field(ge=0)] | None = 1e-5
    ffn_layer: Literal["mlp", "swiglu", "swiglufused"] = "mlp"
    num_register_tokens: Annotated[int, Field(ge=0)] = 0
    interpolate_antialias: bool = False
    interpolate_offset: float = 0.1
    pretrained_weights: str = ""
    qkv_bias: Literal[True] = True
    proj_bias: Literal[True] = True
    ffn_bias: Literal[True] = True
    block_chunks: Unused = 0


class OfficialTeacher(Config):
    """Section `teacher`."""

    momentum_teacher: Probability = 0.992
    final_momentum_teacher: Probability = 1.0
    warmup_teacher_temp: Annotated[float, Field(gt=0)] = 0.04
    teacher_temp: Annotated[float, Field(gt=0)] = 0.07
    warmup_teacher_temp_epochs: Annotated[int, Field(ge=0)] = 30


class OfficialOptim(Config):
    """Section `optim`; lengths are in epochs of `train.OFFICIAL_EPOCH_LENGTH` steps."""

    epochs: Positive = 100
    weight_decay: float = 0.04
    weight_decay_end: float = 0.4
    base_lr: Annotated[float, Field(gt=0)] = 4e-3
    warmup_epochs: Annotated[int, Field(ge=0)] = 10
    min_lr: Annotated[float, Field(ge=0)] = 1e-6
    clip_grad: Annotated[float, Field(ge=0)] = 3.0
    freeze_last_layer_epochs: Annotated[int, Field(ge=0)] = 1
    scaling_rule: Literal["sqrt_wrt_1024"] = "sqrt_wrt_1024"
    patch_embed_lr_mult: Annotated[float, Field(gt=0)] = 0.2
    layerwise_decay: Annotated[float, Field(gt=0, le=1)] = 0.9
    adamw_beta1: float = 0.9
    adamw_beta2: float = 0.999
    lr: Unused = 0.0


class OfficialCrops(Config):
    """Section `crops`."""

    global_crops_scale: tuple[float, float] = (0.32, 1.0)
    local_crops_number: Annotated[int, Field(ge=0)] = 8
    local_crops_scale: tuple[float, float] = (0.05, 0.32)
    global_crops_size: Positive = 224
    local_crops_size: Positive = 96


class OfficialEvaluation(Config):
    """Section `evaluation`."""

    eval_period_iterations: Annotated[int, Field(ge=0)] = 12_500


class Official(Config):
    """A training file of the official code."""

    dino: OfficialDINO = OfficialDINO()
    ibot: OfficialIBOT = OfficialIBOT()
    train: OfficialTrain = OfficialTrain()
    student: OfficialStudent = OfficialStudent()
    teacher: OfficialTeacher = OfficialTeacher()
    optim: OfficialOptim = OfficialOptim()
    crops: OfficialCrops = OfficialCrops()
    evaluation: OfficialEvaluation = OfficialEvaluation()
    MODEL: Unused = None
    compute_precision: Unused = None
    defaults: Unused = None
    hydra: Unused = None
    train_dataset_str: Unused = None
    val_dataset_str: Unused = None
    nb_knn: Unused = None
    temperature: Unused = None
    gather_on_cpu: Unused = None
    batch_size: Unused = None
    n_per_class_list: Unused = None
    n_tries: Unused = None
    finetune_dataset_str: Unused = None
    finetune_on_val: Unused = None
    metric_type: Unused = None
    train_features_device: Unused = None
    train_dtype: Unused = None
    max_train_iters: Unused = None
