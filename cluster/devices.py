"""The CPU, one accelerator, or many under torchrun: the only module that distinguishes them.

Many processes: `join_group` reads torchrun's environment; each then works on its slice of one global batch and
`sum_over_ranks` adds up what they found, so the result does not depend on their number beyond the order of sums.
"""

import atexit
import contextlib
import importlib.util
import logging
import os
import pickle
import resource
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

logger = logging.getLogger(__name__)
T = TypeVar("T")

DEVICES = ("auto", "cpu", "cuda", "tpu")
SMALL = 50_000_000  # parameters of models whose operations one thread does as fast as several
THREADS = torch.get_num_threads()  # as torch chose them: a core each, or OMP_NUM_THREADS
LONGEST_ALONE = timedelta(days=7)  # for which the others wait for the first process; a provider's batch may take a day

_loaded = 0  # parameters of the models that this process has loaded onto the CPU
_patient: Any = None  # a weak reference: a group that outlives destroy_process_group may abort the interpreter's end


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is the machine's accelerator, else the CPU. Under torchrun, this process's own.

    Raises ValueError for an unknown name, and for one that this machine does not have.
    """
    if name not in DEVICES:
        raise ValueError(f"device {name!r} is unknown; known: {', '.join(DEVICES)}")
    if name == "tpu" and importlib.util.find_spec("torch_tpu"):
        importlib.import_module("torch_tpu")  # registers `tpu` with torch.accelerator
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    found = accelerator.type if accelerator else "cpu"
    if name == "cpu" or (name == "auto" and accelerator is None):
        return torch.device("cpu")
    if name not in ("auto", found):
        needs = "torch_tpu and a TPU" if name == "tpu" else "a CUDA GPU that torch can see"
        raise ValueError(f"device {name!r} needs {needs}; this machine has: {found}")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product; see `deterministic`
    device = torch.device(found, int(os.environ.get("LOCAL_RANK", "0")))
    torch.accelerator.set_device_index(device.index)
    return device


def fit_threads(modules: Iterable[object]) -> None:
    """One thread of torch where all models that this process has loaded onto the CPU are small; else a core each.

    modules: those just loaded, among anything else. With one thread the results do not depend on the number of cores,
    and other processes can use these (cluster.forks). OMP_NUM_THREADS decides instead where it is set.
    """
    global _loaded
    if os.environ.get("OMP_NUM_THREADS"):
        return
    for module in modules:
        if isinstance(module, torch.nn.Module):
            _loaded += sum(weight.numel() for weight in module.parameters() if weight.device.type == "cpu")
    torch.set_num_threads(1 if _loaded < SMALL else THREADS)


def relaunch(processes: str, device: torch.device) -> None:
    """Become torchrun, which starts this very command as many processes; nothing to do for one, or under torchrun.

    processes: their number, or "auto" for one on each of the machine's accelerators of the device's type, which is
        one on the CPU. Raises ValueError for anything else.
    """
    if processes != "auto" and not (processes.isdecimal() and int(processes) > 0):
        raise ValueError(f"processes: {processes!r} is neither auto nor a number above 0; engine ray takes 4-16 too")
    found = 1 if device.type == "cpu" else torch.accelerator.device_count()
    wanted = found if processes == "auto" else int(processes)
    if wanted == 1 or "WORLD_SIZE" in os.environ:
        return
    if device.type != "cpu" and wanted > found:
        raise ValueError(f"processes: {wanted} wanted, and this machine has {found} accelerators, one for each")
    logger.info("starting %d processes on %s", wanted, device.type)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={wanted}"]
    command = sys.orig_argv[2:]  # after python -m; behind --, or torchrun would take --start for one of its own options
    os.execv(sys.executable, [*torchrun, "-m", "--", *command])


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[None]:
    """The context a forward runs in: "fp32" as the tensors are, "bf16" under bfloat16 autocast.

    Raises ValueError for another precision.
    """
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision {precision!r} is unknown; known: fp32, bf16")
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


@contextlib.contextmanager
def deterministic(device: torch.device, wanted: bool) -> Iterator[None]:
    """Within it, where it is wanted, an accelerator adds in a fixed order: the same seed gives the same bytes.

    A CPU does anyway. An operation without such an order raises torch's error that names it. A warning instead would
    not do: attention would keep its fast backward, whose order is random.
    """
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(before[0] or (wanted and device.type != "cpu"))
    settings.fill_uninitialized_memory = False  # it costs time, and nothing here reads what was never written
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that a clock read next measures work rather than its queueing."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def has_fused_adam(device: torch.device) -> bool:
    """Whether Adam can update all of a LoRA's many small matrices in one call there."""
    return device.type in ("cpu", "cuda")


