# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from torchrl_o2o.data.datasets.staging import discard_directory, staged_directory


def test_killed_while_writing_leaves_no_entry(tmp_path: Path) -> None:
    target = tmp_path / "entry"
    script = f"""
    import time
    from pathlib import Path
    from torchrl_o2o.data.datasets.staging import staged_directory
    with staged_directory(Path({str(target)!r})) as folder:
        (folder / "half").write_text("half")
        print("writing", flush=True)
        time.sleep(60)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not target.exists()
    assert len(list(tmp_path.iterdir())) == 1
    with staged_directory(target) as folder:
        (folder / "whole").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]
    assert [path.name for path in target.iterdir()] == ["whole"]


def test_the_work_of_a_living_process_is_not_swept(tmp_path: Path) -> None:
    with staged_directory(tmp_path / "entry") as first:
        with staged_directory(tmp_path / "entry") as second:
            assert first.exists()
            (second / "second").write_text("")
        (first / "first").write_text("")
    assert [path.name for path in (tmp_path / "entry").iterdir()] == ["second"]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), staged_directory(tmp_path / "entry") as folder:  # noqa: PT012
        (folder / "half").write_text("half")
        raise ValueError("no")
    assert list(tmp_path.iterdir()) == []


def test_discarding(tmp_path: Path) -> None:
    (tmp_path / "entry" / "deep").mkdir(parents=True)
    discard_directory(tmp_path / "entry")
    discard_directory(tmp_path / "entry")
    assert list(tmp_path.iterdir()) == []
