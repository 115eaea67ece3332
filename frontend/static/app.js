// The page: buttons, status, and one conversation at a time.

import { whyRefused } from "./access.js";
import { Conversation } from "./conversation.js";
import { Floor } from "./floor.js";
import { Preferences } from "./preferences.js";
import { showSuggestions } from "./suggestions.js";
import { Timeline } from "./timeline.js";
import { Transcript } from "./transcript.js";

let conversation = null;
const element = (id) => document.getElementById(id);
const transcript = new Transcript(element("text"));
const timeline = new Timeline(element("timeline"), document.body);
const preferences = new Preferences(element);
const floor = new Floor(document.body, (words) => {
  if (conversation?.takesTurns && document.body.dataset.state === "talking") element("status").textContent = words;
});

element("talk").onclick = () => (conversation ? stop() : start());
element("reset").onclick = () => conversation?.reset();
element("mute").onclick = () => mute(!conversation?.isMuted);
element("typing").onsubmit = (event) => {
  event.preventDefault();
  const words = element("message").value.trim();
  if (words && conversation) {
    transcript.typed(words);
    conversation.type(words);
  }
  element("message").value = "";
};
element("settings").onsubmit = (event) => event.preventDefault();
preferences.onDevice = () => conversation?.useDevices(preferences).catch((error) => transcript.note(error.message));
window.onpagehide = () => conversation?.hangUp(); // a call outlives its page for a while
listenToKeys();
showSuggestions(element("suggestions"));

const PAGE = {
  state(state, words) {
    document.body.dataset.state = state;
    document.body.dataset.transport = conversation?.transport ?? "";
    element("status").textContent = words;
    const talks = state === "talking";
    element("talk").textContent = ["talking", "reconnecting"].includes(state) ? "Stop" : "Talk";
    element("talk").disabled = state === "connecting";
    element("hold").hidden = !(talks && conversation.pushes);
    element("mute").disabled = element("reset").disabled = !talks;
    element("message").disabled = !(talks && conversation.takesTurns);
    preferences.lock(state !== "idle" && state !== "error");
  },
  event(event) {
    floor.take(event);
    transcript.take(event);
  },
  forget() {
    floor.clear();
    transcript.clear();
  },
  complain: (words) => transcript.note(words),
  said(seconds, level) {
    timeline.push("user", level);
    element("said").textContent = `${seconds.toFixed(1)} s`;
  },
  heard({ playedS, bufferS, level, gaps }) {
    timeline.push("assistant", level);
    element("heard").textContent = `${playedS.toFixed(1)} s`;
    element("buffer").textContent = `${(bufferS * 1000).toFixed(0)} ms`;
    element("gaps").textContent = String(gaps);
  },
  latency(name, milliseconds) {
    element(name).textContent = `${milliseconds.toFixed(0)} ms`;
  },
  async over(words) {
    const reason = words ?? (await whyRefused()) ?? "The server closed the conversation.";
    conversation = null;
    floor.clear();
    PAGE.state("error", reason);
  },
};

async function start() {
  PAGE.forget();
  timeline.clear();
  conversation = new Conversation(PAGE, preferences);
  mute(false);
  PAGE.state("connecting", "Asking for the microphone …");
  await conversation.start();
}

function stop() {
  conversation.hangUp();
  conversation = null;
  floor.clear();
  PAGE.state("idle", "Press the button and speak.");
}

function mute(isMuted) {
  conversation?.mute(isMuted);
  element("mute").setAttribute("aria-pressed", String(isMuted));
  element("mute").textContent = isMuted ? "Unmute" : "Mute";
}

// The space bar is the push-to-talk button, M mutes; neither applies while the user types.
function listenToKeys() {
  const hold = element("hold");
  const holds = (isHeld) => {
    hold.classList.toggle("held", isHeld);
    conversation?.hold(isHeld);
  };
  hold.onpointerdown = (event) => {
    hold.setPointerCapture(event.pointerId);
    holds(true);
  };
  hold.onpointerup = hold.onpointercancel = hold.onlostpointercapture = window.onblur = () => holds(false);
  const isMine = (event) => !event.target.closest("input, textarea, select, summary, button:not(#hold)");
  document.onkeydown = (event) => {
    if (!isMine(event) || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.code === "Space" && !hold.hidden) {
      event.preventDefault();
      if (!event.repeat) holds(true);
    } else if (event.key.toLowerCase() === "m" && !element("mute").disabled) mute(!conversation.isMuted);
  };
  document.onkeyup = (event) => {
    if (event.code === "Space") holds(false);
  };
}
