"""Teacher: the network that a run has made so far, as a descriptor of images."""

from raydino.curation.embed import Descriptor, from_encoder
from raydino.evals.images import centre_crop
from raydino.launch.model import open_model


def open_teacher(run: str, device: str = "cpu") -> Descriptor:
    """The teacher's backbone at the newest checkpoint of the run's folder `run`, on `device`; images as evaluations see them.

    Raises:
        ConfigError: the folder is not that of a run, or holds no checkpoint that can be used.
    """
    model = open_model(run, device=device)
    return from_encoder(
        f"run:{model.name}",
        "semantic",
        lambda images: model.backbone(images).cls,
        normalise=model.normalisation,
        size=model.size,
        digest=model.digest,
        prepare=lambda image: centre_crop(image, model.size),
        channels=model.config.channels,
        device=device,
    )
