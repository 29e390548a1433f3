"""The page on which a person rates clips: the order of the questions, and the page's server on this machine alone.

Raters are blind: a page gets a hash, the prompt and the question, never where a clip comes from or how a judge
labelled it. Clips of several sets are shuffled together by a hash of seed, rater and clip, so the order differs by
rater, and stays the same after a restart or when sets are added. Every rating is committed before the page moves on.

    GET /             the page (rating.html)
    GET /item         the next clip to rate
    GET /item/<id>    a clip by the key of its rating, which a page left open over a restart may still name
    GET /clip/<id>/0  its mp4; of a pair of clips, /0 is on the left and /1 on the right
    GET /first/<id>   the first frame that its generator was given, where the rubric shows it
    GET /frames/<id>/0    the same as an animated picture: few browsers but Chromium play H.264 with full colour (4:4:4)
    POST /rate        {"item": id, "answer": one of the item's, "seconds": s}; answers with the next clip

Another web page in the rater's browser can reach this server too, so requests must name this machine as their host
(otherwise a foreign domain could be made to point here), and a rating must come from our own page.
"""

import hashlib
import io
import json
import logging
import math
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

from data.manifest import StoreError, sha256_of
from data.records import Sample
from data.store import ClipSet, read_clip
from data.video import LOSSLESS_UP_TO
from feedback.core.kinds import read_block
from feedback.core.label import requests_for
from feedback.core.rubric import AnyRubric
from feedback.core.source import FirstFrame, Request, shown_first_frame
from feedback.judges.human import PLACE, Options, Rateable, rated_at, read_reply, write_reply
from feedback.network.ledger import Ledger
from feedback.pairs.people import RateablePair, content_of, read_choice, write_choice
from feedback.pairs.shown import ShownPair

logger = logging.getLogger(__name__)

PAGE = Path(__file__).with_name("rating.html")
HOSTS = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?")
LONGEST_BODY = 1000  # bytes of a rating
READ = 1 << 16  # bytes of a longer one that are read before it is refused
LONGEST_LOOK = 86400  # seconds at a clip; a larger number is not stored
PACE = 20  # latest ratings whose median pace predicts the time left
FIRST_PACE = 3  # ratings before the time left is displayed


@dataclass(frozen=True)
class ClipItem:
    """One thing to be rated: a clip."""

    rateable: Rateable
    sample: Sample
    path: Path  # the mp4

    @property
    def clips(self) -> tuple[tuple[Sample, Path], ...]:
        """What the page shows, from left to right."""
        return ((self.sample, self.path),)

    @property
    def words(self) -> dict[str, str]:
        """The answers, with the words on the page's buttons."""
        question = self.rateable.question
        return {"a": question.affirmative, "r": question.negative, "u": "Unsure"}

    def write(self, answer: str, seconds: float | None) -> str:
        """A rating in the ledger's form."""
        return write_reply(answer, seconds)

    def read(self, reply: str) -> str | None:
        """The answer in a reply; None for one that `write` did not write."""
        return read_reply(reply)


@dataclass(frozen=True)
class PairItem:
    """Two clips to be compared, as they stand side by side."""

    rateable: RateablePair
    left: tuple[Sample, Path]
    right: tuple[Sample, Path]
    left_clip: str  # sha256 of the left one's mp4

    @property
    def clips(self) -> tuple[tuple[Sample, Path], ...]:
        """What the page shows, from left to right."""
        return (self.left, self.right)

    @property
    def words(self) -> dict[str, str]:
        """The answers, with the words on the page's buttons."""
        question = self.rateable.question
        sides = (question.affirmative, question.negative) if question.wanted else ("Left", "Right")
        return {"left": sides[0], "equal": question.tie or "Equal", "right": sides[1], "u": "Unsure"}

    def write(self, answer: str, seconds: float | None) -> str:
        """A rating in the ledger's form."""
        return write_choice(answer, self.left_clip, seconds)

    def read(self, reply: str) -> str | None:
        """The answer in a reply, in terms of the sides as they stand now; None for one that `write` did not write."""
        choice = read_choice(reply)
        if choice is None or choice.left == self.left_clip:
            return choice.answer if choice else None
        return {"left": "right", "right": "left"}.get(choice.answer, choice.answer)


