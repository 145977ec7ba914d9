# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Find and start the training scripts: `sota-implementations/` of a checkout, or the copy in a wheel.

Hydra's ``--config-dir`` adds a folder of settings files from any source. These must not configure Hydra itself, because
its callbacks, launchers and loggers are classes that Hydra imports and calls.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchrl_o2o.errors import O2OSpecError

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["check_config_dirs", "find_script", "script_command", "script_config", "script_names", "start"]

_PACKAGE = Path(__file__).resolve().parent
#: In a wheel the scripts are inside the package; in a checkout they are next to it.
_FOLDERS = (_PACKAGE / "_scripts", _PACKAGE.parent / "sota-implementations")
_FOLDER_OPTION = re.compile(r"-cd|-cp|--config-(d|di|dir|p|pa|pat|path)")  # Hydra accepts abbreviated options
_SEARCH_PATH = re.compile(r"file://([^\],'\"\s]+)")
#: Settings that only some scripts take, and the call in these scripts that accepts them.
_TAKEN_BY_SOME = {"actors": "accept_actors()", "fleet": "accept_actors()", "seeds": "accept_seeds()"}
_PACKAGE_LINE = re.compile(r"^\s*#\s*@package\s+(\S+)", re.MULTILINE)


def find_script(name: str) -> Path:
    """Locate the script of an algorithm.

    Args:
        name: a script, for example ``"rlpd"`` or ``"rlpd_seeds"``, with or without its folder
            (``"rlpd/rlpd_seeds"``).

    Returns:
        The script's path.

    Raises:
        O2OSpecError: if there is no script of this name.

    Examples:
        >>> from torchrl_o2o.scripts import find_script
        >>> find_script("rlpd").name, find_script("rlpd_seeds").parent.name
        ('rlpd.py', 'rlpd')
    """
    scripts = _scripts()
    path = scripts.get(name.rpartition("/")[2])
    if path is not None and name in (path.stem, f"{path.parent.name}/{path.stem}"):
        return path
    if not scripts:
        raise O2OSpecError(f"found no training scripts in {' and '.join(map(str, _FOLDERS))}; reinstall torchrl_o2o")
    close = difflib.get_close_matches(name, scripts)
    hint = f" ({close[0]}?)" if close else ""
    raise O2OSpecError(f"got the unknown script {name!r}, expected one of {', '.join(scripts)}{hint}")


def script_names() -> list[str]:
    """The names of all scripts.

    Examples:
        >>> from torchrl_o2o.scripts import script_names
        >>> script_names()[:2]
        ['a3rl', 'a3rl_seeds']
    """
    return sorted(_scripts())


def _scripts() -> dict[str, Path]:
    return {path.stem: path for folder in _FOLDERS for path in sorted(folder.glob("*/*.py"))}


def script_command(name: str, overrides: Sequence[str]) -> list[str]:
    """The command line that starts a script in this interpreter.

    Args:
        name: as in :func:`find_script`.
        overrides: Hydra overrides and options, for example ``["task=hopper", "preset=cpu", "seed=1"]``.

    Returns:
        The words of the command.

    Raises:
        O2OSpecError: if there is no such script, or as :func:`check_config_dirs`.

    Examples:
        >>> from torchrl_o2o.scripts import script_command
        >>> script_command("rlpd", ["seed=1"])[2:]
        ['seed=1']
    """
    check_config_dirs(overrides)
    return [sys.executable, str(find_script(name)), *overrides]


