# SPDX-License-Identifier: Apache-2.0
"""Lets a CUDA build of torchvision be imported beside a CPU build of PyTorch, for tests of vLLM.

There is no torchvision wheel for every CPU build of PyTorch, and the import of another stops at
operators that its native library would have defined. Installed as a `.pth` file, this declares
them before that import, in every process: vLLM starts several. Nothing calls them.

    python tools/cpu_torchvision.py     # installs itself into this Python's environment
"""

from __future__ import annotations

import importlib.abc
import sys
import sysconfig
from pathlib import Path

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    """Finds nothing; sees the import of torchvision come."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            for schema in _SCHEMAS:
                operator, _, rest = schema.partition("(")
                torch.library.define(f"torchvision::{operator}", "(" + rest)
        return None


def main() -> None:
    folder = Path(sysconfig.get_paths()["purelib"])
    (folder / "hired_cpu_torchvision.py").write_text(Path(__file__).read_text())
    (folder / "hired_cpu_torchvision.pth").write_text("import hired_cpu_torchvision\n")


if __name__ == "__main__":
    main()
else:
    sys.meta_path.insert(0, _BeforeTorchvision())
