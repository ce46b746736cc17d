"""What a worker refuses to train on."""

from pathlib import Path

import pytest

from raydino.config import ConfigError
from raydino.curation.synthetic import write_builtin
from raydino.launch.cluster import ClusterConfig
from raydino.launch.job import Job
from raydino.launch.workers import worker
from raydino.recipe import Recipe


def test_train__images_that_changed_since_the_run_began_are_refused(tmp_path: Path):
    """A keep-mask made anew, say, before a lost worker starts again."""
    write_builtin(str(tmp_path / "images"), train=64, test=8)
    job = Job(Recipe(), ClusterConfig(), tmp_path, str(tmp_path / "images"), "0" * 64, "", None)
    with pytest.raises(ConfigError, match="changed while the run went on"):
        worker._train(job, worker._Progress())
