"use strict";
// The gallery: a row a prompt and seed, a column a policy. Only the rows in view exist, so that thousands scroll smoothly.
// Prompts and judges' words come from outside: they are set as text only.

const data = window.CLIPS;
const names = data ? Object.keys(data.clips) : [];
const form = document.querySelector("form");
const scroller = document.getElementById("clips");
const head = document.getElementById("head");
const list = document.getElementById("rows");
const dialog = document.querySelector("dialog");
const count = document.getElementById("count");
const MARKS = new Map([[true, ["✓", "accepted", "better"]], [false, ["✗", "rejected", "worse"]],
                       [null, ["–", "unlabelled", "soft"]]]);
const GAP = 10, PROMPT = 24, VERDICT = 19.2, MARGIN = 18;  // pixels; the last three as in style.css
const BEYOND = 2;  // rows that exist above and below the view
const PLAYERS = 6;  // videos that load their first frame at once

/** An element with properties and children; strings become text. */
function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// Which rows are on the page, in which order

function wanted() {
  const filters = Object.fromEntries(new FormData(form));
  return {
    ...filters,
    policies: names.filter(name => form.elements["policy:" + name].checked),
    words: filters.text.toLowerCase().split(/\s+/).filter(Boolean),
    disagree: form.elements.disagree.checked,
  };
}

function disagree(clip, row) {
  const answers = data.judges.map(judge => clip.labels[judge][row]);
  return answers.includes(true) && answers.includes(false);
}

/** Whether one policy's clip of a row fits the filters. */
function fits(policy, row, filters) {
  const clip = data.clips[policy];
  if (clip.files[row] === null) return false;
  if (filters.verdict && String(clip.labels[filters.judge][row]) !== filters.verdict) return false;
  return !filters.disagree || disagree(clip, row);
}

function promptFits(prompt, filters) {
  const text = (prompt.text + " " + prompt.id).toLowerCase();
  return (!filters.prompt || prompt.id === filters.prompt) && (!filters.category || prompt.category === filters.category)
    && (!filters.split || prompt.split === filters.split) && filters.words.every(word => text.includes(word));
}

/** Mean p_accept of the fitting clips of a row, or of their labels where a judge tells no probability. */
function height(row, filters) {
  const known = filters.policies.filter(policy => fits(policy, row, filters))
    .map(policy => data.clips[policy].p[filters.judge][row] ?? data.clips[policy].labels[filters.judge][row])
    .filter(value => value !== null);
  return known.length ? known.reduce((sum, value) => sum + Number(value), 0) / known.length : null;
}

function choose(filters) {
  const fitting = data.prompts.map(prompt => promptFits(prompt, filters));
  const rows = data.rows.flatMap(([prompt], row) =>
    fitting[prompt] && filters.policies.some(policy => fits(policy, row, filters)) ? [row] : []);
  if (!filters.sort) return rows;
  const sign = filters.sort === "up" ? 1 : -1;
  const heights = new Map(rows.map(row => [row, height(row, filters)]));
  const last = sign * Infinity;  // unknown comes last either way
  return rows.sort((a, b) => sign * ((heights.get(a) ?? last) - (heights.get(b) ?? last)) || a - b);
}

// Rows in view

const given = Number(data?.prompts.some(prompt => prompt.first) ?? false);  // columns of first frames

let filters, chosen = [], size;
const live = new Map();  // place in `chosen` -> its element

function apply() {
  filters = wanted();
  chosen = choose(filters);
  const clips = chosen.reduce((sum, row) => sum + filters.policies.filter(policy => fits(policy, row, filters)).length, 0);
  const all = names.reduce((sum, name) => sum + data.clips[name].files.filter(file => file !== null).length, 0);
  count.textContent = `${clips.toLocaleString("en")} of ${all.toLocaleString("en")} clips`;
  document.getElementById("empty").hidden = chosen.length > 0;
  scroller.scrollTop = 0;
  layOut();
  remember();
}

