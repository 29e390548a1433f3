"""How long the report of many clips takes to build, and its gallery to open.

    python -m benchmarks.report [--prompts 58] [--samples 16] [--policies 6]

Makes clips as small as the tabletop world's with two judges' verdicts, builds the report, and opens the gallery in
headless Chromium: the time until rows stand on the page and its filters answer, until every clip in view shows its
first frame, and the longest pause while it is scrolled through.
"""

import json
import tempfile
import time
from pathlib import Path

import click
import numpy as np

from data.records import Label, Sample, Verdict, write_rows
from data.video import write_video
from evaluation.accept import BASE, summarise
from evaluation.sets import EvaluationSet
from report.page import write_page
from tests.support.browser import running_chromium, wait_until

JUDGES = ("physics", "judge")
SCROLL = """
new Promise(done => {
  let last = performance.now(), longest = 0, frames = 0;
  const step = now => {
    longest = Math.max(longest, now - last);
    last = now;
    scroller.scrollTop += 900;
    if (++frames < 120) requestAnimationFrame(step); else done([longest, live.size]);
  };
  requestAnimationFrame(step);
}).then(found => { window.scrolled = found })
"""


@click.command(help=__doc__)
@click.option("--prompts", default=58)
@click.option("--samples", default=16, help="Clips of each prompt and policy.")
@click.option("--policies", default=6)
def main(prompts: int, samples: int, policies: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        names = [BASE, *(f"rwr{place}" for place in range(1, policies))]
        sets = {name: make_set(home / name, name, prompts, samples) for name in names}
        summary = summarise(sets, dict.fromkeys(names[1:], BASE), {}, draws=200, seed=1)
        start = time.monotonic()
        write_page(summary, sets, {}, None, home / "out")
        print(f"{prompts * samples * policies} clips: report built in {time.monotonic() - start:.1f} s")
        open_gallery((home / "out/gallery.html").as_uri())


def make_set(home: Path, policy: str, prompts: int, samples: int) -> EvaluationSet:
    generator = np.random.default_rng(len(policy) + ord(policy[-1]))
    clips, labels, verdicts = [], {judge: [] for judge in JUDGES}, {judge: [] for judge in JUDGES}
    for number in range(prompts * samples):
        prompt, index = divmod(number, samples)
        name = f"eval-p{prompt:03}-{index:03}"
        noise = generator.integers(0, 30, (9, 32, 32, 3), np.uint8)
        write_video(home / "samples/videos" / f"{name}.mp4", noise + np.uint8(100), 8.0)
        words = f"prompt number {prompt} of a benchmark"
        made = (number, 9, 8.0, 32, 32, f"videos/{name}.mp4")
        clips.append(Sample(name, f"p{prompt:03}", words, f"category {prompt % 5}", "test", policy, *made))
        for judge in JUDGES:
            p = float(generator.random())
            labels[judge].append(Label(name, judge, p > 0.5, p, None, 1, 0, "a reason of some length " * 5))
            text = ("a reason of some length " * 5, "a raw reply of some length " * 10, "model", "v1", "rubric")
            verdicts[judge].append(Verdict(name, judge, "accept", 0, p > 0.5, p, None, *text, [0, 4, 8], 85, 0.0, None))
    for judge in JUDGES:
        write_rows(home / "labels" / judge / "verdicts.parquet", verdicts[judge], Verdict)
    return EvaluationSet(home / "samples", tuple(clips), {judge: tuple(of) for judge, of in labels.items()})


def open_gallery(url: str) -> None:
    with running_chromium() as browser:
        tab = browser.new_page()
        tab.goto(url)
        times = json.loads(tab.evaluate("JSON.stringify(performance.getEntriesByType('navigation')[0])"))
        print(f"gallery interactive after {times['domComplete'] / 1e3:.2f} s: {tab.evaluate('count.textContent')}")
        start = time.monotonic()
        tab.evaluate("form.elements.verdict.value = 'true'; apply()")
        print(f"a filter answers in {time.monotonic() - start:.3f} s: {tab.evaluate('count.textContent')}")
        wait_until(tab, "[...document.querySelectorAll('canvas')].every(canvas => canvas.width)")
        print(f"all first frames in view {time.monotonic() - start:.2f} s after it")
        tab.evaluate(SCROLL)
        wait_until(tab, "window.scrolled !== undefined")
        longest, rows = tab.evaluate("window.scrolled")
        print(f"scrolled through 120 screens: longest pause {longest:.0f} ms, {rows} rows exist")


if __name__ == "__main__":
    main()
