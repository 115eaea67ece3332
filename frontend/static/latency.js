// Each tick has one answer, in order, so the delay of the n-th answer is known without a time stamp in the protocol.

export class Latency {
  constructor(tickBytes) {
    this.tickBytes = tickBytes;
    this.sentBytes = 0;
    this.sentAt = []; // send times of the last samples of the ticks in flight
  }

  sent(bytes, now) {
    const before = Math.floor(this.sentBytes / this.tickBytes);
    this.sentBytes += bytes;
    const after = Math.floor(this.sentBytes / this.tickBytes);
    for (let tick = before; tick < after; tick++) this.sentAt.push(now);
  }

  // Notes that the bridge has padded the open tick with silence.
  closed(now) {
    this.sentBytes = (Math.floor(this.sentBytes / this.tickBytes) + 1) * this.tickBytes;
    this.sentAt.push(now);
  }

  // Returns the milliseconds from the send time of a tick's last sample to its answer.
  answered(now) {
    return this.sentAt.length > 0 ? now - this.sentAt.shift() : null;
  }
}
