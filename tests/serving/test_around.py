# SPDX-License-Identifier: Apache-2.0
"""What else deployments use: adapters of the language model, pictures given as embeddings or by
their UUID alone, videos, pipeline parallelism. Data-parallel replicas are in `test_servers`."""

from __future__ import annotations

import copy
import json

import pytest
import safetensors.torch
import torch
from llava_models import SIZES
from test_tokens import assert_agree, save_for_stock_vllm
from tiny import NEW_TOKENS, Answer, Request, call, generate, started

REQUESTS = [Request((size,), budget) for size in SIZES[:3] for budget in (None, 0.3)]
# Where a checkpoint has its language model's layers.
LAYERS = {
    "llava-next-llama": "model.language_model.layers",
    "internvl-own": "language_model.model.layers",
}


@pytest.mark.parametrize("kind", LAYERS)
def test_adapters_and_embeddings_beside_budgets(made, kind, tmp_path):
    model = made(kind)
    adapted = copy.deepcopy(model)
    save_adapter(adapted.model, LAYERS[kind], tmp_path)
    features = torch.randn(1, 7, 64, generator=torch.Generator().manual_seed(2))
    engine = {**model.engine(), "enable_lora": True, "enable_mm_embeds": True}
    plain, with_adapter, of_features = call(_ask, engine, str(tmp_path), features)
    assert_agree(REQUESTS, plain, [model.ask(each, budget=each.budget) for each in REQUESTS])
    expected = [adapted.ask(each, budget=each.budget) for each in REQUESTS]
    assert_agree(REQUESTS, with_adapter, expected)
    assert any(a.tokens != b.tokens for a, b in zip(plain, with_adapter, strict=True))
    # They are no picture: neither pruned nor refused.
    assert of_features == answer_to_features(model, features)


def _ask(engine, adapter, features):
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    greedy = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    prompt = {"prompt": Request(((1, 1),)).text, "multi_modal_data": {"image": features}}
    prompt["mm_processor_kwargs"] = {"hired_budget": 0.3}
    with started(engine) as llm:
        plain = generate(llm, REQUESTS)
        with_adapter = generate(llm, REQUESTS, lora_request=LoRARequest("tiny", 1, adapter))
        output = llm.generate(prompt, greedy, use_tqdm=False)[0]
    return plain, with_adapter, list(output.outputs[0].token_ids)


def save_adapter(model, layers, folder):
    """Save an adapter of rank 4 as PEFT does, and add it to the model's weights."""
    draw, weights = torch.Generator().manual_seed(1), {}
    for number, layer in enumerate(model.model.language_model.layers):
        for part in ("q_proj", "v_proj"):
            linear = getattr(layer.self_attn, part)
            down = 0.3 * torch.randn(4, linear.in_features, generator=draw)
            up = 0.3 * torch.randn(linear.out_features, 4, generator=draw)
            name = f"base_model.model.{layers}.{number}.self_attn.{part}"
            weights |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
            with torch.no_grad():
                linear.weight += 2 * up @ down
    safetensors.torch.save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8,
              "target_modules": ["q_proj", "v_proj"], "bias": "none"}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))


@torch.inference_mode()
def answer_to_features(model, features):
    """Of the twin, to a prompt with these features in a picture's place."""
    inputs = model.inputs(Request(((1, 1),)))
    ids, token = inputs["input_ids"][0].tolist(), model.model.config.image_token_id
    first, last = ids.index(token), len(ids) - ids[::-1].index(token)
    ids = torch.tensor([ids[:first] + [token] * features.shape[1] + ids[last:]])
    embeds = model.model.get_input_embeddings()(ids)
    embeds[ids == token] = features[0]
    mask = torch.ones_like(ids)
    return model.generate(ids.shape[1], inputs_embeds=embeds, attention_mask=mask).tokens


@pytest.mark.parametrize("kind", ["llava-onevision", "internvl"])
def test_videos_stay_as_they_are_beside_pictures(made, kind, tmp_path):
    """And a picture that came before may come again by its UUID alone."""
    model = made(kind)
    ours = {**model.engine(), "limit_mm_per_prompt": {"image": 1, "video": 1}}
    stock = {name: value for name, value in ours.items() if name != "hf_overrides"}
    if kind == "llava-onevision":
        save_for_stock_vllm(model, tmp_path)
        stock["model"] = str(tmp_path)
    expected, (whole, pruned, again), counted = call(_ask_both_about_films, stock, ours)
    assert [whole] == expected
    kept = model.ask(Request(((168, 168),)), budget=0.3).prompt
    spared = model.ask(Request(((168, 168),)), budget=None).prompt - kept
    assert whole[0] - pruned[0] == spared
    assert again == pruned != whole
    assert counted == spared


def _ask_both_about_films(stock, ours):
    """Of the stock model and of ours, tokens of the prompt and new ones; what ours was spared."""
    from prometheus_client import REGISTRY

    expected = _ask_about_films(stock, [None])
    got = _ask_about_films(ours, [None, 0.3, "again"])
    return expected, got, REGISTRY.get_sample_value("hired_visual_tokens_spared_total")


def _ask_about_films(engine, budgets):
    import numpy as np
    from vllm import SamplingParams

    film = np.random.default_rng(0).integers(0, 255, (4, 90, 90, 3), dtype=np.uint8)
    greedy = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    answers = []
    with started(engine) as llm:
        for budget in budgets:
            picture = Request(((168, 168),)).pictures[0]
            prompt = {"prompt": "<s> <image> <video> what is this"}
            prompt["multi_modal_uuids"] = {"image": ["picture"], "video": ["film"]}
            prompt["multi_modal_data"] = {"image": picture, "video": film}
            if budget == "again":
                prompt["multi_modal_data"] = {"image": [None], "video": [None]}
            if budget is not None:
                prompt["mm_processor_kwargs"] = {"hired_budget": 0.3}
            output = llm.generate(prompt, greedy, use_tqdm=False)[0]
            answers.append((len(output.prompt_token_ids), list(output.outputs[0].token_ids)))
    return answers


def test_pipeline_parallel(made):
    """vLLM's CPU build runs pipeline ranks with compilation on alone; its backend may be eager."""
    model = made("internvl")
    engine = {
        **model.engine(),
        "pipeline_parallel_size": 2,
        "enforce_eager": False,
        "compilation_config": {"mode": 2, "backend": "eager"},
    }
    got: list[Answer] = call(_generate, engine, environment={"VLLM_CPU_OMP_THREADS_BIND": "nobind"})
    assert_agree(REQUESTS, got, [model.ask(each, budget=each.budget) for each in REQUESTS])


def _generate(engine):
    with started(engine) as llm:
        return generate(llm, REQUESTS)
