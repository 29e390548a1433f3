"""A reward model that is trained here: a video VLM whose last hidden state a linear layer turns into a number.

1. Evenly spaced frames of a clip, prepared by the VLM's own processor (feedback/judges/pixels.py).
2. One user message: the video, then a rubric's text with the clip's prompt, then the tokens that begin an answer.
3. The last layer's hidden state at the last token, where a judge's answer would begin.
4. The head, a linear layer without bias, in float32.

What is trained is the head, which is zero at first, and a LoRA of the language model; the vision tower is frozen.

After VideoReward of VideoAlign (Liu et al., arXiv 2501.13918), a Qwen2-VL-2B with a linear head, trained by a
Bradley-Terry loss. Deviations: any VLM that kind `qwen` loads; one number in place of three dimensions, read at the
last token and not at a special one; a zero head in place of a random one; no ties; a score that is not normalised by
the mean and the standard deviation of the data, since only differences within a prompt were trained.
The VLM gets the frame times of the clips that it was trained on, also for clips of another rate.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic.dataclasses import dataclass
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.functional import pad

from data.config import STRICT, Count, Positive, read_config
from data.manifest import MANIFEST, atomically, read_manifest, sha256_of
from data.video import sample_frames
from feedback.core.weights import Dtype
from feedback.judges.pixels import make_pixels
from feedback.judges.vlm import Loaded, build_inputs, load_model, positions_of, sampled_fps, unreadable

KIND = "reward_model"  # of the folder's manifest
FACTS, WEIGHTS = "reward.json", "weights.safetensors"
ADAPTER = "reward"  # peft's name of the LoRA
HEAD = "head.weight"
LANGUAGE = "language_model"  # the part of a VLM that gets the LoRA
PROMPT = "{prompt}"
CACHED = 1024  # messages
WHITE = 255.0


@dataclass(frozen=True, config=STRICT, kw_only=True)
class RewardModelFacts:
    """What a reward model is made of, beside its weights."""

    path: str  # of the VLM, a folder or a hub id
    revision: str | None
    version: str  # of the VLM's weights
    dtype: Dtype
    pixels: Count | None  # as in feedback.judges.vlm.build_inputs
    text: str  # with PROMPT in it
    frames: Count  # that it sees of a clip
    clip_frames: Count  # of the clips that it was trained on
    clip_fps: Positive  # frames per second, likewise
    lora_rank: Count
    lora_alpha: Positive
    lora_targets: tuple[str, ...]  # endings of module names in the language model


class _Message(NamedTuple):
    """The tokens of a prompt's message, for frames of one size."""

    ids: Tensor  # (T,)
    positions: Tensor  # (R, T), R = 3 or 1


