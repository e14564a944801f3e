// The recording stays in the browser: the server deletes it after use, and times are played from here.
(() => {
  let current = null; // of the input: {path, name, blob, url, used}
  let shown = null; // url that the player has
  let until = Infinity; // where the segment that plays ends

  const player = () => document.querySelector(".result .player");

  async function hold(audio, used) {
    const answer = await fetch(audio.url);
    if (!answer.ok) return null;
    const blob = await answer.blob();
    const name = audio.orig_name || audio.path.split(/[\\/]/).pop();
    return { path: audio.path, name, blob, url: URL.createObjectURL(blob), used };
  }

  async function upload(audio) {
    const form = new FormData();
    form.append("files", current.blob, current.name);
    const address = audio.url.slice(0, audio.url.lastIndexOf("/file="));
    const answer = await fetch(`${address}/upload`, { method: "POST", body: form });
    if (!answer.ok) return audio;
    const [path] = await answer.json();
    return { ...audio, path, url: `${address}/file=${path}` };
  }

  // What is in the input, kept for the player before the server has deleted it.
  async function keep(audio) {
    if (!audio || !audio.url) {
      current = null;
    } else if (!current || current.path !== audio.path) {
      const path = audio.path;
      const held = await hold(audio, false);
      if (held && (!current || current.path !== path)) current = held;
    }
  }

  // The recording for one more use: what was used already is uploaded again.
  async function bring(audio) {
    if (!audio || !audio.url) return audio;
    await keep(audio);
    if (!current) return audio;
    const brought = current.used ? await upload(audio) : audio;
    current.used = true;
    return brought;
  }

  function show() {
    const element = player();
    if (!element || !current) return;
    if (shown && shown !== current.url) URL.revokeObjectURL(shown);
    shown = current.url;
    until = Infinity;
    element.src = shown;
    // On a phone it stands below everything else.
    element.closest(".result").scrollIntoView({ behavior: "smooth", block: "nearest" });
    element.addEventListener("error", () => {
      element.hidden = true;
      document.querySelector(".result .unplayable").hidden = false;
    });
    element.addEventListener("timeupdate", () => follow(element));
  }

  function follow(element) {
    const now = element.currentTime;
    if (now >= until) {
      element.pause();
      until = Infinity;
    }
    for (const button of document.querySelectorAll(".result .segments button")) {
      const within = now >= Number(button.dataset.start) && now < Number(button.dataset.end);
      button.parentElement.classList.toggle("now", within);
    }
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest && event.target.closest(".result .segments button");
    const element = player();
    if (!button || !element || !element.src) return;
    element.currentTime = Number(button.dataset.start);
    until = Number(button.dataset.end);
    element.play().catch(() => {});
  });

  window.recordings = { keep, bring, show };
})();
