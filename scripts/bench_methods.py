"""CPU seconds of merge methods against peers, as ratios of one run on the same inputs.

    python scripts/bench_methods.py spectral --repeats 3
    python scripts/bench_methods.py ties --mergekit /path/to/python-with-mergekit

`spectral`: Iso-C, Iso-CTS and TSV-M of this package against the same formulas written with
`torch.linalg.svd` in float32, one thread, on the four matrices of a block of OpenCLIP's ViT-B/32
(all twelve blocks have the same shapes) with 8 tasks. Singular values decay as those of trained
fine-tunes do; how far results are apart is measured against the plain formulas in float64.

`ties`: the same mergekit recipe on the same folders, by mergekit and by `svdh compress` followed by
`svdh reload`, each in processes of their own on one thread; both end with a merged checkpoint. The
tensors have names mergekit knows (Starcoder2, whose blocks have ViT-B/32's shapes).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from make_vit_b32_family import (
    LAYERS,
    MLP,
    WIDTH,
    base_tensor,
    task_difference,
    vit_b32_shapes,
)
from safetensors import safe_open
from torch import Tensor

from svd_hybrid.delta.evaluate import Mix, TensorParts, evaluate
from svd_hybrid.io.safetensors_writer import SafetensorsWriter
from svd_hybrid.io.tensors import TensorInfo
from svd_hybrid.methods import METHODS
from svd_hybrid.methods.base import TensorContext

TASKS = 8
VISIBLE = 1e-7
"""Differences of weights beyond this are not float32 rounding of a delta of size 1e-3."""
BLOCK = ((3 * WIDTH, WIDTH), (WIDTH, WIDTH), (MLP, WIDTH), (WIDTH, MLP))
RENAMED = {
    r"vision_model\.encoder\.layers\.(\d+)\.": r"model.layers.\1.",
    r"self_attn\.out_proj": "self_attn.o_proj",
    r"layer_norm1": "input_layernorm",
    r"layer_norm2": "post_attention_layernorm",
    r"mlp\.fc1": "mlp.c_fc",
    r"mlp\.fc2": "mlp.c_proj",
    r"vision_model\.post_layernorm": "model.norm",
}
STARCODER2 = {
    "architectures": ["Starcoder2ForCausalLM"],
    "model_type": "starcoder2",
    "hidden_size": WIDTH,
    "intermediate_size": MLP,
    "num_attention_heads": 12,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 12,
    "tie_word_embeddings": True,
    "vocab_size": MLP,
}

# --- spectral methods against plain SVDs ----------------------------------------------------------


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u, s, vh


def polar(matrix: Tensor) -> Tensor:
    """U V^T."""
    u, _, vh = svd(matrix)
    return u @ vh


def plain_iso_c(deltas: Tensor) -> Tensor:
    """Iso-C with one SVD (methods.md §11)."""
    u, s, vh = svd(deltas.sum(0))
    return s.mean() * (u @ vh)


def plain_iso_cts(deltas: Tensor) -> Tensor:
    """Iso-CTS with N + 3 SVDs (methods.md §12), common space 0.8."""
    count, *shape = deltas.shape
    size = min(shape)
    per_task = round((size - int(size * 0.8)) / count)
    u, s, vh = svd(deltas.sum(0))
    common = size - per_task * count
    left, right, strengths = [u[:, :common]], [vh[:common]], [s[:common]]
    for delta in deltas:
        own_u, own_s, own_vh = svd(delta - u[:, :common] @ (u[:, :common].T @ delta))
        left.append(own_u[:, :per_task])
        right.append(own_vh[:per_task])
        strengths.append(own_s[:per_task])
    return torch.cat(strengths).mean() * (polar(torch.cat(left, 1)) @ polar(torch.cat(right)))


def plain_tsv_m(deltas: Tensor) -> Tensor:
    """TSV-M with N + 2 SVDs (methods.md §9)."""
    count, *shape = deltas.shape
    rank = min(shape) // count
    kept = [svd(delta) for delta in deltas]
    left = polar(torch.cat([u[:, :rank] for u, _, _ in kept], 1))
    right = polar(torch.cat([vh[:rank] for _, _, vh in kept]))
    return left @ (torch.cat([s[:rank] for _, s, _ in kept]).unsqueeze(1) * right)


PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "iso-c": plain_iso_c,
    "iso-cts": plain_iso_cts,
    "tsv-m": plain_tsv_m,
}


def ours(method: str) -> Callable[[Tensor], Tensor]:
    """The method of this package as a function of the deltas."""
    rule = METHODS[method]
    assert rule.merge is not None
    merge, params = rule.merge, rule.params()

    def run(deltas: Tensor) -> Tensor:
        tasks = tuple(f"task{index}" for index in range(deltas.shape[0]))
        ctx = TensorContext("w", tasks, torch.zeros(deltas.shape[1:]), (1.0,) * len(tasks))
        result = merge(deltas, params, ctx)
        assert result.merged is not None
        if "merged" in result.parts:
            return result.parts["merged"]
        rows, columns = deltas.shape[1:]
        mix = Mix({}, shared=1.0)
        return evaluate(result.merged, TensorParts(result.parts), mix, (rows, columns)).rows(
            0, rows
        )

    return run


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Median CPU seconds."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return statistics.median(found)


def decaying_deltas(shape: tuple[int, int]) -> Tensor:
    """(N, m, n) float32; half of each delta is shared.

    sigma_i falls as (1 + i / 0.3 n)**-4.63, which puts 72 / 91 / 99 % of the energy into the first
    5 / 10 / 25 % of the directions; the fine-tunes of a trained ViT have 72 / 91 / 99 %.
    """
    random = torch.Generator().manual_seed(shape[0] * 10_000 + shape[1])
    size = min(shape)
    strengths = (1 + torch.arange(size) / (0.3 * size)) ** -4.63

    def one() -> Tensor:
        left, right = (
            torch.linalg.qr(torch.randn((side, size), generator=random))[0] for side in shape
        )
        made: Tensor = (left * strengths) @ right.T
        return made

    shared = one()
    return torch.stack([1e-2 * (shared + one()) for _ in range(TASKS)])


def bench_spectral(repeats: int) -> None:
    """Print a row per method."""
    torch.set_num_threads(1)
    print(f"{len(BLOCK)} matrices x {TASKS} tasks, one thread, median of {repeats}")
    print("| method | plain SVD, CPU s | svdh, CPU s | ratio | svdh apart | plain float32 apart |")
    print("| --- | --: | --: | --: | --: | --: |")
    for method, plain in PLAIN.items():
        fast, spent, apart = ours(method), [0.0, 0.0], [0.0, 0.0]
        for shape in BLOCK:
            deltas = decaying_deltas(shape)
            want = plain(deltas.double())
            for index, run in enumerate((plain, fast)):
                error = float((run(deltas) - want).norm() / want.norm())
                apart[index] = max(apart[index], error)
                spent[index] += seconds(lambda r=run, d=deltas: r(d), repeats)  # type: ignore[misc]
        print(
            f"| {method} | {spent[0]:.2f} | {spent[1]:.2f} | {spent[0] / spent[1]:.1f} "
            f"| {apart[1]:.1e} | {apart[0]:.1e} |"
        )


# --- TIES against mergekit ------------------------------------------------------------------------


def renamed(name: str) -> str | None:
    """The Starcoder2 name of a ViT tensor; None for those it has no place for."""
    for pattern, replacement in RENAMED.items():
        name = re.sub(pattern, replacement, name)
    if name == "vision_model.embeddings.patch_embedding.weight":
        return "model.embed_tokens.weight"
    return None if name.startswith("vision_model") else name


def write_folders(folder: Path) -> None:
    """`base` and `task0` … as HF folders with names that mergekit knows."""
    shapes = vit_b32_shapes()
    names = {name: other for name in shapes if (other := renamed(name))}
    for model in ("base", *(f"task{index}" for index in range(TASKS))):
        (folder / model).mkdir(parents=True, exist_ok=True)
        (folder / model / "config.json").write_text(json.dumps(STARCODER2))
        infos = {
            other: TensorInfo("F32", (MLP, WIDTH) if "embed" in other else shapes[name])
            for name, other in names.items()
        }
        origin = {other: name for name, other in names.items()}
        with SafetensorsWriter(folder / model / "model.safetensors", infos) as writer:
            for other in writer.order:
                name = origin[other]
                tensor = base_tensor(name, shapes[name])
                if model != "base":
                    tensor = tensor + task_difference(model, name, shapes[name])
                writer.write(other, tensor.reshape(infos[other].shape))


def recipe(folder: Path) -> str:
    """TIES at density 0.2 of all tasks."""
    models = "".join(
        f"  - model: {folder}/task{index}\n    parameters: {{weight: 1.0, density: 0.2}}\n"
        for index in range(TASKS)
    )
    return (
        f"merge_method: ties\nbase_model: {folder}/base\nparameters: {{normalize: true}}\n"
        f"models:\n{models}dtype: float32\n"
    )


def timed(command: Sequence[str]) -> float:
    """CPU seconds of a command on one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{said.decode()[-2000:]}")
    return usage.ru_utime + usage.ru_stime


