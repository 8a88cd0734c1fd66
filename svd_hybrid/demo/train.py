"""Train the demo family: one base and one full fine-tune of it per task, in about a minute.

What goes in: a directory that does not hold a family yet, and a seed. What comes out:

    OUT/base/{config.json,model.safetensors}             the encoder, pretrained on upright digits
    OUT/tasks/<task>/{config.json,model.safetensors}     the whole encoder, fine-tuned for one task
    OUT/heads.safetensors                                `<task>.weight`, `<task>.bias`

The heads are *frozen probe heads*: linear, fitted once on the base's features of a few images per
answer, and never trained again. All that a fine-tune learns is therefore in its encoder, and one
head judges the base, the fine-tune and every merge alike. Few-shot heads are weak on purpose.

Promised: the same files for the same seed and torch build on one machine, however many cores it
lends; float32; torch's global random state is neither read nor moved, its thread count is put back;
test images are never touched. Left to others: measuring (`svd_hybrid.demo.evaluate`) and everything
about merging.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812  (its customary name)
from torch import Generator, Tensor

from svd_hybrid.demo.tasks import TASKS, Split, Task, generator, load_splits, task_data
from svd_hybrid.demo.vit import ViT, ViTConfig, build, initial_state
from svd_hybrid.io.model_writer import HF_METADATA
from svd_hybrid.io.new_file import make_folders, write_file
from svd_hybrid.io.safetensors_writer import SafetensorsWriter
from svd_hybrid.io.tensors import info_of
from svd_hybrid.numerics.threads import one_thread

Head: TypeAlias = tuple[Tensor, Tensor]
"""Weight (classes, width) and bias (classes,), float32."""

Batches: TypeAlias = Callable[[Generator], tuple[Tensor, Tensor]]
"""A generator to one batch of images (b, 1, 16, 16) and answers (b,)."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How much to train.

    Attributes:
        model: the encoder's architecture.
        pretrain_steps: optimizer steps of the base.
        finetune_steps: optimizer steps of each fine-tune.
        batch_images: images per step.
        pretrain_lr: peak learning rate of the base.
        finetune_lr: peak learning rate of a fine-tune.
        shots: training images per answer that a head is fitted on.
        head_decay: weight of the heads' squared norm in their loss.
    """

    model: ViTConfig = field(default_factory=ViTConfig)
    pretrain_steps: int = 600
    finetune_steps: int = 90
    batch_images: int = 64
    pretrain_lr: float = 1e-3
    finetune_lr: float = 0.08
    shots: int = 5
    head_decay: float = 0.1


def jitter(images: Tensor, rng: Generator) -> Tensor:
    """Images slightly turned, scaled and shifted, each its own way; same shape, in [0, 1].

    Turns are within 0.2 rad, scales within 12 %, shifts within 1.2 pixels.
    """
    turn, scale, right, down = (2.0 * torch.rand(4, len(images), generator=rng) - 1.0).unbind()
    turn, scale = 0.2 * turn, 1.0 + 0.12 * scale
    reach = 2.0 * 1.2 / images.shape[-1]
    row0 = torch.stack([scale * turn.cos(), -scale * turn.sin(), reach * right], dim=1)
    row1 = torch.stack([scale * turn.sin(), scale * turn.cos(), reach * down], dim=1)
    grid = F.affine_grid(torch.stack([row0, row1], dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def _sample(split: Split, images: int, rng: Generator) -> Split:
    """A random batch of a split, jittered."""
    rows = torch.randint(len(split), (images,), generator=rng)
    return Split(jitter(split.images[rows], rng), split.digits[rows])


def _fit(
    model: ViT,
    head: Head,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    *,
    steps: int,
    rng: Generator,
) -> None:
    """Train in place with cross-entropy, gradients clipped to norm 1.

    The learning rate climbs over the first tenth of the steps, then follows a cosine to zero.
    """
    (group,) = optimizer.param_groups
    peak = group["lr"]
    warm = max(1, steps // 10)
    for step in range(steps):
        ramp = min(1.0, (step + 1) / warm)
        group["lr"] = peak * ramp * (1.0 + math.cos(math.pi * step / steps)) / 2.0
        images, answers = batches(rng)
        loss = F.cross_entropy(F.linear(model(images), *head), answers)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
        optimizer.step()


def fit_head(features: Tensor, answers: Tensor, classes: int, *, decay: float = 0.1) -> Head:
    """Linear softmax classifier (weight (classes, width), bias (classes,)), float32.

    Regularised logistic regression from zero by L-BFGS: convex, so no seed is needed.

    Args:
        features: (n, width) float32.
        answers: (n,) int64 in 0..classes-1.
        classes: number of answers.
        decay: weight of the squared norm in the loss, > 0.
    """
    weight = torch.zeros(classes, features.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(features, weight, bias), answers)
        value = value + decay * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def _few(answers: Tensor, shots: int, rng: Generator) -> Tensor:
    """Rows of `shots` random examples of every answer, or of all there are."""
    order = torch.randperm(len(answers), generator=rng)
    found = answers[order]
    return torch.cat([order[found == answer][:shots] for answer in sorted(set(found.tolist()))])


def _probe(base: ViT, task: Task, train: Split, config: TrainConfig, rng: Generator) -> Head:
    """The task's frozen head, from a few training images seen by the base."""
    images, answers = task_data(task, train, rng)
    rows = _few(answers, config.shots, rng)
    with torch.no_grad():
        features = base(images[rows])
    return fit_head(features, answers[rows], task.classes, decay=config.head_decay)


