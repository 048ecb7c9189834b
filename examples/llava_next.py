# SPDX-License-Identifier: Apache-2.0
"""Ask a LLaVA model about a picture, with a fifth of its visual tokens.

    python examples/llava_next.py ./llava-v1.6-mistral-7b-hf photo.jpg          # local checkpoint
    python examples/llava_next.py llava-hf/llava-v1.6-mistral-7b-hf photo.jpg   # hub name

Any model that `hired_kernels.apply_hired` serves will do: LLaVA-NeXT, LLaVA-1.5, LLaVA-OneVision,
InternVL, Granite Vision and others. `--stock` leaves HiRED off, to compare.
"""

from __future__ import annotations

import argparse
import time

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import hired_kernels as hired


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("model", help="folder or hub name")
    parser.add_argument("image", help="a picture")
    parser.add_argument("--question", default="What is shown in this image?")
    parser.add_argument("--budget", type=float, default=0.2, help="share of tokens to keep (0.2)")
    parser.add_argument("--alpha", type=float, default=0.5, help="the full image's share (0.5)")
    parser.add_argument("--policy", choices=("exact", "pooled", "published"), default="exact")
    parser.add_argument("--positions", choices=("kept", "original"), default="kept")
    parser.add_argument("--newlines", action="store_true", help="keep row separators")
    parser.add_argument("--stock", action="store_true", help="leave HiRED off")
    parser.add_argument("--tokens", type=int, default=100, help="most tokens to generate (100)")
    options = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if device == "cuda" else torch.float32
    model = AutoModelForImageTextToText.from_pretrained(options.model, dtype=dtype).to(device)
    processor = AutoProcessor.from_pretrained(options.model)
    if not options.stock:
        model, processor = hired.apply_hired(
            model,
            processor,
            budget=options.budget,
            alpha=options.alpha,
            policy=options.policy,
            newlines=options.newlines,
            positions=options.positions,
        )

    with Image.open(options.image) as file:
        image = file.convert("RGB")
    inputs = processor(images=image, text=_prompt(processor, options.question), return_tensors="pt")
    visual = int((inputs["input_ids"] == model.config.image_token_id).sum())
    length = inputs["input_ids"].shape[1]
    start = time.perf_counter()
    generated = model.generate(**inputs.to(device, dtype), max_new_tokens=options.tokens)
    seconds = time.perf_counter() - start
    print(f"{visual:,} visual tokens of {length:,}, {seconds:.2f} s on {device}")
    print(processor.decode(generated[0, length:], skip_special_tokens=True).strip())


def _prompt(processor: object, question: str) -> str:
    """The question with a picture, as the model was taught to be asked."""
    if getattr(processor, "chat_template", None) is None:
        return f"USER: {processor.image_token}\n{question} ASSISTANT:"
    content = [{"type": "image"}, {"type": "text", "text": question}]
    turns = [{"role": "user", "content": content}]
    return processor.apply_chat_template(turns, add_generation_prompt=True)


if __name__ == "__main__":
    main()
