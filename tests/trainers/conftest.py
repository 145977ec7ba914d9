# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from collections.abc import Iterator

import pytest

from torchrl_o2o.data import make_local_dataset


@pytest.fixture(scope="module")
def linear_medium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """``o2o/halfcheetah/linear-medium-v0`` of 2000 steps, alone in Minari's folder."""
    root = tmp_path_factory.mktemp("minari")
    make_local_dataset("o2o/halfcheetah/linear-medium-v0", num_steps=2_000, root=root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        yield