class TrainedReward:
    """A VLM with a head and a LoRA: a metric (feedback.core.source.Metric) with the gradient of frames and weights."""

    def __init__(self, loaded: Loaded, facts: RewardModelFacts, version: str, seed: int = 0) -> None:
        """As it is before any training: all scores are 0.

        loaded: the VLM, which gets the LoRA and is used for nothing else. version: of the trained model. seed: of the
        LoRA's first weights. Raises ValueError where no module of the language model has one of the endings, and for a
        processor that passes no gradient.
        """
        self.facts, self.vlm, self._processor = facts, loaded.model.eval().requires_grad_(False), loaded.processor
        self._pixels = make_pixels(loaded.processor, facts.pixels)
        self._message = lru_cache(CACHED)(self._make_message)
        hidden = loaded.model.config.get_text_config().hidden_size
        head = Parameter(torch.zeros(1, hidden, device=loaded.model.device))
        self.parameters: dict[str, Parameter] = {HEAD: head, **_add_lora(self.vlm, facts, seed)}
        self.model, self.model_version = facts.path, version
        self.definition = (
            f"Score of a Bradley-Terry reward model on {facts.path} ({facts.version}), LoRA and head {version}, "
            f"{facts.frames} evenly spaced frames, in {facts.dtype}."
        )

    def frame_indices(self, num_frames: int, fps: float = 0) -> list[int]:
        """Indices of the frames that it sees, evenly spaced; none of a clip with fewer frames than it sees."""
        return sample_frames(num_frames, self.facts.frames) if num_frames >= self.facts.frames else []

    @torch.no_grad()  # not inference_mode: the processor keeps tensors for later calls, which may need a gradient
    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[str], fps: Sequence[float] = ()) -> list[float]:
        """As feedback.core.source.Metric says, all clips in one forward pass; fps does not matter.

        nan for a clip with fewer frames than it sees, and a prompt that the VLM cannot read.
        """
        found = [float("nan")] * len(clips)
        seen = [
            place
            for place, (clip, prompt) in enumerate(zip(clips, prompts, strict=True))
            if self.frame_indices(len(clip)) and not unreadable(self._processor, prompt)
        ]
        if seen:
            shown = [self.shown(clips[place]) for place in seen]
            for place, number in zip(seen, self.scores(shown, [prompts[place] for place in seen]), strict=True):
                found[place] = float(number)
        return found

    def shown(self, clip: np.ndarray) -> Tensor:
        """The frames that it sees of a clip, uint8 (F, H, W, 3), as `scores` takes them."""
        return torch.from_numpy(clip[self.frame_indices(len(clip))]).float() / WHITE

    def scores(self, clips: Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
        """(N,) float32 of the frames of `frame_indices`, float32 (F, H, W, 3) in [0, 1], in one forward pass.

        With the gradient of the frames, and of `parameters` where they are trained. A clip's score does not depend on
        the others but for rounding. Raises ValueError for a prompt that the VLM cannot read.
        """
        for prompt in prompts:
            if problem := unreadable(self._processor, prompt):
                raise ValueError(problem)
        device = self.vlm.device
        messages = [self._message(prompt, *clip.shape[1:3]) for clip, prompt in zip(clips, prompts, strict=True)]
        lengths = [len(message.ids) for message in messages]
        longest = max(lengths)
        # Padded on the right: under a causal mask no token of a message attends to what follows it.
        ids = torch.stack([pad(message.ids, (0, longest - len(message.ids))) for message in messages])
        places = torch.stack([pad(message.positions, (0, longest - len(message.ids))) for message in messages], 1)
        mask = torch.arange(longest)[None] < torch.tensor(lengths)[:, None]
        prepared = [self._pixels(clip) for clip in clips]
        hidden = self.vlm.model(
            input_ids=ids.to(device),
            attention_mask=mask.long().to(device),
            position_ids=(places if len(places) > 1 else places[0]).to(device),
            use_cache=False,
            **{key: torch.cat([one[key] for one in prepared]).to(device) for key in prepared[0]},
        ).last_hidden_state
        last = hidden[torch.arange(len(messages), device=device), torch.tensor(lengths, device=device) - 1]
        return nn.functional.linear(last.float(), self.parameters[HEAD])[:, 0]

    def save(self, folder: Path, origin: Mapping[str, Any]) -> None:
        """Write reward.json and the trained weights; equal weights give equal bytes. origin: plain JSON."""
        tensors = {name: one.detach().float().cpu().contiguous() for name, one in self.parameters.items()}
        with atomically(folder / WEIGHTS) as partial:
            save_file(tensors, partial)
        facts = {"model": asdict(self.facts), "trained": origin}
        with atomically(folder / FACTS) as partial:
            partial.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    def _make_message(self, prompt: str, height: int, width: int) -> _Message:
        """The message about black frames: its tokens depend on the frames' size alone."""
        facts = self.facts
        indices = sample_frames(facts.clip_frames, facts.frames)
        rate = sampled_fps(indices, facts.clip_fps)
        times = [index * rate / facts.clip_fps for index in indices]
        black = np.zeros((facts.frames, height, width, 3), np.uint8)
        text = facts.text.replace(PROMPT, prompt)
        inputs = dict(build_inputs(self._processor, [black], [text], [rate], facts.pixels, [times]))
        return _Message(inputs["input_ids"][0], positions_of(self.vlm, inputs))


def load_trained(name: str, folder: Path, device: str) -> TrainedReward:
    """The reward model in a folder that stage `reward` wrote, frozen, its VLM on the device.

    Raises StoreError for a folder that is not finished, and ValueError that names feedback.sources.<name>.path where
    its VLM is another one than at training.
    """
    read_manifest(folder, KIND)
    where = f"feedback.sources.{name}.path: {folder}"
    facts = read_config(RewardModelFacts, json.loads((folder / FACTS).read_text(encoding="utf-8"))["model"], where)
    loaded = load_model(name, facts.path, facts.revision, facts.dtype, facts.pixels, device)
    if loaded.version != facts.version:
        raise ValueError(
            f"{where} was trained on {facts.path} of version {facts.version}, which now is {loaded.version}: train it "
            "again, or set that model back"
        )
    made = TrainedReward(loaded, facts, sha256_of(folder / MANIFEST)[:12])
    weights = load_file(folder / WEIGHTS)
    if weights.keys() != made.parameters.keys():
        raise ValueError(f"{where}: {WEIGHTS} has other weights than its {FACTS} says")
    with torch.no_grad():
        for key, parameter in made.parameters.items():
            parameter.copy_(weights[key])
            parameter.requires_grad_(False)
    return made


def _add_lora(model: Any, facts: RewardModelFacts, seed: int) -> dict[str, Parameter]:
    """The LoRA's weights by name, float32 and trainable, in the language model's linear layers with these endings.

    W + alpha / rank * B A, B zero, A drawn on the CPU from the seed, the same on any device.
    """
    from peft import LoraConfig, inject_adapter_in_model

    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    ours = [name for name in linear if LANGUAGE in name.split(".")]
    targets = [name for name in ours if name.rpartition(".")[2] in facts.lora_targets]
    if not targets:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in ours})) or f"none in a {LANGUAGE}"
        raise ValueError(
            f"lora_targets {', '.join(facts.lora_targets)}: {facts.path} has no such layers; it has {known}"
        )
    inject_adapter_in_model(
        LoraConfig(r=facts.lora_rank, lora_alpha=facts.lora_alpha, target_modules=targets), model, ADAPTER
    )
    model.requires_grad_(False)
    found = {name: one for name, one in sorted(model.named_parameters()) if f".{ADAPTER}." in name and ".lora_" in name}
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in found.items():
        values = torch.zeros(parameter.shape)
        if ".lora_A." in name:
            nn.init.kaiming_uniform_(values, a=5**0.5, generator=generator)  # peft's own initialisation
        parameter.data = values.to(parameter.device)
        parameter.requires_grad_(True)
    return found