Rated = ClipItem | PairItem


def people(name: str, block: Mapping[str, Any], rater: str) -> Options:
    """The options of the source that this person rates for. Raises ValueError for another kind or an unknown rater."""
    where = f"feedback.sources.{name}"
    if block.get("kind", PLACE) != PLACE:
        raise ValueError(f"{where}.kind is {block['kind']!r}, which people do not rate: {PLACE}")
    options: Options = read_block(name, block)[1]
    if rater not in options.raters:
        raise ValueError(f"{where}.raters is {list(options.raters)}, without {rater!r}; add the name there")
    return options


def gather(folders: Iterable[Path], rubric: AnyRubric, rater: str, per_prompt: int | None, seed: int) -> list[ClipItem]:
    """What a person is to rate in these clip sets, in this person's order.

    per_prompt: only so many clips of each prompt in each set, the first ones, which are the same for every rater.
    A clip that is in several sets with the same prompt is rated once. Raises StoreError where a folder is no finished
    clip set, LabelError where the rubric shows first frames and a clip has none.
    """
    clips: dict[tuple[str, ...], tuple[Request, FirstFrame | None]] = {}
    for folder in folders:
        clip_set = ClipSet.open(folder)
        taken = {sample.sample_id for sample in _first(clip_set.samples, per_prompt)}
        for request in (one for one in requests_for(clip_set, 1) if one.sample.sample_id in taken):
            first = shown_first_frame(rubric, request)
            key = (sha256_of(request.path), request.sample.prompt, *([first.content] if first else []))
            clips.setdefault(key, (request, first))
    rubric.check_prompts(key[1] for key in clips)
    items = []
    for key in sorted(clips, key=lambda key: hashlib.sha256(repr((seed, rater, key)).encode()).digest()):
        (clip, prompt), (request, first) = key[:2], clips[key]
        asked = rubric.of(prompt)
        for question in asked.questions:
            rateable = Rateable(rater, clip, prompt, asked, question, first)
            items.append(ClipItem(rateable, request.sample, request.path))
    return items


def gather_pairs(pairs: Iterable[ShownPair], rubric: AnyRubric, rater: str, seed: int) -> list[PairItem]:
    """The pairs that a person is to compare, in this person's order, each with its clips on random sides.

    Both are by a hash of seed, rater and clips, so they stay the same after a restart. Pairs with the same bytes and
    prompt are compared once.
    """
    found: dict[tuple[tuple[str, ...], str], tuple[bytes, ShownPair]] = {}
    for pair in pairs:
        clips = tuple(sorted((content_of(pair.first), content_of(pair.second))))
        drawn = hashlib.sha256(repr((seed, rater, clips, pair.prompt)).encode()).digest()
        found.setdefault((clips, pair.prompt), (drawn, pair))
    items = []
    for drawn, pair in sorted(found.values(), key=lambda one: one[0]):
        shown = pair if (drawn[-1] % 2 == 0) == (content_of(pair.first) <= content_of(pair.second)) else pair.swapped()
        left, right = ((one.sample, one.path) for one in (shown.first, shown.second))
        clips = (content_of(shown.first), content_of(shown.second))
        asked = rubric.of(pair.prompt)
        for question in asked.questions:
            rateable = RateablePair(rater, clips, pair.prompt, asked, question, pair.first_frame(rubric))
            items.append(PairItem(rateable, left, right, clips[0]))
    return items


def _first(samples: Sequence[Sample], per_prompt: int | None) -> Iterator[Sample]:
    seen: Counter[str] = Counter()
    for sample in samples:
        seen[sample.prompt_id] += 1
        if per_prompt is None or seen[sample.prompt_id] <= per_prompt:
            yield sample


