// The loudspeaker, on the audio thread: takes 24 kHz 16 bit frames, plays them without gaps from a ring buffer.

import { Resampler } from "./resampler.js";

const RATE = 24000;
const CAPACITY_S = 4;
const GREATEST_WAIT_S = 1.5; // sound that has waited so long would make every later answer late
const CUSHION_S = 0.12; // held back before playing begins, against late answers
const CUSHION_STEP_S = 0.08; // more is held back after every gap, so that a slow machine soon has no more of them
const GREATEST_CUSHION_S = 0.64;
const REPORT_S = 0.1;

class Playback extends AudioWorkletProcessor {
  constructor() {
    super();
    this.resampler = new Resampler(RATE, sampleRate);
    this.ring = new Float32Array(CAPACITY_S * sampleRate);
    this.written = 0; // samples, ever
    this.played = 0; // samples, ever
    this.playing = false;
    this.cushionS = CUSHION_S;
    this.gaps = 0;
    this.squares = 0; // of the samples played since the last report
    this.reported = 0;
    this.port.onmessage = ({ data }) => (data === "skip" ? this.skip() : this.write(new Int16Array(data)));
  }

  write(pcm) {
    const samples = this.resampler.process(Float32Array.from(pcm, (sample) => sample / 32767));
    for (const sample of samples) this.ring[this.written++ % this.ring.length] = sample;
    if (this.written - this.played > GREATEST_WAIT_S * sampleRate) {
      this.played = this.written - Math.round(this.cushionS * sampleRate); // after a stall, late sound is left out
    }
  }

  skip() {
    this.played = this.written;
    this.playing = false;
  }

  process(_, [[left, ...others]]) {
    const waiting = this.written - this.played;
    if (!this.playing && waiting >= this.cushionS * sampleRate) this.playing = true;
    if (this.playing && waiting < left.length) {
      this.playing = false;
      this.gaps++;
      this.cushionS = Math.min(this.cushionS + CUSHION_STEP_S, GREATEST_CUSHION_S);
    }
    if (this.playing) {
      for (let i = 0; i < left.length; i++) {
        left[i] = this.ring[this.played++ % this.ring.length];
        this.squares += left[i] ** 2;
      }
      for (const other of others) other.set(left);
    }
    if (currentTime - this.reported >= REPORT_S) this.report();
    return true;
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
