# SPDX-License-Identifier: Apache-2.0
"""What else deployments use: adapters of the language model, pictures given as embeddings, pipeline
parallelism. Data-parallel replicas are in `test_servers`."""

from __future__ import annotations

import copy
import json

import pytest
import safetensors.torch
import torch
from llava_models import SIZES
from test_tokens import assert_agree
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


def test_pipeline_parallel(made):
    """vLLM's CPU build has it where the model is compiled, eagerly or not, and nowhere else."""
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