class Ratings:
    """A person's ratings of a list of items: those in the ledger, and those added to it. For any thread."""

    def __init__(self, items: Sequence[Rated], ledger: Path) -> None:
        self.items: dict[str, Rated] = {item.rateable.key: item for item in items}
        self.ledger = ledger
        with Ledger(ledger) as opened:
            found = opened.answers(self.items)
        stored = {key: answer.reply for key, answer in found.items() if self.items[key].read(answer.reply)}
        # In the order in which they were rated, in which the key b goes back.
        self._pressed = {
            key: self.items[key].read(stored[key]) for key in sorted(stored, key=lambda key: rated_at(stored[key]))
        }
        self._gaps: list[float] = []  # seconds between the ratings of this session
        self._last: float | None = None
        self._lock = threading.Lock()

    @property
    def rated(self) -> int:
        return len(self._pressed)

    def rate(self, key: str, answer: str, seconds: float | None) -> None:
        """Commit a rating. Raises StoreError where that fails; then nothing has changed."""
        with self._lock:
            with Ledger(self.ledger) as opened:
                opened.write(key, self.items[key].rateable.sent, self.items[key].write(answer, seconds))
            self._pressed[key] = answer
            now = time.monotonic()
            if self._last is not None:
                self._gaps = [*self._gaps, now - self._last][-PACE:]
            self._last = now

    def view(self, key: str | None = None) -> dict[str, Any]:
        """The state of the page: this item, or the next one to rate, or null for `item` when all are rated."""
        with self._lock:
            if key is None:
                key = next((other for other in self.items if other not in self._pressed), None)
            order = list(self._pressed)
            before = order[: order.index(key)] if key in self._pressed else order
            progress = {
                "rater": next(iter(self.items.values())).rateable.rater,
                "rated": len(order),
                "total": len(self.items),
                "minutes": self._minutes_left(),
                "previous": before[-1] if before else None,
                "item": key,
            }
            return progress if key is None else progress | self._question(key)

    def _question(self, key: str) -> dict[str, Any]:
        item, rubric = self.items[key], self.items[key].rateable.rubric
        prompt, question = item.rateable.prompt, item.rateable.question
        sizes = [(sample.width, sample.height) for sample, _ in item.clips]
        # The page shows the prompt by itself, so a line of the instructions that is nothing else would repeat it.
        words = f"{(rubric.first_frame or '').strip()}\n{rubric.instructions.strip()}"
        lines = [line for line in words.splitlines() if line.strip() != "{prompt}"]
        return {
            "prompt": prompt,
            "ask": question.ask.strip().replace("{prompt}", prompt),
            "guidance": "\n".join(lines).strip().replace("{prompt}", prompt),
            "words": item.words,
            "given": self._pressed.get(key),
            "clips": len(sizes),
            "first": item.rateable.first_frame is not None,
            "width": max(width for width, _ in sizes),
            "height": max(height for _, height in sizes),
        }

    def _minutes_left(self) -> int | None:
        if len(self._gaps) < FIRST_PACE:
            return None
        return math.ceil((len(self.items) - len(self._pressed)) * median(self._gaps) / 60)


def animated(path: Path, sample: Sample) -> bytes:
    """A clip as an endless animated WebP, without loss where the mp4 has none. Raises as `read_clip` does."""
    first, *rest = map(Image.fromarray, read_clip(path, sample))
    lossless = min(sample.height, sample.width) <= LOSSLESS_UP_TO
    # Whole milliseconds, rounded so that the frames keep the clip's pace on the whole.
    ends = [round(1000 * (frame + 1) / sample.fps) for frame in range(1 + len(rest))]
    durations = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    buffer = io.BytesIO()
    first.save(
        buffer, "WEBP", save_all=True, append_images=rest, duration=durations, loop=0, lossless=lossless, quality=90
    )
    return buffer.getvalue()


class RatingServer(ThreadingHTTPServer):
    """Serves one person's page on 127.0.0.1. port: 0 takes a free one. Raises OSError where it is taken."""

    daemon_threads = True

    def __init__(self, ratings: Ratings, port: int) -> None:
        self.ratings = ratings
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        if isinstance(sys.exception(), ConnectionError):  # the browser hung up, as when its page is reloaded
            return
        logger.exception("a request failed")