def script_config(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """A script's configuration with some overrides, for a notebook, a test or your own script.

    The constructors of :mod:`torchrl_o2o.trainers.algorithms` read its sections.

    Args:
        name: as in :func:`find_script`.
        overrides: Hydra overrides, for example ``["task=hopper", "preset=cpu", "seed=1"]``. Defaults to none.

    Returns:
        The configuration, composed again at each call.

    Raises:
        O2OSpecError: if there is no such script, Hydra is not installed or refuses an override, such as ``env=null``
            after :func:`~torchrl_o2o.data.register_with_torchrl`, or as :func:`check_config_dirs`.

    Examples:
        >>> cfg = script_config("awac", ["preset=cpu", "offline.num_steps=10"])
        >>> cfg.offline.num_steps, cfg.actor.hidden_sizes
        (10, [64, 64])
    """
    check_config_dirs(overrides)
    folder = find_script(name).parent
    try:
        from hydra import compose, initialize_config_dir
        from hydra.errors import HydraException
    except ImportError as error:
        raise O2OSpecError("hydra is not installed; pip install torchrl_o2o[sota]") from error
    try:
        with initialize_config_dir(str(folder), version_base="1.3"):
            return compose("config", list(overrides))
    except HydraException as error:
        raise O2OSpecError(
            f"{str(error).splitlines()[0]} (in {' '.join(overrides)}); the settings and their choices are in {folder}"
        ) from error
    except ValueError as error:  # Hydra's own for NAME=null if NAME is a group of any library in its store
        raise O2OSpecError(
            f"{error} (in {' '.join(overrides)}), expected no group of that name; register_with_torchrl() and "
            "TorchRL's configurations add groups such as env and loss to Hydra. Set the entry after composing, as in "
            "cfg.env = None, or compose before"
        ) from error


def start(main: Callable[[], object]) -> None:
    """Start a script's main function after checking what Hydra would act on, or refuse, before it calls the function.

    These are the settings files of the command line, and settings that only other scripts take.

    Args:
        main: the function, decorated by ``hydra.main``.

    Raises:
        SystemExit: if :func:`check_config_dirs` raises, with its message, or for ``actors``, ``fleet`` or ``seeds`` in
            a script that does not take them; the message names those that do.

    Examples:
        >>> start(lambda: print("trains"))
        trains
    """
    try:
        check_config_dirs(sys.argv[1:])
        _check_taken(sys.argv[1:])
    except O2OSpecError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    main()


def _check_taken(words: Sequence[str]) -> None:
    """Raise for a setting that this script does not take; those that take it have put a ``+`` before it by now."""
    for word in words:
        name = re.split(r"[=.]", word)[0]
        if call := _TAKEN_BY_SOME.get(name):
            others = [each for each, path in _scripts().items() if call in path.read_text(encoding="utf-8")]
            raise O2OSpecError(
                f"got {word}, but this script does not take {name}; expected one of the scripts {', '.join(others)}; "
                f"start one of them, or leave out {name}"
            )


def check_config_dirs(words: Sequence[str]) -> None:
    """Raise if settings files configure Hydra itself, in the folders that a command line adds.

    These are the folders of ``--config-dir``, ``--config-path`` and ``hydra.searchpath``.

    Args:
        words: the words of a script's command line.

    Raises:
        O2OSpecError: if a file configures Hydra or cannot be read; the message names the file and the part.

    Examples:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "mine.yaml").write_text("hydra: {callbacks: {mine: {_target_: os.getcwd}}}")
        >>> check_config_dirs(["--config-dir", str(folder), "task=mine"])
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: ...mine.yaml configures Hydra itself (hydra), ...
    """
    for folder in _config_dirs(words):
        for file in sorted(path for path in folder.rglob("*") if path.suffix in (".yaml", ".yml")):
            found = next(_hydra_parts(file, folder), None)
            if found is not None:
                raise O2OSpecError(
                    f"{file} configures Hydra itself ({found}), which could run any code; remove that part, and give "
                    "Hydra's options on the command line"
                )


def _config_dirs(words: Sequence[str]) -> Iterator[Path]:
    for position, word in enumerate(words):
        option, equals, value = word.partition("=")
        if _FOLDER_OPTION.fullmatch(option):
            yield Path(value if equals else next(iter(words[position + 1 :]), ""))
        if "hydra.searchpath" in option:
            yield from map(Path, _SEARCH_PATH.findall(value))


def _hydra_parts(file: Path, folder: Path) -> Iterator[str]:
    """The parts of a file that configure Hydra: its name, its package, its keys, or its defaults list."""
    import yaml

    name = str(file.relative_to(folder).with_suffix(""))
    if "hydra" in name:
        yield name
    try:
        text = file.read_text(encoding="utf-8")
        documents = list(yaml.safe_load_all(text))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).replace("\n", " ")
        raise O2OSpecError(f"{file} cannot be read as YAML ({reason}); fix it or remove it from {folder}") from error
    yield from (package for package in _PACKAGE_LINE.findall(text) if "hydra" in package)
    for document in documents:
        if isinstance(document, dict):
            yield from (str(key) for key in document if "hydra" in str(key))
            yield from (str(entry) for entry in _words(document.get("defaults", [])) if "hydra" in str(entry))


def _words(value: Any) -> Iterator[Any]:
    """All keys and values in nested lists and mappings."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _words(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _words(inner)
    else:
        yield value
