// The loudspeaker, on the audio thread: takes 24 kHz 16 bit frames, plays them from a ring buffer. How much it holds back
// follows the network: more after a gap, less when nothing was late for a while. It falls silent and begins by short fades.

import { Resampler } from "./resampler.js";

const RATE = 24000;
const CAPACITY_S = 4;
const GREATEST_WAIT_S = 1.5; // sound that has waited so long would make every later answer late
const CUSHION_S = 0.12; // that the first frame waits before playing begins, against late ones
const CUSHION_STEP_S = 0.08; // more is held back after every gap
const GREATEST_CUSHION_S = 0.64;
const SPARE_S = 0.06; // what shall be left of the buffer when the next frame comes
const WATCH_S = 8; // more than that for so long, and the next silence is shortened by it
const FADE_S = 0.005;
const REPORT_S = 0.1;

class Playback extends AudioWorkletProcessor {
  constructor() {
    super();
    this.resampler = new Resampler(RATE, sampleRate);
    this.ring = new Float32Array(CAPACITY_S * sampleRate);
    this.written = 0; // samples, ever
    this.played = 0; // samples, ever
    this.skipTo = null; // where playing goes on after a fade
    this.playing = false;
    this.cameAt = 0; // when the first sound came that waits to be played
    this.gain = 0;
    this.cushionS = CUSHION_S;
    this.least = Infinity; // samples that were left in the buffer, since `watchedAt`
    this.watchedAt = 0;
    this.excess = 0; // samples of silence to leave out
    this.gaps = 0;
    this.squares = 0; // of the samples played since the last report
    this.reported = 0;
    this.port.onmessage = ({ data }) => (data === "skip" ? this.skip() : this.write(new Int16Array(data)));
  }

  write(pcm) {
    if (!this.playing && this.written - this.played <= FADE_S * sampleRate) this.cameAt = currentTime;
    const samples = this.resampler.process(Float32Array.from(pcm, (sample) => sample / 32767));
    for (const sample of samples) this.ring[this.written++ % this.ring.length] = sample;
    if (this.written - this.played > GREATEST_WAIT_S * sampleRate) {
      const late = this.written - Math.round(this.cushionS * sampleRate);
      this.skipTo = Math.max(this.skipTo ?? 0, late); // after a stall, late sound is left out
    }
  }

  skip() {
    this.skipTo = this.written;
  }

  process(_, [[left, ...others]]) {
    const waits = this.written - this.played > FADE_S * sampleRate;
    if (!this.playing && this.skipTo === null && waits && currentTime - this.cameAt >= this.cushionS) {
      this.playing = true;
      this.watch();
    }
    if (this.playing) this.shorten(left.length);
    const step = 1 / (FADE_S * sampleRate);
    for (let i = 0; i < left.length; i++) {
      const waiting = this.written - this.played;
      const goesOn = this.playing && this.skipTo === null && waiting > FADE_S * sampleRate;
      this.gain = waiting ? Math.max(0, Math.min(1, this.gain + (goesOn ? step : -step))) : 0;
      if (this.gain) {
        left[i] = this.gain * this.ring[this.played++ % this.ring.length];
        this.squares += left[i] ** 2;
      } else if (!goesOn) this.fallSilent();
    }
    for (const other of others) other.set(left);
    if (this.playing) this.least = Math.min(this.least, this.written - this.played);
    if (currentTime - this.watchedAt > WATCH_S) this.watch();
    if (currentTime - this.reported >= REPORT_S) this.report();
    return true;
  }

  fallSilent() {
    this.excess = 0;
    if (this.skipTo !== null) {
      this.played = Math.max(this.played, this.skipTo);
      this.playing = this.written - this.played >= this.cushionS * sampleRate;
      this.cameAt = currentTime;
      this.skipTo = null;
    } else if (this.playing) {
      this.playing = false;
      this.gaps++;
      this.cushionS = Math.min(this.cushionS + CUSHION_STEP_S, GREATEST_CUSHION_S);
    }
  }

  // What was never needed is held back no longer.
  watch() {
    if (this.playing && this.least < Infinity) {
      this.excess = Math.max(0, this.least - SPARE_S * sampleRate);
      if (this.excess) this.cushionS = Math.max(CUSHION_S, this.cushionS - CUSHION_STEP_S / 2);
    }
    this.least = Infinity;
    this.watchedAt = currentTime;
  }

  // Leaves out silence that would be played now.
  shorten(length) {
    if (this.excess < length || this.written - this.played < 3 * length) return;
    for (let i = 0; i < 2 * length; i++) if (this.ring[(this.played + i) % this.ring.length] !== 0) return;
    this.played += length;
    this.excess -= length;
  }

  report() {
    const seconds = currentTime - this.reported;
    this.port.postMessage({
      playedS: this.played / sampleRate,
      bufferS: (this.written - this.played) / sampleRate,
      level: Math.sqrt(this.squares / (seconds * sampleRate)),
      gaps: this.gaps,
    });
    this.squares = 0;
    this.reported = currentTime;
  }
}

registerProcessor("playback", Playback);
