// What the page asks of the server.

export class Problem extends Error {} // its message is for the person

// Send a clip, or name a sample, and give its id. `sending` is told the share that has arrived.
export function bring(clip, name, sample, signal, sending) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch does not tell how much of a body was sent
    const query = sample ? { sample: sample.sample } : { name };
    request.open("POST", `/clips?${new URLSearchParams(query)}`);
    request.responseType = "json";
    request.upload.onprogress = (event) => event.lengthComputable && sending(event.loaded / event.total);
    request.onload = () => {
      if (request.status === 201) resolve(request.response.id);
      else reject(new Problem(request.response?.message ?? `The server answered ${request.status}.`));
    };
    request.onerror = () => reject(new Error("no answer"));
    signal.addEventListener("abort", () => {
      request.abort();
      reject(new Error("cancelled"));
    });
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.send(clip);
  });
}

// Ask how far a clip is until its answer is there. `tell` is told each state.
export async function follow(id, signal, tell) {
  for (;;) {
    const answer = await fetch(`/clips/${id}`, { signal });
    const state = await answer.json();
    if (!answer.ok) throw new Problem(state.message);
    if (state.state === "refused") throw new Problem(state.message);
    if (state.state === "done") return state.answer;
    tell(state);
    await new Promise((resolve) => setTimeout(resolve, 300));
  }
}

// The server removes everything of a clip; this reaches it even while the page closes.
export function forget(id) {
  fetch(`/clips/${id}`, { method: "DELETE", keepalive: true }).catch(() => {});
}
