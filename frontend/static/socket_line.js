// A conversation over a WebSocket: sends the microphone's frames, receives the voice's and plays them from a buffer.

import { Connection } from "./connection.js";
import { useLoudspeaker } from "./devices.js";
import { Latency } from "./latency.js";

const INPUT_RATE = 16000;
const LEVEL_FRAMES = 5; // microphone frames of 20 ms in one bar of the level
const PING_MS = 2000;

export class SocketLine {
  constructor(conversation, audio) {
    this.conversation = conversation;
    this.audio = audio;
    this.output = audio; // element with a loudspeaker
    this.isSilent = false;
  }

  async start(stream) {
    this.stream = stream;
    const { audio, conversation } = this;
    await Promise.all(["capture", "playback"].map((name) => audio.audioWorklet.addModule(`${name}-worklet.js`)));
    this.playback = new AudioWorkletNode(audio, "playback", { numberOfInputs: 0, outputChannelCount: [2] });
    this.playback.port.onmessage = ({ data }) => this.played(data);
    this.playback.connect(audio.destination);
    await useLoudspeaker(audio, conversation.preferences.loudspeaker);
    if (conversation.isOver) return;
    this.connection = new Connection({
      event: (event) => this.event(event),
      sound: (frame) => this.hear(frame),
      lost: () => conversation.lost(),
      back: () => conversation.back(),
      closed: () => conversation.closed(),
    });
  }

  event(event) {
    if (event.type === "conversation.opened") this.opened(event);
    else if (event.type === "reset") this.forget();
    else if (event.type === "pong") this.pong(event);
    else if (event.type === "error") this.conversation.complain(event.message);
    else this.conversation.event(event);
    if (event.type === "interrupted") this.playback.port.postMessage("skip");
  }

  opened({ input }) {
    this.latency = new Latency(input.tick_bytes);
    this.saidSamples = this.toldGaps = 0;
    this.squares = [];
    const { instructions: system_prompt, voice } = this.conversation.preferences;
    const options = { ...(voice && { voice }), ...(system_prompt && { system_prompt }) };
    if (this.conversation.pushes) options.detection = "manual";
    if (Object.keys(options).length) this.ask("options", options);
    this.capture = new AudioWorkletNode(this.audio, "capture", { numberOfOutputs: 0 });
    this.capture.port.onmessage = ({ data }) => this.say(data);
    this.useMicrophone(this.stream);
    this.pinging = setInterval(() => this.ask("ping", { sent: performance.now() }), PING_MS);
    this.conversation.opened();
  }

  useMicrophone(stream) {
    this.source?.disconnect();
    this.source = this.audio.createMediaStreamSource(stream);
    this.source.connect(this.capture);
  }

  say(frame) {
    const pcm = new Int16Array(frame);
    if (this.isSilent) pcm.fill(0);
    this.connection.send(frame);
    this.latency.sent(frame.byteLength, performance.now());
    this.saidSamples += pcm.length;
    this.squares.push(pcm.reduce((sum, sample) => sum + (sample / 32768) ** 2, 0) / pcm.length);
    if (this.squares.length === LEVEL_FRAMES) {
      const level = Math.sqrt(this.squares.reduce((sum, square) => sum + square, 0) / LEVEL_FRAMES);
      this.conversation.said(this.saidSamples / INPUT_RATE, level);
      this.squares = [];
    }
  }

  hold(isHeld) {
    this.ask(isHeld ? "listen" : "commit");
    if (!isHeld) this.latency.closed(performance.now());
  }

  hear(frame) {
    const milliseconds = this.latency.answered(performance.now());
    if (milliseconds !== null) this.conversation.latency("latency", milliseconds);
    this.playback.port.postMessage(frame, [frame]);
  }

  played(report) {
    this.conversation.heard(report);
    if (report.gaps > this.toldGaps) this.ask("playback", { gaps: report.gaps - this.toldGaps });
    this.toldGaps = Math.max(this.toldGaps, report.gaps);
  }

  pong({ sent, tick_ms }) {
    this.conversation.latency("network", performance.now() - sent);
    if (tick_ms !== null) this.conversation.latency("tick", tick_ms);
  }

  forget() {
    this.conversation.forget();
    this.playback.port.postMessage("skip");
  }

  type(text) {
    this.ask("message", { text });
    this.latency.closed(performance.now());
  }

  reset() {
    this.ask("reset");
  }

  ask(type, details = {}) {
    this.connection.send(JSON.stringify({ type, ...details }));
  }

  hangUp() {
    clearInterval(this.pinging);
    this.connection?.close();
  }
}
