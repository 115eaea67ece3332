// The WebSocket, and the next one after a loss of the network. Both sides count messages, so that each can send the ones
// that the other has missed: docs/websocket.md, "Reconnect".

import { subprotocols } from "./access.js";

const CUT_OFF = 1006; // close code of a WebSocket without a close frame
const RETRY_MS = 500;
const SILENT_MS = 5000; // the network counts as lost after this time without a message; pongs come every two seconds
const KEPT_BYTES = 2 ** 21; // bytes of the latest messages that are kept: a minute of audio

export class Connection {
  // listener: event(object), sound(buffer), lost(), back(), closed()
  constructor(listener) {
    this.listener = listener;
    this.received = 0;
    this.sent = []; // the latest messages; `before` counts earlier ones
    this.dropped = this.bytes = 0;
    this.call(`${location.search || "?"}&resumable=true`);
    this.watching = setInterval(() => this.watch(), 1000);
  }

  call(query) {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    this.socket = new WebSocket(`${scheme}://${location.host}/ws/pcm16${query}`, subprotocols());
    this.socket.binaryType = "arraybuffer";
    this.socket.onmessage = ({ data }) => this.take(data);
    this.socket.onclose = ({ code }) => this.closed(code);
    this.isOpen = false;
    this.heardAt = performance.now();
  }

  // Drops a WebSocket that has received no message for too long.
  watch() {
    const isWaiting = this.socket.readyState <= WebSocket.OPEN && this.token;
    if (!isWaiting || performance.now() - this.heardAt < SILENT_MS) return;
    this.socket.onmessage = this.socket.onclose = null;
    this.socket.close();
    this.closed(CUT_OFF);
  }

  take(data) {
    this.heardAt = performance.now();
    const event = typeof data === "string" ? JSON.parse(data) : null;
    if (event?.type === "conversation.resumed") return this.resumed(event.received);
    this.received++;
    if (event?.type === "conversation.opened") {
      this.token = event.resume_token;
      this.resumeMs = event.resume_s * 1000;
      this.isOpen = true;
    }
    if (event) this.listener.event(event);
    else this.listener.sound(data);
  }

  send(message) {
    this.sent.push(message);
    this.bytes += message.length ?? message.byteLength;
    while (this.bytes > KEPT_BYTES) {
      const oldest = this.sent.shift();
      this.bytes -= oldest.length ?? oldest.byteLength;
      this.dropped++;
    }
    if (this.isOpen) this.socket.send(message);
  }

  resumed(received) {
    if (received < this.dropped) {
      this.close(); // the missed messages are no longer kept
      return this.listener.closed();
    }
    for (const message of this.sent.slice(received - this.dropped)) this.socket.send(message);
    this.isOpen = true;
    this.lostAt = null;
    this.listener.back();
  }

  closed(code) {
    if (this.isDone) return;
    this.isOpen = false;
    this.lostAt ??= performance.now();
    if (code !== CUT_OFF || !this.token || performance.now() - this.lostAt > this.resumeMs) {
      clearInterval(this.watching);
      this.listener.closed();
      return;
    }
    this.listener.lost();
    this.retrying = setTimeout(() => this.call(`?resume=${this.token}&received=${this.received}`), RETRY_MS);
  }

  close() {
    this.isDone = true;
    this.isOpen = false;
    clearTimeout(this.retrying);
    clearInterval(this.watching);
    this.socket.close(1000);
  }
}
