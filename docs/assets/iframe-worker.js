// The search runs in a Worker, and a page that was opened as a file may start none: there a hidden frame takes its place.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inside = frame.contentWindow;
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const script = inside.document.createElement("script");
      this.tell = new Promise((loaded) => {
        script.onload = () => loaded((data) => inside.dispatchEvent(new inside.MessageEvent("message", { data })));
      });
      script.src = url;
      inside.document.body.append(script);
    }
    postMessage(data) {
      this.tell.then((tell) => tell(data));
    }
  };
}
