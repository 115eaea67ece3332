// The page: one conversation from the button pressed to the button pressed again.

import { subprotocols, whyRefused } from "./access.js";
import { Floor } from "./floor.js";
import { Latency } from "./latency.js";
import { Level, rootMeanSquare } from "./level.js";
import { showSuggestions } from "./suggestions.js";
import { Transcript } from "./transcript.js";

const INPUT_RATE = 16000;
const LEVEL_FRAMES = 5; // microphone frames of 20 ms in a bar of its level

const element = (id) => document.getElementById(id);
const microphoneLevel = new Level(element("microphone"));
const loudspeakerLevel = new Level(element("loudspeaker"));
let conversation = null;
const transcript = new Transcript(element("text"));
const floor = new Floor(document.body, (words) => {
  if (conversation?.takesTurns) element("status").textContent = words;
});
showSuggestions(element("suggestions"));

element("talk").onclick = () => (conversation ? conversation.stop() : start());
element("reset").onclick = () => conversation?.reset();
element("typing").onsubmit = (event) => {
  event.preventDefault();
  conversation?.type(element("message").value.trim());
  element("message").value = "";
};

function show(state, status) {
  document.body.dataset.state = state;
  element("status").textContent = status;
  element("talk").textContent = state === "talking" ? "Stop" : "Talk";
  element("talk").disabled = state === "connecting";
  element("reset").disabled = state !== "talking";
  element("message").disabled = state !== "talking" || !conversation?.takesTurns;
}

async function start() {
  floor.clear();
  transcript.clear();
  show("connecting", "Asking for the microphone …");
  conversation = new Conversation();
  try {
    await conversation.start();
  } catch (error) {
    conversation.fail(error.message);
  }
}

class Conversation {
  async start() {
    if (!navigator.mediaDevices) throw new Error("The browser gives a microphone only to https or to localhost.");
    this.audio = new AudioContext({ latencyHint: "interactive" });
    this.stream = await navigator.mediaDevices.getUserMedia({
      audio: { channelCount: 1, echoCancellation: true, noiseSuppression: false, autoGainControl: false },
    });
    await Promise.all(
      ["capture", "playback"].map((name) => this.audio.audioWorklet.addModule(`${name}-worklet.js`)),
    );
    this.playback = new AudioWorkletNode(this.audio, "playback", { numberOfInputs: 0, outputChannelCount: [2] });
    this.playback.port.onmessage = ({ data }) => this.showPlayback(data);
    this.playback.connect(this.audio.destination);

    show("connecting", "Calling …");
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    this.socket = new WebSocket(`${scheme}://${location.host}/ws/pcm16${location.search}`, subprotocols());
    this.socket.binaryType = "arraybuffer";
    this.socket.onmessage = ({ data }) => (typeof data === "string" ? this.event(JSON.parse(data)) : this.hear(data));
    this.socket.onclose = ({ code }) => this.closed(code);
  }

  event(event) {
    if (event.type === "conversation.opened") this.opened(event);
    else if (event.type === "reset") this.forget();
    else if (event.type === "error") this.complain(event.message);
    else {
      floor.take(event);
      transcript.take(event);
    }
    if (event.type === "interrupted") this.playback.port.postMessage("skip");
  }

  opened(conversation) {
    this.takesTurns = conversation.dialect === "turn";
    this.latency = new Latency(conversation.input.tick_bytes);
    this.saidSamples = 0;
    this.squares = [];
    this.capture = new AudioWorkletNode(this.audio, "capture", { numberOfOutputs: 0 });
    this.capture.port.onmessage = ({ data }) => this.say(data);
    this.audio.createMediaStreamSource(this.stream).connect(this.capture);
    show("talking", this.takesTurns ? "It listens." : "It listens while it speaks. Interrupt it.");
  }

  say(frame) {
    if (this.socket.readyState !== WebSocket.OPEN) return;
    this.socket.send(frame);
    this.latency.sent(frame.byteLength, performance.now());
    const pcm = new Int16Array(frame);
    this.saidSamples += pcm.length;
    this.squares.push(rootMeanSquare(pcm) ** 2);
    if (this.squares.length === LEVEL_FRAMES) {
      microphoneLevel.push(Math.sqrt(this.squares.reduce((sum, square) => sum + square, 0) / LEVEL_FRAMES));
      element("said").textContent = `${(this.saidSamples / INPUT_RATE).toFixed(1)} s`;
      this.squares = [];
    }
  }

  hear(frame) {
    const milliseconds = this.latency.answered(performance.now());
    if (milliseconds !== null) element("latency").textContent = `${milliseconds.toFixed(0)} ms`;
    this.playback.port.postMessage(frame, [frame]);
  }

  showPlayback({ playedS, bufferS, level, gaps }) {
    loudspeakerLevel.push(level);
    element("heard").textContent = `${playedS.toFixed(1)} s`;
    element("buffer").textContent = `${(bufferS * 1000).toFixed(0)} ms`;
    element("gaps").textContent = String(gaps);
  }

  forget() {
    floor.clear();
    transcript.clear();
    this.playback.port.postMessage("skip");
  }

  type(message) {
    if (!message) return;
    transcript.typed(message);
    this.socket.send(JSON.stringify({ type: "message", text: message }));
    this.latency.closed(performance.now());
  }

  reset() {
    this.socket.send(JSON.stringify({ type: "reset" }));
  }

  stop() {
    this.hangUp();
    show("idle", "Press the button and speak.");
  }

  fail(message) {
    this.hangUp();
    show("error", message);
  }

  complain(message) {
    this.complaint = message; // the conversation goes on, unless the bridge closes it now
    transcript.note(message);
  }

  async closed(code) {
    if (conversation !== this) return;
    const reason = this.complaint ?? (this.latency ? null : await whyRefused());
    if (conversation === this) this.fail(reason ?? `The bridge closed the conversation (code ${code}).`);
  }

  hangUp() {
    if (conversation === this) conversation = null;
    this.socket?.close(1000);
    this.stream?.getTracks().forEach((track) => track.stop());
    if (this.audio && this.audio.state !== "closed") this.audio.close();
  }
}
