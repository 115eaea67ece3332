// The loudspeaker, in the audio thread: plays 24 kHz 16 bit frames from a ring buffer. The amount of buffered audio follows
// the network: more after a gap, less after a time without late frames. Audio begins and ends with short fades.

import { Resampler } from "./resampler.js";

const RATE = 24000;
const CAPACITY_S = 4;
const GREATEST_WAIT_S = 1.5; // longest wait of audio: more would delay every later answer
const CUSHION_S = 0.12; // delay of the first frame, so that later frames may be late
const CUSHION_STEP_S = 0.08; // increase of the delay after each gap
const GREATEST_CUSHION_S = 0.64;
const SPARE_S = 0.06; // smallest amount in the buffer when the next frame arrives
const WATCH_S = 8; // an excess over this duration shortens the next silence
const FADE_S = 0.005;
const REPORT_S = 0.1;

class Playback extends AudioWorkletProcessor {
  constructor() {
    super();
    this.resampler = new Resampler(RATE, sampleRate);
    this.ring = new Float32Array(CAPACITY_S * sampleRate);
    this.written = 0; // samples received since the beginning
    this.played = 0; // samples played since the beginning
    this.skipTo = null; // sample at which playback continues after a fade
    this.playing = false;
    this.cameAt = 0; // arrival time of the first audio that waits
    this.gain = 0;
    this.cushionS = CUSHION_S;
    this.least = Infinity; // fewest samples in the buffer since `watchedAt`
    this.watchedAt = 0;
    this.excess = 0; // samples of silence to leave out
    this.gaps = 0;
    this.squares = 0; // sum of squares of the samples since the last report
    this.reported = 0;
    this.port.onmessage = ({ data }) => (data === "skip" ? this.skip() : this.write(new Int16Array(data)));
  }

  write(pcm) {
    if (!this.playing && this.written - this.played <= FADE_S * sampleRate) this.cameAt = currentTime;
    const samples = this.resampler.process(Float32Array.from(pcm, (sample) => sample / 32767));
    for (const sample of samples) this.ring[this.written++ % this.ring.length] = sample;
    if (this.written - this.played > GREATEST_WAIT_S * sampleRate) {
      const late = this.written - Math.round(this.cushionS * sampleRate);
      this.skipTo = Math.max(this.skipTo ?? 0, late); // after a stall, late audio is left out
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

  // Reduces the buffer by the amount that was never needed.
  watch() {
    if (this.playing && this.least < Infinity) {
      this.excess = Math.max(0, this.least - SPARE_S * sampleRate);
      if (this.excess) this.cushionS = Math.max(CUSHION_S, this.cushionS - CUSHION_STEP_S / 2);
    }
    this.least = Infinity;
    this.watchedAt = currentTime;
  }

  // Leaves out silence that is due now.
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
