// One conversation, from one press of the button to the next. Its line carries audio and events: a WebRTC call if bridge,
// browser and network permit one, otherwise a WebSocket. `page` receives the changes; see app.js.

import { access } from "./access.js";
import { CallLine } from "./call_line.js";
import { openMicrophone, useLoudspeaker } from "./devices.js";
import { SocketLine } from "./socket_line.js";

let callsFail = false; // a call has failed: the network is expected to block calls while the page is open

export class Conversation {
  constructor(page, preferences) {
    this.page = page;
    this.preferences = preferences;
    this.isMuted = this.isHeld = this.isOver = false;
  }

  async start() {
    try {
      this.audio = new AudioContext({ latencyHint: "interactive" });
      this.use(await openMicrophone(this.preferences.microphone));
      await this.preferences.listDevices(); // devices have names only after the microphone was permitted
      const { dialect } = await access();
      this.takesTurns = dialect === "turn";
      if (!this.isOver) await this.call();
      if (this.isOver) this.hangUp();
    } catch (error) {
      if (!this.isOver) this.fail(error.message);
    }
  }

  async call() {
    this.page.state("connecting", "Calling …");
    // The query of the address has options that only the WebSocket has.
    if (this.takesTurns && this.preferences.prefersCalls && !callsFail && !location.search) {
      this.line = new CallLine(this, this.audio);
      try {
        return await this.line.start(this.stream);
      } catch (error) {
        this.line.hangUp();
        if (this.isOver) return;
        console.info(`no WebRTC: ${error.message}`);
        callsFail = !error.isRefusal;
      }
    }
    this.line = new SocketLine(this, this.audio);
    await this.line.start(this.stream);
  }

  get transport() {
    return this.line instanceof CallLine ? "call" : "socket";
  }

  // Events of the line

  opened() {
    this.isOpen = true;
    this.saidS = 0;
    this.page.state("talking", this.takesTurns ? "It listens." : "It listens while it speaks. Interrupt it.");
    this.silence();
  }

  event(event) {
    this.page.event(event);
  }

  said(seconds, level) {
    this.saidS = seconds;
    this.page.said(seconds, level);
  }

  heard(report) {
    this.page.heard(report);
  }

  latency(name, milliseconds) {
    this.page.latency(name, milliseconds);
  }

  lost() {
    this.page.state("reconnecting", "The network is gone. Calling again …");
  }

  back() {
    this.page.state("talking", "It listens again.");
  }

  complain(message) {
    this.complaint = message; // the conversation continues, unless the bridge closes it now
    this.page.complain(message);
  }

  closed() {
    if (!this.isOver) this.fail(this.complaint ?? (this.isOpen ? "The server closed the conversation." : null));
  }

  // Requests of the page

  // Changes the devices during a conversation.
  async useDevices({ microphone, loudspeaker }) {
    if (!this.isOpen) return;
    await useLoudspeaker(this.line.output, loudspeaker);
    const stream = await openMicrophone(microphone);
    if (this.isOver || this.preferences.microphone !== microphone) {
      stream.getTracks().forEach((track) => track.stop()); // the conversation has ended meanwhile
      return;
    }
    this.stream.getTracks().forEach((track) => track.stop());
    this.use(stream);
    this.line.useMicrophone(stream);
    this.silence();
  }

  // A track ends if its device is unplugged. The conversation continues with silence, and the user can type.
  use(stream) {
    this.stream = stream;
    const gone = () => {
      if (this.stream === stream) this.page.complain("The microphone is gone: choose one in the settings.");
    };
    stream.getTracks().forEach((track) => track.addEventListener("ended", gone));
  }

  get pushes() {
    return this.takesTurns && this.preferences.pushes;
  }

  mute(isMuted) {
    this.isMuted = isMuted;
    this.silence();
  }

  // Sends silence while the microphone is muted or not held, so that time passes.
  silence() {
    if (this.isOpen) this.line.isSilent = this.isMuted || (this.pushes && !this.isHeld);
  }

  // Push-to-talk: the turn is the audio between `hold` and `release`.
  hold(isHeld) {
    if (isHeld === this.isHeld || !this.isOpen) return;
    this.isHeld = isHeld;
    this.silence();
    this.line.hold(isHeld);
    this.page.event({ type: isHeld ? "speech_started" : "speech_stopped", at_ms: this.saidS * 1000 });
  }

  type(message) {
    this.line.type(message);
  }

  reset() {
    this.line.reset();
  }

  forget() {
    this.page.forget();
  }

  fail(message) {
    this.hangUp();
    this.page.over(message);
  }

  hangUp() {
    this.isOver = true;
    this.line?.hangUp();
    this.stream?.getTracks().forEach((track) => track.stop());
    if (this.audio && this.audio.state !== "closed") this.audio.close();
  }
}