function layOut() {
  const columns = Math.max(1, filters.policies.length) + given;
  const room = (scroller.clientWidth - 44) / columns - GAP;
  const width = Math.round(Math.min(240, Math.max(data.pixelated ? 104 : 150, room)));
  const tall = Math.round(width * data.size[1] / data.size[0]);
  size = tall + PROMPT + data.judges.length * VERDICT + MARGIN;
  for (const [name, value] of [["--width", width], ["--height", tall], ["--gap", GAP]])
    scroller.style.setProperty(name, value + "px");
  head.replaceChildren(...given ? [make("span", {title: "the image that the generator was given"}, "first frame")] : [],
    ...filters.policies.map(policy => make("span", {title: policy}, policy)));
  list.style.height = chosen.length * size + "px";
  list.style.width = columns * (width + GAP) + 40 + "px";
  list.style.minWidth = "100%";
  stop();
  live.clear();
  list.replaceChildren();
  draw();
}

function draw() {
  const first = Math.max(0, Math.floor(scroller.scrollTop / size) - BEYOND);
  const last = Math.min(chosen.length - 1, Math.ceil((scroller.scrollTop + scroller.clientHeight) / size) + BEYOND);
  for (const [place, row] of live) {
    if (place >= first && place <= last) continue;
    if (row === playing) stop();
    row.remove();
    live.delete(place);
  }
  for (let place = last; place >= first; place--) {  // from the end, so that each finds the one that it stands before
    if (live.has(place)) continue;
    const row = makeRow(chosen[place], place);
    list.insertBefore(row, live.get(place + 1) ?? null);
    live.set(place, row);
  }
  loadNext();
}

function makeRow(row, place) {
  const [prompt, name] = data.rows[row], {text, category, split, first} = data.prompts[prompt];
  const title = make("h3", {title: text}, text, make("span", {}, `${category}, ${split}, ${name}`));
  const tiles = make("div", {className: "tiles"}, ...given ? [make("span", {}, firstFrame(first))] : [], ...filters.policies.map(policy => makeTile(policy, row, text)));
  const element = make("div", {className: "row"}, title, tiles);
  element.style.top = place * size + "px";
  element.onpointerenter = event => { if (event.pointerType === "mouse") play(element); };
  element.onpointerleave = event => { if (event.pointerType === "mouse") stop(); };
  element.onfocusin = event => { if (event.target.matches(":focus-visible")) play(element); };
  return element;
}

/** The image that the generator was given for a prompt. */
function firstFrame(path) {
  const film = make("span", {className: "film"});
  film.append(path ? make("img", {src: path.split("/").map(encodeURIComponent).join("/"), alt: "first frame"})
    : make("em", {}, "no first frame"));
  return film;
}

function makeTile(policy, row, text) {
  const clip = data.clips[policy];
  const film = make("span", {className: "film"});
  const tile = make("button", {type: "button", className: "tile"}, film);
  tile.dataset.clip = `${policy}/${row}`;
  if (clip.files[row] === null) {
    film.append(make("em", {}, "no clip"));
    tile.disabled = true;
    return tile;
  }
  film.dataset.source = source(policy, row);
  const canvas = make("canvas", {width: 0, height: 0});
  film.append(canvas);
  waiting.push(film);
  for (const judge of data.judges) tile.append(verdict(judge, clip.labels[judge][row], clip.p[judge][row]));
  tile.title = `${policy}: ${text}`;
  tile.classList.toggle("other", !fits(policy, row, filters));
  let touched = false;  // a first tap plays, a second one opens
  tile.onpointerdown = event => { touched = event.pointerType === "touch" && tile.closest(".row") !== playing; };
  tile.onclick = () => { if (touched) play(tile.closest(".row")); else open(policy, row); };
  return tile;
}

function verdict(judge, label, p) {
  const [mark, word, look] = MARKS.get(label);
  const number = p === null ? "" : " " + p.toFixed(2);
  return make("span", {className: "verdict", title: `${judge}: ${word}${number}`},
    make("span", {className: look}, mark), ` ${judge}${number}`);
}

function source(policy, row) {
  return ["clips", policy, data.clips[policy].files[row]].map(encodeURIComponent).join("/");
}

// First frames. Browsers have few video players (Chromium 75 a page), so some take turns and leave a picture behind.

const waiting = [];
let players = 0;

