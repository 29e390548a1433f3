"""A run in an experiment tracker, by accelerate's trackers: the numbers of log.jsonl, and the previews."""

import json
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.manifest import atomically
from data.policies import numbers

logger = logging.getLogger(__name__)

TRACKED = "tracked.json"  # beside a run's resume state: the tracker, the run's id in it, and the last steps sent
LOGS = Path("logs")  # where trackers that write to this disk do so


class Tracker:
    """The run of a policy in a tracker, under the policy's name.

    What was sent is kept beside the resume state, so a resumed run goes on in the same run. After a kill at most the
    step in flight is sent again.
    """

    def __init__(self, name: str, run: str, logs: Path = LOGS) -> None:
        """name: of pipeline.command.TRACKERS, or registered with accelerate. run: the policy's name."""
        self.name, self.run, self.logs = name, run, logs

    def start(
        self, work: Path, config: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], pictures: Mapping[int, Path]
    ) -> None:
        """Begin the run, or go on with the one that `work` knows, and send what it lacks of these.

        config: what a new run is described by. lines: of log.jsonl so far. pictures: the previews so far, by step.
        """
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState(cpu=True)  # accelerate's own logger needs it; on the CPU it leaves the accelerators alone
        self._file = work / TRACKED
        known = json.loads(self._file.read_text()) if self._file.is_file() else {}
        resumed = known.get("tracker") == self.name
        fresh = {"tracker": self.name, "id": uuid.uuid4().hex[:12], "line": -1, "picture": -1}
        self._facts: dict[str, Any] = known if resumed else fresh
        self.logs.mkdir(parents=True, exist_ok=True)
        of_tensorboard = self.name == "tensorboard"  # takes the name of the run where others take that of the project
        named = self.run if of_tensorboard else Path.cwd().name
        self._tracker = LOGGER_TYPE_TO_CLASS[self.name](named, **self._options(resumed))
        self._tracker.start()
        if not resumed:
            self._tracker.store_init_configuration({key: _plain(value) for key, value in config.items()})
            self._keep()
        by_step = {line["step"]: line for line in lines}
        for step in sorted({*by_step, *pictures}):  # wandb takes steps that rise
            if step in pictures:
                self.send_picture(step, pictures[step])
            if step in by_step:
                self.send(by_step[step])

    def send(self, line: Mapping[str, Any]) -> None:
        """Send the numbers of a line of log.jsonl, unless its step was sent before."""
        values = numbers({key: value for key, value in line.items() if key != "step"})
        if line["step"] > self._facts["line"] and self._taken(lambda: self._tracker.log(values, step=line["step"])):
            self._facts["line"] = line["step"]
            self._keep()

    def send_picture(self, step: int, path: Path) -> None:
        """Send a preview, unless that of its step was sent before."""
        if step > self._facts["picture"] and self._taken(lambda: self._log_picture(step, path)):
            self._facts["picture"] = step
            self._keep()

    def finish(self) -> None:
        """End the run."""
        self._taken(self._tracker.finish)

    def _taken(self, call: Callable[[], object]) -> bool:
        """Whether the tracker took it. Its failure is a warning, since training must not end by it."""
        try:
            call()
        except Exception as error:  # each tracker has errors of its own
            logger.warning("%s took nothing, and training goes on: %s", self.name, error)
            return False
        return True

    def _options(self, resumed: bool) -> dict[str, Any]:
        """What each tracker gets beside the name, so that a resumed run is the same one, and an old one is not."""
        if self.name == "tensorboard":  # what an earlier training of this policy left there is hidden
            return {"logging_dir": self.logs / self.name, **({} if resumed else {"purge_step": 0})}
        if self.name == "wandb":
            return {"name": self.run, "id": self._facts["id"], "resume": "allow", "dir": str(self.logs)}
        if self.name == "trackio":
            return {"name": self.run, "resume": "allow" if resumed else "never"}
        if self.name == "dvclive":  # as a log beside the pipeline: no experiment and no dvc.yaml of its own
            where = self.logs / self.name / self.run
            return {"dir": str(where), "resume": resumed, "save_dvc_exp": False, "dvcyaml": None}
        return {}

    def _log_picture(self, step: int, path: Path) -> None:
        import numpy as np
        from PIL import Image

        picture = Image.open(path)
        if self.name == "tensorboard":
            pixels = np.asarray(picture)[None]
            self._tracker.log_images({"preview": pixels}, step=step, dataformats="NHWC")
        elif self.name == "dvclive":
            self._tracker.tracker.log_image(f"preview/{path.name}", picture)
        elif self.name == "trackio":
            import trackio

            self._tracker.log({"preview": trackio.Image(str(path))}, step=step)
        else:
            self._tracker.log_images({"preview": [picture]}, step=step)

    def _keep(self) -> None:
        with atomically(self._file) as partial:
            partial.write_text(json.dumps(self._facts) + "\n")


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str) else str(value)
