// A conversation over WebRTC: OpenAI's Realtime protocol at /v1/realtime/calls. The browser cancels the echo, conceals lost
// packets and has a jitter buffer; the bridge stops the audio at an interruption.

import { authorization } from "./access.js";
import { CallEvents } from "./call_events.js";
import { useLoudspeaker } from "./devices.js";

const CALLS = "v1/realtime/calls";
const GATHERS_MS = 1000; // timeout of the search for the browser's addresses
const CONNECTS_MS = 3000; // timeout from the bridge's answer until the data channel is open
const LEVEL_MS = 100;
const LOOK_MS = 1000; // interval of the reports on network and engine
const MIN_TURN_MS = 150; // shortest push-to-talk turn; a shorter press is ignored
const TAIL_MS = 200; // time in which the last audio of a push-to-talk turn arrives

export class CallLine {
  constructor(conversation, audio) {
    this.conversation = conversation;
    this.audio = audio;
    this.output = new Audio(); // element with a loudspeaker
    this.timers = [];
    this.events = new CallEvents(this);
  }

  // Throws if no call is possible, with `isRefusal` if the server accepts none now.
  async start(stream) {
    this.peer = new RTCPeerConnection();
    this.sender = this.peer.addTrack(stream.getAudioTracks()[0], stream);
    this.useMicrophone(stream);
    this.channel = this.peer.createDataChannel("oai-events");
    this.channel.onmessage = ({ data }) => this.events.take(JSON.parse(data));
    this.peer.ontrack = ({ streams: [voice] }) => this.play(voice);
    await this.peer.setLocalDescription();
    await until(this.peer, "icegatheringstatechange", () => this.peer.iceGatheringState === "complete", GATHERS_MS);
    const answer = await fetch(CALLS, { method: "POST", headers: authorization(), body: this.offer() });
    if (!answer.ok) throw Object.assign(new Error((await answer.json()).error.message), { isRefusal: true });
    this.address = answer.headers.get("Location");
    await this.peer.setRemoteDescription({ type: "answer", sdp: await answer.text() });
    const isOpen = () => this.channel.readyState === "open";
    if (!(await until(this.channel, "open", isOpen, CONNECTS_MS))) throw new Error("no packet comes through");
    this.channel.onclose = () => this.conversation.closed();
    this.peer.onconnectionstatechange = () => this.changed();
    await useLoudspeaker(this.output, this.conversation.preferences.loudspeaker);
    if (this.conversation.isOver) return;
    this.beganS = this.audio.currentTime;
    this.repeat(() => this.measure(), LEVEL_MS);
    this.repeat(() => this.look(), LOOK_MS);
    this.conversation.opened();
  }

  // Sends the SDP together with the session: audio arrives before an event could change the session.
  offer() {
    const { instructions, voice } = this.conversation.preferences;
    const audio = { ...(voice && { output: { voice } }) };
    if (this.conversation.pushes) audio.input = { turn_detection: null };
    const session = { type: "realtime", audio, ...(instructions && { instructions }) };
    const form = new FormData();
    form.append("sdp", this.peer.localDescription.sdp);
    form.append("session", JSON.stringify(session));
    return form;
  }

  useMicrophone(stream) {
    this.microphone?.source.disconnect();
    this.microphone = new Level(this.audio, stream);
    this.track = stream.getAudioTracks()[0];
    this.sender.replaceTrack(this.track);
  }

  play(voice) {
    this.output.srcObject = voice;
    this.output.play();
    this.voice = new Level(this.audio, voice);
  }

  set isSilent(isSilent) {
    this.track.enabled = !isSilent; // a disabled track sends zeros
  }

  changed() {
    const state = this.peer.connectionState;
    if (state === "failed" || state === "closed") return this.conversation.closed();
    if (state === "disconnected") this.conversation.lost();
    else if (this.isDisconnected) this.conversation.back();
    this.isDisconnected = state === "disconnected";
  }

