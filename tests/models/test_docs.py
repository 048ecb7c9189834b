# SPDX-License-Identifier: Apache-2.0
"""What README.md, docs/api.md, docs/models.md and examples/ show works as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from llava_models import make, picture
from transformers import InternVLModel

from hired_kernels import geometry

ROOT = Path(__file__).parents[2]
SNIPPETS = {
    page: re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    for page in ("README.md", "docs/api.md", "docs/models.md")
}


def snippet(first_line, page="docs/models.md"):
    """The one snippet of a page that begins with this line."""
    (found,) = [text for text in SNIPPETS[page] if text.startswith(first_line)]
    return found


def test_the_readme_with_a_checkpoint(tmp_path, monkeypatch, capsys):
    model, processor = make()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    picture((90, 170)).save(tmp_path / "street.jpg")
    monkeypatch.chdir(tmp_path)
    text = snippet("import hired_kernels as hired\nfrom PIL", "README.md")
    text, replaced = re.subn(r'name = "[\w./-]+"', 'name = "./model"', text)
    assert replaced == 1
    names = {}
    exec(compile(text, "README.md", "exec"), names)
    assert names["model"].hired.settings.budget == 0.2
    assert len(names["answer"]) == 50
    assert capsys.readouterr().out.strip()


def test_the_readme_with_plain_tensors(one_thread):
    names = {}
    text = snippet("import torch\nimport hired_kernels", "README.md")
    exec(compile(text, "README.md", "exec"), names)
    kept, layout = names["kept"], names["layout"]
    assert len(kept.tokens) == len(kept.indices) == int(kept.counts.sum()) == layout.budget(0.2)
    assert torch.equal(kept.tokens, names["features"].flatten(0, 1)[kept.indices])


def test_the_api_page_with_patches_for_judges(one_thread):
    names = {}
    for text in SNIPPETS["docs/api.md"]:  # one after the other, as a reader would
        exec(compile(text, "docs/api.md", "exec"), names)
    side, hidden = names["side"], names["hidden"]
    patches = geometry.patches_of(names["kept"].indices, side, 2)
    rows = hidden[:, 1:].flatten(0, 1)[patches].flatten(1)
    assert torch.equal(names["kept"].tokens, rows)
    # The projector of stock transformers gets the same rows from all of them.
    maps = hidden[:, 1:].unflatten(1, (side, side))
    shuffled = InternVLModel.pixel_shuffle(None, maps, scale_factor=0.5).flatten(0, 2)
    assert torch.equal(names["kept"].tokens, shuffled[names["kept"].indices])


def test_the_drop_in_example_with_plain_tensors(one_thread):
    text = snippet("import torch\nfrom hired_kernels import geometry, select_qk")
    code = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert len(code) <= 15
    names = {}
    exec(compile(text, "docs/models.md", "exec"), names)
    kept = names["kept"]
    assert int(kept.counts.sum()) == len(kept.indices) == names["K"]
    assert torch.equal(kept.tokens, names["hidden"][:, 1:].flatten(0, 1)[kept.indices])


def test_the_module_for_a_forward_pass_of_ones_own(one_thread):
    model, _ = make(tile=336, layers=3)
    names = {"model": model, "pixels": torch.randn(5, 3, 336, 336)}
    exec(compile(snippet("from hired_kernels import HiredTower"), "docs/models.md", "exec"), names)
    kept, K = names["kept"], names["K"]
    assert names["features"].shape == (K, 32)
    assert len(kept.indices) == K


def test_the_example_of_apply_hired_names_its_arguments():
    import inspect

    import hired_kernels as hired

    parameters = list(inspect.signature(hired.apply_hired).parameters)
    text = snippet("import hired_kernels as hired")
    for name in re.findall(r"(\w+)=", text.partition("apply_hired(")[2].partition(")")[0]):
        assert name in parameters


@pytest.mark.parametrize("options", [["--newlines"], ["--stock"]], ids=str)
def test_the_example_script_with_a_local_checkpoint(options, tmp_path):
    model, processor = make()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    picture((90, 170)).save(tmp_path / "picture.png")
    script = [str(ROOT / "examples" / "llava_next.py"), str(tmp_path / "model")]
    command = [sys.executable, *script, str(tmp_path / "picture.png"), "--tokens", "3", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    visual = int(re.match(r"([\d,]+) visual tokens of", done.stdout)[1].replace(",", ""))
    assert (visual > 60) == ("--stock" in options)
