"""Run the same recipes through mergekit and through svdh, and print how far the results differ.

A small LLaMA family is made in a temporary folder. DARE runs at density 1, where nothing is random.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from svd_hybrid.cli.app import main as svdh

HIDDEN, INNER, LAYERS, WORDS = 64, 96, 4, 128
LIMIT = 1e-6
"""Weights are of size 1: a few roundings of float32 in another order."""
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": WORDS,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
TASKS = ("code", "math", "chat")
GRADED = "[{filter: self_attn, value: [0.2, 0.5, 1.0]}, {filter: mlp, value: 0.7}, {value: 0.4}]"
RECIPES = {
    "linear, plain": "merge_method: linear\nWEIGHTS",
    "linear, base, filters and gradients": "merge_method: linear\nBASEGRADED"
    "parameters: {weight: 0.5}\n",
    "linear, not normalised": "merge_method: linear\nSUMMINGparameters: {normalize: false}\n",
    "task_arithmetic, plain": "merge_method: task_arithmetic\nBASEWEIGHTS",
    "task_arithmetic, gradients, normalised": "merge_method: task_arithmetic\nBASEGRADED"
    "parameters: {lambda: [0.5, 1.5], normalize: true}\n",
    "ties, plain": "merge_method: ties\nBASEWEIGHTSparameters: {density: 0.3}\n",
    "ties, filters and gradients": "merge_method: ties\nBASEGRADED"
    "parameters: {density: [{filter: mlp, value: [0.3, 0.9]}, {value: 0.5}], lambda: 0.8,"
    " normalize: [{filter: norm, value: false}, {value: true}], int8_mask: true}\n",
    "ties, not normalised": "merge_method: ties\nBASEWEIGHTS"
    "parameters: {density: 0.5, normalize: false, lambda: [{filter: lm, value: 2}, {value: 1}]}\n",
    "dare_linear, plain": "merge_method: dare_linear\nBASEWEIGHTSparameters: {density: 1.0}\n",
    "dare_linear, filters and gradients": "merge_method: dare_linear\nBASEGRADED"
    "parameters: {density: 1, normalize: true, lambda: [1, 0.2]}\n",
    "dare_ties, plain": "merge_method: dare_ties\nBASEWEIGHTSparameters: {density: 1.0}\n",
    "dare_ties, filters and gradients": "merge_method: dare_ties\nBASEGRADED"
    "parameters: {density: 1, normalize: true, rescale: false}\n",
}


def shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of the model."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (WORDS, HIDDEN)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        found |= {
            at + "input_layernorm.weight": (HIDDEN,),
            at + "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            at + "self_attn.k_proj.weight": (HIDDEN // 2, HIDDEN),
            at + "self_attn.v_proj.weight": (HIDDEN // 2, HIDDEN),
            at + "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            at + "post_attention_layernorm.weight": (HIDDEN,),
            at + "mlp.gate_proj.weight": (INNER, HIDDEN),
            at + "mlp.up_proj.weight": (INNER, HIDDEN),
            at + "mlp.down_proj.weight": (HIDDEN, INNER),
        }
    return found | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (WORDS, HIDDEN)}


def make_family(folder: Path) -> None:
    """base/ and one folder per task."""
    random = torch.Generator().manual_seed(0)

    def write(name: str, state: dict[str, Tensor]) -> None:
        (folder / name).mkdir()
        save_file(state, folder / name / "model.safetensors", {"format": "pt"})
        (folder / name / "config.json").write_text(json.dumps(CONFIG), "utf-8")

    base = {name: torch.randn(shape, generator=random) for name, shape in shapes().items()}
    write("base", base)
    for task in TASKS:
        write(
            task,
            {n: x + 0.05 * torch.randn(x.shape, generator=random) for n, x in base.items()},
        )


def recipe_text(short: str) -> str:
    """The recipe with its lists of models."""

    def models(weights: tuple[object, ...], more: str = "") -> str:
        entries = (
            f"  - {{model: {task}, parameters: {{weight: {weight}}}}}\n"
            for task, weight in zip(TASKS, weights, strict=True)
        )
        return "models:\n" + more + "".join(entries)

    lists = {
        "BASEWEIGHTS": "base_model: base\n" + models((0.5, 1.0, -0.3), "  - model: base\n"),
        "BASEGRADED": "base_model: base\n" + models((GRADED, "[0.1, 1, 0.3]", 0.6)),
        "SUMMING": models((0.5, 0.3, 0.2)),
        "WEIGHTS": models((0.5, 1.0, 0.3)),
    }
    for word, text in lists.items():
        short = short.replace(word, text)
    return short + "dtype: float32\n"


def compare(python: Path, folder: Path, title: str, short: str) -> float:
    """The largest absolute difference between the two results."""
    recipe = folder / "recipe.yml"
    recipe.write_text(recipe_text(short), "utf-8")
    theirs, ours = folder / f"{title}-mergekit", folder / f"{title}.safetensors"
    options = ("--no-copy-tokenizer", "--no-write-model-card")
    command: list[str | Path] = [
        python,
        "-m",
        "mergekit.scripts.run_yaml",
        recipe,
        theirs,
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"mergekit failed on {title}:\n{done.stderr[-2000:]}")
    artifact = folder / f"{title}-artifact"
    compress = ["compress", "--config", recipe, "--artifact-dir", artifact, "-q"]
    reload = ["reload", "--artifact-dir", artifact, "--base-model-path", recipe_base(short)]
    for words in (compress, [*reload, "--output-path", ours, "-q"]):
        with contextlib.redirect_stdout(io.StringIO()):
            code = svdh([str(word) for word in words])
        if code:
            raise SystemExit(f"svdh failed on {title}")
    want, got = load_file(theirs / "model.safetensors"), load_file(ours)
    if want.keys() != got.keys():
        raise SystemExit(f"{title}: different tensors")
    return max(float((want[n].double() - got[n].double()).abs().max()) for n in want)


def recipe_base(short: str) -> str:
    """The base of the artifact: that of the recipe, or its first model."""
    return "base" if "BASE" in short else TASKS[0]


def main() -> int:
    """Compare; returns 1 when a difference is more than rounding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("python", type=Path, help="a Python that has mergekit")
    python = parser.parse_args().python.absolute()
    failed = False
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)  # paths of a recipe are relative to the current folder
        make_family(Path())
        print(f"{'recipe':45} largest difference")
        for title, short in RECIPES.items():
            difference = compare(python, Path(name), title, short)
            failed |= difference > LIMIT
            print(f"{title:45} {difference:.2e}" + ("  TOO FAR" if difference > LIMIT else ""))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
