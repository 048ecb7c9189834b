# SPDX-License-Identifier: Apache-2.0
"""What the plugin needs of vLLM, by name, and what it says where this vLLM has it not."""

from __future__ import annotations

import ast
import logging
import sys
from pathlib import Path

import pytest
import vllm
import vllm.multimodal.processing

import hired_kernels.vllm as plugin
from hired_kernels.vllm import stock

PACKAGE = Path(plugin.__file__).parent
ALL = list(plugin.ARCHITECTURES)


class Registry:
    """vLLM's, as far as the plugin uses it."""

    def __init__(self, known=()):
        self.models = dict.fromkeys(known)

    def get_supported_archs(self):
        return self.models.keys()

    def register_model(self, name, path):
        self.models[name] = path


@pytest.fixture
def registry(monkeypatch):
    registry = Registry()
    monkeypatch.setattr(vllm, "ModelRegistry", registry)
    return registry


@pytest.mark.parametrize("family", ALL)
def test_this_vllm_has_what_is_needed(family):
    assert stock.missing(family) == []


def test_the_installed_version_was_tried():
    assert stock.was_tried(vllm.__version__)


@pytest.mark.parametrize(
    ("version", "tried"),
    [("0.32.0", True), ("0.32", True), ("0.32.1.dev3", True), ("0.31.0", True), ("0.33.0", False),
     ("0.3.2", False), ("0.320.0", False), ("1.0.32", False)],
)  # fmt: skip
def test_versions_that_were_tried(version, tried):
    assert stock.was_tried(version) is tried


def imports_of(path, module):
    """Names that a file imports from a module."""
    nodes = ast.walk(ast.parse(path.read_text()))
    found = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    return {alias.name for node in found if (node.module or "") == module for alias in node.names}


@pytest.mark.parametrize("family", ALL)
def test_the_list_has_what_a_family_imports_and_no_more(family):
    folder = PACKAGE / "families"
    imported = imports_of(folder / f"{family}.py", "stock")
    for shared in ("weights", "own_format"):
        if imports_of(folder / f"{family}.py", shared):
            imported |= imports_of(folder / f"{shared}.py", "stock")
    listed = {name for names in stock.NEEDED[family].values() for name in names}
    assert imported == listed


def test_nothing_else_imports_vllms_models():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any("model_executor" in name for name in names), path


def test_a_version_that_was_tried_says_nothing(registry, caplog):
    plugin.register()
    plugin.register()
    assert set(registry.models) == set(plugin.ARCHITECTURES.values())
    assert not caplog.records


def test_another_version_says_so_in_a_line(registry, monkeypatch, caplog):
    monkeypatch.setattr(vllm, "__version__", "0.99.0")
    plugin.register()
    assert set(registry.models) == set(plugin.ARCHITECTURES.values())
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "hired: expected vLLM 0.31 or 0.32, which was tried, got 0.99.0: see docs/vllm.md, or "
        'pip install "vllm>=0.31,<0.33"'
    )


def test_code_that_no_longer_fits_costs_its_family(registry, monkeypatch, caplog):
    """Here, a base class that was renamed between two of vLLM's versions."""
    monkeypatch.setattr(vllm, "__version__", "0.99.0")
    monkeypatch.delitem(sys.modules, "hired_kernels.vllm.families.qianfan_ocr", raising=False)
    path = "vllm.model_executor.models.qianfan_ocr"
    __import__(path)
    monkeypatch.setattr(sys.modules[path], "QianfanOCRProcessingInfo", 1)
    plugin.register()
    assert set(plugin.ARCHITECTURES.values()) - set(registry.models) == {
        "HiredQianfanOCRForConditionalGeneration"
    }
    assert (
        caplog.records[-1]
        .getMessage()
        .startswith(
            "hired: no HiredQianfanOCRForConditionalGeneration with vLLM 0.99.0: TypeError: "
        )
    )


def test_methods_that_are_overridden_are_looked_for(monkeypatch):
    """Under another name vLLM would not call ours, and the model would be the stock one."""
    owner = vllm.multimodal.processing.BaseMultiModalProcessor
    monkeypatch.delattr(owner, "_apply_hf_processor_main")
    missing = "vllm.multimodal.processing.BaseMultiModalProcessor._apply_hf_processor_main"
    assert all(stock.missing(family) == [missing] for family in ALL)


@pytest.mark.parametrize(
    ("module", "name", "lost"),
    [("llava_onevision", None, {"llava_onevision"}), ("llava", "LlavaDummyInputsBuilder",
     {"llava", "llava_next"}), ("internvl", "InternVLChatModel", {"internvl"})],
)  # fmt: skip
def test_what_vllm_dropped_costs_the_families_that_need_it(
    registry, monkeypatch, caplog, module, name, lost
):
    path = f"vllm.model_executor.models.{module}"
    monkeypatch.setattr(vllm, "__version__", "0.99.0")
    if name is None:
        monkeypatch.setitem(sys.modules, path, None)
    else:
        __import__(path)
        monkeypatch.delattr(sys.modules[path], name)
    plugin.register()
    kept = {family for family, arch in plugin.ARCHITECTURES.items() if arch in registry.models}
    assert kept == set(ALL) - lost
    lines = [record.getMessage() for record in caplog.records][1:]
    missing = path if name is None else f"{path}.{name}"
    assert lines == [
        f"hired: no {plugin.ARCHITECTURES[family]} with vLLM 0.99.0: it lacks {missing}"
        for family in ALL
        if family in lost
    ]
