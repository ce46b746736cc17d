"""Teacher: the network that a run has made so far, as a descriptor of images."""

from pathlib import Path

from raydino.config import ConfigError, read_yaml_file
from raydino.curation.embed import Descriptor, from_encoder, weights_digest
from raydino.evals.evaluation import centre_crop
from raydino.methods.config import MethodConfig
from raydino.nn.config import BackboneConfig
from raydino.train.checkpoint import load_newest
from raydino.views import Normalisation

PREFIX = "teacher.backbone."  # of its weights in a checkpoint


def open_teacher(run: str, device: str = "cpu") -> Descriptor:
    """The teacher's backbone at the newest checkpoint of the run's folder `run`, on `device`; images as evaluations see them.

    Raises:
        ConfigError: the folder is not that of a run, or holds no checkpoint yet.
        CheckpointError: all its checkpoints are damaged.
    """
    folder = Path(run)
    if not (folder / "recipe.yaml").is_file():
        raise ConfigError(
            f"run:{run}: no recipe.yaml in it; give the folder of a run, such as runs/dinov2-0123456789ab."
        )
    # Part by part: the file does not say which method the recipe is of, and a teacher is the same thing to all.
    recipe = read_yaml_file(folder / "recipe.yaml")
    backbone = BackboneConfig().override(recipe["backbone"])
    size = MethodConfig().global_crops.override(recipe["method"]["global_crops"]).size
    normalise = Normalisation().override(recipe["data"]["normalisation"])
    saved = load_newest(folder / "checkpoints", device=device)
    if saved is None:
        raise ConfigError(f"run:{run}: no checkpoint has been committed yet; wait for the first, or give another run.")
    network = backbone.build(image_size=size, drop_path=0.0).to(device).eval()
    network.load_state_dict(
        {key.removeprefix(PREFIX): value for key, value in saved.model.items() if key.startswith(PREFIX)}
    )
    return from_encoder(
        f"run:{folder.name}@{saved.step}",
        "semantic",
        lambda images: network(images).cls,
        normalise=normalise,
        size=size,
        digest=weights_digest(network),
        prepare=lambda image: centre_crop(image, size),
        channels=backbone.channels,
        device=device,
    )