function loadNext() {
  while (players < PLAYERS && waiting.length) {
    const film = waiting.shift();
    if (!film.isConnected) continue;  // scrolled away in the meantime
    players++;
    const video = player(film.dataset.source);
    const finished = () => { release(video); players--; loadNext(); };
    video.onloadeddata = () => {
      const canvas = film.querySelector("canvas");
      [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
      canvas.getContext("2d").drawImage(video, 0, 0);
      finished();
    };
    video.onerror = () => { broken(film); finished(); };
  }
}

function player(url) {
  return make("video", {src: url, preload: "auto", loop: true, muted: true, playsInline: true});
}

function release(video) {
  video.onloadeddata = video.onerror = null;
  video.pause();
  video.removeAttribute("src");
  video.load();
  video.remove();
}

function broken(film) {
  if (!film.querySelector("em")) film.append(make("em", {}, "This clip cannot be played."));
}

// Playing: the clips of a row together, so that they can be compared

let playing = null;

function play(row) {
  if (row === playing) return;
  stop();
  playing = row;
  for (const film of row.querySelectorAll(".film[data-source]")) start(film);
}

function start(film) {
  const video = player(film.dataset.source);
  video.onerror = () => { broken(film); release(video); };
  film.append(video);
  video.play().catch(() => {});  // refused where it was stopped before it began
}

function stop() {
  playing?.querySelectorAll("video").forEach(release);
  playing = null;
}

// One clip and its verdicts

window.WORDS = {};
let opened = null;

function open(policy, row) {
  stop();
  opened = {policy, row};
  const name = `${policy}-${Math.floor(row / data.chunk)}`;
  const prompt = data.prompts[data.rows[row][0]];
  dialog.querySelectorAll("video").forEach(release);
  const film = make("div", {className: "film"});
  film.dataset.source = source(policy, row);
  const verdicts = make("div", {id: "verdicts"}, make("p", {className: "soft"}, "loading"));
  dialog.replaceChildren(
    make("button", {type: "button", onclick: () => dialog.close()}, "Close"),
    make("h2", {}, prompt.text),
    make("p", {className: "soft"}, `${policy}, ${prompt.category}, ${prompt.split}, prompt ${prompt.id}`),
    make("div", {className: "films"}, ...prompt.first ? [firstFrame(prompt.first)] : [], film), verdicts);
  dialog.querySelectorAll(".film").forEach(one => one.style.setProperty("--aspect", data.size.join(" / ")));
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  start(film);
  words(name).then(
    chunk => { if (verdicts.isConnected) verdicts.replaceChildren(...describe(chunk[row % data.chunk])); },
    () => verdicts.replaceChildren(make("p", {}, `The verdicts on this clip, data/${name}.js, could not be loaded.`)));
}

/** A chunk of labels and verdicts, by a script tag: a page opened from disk may not fetch. */
function words(name) {
  return new Promise((resolve, reject) => {
    if (window.WORDS[name]) return resolve(window.WORDS[name]);
    const script = make("script", {src: `data/${encodeURIComponent(name)}.js`, onerror: reject});
    script.onload = () => { script.remove(); resolve(window.WORDS[name]); };
    document.head.append(script);
  });
}

function describe({clip, labels, verdicts}) {
  const facts = `${clip.sample_id}, seed ${clip.seed}, ${clip.num_frames} frames of ${clip.width} × ${clip.height} pixels, `
    + `${clip.fps} frames per second`;
  return [make("p", {className: "soft facts"}, facts), ...labels.flatMap(label => [
    make("h3", {}, `${label.source}: `, make("span", {className: MARKS.get(label.label)[2]}, MARKS.get(label.label)[1])),
    pairs({p_accept: label.p_accept, score: label.score, reason: label.reason,
           "unreadable votes": label.nulls ? `${label.nulls} of ${label.votes}` : null}),
    ...describeVerdicts(verdicts.filter(one => one.source === label.source))])];
}

/** Verdicts in full; those of several questions first as a list of the questions and answers. */
function describeVerdicts(verdicts) {
  const full = verdicts.map(describeVerdict);
  if (!verdicts.some(one => one.asked)) return full;
  const list = verdicts.map(one => {
    const [mark, , look] = MARKS.get(one.wanted), vote = one.vote ? `, vote ${one.vote + 1}` : "";
    const p = one.p_yes === null ? "" : `, p(${one.yes}) ${one.p_yes.toFixed(2)}`;
    return [one.question + vote, make("span", {}, make("span", {className: look}, `${mark} ${one.word ?? "no answer"}`),
      `${p}: ${one.asked}`)];
  });
  return [pairs(Object.fromEntries(list)), make("details", {}, make("summary", {}, "Each answer in full"), ...full)];
}

function describeVerdict(one) {
  return pairs({
    [one.question]: (one.word ?? {true: "yes", false: "no", null: "no answer"}[one.answer])
      + (one.vote ? `, vote ${one.vote + 1}` : ""),
    [`p(${one.yes ?? "yes"})`]: one.p_yes, score: one.score, reason: one.reason, "raw reply": one.raw, error: one.error,
    model: one.model, version: one.model_version, rubric: one.rubric_hash, frames: one.frames.join(", "),
    tokens: one.tokens, "cost, $": one.cost,
  });
}

function pairs(facts) {
  const known = Object.entries(facts).filter(([, value]) => value !== null);
  return make("dl", {}, ...known.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value instanceof Node ? value : String(value))]));
}

