# SPDX-License-Identifier: Apache-2.0
"""A task for lmms-eval about a few pictures, in local files; models to be asked, saved; runs.

The model that answers is the one that comes along, trained on such pictures: its answers are words
that are right or wrong. The others have random weights: what they say is only compared.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything of theirs is imported
import datasets
import llava_models
import torch
import torchvision_processors
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.loggers import EvaluationTracker
from lmms_eval.tasks import TaskManager
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import hired_kernels as hired
from benchmarks.evidence import evaluate
from benchmarks.evidence import model as small
from benchmarks.evidence.signs import SUBJECT as SIGNS

# `<s> <image> question`; lmms-eval's simple model hands over the last two as one text.
TEMPLATE = (
    "<s>{% for message in messages %}{% if message['content'] is string %}"
    " {{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{{ ' <image>' if part['type'] == 'image' else ' ' + part['text'] }}"
    "{% endfor %}{% endif %}{% endfor %}"
)
FUNCTIONS = """
def pictures(doc):
    return [doc["image"].convert("RGB")]


def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def results(doc, answers):
    return {"exact_match": float(answers[0].strip() == doc["answer"])}
"""
TASK = """
task: {name}
dataset_path: parquet
dataset_kwargs:
  data_files: {{test: {folder}/test.parquet}}
  cache_dir: {folder}/cache
test_split: test
output_type: generate_until
doc_to_visual: !function functions.pictures
doc_to_text: !function functions.text
doc_to_target: answer
generation_kwargs: {{max_new_tokens: {tokens}, temperature: 0, do_sample: false}}
process_results: !function functions.results
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
metadata:
  - version: 0.0