def tensors(folder: Path) -> Mapping[str, Tensor]:
    """Every tensor of an HF folder."""
    found: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as shard:
            found |= {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
    return found


def bench_ties(mergekit: Path, folder: Path, repeats: int) -> None:
    """Print CPU seconds of both and how far their results are apart."""
    if not (folder / "base").exists():
        write_folders(folder)
    (folder / "ties.yml").write_text(recipe(folder))
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        theirs, art, merged = (Path(scratch) / name for name in ("theirs", "artifact", "merged"))
        peer = [str(mergekit), "-m", "mergekit.scripts.run_yaml", str(folder / "ties.yml")]
        svdh = [sys.executable, "-m", "svd_hybrid"]
        write = ["--quiet", "--overwrite", "--artifact-dir", str(art)]
        compress = [*svdh, "compress", "--config", str(folder / "ties.yml"), *write]
        compress += ["--no-eval-reconstruction"]
        reload = [*svdh, "reload", *write, "--base", f"{folder}/base", "--output-path", str(merged)]
        spent = [
            [timed([*peer, str(theirs), "--no-copy-tokenizer"]) for _ in range(repeats)],
            [timed(compress) for _ in range(repeats)],
            [timed(reload) for _ in range(repeats)],
        ]
        middle = [statistics.median(times) for times in spent]
        want, got = tensors(theirs), tensors(merged)
        far = [(got[name].float() - want[name].float()).abs() > VISIBLE for name in want]
        apart = sum(int(mask.sum()) for mask in far) / sum(mask.numel() for mask in far)
    print(f"TIES, {TASKS} tasks, density 0.2 per tensor, one thread, median of {repeats}: CPU s")
    print(
        "| mergekit | svdh compress | svdh reload | ratio, merge | ratio, to checkpoint | differ |"
    )
    print("| --: | --: | --: | --: | --: | --: |")
    both = middle[1] + middle[2]
    print(
        f"| {middle[0]:.1f} | {middle[1]:.1f} | {middle[2]:.1f} | {middle[0] / middle[1]:.1f} "
        f"| {middle[0] / both:.1f} | {apart:.1e} of the scalars |"
    )


def main() -> None:
    """Parse the command line and run one benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="bench", required=True)
    spectral = commands.add_parser("spectral")
    ties = commands.add_parser("ties")
    ties.add_argument("--mergekit", type=Path, required=True, help="python that has mergekit")
    ties.add_argument("--folder", type=Path, help="where the checkpoints are kept; made if absent")
    for command in (spectral, ties):
        command.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.bench == "spectral":
        bench_spectral(arguments.repeats)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            folder = arguments.folder or Path(scratch)
            bench_ties(arguments.mergekit, folder.resolve(), arguments.repeats)


if __name__ == "__main__":
    main()