def reads_freely(device: torch.device) -> bool:
    """Whether a value is there when it is read; elsewhere reading waits for all work that the device has been given."""
    return device.type == "cpu"


def compiles_shapes(device: torch.device) -> bool:
    """Whether a new shape of a tensor costs a compilation there."""
    return device.type not in ("cpu", "cuda")


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device, from the CPU without a wait for the work that this has been given."""
    waits = device.type == "cuda" and tensor.device.type == "cpu"
    return tensor.pin_memory().to(device, non_blocking=True) if waits else tensor.to(device)


def peak_memory(device: torch.device) -> int:
    """Most bytes this process ever held: allocated on an accelerator, resident on the CPU."""
    if device.type != "cpu":
        return torch.accelerator.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB


def join_group(device: torch.device) -> None:
    """Join the other processes of a torchrun launch until this one ends; nothing to do outside one, or when joined."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        return
    distributed.init_process_group(distributed.get_default_backend_for_device(device))
    atexit.register(distributed.destroy_process_group)
    logger.info("rank %d of %d on %s", rank(), world_size(), device)


def rank() -> int:
    """Number of this process; 0 where it is the only one. Process 0 writes files."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def barrier() -> None:
    """Wait until every process is here."""
    if distributed.is_initialized():
        distributed.barrier()


def of_first(make: Callable[[], T]) -> T:
    """What the call returns in the first process, which alone makes it, on every process; plain Python that pickles.

    For what a process of another host cannot find by itself, or must not ask for again: a ledger is a file of one host.
    Every process raises what it raises; the others a RuntimeError with its text where the error does not pickle.
    """
    if world_size() == 1:
        return make()
    group = _patient_group()  # before the call: the others wait in it
    made: T | None = None
    raised: Exception | None = None
    if rank() == 0:
        try:
            made = make()
        except Exception as error:
            raised = error
    sent_to_all: list[Any] = [made, raised]
    if raised and not travels(raised):
        sent_to_all[1] = RuntimeError(f"{type(raised).__name__}: {raised}")
    distributed.broadcast_object_list(sent_to_all, group=group, device=torch.device("cpu"))
    if raised or sent_to_all[1]:
        raise raised or sent_to_all[1]
    result: T = sent_to_all[0]
    return result


def _patient_group() -> Any:
    """All processes, as a group on the CPU: an accelerator's own gives up after minutes."""
    global _patient
    group = _patient() if _patient else None
    if group is None:
        group = distributed.new_group(backend="gloo", timeout=LONGEST_ALONE)
        _patient = weakref.ref(group)
    return group


def travels(error: Exception) -> bool:
    """Whether another process can be given it."""
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:  # whatever an error's own pickling raises
        return False


def sum_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Add up each tensor over the processes, in place, as one message a dtype."""
    if world_size() == 1:
        return
    for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
        group = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        distributed.all_reduce(flat)
        for tensor, total in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(total.view_as(tensor))


def gather_over_ranks(value: Any) -> list[Any]:
    """Each process's value, in order of rank, on every process; small plain Python alone."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def slice_of_rank(count: int, pieces: int, empty: bool = False) -> list[range]:
    """This process's share of a batch of `count` rows, as `pieces` runs of nearly equal length.

    All processes' runs in order of rank are the batch in its order, whatever their number. empty: whether runs without
    a row are kept, so that every process has as many runs as the others.
    """
    total = world_size() * pieces
    edges = [count * i // total for i in range(total + 1)]
    mine = range(rank() * pieces, (rank() + 1) * pieces)
    return [range(edges[i], edges[i + 1]) for i in mine if empty or edges[i] < edges[i + 1]]


def even_slice_of_rank(count: int) -> list[int]:
    """Every world_size-th of `count` places, as many on each process: the last may be one that another has too."""
    return [place % count for place in range(rank(), -(-count // world_size()) * world_size(), world_size())]
