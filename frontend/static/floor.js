// Who has the floor: what the engine's events say about it, shown at the levels and in the text.

export class Floor {
  constructor(body, text, status) {
    this.body = body;
    this.text = text;
    this.status = status;
    this.clear();
  }

  clear() {
    this.speaking = new Set();
    this.text.textContent = "";
    this.answer = null; // the paragraph of the answer that is being given
    this.show();
  }

  // True for an event that is about the floor.
  take(event) {
    const handler = {
      speech_started: () => this.begin("user"),
      speech_stopped: () => this.end("user"),
      answer_started: () => this.begin("assistant", this.paragraph("assistant")),
      answer_done: () => this.end("assistant"),
      interrupted: () => this.interrupted(event),
      text: () => this.write(event.text),
      emotion: () => this.note(`The voice sounds ${event.label} (${Math.round(event.probability * 100)} %).`),
      language: () => this.note(`The language is ${event.label} (${Math.round(event.probability * 100)} %).`),
      turns_dropped: () => this.note("The oldest turn has left the context."),
    }[event.type];
    handler?.();
    return Boolean(handler);
  }

  typed(message) {
    this.paragraph("user").textContent = message;
  }

  begin(who) {
    this.speaking.add(who);
    this.show();
  }

  end(who) {
    this.speaking.delete(who);
    if (who === "assistant") this.answer = null;
    this.show();
  }

  interrupted({ heard_text }) {
    if (this.answer) this.answer.textContent = `${heard_text} …`;
    this.end("assistant");
  }

  write(text) {
    this.answer ??= this.paragraph("assistant");
    this.answer.append(text);
    this.text.scrollTop = this.text.scrollHeight;
  }

  note(words) {
    this.paragraph("note").textContent = words;
  }

  paragraph(who) {
    const paragraph = document.createElement("p");
    paragraph.dataset.who = who;
    this.text.append(paragraph);
    this.text.scrollTop = this.text.scrollHeight;
    if (who === "assistant") this.answer = paragraph;
    return paragraph;
  }

  show() {
    this.body.dataset.speaking = [...this.speaking].join(" ");
    const words = { user: "You speak.", assistant: "It speaks. Interrupt it.", "": "It listens." };
    const both = this.speaking.size === 2 ? "Both speak." : words[[...this.speaking][0] ?? ""];
    this.status(both);
  }
}
