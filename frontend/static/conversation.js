// One conversation, from the button pressed to the button pressed again: microphone, connection, loudspeaker.
// `page` is told what happens; see app.js.

import { Connection } from "./connection.js";
import { openMicrophone, useLoudspeaker } from "./devices.js";
import { Latency } from "./latency.js";

const INPUT_RATE = 16000;
const LEVEL_FRAMES = 5; // microphone frames of 20 ms in a bar of its level
const PING_MS = 2000;

export class Conversation {
  constructor(page, preferences) {
    this.page = page;
    this.preferences = preferences;
    this.isMuted = this.isHeld = this.isOver = false;
  }

  async start() {
    try {
      this.audio = new AudioContext({ latencyHint: "interactive" });
      this.stream = await openMicrophone(this.preferences.microphone);
      await this.preferences.listDevices(); // which have names only now
      await Promise.all(
        ["capture", "playback"].map((name) => this.audio.audioWorklet.addModule(`${name}-worklet.js`)),
      );
      this.playback = new AudioWorkletNode(this.audio, "playback", { numberOfInputs: 0, outputChannelCount: [2] });
      this.playback.port.onmessage = ({ data }) => this.played(data);
      this.playback.connect(this.audio.destination);
      await useLoudspeaker(this.audio, this.preferences.loudspeaker);
      if (this.isOver) return this.hangUp();
      this.page.state("connecting", "Calling …");
      this.connection = new Connection({
        event: (event) => this.event(event),
        sound: (frame) => this.hear(frame),
        lost: () => this.page.state("reconnecting", "The network is gone. Calling again …"),
        back: () => this.page.state("talking", "It listens again."),
        closed: () => this.closed(),
      });
    } catch (error) {
      this.fail(error.message);
    }
  }

  event(event) {
    if (event.type === "conversation.opened") this.opened(event);
    else if (event.type === "reset") this.forget();
    else if (event.type === "pong") this.pong(event);
    else if (event.type === "error") this.complain(event.message);
    else this.page.event(event);
    if (event.type === "interrupted") this.playback.port.postMessage("skip");
  }

  opened({ dialect, input }) {
    this.takesTurns = dialect === "turn";
    this.latency = new Latency(input.tick_bytes);
    this.saidSamples = this.toldGaps = 0;
    this.squares = [];
    const options = this.preferences.options(this.takesTurns);
    if (Object.keys(options).length) this.ask("options", options);
    this.capture = new AudioWorkletNode(this.audio, "capture", { numberOfOutputs: 0 });
    this.capture.port.onmessage = ({ data }) => this.say(data);
    this.source = this.audio.createMediaStreamSource(this.stream);
    this.source.connect(this.capture);
    this.pinging = setInterval(() => this.ask("ping", { sent: performance.now() }), PING_MS);
    this.page.state("talking", this.takesTurns ? "It listens." : "It listens while it speaks. Interrupt it.");
  }

  // Other devices, in mid-conversation.
  async useDevices({ microphone, loudspeaker }) {
    if (!this.capture) return;
    await useLoudspeaker(this.audio, loudspeaker);
    const stream = await openMicrophone(microphone);
    if (this.isOver || this.preferences.microphone !== microphone) {
      stream.getTracks().forEach((track) => track.stop()); // too late
      return;
    }
    this.source.disconnect();
    this.stream.getTracks().forEach((track) => track.stop());
    this.stream = stream;
    this.source = this.audio.createMediaStreamSource(stream);
    this.source.connect(this.capture);
  }

  say(frame) {
    const pushes = this.takesTurns && this.preferences.pushes;
    const pcm = new Int16Array(frame);
    if (this.isMuted || (pushes && !this.isHeld)) pcm.fill(0); // time goes on
    this.connection.send(frame);
    this.latency.sent(frame.byteLength, performance.now());
    this.saidSamples += pcm.length;
    this.squares.push(pcm.reduce((sum, sample) => sum + (sample / 32768) ** 2, 0) / pcm.length);
    if (this.squares.length === LEVEL_FRAMES) {
      const level = Math.sqrt(this.squares.reduce((sum, square) => sum + square, 0) / LEVEL_FRAMES);
      this.page.said(this.saidSamples / INPUT_RATE, level);
      this.squares = [];
    }
  }

  // Push-to-talk: the turn is what is said between the two.
  hold(isHeld) {
    if (isHeld === this.isHeld || !this.capture) return;
    this.isHeld = isHeld;
    this.ask(isHeld ? "listen" : "commit");
    if (isHeld) this.page.event({ type: "speech_started", at_ms: (this.saidSamples / INPUT_RATE) * 1000 });
    else {
      this.latency.closed(performance.now());
      this.page.event({ type: "speech_stopped", at_ms: (this.saidSamples / INPUT_RATE) * 1000 });
    }
  }

  hear(frame) {
    const milliseconds = this.latency.answered(performance.now());
    if (milliseconds !== null) this.page.latency("latency", milliseconds);
    this.playback.port.postMessage(frame, [frame]);
  }

  played(report) {
    this.page.heard(report);
    if (report.gaps > this.toldGaps) this.ask("playback", { gaps: report.gaps - this.toldGaps });
    this.toldGaps = Math.max(this.toldGaps, report.gaps);
  }

  pong({ sent, tick_ms }) {
    this.page.latency("network", performance.now() - sent);
    if (tick_ms !== null) this.page.latency("tick", tick_ms);
  }

  forget() {
    this.page.forget();
    this.playback.port.postMessage("skip");
  }

  type(message) {
    this.ask("message", { text: message });
    this.latency.closed(performance.now());
  }

  reset() {
    this.ask("reset");
  }

  ask(type, details = {}) {
    this.connection.send(JSON.stringify({ type, ...details }));
  }

  complain(message) {
    this.complaint = message; // the conversation goes on, unless the bridge closes it now
    this.page.complain(message);
  }

  closed() {
    if (!this.isOver) this.fail(this.complaint ?? (this.latency ? "The server closed the conversation." : null));
  }

  fail(message) {
    this.hangUp();
    this.page.over(message);
  }

  hangUp() {
    this.isOver = true;
    clearInterval(this.pinging);
    this.connection?.close();
    this.stream?.getTracks().forEach((track) => track.stop());
    if (this.audio && this.audio.state !== "closed") this.audio.close();
  }
}
