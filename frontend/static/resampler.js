// Resamples a stream from one rate to another by a polyphase windowed-sinc filter: aliases lie 80 dB down or more.

const ZERO_CROSSINGS = 24; // zero crossings of the sinc on each side
const KAISER_BETA = 8; // side lobes near -80 dB
const PASSED = 0.9; // passband as a share of the lower rate's band; the rest is the filter's slope

export class Resampler {
  constructor(fromRate, toRate) {
    const common = greatestCommonDivisor(fromRate, toRate);
    this.up = toRate / common;
    this.down = fromRate / common;
    const cutoff = PASSED * Math.min(1, toRate / fromRate); // cutoff as a share of the input's band
    this.half = Math.ceil(ZERO_CROSSINGS / cutoff);
    this.phases = Array.from({ length: this.up }, (_, phase) => filterPhase(phase / this.up, this.half, cutoff));
    this.held = new Float32Array(2 * this.half); // input that later output needs
    this.next = 0; // position of the next output sample after the middle of the held input, in 1/up samples
  }

  // Float32Array of any length -> Float32Array of the output that is complete.
  process(input) {
    const signal = new Float32Array(this.held.length + input.length);
    signal.set(this.held);
    signal.set(input, this.held.length);

    const length = Math.max(0, Math.ceil((input.length * this.up - this.next) / this.down));
    const output = new Float32Array(length);
    for (let i = 0; i < length; i++) {
      const first = Math.floor(this.next / this.up);
      const taps = this.phases[this.next % this.up];
      let sum = 0;
      for (let tap = 0; tap < taps.length; tap++) sum += taps[tap] * signal[first + 1 + tap];
      output[i] = sum;
      this.next += this.down;
    }
    this.next -= input.length * this.up;
    this.held = signal.slice(signal.length - this.held.length);
    return output;
  }
}

function filterPhase(fraction, half, cutoff) {
  const taps = Float32Array.from({ length: 2 * half - 1 }, (_, tap) => {
    const distance = tap - (half - 1) - fraction;
    return cutoff * sinc(cutoff * distance) * kaiser(distance / half);
  });
  const gain = taps.reduce((sum, tap) => sum + tap, 0);
  return taps.map((tap) => tap / gain); // every phase passes a constant unchanged
}

function sinc(x) {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}

function kaiser(x) {
  return Math.abs(x) >= 1 ? 0 : bessel(KAISER_BETA * Math.sqrt(1 - x * x)) / bessel(KAISER_BETA);
}

// The modified Bessel function of the first kind and order 0, by its power series.
function bessel(x) {
  let sum = 1;
  let term = 1;
  for (let k = 1; term > 1e-12 * sum; k++) {
    term *= (x / (2 * k)) ** 2;
    sum += term;
  }
  return sum;
}

function greatestCommonDivisor(a, b) {
  return b === 0 ? a : greatestCommonDivisor(b, a % b);
}