def _save(directory: Path, model: ViT, config: ViTConfig) -> None:
    make_folders(directory)
    text = json.dumps(config.as_json(), indent=2, sort_keys=True) + "\n"
    write_file(directory / "config.json", text.encode())
    _save_tensors(directory / "model.safetensors", model.state_dict())


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    infos = {name: info_of(tensors[name]) for name in sorted(tensors)}
    with SafetensorsWriter(path, infos, HF_METADATA) as writer:
        for name in writer.order:
            writer.write(name, tensors[name])


def pretrain(train: Split, config: TrainConfig, seed: int) -> ViT:
    """The base: the encoder trained on upright, jittered digits; its classifier is dropped."""
    rng = generator(seed, "pretrain")
    model = build(config.model, initial_state(config.model, rng))
    weight = torch.zeros(10, config.model.width, requires_grad=True)
    bias = torch.zeros(10, requires_grad=True)
    optimizer = torch.optim.AdamW(
        [*model.parameters(), weight, bias], lr=config.pretrain_lr, weight_decay=0.01, fused=True
    )

    def batches(rng: Generator) -> tuple[Tensor, Tensor]:
        batch = _sample(train, config.batch_images, rng)
        return batch.images, batch.digits

    _fit(model, (weight, bias), optimizer, batches, steps=config.pretrain_steps, rng=rng)
    return model


def finetune(
    base: ViT, head: Head, task: Task, train: Split, config: TrainConfig, seed: int
) -> ViT:
    """A copy of the base with every tensor trained for one task, under the task's frozen head.

    By SGD with momentum: AdamW, whose steps are as long where the gradient is mostly noise, gave
    worse fine-tunes here that also disturbed the other tasks more when merged.
    """
    model = build(config.model, base.state_dict())
    optimizer = torch.optim.SGD(
        model.parameters(), lr=config.finetune_lr, momentum=0.9, nesterov=True
    )

    def batches(rng: Generator) -> tuple[Tensor, Tensor]:
        return task_data(task, _sample(train, config.batch_images, rng), rng)

    rng = generator(seed, "finetune", task.name)
    _fit(model, head, optimizer, batches, steps=config.finetune_steps, rng=rng)
    return model


def train_family(
    out: Path,
    *,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
    config: TrainConfig | None = None,
) -> None:
    """Write a base, a fine-tune per task and the frozen heads under `out`.

    Args:
        out: directory, made if missing; must not hold a family yet.
        seed: of the initial weights, the batches and the heads' examples. The data and its split
            are the same for every seed.
        progress: takes one line per stage.
        config: how much to train; the default takes about a minute on two cores.

    Raises:
        ValueError: `out` already holds a family.
    """
    config = config or TrainConfig()
    say = progress or (lambda _: None)
    taken = [name for name in ("base", "tasks", "heads.safetensors") if (out / name).exists()]
    if taken:
        raise ValueError(f"{out}: already holds {', '.join(taken)}; pass an empty directory")
    train, _ = load_splits()
    # The matrices are small, so the cores go to whole fine-tunes, one thread each.
    with one_thread(), ThreadPoolExecutor(os.cpu_count()) as pool:
        say(f"base: {config.pretrain_steps} steps on upright digits")
        base = pretrain(train, config, seed)
        _save(out / "base", base, config.model)
        heads = {
            name: _probe(base, task, train, config, generator(seed, "head", name))
            for name, task in TASKS.items()
        }
        tensors = {f"{name}.weight": weight for name, (weight, _) in heads.items()}
        tensors |= {f"{name}.bias": bias for name, (_, bias) in heads.items()}
        _save_tensors(out / "heads.safetensors", tensors)
        say(f"{len(TASKS)} fine-tunes: {config.finetune_steps} steps each")

        def tune(task: Task) -> ViT:
            return finetune(base, heads[task.name], task, train, config, seed)

        for task, model in zip(TASKS.values(), pool.map(tune, TASKS.values()), strict=True):
            _save(out / "tasks" / task.name, model, config.model)
            say(f"{task.name}: done ({task.summary})")
