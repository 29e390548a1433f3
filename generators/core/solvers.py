"""The solvers that sample a clip: diffusers' schedulers, with the noise process and schedule of the pipeline's own."""

import inspect
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from generators.core.process import Epsilon, FlowMatching, NoiseProcess, VariancePreserving, process_of

Solver = Literal["euler", "unipc", "ddim"]
SOLVERS = get_args(Solver)
OF_FLOWS, OF_DIFFUSION = ("euler", "unipc"), ("ddim", "unipc")


def check_solver(process: NoiseProcess, solver: str) -> None:
    """Raises ValueError for an unknown solver, and one of another noise process. Does not import diffusers."""
    if solver not in SOLVERS:
        raise ValueError(f"solver: found {solver!r}; known are {', '.join(SOLVERS)}")
    flow = isinstance(process, FlowMatching)
    if solver not in (fitting := OF_FLOWS if flow else OF_DIFFUSION):
        predicts = "a velocity of flow matching" if flow else "epsilon" if isinstance(process, Epsilon) else "v"
        raise ValueError(
            f"solver: {solver} does not fit this generator, which predicts {predicts}; wanted is {' or '.join(fitting)}"
        )


def solver_scheduler(scheduler_config: Mapping[str, Any], solver: str) -> Any:
    """A fresh diffusers scheduler of that solver.

    scheduler_config: as saved, with its _class_name, its shift fixed.
    euler is of flow matching. ddim is of epsilon and v models, without noise (Song et al., Eq. 13: Euler in x / alpha
    over sigma / alpha). unipc (Zhao et al.) is of all whose noise table it can hold.
    Raises ValueError as `check_solver` does, and for one that cannot hold the pipeline's noise table.
    """
    import diffusers

    process = process_of(scheduler_config)
    check_solver(process, solver)
    unipc = diffusers.UniPCMultistepScheduler
    if isinstance(process, FlowMatching):
        euler = diffusers.FlowMatchEulerDiscreteScheduler
        flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": process.shift}
        cls, changes = (euler, {"shift": process.shift}) if solver == "euler" else (unipc, flow)
        return cls.from_config(_taken_by(cls, scheduler_config) | changes)
    bends = "snr_shift_scale" in scheduler_config  # CogVideoX's noise table
    ddim = diffusers.CogVideoXDDIMScheduler if bends else diffusers.DDIMScheduler
    cls = ddim if solver == "ddim" else unipc
    taken = _taken_by(cls, scheduler_config) | ({"clip_sample": False} if solver == "ddim" else {})
    scheduler = cls.from_config(taken)
    if not torch.allclose(torch.as_tensor(scheduler.alphas_cumprod).float(), process.alphas_cumprod, atol=1e-6):
        raise ValueError(f"solver: {solver} cannot hold the noise table of {scheduler_config.get('_class_name')}")
    return scheduler


def solver_times(scheduler: Any, process: NoiseProcess) -> Tensor:
    """(K,) process time, in [0, 1], of each of the solver's timesteps, which are set.

    A flow model's is the solver's own sigma: UniPC rounds the timestep that it passes to the denoiser.
    """
    if isinstance(process, VariancePreserving):
        timesteps: Tensor = scheduler.timesteps
        return timesteps / (len(process.alphas_cumprod) - 1)
    sigmas: Tensor = scheduler.sigmas
    return sigmas[:-1]


def _taken_by(cls: type, config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a scheduler's config that another scheduler class takes too."""
    names = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    return {name: value for name, value in config.items() if name in names}