  hold(isHeld) {
    if (isHeld) {
      this.commit(); // the previous turn, if its last audio is still on its way
      this.heldAt = performance.now();
      this.events.ask("output_audio_buffer.clear");
      this.events.ask("input_audio_buffer.clear");
    } else if (performance.now() - this.heldAt >= MIN_TURN_MS) {
      this.events.turnEnded();
      this.committing = setTimeout(() => this.commit(), TAIL_MS);
    }
  }

  // Commits the push-to-talk turn, if it waits for its last audio.
  commit() {
    if (!this.committing) return;
    clearTimeout(this.committing);
    this.committing = null;
    this.events.commit();
  }

  type(text) {
    this.events.turnEnded();
    this.events.say(text);
  }

  reset() {
    this.events.forgetAll();
    this.conversation.forget();
  }

  measure() {
    const now = this.audio.currentTime;
    this.conversation.said(now - this.beganS, this.microphone.measure());
    if (!this.voice) return;
    this.voiceBeganS ??= now;
    const { bufferS = 0, gaps = 0 } = this.seen ?? {};
    this.conversation.heard({ playedS: now - this.voiceBeganS, level: this.voice.measure(), bufferS, gaps });
  }

  // Reports the network, from the browser's statistics, and the engine, from the bridge.
  async look() {
    const stats = [...(await this.peer.getStats()).values()];
    const sound = stats.find(({ type, kind }) => type === "inbound-rtp" && kind === "audio");
    if (sound) this.seen = bufferOf(sound, this.seen);
    const { currentRoundTripTime } = stats.find(({ type, nominated }) => type === "candidate-pair" && nominated) ?? {};
    if (currentRoundTripTime !== undefined) this.conversation.latency("network", currentRoundTripTime * 1000);
    const call = await fetch(this.address, { headers: authorization() });
    const tick_ms = call.ok ? (await call.json()).tick_ms : null;
    if (tick_ms !== null) this.conversation.latency("tick", tick_ms);
  }

  repeat(work, milliseconds) {
    this.timers.push(setInterval(work, milliseconds));
  }

  hangUp() {
    for (const timer of this.timers) clearInterval(timer);
    clearTimeout(this.committing);
    this.output.srcObject = null;
    if (this.channel) this.channel.onclose = null;
    if (this.peer) this.peer.onconnectionstatechange = null;
    if (this.address) fetch(`${this.address}/hangup`, { method: "POST", headers: authorization(), keepalive: true });
    this.peer?.close();
  }
}

// Returns the level of a stream.
class Level {
  constructor(audio, stream) {
    this.source = audio.createMediaStreamSource(stream);
    this.analyser = new AnalyserNode(audio, { fftSize: 4096 });
    this.source.connect(this.analyser);
    this.samples = new Float32Array(this.analyser.fftSize);
  }

  measure() {
    this.analyser.getFloatTimeDomainData(this.samples);
    return Math.sqrt(this.samples.reduce((sum, sample) => sum + sample ** 2, 0) / this.samples.length);
  }
}

// Returns the mean delay in the jitter buffer since `before`, and the number of concealments.
function bufferOf({ jitterBufferDelay: delay, jitterBufferEmittedCount: count, concealmentEvents: gaps }, before) {
  const samples = count - (before?.count ?? 0);
  const bufferS = samples > 0 ? (delay - (before?.delay ?? 0)) / samples : (before?.bufferS ?? 0);
  return { delay, count, gaps, bufferS };
}

// Waits until `isSo` after an event of `target`; returns false after the timeout.
function until(target, name, isSo, milliseconds) {
  return new Promise((resolve) => {
    const timer = setTimeout(() => resolve(isSo()), milliseconds);
    const look = () => {
      if (!isSo()) return;
      clearTimeout(timer);
      resolve(true);
    };
    target.addEventListener(name, look);
    look();
  });
}
