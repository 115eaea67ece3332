// The microphone, in the audio thread: mono, 16 kHz, 16 bit, in frames of 20 ms.

import { Resampler } from "./resampler.js";

const RATE = 16000;
const FRAME_SAMPLES = 320;

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.resampler = new Resampler(sampleRate, RATE);
    this.frame = new Int16Array(FRAME_SAMPLES);
    this.filled = 0;
  }

  process([channels]) {
    if (channels.length === 0) return true; // the microphone is not connected yet
    const mono = new Float32Array(channels[0].length);
    for (const channel of channels) channel.forEach((sample, i) => (mono[i] += sample / channels.length));
    for (const sample of this.resampler.process(mono)) {
      this.frame[this.filled++] = Math.round(Math.max(-1, Math.min(1, sample)) * 32767);
      if (this.filled === FRAME_SAMPLES) {
        this.port.postMessage(this.frame.buffer, [this.frame.buffer]);
        this.frame = new Int16Array(FRAME_SAMPLES);
        this.filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("capture", Capture);
