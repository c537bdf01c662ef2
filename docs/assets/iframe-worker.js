// Search runs in a worker, which browsers do not start for pages opened from a file; an iframe replaces it.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.documentElement.append(frame)
      const inside = frame.contentWindow
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      this.ready = new Promise(ready => {
        const script = inside.document.createElement("script")
        script.onload = () => ready(inside)
        script.src = url
        inside.document.documentElement.append(script)
      })
    }
    postMessage(data) {
      this.ready.then(inside => inside.dispatchEvent(new MessageEvent("message", { data })))
    }
  }
}
