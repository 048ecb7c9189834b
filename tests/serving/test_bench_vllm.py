# SPDX-License-Identifier: Apache-2.0
"""The pure parts of benchmarks/vllm/: requests, whose turn it is, its statistics, its tables."""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import transformers

from benchmarks.shared.families import FAMILIES
from benchmarks.shared.llava_next import IMAGE_TOKEN
from benchmarks.vllm import engine, served, tables
from benchmarks.vllm.bench import Bench
from hired_kernels.vllm import ARCHITECTURES

BUDGETS = [1.0, 0.4, 0.2, 0.1]
# Tokens of a prompt, of the stock model and by budget.
PROMPTS = {
    "llava-next": (2968, 2920, 1192, 616, 328),
    "llava-onevision": (5197, 5143, 2081, 1060, 550),
    "internvl": (1834, 1834, 758, 400, 221),
}


class Answer(NamedTuple):
    sent: float
    prepared: float
    times: list[float]


def answered(sent: float, last: float) -> Answer:
    """A request with two tokens, the first half a second before the last."""
    return Answer(sent, sent + 0.01, [last - 0.5, last])


@pytest.mark.parametrize(
    ("share", "expected"), [(0, 1), (0.5, 2.5), (0.9, 3.7), (1, 4)], ids=lambda value: str(value)
)
def test_percentile(share: float, expected: float) -> None:
    assert tables.percentile([4, 1, 3, 2], share) == pytest.approx(expected)


def test_figures_leave_out_what_was_answered_before_and_after_the_clock() -> None:
    # Two clients: their first requests warm up, and one is still under way when the clock stops.
    answers = [answered(0, 2), answered(0, 3), answered(2, 5), answered(3, 7), answered(5, 8)]
    marks = {"steps": 2, "pictures": 5, "most_pictures": 3, "seconds": 0.5, "selecting": 0.01}
    result = {"answers": answers, "window": (3, 7), "marks": marks, "peak_blocks": 9}
    found = tables.figures(result, clients=2, count=2)
    assert found["requests_per_second"] == 0.5
    assert found["output_tokens_per_second"] == 1  # of the two counted requests, by 3 < t <= 7
    assert found["first_token_ms"] == [2500, 3500]
    assert found["latency_ms"] == [3000, 4000]
    assert found["front_end_ms"] == pytest.approx([10, 10])
    assert found["encoder_ms"] == 100
    assert found["pictures_of_a_step"] == 2.5
    assert found["selection_share"] == pytest.approx(0.02)


def one_round(rate: float, first: list[float]) -> dict:
    return {
        "requests_per_second": rate, "output_tokens_per_second": 32 * rate, "encoder_ms": 50.0,
        "first_token_ms": first, "latency_ms": [300.0], "front_end_ms": [10.0],
        "peak_blocks": int(rate), "pictures_of_a_step": 1.0, "most_pictures_of_a_step": 2,
        "selection_share": 0.01,
    }  # fmt: skip


def test_rounds_are_compared_with_those_of_the_stock_model_in_turn() -> None:
    stock = [one_round(rate, [1.0]) for rate in (10, 5, 8)]
    slowed = [one_round(rate, [rate]) for rate in (20, 5, 8)]  # whatever slowed both slowed both
    joined = tables.join(slowed, stock)
    assert joined["of_stock_rounds"] == [2, 1, 1]
    assert joined["of_stock"] == 1
    assert joined["requests_per_second"] == 8
    assert joined["peak_blocks"] == 20
    assert joined["first_token_ms"] == 8


def test_tables_have_every_case() -> None:
    stock = [one_round(5.0, [100.0, 200.0])]
    cases = []
    for clients in (1, 8, 32):
        for budget in (None, *BUDGETS):
            rounds = stock if budget is None else [one_round(10.0, [50.0])]
            case = {"clients": clients, "budget": budget, "prompt_tokens": 2968}
            cases.append({**case, "blocks_of_a_request": 24, **tables.join(rounds, stock)})
    assert len(tables.long_table(cases).splitlines()) == 2 + len(cases)
    header, *rows = tables.short_rows(cases)
    assert header[2:] == ("1 at a time", "8 at a time", "32 at a time")
    assert rows[0] == ("stock", "2,968", "5.00", "5.00", "5.00")
    assert rows[4] == ("0.1", "2,968", *["10.00 (2.00x)"] * 3)
    assert tables.closing(cases).splitlines() == [
        "budget 1.0: 2.00x of stock's requests/s, the median of all rounds; "
        "2.00x to 2.00x by requests at a time",
        "front end: 10 ms a picture, one at a time: 100 requests/s at most",
    ]
    pasted = tables.markdown(cases)
    assert pasted.count("\n| stock |") == 3  # once in the short table, at 1 and at 32 in the other
    assert {line.count("|") for line in pasted.split("\n\n")[0].splitlines()} == {6}


