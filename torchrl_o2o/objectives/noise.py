# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The noise that losses draw; see :mod:`torchrl_o2o.functional.noise`, where samplers find it too."""

from __future__ import annotations

from torchrl_o2o.functional.noise import GeneratorNoise, NoiseSource, RecordedNoise

__all__ = ["GeneratorNoise", "NoiseSource", "RecordedNoise"]
