// Every tick sent has one answer, in order; so the n-th answer's delay is known without any stamp on the wire.

export class Latency {
  constructor(tickBytes) {
    this.tickBytes = tickBytes;
    this.sentBytes = 0;
    this.sentAt = []; // of the ticks on their way, when their last sample was sent
  }

  sent(bytes, now) {
    const before = Math.floor(this.sentBytes / this.tickBytes);
    this.sentBytes += bytes;
    const after = Math.floor(this.sentBytes / this.tickBytes);
    for (let tick = before; tick < after; tick++) this.sentAt.push(now);
  }

  // The bridge has closed the open tick with silence.
  closed(now) {
    this.sentBytes = (Math.floor(this.sentBytes / this.tickBytes) + 1) * this.tickBytes;
    this.sentAt.push(now);
  }

  // Milliseconds from the tick's last sample sent to its answer.
  answered(now) {
    return this.sentAt.length > 0 ? now - this.sentAt.shift() : null;
  }
}
