# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The subcommands of `o2o`, one module each; heavy imports stay inside the handlers so that `o2o --help` is quick."""
