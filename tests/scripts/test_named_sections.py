# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A section's comment names the constructor that takes it, where a reader looks up what each key means."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml

CONFIGS = sorted((Path(__file__).parents[2] / "sota-implementations").glob("*/config.yaml"))


def named(text: str) -> list[tuple[str, str, str]]:
    """Section, package and name, perhaps of a class and its method, of the sections that begin at the margin."""
    return re.findall(r"^(\w+): # (torchrl_o2o\.[a-z_]+)\.(\w+(?:\.\w+)?)", text, re.MULTILINE)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.parent.name)
def test_the_keys_of_a_section_are_arguments_of_the_constructor_that_its_comment_names(path: Path) -> None:
    text = path.read_text()
    sections: dict[str, Any] = yaml.safe_load(text)
    for section, package, name in named(text):
        arguments = inspect.signature(attrgetter(name)(import_module(package))).parameters
        takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in arguments.values())
        if isinstance(sections[section], dict) and not takes_any:
            unknown = set(sections[section]) - set(arguments)
            assert not unknown, f"{package}.{name} has no argument {sorted(unknown)} of section {section}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.parent.name)
def test_the_phases_name_the_classes_that_read_their_sections(path: Path) -> None:
    """`pretrain` and `finetune` are functions for one's own scripts; they take other arguments."""
    phases = {section: name for section, _, name in named(path.read_text()) if section in ("offline", "online")}
    assert phases == {section: {"offline": "Pretraining", "online": "Finetuning"}[section] for section in phases}