@pytest.mark.parametrize("apart", [False, True], ids=["side by side", "one at a time"])
def test_a_round_has_every_case_once_and_changes_engines_seldom(apart: bool) -> None:
    options = argparse.Namespace(apart=apart, budgets=BUDGETS, concurrent=[1, 8])
    bench = Bench(Path(), FAMILIES["llava-next"], None, options)
    places = Counter()
    for turn in range(5):
        order = bench._order(turn)
        assert Counter(order) == Counter((C, b) for C in (1, 8) for b in (None, *BUDGETS))
        places[order.index((1, None))] += 1
        if apart:
            engines = [budget is None for _, budget in order]
            assert sum(a != b for a, b in itertools.pairwise(engines)) == 1
    if not apart:
        assert places == Counter(range(5))


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_have_the_tokens_of_their_family_and_fit(name: str) -> None:
    family = FAMILIES[name]
    config = family.configure("tiny", "tiny")
    found = tuple(served.prompt_tokens(family, config, budget) for budget in (None, *BUDGETS))
    assert found == PROMPTS[name]
    for device in engine.SETTINGS:
        chosen = engine.settings(name, device)
        assert chosen["max_model_len"] >= found[0] + 64
        assert chosen["max_num_batched_tokens"] >= found[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_folder_has_the_familys_processor(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torchvision")  # by which saved processors are loaded
    family = FAMILIES[name]
    config = served.save(family, "tiny", tmp_path)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    picture = served.picture(family.picture, seed=0)
    assert picture.size == family.picture[::-1]
    inputs = processor(text=served.prompt(), images=picture, return_tensors="pt")
    ids = inputs["input_ids"]
    assert ids.shape[1] == served.prompt_tokens(family, config, None)
    assert (ids == IMAGE_TOKEN).sum() == family.stock_tokens(config)
    assert 0 < ids.min() <= ids.max() < config.text_config.vocab_size
    saved = transformers.AutoConfig.from_pretrained(tmp_path)
    assert saved.architectures == [family.architecture]


def test_pictures_of_a_step_are_counted_whatever_their_tiles() -> None:
    pytest.importorskip("vllm")
    from benchmarks.vllm import worker

    marks: list = []
    step = worker._marked(lambda **given: None, marks)
    step(pixel_values=torch.zeros(2, 5, 3, 14, 14), image_sizes=torch.zeros(2, 2))
    step(pixel_values=torch.zeros(14, 3, 14, 14), image_num_patches=torch.tensor([7, 7]))
    step()
    assert [pictures for pictures, _, _ in marks] == [2, 2, 0]


def test_random_weights_switch_no_layer_off() -> None:
    pytest.importorskip("vllm")
    from benchmarks.vllm import worker

    module = torch.nn.Module()
    module.norm = torch.nn.LayerNorm(64)
    for name, shape in (("lambda_1", (64,)), ("table", (1, 1000, 64)), ("conv", (8, 3, 4, 4))):
        module.register_parameter(name, torch.nn.Parameter(torch.zeros(shape)))
    worker.RandomLoader.load_weights(None, module, None)
    assert module.norm.weight.unique().tolist() == module.lambda_1.unique().tolist() == [1]
    assert module.norm.bias.unique().tolist() == [0]
    assert module.table.std().item() == pytest.approx(64**-0.5, rel=0.1)
    assert module.conv.std().item() == pytest.approx(48**-0.5, rel=0.1)


def test_only_other_families_have_other_settings() -> None:
    for device, chosen in engine.SETTINGS.items():
        assert engine.settings("llava-next", device) == chosen
        assert engine.settings("internvl", device)["max_model_len"] == chosen["max_model_len"]
    assert engine.SETTINGS["cpu"]["limit_mm_per_prompt"] == {"image": 1}


def test_the_plugin_has_an_architecture_for_each_family() -> None:
    for family in FAMILIES.values():
        assert f"Hired{family.architecture}" in ARCHITECTURES.values()
