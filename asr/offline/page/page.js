// The recording stays in the browser: the server deletes it after use, and times are played from here.
(() => {
  let wanted = null; // path of what is in the input
  let current = null; // the same, kept: {path, name, blob, url, used}
  let asked = null; // what was last sent to be transcribed
  let shown = null; // url that the player has
  let readWith = null; // what was said in that, as the visitor typed it
  let until = Infinity; // where the segment that plays ends

  const player = () => document.querySelector(".result .player");

  async function hold(audio) {
    const answer = await fetch(audio.url);
    if (!answer.ok) return null;
    const blob = await answer.blob();
    const name = audio.orig_name || audio.path.split(/[\\/]/).pop();
    return { path: audio.path, name, blob, url: URL.createObjectURL(blob), used: false };
  }

  function replace(held) {
    if (current && current !== asked && current.url !== shown) URL.revokeObjectURL(current.url);
    current = held;
  }

  async function upload(audio, held) {
    const form = new FormData();
    form.append("files", held.blob, held.name);
    const address = audio.url.slice(0, audio.url.lastIndexOf("/file="));
    const answer = await fetch(`${address}/upload`, { method: "POST", body: form });
    if (!answer.ok) return audio;
    const [path] = await answer.json();
    return { ...audio, path, url: `${address}/file=${path}` };
  }

  // What is in the input, kept for the player before the server has deleted it.
  async function keep(audio) {
    const path = audio && audio.url ? audio.path : null;
    wanted = path;
    if (!path) replace(null);
    if (!path || (current && current.path === path)) return;
    const held = await hold(audio).catch(() => null);
    if (!held) return;
    // Meanwhile something else may have been chosen, or the same been kept.
    if (wanted !== path || (current && current.path === path)) URL.revokeObjectURL(held.url);
    else replace(held);
  }

  // The recording for one more use: what was used already is uploaded again.
  async function bring(audio, said) {
    asked = null;
    await keep(audio);
    if (!audio || !current || current.path !== audio.path) return audio;
    asked = current;
    readWith = said;
    const brought = asked.used ? await upload(audio, asked).catch(() => audio) : audio;
    asked.used = true;
    return brought;
  }

  // What was said in a recording that is done is not what is said in the next one.
  function said(reference) {
    return reference === readWith ? "" : reference;
  }

  function show() {
    const element = player();
    if (!element || !asked) return;
    if (shown && shown !== asked.url && (!current || current.url !== shown)) URL.revokeObjectURL(shown);
    shown = asked.url;
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

  window.recordings = { keep, bring, said, show };
})();
