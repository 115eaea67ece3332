// Translates the Realtime protocol's events of a call to the page's events, and the page's requests to the protocol's.

export class CallEvents {
  // line: the call, with its data channel and its conversation
  constructor(line) {
    this.line = line;
    this.items = new Set(); // ids of items, in order
    this.responses = new Set(); // ids of responses in progress
    this.forgotten = new Set(); // ids of responses whose further events are ignored
    this.began = performance.now();
  }

  take(event) {
    const { conversation } = this.line;
    const handlers = {
      "input_audio_buffer.speech_started": () => this.tell("speech_started", { at_ms: event.audio_start_ms }),
      "input_audio_buffer.speech_stopped": () => {
        this.turnEnded();
        this.tell("speech_stopped", { at_ms: event.audio_end_ms });
      },
      "conversation.item.added": () => this.items.add(event.item.id),
      "response.created": () => this.responses.add(event.response.id),
      "response.output_item.added": () => this.answerStarted(event),
      "response.output_audio_transcript.delta": () => this.text(event),
      "output_audio_buffer.started": () => this.soundStarted(),
      "response.done": () => this.answerDone(event.response),
      error: () => conversation.complain(event.error.message),
      draining: () => conversation.event(event),
    };
    handlers[event.type]?.();
  }

  tell(type, details = {}) {
    this.line.conversation.event({ type, ...details });
  }

  answerStarted({ response_id }) {
    this.soundAt = null;
    if (!this.forgotten.has(response_id)) this.tell("answer_started", { at_ms: performance.now() - this.began });
  }

  text({ response_id, delta }) {
    if (!this.forgotten.has(response_id)) this.tell("text", { text: delta });
  }

  soundStarted() {
    this.soundAt = performance.now();
    if (this.endedAt) this.line.conversation.latency("latency", this.soundAt - this.endedAt);
    this.endedAt = null;
  }

  answerDone({ id, status, status_details, output }) {
    this.responses.delete(id);
    if (status === "cancelled" && output.length && !this.forgotten.has(id)) {
      const heard_ms = this.soundAt ? performance.now() - this.soundAt : 0;
      this.tell("interrupted", { heard_text: output[0].content[0]?.transcript ?? "", heard_ms });
    } else this.tell("answer_done");
    if (status === "failed") this.line.conversation.complain(status_details.error.message);
  }

  // Ends the user's turn: the next response answers it.
  turnEnded() {
    this.endedAt = performance.now();
  }

  // Commits the audio since the last `input_audio_buffer.clear` as a turn, and requests a response.
  commit() {
    this.ask("input_audio_buffer.commit");
    this.ask("response.create");
  }

  // Sends a typed turn; ends an answer in progress.
  say(text) {
    if (this.responses.size) this.ask("output_audio_buffer.clear");
    this.ask("conversation.item.create", {
      item: { type: "message", role: "user", content: [{ type: "input_text", text }] },
    });
    this.ask("response.create");
  }

  forgetAll() {
    this.forgotten = new Set(this.responses);
    this.ask("output_audio_buffer.clear");
    for (const item_id of this.items) this.ask("conversation.item.delete", { item_id });
    this.items.clear();
  }

  ask(type, details = {}) {
    this.line.channel.send(JSON.stringify({ type, ...details }));
  }
}