class _RefusedRequest(Exception):
    """A request that is not answered."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: RatingServer
    timeout = 60  # seconds that a request may take to arrive
    server_version, sys_version = "rating", ""

    def do_GET(self) -> None:
        self._respond(self._got)

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        # Read even where it is refused: closing on unread bytes would reset the connection before the answer arrives.
        body = self.rfile.read(min(int(length), READ)) if re.fullmatch(r"\d{1,9}", length) else b""
        self._respond(lambda: self._posted(body))

    def _respond(self, handle: Any) -> None:
        try:
            if not HOSTS.fullmatch(self.headers.get("Host", "")):
                raise _RefusedRequest(HTTPStatus.FORBIDDEN, f"open {self.server.url}")
            kind, body = handle()
            self._send(HTTPStatus.OK, kind, body)
        except _RefusedRequest as refused:
            self._send(refused.status, "text/plain; charset=utf-8", str(refused).encode())
        except StoreError as error:
            logger.error("%s", error)
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", str(error).encode())

    def _got(self) -> tuple[str, bytes]:
        if self.path == "/":
            return "text/html; charset=utf-8", PAGE.read_bytes()
        if self.path == "/item":
            return _json(self.server.ratings.view())
        match = re.fullmatch(r"/(item|first|clip|frames)/([0-9a-f]{64})(?:/([01]))?", self.path)
        item = self.server.ratings.items.get(match[2]) if match else None
        if not match or not item:
            raise _RefusedRequest(HTTPStatus.NOT_FOUND, "there is nothing here")
        if match[1] == "item":
            return _json(self.server.ratings.view(match[2]))
        if match[1] == "first":
            return _picture(item.rateable.first_frame)
        side = int(match[3] or 0)
        if side >= len(item.clips):
            raise _RefusedRequest(HTTPStatus.NOT_FOUND, "there is nothing here")
        sample, path = item.clips[side]
        try:
            return ("video/mp4", path.read_bytes()) if match[1] == "clip" else ("image/webp", animated(path, sample))
        except (OSError, ValueError) as error:
            logger.warning("%s", error)
            raise _RefusedRequest(HTTPStatus.UNPROCESSABLE_ENTITY, "this clip cannot be read") from error

    def _posted(self, body: bytes) -> tuple[str, bytes]:
        if self.path != "/rate":
            raise _RefusedRequest(HTTPStatus.NOT_FOUND, "there is nothing here")
        if self.headers.get("Origin") != f"http://{self.headers['Host']}":
            raise _RefusedRequest(HTTPStatus.FORBIDDEN, "ratings are taken from the rating page alone")
        if self.headers.get_content_type() != "application/json":
            raise _RefusedRequest(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a rating is application/json")
        if len(body) > LONGEST_BODY:
            raise _RefusedRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a rating is at most {LONGEST_BODY} bytes")
        self.server.ratings.rate(*_rating(body, self.server.ratings.items))
        return _json(self.server.ratings.view())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)


def _picture(first: FirstFrame | None) -> tuple[str, bytes]:
    if first is None:
        raise _RefusedRequest(HTTPStatus.NOT_FOUND, "there is nothing here")
    try:
        return "image/png", first.path.read_bytes()
    except OSError as error:
        logger.warning("%s", error)
        raise _RefusedRequest(HTTPStatus.UNPROCESSABLE_ENTITY, "this first frame cannot be read") from error


# Nothing from elsewhere is loaded, no other page may embed or read this one (a frame could redirect clicks), and the
# browser keeps nothing of a set.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src 'self' data:; media-src blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def _json(view: Mapping[str, Any]) -> tuple[str, bytes]:
    return "application/json", json.dumps(view).encode()


def _rating(body: bytes, items: Mapping[str, Rated]) -> tuple[str, str, float | None]:
    """Item, answer and seconds of a posted rating."""
    try:
        given = json.loads(body)
        key, answer, seconds = given["item"], given["answer"], given.get("seconds")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _RefusedRequest(HTTPStatus.BAD_REQUEST, "a rating is an object with item, answer and seconds") from error
    if not isinstance(key, str) or key not in items:
        raise _RefusedRequest(HTTPStatus.NOT_FOUND, "this clip is no longer to be rated; reload the page")
    if not isinstance(answer, str) or answer not in items[key].words:
        known = list(items[key].words)
        raise _RefusedRequest(
            HTTPStatus.BAD_REQUEST, f"the answer of a rating is {', '.join(known[:-1])} or {known[-1]}"
        )
    return key, answer, float(seconds) if type(seconds) in (int, float) and 0 <= seconds < LONGEST_LOOK else None