dialog.onclose = () => {
  dialog.querySelectorAll("video").forEach(release);
  document.querySelector(`[data-clip="${CSS.escape(`${opened.policy}/${opened.row}`)}"]`)?.focus();
};
dialog.onclick = event => { if (event.target === dialog) dialog.close(); };
dialog.onkeydown = event => {  // left and right: the other policies; up and down: the other rows
  const [across, down] = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key] ?? [0, 0];
  const policy = filters.policies[filters.policies.indexOf(opened.policy) + across];
  const row = chosen[chosen.indexOf(opened.row) + down];
  if (!(across || down) || !policy || row === undefined || data.clips[policy].files[row] === null) return;
  event.preventDefault();
  open(policy, row);
};

// The filters, and the address that remembers them

function fill(name, options, every) {
  form.elements[name].append(...(every ? [make("option", {value: ""}, every)] : []),
    ...options.map(([value, text]) => make("option", {value}, text)));
}

function remember() {
  const kept = new URLSearchParams([...new FormData(form)].filter(([name, value]) => value && !name.startsWith("policy:")));
  if (filters.judge === data.judges[0]) kept.delete("judge");
  if (filters.policies.length < names.length) kept.set("policies", filters.policies.join(" "));
  history.replaceState(null, "", "#" + kept);
}

function recall() {
  const kept = new URLSearchParams(location.hash.slice(1));
  for (const [name, value] of kept) {
    const field = form.elements[name];
    if (field?.type === "checkbox") field.checked = true;
    else if (field) field.value = value;
  }
  if (kept.has("policies"))
    for (const name of names) form.elements["policy:" + name].checked = kept.get("policies").split(" ").includes(name);
}

function begin() {
  const unique = values => [...new Set(values)].sort().map(value => [value, value]);
  document.getElementById("policies").append(...names.map(name => make("label", {},
    make("input", {type: "checkbox", name: "policy:" + name, checked: true, defaultChecked: true}), name)));
  fill("prompt", data.prompts.map(prompt => [prompt.id, prompt.text]), "all");
  fill("category", unique(data.prompts.map(prompt => prompt.category)), "all");
  fill("split", unique(data.prompts.map(prompt => prompt.split)), "all");
  fill("judge", data.judges.map(judge => [judge, judge]));
  form.elements.disagree.parentElement.hidden = data.judges.length < 2;
  document.body.classList.toggle("pixelated", data.pixelated);
  document.getElementById("filters").open = innerWidth > 704;
  recall();
  form.oninput = apply;
  form.onreset = () => setTimeout(apply);  // after the fields have their first values again
  form.onsubmit = event => event.preventDefault();
  document.querySelector("#empty button").onclick = () => form.reset();
  scroller.onscroll = () => requestAnimationFrame(draw);
  onresize = () => { const kept = scroller.scrollTop / size; layOut(); scroller.scrollTop = kept * size; };
  onhashchange = () => { form.reset(); recall(); };
  apply();
}

if (data) begin();
else count.textContent = "The clips of this page, data/clips.js, could not be loaded.";
