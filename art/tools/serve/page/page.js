// From a clip to its answer: what comes in, how far it is, what went wrong.
import { setUpCamera } from "./camera.js";
import { showResult } from "./result.js";
import { bring, follow, forget, Problem } from "./server.js";

const at = (id) => document.getElementById(id);
let about = null; // what the server says of its model
let current = null; // the clip that is waited for or shown: {id, cancel}

async function start() {
  try {
    const answer = await fetch("/about");
    if (!answer.ok) throw new Error();
    about = await answer.json();
  } catch {
    return fail("The server does not answer. Is it still running?");
  }
  const art = about.kind === "art" ? `ART with ${about.tracklets} tracklets` : "A backbone alone";
  at("about").textContent =
    `${art} on ${about.backbone}: ${about.classes.length} classes, ${about.frames} frames of a clip, on ${about.device}.`;
  at("limits").textContent =
    `MP4, MOV, WebM, MKV or AVI, up to ${about.limits.megabytes} MB and ${about.limits.seconds} s.`;
  at("samples").append(...about.samples.map(sampleButton));
  setUpCamera(about.limits.seconds, (clip) => take(clip, clip.name), fail);
}

function sampleButton(sample) {
  const [item, button, image, title] = ["li", "button", "img", "span"].map((tag) => document.createElement(tag));
  button.type = "button";
  image.src = `/samples/${sample.file.replace(/mp4$/, "jpg")}`;
  image.alt = "";
  image.width = image.height = 112;
  title.textContent = sample.title;
  button.append(image, title);
  button.addEventListener("click", () => take(null, sample.file, { sample: sample.file, title: sample.title }));
  item.append(button);
  return item;
}

async function take(clip, name, sample = null) {
  leave();
  if (!about) return fail("The server does not answer. Is it still running?");
  if (clip && clip.size > about.limits.bytes) {
    const has = (clip.size / 1e6).toFixed(1);
    return fail(`A clip may have ${about.limits.megabytes} MB here, and “${name}” has ${has} MB. Cut it, or save it in a smaller size.`);
  }
  show("progress");
  working(clip ? "Sending the clip" : "Starting", 0);
  const cancel = new AbortController();
  const mine = (current = { cancel, id: null });
  try {
    const sending = (share) => working("Sending the clip", share);
    mine.id = await bring(clip, name, sample, cancel.signal, sending);
    if (cancel.signal.aborted) return forget(mine.id);
    const answer = await follow(mine.id, cancel.signal, (state) => working(told(state)));
    if (current !== mine) return;
    show("result");
    const title = showResult(at("result"), answer, mine.id, sample);
    title.focus({ preventScroll: true });
    if (matchMedia("(max-width: 899px)").matches) title.scrollIntoView({ behavior: "smooth" });
  } catch (error) {
    if (cancel.signal.aborted || current !== mine) return;
    fail(error instanceof Problem ? error.message : "The server does not answer any more. Is it still running?");
  }
}

function told(state) {
  if (state.state !== "waiting") return `${state.step || "Starting"} …`;
  return state.ahead ? `Waiting: ${state.ahead} ${state.ahead === 1 ? "clip is" : "clips are"} before yours` : "Starting …";
}

function working(text, share = null) {
  const step = at("step");
  if (step.textContent !== text) step.textContent = text;
  if (share === null || share >= 1) at("bar").removeAttribute("value");
  else at("bar").value = share;
}

function show(id) {
  for (const other of ["problem", "progress", "empty", "result"]) at(other).hidden = other !== id;
  if (id !== "result") at("result").replaceChildren();
  if (id === "progress" && matchMedia("(max-width: 899px)").matches) at("progress").scrollIntoView({ block: "nearest" });
}

function fail(message) {
  at("problem").textContent = message;
  show("problem");
  at("problem").focus({ preventScroll: true });
  at("problem").scrollIntoView({ block: "nearest" });
}

// The server keeps nothing of a clip that nobody looks at.
function leave() {
  if (!current) return;
  current.cancel.abort();
  if (current.id) forget(current.id);
  current = null;
}

at("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  event.target.value = ""; // the same file may be chosen again
  if (file) take(file, file.name);
});
at("cancel").addEventListener("click", () => {
  leave();
  show("empty");
});
for (const name of ["dragover", "dragleave", "drop"]) {
  window.addEventListener(name, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", name === "dragover");
    const file = name === "drop" && event.dataTransfer.files[0];
    if (file) take(file, file.name);
  });
}
window.addEventListener("pagehide", leave);
window.addEventListener("pageshow", (event) => event.persisted && location.reload());
start();
