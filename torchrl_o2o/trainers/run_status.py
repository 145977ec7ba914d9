# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What a finished run left in its folder, for a run that continues it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchrl_o2o import deploy
from torchrl_o2o.checkpoint.reading import newest_valid, read_state
from torchrl_o2o.data.conventions import FittedConvention
from torchrl_o2o.errors import O2OCheckpointError

__all__ = ["RunStatus"]


@dataclass(frozen=True)
class RunStatus:
    """The status of a run, read from its newest checkpoint.

    Args:
        folder: the run's folder.
        manifest: of the checkpoint.
        damaged: steps of newer checkpoints that are damaged.
        config: the run's configuration.
        lineage: what the run has learned from, an entry a data set: ``round`` (0: before the first continuation),
            ``source``, ``rows``, ``episodes``, ``fingerprint``, ``added`` (time, UTC), and ``updates`` of the round.
        further: updates made in all continuations.
        policy: the run's policy file.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.data import Convention
        >>> from torchrl_o2o.envs import make_gym_env
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import probe_transitions
        >>> from torchrl_o2o.trainers import Problem, online_phase
        >>> from torchrl_o2o.trainers.algorithms import make_rlpd
        >>> rows = probe_transitions(make_gym_env("Pendulum-v1"), 100)
        >>> problem = Problem({"env_id": "Pendulum-v1", "max_episode_steps": 9}, rows, Convention().fit(rows))
        >>> words = ["preset=cpu", "compile=false", f"run_dir={tempfile.mkdtemp()}/run"]
        >>> words += ["env.env_id=Pendulum-v1", "+env.max_episode_steps=9"]
        >>> words += ["online.total_frames=8", "online.batch_size=4", "evaluation.num_episodes=1"]
        >>> cfg = script_config("rlpd", words)
        >>> with online_phase(cfg, problem, None, make_rlpd) as run:
        ...     for step, data in run.steps():
        ...         _ = run.buffer.extend(data.select(*run.learner.keys))
        >>> status = RunStatus.read(cfg.run_dir)
        >>> status.round, status.num_offline, status.policy.dims
        (0, 100, (3, 1))
    """

    folder: Path
    manifest: Mapping[str, Any]
    damaged: Sequence[int]
    config: Mapping[str, Any]
    lineage: Sequence[Mapping[str, Any]]
    further: int
    policy: deploy.PolicyFile

    @classmethod
    def read(cls, folder: str | Path) -> RunStatus:
        """Read a run folder.

        Args:
            folder: of a pre-training, a fine-tuning, or either continued.

        Raises:
            O2OCheckpointError: if it holds no checkpoint or no policy, or the run has not come to its end.
        """
        root = Path(folder) / "checkpoints"
        manifest, damaged = newest_valid(root)
        if manifest is None:
            raise O2OCheckpointError(
                f"{root} holds no checkpoint, expected the folder of a finished run; correct the folder"
            )
        config = dict(manifest["config"])
        lineage = config.pop("lineage", [])
        counters = read_state(root, manifest, "counters")
        if not lineage:
            _check_finished(Path(folder), manifest, config, counters)
        policy = deploy.read_policy(folder)
        return cls(Path(folder), manifest, damaged, config, lineage, counters.get("further", 0), policy)

    @property
    def root(self) -> Path:
        """The folder of checkpoints."""
        return self.folder / "checkpoints"

    @property
    def round(self) -> int:
        """The number of continuations that were begun."""
        return self.lineage[-1]["round"] if self.lineage else 0

    @property
    def num_offline(self) -> int:
        """The number of leading rows that the run's buffer treats as offline."""
        return sum(region["capacity"] for region in self.manifest["buffer"]["regions"] if region["name"] == "offline")

    @property
    def planned(self) -> int:
        """Updates of all continuations that were begun."""
        return sum({entry["round"]: entry["updates"] for entry in self.lineage}.values())

    @property
    def convention(self) -> FittedConvention:
        """The convention of rewards and observations that the run began with.

        Raises:
            O2OCheckpointError: if the policy file has none.
        """
        if self.policy.convention is None:
            raise O2OCheckpointError(
                f"{self.policy.path} has no convention of rewards and observations, expected a policy file of a run; "
                "name another folder"
            )
        return self.policy.convention

    def state(self, name: str) -> Any:
        """The state of an object, by its name in the checkpoint; ``None`` if there is none."""
        return read_state(self.root, self.manifest, name) if f"{name}.pt" in self.manifest["files"] else None


def _check_finished(
    folder: Path, manifest: Mapping[str, Any], config: Mapping[str, Any], counters: Mapping[str, int]
) -> None:
    if "pretraining.pt" in manifest["files"]:
        planned = read_state(folder / "checkpoints", manifest, "pretraining")["num_steps"]
        done = counters["offline"]
    else:
        planned, done = config.get("online", {}).get("total_frames"), counters.get("online", 0)
    if planned is not None and done < planned:
        raise O2OCheckpointError(
            f"{folder} is at {done} of {planned} steps, expected a finished run; let it finish (resume=true) before "
            "you continue it"
        )
