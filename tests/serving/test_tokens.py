# SPDX-License-Identifier: Apache-2.0
"""vLLM with the plugin says what transformers says with `apply_hired`, token by token."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from llava_models import SIZES
from tiny import NEW_TOKENS, Request, call, generate, in_vllm, started

import hired_kernels as hired

# Grids of all shapes, one that is hardly padded, a strip, and a picture of one pixel.
ALL_SIZES = [*SIZES, (300, 300), (84, 500), (1, 1), (3, 400)]
BUDGETS = [0.1, 0.5, 1.0, 7, 10**6, 2**31 - 1]


def assert_agree(requests, got, expected):
    wrong = [
        f"{request}: expected {want}, got {answer}"
        for request, answer, want in zip(requests, got, expected, strict=True)
        if not want.agrees(answer)
    ]
    assert not wrong, "\n".join(wrong)
    # Otherwise ties would leave nothing to compare.
    assert sum(want.sure for want in expected) > 0.9 * NEW_TOKENS * len(expected)


@pytest.mark.parametrize("name", ["llava_next", "llava_next_layers", "llava"])
def test_budgets_of_requests(name, request):
    model = request.getfixturevalue(name)
    requests = [Request((size,), budget) for size in ALL_SIZES for budget in (None, *BUDGETS)]
    several = tuple(SIZES[:3])
    requests += [Request(several, budget, seed=5) for budget in (None, "server", 0.3, 9)]
    got = in_vllm(model.engine(), requests)
    budgets = [None if each.budget == "server" else each.budget for each in requests]
    expected = [model.ask(each, budget=b) for each, b in zip(requests, budgets, strict=True)]
    assert_agree(requests, got, expected)
    # That budgets matter: fewer tokens, and another answer.
    whole, pruned = (requests.index(Request(((168, 168),), budget)) for budget in (None, 0.1))
    assert got[pruned].prompt < got[whole].prompt
    assert got[pruned].tokens != got[whole].tokens


@pytest.mark.parametrize("name", ["llava_next", "llava"])
def test_options_of_the_server(name, request):
    model = request.getfixturevalue(name)
    rules = {"budget": 0.3, "alpha": 0.25}
    requests = [Request((size,)) for size in ALL_SIZES]
    requests += [Request((size,), 0.6) for size in SIZES] + [Request((SIZES[0],), None)]
    got = in_vllm(model.engine(**rules), requests)
    expected = []
    for each in requests:
        budget = rules["budget"] if each.budget == "server" else each.budget
        expected.append(model.ask(each, **{**rules, "budget": budget}))
    assert_agree(requests, got, expected)


def test_published_policy_of_llava(llava):
    rules = {"budget": 0.4, "policy": "published"}
    requests = [Request((size,)) for size in ALL_SIZES]
    got = in_vllm(llava.engine(**rules), requests)
    assert_agree(requests, got, [llava.ask(each, **rules) for each in requests])


def test_published_policy_of_llava_next(llava_next):
    """What transformers hides, rows that no token was found for, is `image_newline` here."""
    rules = {"alpha": 0.5, "policy": "published"}
    requests = [Request((size,), budget) for size in SIZES for budget in (0.2, 0.6, 50)]
    got = in_vllm(llava_next.engine(**rules), requests)
    expected = [published_and_filled(llava_next, each, rules) for each in requests]
    assert_agree(requests, got, [answer for answer, _ in expected])
    filled = [rows for _, rows in expected]
    assert any(filled), "no case leaves a row over"


def test_published_policy_of_llava_next_that_fills_its_budget(llava_next):
    rules = {"alpha": 1.0, "policy": "published"}
    requests = [Request((size,), budget) for size in SIZES for budget in (5, 20)]
    got = in_vllm(llava_next.engine(**rules), requests)
    expected = [llava_next.ask(each, **rules, budget=each.budget) for each in requests]
    assert_agree(requests, got, expected)


@torch.inference_mode()
def published_and_filled(served, request, rules):
    """The stock model's answer to the selected features, with a newline for each row left over."""
    model, processor = served.model, served.processor
    hired.apply_hired(model, processor, **rules, budget=request.budget)
    inputs = processor(
        images=request.pictures, text=request.text, return_tensors="pt", add_special_tokens=False
    )
    output = model.model.get_image_features(inputs["pixel_values"], inputs["image_sizes"])
    token = model.config.image_token_index
    hired.remove_hired(model, processor)
    # There they come first.
    empty = int(output.surplus.sum())
    newline = model.model.image_newline.expand(empty, -1)
    features = torch.cat([output.pooler_output[0][empty:], newline])
    ids = inputs["input_ids"]
    embeds = model.get_input_embeddings()(ids)
    embeds[ids == token] = features
    mask = torch.ones_like(ids)
    return served.generate(ids.shape[1], inputs_embeds=embeds, attention_mask=mask), empty


@pytest.mark.parametrize(("kind", "step"), [("llava-next-llama", 64), ("internvl-own", 16)])
def test_caches_and_chunks(made, kind, step):
    """A prefix that was seen, a picture that was encoded, prompts that are cut: the same tokens."""
    model = made(kind)
    requests = [Request((size,), budget) for size in SIZES for budget in (0.2, 0.5, None)]
    engine = {**model.engine(), "enable_chunked_prefill": True, "block_size": 32}
    engine |= {"max_num_batched_tokens": step, "max_num_seqs": 8}
    first, second, hits = call(_asked_twice, engine, requests)
    expected = [model.ask(each, budget=each.budget) for each in requests]
    assert_agree(requests, first, expected)
    assert_agree(requests, second, expected)
    assert hits > 0


def _asked_twice(engine, requests):
    with started({**engine, "disable_log_stats": False}) as llm:
        first, second = generate(llm, requests), generate(llm, requests)
        metrics = {metric.name: metric for metric in llm.get_metrics()}
    return first, second, metrics["vllm:prefix_cache_hits"].value


def test_without_a_budget_it_is_the_stock_class(llava_next, tmp_path):
    """Logits and all: the same bits."""
    save_for_stock_vllm(llava_next, tmp_path)
    requests = [Request((size,)) for size in ALL_SIZES] + [Request(tuple(SIZES[:3]), seed=3)]
    ours = llava_next.engine()
    stock = {name: value for name, value in ours.items() if name != "hf_overrides"}
    stock["model"] = str(tmp_path)
    expected, got = call(logprobs_of_both, stock, ours, requests)
    assert got == expected


def save_for_stock_vllm(served, folder):
    """vLLM 0.32 knows the tower's weights by the names that transformers 4 gave them."""
    served.model.save_pretrained(folder)
    served.processor.save_pretrained(folder)
    file = folder / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    named = {
        name.replace("vision_tower.", "vision_tower.vision_model.", 1)
        if "vision_tower." in name and "vision_model." not in name
        else name: weight
        for name, weight in weights.items()
    }
    assert named.keys() != weights.keys()
    safetensors.torch.save_file(named, file, metadata={"format": "pt"})


def logprobs_of_both(stock, ours, requests):
    return _logprobs(stock, requests), _logprobs(ours, requests)


def _logprobs(engine, requests):
    from vllm import SamplingParams

    greedy = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=4)
    prompts = [
        {"prompt": each.text, "multi_modal_data": {"image": each.pictures}} for each in requests
    ]
    with started(engine) as llm:
        # One by one: which requests share a step would decide the last bit.
        outputs = [llm.generate(prompt, greedy, use_tqdm=False)[0] for prompt in prompts]
    steps = [step for each in outputs for step in each.outputs[0].logprobs]
    return [{token: entry.logprob for token, entry in step.items()} for step in steps]