"""
TASKS = {"signs": 1, "babble": 3}  # how many words are generated
# By name: the model's folder, lmms-eval's name of it, its options, and HiRED's.
RUNS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any] | None]] = {
    "stock": ("signs", "llava_hf", {"device_map": "cpu", "dtype": "float32"}, None),
    "simple": ("signs", "hired_llava_hf", {"dtype": "float32"},
               {"budget": 16, "policy": "pooled", "positions": "original"}),
    "llava": ("llava", "hired_llava_hf", {"dtype": "float32"}, {"budget": 0.3}),
    "onevision": ("onevision", "hired_llava_hf", {"dtype": "float32"},
                  {"budget": 0.3, "judge": "patches"}),
    "internvl": ("internvl", "hired_internvl_hf", {}, {"budget": 0.3, "video_budget": 4}),
}  # fmt: skip
PICTURES, SEED = 8, 77


@dataclass(frozen=True)
class Run:
    """The file of results that lmms-eval wrote, what it holds, and the answers."""

    file: Path
    results: dict[str, Any]
    answers: list[str]


@dataclass(frozen=True)
class Asked:
    """A folder of tasks, models and results, and what is asked."""

    folder: Path
    rows: list[dict[str, Any]]

    @classmethod
    def make(cls, folder: Path) -> Asked:
        rows = [
            {"image": Image.fromarray(picture), "question": each.text, "answer": each.answer}
            for group in evaluate.groups(SIGNS, SEED, PICTURES)
            for picture, asked in zip(group.pictures, group.asked, strict=True)
            for each in asked
        ]
        text = datasets.Value("string")
        columns = {"image": datasets.Image(), "question": text, "answer": text}
        features = datasets.Features(columns)
        made = datasets.Dataset.from_list(rows, features=features)
        made.to_parquet(folder / "test.parquet")
        (folder / "tasks").mkdir()
        (folder / "tasks" / "functions.py").write_text(FUNCTIONS)
        for name, tokens in TASKS.items():
            task = TASK.format(name=name, folder=folder, tokens=tokens)
            (folder / "tasks" / f"{name}.yaml").write_text(task)
        models = folder / "models"
        shutil.copytree(small.checkpoint("signs", 1), models / "signs")
        processor = small.build_processor(SIGNS)
        processor.chat_template = TEMPLATE
        processor.save_pretrained(models / "signs")
        model, processor = llava_models.make("llava", seed=1)  # seed 0 says nothing
        processor.chat_template = torchvision_processors.TEMPLATE.replace("IMAGE", "<image>")
        for each in (model, processor):
            each.save_pretrained(models / "llava")
        for name in ("onevision", "internvl"):
            make = getattr(torchvision_processors, name)
            model = make(models / name)[0]
            model.save_pretrained(models / name)
        return cls(folder, rows)

    def command(self, out: Path, *arguments: str) -> tuple[str, Run]:
        """`python -m lmms_eval`, without a network: what it says, and what it writes."""
        command = [sys.executable, "-m", "lmms_eval", *arguments, "--device", "cpu"]
        command += ["--include_path", str(self.folder / "tasks"), "--tasks", "signs"]
        command += ["--log_samples", "--output_path", str(out)]
        env = {**os.environ, "HF_HOME": str(self.folder / "home"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=self.folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, check=False,
        )  # fmt: skip
        assert list(out.rglob("*_samples_signs.jsonl")), done.stdout
        (samples,) = out.rglob("*_samples_signs.jsonl")
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        return done.stdout, _run(out, lines)

    def evaluated(self, name: str) -> Run:
        """A run of `RUNS`, in this process: the command reads all its tasks first, for seconds."""
        folder, model, stock, options = RUNS[name]
        task, out = "signs" if folder == "signs" else "babble", self.folder / "out" / name
        given = {"pretrained": self.folder / "models" / folder, **stock, **(options or {})}
        arguments = ",".join(f"{key}={value}" for key, value in given.items())
        tracker = EvaluationTracker(output_path=str(out))
        found = simple_evaluate(
            model,
            arguments,
            tasks=[task],
            task_manager=TaskManager(
                include_path=str(self.folder / "tasks"), include_defaults=False
            ),
            device="cpu",
            batch_size=1,
            force_simple=name == "simple",
            evaluation_tracker=tracker,
            cli_args=argparse.Namespace(process_with_media=False, output_path=str(out)),
        )
        samples = found.pop("samples")
        tracker.save_results_aggregated(found, samples, "20261127_120000")
        return _run(out, samples[task])

    def loaded(self, name: str, dtype: torch.dtype) -> tuple[Any, Any]:
        """Model and processor as a user loads them."""
        folder = self.folder / "models" / name
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval()
        return model, AutoProcessor.from_pretrained(folder)

    @torch.inference_mode()
    def directly(
        self, name: str, dtype: torch.dtype, options: dict[str, Any] | None, **images: int
    ) -> list[str]:
        """The answers without lmms-eval; `options` of None: without HiRED, too."""
        model, processor = self.loaded(name, dtype)
        if options is not None:
            hired.apply_hired(model, processor, **options)
        answers = []
        for row in self.rows:
            parts = [{"type": "image"}, {"type": "text", "text": row["question"]}]
            chat = [{"role": "user", "content": parts}]
            text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
            inputs = processor(images=[row["image"]], text=text, return_tensors="pt", **images)
            tokens = TASKS["signs" if name == "signs" else "babble"]
            output = model.generate(
                **inputs.to("cpu", dtype), max_new_tokens=tokens, do_sample=False
            )
            new = output[0, inputs["input_ids"].shape[1] :]
            answers.append(processor.tokenizer.decode(new, skip_special_tokens=True))
        return answers


def _run(out: Path, samples: list[dict[str, Any]]) -> Run:
    (file,) = out.rglob("*_results.json")
    answers = {each["doc_id"]: each["filtered_resps"] for each in samples}
    texts = [answers[number] for number in range(len(answers))]
    texts = [text[0] if isinstance(text, list) else text for text in texts]
    return Run(file, json.loads(file.read_text()), texts)
